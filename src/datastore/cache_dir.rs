//! Safe access to a cache directory in the reference clients' layout: the index copy and the sidecar at its root, the
//! files under their own names, with a namespace in a directory of its name.
//!
//! Depends on the format's names and paths, and on the local disk. Every path is opened relative to a directory
//! descriptor, beneath it and following no symlink (`openat2`), because the names come from an index, which is input from
//! outside. Invariant: a file appears under its own name complete or not at all; what is being written has no name, or,
//! where the file system cannot do that, an internal name that no client uploads. All calls block.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self as rfs, CWD, FlockOperation, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;

use self::beneath::{Beneath, link_over, proc_path};
use super::names::{INDEX_KEY, SIDECAR_NAME};
use super::namespace::Namespace;
use super::path::RelPath;

mod beneath;
mod earlier_layout;
#[cfg(test)]
mod tests;
mod walk;

pub use walk::Walk;

/// What a file is, at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// Size in bytes.
    pub size: u64,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_nanos: i64,
    /// Inode number.
    pub ino: u64,
    /// Permission bits.
    pub mode: u32,
    /// Regular file, directory, or something else.
    pub kind: FileKind,
}

/// The kind of a directory entry, as far as a datastore cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symlink, device, socket or pipe: never part of a datastore's cache.
    Other,
}

/// A file on its way into the cache: it has no name that anybody else takes for a file.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    /// Where it lies, on file systems without unnamed files.
    temp_name: Option<String>,
}

impl NewFile {
    /// To write and stamp.
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// A cache directory.
#[derive(Debug)]
pub struct CacheDir {
    /// Index copy and sidecar lie here.
    root: Beneath,
    /// The files, when they lie in the directory of a namespace.
    space: Option<(Namespace, Beneath)>,
}

impl CacheDir {
    /// Opens a cache directory that exists.
    ///
    /// # Errors
    /// When it does not exist or is no directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { root: Beneath::open(path)?, space: None })
    }

    /// Opens a cache directory, after making it when it is missing.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn create(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// The same for a namespace: its files lie in a directory of its name, which is made when it is missing; index copy and
    /// sidecar stay at the root.
    ///
    /// # Errors
    /// When that directory cannot be made or opened.
    pub fn with_namespace(mut self, namespace: Option<&Namespace>) -> io::Result<Self> {
        self.space = match namespace {
            Some(namespace) => Some((namespace.clone(), self.root.directory(namespace.as_str())?)),
            None => None,
        };
        Ok(self)
    }

    /// The namespace whose files it holds.
    pub fn namespace(&self) -> Option<&Namespace> {
        self.space.as_ref().map(|(namespace, _)| namespace)
    }

    fn files(&self) -> &Beneath {
        self.space.as_ref().map_or(&self.root, |(_, files)| files)
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.root.path
    }

    /// Where a file is, for messages.
    pub fn path_of(&self, path: &RelPath) -> PathBuf {
        self.files().path.join(path.as_str())
    }

    /// Takes the directory for this process until the value is dropped; `false` when another process has it.
    ///
    /// # Errors
    /// When the file system cannot lock.
    pub fn try_lock(&self) -> io::Result<bool> {
        match rfs::flock(&self.root.fd, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(other) => Err(other.into()),
        }
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// Also when it is something else than a regular file.
    pub fn open_file(&self, path: &RelPath) -> io::Result<File> {
        self.files().open_regular(path.as_str())
    }

    /// What lies under a name, if anything (a symlink is not followed).
    ///
    /// # Errors
    /// Only for other reasons than that there is nothing.
    pub fn stat(&self, path: &RelPath) -> io::Result<Option<FileStat>> {
        self.files().stat_name(path.as_str())
    }

    /// Starts a file, close to `path` so that it can be put there.
    ///
    /// # Errors
    /// When a directory cannot be made, for example because a file has its name.
    pub fn new_file(&self, path: &RelPath) -> io::Result<NewFile> {
        self.files().create_parents(path)?;
        self.files().new_file_in(path.parent())
    }

    /// Puts a finished file under its name, atomically, replacing a file that is there.
    ///
    /// # Errors
    /// When a directory is in the way, or the disk fails; the old file is then still there.
    pub fn place(&self, new: NewFile, path: &RelPath) -> io::Result<()> {
        self.files().place_in(new, path.parent(), path.name())
    }

    /// Puts a hard link to an open file under a name, replacing a file that is there.
    ///
    /// # Errors
    /// When the file is on another file system, a directory is in the way, or the disk fails.
    pub fn link_from_fd(&self, file: impl AsFd, path: &RelPath) -> io::Result<()> {
        self.files().create_parents(path)?;
        link_over(&proc_path(&file), &self.files().open_dir(path.parent())?, path.name())
    }

    /// Puts a hard link to the file at `source` (a path of ours) under a name, replacing a file that is there.
    ///
    /// # Errors
    /// As for [`CacheDir::link_from_fd`].
    pub fn link_from(&self, source: &Path, path: &RelPath) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.link_from_fd(rfs::openat(CWD, source, flags, Mode::empty())?, path)
    }

    /// Forgets a file that was started.
    pub fn discard(&self, new: NewFile) {
        self.files().discard(new);
    }

    /// Removes a file and the directories above it that became empty; `false` when there was none.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_file(&self, path: &RelPath) -> io::Result<bool> {
        self.files().remove_file(path)
    }

    /// Gives a file another name that is free.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken.
    pub fn rename_to_free(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        self.files().rename_to_free(from, self.files(), to)
    }

    /// Sets a file's modification time.
    ///
    /// # Errors
    /// When it does not exist or is not ours.
    pub fn set_mtime(&self, path: &RelPath, nanos: i64) -> io::Result<()> {
        set_mtime(&self.open_file(path)?, nanos)
    }

    /// Makes new names at the root survive a power loss.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> io::Result<()> {
        self.root.sync()
    }

    /// Makes everything on the directory's file system survive a power loss.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync_all(&self) -> io::Result<()> {
        Ok(rfs::syncfs(&self.root.fd)?)
    }

    /// The local copy of the index, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_index_copy(&self) -> io::Result<Option<(Vec<u8>, FileStat)>> {
        self.root.read(INDEX_KEY)
    }

    /// Replaces the local copy of the index, atomically and durably: a power cut leaves no empty one.
    ///
    /// # Errors
    /// When the disk fails; the old copy is then still there.
    pub fn write_index_copy(&self, bytes: &[u8]) -> io::Result<()> {
        self.root.write(INDEX_KEY, bytes, true)
    }

    /// Removes the local copy of the index, if there is one.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove_index_copy(&self) -> io::Result<()> {
        match self.root.unlink(INDEX_KEY) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// When the local copy of the index was written.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn index_copy_stat(&self) -> io::Result<Option<FileStat>> {
        self.root.stat_name(INDEX_KEY)
    }

    /// The bytes of the sidecar, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_sidecar_bytes(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.root.read(SIDECAR_NAME)?.map(|(bytes, _)| bytes))
    }

    /// Replaces the sidecar, atomically; `durable` before the first change that it announces.
    ///
    /// # Errors
    /// When the disk fails; the old one is then still there.
    pub fn write_sidecar_bytes(&self, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.root.write(SIDECAR_NAME, bytes, durable)
    }
}

/// Sets the modification time of an open file.
///
/// # Errors
/// When the file is not ours.
pub fn set_mtime(file: impl AsFd, nanos: i64) -> io::Result<()> {
    let at = Timespec { tv_sec: nanos.div_euclid(1_000_000_000), tv_nsec: nanos.rem_euclid(1_000_000_000) };
    Ok(rfs::futimens(file, &Timestamps { last_access: at, last_modification: at })?)
}
