//! Names below one directory, by its descriptor: nothing outside of it is ever reached.
//!
//! Depends on the local disk. Invariants: every path is opened beneath the descriptor, following no symlink (`openat2`); a
//! file appears under its own name complete or not at all.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{self as rfs, AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::{FileKind, FileStat, NewFile};
use crate::datastore::path::RelPath;

/// Prefix of the names under which unfinished files lie for a moment; internal, so that no client uploads them.
pub(super) const TEMP_PREFIX: &str = "_catalog.db-swamp-mount-";

/// A directory that is open.
#[derive(Debug)]
pub(super) struct Beneath {
    pub fd: OwnedFd,
    /// Where it is, for messages.
    pub path: PathBuf,
}

impl Beneath {
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { fd: rfs::openat(CWD, path, flags, Mode::empty())?, path: path.to_owned() })
    }

    /// A directory in it, made when it is missing.
    pub fn directory(&self, name: &str) -> io::Result<Self> {
        match rfs::mkdirat(&self.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(Self { fd: self.open_dir(Some(name))?, path: self.path.join(name) })
    }

    pub fn open_at(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rfs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, mode, resolve) {
                // A rename elsewhere raced the lookup.
                Err(Errno::AGAIN) => {}
                other => return Ok(other?),
            }
        }
    }

    pub fn open_dir(&self, path: Option<&str>) -> io::Result<OwnedFd> {
        self.open_at(path.unwrap_or("."), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
    }

    pub fn open_regular(&self, path: &str) -> io::Result<File> {
        let file = File::from(self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
    }

    pub fn stat_name(&self, path: &str) -> io::Result<Option<FileStat>> {
        // A symlink in the last place opens as itself; one before it is refused, and counts as nothing being there.
        match self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(fd) => Ok(Some(to_stat(&rfs::fstat(&fd)?))),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn new_file_in(&self, parent: Option<&str>) -> io::Result<NewFile> {
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

    pub fn place_in(&self, new: NewFile, parent: Option<&str>, name: &str) -> io::Result<()> {
        let directory = self.open_dir(parent)?;
        let Some(temp) = &new.temp_name else {
            return link_over(&proc_path(&new.file), &directory, name);
        };
        let (_, temp) = temp.rsplit_once('/').unwrap_or(("", temp));
        Ok(rename_over(&directory, temp, name)?)
    }

    /// Removes directories that are empty, from the inside out.
    pub fn remove_empty<'a>(&self, innermost_first: impl Iterator<Item = &'a str>) {
        for directory in innermost_first {
            let (parent, name) = directory.rsplit_once('/').map_or((None, directory), |(p, n)| (Some(p), n));
            let Ok(parent) = self.open_dir(parent) else { break };
            // Not empty, or gone already.
            if rfs::unlinkat(&parent, name, AtFlags::REMOVEDIR).is_err() {
                break;
            }
        }
    }

    pub fn unlink(&self, path: &str) -> io::Result<()> {
        let (parent, name) = path.rsplit_once('/').map_or((None, path), |(p, n)| (Some(p), n));
        Ok(rfs::unlinkat(&self.open_dir(parent)?, name, AtFlags::empty())?)
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
        self.remove_empty(path.ancestors());
        Ok(true)
    }

    /// Gives a file another name that is free, here or in another directory of the same file system.
    ///
    /// # Errors
    /// `AlreadyExists` when the name is taken.
    pub fn rename_to_free(&self, from: &RelPath, target: &Self, to: &RelPath) -> io::Result<()> {
        target.create_parents(to)?;
        let (old, new) = (self.open_dir(from.parent())?, target.open_dir(to.parent())?);
        match rfs::renameat_with(&old, from.name(), &new, to.name(), RenameFlags::NOREPLACE) {
            Err(Errno::INVAL | Errno::NOSYS) => {
                rfs::linkat(&old, from.name(), &new, to.name(), AtFlags::empty())?;
                Ok(rfs::unlinkat(&old, from.name(), AtFlags::empty())?)
            }
            other => Ok(other?),
        }
    }

    /// Forgets a file that was started.
    pub fn discard(&self, new: NewFile) {
        if let Some(name) = &new.temp_name
            && let Err(error) = self.unlink(name)
        {
            tracing::warn!(file = %self.path.join(name).display(), %error, "cannot remove an unfinished file");
        }
    }

    pub fn read(&self, name: &str) -> io::Result<Option<(Vec<u8>, FileStat)>> {
        let mut file = match self.open_regular(name) {
            Ok(file) => file,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Some((bytes, to_stat(&rfs::fstat(&file)?))))
    }

    pub fn write(&self, name: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        let new = self.new_file_in(None)?;
        let written = (&new.file).write_all(bytes).and_then(|()| if durable { new.file.sync_all() } else { Ok(()) });
        if let Err(error) = written {
            self.discard(new);
            return Err(error);
        }
        self.place_in(new, None, name)?;
        if durable { self.sync() } else { Ok(()) }
    }

    pub fn sync(&self) -> io::Result<()> {
        Ok(rfs::fsync(&self.fd)?)
    }
}

pub(super) fn link_over(source: &Path, directory: &OwnedFd, name: &str) -> io::Result<()> {
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
pub(super) fn proc_path(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

fn temp_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let random = fastrand::u64(..);
    format!("{TEMP_PREFIX}{}-{}-{random:016x}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(super) fn in_directory(parent: Option<&str>, name: &str) -> String {
    parent.map_or_else(|| name.to_owned(), |parent| format!("{parent}/{name}"))
}

pub(super) fn to_stat(stat: &rfs::Stat) -> FileStat {
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
