//! The directory that plays the bucket: opening, publishing and removing files below it, safely against other processes.
//!
//! Depends on `names` and `meta`. All calls block. Invariants: nothing outside the root is ever reached (every path is
//! resolved beneath its descriptor, through no symbolic link); preconditions are checked and objects replaced under one
//! lock, which is never held while content is copied; an object is visible either whole or not at all.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{meta, names};
use crate::store::{Fingerprint, Precondition, Result, StoreError, StoreErrorKind};

/// Longest wait for other processes that replace an object.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// Age from which a temporary file is a left-over of a process that died.
const STALE: Duration = Duration::from_secs(24 * 3600);

/// The root, by descriptor: it stays the same directory if it is renamed.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    /// Serialises the threads of this process before the file lock serialises processes.
    threads: Mutex<()>,
}

/// The right to replace objects.
pub(super) struct Locked<'a> {
    root: &'a Root,
    _file: File,
    _threads: MutexGuard<'a, ()>,
}

/// An object that was found.
pub(super) struct Found {
    pub(super) file: File,
    pub(super) stat: Stat,
    path: String,
}

/// A new object, not visible yet; its file goes when this is dropped unpublished.
pub(super) struct Temporary<'a> {
    root: &'a Root,
    path: String,
    pub(super) file: File,
    published: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = rustix::fs::unlinkat(&self.root.fd, &self.path, AtFlags::empty()) {
            tracing::warn!(%error, path = self.path, "a temporary file is left behind");
        }
    }
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let fail = |kind, message: String| Err(StoreError::new(kind, "open", "", message));
        match rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => {
                let root = Self { fd, threads: Mutex::new(()) };
                root.remove_stale();
                Ok(root)
            }
            Err(Errno::NOENT) => fail(
                StoreErrorKind::NoSuchBucket,
                format!("the directory {} does not exist; create it if it is to become a bucket", path.display()),
            ),
            Err(Errno::NOTDIR) => fail(StoreErrorKind::NoSuchBucket, format!("{} is not a directory", path.display())),
            Err(error) => fail(StoreErrorKind::Local, format!("the directory {}: {error}", path.display())),
        }
    }

    /// Opens a directory for listing.
    pub(super) fn open_dir(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        let path = if path.is_empty() { "." } else { path };
        match self.open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn open_beneath(&self, path: &str, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, resolve)
    }

    /// Finds the object of a full key.
    pub(super) fn find(&self, key: &str) -> io::Result<Option<Found>> {
        if let Some(path) = names::plain(key)
            && let Some(found) = self.open_file(path)?
        {
            return Ok(Some(found));
        }
        self.open_file(&names::odd(key))
    }

    fn open_file(&self, path: &str) -> io::Result<Option<Found>> {
        // NONBLOCK so that a pipe that somebody put there does not hang us.
        match self.open_beneath(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()) {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    return Ok(None);
                }
                Ok(Some(Found { file: File::from(fd), stat, path: path.to_owned() }))
            }
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether the root itself was deleted.
    pub(super) fn is_gone(&self) -> bool {
        rustix::fs::fstat(&self.fd).is_ok_and(|stat| stat.st_nlink == 0)
    }

    /// Begins a new object.
    pub(super) fn temporary(&self) -> io::Result<Temporary<'_>> {
        let path = format!("{}/{}", names::TEMPORARY, uuid::Uuid::new_v4());
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(0o666);
        let fd = match self.open_beneath(&path, flags, mode) {
            Err(Errno::NOENT) => {
                self.make_dirs(names::TEMPORARY)?;
                self.open_beneath(&path, flags, mode)?
            }
            other => other?,
        };
        Ok(Temporary { root: self, path, file: File::from(fd), published: false })
    }

    /// Makes a directory and its parents, step by step so that no symbolic link on the way leads out.
    fn make_dirs(&self, path: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut dir = rustix::fs::openat(&self.fd, ".", flags, Mode::empty())?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o777)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            dir = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
        }
        Ok(dir)
    }

    /// Makes the names in a directory, and the directory's own name, survive a power failure.
    pub(super) fn sync_dirs(&self, path: &str) -> io::Result<()> {
        let mut dir = path;
        while let Some((parent, _)) = dir.rsplit_once('/') {
            self.sync_dir(parent)?;
            dir = parent;
        }
        self.sync_dir("")
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        // A directory that was pruned meanwhile has nothing to keep.
        match self.open_dir(path)? {
            Some(fd) => Ok(rustix::fs::fsync(fd)?),
            None => Ok(()),
        }
    }

    /// Waits for the right to replace objects.
    pub(super) fn lock(&self) -> io::Result<Locked<'_>> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let flags = OFlags::RDWR | OFlags::CREATE;
        let mode = Mode::from_raw_mode(0o666);
        let fd = match self.open_beneath(names::LOCK, flags, mode) {
            Err(Errno::NOENT) => {
                self.make_dirs(names::PRIVATE)?;
                self.open_beneath(names::LOCK, flags, mode)?
            }
            other => other?,
        };
        let begun = Instant::now();
        let mut pause = Duration::from_micros(100);
        loop {
            match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Locked { root: self, _file: File::from(fd), _threads: threads }),
                Err(Errno::WOULDBLOCK | Errno::INTR) if begun.elapsed() < LOCK_WAIT => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_millis(20));
                }
                Err(Errno::WOULDBLOCK) => {
                    let message = format!("another process has held {} for {LOCK_WAIT:?}", names::LOCK);
                    return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes a small private file at once.
    pub(super) fn write_small(&self, path: &str, content: &[u8]) -> io::Result<()> {
        let mut temporary = self.temporary()?;
        temporary.file.write_all(content)?;
        temporary.file.sync_all()?;
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.make_dirs(parent)?;
        }
        rustix::fs::renameat(&self.fd, &temporary.path, &self.fd, path)?;
        temporary.published = true;
        self.sync_dirs(path)
    }

    /// Reads a small private file.
    pub(super) fn read_small(&self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(mut found) = self.open_file(path)? else { return Ok(None) };
        let mut content = Vec::new();
        found.file.read_to_end(&mut content)?;
        Ok(Some(content))
    }

    /// Removes a private file if it is there.
    pub(super) fn remove_small(&self, path: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.fd, path, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes temporary files of processes that died, as far as that is possible.
    fn remove_stale(&self) {
        let removed = self.open_dir(names::TEMPORARY).and_then(|dir| {
            let Some(dir) = dir else { return Ok(()) };
            for entry in Dir::read_from(&dir)? {
                let entry = entry?;
                let stat = rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?;
                let written = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
                let stale = SystemTime::now().duration_since(written).is_ok_and(|age| age > STALE);
                if stale && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                    rustix::fs::unlinkat(&dir, entry.file_name(), AtFlags::empty())?;
                }
            }
            Ok(())
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "old temporary files in {} cannot be removed", names::TEMPORARY);
        }
    }
}

impl Locked<'_> {
    /// Whether a precondition holds for the object that is there now.
    pub(super) fn allows(&self, precondition: &Precondition, current: Option<&Found>) -> bool {
        match precondition {
            Precondition::None => true,
            Precondition::Absent => current.is_none(),
            Precondition::Match(wanted) => {
                current.and_then(|found| meta::fingerprint(&found.stat)).as_ref() == Some(wanted)
            }
        }
    }

    /// Makes a new object visible in place of `current`. Returns its path and version.
    pub(super) fn publish(
        &self,
        mut new: Temporary<'_>,
        key: &str,
        current: Option<&Found>,
    ) -> io::Result<(String, Option<Fingerprint>)> {
        let root = self.root;
        let path = match names::plain(key) {
            Some(path) if self.rename_plain(&new, path)? => path.to_owned(),
            _ => {
                let path = names::odd(key);
                root.write_small(&names::odd_key(&path), key.as_bytes())?;
                rustix::fs::renameat(&root.fd, &new.path, &root.fd, &path)?;
                path
            }
        };
        new.published = true;
        let stat = rustix::fs::fstat(&new.file)?;
        if let Some(old) = current {
            if old.path != path {
                self.unlink(&old.path)?;
            }
            meta::forget(root, &old.stat);
        }
        Ok((path, meta::fingerprint(&stat)))
    }

    /// Moves a new object to its own name; false when a directory is there or a file is in the way.
    fn rename_plain(&self, new: &Temporary<'_>, path: &str) -> io::Result<bool> {
        let root = self.root;
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = match root.make_dirs(parent) {
            Ok(dir) => dir,
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOTDIR | Errno::LOOP)) => {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        match rustix::fs::renameat(&root.fd, &new.path, &dir, name) {
            Ok(()) => Ok(true),
            Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes an object and the directories that it leaves empty. Returns what must be synced.
    pub(super) fn remove(&self, found: &Found) -> io::Result<String> {
        self.unlink(&found.path)?;
        meta::forget(self.root, &found.stat);
        let mut path = found.path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/') {
            if parent.starts_with(names::PRIVATE) || self.unlink_from(parent, AtFlags::REMOVEDIR).is_err() {
                break;
            }
            path = parent;
        }
        Ok(path.to_owned())
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.unlink_from(path, AtFlags::empty())?;
        if path.starts_with(names::ODD) {
            self.root.remove_small(&names::odd_key(path))?;
        }
        Ok(())
    }

    fn unlink_from(&self, path: &str, flags: AtFlags) -> io::Result<()> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Some(dir) = self.root.open_dir(parent)? else { return Err(io::ErrorKind::NotFound.into()) };
        Ok(rustix::fs::unlinkat(dir, name, flags)?)
    }
}
