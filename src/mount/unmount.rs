//! Unmounting: by root with umount2(2), by others through fusermount3, never lazily unless asked.
//!
//! Depends on `mountinfo` and `busy`. Invariant: only the mount that was asked for goes, told by its device, so that
//! something that was mounted over it meanwhile is left alone.

use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::busy::{Blocker, blockers};
use super::mountinfo;

/// How an unmount failed.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Somebody uses it.
    #[error("{} is in use{}", mountpoint.display(), list(blockers))]
    Busy {
        /// The mountpoint.
        mountpoint: std::path::PathBuf,
        /// By whom, as far as could be seen.
        blockers: Vec<Blocker>,
    },
    /// Another file system was mounted over it.
    #[error("{} ({fs_type}) is mounted over it at {}; unmount that first", source_name, mountpoint.display())]
    Covered {
        /// The mountpoint.
        mountpoint: std::path::PathBuf,
        /// Type of what covers it.
        fs_type: String,
        /// Source of what covers it.
        source_name: String,
    },
    /// Anything else.
    #[error("cannot unmount {}: {reason}", mountpoint.display())]
    Failed {
        /// The mountpoint.
        mountpoint: std::path::PathBuf,
        /// The words of the system or of fusermount3.
        reason: String,
    },
}

fn list(blockers: &[Blocker]) -> String {
    if blockers.is_empty() {
        return " (by whom cannot be seen; root sees more, with `fuser -vm`)".to_owned();
    }
    let shown: String = blockers.iter().take(10).map(|blocker| format!("\n  {blocker}")).collect();
    let more = blockers.len().saturating_sub(10);
    if more > 0 { format!(" by:{shown}\n  and {more} more") } else { format!(" by:{shown}") }
}

/// Unmounts the file system with that device (`major:minor`; any, when `None`). Already unmounted is success.
pub fn unmount(mountpoint: &Path, device: Option<&str>) -> Result<(), UnmountError> {
    take_off(mountpoint, device, false)
}

/// Takes it off the tree at once; what is still open in it goes on until its process ends.
pub fn detach(mountpoint: &Path, device: Option<&str>) -> Result<(), UnmountError> {
    take_off(mountpoint, device, true)
}

fn take_off(mountpoint: &Path, device: Option<&str>, lazily: bool) -> Result<(), UnmountError> {
    let failed = |reason: String| UnmountError::Failed { mountpoint: mountpoint.to_owned(), reason };
    let all = mountinfo::read().map_err(|e| failed(e.to_string()))?;
    let here: Vec<_> = all.into_iter().filter(|mounted| mounted.mountpoint == mountpoint).collect();
    let Some(top) = here.last() else { return Ok(()) };
    if let Some(device) = device
        && top.device != device
    {
        if !here.iter().any(|mounted| mounted.device == device) {
            return Ok(());
        }
        return Err(UnmountError::Covered {
            mountpoint: mountpoint.to_owned(),
            fs_type: top.fs_type.clone(),
            source_name: top.source.clone(),
        });
    }
    let busy = || UnmountError::Busy { mountpoint: mountpoint.to_owned(), blockers: blockers(mountpoint) };
    let flags = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() } | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(mountpoint, flags) {
        Ok(()) => Ok(()),
        // No longer a mountpoint.
        Err(Errno::INVAL) => Ok(()),
        Err(Errno::BUSY) => Err(busy()),
        Err(Errno::PERM) => match fusermount(mountpoint, lazily) {
            Ok(()) => Ok(()),
            Err(reason) if reason.contains("busy") => Err(busy()),
            Err(reason) => Err(failed(reason)),
        },
        Err(error) => Err(failed(error.to_string())),
    }
}

fn fusermount(mountpoint: &Path, lazily: bool) -> Result<(), String> {
    let mut command = Command::new(super::mountpoint::fusermount_program());
    command.env("LC_ALL", "C").arg("-u").args(lazily.then_some("-z")).arg("--").arg(mountpoint).stdin(Stdio::null());
    let output = command.output().map_err(|e| {
        format!("fusermount3 does not start: {e}; install it with `apt install fuse3`, or unmount as root")
    })?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}
