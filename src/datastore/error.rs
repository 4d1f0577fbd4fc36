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
    /// A shard does not parse.
    #[error("the shard {key} of the index cannot be read: {source}")]
    Shard {
        /// Its object key.
        key: String,
        /// What is wrong.
        source: IndexError,
    },
    /// `_index/_meta.json` lists shards that do not exist.
    #[error(
        "{count} shards that _index/_meta.json lists are missing ({}{}), and with them the entries that they held; nothing was changed. Restore them from a version of the bucket, or rebuild them from the objects with `swamp-mount fsck --repair`",
        .examples.join(", "), if *.count > .examples.len() { ", …" } else { "" }
    )]
    ShardsMissing {
        /// How many.
        count: usize,
        /// The first of their keys.
        examples: Vec<String>,
    },
    /// The index was sharded, `_meta.json` is gone, and a monolith that may be stale lies beside the shards.
    #[error(
        "_index/_meta.json is gone from a bucket whose index was sharded, and the .datastore-index.json beside the shards is older than they are; nothing was changed. Restore _index/_meta.json from a version of the bucket, or, if the shards are the truth, remove the stale .datastore-index.json: the list is then rebuilt from the shards"
    )]
    MetaVanished,
    /// `_index/_meta.json` exists and cannot be understood.
    #[error(
        "cannot tell which index counts: _index/_meta.json {0}; nothing was changed. Repair or remove that object (a reference client can rebuild it)"
    )]
    UnreadableMeta(String),
    /// The bucket holds namespaces and nothing else.
    #[error(
        "this bucket holds only namespaces ({}): choose one with --namespace NAME",
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
