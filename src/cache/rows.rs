//! The rows of state.db as values: what is known locally about a path, a content, and an unpushed change.
//!
//! Plain data, serialised as JSON columns. Invariants: a [`Delta::Put`] without origin has a content; `replaces` is the
//! remote version that was in view when the change was made, never a later one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::RangeSet;
use crate::datastore::Entry;
use crate::store::Fingerprint;

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link; its target is its content.
    Symlink,
}

/// Attributes that were set on this machine and are not (all) in the index. `None`: as the index or the mount says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Attrs {
    /// Permission bits (07777).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Modification time in ns since the epoch; for paths without local content (a content carries its own).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtime: Option<i64>,
    /// Access time in ns since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub atime: Option<i64>,
    /// Change time in ns since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ctime: Option<i64>,
    /// Extended attributes of the `user.` namespace.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Attrs {
    /// Whether there is nothing to remember.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What is known locally about one path.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeRow {
    /// Relative path.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Its local content.
    pub content: Option<super::ContentId>,
    /// Local attributes.
    pub attrs: Attrs,
}

/// One version of an object in the bucket, as far as it is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Version {
    /// Object key, relative to the source's prefix.
    pub key: String,
    /// The index entry that described it.
    pub entry: Entry,
    /// Its fingerprint, once an answer of the store carried it.
    #[serde(with = "fingerprint_text", default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
}

/// What is known about `data/<id>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContentRow {
    /// The version whose bytes these are (or, for a changed content, were).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Version>,
    /// Which ranges are here; `None` when all of it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub present: Option<RangeSet>,
    /// Size and mtime of a complete, unchanged content: its mtime in full precision, and how to notice writes through
    /// `cache/` behind our back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<FileStamp>,
}

/// Size and mtime of a content's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Bytes.
    pub size: u64,
    /// ns since the epoch.
    pub mtime: i64,
}

impl ContentRow {
    /// Of a content that is complete and changed, so that no version describes it.
    pub fn changed() -> Self {
        Self { version: None, present: None, stamp: None }
    }
}

/// The remote entry that a change replaces.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replaced {
    /// The entry in the base when the change was made.
    pub entry: Entry,
    /// Fingerprint of its object, if an answer ever carried it.
    #[serde(with = "fingerprint_text", default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
}

/// Recorded before an upload starts, so that a lost answer or a crash can be told from a conflict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UploadMark {
    /// Sent as object metadata.
    pub id: String,
    /// SHA-256 of what is uploaded, in hex.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
    /// Under which key, when the file was renamed since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// It came with the file from another name: nothing was begun under this one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub moved: bool,
    /// Key and `lastModified` of the entry that it is a copy of, when that has no hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_of: Option<(String, String)>,
}

impl UploadMark {
    /// Whether it is about these bytes. Without a hash only a copy of this very version is.
    pub fn is_about(&self, version: &Version) -> bool {
        let Version { key, entry, .. } = version;
        let same = match &entry.sha256 {
            Some(sha256) => self.sha256 == *sha256,
            None => self.copy_of.as_ref().is_some_and(|(of, modified)| of == key && *modified == entry.last_modified),
        };
        same && self.size == entry.size
    }
}

/// What became of a path since the base.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase")]
pub enum Delta {
    /// A file is here.
    Put {
        /// Where the same bytes lie in the bucket: the file was renamed or only its attributes changed. `None`: the bytes
        /// are only here.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        origin: Option<Version>,
        /// The file is (or was, before a crash) open for writing: it may differ from `origin` although nothing says so.
        #[serde(default)]
        suspect: bool,
    },
    /// Nothing is here any more.
    Remove,
}

/// An unpushed change of one path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeltaRow {
    /// Changes whenever the row or the content behind it may have changed; a push clears only what it saw.
    pub generation: u64,
    /// What happened.
    pub delta: Delta,
    /// What it replaces in the bucket; `None`: a new name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<Replaced>,
    /// The last upload for this path whose entry is not in the index yet, as far as we know.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<UploadMark>,
}

/// An object that no entry needs any more, to be deleted once that is certain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PendingDelete {
    /// What we removed: deleted only in this version.
    pub replaced: Option<Replaced>,
    /// Or: an upload of ours.
    pub upload: Option<UploadMark>,
}

/// What a push of ours made of a path.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CommittedRow {
    /// The entry that it wrote; `None`: it removed the entry.
    pub entry: Option<Entry>,
    /// The object's version then.
    #[serde(with = "fingerprint_text", default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<Fingerprint>,
    /// What the index said before.
    pub replaced: Option<Entry>,
    /// What it said before earlier commits of ours.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Option<Entry>>,
    /// When, ns since the epoch.
    pub at: i64,
}

/// A request of the kernel that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnsweredRow {
    /// Its number, as long as the mount lasts.
    pub request: u64,
    /// What it made or took away.
    pub path: String,
}

mod fingerprint_text {
    use super::Fingerprint;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &Option<Fingerprint>, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(fingerprint) => to.serialize_str(fingerprint.as_str()),
            None => to.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Fingerprint>, D::Error> {
        Ok(Option::<String>::deserialize(from)?.and_then(|text| Fingerprint::from_record(&text)))
    }
}
