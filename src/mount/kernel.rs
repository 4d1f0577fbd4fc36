//! The kernel's side of a mount: making it, or taking it over, and noticing its end.
//!
//! Depends on `device`, `link` and `fs`. Invariants: a failed attempt leaves nothing mounted that was not there before; a
//! mount that a supervisor is to keep is in its care before anybody can use it.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::{MountOption, Session};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::device::{self, Notification};
use super::link::{Kept, Link, MOST_CHANNELS};
use super::mountpoint::{Directory, Mountpoint};
use super::{MountError, mountinfo, unmount};
use crate::config::MountConfig;
use crate::fs::{FsOptions, SwampFs, session_config};
use crate::sync::engine::Engine;
use crate::tree::ROOT;
use crate::volume::Notice;

/// How long the mount may take to answer after it was made.
const PATIENCE: Duration = Duration::from_secs(10);

/// A mount that answers.
pub(super) struct Kernel {
    /// `major:minor` of the mount.
    pub device: Option<String>,
    /// Comes when the session has ended, by whatever unmount.
    pub ended: oneshot::Receiver<()>,
}

/// Mounts, or takes the mount of the worker before over, and waits until it answers.
pub(super) async fn mount(
    config: &MountConfig,
    place: Mountpoint,
    engine: &Arc<Engine>,
    link: Option<&mut Link>,
) -> Result<Kernel, MountError> {
    let Mountpoint { path, directory, .. } = place;
    let path = path.as_path();
    let failed = |reason: String| MountError::Fuse { mountpoint: path.to_owned(), reason };
    let options = session_options(config);
    let passthrough = config.passthrough && survive_leases();
    let fs = SwampFs::new(Arc::clone(engine), Handle::current(), passthrough);
    if let Some(directory) = &directory {
        // The check of the mountpoint was before the first request to the bucket.
        directory.check(path)?;
    }
    let at = path.to_owned();
    let (resumed, socket) = match link {
        Some(link) => (link.kept.take(), Some(link.socket.try_clone().map_err(|e| failed(e.to_string()))?)),
        None => (None, None),
    };
    let fresh = resumed.is_none();
    let connected = tokio::task::spawn_blocking(move || match resumed {
        Some(kept) => take_over(&kept, &fs, &options),
        None => connect(&at, directory.as_ref(), &fs, &options, socket.as_ref()),
    });
    let connected = connected.await.map_err(|e| failed(e.to_string()))?;
    let Connected { device, sessions, looks_up_again } = connected.map_err(|e| failed(in_words(&e)))?;
    if let Some(session) = sessions.first() {
        engine.attach_notifier(session.notifier());
        if !fresh {
            if !looks_up_again {
                // Every path begins at the root. A working directory has no path any more then.
                engine.tell_kernel(names_at_root(engine));
            }
            engine.tell_kernel(engine.volume().taken_over().into_iter().map(Notice::Content).collect());
        }
    }
    let ended = serve(sessions).map_err(|e| failed(e.to_string()))?;
    let at = path.to_owned();
    let answer = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || std::fs::metadata(at))).await;
    let problem = match answer {
        Ok(Ok(Ok(_))) => return Ok(Kernel { device, ended }),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it did not answer within {} s", PATIENCE.as_secs()),
    };
    if fresh && let Err(error) = unmount::detach(path, device.as_deref()) {
        tracing::error!("{error}");
    }
    Err(failed(format!("the mount does not answer: {problem}")))
}

/// A connection with a session on each of its channels.
struct Connected {
    device: Option<String>,
    sessions: Vec<Session<SwampFs>>,
    /// The kernel trusts no name that it knows.
    looks_up_again: bool,
}

fn connect(
    path: &Path,
    directory: Option<&Directory>,
    fs: &SwampFs,
    options: &fuser::Config,
    supervisor: Option<&OwnedFd>,
) -> std::io::Result<Connected> {
    let first = device::mount(path, directory, options)?;
    let connected = introduce(path, first, fs, options, supervisor);
    if connected.is_err()
        && let Err(error) = unmount::detach(path, None)
    {
        tracing::error!("{error}");
    }
    connected
}

/// The first sessions of a connection: one of them answers the kernel's INIT.
fn introduce(
    path: &Path,
    first: OwnedFd,
    fs: &SwampFs,
    options: &fuser::Config,
    supervisor: Option<&OwnedFd>,
) -> std::io::Result<Connected> {
    let init = device::read_init(&first)?;
    let mut channels = vec![first];
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get()).min(MOST_CHANNELS);
    while channels.len() < threads {
        channels.push(device::clone(&channels[0])?);
    }
    let device = mountinfo::at(path)?.map(|mounted| mounted.device);
    let kept = Kept { path: path.to_owned(), device: device.clone(), init, channels };
    if let Some(supervisor) = supervisor {
        if device::resends(&kept.init) {
            super::link::keep(supervisor, &kept)?;
        } else {
            tracing::warn!("this kernel cannot keep a mount whose process crashed: Linux 6.9 can");
        }
    }
    let mut sessions = Vec::with_capacity(threads);
    for channel in &kept.channels {
        let (session, answer) = device::session(fs.clone(), &kept.init, channel, options)?;
        if sessions.is_empty() {
            rustix::io::write(channel, &answer)?;
        }
        sessions.push(session);
    }
    Ok(Connected { device, sessions, looks_up_again: true })
}

/// Sessions on a connection that the kernel has introduced itself on to another process.
fn take_over(kept: &Kept, fs: &SwampFs, options: &fuser::Config) -> std::io::Result<Connected> {
    let sessions = kept.channels.iter().map(|channel| device::session(fs.clone(), &kept.init, channel, options));
    let sessions = sessions.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|(session, _)| session).collect();
    // Without a connection (somebody unmounted) the sessions end at once, which is noticed.
    let tell = |what| match kept.channels.first().map(|channel| device::notify(channel.as_fd(), what)) {
        Some(Ok(())) => true,
        Some(Err(error)) => {
            tracing::debug!(?what, %error, "kernel notification");
            false
        }
        None => false,
    };
    let looks_up_again = tell(Notification::IncreaseEpoch);
    tell(Notification::Resend);
    Ok(Connected { device: kept.device.clone(), sessions, looks_up_again })
}

/// Starts the sessions; what is returned comes when all have ended.
fn serve(sessions: Vec<Session<SwampFs>>) -> std::io::Result<oneshot::Receiver<()>> {
    let mut guards = Vec::with_capacity(sessions.len());
    for session in sessions {
        let mut session = session.spawn()?;
        guards.push(std::mem::replace(&mut session.guard, std::thread::spawn(|| Ok(()))));
    }
    let (sender, ended) = oneshot::channel();
    std::thread::spawn(move || {
        for guard in guards {
            match guard.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!("the kernel session ended: {error}"),
                Err(_) => tracing::error!("the kernel session panicked"),
            }
        }
        // Nobody waits any more when the process is ending anyway.
        let _ending = sender.send(());
    });
    Ok(ended)
}

fn names_at_root(engine: &Engine) -> Vec<Notice> {
    let told = |entry: crate::volume::DirEntry| Notice::Entry { parent: ROOT, name: entry.name.into() };
    match engine.volume().list(ROOT) {
        Ok(listing) => listing.entries.into_iter().map(told).collect(),
        Err(error) => {
            tracing::warn!(%error, "the root cannot be listed");
            Vec::new()
        }
    }
}

/// Passthrough asks for leases on files to learn whether they are still in use; somebody who opens one at that moment makes
/// the kernel send SIGIO, which ends a process that does not handle it.
fn survive_leases() -> bool {
    // Once registered, the handler stays for the life of the process.
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::io()) {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, "no passthrough: SIGIO cannot be handled");
            false
        }
    }
}

fn session_options(config: &MountConfig) -> fuser::Config {
    let source_name = config.store.to_string();
    let options = FsOptions { allow_other: config.allow_other, read_only: config.engine.read_only, source_name };
    let mut session = session_config(&options);
    let wanted = [
        (MountOption::NoDev, true),
        (MountOption::NoSuid, true),
        (MountOption::NoExec, config.no_exec),
        (MountOption::NoAtime, config.no_atime),
    ];
    for (option, wanted) in wanted {
        if wanted && !session.mount_options.contains(&option) {
            session.mount_options.push(option);
        }
    }
    session
}

fn in_words(error: &std::io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) if rustix::process::geteuid().is_root() => format!(
            "{error}; mounting needs CAP_SYS_ADMIN, which a container gets with `--cap-add SYS_ADMIN --device /dev/fuse`"
        ),
        _ => error.to_string().trim().to_owned(),
    }
}
