//! The kernel's side of a mount: making it, and noticing its end.
//!
//! Depends on fuser and `fs`. Root mounts by mount(2) here, so that the mount has its own type (`fuse.swamp-mount`) in the
//! list of mounts; others through fuser and fusermount3. Invariant: a failed attempt leaves nothing mounted.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::{MountOption, Session, SessionACL};
use rustix::mount::MountFlags;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{MountError, mountinfo, unmount};
use crate::config::MountConfig;
use crate::fs::{FsOptions, SwampFs, session_config};
use crate::sync::engine::Engine;

/// How long the mount may take to answer after it was made.
const PATIENCE: Duration = Duration::from_secs(10);

/// A mount that answers.
pub(super) struct Kernel {
    /// `major:minor` of the mount.
    pub device: Option<String>,
    /// Comes when the session has ended, by whatever unmount.
    pub ended: oneshot::Receiver<()>,
}

/// Mounts, and waits until it answers.
pub(super) async fn mount(config: &MountConfig, path: &Path, engine: &Arc<Engine>) -> Result<Kernel, MountError> {
    let failed = |reason: String| MountError::Fuse { mountpoint: path.to_owned(), reason };
    let options = session_options(config);
    let passthrough = config.passthrough && survive_leases();
    let fs = SwampFs::new(Arc::clone(engine), Handle::current(), passthrough);
    let at = path.to_owned();
    let session = tokio::task::spawn_blocking(move || {
        if rustix::process::geteuid().is_root() {
            mount_as_root(fs, &at, &options)
        } else {
            Session::new(fs, &at, &options)
        }
    });
    let session = session.await.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(in_words(&e)))?;
    engine.attach_notifier(session.notifier());
    let mut session = session.spawn().map_err(|e| failed(e.to_string()))?;
    let (sender, ended) = oneshot::channel();
    let guard = std::mem::replace(&mut session.guard, std::thread::spawn(|| Ok(())));
    // fuser would unmount by path when this is dropped, whatever is mounted there by then; we unmount by device.
    std::mem::forget(session);
    std::thread::spawn(move || {
        match guard.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!("the kernel session ended: {error}"),
            Err(_) => tracing::error!("the kernel session panicked"),
        }
        // Nobody waits any more when the process is ending anyway.
        let _ending = sender.send(());
    });
    let device = mountinfo::at(path).map_err(|e| failed(e.to_string()))?.map(|mounted| mounted.device);
    let at = path.to_owned();
    let answer = tokio::time::timeout(PATIENCE, tokio::task::spawn_blocking(move || std::fs::metadata(at))).await;
    let problem = match answer {
        Ok(Ok(Ok(_))) => return Ok(Kernel { device, ended }),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("it did not answer within {} s", PATIENCE.as_secs()),
    };
    if let Err(error) = unmount::detach(path, device.as_deref()) {
        tracing::error!("{error}");
    }
    Err(failed(format!("the mount does not answer: {problem}")))
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
    session.n_threads = Some(std::thread::available_parallelism().map_or(2, |n| n.get()));
    session.clone_fd = true;
    session
}

fn mount_as_root(fs: SwampFs, path: &Path, config: &fuser::Config) -> std::io::Result<Session<SwampFs>> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
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
    if !matches!(config.acl, SessionACL::Owner) {
        data.push_str(",allow_other");
    }
    let data = std::ffi::CString::new(data)?;
    rustix::mount::mount(source.as_str(), path, mountinfo::OUR_TYPE, flags, data.as_c_str())?;
    let session = Session::from_fd(fs, OwnedFd::from(device), config.acl, config.clone());
    if session.is_err()
        && let Err(error) = unmount::detach(path, None)
    {
        tracing::error!("{error}");
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
