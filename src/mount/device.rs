//! `/dev/fuse`: a mount's connection to the kernel, and the sessions that serve it.
//!
//! Depends on fuser and `link`. Root mounts by mount(2) here, so that the mount has its own type (`fuse.swamp-mount`) in the
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
use rustix::mount::MountFlags;

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
    let mut flags = MountFlags::empty();
    let mut source = String::from("swamp-mount");
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let mut data = format!("fd={},rootmode=40000,user_id={uid},group_id={gid}", device.as_raw_fd());
    for option in &config.mount_options {
        match option {
            MountOption::FSName(name) => source.clone_from(name),
            MountOption::DefaultPermissions => data.push_str(",default_permissions"),
            MountOption::CUSTOM(option) => {
                data.push(',');
                data.push_str(option);
            }
            MountOption::RO => flags |= MountFlags::RDONLY,
            MountOption::NoDev => flags |= MountFlags::NODEV,
            MountOption::NoSuid => flags |= MountFlags::NOSUID,
            MountOption::NoExec => flags |= MountFlags::NOEXEC,
            MountOption::NoAtime => flags |= MountFlags::NOATIME,
            MountOption::DirSync => flags |= MountFlags::DIRSYNC,
            MountOption::Sync => flags |= MountFlags::SYNCHRONOUS,
            // The type is ours anyway, and the others are how a mount is without them.
            _ => {}
        }
    }
    if config.acl != SessionACL::Owner {
        data.push_str(",allow_other");
    }
    let data = std::ffi::CString::new(data)?;
    let before: Vec<u64> = mountinfo::read()?.iter().map(|mounted| mounted.id).collect();
    // By its descriptor: root must not mount on what somebody put in its place.
    rustix::mount::mount(source.as_str(), directory.by_descriptor(), mountinfo::OUR_TYPE, flags, data.as_c_str())?;
    let is_new = |mounted: &mountinfo::Mounted| mounted.is_ours() && !before.contains(&mounted.id);
    if !mountinfo::at(path)?.is_some_and(|mounted| is_new(&mounted)) {
        // Moved in the last moment: the mount lies on the directory that was checked, wherever that is now.
        if let Some(moved) = mountinfo::read()?.into_iter().rfind(|mounted| is_new(mounted) && mounted.source == source)
            && let Err(error) = unmount::detach(&moved.mountpoint, Some(&moved.device))
        {
            tracing::error!("{error}");
        }
        return Err(io::Error::other("the mountpoint was replaced while it was being mounted"));
    }
    Ok(device)
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
