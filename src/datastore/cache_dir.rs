//! Safe access to a cache directory in the reference clients' layout.
//!
//! Depends on the format's names and paths, and on the local disk. Every path is opened relative to a directory
//! descriptor, beneath it and following no symlink (`openat2`), because the names come from an index, which is input from
//! outside. Invariant: a file appears under its own name complete or not at all; what is being written has no name, or,
//! where the file system cannot do that, an internal name that no client uploads. All calls block.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    self as rfs, AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps,
};
use rustix::io::Errno;

use super::names::{INDEX_KEY, SIDECAR_NAME};
use super::path::RelPath;

#[cfg(test)]
mod tests;
mod walk;

pub use walk::Walk;

/// Prefix of the names under which unfinished files lie for a moment; internal, so that no client uploads them.
const TEMP_PREFIX: &str = "_catalog.db-swamp-mount-";

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
    root: OwnedFd,
    path: PathBuf,
}

impl CacheDir {
    /// Opens a cache directory that exists.
    ///
    /// # Errors
    /// When it does not exist or is no directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rfs::openat(CWD, path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// Opens a cache directory, after making it when it is missing.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn create(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Self::open(path)
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the directory for this process until the value is dropped; `false` when another process has it.
    ///
    /// # Errors
    /// When the file system cannot lock.
    pub fn try_lock(&self) -> io::Result<bool> {
        match rfs::flock(&self.root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(other) => Err(other.into()),
        }
    }

    fn open_at(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rfs::openat2(&self.root, path, flags | OFlags::CLOEXEC, mode, resolve) {
                // A rename elsewhere raced the lookup.
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
    }

    fn open_dir(&self, path: Option<&str>) -> io::Result<OwnedFd> {
        self.open_at(path.unwrap_or("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    /// Also when it is something else than a regular file.
    pub fn open_file(&self, path: &RelPath) -> io::Result<File> {
        self.open_regular(path.as_str())
    }

    fn open_regular(&self, path: &str) -> io::Result<File> {
        let file = File::from(self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
    }

    /// What lies under a name, if anything (a symlink is not followed).
    ///
    /// # Errors
    /// Only for other reasons than that there is nothing.
    pub fn stat(&self, path: &RelPath) -> io::Result<Option<FileStat>> {
        self.stat_name(path.as_str())
    }

    fn stat_name(&self, path: &str) -> io::Result<Option<FileStat>> {
        // A symlink in the last place opens as itself; one before it is refused, and counts as nothing being there.
        match self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(to_stat(&rfs::fstat(&fd)?))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Starts a file, close to `path` so that it can be put there.
    ///
    /// # Errors
    /// When a directory cannot be made, for example because a file has its name.
    pub fn new_file(&self, path: &RelPath) -> io::Result<NewFile> {
        self.create_parents(path)?;
        self.new_file_in(path.parent())
    }

    fn new_file_in(&self, parent: Option<&str>) -> io::Result<NewFile> {
        let mode = Mode::from_raw_mode(0o644);
        match self.open_at(parent.unwrap_or("."), OFlags::RDWR | OFlags::TMPFILE, mode) {
            Ok(fd) => return Ok(NewFile { file: fd.into(), temp_name: None }),
            Err(error) if is_unsupported(&error) => {}
            Err(error) => return Err(error),
        }
        let name = in_directory(parent, &temp_name());
        let fd = self.open_at(&name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL, mode)?;
        Ok(NewFile { file: fd.into(), temp_name: Some(name) })
    }

    /// Puts a finished file under its name, atomically, replacing a file that is there.
    ///
    /// # Errors
    /// When a directory is in the way, or the disk fails; the old file is then still there.
    pub fn place(&self, new: NewFile, path: &RelPath) -> io::Result<()> {
        self.place_in(new, path.parent(), path.name())
    }

    fn place_in(&self, new: NewFile, parent: Option<&str>, name: &str) -> io::Result<()> {
        let directory = self.open_dir(parent)?;
        let Some(temp) = &new.temp_name else {
            return link_over(&proc_path(&new.file), &directory, name);
        };
        let (_, temp) = temp.rsplit_once('/').unwrap_or(("", temp));
        Ok(rename_over(&directory, temp, name)?)
    }

    /// Forgets a file that was started.
    pub fn discard(&self, new: NewFile) {
        if let Some(name) = &new.temp_name
            && let Err(error) = self.unlink(name)
        {
            tracing::warn!(file = %self.path.join(name).display(), %error, "cannot remove an unfinished file");
        }
    }

    /// Puts a hard link to an open file under a name, replacing a file that is there.
    ///
    /// # Errors
    /// When the file is on another file system, a directory is in the way, or the disk fails.
    pub fn link_from_fd(&self, file: impl AsFd, path: &RelPath) -> io::Result<()> {
        self.create_parents(path)?;
        link_over(&proc_path(&file), &self.open_dir(path.parent())?, path.name())
    }

    /// Puts a hard link to the file at `source` (a path of ours) under a name, replacing a file that is there.
    ///
    /// # Errors
    /// As for [`CacheDir::link_from_fd`].
    pub fn link_from(&self, source: &Path, path: &RelPath) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.link_from_fd(rfs::openat(CWD, source, flags, Mode::empty())?, path)
    }

    /// Makes the directories above a file.
    ///
    /// # Errors
    /// When a file or a symlink has the name of one.
    pub fn create_parents(&self, path: &RelPath) -> io::Result<()> {
        let mut missing: Vec<&str> = Vec::new();
        for directory in path.ancestors() {
            match self.open_dir(Some(directory)) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(directory),
                Err(error) => return Err(error),
            }
        }
        for directory in missing.into_iter().rev() {
            let (parent, name) = directory.rsplit_once('/').map_or((None, directory), |(p, n)| (Some(p), n));
            match rfs::mkdirat(&self.open_dir(parent)?, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Removes a file and the directories above it that became empty; `false` when there was none.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_file(&self, path: &RelPath) -> io::Result<bool> {
        match self.unlink(path.as_str()) {
            Ok(()) => {}
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
        for directory in path.ancestors() {
            let (parent, name) = directory.rsplit_once('/').map_or((None, directory), |(p, n)| (Some(p), n));
            let Ok(parent) = self.open_dir(parent) else { break };
            // Not empty, or gone already.
            if rfs::unlinkat(&parent, name, AtFlags::REMOVEDIR).is_err() {
                break;
            }
        }
        Ok(true)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        let (parent, name) = path.rsplit_once('/').map_or((None, path), |(p, n)| (Some(p), n));
        Ok(rfs::unlinkat(&self.open_dir(parent)?, name, AtFlags::empty())?)
    }

    /// Gives a file another name that is free.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken.
    pub fn rename_to_free(&self, from: &RelPath, to: &RelPath) -> io::Result<()> {
        self.create_parents(to)?;
        let (old, new) = (self.open_dir(from.parent())?, self.open_dir(to.parent())?);
        match rfs::renameat_with(&old, from.name(), &new, to.name(), RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => {
                rfs::linkat(&old, from.name(), &new, to.name(), AtFlags::empty())?;
                Ok(rfs::unlinkat(&old, from.name(), AtFlags::empty())?)
            }
            other => Ok(other?),
        }
    }

    /// Sets a file's modification time.
    ///
    /// # Errors
    /// When it does not exist or is not ours.
    pub fn set_mtime(&self, path: &RelPath, nanos: i64) -> io::Result<()> {
        set_mtime(&self.open_file(path)?, nanos)
    }

    fn read_root_file(&self, name: &str) -> io::Result<Option<(Vec<u8>, FileStat)>> {
        let mut file = match self.open_regular(name) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some((bytes, to_stat(&rfs::fstat(&file)?))))
    }

    fn write_root_file(&self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let new = self.new_file_in(None)?;
        let written =
            new.file().write_all_to(bytes).and_then(|()| if durable { new.file().sync_all() } else { Ok(()) });
        if let Err(error) = written {
            self.discard(new);
            return Err(error);
        }
        self.place_in(new, None, name)?;
        if durable { self.sync() } else { Ok(()) }
    }

    /// Makes new names at the root survive a power loss.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rfs::fsync(&self.root)?)
    }

    /// Makes everything on the directory's file system survive a power loss.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync_all(&self) -> io::Result<()> {
        Ok(rfs::syncfs(&self.root)?)
    }

    /// The local copy of the index, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_index_copy(&self) -> io::Result<Option<(Vec<u8>, FileStat)>> {
        self.read_root_file(INDEX_KEY)
    }

    /// Replaces the local copy of the index, atomically.
    ///
    /// # Errors
    /// When the disk fails; the old copy is then still there.
    pub fn write_index_copy(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_root_file(INDEX_KEY, bytes, false)
    }

    /// Removes the local copy of the index, if there is one.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn remove_index_copy(&self) -> io::Result<()> {
        match rfs::unlinkat(&self.root, INDEX_KEY, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// When the local copy of the index was written.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn index_copy_stat(&self) -> io::Result<Option<FileStat>> {
        self.stat_name(INDEX_KEY)
    }

    /// The bytes of the sidecar, if there is one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_sidecar_bytes(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.read_root_file(SIDECAR_NAME)?.map(|(bytes, _)| bytes))
    }

    /// Replaces the sidecar, atomically; `durable` before the first change that it announces.
    ///
    /// # Errors
    /// When the disk fails; the old one is then still there.
    pub fn write_sidecar_bytes(&self, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.write_root_file(SIDECAR_NAME, bytes, durable)
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

/// Writes all bytes through a shared file handle.
trait WriteAllTo {
    fn write_all_to(&self, bytes: &[u8]) -> io::Result<()>;
}

impl WriteAllTo for File {
    fn write_all_to(&self, bytes: &[u8]) -> io::Result<()> {
        let mut file: &File = self;
        file.write_all(bytes)
    }
}

fn link_over(source: &Path, directory: &OwnedFd, name: &str) -> io::Result<()> {
    match rfs::linkat(CWD, source, directory, name, AtFlags::SYMLINK_FOLLOW) {
        Err(Errno::EXIST) => {}
        other => return Ok(other?),
    }
    let temp = temp_name();
    rfs::linkat(CWD, source, directory, &temp, AtFlags::SYMLINK_FOLLOW)?;
    let renamed = rename_over(directory, &temp, name);
    // Renaming one link of a file over another does nothing, and a failed rename leaves the temporary name.
    match rfs::unlinkat(directory, &temp, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => tracing::warn!(name = temp, %error, "cannot remove a temporary name"),
    }
    Ok(renamed?)
}

/// Renames over a file, or over a directory that is empty.
fn rename_over(directory: &OwnedFd, from: &str, to: &str) -> Result<(), Errno> {
    match rfs::renameat(directory, from, directory, to) {
        Err(Errno::ISDIR) => {
            rfs::unlinkat(directory, to, AtFlags::REMOVEDIR)?;
            rfs::renameat(directory, from, directory, to)
        }
        other => other,
    }
}

// Borrows: the descriptor has to stay open while the path is used.
fn proc_path(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

fn temp_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let random = fastrand::u64(..);
    format!("{TEMP_PREFIX}{}-{}-{random:016x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn in_directory(parent: Option<&str>, name: &str) -> String {
    parent.map_or_else(|| name.to_owned(), |parent| format!("{parent}/{name}"))
}

fn to_stat(stat: &rfs::Stat) -> FileStat {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        _ => FileKind::Other,
    };
    let nanos = i64::try_from(stat.st_mtime_nsec).unwrap_or(0);
    FileStat {
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mtime_nanos: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(nanos),
        ino: stat.st_ino,
        mode: stat.st_mode & 0o7777,
        kind,
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn is_unsupported(error: &io::Error) -> bool {
    // What file systems and kernels without unnamed files answer.
    let codes = [Errno::OPNOTSUPP, Errno::ISDIR, Errno::INVAL, Errno::NOSYS];
    codes.iter().any(|code| error.raw_os_error() == Some(code.raw_os_error()))
}
