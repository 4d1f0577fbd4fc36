//! The files `data/<id>`: the bytes of every local file, partial or complete, under a number that never changes.
//!
//! Depends on the file system only. Invariants: an id is never used twice for different contents; an id without a row
//! in state.db is garbage; files are opened read-write by descriptor, relative to the directory, following no link.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Resource, getrlimit};

use super::{CacheError, Result};

/// Number of a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct ContentId(pub u64);

impl std::fmt::Display for ContentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How many files stay open that nobody uses, because they were used lately: at least, and at most. Between, a quarter of
/// what this process may have open.
const LEAST_KEPT: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");
const MOST_KEPT: u64 = 16_384;

/// The directory `data/`.
#[derive(Debug)]
pub struct Contents {
    dir: OwnedFd,
    kept: Mutex<LruCache<ContentId, Arc<File>>>,
}

impl Contents {
    /// Opens `root/data`, creating it (mode 0700).
    ///
    /// # Errors
    /// When the directory cannot be made or is a symbolic link.
    pub fn open(root: &Path) -> Result<Self> {
        let path = root.join("data");
        match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(CacheError::io("create", "data")(e.into())),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| CacheError::io("open", "data")(e.into()))?;
        let may_open = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let kept = usize::try_from((may_open / 4).min(MOST_KEPT)).ok().and_then(NonZeroUsize::new);
        Ok(Self { dir, kept: Mutex::new(LruCache::new(kept.unwrap_or(LEAST_KEPT).max(LEAST_KEPT))) })
    }

    /// Makes the file of a new content.
    ///
    /// # Errors
    /// Also when the id is taken.
    pub fn create(&self, id: ContentId) -> Result<File> {
        let file = self.open_with(id, OFlags::CREATE | OFlags::EXCL, "create")?;
        crate::fail_point!("content.after_create");
        Ok(file)
    }

    /// Opens the file of a content.
    ///
    /// # Errors
    /// `NotFound` inside the error when there is none.
    pub fn open_existing(&self, id: ContentId) -> Result<Arc<File>> {
        if let Some(file) = self.kept().get(&id) {
            return Ok(Arc::clone(file));
        }
        crate::fail_point!("content.before_open");
        self.open_with(id, OFlags::empty(), "open").map(Arc::new)
    }

    /// Nobody uses the file of a content any more, but somebody may again.
    pub fn keep(&self, id: ContentId, file: &Arc<File>) {
        self.kept().put(id, Arc::clone(file));
    }

    fn kept(&self) -> MutexGuard<'_, LruCache<ContentId, Arc<File>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_with(&self, id: ContentId, extra: OFlags, operation: &'static str) -> Result<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | extra;
        rustix::fs::openat(&self.dir, id.to_string(), flags, Mode::from_raw_mode(0o600))
            .map(File::from)
            .map_err(|e| CacheError::io(operation, format!("data/{id}"))(e.into()))
    }

    /// Removes the file of a content that no row names any more. A missing file is fine.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(&self, id: ContentId) -> Result<()> {
        crate::fail_point!("content.before_remove");
        // An open file would keep its room on the disk.
        drop(self.kept().pop(&id));
        match rustix::fs::unlinkat(&self.dir, id.to_string(), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(CacheError::io("remove", format!("data/{id}"))(e.into())),
        }
    }

    /// Makes the names of new contents durable.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync_dir(&self) -> Result<()> {
        rustix::fs::fsync(&self.dir).map_err(|e| CacheError::io("sync", "data")(e.into()))
    }

    /// Makes the bytes of all contents durable.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync_all(&self) -> Result<()> {
        rustix::fs::syncfs(&self.dir).map_err(|e| CacheError::io("sync", "data")(e.into()))
    }

    /// The directory, to make hard links of a content elsewhere.
    pub fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// Every id that has a file; walks the directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn ids(&self) -> Result<Vec<ContentId>> {
        let read = || -> io::Result<Vec<ContentId>> {
            let mut ids = Vec::new();
            for entry in rustix::fs::Dir::read_from(&self.dir)? {
                let entry = entry?;
                if let Some(id) = entry.file_name().to_str().ok().and_then(|n| n.parse().ok()) {
                    ids.push(ContentId(id));
                }
            }
            Ok(ids)
        };
        read().map_err(CacheError::io("list", "data"))
    }
}
