//! What this machine keeps on disk for one source: `state.db`, the contents in `data/`, the saved base index, and the
//! reference-compatible `cache/`.
//!
//! May depend on `datastore` and `store` (value types only; no request is ever made here). Invariants: names live only in
//! state.db, so every namespace operation is one transaction; a change is recorded before its first byte; a content
//! is recorded as complete only after its bytes are durable, so a power cut never turns holes into file data.

pub mod contents;
pub mod ranges;
pub mod reference;
pub mod reserve;
pub mod rows;
pub mod saved_base;
pub mod state;

pub use contents::{ContentId, Contents};
pub use ranges::RangeSet;
pub use state::{StateDb, Transaction};

/// Failures of the local disk state.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file operation failed.
    #[error("cannot {operation} {path}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what, relative to the cache directory.
        path: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// state.db refused.
    #[error("state.db: {0}")]
    Db(#[from] rusqlite::Error),
    /// A row of state.db does not parse.
    #[error(
        "state.db holds a row that cannot be read ({row}): {reason}; move the cache directory aside and mount again, its unpushed files are in data/"
    )]
    Row {
        /// Which row.
        row: String,
        /// Why.
        reason: String,
    },
    /// Written by a newer release.
    #[error("state.db has version {found}, this release knows {known}; use the newer release that wrote it")]
    Version {
        /// Version in the file.
        found: i64,
        /// Version of this program.
        known: i64,
    },
}

impl CacheError {
    /// An I/O error with its context.
    pub fn io(operation: &'static str, path: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }

    /// Whether a file does not exist (as opposed to any other failure).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
    }

    /// Whether the name of a new file is taken.
    pub fn is_taken(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists)
    }

    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_no_space(source),
            Self::Db(rusqlite::Error::SqliteFailure(e, _)) => e.code == rusqlite::ErrorCode::DiskFull,
            _ => false,
        }
    }
}

/// Nothing of ours is a symbolic link: somebody else put it there, to have us write elsewhere.
fn refuse_link(root: &std::path::Path, name: &'static str) -> Result<()> {
    match std::fs::symlink_metadata(root.join(name)) {
        Ok(there) if there.is_symlink() => {
            let planted = std::io::Error::other("it is a symbolic link; remove it");
            Err(CacheError::io("use", name)(planted))
        }
        _ => Ok(()),
    }
}

/// Whether a system call found the disk, or the user's share of it, full.
pub fn is_no_space(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// What this layer answers with.
pub type Result<T> = std::result::Result<T, CacheError>;
