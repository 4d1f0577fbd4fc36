//! Why bytes are not an index, and what is odd about entries of one that is.
//!
//! Plain values. Invariant: no error stands for an empty index.

/// Why bytes are not an index that we can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Not JSON, or cut off.
    #[error(
        "the index is not readable JSON ({0}); nothing was changed. Restore it from a version of the bucket, or let a reference client with a good cache push it again"
    )]
    Json(String),
    /// JSON of another shape.
    #[error("the document is not an index: {0}; nothing was changed")]
    NotAnIndex(String),
    /// Where a document of entries should be, there is the list of shards.
    #[error("the document has version 2, which only _index/_meta.json may have; nothing was changed")]
    Version2,
    /// A version that does not exist yet.
    #[error("the index has the unknown version {0}; use a newer swamp-mount")]
    UnknownVersion(String),
}

impl IndexError {
    pub(super) fn json(error: serde_json::Error) -> Self {
        Self::Json(error.to_string().chars().take(256).collect())
    }
}

/// An entry that cannot be shown as a file, or not without doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexProblem {
    /// Its name in the index.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}
