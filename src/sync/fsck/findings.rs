//! What a check found: plain values, and what a repair makes of each.
//!
//! Depends on the format's types. Invariant: a remedy never deletes the only copy of anything.

use serde::Serialize;

use crate::cache::ContentId;
use crate::datastore::survey::SeenObject;
use crate::datastore::{Entry, RelPath};
use crate::store::UnfinishedUpload;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; as it should be.
    Info,
    /// Nothing is lost, but something is not as it should be.
    Warning,
    /// A file cannot be read, is hidden, or will be.
    Error,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The bucket has no index.
    NoIndex,
    /// A listed shard does not exist.
    MissingShard,
    /// `_index/_meta.json` does not exist beside shards.
    LostList,
    /// An entry without an object.
    MissingObject,
    /// An entry whose object has another size.
    WrongSize,
    /// An object without an entry.
    NoEntry,
    /// An entry that a shard which is missing, or does not count any more, had.
    LostEntry,
    /// Entries of internal names, or of objects that are long gone.
    Zombie,
    /// An entry that no tree can show.
    Impossible,
    /// Shards disagree about a file.
    Disagreement,
    /// A shard with entries is not listed.
    UnlistedShard,
    /// A monolith beside shards.
    StaleMonolith,
    /// A sidecar promises what the cache does not hold.
    FalseSidecar,
    /// A cached file does not have the bytes that its entry says.
    CorruptCache,
    /// An upload in parts was never completed.
    UnfinishedUpload,
}

/// What a repair does.
#[derive(Clone, Debug, PartialEq)]
pub enum Remedy {
    /// Nothing: a person has to decide.
    Leave,
    /// Give an object an entry.
    Adopt {
        /// Its key.
        path: RelPath,
        /// As it was listed.
        object: SeenObject,
        /// What an index said about it before.
        known: Option<Entry>,
    },
    /// Make an entry say what its object is.
    Correct {
        /// Which.
        path: RelPath,
        /// As it is.
        entry: Entry,
    },
    /// Remove an entry, or upload the cached bytes that it describes.
    Drop {
        /// Which.
        path: RelPath,
        /// As it is.
        entry: Entry,
        /// The cache has the bytes.
        cached: bool,
    },
    /// Write the index again.
    Rewrite,
    /// Write the entry that counts into every shard that has the file.
    Unify {
        /// Which.
        path: RelPath,
    },
    /// Write the shard again, from the objects.
    Rebuild {
        /// Its name.
        shard: String,
    },
    /// Write the sidecar of an incomplete cache.
    DenySidecar,
    /// Remove a file from a reference client's cache, if the bucket has it.
    DropCached {
        /// Which.
        path: RelPath,
        /// Its entry.
        entry: Entry,
    },
    /// Remove a content from a mount's cache, if the bucket has it.
    DropContent {
        /// Which.
        path: RelPath,
        /// Its entry.
        entry: Entry,
        /// Its number.
        content: ContentId,
    },
    /// End the upload.
    Abort(UnfinishedUpload),
}

impl Remedy {
    /// In words, for people.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::Leave => "left as it is",
            Self::Adopt { .. } => "gets an entry",
            Self::Correct { .. } => "the entry is corrected from the object",
            Self::Drop { cached: true, .. } => "the cached bytes are uploaded",
            Self::Drop { cached: false, .. } => "the entry is removed, if the object is still absent",
            Self::Rewrite => "the index is written again",
            Self::Unify { .. } => "all shards get the entry that counts",
            Self::Rebuild { .. } => "the shard is rebuilt from the objects",
            Self::DenySidecar => "the sidecar is replaced by that of an incomplete cache",
            Self::DropCached { .. } | Self::DropContent { .. } => {
                "the cached copy is dropped and fetched again, if the bucket has the file"
            }
            Self::Abort(_) => "the upload is aborted",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// How bad.
    pub severity: Severity,
    /// On what: a path, a shard, an object key.
    pub name: String,
    /// In words.
    pub detail: String,
    /// What a repair does.
    pub remedy: Remedy,
}

impl Finding {
    /// A finding.
    pub fn new(
        kind: Kind,
        severity: Severity,
        name: impl Into<String>,
        detail: impl Into<String>,
        remedy: Remedy,
    ) -> Self {
        Self { kind, severity, name: name.into(), detail: detail.into(), remedy }
    }

    /// Whether something is not as it should be.
    pub fn counts(&self) -> bool {
        self.severity > Severity::Info
    }
}
