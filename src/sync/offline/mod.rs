//! Pull and push of a cache directory in the reference clients' layout, without a mount.
//!
//! Depends on `datastore` and the shared modules of `sync`. Invariants: neither direction overwrites a version that it has
//! not compared; an incomplete cache never looks complete, and never as if files had been deleted; an interrupted run
//! can simply be repeated.

mod download;
mod local;
mod pull;
mod push;
mod push_plan;
mod push_upload;
mod session;

use std::io;
use std::path::{Path, PathBuf};

use crate::datastore::{DatastoreError, IndexProblem, LockError, LockOptions};
use crate::store::StoreError;

pub use pull::pull;
pub use push::push;

/// How to pull and push.
#[derive(Clone, Debug)]
pub struct OfflineOptions {
    /// Transfers at the same time.
    pub concurrency: usize,
    /// Push to a store that ignores conditions, under the lock alone.
    pub unsafe_no_conditional_writes: bool,
    /// This host, for the names of conflicts.
    pub host: String,
    /// How to take the datastore's lock.
    pub lock: LockOptions,
}

impl Default for OfflineOptions {
    fn default() -> Self {
        let lock = LockOptions::default();
        Self { concurrency: 16, unsafe_no_conditional_writes: false, host: lock.hostname.clone(), lock }
    }
}

/// Hears how far a transfer is.
pub trait Progress: Send + Sync {
    /// So much is to be transferred.
    fn total(&self, _files: u64, _bytes: u64) {}
    /// One file is done.
    fn done(&self, _path: &str, _bytes: u64) {}
}

impl Progress for () {}

/// What a pull did.
#[derive(Clone, Debug, Default)]
pub struct PullReport {
    /// Nothing had changed: one conditional request, and nothing looked at locally.
    pub up_to_date: bool,
    /// Files that were fetched.
    pub downloaded: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were removed because they were removed remotely.
    pub removed: u64,
    /// Names under which our versions were kept where both sides had changed.
    pub conflicts: Vec<String>,
    /// Local changes that a push would upload.
    pub unpushed: Vec<String>,
    /// Entries that cannot be shown as files.
    pub problems: Vec<IndexProblem>,
    /// Whether the cache is complete, with nothing unpushed.
    pub clean: bool,
}

/// What a push did.
#[derive(Clone, Debug, Default)]
pub struct PushReport {
    /// Files that were uploaded.
    pub uploaded: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Files that were removed from the datastore.
    pub removed: u64,
    /// Names under which our versions were pushed where both sides had changed.
    pub conflicts: Vec<String>,
    /// Old local versions that were dropped because the datastore has newer ones.
    pub outdated: Vec<String>,
    /// Files that cannot be pushed, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Whether the index was written.
    pub wrote_index: bool,
    /// Whether the cache is complete, with nothing unpushed.
    pub clean: bool,
}

/// Why a pull or push did not do all of its work.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The disk.
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process of ours.
    #[error("the cache directory {} is in use by another swamp-mount; wait for it, or use another directory", .0.display())]
    Busy(PathBuf),
    /// Index or lock.
    #[error(transparent)]
    Datastore(Box<DatastoreError>),
    /// Some files failed; the others are done.
    #[error("{}", batch(.operation, .failed))]
    Batch {
        /// `pull` or `push`.
        operation: &'static str,
        /// Each file and its reason.
        failed: Vec<(String, String)>,
    },
    /// The store does not do what a safe push needs.
    #[error(
        "the store ignores conditions on writes (a second create-only write of the lock succeeded), so a push could overwrite other writers' changes; nothing was written. Use a store that honours If-None-Match and If-Match, or accept the danger with --unsafe-no-conditional-writes"
    )]
    NoConditions,
}

impl From<DatastoreError> for OfflineError {
    fn from(error: DatastoreError) -> Self {
        Self::Datastore(Box::new(error))
    }
}

impl From<StoreError> for OfflineError {
    fn from(error: StoreError) -> Self {
        DatastoreError::from(error).into()
    }
}

impl From<LockError> for OfflineError {
    fn from(error: LockError) -> Self {
        DatastoreError::from(error).into()
    }
}

/// Names every failed file, and the first three reasons.
fn batch(operation: &str, failed: &[(String, String)]) -> String {
    let names: Vec<&str> = failed.iter().map(|(name, _)| name.as_str()).collect();
    let reasons: Vec<String> = failed.iter().take(3).map(|(name, reason)| format!("{name}: {reason}")).collect();
    let more = if failed.len() > 3 { "; …" } else { "" };
    format!("{operation} failed for {} files ({}): {}{more}", failed.len(), names.join(", "), reasons.join("; "))
}

/// Wraps errors of the disk.
fn disk<T>(result: io::Result<T>, what: &'static str, path: &Path) -> Result<T, OfflineError> {
    result.map_err(|source| OfflineError::Io { what, path: path.to_owned(), source })
}
