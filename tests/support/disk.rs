//! A disk whose power can be cut: an ext4 file system with a journal on a loop device.
//!
//! The cut is the kernel's own (`EXT4_IOC_SHUTDOWN` without a last flush of the journal): from that moment nothing reaches
//! the device any more, and what was only in memory is gone when it is mounted again.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::mount::eventually;

/// `_IOR('X', 125, __u32)`, of ext4 and XFS.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
const WITHOUT_A_LAST_FLUSH: u32 = 2;

/// The disk; unmounted and removed when it is dropped.
pub struct Disk {
    home: TempDir,
}

impl Disk {
    /// `None`, with a note, where this user or kernel has no loop devices, or mkfs.ext4 is missing.
    pub fn new(mib: u64) -> Option<Self> {
        let disk = Self { home: tempfile::tempdir().expect("a directory") };
        std::fs::create_dir(disk.path()).expect("made");
        File::create(disk.image()).and_then(|image| image.set_len(mib << 20)).expect("a sparse file");
        let made = Command::new("mkfs.ext4").args(["-q", "-F"]).arg(disk.image()).output();
        let made = made.is_ok_and(|output| output.status.success());
        if made && disk.try_mount() {
            return Some(disk);
        }
        eprintln!("skipped: this user must not mount a loop device, or mkfs.ext4 is missing");
        None
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.home.path().canonicalize().expect("there").join("disk")
    }

    fn image(&self) -> PathBuf {
        self.home.path().join("image")
    }

    fn try_mount(&self) -> bool {
        // Nothing reaches the journal just because time passes.
        let mut command = Command::new("mount");
        command.args(["-t", "ext4", "-o", "loop,data=ordered,commit=600"]).arg(self.image()).arg(self.path());
        command.output().is_ok_and(|output| output.status.success())
    }

    /// Cuts the power. What uses the disk gets errors from now on.
    pub fn cut(&self) {
        let root = File::open(self.path()).expect("mounted");
        // SAFETY: the request reads one u32, which lives until the call returns.
        let answer = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &WITHOUT_A_LAST_FLUSH) };
        assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
    }

    /// Mounts what reached the device; the journal is replayed. Nobody may use the disk any more.
    pub fn restore(&self) {
        eventually("the disk to be free", || {
            rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::empty()).ok()
        });
        assert!(self.try_mount(), "the disk mounts again");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let path: &Path = &self.path();
        // A daemon that a failed test left may still be closing its files.
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    }
}
