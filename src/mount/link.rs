//! Between the supervisor and its worker: a socket pair, memory that both see, and the kernel's side of the mount.
//!
//! Depends on rustix. The worker hands over what the next worker needs, and says when it serves; the supervisor passes
//! signals on. One packet is one message. Invariant: the supervisor holds every descriptor of `/dev/fuse` that a worker reads
//! from, so that the death of a worker closes none of them and the kernel keeps the connection, and what is under way on it.

use std::ffi::OsStr;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

use super::signals::Ending;
use crate::config::MountConfig;
use crate::tree::Incarnation;

/// How many descriptors one message carries at most; the kernel takes 253.
pub(super) const MOST_CHANNELS: usize = 64;

/// An INIT request is 104 bytes long, and everything else in a message is short too.
const LONGEST_MESSAGE: usize = 16 * 1024;

/// The kernel's side of a mount: what outlives a worker.
#[derive(Debug)]
pub(super) struct Kept {
    /// Where it is mounted.
    pub path: PathBuf,
    /// `major:minor` of the mount.
    pub device: Option<String>,
    /// The first request of the connection, which every session begins with.
    pub init: Vec<u8>,
    /// The connection: its first descriptor of `/dev/fuse`, and clones of it.
    pub channels: Vec<OwnedFd>,
}

/// What a worker says.
#[derive(Debug)]
pub(super) enum Word {
    /// This is the mount.
    Keep(Kept),
    /// It answers. In the background with the log, to which stderr goes from now on.
    Ready(Option<OwnedFd>),
}

#[derive(Serialize, Deserialize)]
enum Text {
    Keep { path: Vec<u8>, device: Option<String>, init: Vec<u8> },
    Ready,
}

/// What is known of the workers before this one.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// How many there were.
    pub restarts: u32,
    /// How and when the last one ended.
    pub last: Option<String>,
}

/// The worker's side.
#[derive(Debug)]
pub struct Link {
    pub(super) socket: OwnedFd,
    /// From the worker before.
    pub(super) kept: Option<Kept>,
    pub(super) history: History,
    pub(super) incarnation: Incarnation,
}

impl Link {
    /// Whether this worker takes over from one that crashed.
    pub(super) fn resumes(&self) -> bool {
        self.kept.is_some()
    }

    /// Says that the mount answers. In the background, stderr is the log by now.
    pub(super) fn ready(&self, config: &MountConfig) -> io::Result<()> {
        let log = (!config.foreground).then(rustix::stdio::stderr);
        send(&self.socket, &serde_json::to_vec(&Text::Ready)?, log.as_slice())
    }
}

/// Gives the mount into the supervisor's care.
pub(super) fn keep(supervisor: &OwnedFd, kept: &Kept) -> io::Result<()> {
    let text = Text::Keep {
        path: kept.path.as_os_str().as_bytes().to_vec(),
        device: kept.device.clone(),
        init: kept.init.clone(),
    };
    let channels: Vec<BorrowedFd<'_>> = kept.channels.iter().map(AsFd::as_fd).collect();
    send(supervisor, &serde_json::to_vec(&text)?, &channels)
}

/// The two ends of a link: the supervisor's, and the worker's, which never blocks.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::ioctl_fionbio(&theirs, true)?;
    Ok((ours, theirs))
}

fn send(socket: &OwnedFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_CHANNELS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Reads a message and the descriptors that came with it; empty when the other side is gone.
pub(super) fn receive(socket: impl AsFd, most: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_CHANNELS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0; most];
    let message = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    bytes.truncate(message.bytes);
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((bytes, rights.flatten().collect()))
}

/// The next word of the worker; `None` when it is gone.
pub(super) fn listen(socket: &OwnedFd) -> io::Result<Option<Word>> {
    let (bytes, mut descriptors) = receive(socket, LONGEST_MESSAGE)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    Ok(Some(match serde_json::from_slice(&bytes)? {
        Text::Keep { path, device, init } => {
            let path = PathBuf::from(OsStr::from_bytes(&path));
            Word::Keep(Kept { path, device, init, channels: descriptors })
        }
        Text::Ready => Word::Ready(descriptors.pop()),
    }))
}

/// Passes a signal on to the worker.
pub(super) fn tell(socket: &OwnedFd, signal: Ending) -> io::Result<()> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    rustix::net::send(socket, &[signal.code()], flags)?;
    Ok(())
}
