//! One file of an index.
//!
//! Depends on timestamps only. Invariant: fields that are not ours, or that we do not understand, are carried in `extra`
//! and written back.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::datastore::timestamp;

/// Largest size that JavaScript, and so every reference client, represents exactly.
pub const MAX_SIZE: u64 = 1 << 53;

/// What a file is, by the entry's optional `mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A plain file, 0644 (also for a mode that we do not know).
    File,
    /// `100755`: an executable file.
    Executable,
    /// `120000`: a symlink whose target is the object's content.
    Symlink,
}

/// One file of an index.
///
/// Its own serde form (camelCase, without `key`) is for records on this machine; in an index it is written by
/// [`Index`](super::Index), which knows its key.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Size in bytes.
    pub size: u64,
    /// The pushing client's clock after the upload; never to be compared with the object's.
    #[serde(default)]
    pub last_modified: String,
    /// Modification time of the file where it was pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_mtime: Option<String>,
    /// Hash of the content, in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Our optional field, in git's notation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Everything else, as it came; `key` only when it differs from the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<Box<Map<String, Value>>>,
}

impl EntryKind {
    pub(super) fn of_mode(mode: Option<&str>) -> Self {
        match mode {
            Some("100755") => Self::Executable,
            Some("120000") => Self::Symlink,
            _ => Self::File,
        }
    }
}

impl Entry {
    /// What the entry describes.
    pub fn kind(&self) -> EntryKind {
        EntryKind::of_mode(self.mode.as_deref())
    }

    /// The time that a copy of this file carries: `localMtime`, else `lastModified`; `None` when neither is a date.
    pub fn mtime_nanos(&self) -> Option<i64> {
        self.local_mtime
            .as_deref()
            .and_then(timestamp::parse_nanos)
            .or_else(|| timestamp::parse_nanos(&self.last_modified))
    }

    /// Whether two entries speak of the same upload. `localMtime` is left out: reference clients stamp their own file's
    /// time there in their copy of the index when they pull.
    pub fn same_version(&self, other: &Self) -> bool {
        self.size == other.size
            && self.last_modified == other.last_modified
            && self.sha256 == other.sha256
            && self.mode == other.mode
    }

    /// Whether it speaks of the same content, as far as it says: the same kind and size, and the same hash if it has one.
    pub fn same_bytes(&self, other: &Self) -> bool {
        self.size == other.size
            && (self.kind() == EntryKind::Symlink) == (other.kind() == EntryKind::Symlink)
            && (self.sha256 == other.sha256 || self.sha256.is_none())
    }
}
