//! The one error of reading and writing a datastore's objects.
//!
//! Invariant: no variant ever stands for "the index is empty".

use super::index::IndexError;
use super::lock::LockError;
use crate::store::StoreError;

/// Why the index could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DatastoreError {
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The index does not parse.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// `_index/_meta.json` says version 2.
    #[error(
        "the index of this datastore has version 2 (_index/_meta.json): it is split into shards, which this release does not read; use a newer swamp-mount"
    )]
    Sharded,
    /// `_index/_meta.json` exists and cannot be understood.
    #[error(
        "cannot tell which index counts: _index/_meta.json {0}; nothing was changed. Repair or remove that object (a reference client can rebuild it)"
    )]
    UnreadableMeta(String),
    /// The bucket holds namespaces and nothing else.
    #[error(
        "this bucket holds only namespaces ({}), which this release does not read; use a newer swamp-mount, or another prefix",
        .0.join(", ")
    )]
    OnlyNamespaces(Vec<String>),
    /// There was an index, and its object is gone.
    #[error(
        "the index object (.datastore-index.json) is gone from a bucket that had one; that is not an empty datastore, so nothing was changed. Restore the object from a version of the bucket or let a client with a good cache push it, or, if the bucket was emptied on purpose, begin with a new cache directory"
    )]
    IndexVanished,
    /// Another writer changed the index (or a shard) first.
    #[error("the index was changed by another writer while it was written")]
    Changed,
    /// The lock that protects the write is gone.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A task of ours died.
    #[error("an internal task failed: {0}")]
    Task(String),
}

impl DatastoreError {
    /// Whether the same operation may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Changed => true,
            Self::Lock(error) => error.is_transient(),
            _ => false,
        }
    }
}
