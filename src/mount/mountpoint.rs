//! Is this a place to mount on? Checks with errors that say what to do, before anything is started.
//!
//! Depends on `mountinfo` and `unmount`. Invariants: nothing is detached but a FUSE mount whose process is gone; what was
//! checked is what is mounted on, whoever renames directories or plants symlinks meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::{mountinfo, registry, unmount};
use crate::config::{MountConfig, Source};

/// Why nothing can be mounted there.
#[derive(Debug, thiserror::Error)]
pub enum MountpointError {
    /// No such directory.
    #[error("the mountpoint {0:?} does not exist; create it first, with mkdir")]
    Missing(PathBuf),
    /// Something else is there.
    #[error("the mountpoint {0:?} is not a directory")]
    NotADirectory(PathBuf),
    /// The mount would hide what is there.
    #[error(
        "the mountpoint {path:?} is not empty (it holds {first:?}, which the mount would hide); use an empty directory"
    )]
    NotEmpty {
        /// The mountpoint.
        path: PathBuf,
        /// One name in it.
        first: String,
    },
    /// A mount of ours is there.
    #[error("{source_name} is already mounted at {path:?}{by}; end it with `swamp-mount unmount {}`", path.display())]
    Mounted {
        /// The mountpoint.
        path: PathBuf,
        /// What is mounted.
        source_name: String,
        /// By which process, where that is known.
        by: String,
    },
    /// Another FUSE file system is there.
    #[error(
        "the mountpoint {path:?} is already taken by {source_name} ({fs_type}); unmount that first, or use another directory"
    )]
    Taken {
        /// The mountpoint.
        path: PathBuf,
        /// What is mounted.
        source_name: String,
        /// Its type.
        fs_type: String,
    },
    /// A dead mount cannot be taken away.
    #[error("the mountpoint {path:?} holds a dead mount which cannot be taken away: {reason}")]
    Stale {
        /// The mountpoint.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another directory, or a symlink, has the name by now.
    #[error("the mountpoint {0:?} was replaced while the mount was being prepared; nothing is mounted there")]
    Swapped(PathBuf),
    /// No right to mount there.
    #[error("you have no permission to mount on {0:?}: the directory must be yours and writable")]
    Permission(PathBuf),
    /// One inside the other.
    #[error("{what} {inner:?} lies inside {outside} {outer:?}; they must lie apart")]
    Nested {
        /// What the inner one is.
        what: &'static str,
        /// The inner one.
        inner: PathBuf,
        /// What the outer one is.
        outside: &'static str,
        /// The outer one.
        outer: PathBuf,
    },
    /// FUSE itself is missing.
    #[error("{0}")]
    Fuse(String),
    /// A system call failed.
    #[error("cannot look at the mountpoint {path:?}: {source}")]
    Io {
        /// The mountpoint.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
}

/// A mountpoint that will do.
#[derive(Debug)]
pub struct Mountpoint {
    /// Canonical path.
    pub path: PathBuf,
    /// The directory that was checked; none below a mount that is taken over.
    pub directory: Option<Directory>,
    /// What the user should know.
    pub notice: Option<String>,
}

/// Checks everything that can be told before mounting; detaches a dead mount.
pub fn check(config: &MountConfig) -> Result<Mountpoint, MountpointError> {
    let path = canonical(&config.mountpoint)?;
    let io = |source| MountpointError::Io { path: path.clone(), source };
    let mounted = mountinfo::at(&path).map_err(io)?;
    let mut notice = None;
    match mounted {
        Some(mounted) if mounted.is_fuse() && is_dead(&path) => {
            unmount::detach(&path, Some(&mounted.device))
                .map_err(|e| MountpointError::Stale { path: path.clone(), reason: e.to_string() })?;
            notice = Some(format!(
                "took away a dead mount of {} at {}: its process had ended without unmounting",
                mounted.source,
                path.display()
            ));
        }
        Some(mounted) if mounted.is_ours() => {
            return Err(MountpointError::Mounted {
                by: by_whom(&path, &config.cache.registries),
                path,
                source_name: mounted.source,
            });
        }
        Some(mounted) if mounted.is_fuse() => {
            return Err(MountpointError::Taken { path, source_name: mounted.source, fs_type: mounted.fs_type });
        }
        _ => {}
    }
    let directory = Directory::open(&path)?;
    check_directory(&path)?;
    check_apart(&path, config)?;
    check_fuse(config.allow_other)?;
    directory.check(&path)?;
    Ok(Mountpoint { path, directory: Some(directory), notice })
}

/// A directory by its descriptor, whatever happens to its name.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// Opens a canonical path: no part of it may be a symlink any more.
    pub fn open(path: &Path) -> Result<Self, MountpointError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        loop {
            match openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
                Ok(directory) => return Ok(Self(directory)),
                // A rename elsewhere raced the lookup.
                Err(Errno::AGAIN) => {}
                Err(Errno::LOOP) => return Err(MountpointError::Swapped(path.to_owned())),
                Err(Errno::NOTDIR) => return Err(MountpointError::NotADirectory(path.to_owned())),
                Err(error) => return Err(MountpointError::Io { path: path.to_owned(), source: error.into() }),
            }
        }
    }

    /// Whether the path still leads here.
    pub fn check(&self, path: &Path) -> Result<(), MountpointError> {
        let identity = |directory: &Self| {
            let stat = rustix::fs::fstat(&directory.0);
            let stat = stat.map_err(|e| MountpointError::Io { path: path.to_owned(), source: e.into() })?;
            Ok((stat.st_dev, stat.st_ino))
        };
        let swapped = || MountpointError::Swapped(path.to_owned());
        let now = Self::open(path).map_err(|_| swapped())?;
        if identity(&now)? == identity(self)? { Ok(()) } else { Err(swapped()) }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The canonical path of a mountpoint, also of one whose file system is dead.
pub fn canonical(path: &Path) -> Result<PathBuf, MountpointError> {
    match std::fs::canonicalize(path) {
        Ok(path) => Ok(path),
        Err(error) if says_dead(error.raw_os_error()) => {
            match (path.parent().map(std::fs::canonicalize), path.file_name()) {
                (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
                _ => Ok(path.to_owned()),
            }
        }
        Err(error) => Err(match error.kind() {
            std::io::ErrorKind::NotFound => MountpointError::Missing(path.to_owned()),
            std::io::ErrorKind::NotADirectory => MountpointError::NotADirectory(path.to_owned()),
            std::io::ErrorKind::PermissionDenied => MountpointError::Permission(path.to_owned()),
            _ => MountpointError::Io { path: path.to_owned(), source: error },
        }),
    }
}

/// Whether a FUSE file system is mounted there whose process is gone. Asks for what the kernel never caches: attributes of
/// a dead mount may still be remembered.
pub fn is_dead(path: &Path) -> bool {
    rustix::fs::statvfs(path).is_err_and(|error| says_dead(Some(error.raw_os_error())))
}

fn says_dead(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ENOTCONN | libc::ECONNABORTED))
}

fn by_whom(path: &Path, registries: &[PathBuf]) -> String {
    let shown = path.display().to_string();
    let holders = registry::list(registries).into_iter().filter_map(|known| known.holder);
    let mut by =
        holders.filter(|holder| holder.mountpoint.as_ref() == Some(&shown)).map(|h| format!(" by process {}", h.pid));
    by.next_back().unwrap_or_default()
}

fn check_directory(path: &Path) -> Result<(), MountpointError> {
    let io = |source| MountpointError::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(io)?;
    if !metadata.is_dir() {
        return Err(MountpointError::NotADirectory(path.to_owned()));
    }
    let me = rustix::process::geteuid().as_raw();
    // As fusermount3 does: an own directory, or a writable one that is not sticky (as /tmp is).
    let foreign = me != 0 && metadata.uid() != me && metadata.mode() & libc::S_ISVTX != 0;
    if foreign || (me != 0 && rustix::fs::access(path, Access::WRITE_OK | Access::READ_OK).is_err()) {
        return Err(MountpointError::Permission(path.to_owned()));
    }
    match std::fs::read_dir(path).map_err(io)?.next() {
        None => Ok(()),
        Some(Ok(first)) => Err(MountpointError::NotEmpty {
            path: path.to_owned(),
            first: first.file_name().to_string_lossy().into_owned(),
        }),
        Some(Err(error)) => Err(io(error)),
    }
}

fn check_apart(mountpoint: &Path, config: &MountConfig) -> Result<(), MountpointError> {
    const MOUNTPOINT: &str = "the mountpoint";
    const CACHE: &str = "the cache directory";
    const SOURCE: &str = "the source directory";
    let cache = canonical_of_missing(&config.cache.root);
    let mut pairs = vec![(MOUNTPOINT, mountpoint, CACHE, cache.as_path())];
    if let Source::Dir { path, .. } = &config.store.source {
        pairs.push((MOUNTPOINT, mountpoint, SOURCE, path));
        pairs.push((CACHE, &cache, SOURCE, path));
    }
    for (one, one_path, other, other_path) in pairs {
        let nested = |what, inner: &Path, outside, outer: &Path| {
            Err(MountpointError::Nested { what, inner: inner.to_owned(), outside, outer: outer.to_owned() })
        };
        if one_path.starts_with(other_path) {
            return nested(one, one_path, other, other_path);
        }
        if other_path.starts_with(one_path) {
            return nested(other, other_path, one, one_path);
        }
    }
    Ok(())
}

/// Canonical as far as it exists.
fn canonical_of_missing(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let (Ok(existing), Ok(rest)) = (std::fs::canonicalize(ancestor), path.strip_prefix(ancestor)) {
            return existing.join(rest).components().collect();
        }
    }
    path.to_owned()
}

fn check_fuse(allow_other: bool) -> Result<(), MountpointError> {
    let refuse = |text: &str| Err(MountpointError::Fuse(text.to_owned()));
    if !Path::new("/dev/fuse").exists() {
        return refuse(
            "/dev/fuse does not exist: load the kernel module (`modprobe fuse`) and install FUSE (`apt install fuse3`); a container needs `--device /dev/fuse --cap-add SYS_ADMIN`",
        );
    }
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    if rustix::fs::access("/dev/fuse", Access::READ_OK | Access::WRITE_OK).is_err() {
        return refuse(
            "you may not open /dev/fuse: its mode should be 0666 (installing FUSE with `apt install fuse3` sees to that), or mount as root",
        );
    }
    if !fusermount_program().exists() {
        return refuse(
            "fusermount3 is missing, which mounts for ordinary users: `apt install fuse3`, or mount as root",
        );
    }
    let allowed = std::fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if allow_other && !allowed.lines().any(|line| line.trim() == "user_allow_other") {
        return refuse(
            "--allow-other needs the line user_allow_other in /etc/fuse.conf, which root can add; or mount as root",
        );
    }
    Ok(())
}

/// Where fusermount3 is, or its bare name when it is nowhere.
pub fn fusermount_program() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/bin".into(), "/bin".into(), "/sbin".into()]);
    let found =
        dirs.flat_map(|dir| [dir.join("fusermount3"), dir.join("fusermount")]).find(|program| program.is_file());
    found.unwrap_or_else(|| PathBuf::from("fusermount3"))
}
