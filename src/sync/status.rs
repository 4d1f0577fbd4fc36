//! What a mount says of itself: the values behind `swamp-mount status`.
//!
//! Plain data, serialised on the control socket and by `status --json`.

use serde::{Deserialize, Serialize};

/// What is not in the bucket yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// Files to put.
    pub files: u64,
    /// Bytes in those files that are only here.
    pub bytes: u64,
    /// Entries and objects to remove.
    pub removals: u64,
    /// Bytes sent by the push that is under way.
    pub uploaded_bytes: u64,
}

impl Pending {
    /// Whether everything is in the bucket.
    pub fn is_empty(&self) -> bool {
        self.files == 0 && self.removals == 0
    }
}

/// An index entry that cannot be shown as a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Its name in the index.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// An error and when it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimedError {
    /// ISO-8601, UTC.
    pub at: String,
    /// What happened.
    pub message: String,
}

/// The state of a mount.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The source, as users write it.
    pub source: String,
    /// Its namespace there, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Since when the bucket does not answer (ISO-8601), if it does not.
    pub offline_since: Option<String>,
    /// Why changes are turned away, if they are.
    pub read_only_reason: Option<String>,
    /// Entries of the index in view.
    pub entries: u64,
    /// The first entries that cannot be shown.
    pub hidden: Vec<Problem>,
    /// How many cannot be shown.
    pub hidden_count: u64,
    /// Files whose content is here, completely or in part.
    pub cached_files: u64,
    /// Their bytes on this disk.
    pub cached_bytes: u64,
    /// `--cache-size` in bytes, if there is one.
    pub cache_limit: Option<u64>,
    /// Cached files that gave way to others since the mount began.
    pub evicted_files: u64,
    /// Their bytes.
    pub evicted_bytes: u64,
    /// Bytes of files that were fetched before anybody opened them.
    #[serde(default)]
    pub read_ahead_bytes: u64,
    /// Those of them that nobody opened since.
    #[serde(default)]
    pub read_ahead_unused_bytes: u64,
    /// Downloads that the store bears at a time now; fewer than configured while it asks for patience.
    #[serde(default)]
    pub downloads_at_a_time: u64,
    /// Uploads likewise.
    #[serde(default)]
    pub uploads_at_a_time: u64,
    /// What is not in the bucket yet.
    pub pending: Pending,
    /// Files that never leave this machine.
    pub local_only: u64,
    /// Conflicts since the mount began: under which name our version went on.
    pub conflicts: Vec<String>,
    /// The last failure of a refresh or push, if none succeeded since.
    pub last_error: Option<TimedError>,
    /// The last reads that failed.
    pub read_errors: Vec<TimedError>,
    /// When the index was last read or confirmed (ISO-8601).
    pub last_refresh: Option<String>,
    /// When everything was last in the bucket (ISO-8601).
    pub last_flush: Option<String>,
}
