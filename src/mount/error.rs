//! Why a mount could not be made or could not be spoken to.
//!
//! Depends on the errors of the layers below. Invariant: every message says what failed, on what, and what to do.

use std::path::PathBuf;

use super::instance::InstanceError;
use super::mountpoint::MountpointError;
use crate::config::ConfigError;
use crate::datastore::{DatastoreError, LockError};
use crate::store::StoreError;
use crate::sync::SyncError;
use crate::sync::fsck::FsckError;
use crate::sync::migrate::MigrateError;
use crate::sync::offline::OfflineError;

/// The error of this layer.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// An option cannot be honoured.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The mountpoint will not do.
    #[error(transparent)]
    Mountpoint(#[from] MountpointError),
    /// The cache root is in use or unusable.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// Another process holds the cache root; the text says which, and what it is doing.
    #[error("{0}")]
    Held(String),
    /// The bucket cannot be opened.
    #[error(transparent)]
    Store(Box<StoreError>),
    /// The index cannot be read.
    #[error(transparent)]
    Datastore(Box<DatastoreError>),
    /// The datastore's lock.
    #[error(transparent)]
    Lock(Box<LockError>),
    /// A pull or push without a mount.
    #[error(transparent)]
    Offline(Box<OfflineError>),
    /// The index was not migrated.
    #[error(transparent)]
    Migrate(Box<MigrateError>),
    /// A check or repair ended early.
    #[error(transparent)]
    Fsck(Box<FsckError>),
    /// The engine does not start.
    #[error(transparent)]
    Sync(Box<SyncError>),
    /// The kernel or fusermount3 refused.
    #[error("cannot mount on {mountpoint:?}: {reason}")]
    Fuse {
        /// Where.
        mountpoint: PathBuf,
        /// The system's words and what to do.
        reason: String,
    },
    /// A system call on a path.
    #[error("cannot {what} {path:?}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A system call on no path.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's words.
        source: std::io::Error,
    },
    /// The background process failed; its own words.
    #[error("{0}")]
    Background(String),
    /// No mount there, or it does not answer.
    #[error("{0}")]
    Control(String),
}

impl MountError {
    /// For `map_err`: a system call on a path.
    pub fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// For `map_err`: a system call on no path.
    pub fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// Whether the user asked for something impossible (exit code 2).
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Config(_))
    }
}

/// Errors of the layers below are boxed: they are large, and results are passed through many hands.
macro_rules! boxed {
    ($($variant:ident($error:ty)),+ $(,)?) => {
        $(impl From<$error> for MountError {
            fn from(error: $error) -> Self {
                Self::$variant(Box::new(error))
            }
        })+
    };
}

boxed!(
    Store(StoreError),
    Datastore(DatastoreError),
    Lock(LockError),
    Migrate(MigrateError),
    Fsck(FsckError),
    Offline(OfflineError),
    Sync(SyncError),
);
