//! The typed error of the synchronisation layer.

use crate::cache::CacheError;
use crate::datastore::DatastoreError;
use crate::datastore::lock::LockError;
use crate::store::{StoreError, StoreErrorKind};
use crate::volume::VolumeError;

/// Why a refresh or push failed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The index or its neighbours.
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The distributed lock.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// This machine's state.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// This machine's disk.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// An index was there before, and is gone.
    #[error(
        "the index {source_name}/.datastore-index.json has disappeared; the last known files stay in view and nothing is pushed. \
         Restore the object (bucket versions, another machine's cache), or, if the datastore was emptied on purpose, mount with a new --cache-dir"
    )]
    IndexVanished {
        /// The source.
        source_name: String,
    },
    /// No network at the first mount of a source.
    #[error("{0}; nothing of this source is cached yet, so it cannot be mounted without the bucket")]
    NothingCached(Box<SyncError>),
    /// The store does not honour preconditions.
    #[error(
        "the store ignores conditional writes (a second create-only write of the lock succeeded), so two writers could overwrite each other: \
         the mount is read-only now and what was written stays in the cache. Use a store that honours If-None-Match and If-Match, or mount with --unsafe-no-conditional-writes if there is only one writer"
    )]
    NoConditions,
}

impl SyncError {
    /// Whether nothing answered at all.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Store(error) | Self::Datastore(DatastoreError::Store(error)) => {
                error.kind == StoreErrorKind::Unreachable
            }
            _ => false,
        }
    }

    /// Whether the bucket could not be reached, as opposed to having answered.
    pub fn is_offline(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Datastore(DatastoreError::Store(error)) => error.is_transient(),
            Self::Lock(error) => error.is_transient(),
            Self::NothingCached(error) => error.is_offline(),
            _ => false,
        }
    }
}

/// A flush that did not get everything into the bucket.
#[derive(Debug, thiserror::Error)]
#[error("not everything is in the bucket: {}", reasons.join("; "))]
pub struct FlushError {
    /// What is left.
    pub pending: super::status::Pending,
    /// Why; the first three reasons.
    pub reasons: Vec<String>,
}

/// Why bytes could not be had.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The version that was opened is gone; the name may have another.
    #[error("this version of the file is gone from the bucket; open the file again")]
    Stale,
    /// The bucket cannot be reached.
    #[error("{0}")]
    Unreachable(std::sync::Arc<str>),
    /// There is no room to store them here, and they are needed here.
    #[error("{0}")]
    NoRoom(std::sync::Arc<str>),
    /// Anything else, in words.
    #[error("{0}")]
    Failed(std::sync::Arc<str>),
}
