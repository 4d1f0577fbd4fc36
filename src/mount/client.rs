//! The asking side of control.sock, for the commands.
//!
//! Depends on `control`. Blocking. Invariant: no answer within its time is an error, never a hang, except while the other
//! side reports progress.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::control::{MountStatus, Phase, Request, Response, with_short_path};
use super::instance::Holder;
use crate::sync::status::Pending;

/// Progress comes every 200 ms; silence for so long means that nobody is there.
const SILENCE: Duration = Duration::from_secs(10);

/// Sends a request and waits for its answer; `progress` is called with every line of progress.
pub fn request(root: &Path, request: &Request, mut progress: impl FnMut(Pending, Phase)) -> io::Result<Response> {
    let mut stream = with_short_path(root, |path| UnixStream::connect(path))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    for line in BufReader::new(stream).lines() {
        match serde_json::from_str(&line?)? {
            Response::Progress { pending, phase } => progress(pending, phase),
            response => return Ok(response),
        }
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the mount's process ended without an answer"))
}

/// The status of the mount on this cache root.
pub fn status(root: &Path) -> io::Result<MountStatus> {
    match request(root, &Request::Status, |_, _| ())? {
        Response::Status { status } => Ok(*status),
        other => Err(io::Error::other(format!("an unexpected answer: {other:?}"))),
    }
}

/// Words for the user who finds a cache root in use: by whom, what it is doing, what to do.
pub fn describe_holder(root: &Path, holder: Option<&Holder>) -> String {
    let Some(holder) = holder else {
        return format!("{} is in use by another swamp-mount process; try again in a moment", root.display());
    };
    let who = format!("process {} (since {})", holder.pid, holder.started);
    match (status(root), &holder.mountpoint) {
        (Ok(status), Some(mountpoint)) if status.phase == Phase::Mounted => format!(
            "{} is already mounted at {mountpoint}, by {who}; use it there, or end it with `swamp-mount unmount {mountpoint}`",
            holder.source
        ),
        (Ok(status), Some(mountpoint)) if status.phase == Phase::Mounting => {
            format!("{} is being mounted at {mountpoint}, by {who}; try again in a moment", holder.source)
        }
        (Ok(status), Some(mountpoint)) => format!(
            "{who} is still pushing what was written to {} at {mountpoint}: {} left; try again when it is done (`swamp-mount status` shows how far it is)",
            holder.source,
            describe_pending(&status.engine.pending)
        ),
        (Ok(status), None) => format!(
            "{who} is pushing what an ended mount of {} left behind: {} left; try again when it is done",
            holder.source,
            describe_pending(&status.engine.pending)
        ),
        (Err(_), mountpoint) => format!(
            "{} is in use by {who}{}, which does not answer: it is starting or ending; try again in a moment",
            root.display(),
            mountpoint.as_ref().map(|path| format!(" for the mountpoint {path}")).unwrap_or_default()
        ),
    }
}

/// Such as `3 files (1.2 MiB), 1 removal`.
pub fn describe_pending(pending: &Pending) -> String {
    let mut parts = Vec::new();
    if pending.files > 0 {
        let size = indicatif::BinaryBytes(pending.bytes);
        parts.push(format!("{} {} ({size})", pending.files, if pending.files == 1 { "file" } else { "files" }));
    }
    if pending.removals > 0 {
        parts.push(format!("{} {}", pending.removals, if pending.removals == 1 { "removal" } else { "removals" }));
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}
