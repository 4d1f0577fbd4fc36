//! The typed error of local operations; `fs::errno` maps it to numbers.

use crate::cache::CacheError;

/// Why a local operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDir,
    /// A file was needed.
    #[error("is a directory")]
    IsDir,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// Arguments make no sense.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// A name or the object key it would give is too long.
    #[error("the name is longer than {0} bytes")]
    NameTooLong(usize),
    /// A name that is not UTF-8.
    #[error("the name is not UTF-8")]
    NotUtf8,
    /// Never allowed here.
    #[error("not permitted: {0}")]
    NotPermitted(&'static str),
    /// From a name that is synced to one that stays local, or back.
    #[error("the file would change between synced and local-only")]
    CrossesSync,
    /// The mount is read-only.
    #[error("read-only: {0}")]
    ReadOnly(String),
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// Extended attributes other than `user.`
    #[error("only attributes of the user namespace are kept")]
    AttributeNamespace,
    /// The inode is gone.
    #[error("the file was replaced")]
    Stale,
    /// The local disk or database failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// A content's file failed.
    #[error("cannot {operation} the local content: {source}")]
    Content {
        /// What was tried.
        operation: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
}

impl VolumeError {
    /// A failed system call on a content.
    pub fn content(operation: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Content { operation, source }
    }
}
