//! The saved base: the last index that was read, as the files `base-<n>.json`, one of which state.db names.
//!
//! Depends on the file system only. Invariant: a file is complete and durable before state.db names it, and is removed
//! only after state.db names another, so that a crash leaves a base that can be read.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{CacheError, Result};

/// How state.db names the saved base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// Number in the file name.
    pub number: u64,
    /// Fingerprint of the index object, from the response that carried these bytes or from our own PUT of them.
    pub fingerprint: Option<String>,
    /// When the index was written, by the store's clock, in seconds since the epoch: objects of its entries are not
    /// younger.
    pub written_at: Option<i64>,
    /// There is no index yet: this one was made from a listing.
    #[serde(default)]
    pub discovered: bool,
    /// When it was read or confirmed, ns since the epoch, by this machine's clock.
    pub confirmed_at: i64,
}

fn file_path(root: &Path, number: u64) -> PathBuf {
    root.join(format!("base-{number}.json"))
}

/// Writes the bytes of a base durably under a number that is not in use.
///
/// # Errors
/// When the disk fails or is full.
pub fn write(root: &Path, number: u64, bytes: &[u8]) -> Result<()> {
    let path = file_path(root, number);
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        File::open(root)?.sync_all()
    };
    write().map_err(CacheError::io("write", format!("base-{number}.json")))
}

/// Reads a saved base.
///
/// # Errors
/// When it cannot be read.
pub fn read(root: &Path, number: u64) -> Result<Vec<u8>> {
    fs::read(file_path(root, number)).map_err(CacheError::io("read", format!("base-{number}.json")))
}

/// Removes every saved base but one. Best effort: what stays only costs space.
pub fn remove_others(root: &Path, keep: u64) {
    let Ok(listing) = fs::read_dir(root) else { return };
    for entry in listing.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_prefix("base-")?.strip_suffix(".json")?.parse::<u64>().ok());
        if number.is_some_and(|n| n != keep)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!(file = ?entry.path(), %error, "cannot remove an old base");
        }
    }
}
