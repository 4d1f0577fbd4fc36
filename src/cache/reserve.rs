//! `reserve`: a little space on the disk of the cache, given up when it is full, so that what makes room (removing a file,
//! settling what was pushed) can still be recorded.
//!
//! Depends on the file system only. Best effort throughout: without a reserve the cache works, until its disk is full.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

/// Enough for many transactions of state.db.
const SIZE: u64 = 256 << 10;

/// The file.
#[derive(Debug)]
pub struct Reserve {
    path: PathBuf,
    held: bool,
}

impl Reserve {
    /// Finds what an earlier process set aside; sets nothing aside itself.
    pub fn find(root: &Path) -> Self {
        let path = root.join("reserve");
        let held = std::fs::metadata(&path).is_ok_and(|meta| meta.len() == SIZE);
        Self { path, held }
    }

    /// Gives the space up. `false`: there was none.
    pub fn release(&mut self) -> bool {
        let held = std::mem::take(&mut self.held);
        if held && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(%error, "cannot give up the reserve of the cache's disk");
            return false;
        }
        held
    }

    /// Sets the space aside, where there is plenty.
    pub fn refill(&mut self) {
        if !self.held {
            self.held = self.try_refill().unwrap_or_else(|error| {
                tracing::debug!(%error, "no reserve on the cache's disk");
                false
            });
        }
    }

    fn try_refill(&self) -> std::io::Result<bool> {
        let Some(root) = self.path.parent() else { return Ok(false) };
        let disk = fstatvfs(File::open(root)?)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < 2 * SIZE {
            return Ok(false);
        }
        let file = File::create(&self.path)?;
        if let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, SIZE) {
            drop(file);
            std::fs::remove_file(&self.path)?;
            return Err(error.into());
        }
        Ok(true)
    }
}
