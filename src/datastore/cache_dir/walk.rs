//! The walk over a cache directory.
//!
//! Invariant: a directory that cannot be read is an error; a partial answer would look like deletions.

use std::io;

use rustix::fs::{self as rfs, AtFlags};
use rustix::io::Errno;

use super::beneath::{Beneath, TEMP_PREFIX, in_directory, to_stat};
use super::{CacheDir, FileKind, FileStat};
use crate::datastore::names::is_internal;
use crate::datastore::path::RelPath;

/// What a walk found.
#[derive(Debug, Default)]
pub struct Walk {
    /// Regular files with names that are synced.
    pub files: Vec<(RelPath, FileStat)>,
    /// What was left out, other than internal names: its path and the reason.
    pub skipped: Vec<(String, String)>,
}

impl CacheDir {
    /// Every regular file below the directory whose name is synced; removes unfinished files of earlier runs.
    ///
    /// # Errors
    /// When a directory cannot be read: a partial answer would look like deletions.
    pub fn walk(&self) -> io::Result<Walk> {
        self.files().walk(None)
    }
}

impl Beneath {
    /// The same below this directory, without one of its directories.
    pub(super) fn walk(&self, without: Option<&str>) -> io::Result<Walk> {
        let mut walk = Walk::default();
        let mut pending: Vec<Option<String>> = vec![None];
        while let Some(parent) = pending.pop() {
            let directory = self.open_dir(parent.as_deref())?;
            for item in rfs::Dir::read_from(&directory)? {
                let item = item?;
                let raw = item.file_name().to_bytes();
                if raw == b"." || raw == b".." {
                    continue;
                }
                let Ok(name) = std::str::from_utf8(raw) else {
                    let shown = in_directory(parent.as_deref(), &String::from_utf8_lossy(raw));
                    walk.skipped.push((shown, "its name is not UTF-8".into()));
                    continue;
                };
                let path = in_directory(parent.as_deref(), name);
                let stat = match rfs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => to_stat(&stat),
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                };
                if stat.kind == FileKind::File && name.starts_with(TEMP_PREFIX) {
                    self.unlink(&path)?;
                } else if is_internal(&path) && (stat.kind != FileKind::Directory || is_internal(&format!("{path}/x")))
                {
                    // Stays on this machine.
                } else if stat.kind == FileKind::Directory && without == Some(path.as_str()) {
                    // Somebody else's.
                } else if stat.kind == FileKind::Directory {
                    pending.push(Some(path));
                } else if stat.kind == FileKind::File {
                    match RelPath::parse(&path) {
                        Ok(path) => walk.files.push((path, stat)),
                        Err(problem) => walk.skipped.push((path, problem.to_string())),
                    }
                } else {
                    walk.skipped.push((path, "it is neither a regular file nor a directory".into()));
                }
            }
        }
        walk.files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(walk)
    }
}
