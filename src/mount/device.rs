//! `/dev/fuse`: a mount's connection to the kernel, and the sessions that serve it.
//!
//! Depends on fuser and `link`. Root mounts here, so that the mount has its own type (`fuse.swamp-mount`) in the
//! list of mounts; others through fusermount3. A session of fuser begins with INIT, which the kernel sends once in the life
//! of a connection: here it is read before any session, and played to each of them over a socket, in whose place the
//! descriptor of the device is put then. Invariant: nothing here waits for the mount to answer.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use fuser::{MountOption, Session, SessionACL};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::mountpoint::{self, Directory};
use super::{link, mountinfo, unmount};
use crate::fs::SwampFs;

const DEVICE: &str = "/dev/fuse";

/// `_IOR(229, 0, uint32_t)`: makes a newly opened descriptor one more of the same connection.
const FUSE_DEV_IOC_CLONE: u32 = 0x8004_e500;

/// More than any INIT request; the kernel refuses to read into less than 8 KiB.
const LONGEST_REQUEST: usize = 64 * 1024;

/// Where the second half of the flags lies in an INIT request, and the bit there of a kernel that sends requests again.
const FLAGS2_AT: usize = 56;
const HAS_RESEND: u32 = 1 << (39 - 32);

/// What the kernel can be told that fuser has no words for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Notification {
    /// Send again what was read and not answered (Linux 6.9).
    Resend = 7,
    /// Look every name up again (Linux 6.17).
    IncreaseEpoch = 8,
}

/// Mounts, and gives the first descriptor of the connection. `directory` is what was found at the path when it was checked.
pub(super) fn mount(path: &Path, directory: Option<&Directory>, config: &fuser::Config) -> io::Result<OwnedFd> {
    match directory {
        Some(directory) if rustix::process::geteuid().is_root() => mount_as_root(path, directory, config),
        // fusermount3 looks by itself whether the user may mount there.
        _ => mount_as_user(path, config),
    }
}

fn mount_as_root(path: &Path, directory: &Directory, config: &fuser::Config) -> io::Result<OwnedFd> {
    let device = open()?;
    let (context, attributes) = described(&device, config)?;
    rustix::mount::fsconfig_create(&context)?;
    let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    // By its descriptor: root must not mount on what somebody put in its place.
    let both_empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&mount, "", directory, "", both_empty)?;
    // While the mount is open nothing else gets its id; the ids of mounts that ended are given away again.
    let id = mountinfo::id_of(&mount)?;
    let is_it = |mounted: &mountinfo::Mounted| mounted.id == id;
    if !mountinfo::at(path)?.is_some_and(|mounted| is_it(&mounted)) {
        // Moved in the last moment: the mount lies on the directory that was checked, wherever that is now.
        if let Some(moved) = mountinfo::read()?.into_iter().find(is_it)
            && let Err(error) = unmount::detach(&moved.mountpoint, Some(&moved.device))
        {
            tracing::error!("{error}");
        }
        return Err(io::Error::other("the mountpoint was replaced while it was being mounted"));
    }
    Ok(device)
}

/// The file system that is to be made, and the attributes of its mount.
fn described(device: &OwnedFd, config: &fuser::Config) -> io::Result<(OwnedFd, MountAttrFlags)> {
    let context = rustix::mount::fsopen(mountinfo::FUSE, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let flag = |key: &str| rustix::mount::fsconfig_set_flag(&context, key);
    let set = |key: &str, value: &str| rustix::mount::fsconfig_set_string(&context, key, value);
    set("subtype", mountinfo::OUR_SUBTYPE)?;
    set("fd", &device.as_raw_fd().to_string())?;
    set("rootmode", "40000")?;
    set("user_id", &rustix::process::getuid().as_raw().to_string())?;
    set("group_id", &rustix::process::getgid().as_raw().to_string())?;
    if config.acl != SessionACL::Owner {
        flag("allow_other")?;
    }
    let mut attributes = MountAttrFlags::empty();
    for option in &config.mount_options {
        match option {
            MountOption::FSName(name) => set("source", name)?,
            MountOption::DefaultPermissions => flag("default_permissions")?,
            MountOption::CUSTOM(option) => match option.split_once('=') {
                Some((key, value)) => set(key, value)?,
                None => flag(option)?,
            },
            MountOption::RO => {
                flag("ro")?;
                attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
            }
            MountOption::DirSync => flag("dirsync")?,
            MountOption::Sync => flag("sync")?,
            MountOption::NoDev => attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
            MountOption::NoSuid => attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
            MountOption::NoExec => attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
            MountOption::NoAtime => attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME,
            // The type is ours anyway, and the others are how a mount is without them.
            _ => {}
        }
    }
    Ok((context, attributes))
}

/// fusermount3 mounts and passes the descriptor back over a socket, which is its standard input here.
fn mount_as_user(path: &Path, config: &fuser::Config) -> io::Result<OwnedFd> {
    let mut options: Vec<String> = config.mount_options.iter().filter_map(in_words).collect();
    if config.acl != SessionACL::Owner {
        options.push("allow_other".to_owned());
    }
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new(mountpoint::fusermount_program());
    command.env("LC_ALL", "C").env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs));
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command.arg("-o").arg(options.join(",")).arg("--").arg(path);
    let child = command.spawn()?;
    // It holds the other end of the socket.
    drop(command);
    let received = link::receive(&ours, 1);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    received?.1.pop().ok_or_else(|| io::Error::other("fusermount3 passed no descriptor"))
}

fn in_words(option: &MountOption) -> Option<String> {
    Some(match option {
        MountOption::FSName(name) => format!("fsname={name}"),
        MountOption::Subtype(name) => format!("subtype={name}"),
        MountOption::CUSTOM(option) => option.clone(),
        MountOption::DefaultPermissions => "default_permissions".to_owned(),
        MountOption::RO => "ro".to_owned(),
        MountOption::RW => "rw".to_owned(),
        MountOption::NoDev => "nodev".to_owned(),
        MountOption::NoSuid => "nosuid".to_owned(),
        MountOption::NoExec => "noexec".to_owned(),
        MountOption::NoAtime => "noatime".to_owned(),
        _ => return None,
    })
}

fn open() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(DEVICE)?.into())
}

/// One more descriptor of a connection, on which requests are read side by side.
pub(super) fn clone(channel: &OwnedFd) -> io::Result<OwnedFd> {
    let new = open()?;
    let source: RawFd = channel.as_raw_fd();
    // SAFETY: the request reads one descriptor number, which lives until it returns.
    let cloned = unsafe { libc::ioctl(new.as_raw_fd(), FUSE_DEV_IOC_CLONE as _, &source) };
    if cloned < 0 { Err(io::Error::last_os_error()) } else { Ok(new) }
}

/// The first request of a new connection.
pub(super) fn read_init(channel: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut request = vec![0; LONGEST_REQUEST];
    let length = loop {
        match rustix::io::read(channel, &mut request) {
            // As fuser does: the request was interrupted, or there is none yet.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::NOENT | rustix::io::Errno::AGAIN) => {}
            other => break other?,
        }
    };
    request.truncate(length);
    Ok(request)
}

/// Whether the kernel that sent this INIT sends requests again when it is asked to.
pub(super) fn resends(init: &[u8]) -> bool {
    let flags = init.get(FLAGS2_AT..FLAGS2_AT + 4).and_then(|bytes| bytes.try_into().ok());
    flags.is_some_and(|flags| u32::from_ne_bytes(flags) & HAS_RESEND != 0)
}

/// A session on a channel of a connection, and its answer to INIT, which the kernel gets from one session only.
pub(super) fn session(
    fs: SwampFs,
    init: &[u8],
    channel: &OwnedFd,
    config: &fuser::Config,
) -> io::Result<(Session<SwampFs>, Vec<u8>)> {
    let (ours, theirs) = link::pair()?;
    // The session waits for its request.
    rustix::io::ioctl_fionbio(&theirs, false)?;
    let mut ours = File::from(ours);
    ours.write_all(init)?;
    let number = theirs.as_raw_fd();
    let session = Session::from_fd(fs, theirs, config.acl, config.clone())?;
    let mut answer = vec![0; LONGEST_REQUEST];
    let length = ours.read(&mut answer)?;
    answer.truncate(length);
    // SAFETY: the session holds the descriptor of this number and goes on to hold it; it is not closed here.
    let mut place = unsafe { ManuallyDrop::new(OwnedFd::from_raw_fd(number)) };
    rustix::io::dup3(channel, &mut place, rustix::io::DupFlags::CLOEXEC)?;
    Ok((session, answer))
}

/// Tells the kernel.
pub(super) fn notify(channel: BorrowedFd<'_>, what: Notification) -> io::Result<()> {
    // fuse_out_header: length, the notification in the place of an error, no request.
    let mut message = Vec::with_capacity(16);
    message.extend_from_slice(&16u32.to_ne_bytes());
    message.extend_from_slice(&(what as i32).to_ne_bytes());
    message.extend_from_slice(&0u64.to_ne_bytes());
    rustix::io::write(channel.as_fd(), &message)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use rustix::mount::{MountFlags, UnmountFlags};

    use super::*;

    /// A place to mount on, or none where this user must not mount.
    fn place() -> Option<tempfile::TempDir> {
        let home = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(home.path().join("mnt")).expect("made");
        if rustix::process::geteuid().is_root() && Path::new(DEVICE).exists() {
            return Some(home);
        }
        eprintln!("skipped: this user must not mount");
        None
    }

    #[test]
    fn what_took_the_name_of_the_directory_is_not_mounted_on() {
        let Some(home) = place() else { return };
        let path = home.path().canonicalize().expect("there").join("mnt");
        let directory = Directory::open(&path).expect("there");
        std::fs::rename(&path, path.with_extension("moved")).expect("renamed");
        std::fs::create_dir(&path).expect("made");
        let refused = mount(&path, Some(&directory), &fuser::Config::default()).expect_err("it was replaced");
        assert!(refused.to_string().contains("replaced while"), "{refused}");
        for path in [&path, &path.with_extension("moved")] {
            assert_eq!(mountinfo::at(path).expect("read"), None);
        }
    }

    /// The kernel gives the id of a mount away again as soon as it has ended. One that had ended a moment ago was taken for
    /// ours, and ours for nothing, and the mount said that its directory was replaced.
    #[test]
    fn mounts_that_end_meanwhile_are_no_matter() {
        let Some(home) = place() else { return };
        let path = home.path().canonicalize().expect("there").join("mnt");
        let other = home.path().join("other");
        std::fs::create_dir(&other).expect("made");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    rustix::mount::mount("tmpfs", &other, "tmpfs", MountFlags::empty(), Some(c"size=1m"))
                        .and_then(|()| rustix::mount::unmount(&other, UnmountFlags::DETACH))
                        .expect("a tmpfs");
                }
            });
            let directory = Directory::open(&path).expect("there");
            let failed = (0..300).find_map(|_| {
                let mounted = mount(&path, Some(&directory), &fuser::Config::default());
                mounted.and_then(|_| unmount::detach(&path, None).map_err(io::Error::other)).err()
            });
            done.store(true, Ordering::Relaxed);
            assert!(failed.is_none(), "{failed:?}");
        });
    }
}
