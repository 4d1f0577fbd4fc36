//! One mount from beginning to end: checks, lock, engine, kernel session, and whatever ends it.
//!
//! Puts everything together. Invariants: nothing stays mounted when the start fails; the cache root is held until all is
//! pushed or the user was told; the mount is only ever taken off by its own device, never something mounted over it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Resource;
use tokio::runtime::Runtime;

use super::control::Phase;
use super::daemon::Reporter;
use super::finish::{EndRequest, Patience, Running};
use super::headless::held_in_words;
use super::instance::Instance;
use super::kernel::{self, Kernel};
use super::link::Link;
use super::logging::{self, Voice};
use super::mountpoint::{self, Mountpoint};
use super::registry::Registration;
use super::signals::{Ending, Signals};
use super::supervisor::visible_pid;
use super::unmount::UnmountError;
use super::{End, MountError, store, unmount};
use crate::config::{EngineConfig, MountConfig, StoreConfig};
use crate::sync::engine::{Engine, EngineOptions};
use crate::tree::Incarnation;

/// How long a mountpoint may be busy for a moment (an indexer, a shell's prompt) before it counts as in use.
const BUSY_PATIENCE: Duration = Duration::from_secs(1);

/// How long the kernel session may take to end after the unmount.
const KERNEL_PATIENCE: Duration = Duration::from_secs(10);

/// Mounts, serves, and returns when everything has ended. With a link to a supervisor it may take a mount over instead.
pub fn run(config: &MountConfig, reporter: &mut Reporter, mut link: Option<Link>) -> Result<End, MountError> {
    let runtime = runtime()?;
    let end = runtime.block_on(serve(config, reporter, link.as_mut()));
    runtime.shutdown_timeout(Duration::from_secs(2));
    end
}

/// Every open or freshly fetched file holds a descriptor: the soft limit of 1024 is not enough for a busy mount.
fn raise_descriptor_limit() {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

pub(super) fn runtime() -> Result<Runtime, MountError> {
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(MountError::system("start the runtime"))
}

/// The log file of a mount: the given one, or `mount.log` in the cache root.
pub fn log_path(config: &MountConfig) -> PathBuf {
    config.log_file.clone().unwrap_or_else(|| config.cache.root.join("mount.log"))
}

pub(super) fn engine_options(
    root: &Path,
    store: &StoreConfig,
    engine: &EngineConfig,
    incarnation: Incarnation,
) -> EngineOptions {
    EngineOptions {
        cache_root: root.to_owned(),
        read_only: engine.read_only,
        refresh: engine.refresh,
        flush_after: engine.flush_after,
        flush_max_age: engine.flush_max_age,
        unsafe_no_conditional_writes: engine.unsafe_no_conditional_writes,
        fsync_waits_for_bucket: engine.fsync_waits_for_bucket,
        upload_concurrency: engine.upload_concurrency,
        download_concurrency: engine.download_concurrency,
        uid: engine.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
        gid: engine.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        umask: engine.umask,
        key_prefix_len: store.key_prefix_len(),
        cache_size: engine.cache_size,
        host: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        incarnation,
    }
}

async fn serve(config: &MountConfig, reporter: &mut Reporter, mut link: Option<&mut Link>) -> Result<End, MountError> {
    let signals = match &link {
        Some(link) => Signals::from_supervisor(&link.socket),
        None => Signals::listen(),
    };
    let mut signals = signals.map_err(MountError::system("listen to signals"))?;
    let resumes = link.as_ref().is_some_and(|link| link.resumes());
    let history = link.as_ref().map(|link| link.history.clone()).unwrap_or_default();
    let (place, instance, engine) = tokio::select! {
        biased;
        prepared = prepare(config, reporter, link.as_deref()) => prepared?,
        // Who takes a mount over ends it in order, when it has it.
        signal = signals.next(), if !resumes => {
            return Err(MountError::Background(format!("ended by {} before the mount was ready", signal.name())));
        }
    };
    let path = place.path.clone();
    let running = Running::new(Arc::clone(&engine), instance, signals, Some(&path), config.engine.read_only, &history)?;
    // Before it can be seen: whoever sees it may ask for its status.
    let registration = Registration::new(running.root(), &config.cache, &config.store, Some(&path));
    let kernel = match kernel::mount(config, place, &engine, link.as_deref_mut()).await {
        Ok(kernel) => kernel,
        Err(error) => {
            engine.close().await;
            registration.ended(engine.pending());
            return Err(error);
        }
    };
    engine.spawn_background();
    running.desk.set_phase(Phase::Mounted);
    let mut mounted = Mounted { running, kernel, path };
    let ready = chdir_to_root().and_then(|()| reporter.ready(&log_path(config))).and_then(|()| match link {
        Some(link) => link.ready(config).map_err(MountError::system("tell the supervisor")),
        None => Ok(()),
    });
    if let Err(error) = ready {
        mounted.take_off_for_good().await;
        let pushed = mounted.running.push(None, Patience::OneAttempt).await;
        mounted.running.end(pushed, registration).await;
        return Err(error);
    }
    tracing::info!("mounted {} at {} (process {})", config.store, mounted.path.display(), visible_pid());
    let pushed = mounted.until_the_end().await;
    let end = mounted.running.end(pushed, registration).await;
    match &end {
        End::Pushed => tracing::info!("everything is in the bucket; done"),
        End::Unpushed(unpushed) => tracing::error!(
            "{} not in the bucket ({}); kept in {}; push it with: {}",
            super::client::describe_pending(&unpushed.pending),
            unpushed.reasons.join("; "),
            unpushed.kept_in,
            unpushed.push_with
        ),
    }
    Ok(end)
}

/// Everything that can fail or take long before the kernel is involved.
async fn prepare(
    config: &MountConfig,
    reporter: &mut Reporter,
    link: Option<&Link>,
) -> Result<(Mountpoint, Instance, Arc<Engine>), MountError> {
    let checked = match link.and_then(|link| link.kept.as_ref()) {
        // It is mounted, and a look at it would wait for this process.
        Some(kept) => Mountpoint { path: kept.path.clone(), directory: None, notice: None },
        None => mountpoint::check(config)?,
    };
    let source = config.store.to_string();
    let instance = held_in_words(Instance::acquire(&config.cache, &source, Some(&checked.path)))?;
    if config.foreground && config.log_file.is_none() {
        logging::to_stderr(Voice::Mount, config.verbosity);
    } else {
        logging::to_file(logging::open(&log_path(config))?, Voice::Mount, config.verbosity);
    }
    if let Some(notice) = &checked.notice {
        reporter.notice(notice);
    }
    let datastore = store::open(&config.store).await?;
    let incarnation = link.map(|link| link.incarnation).unwrap_or_default();
    let options = engine_options(instance.root(), &config.store, &config.engine, incarnation);
    let engine = Engine::start(options, datastore.clone()).await?;
    if incarnation.number == 0
        && engine.status().offline_since.is_none()
        && let Some(warning) = store::foreign_owner(&datastore).await
    {
        tracing::warn!("{warning}");
        reporter.notice(&warning);
    }
    Ok((checked, instance, engine))
}

/// The working directory of a mount must not keep another file system busy.
fn chdir_to_root() -> Result<(), MountError> {
    std::env::set_current_dir("/").map_err(MountError::io("change to", "/"))
}

async fn take_off(path: &Path, device: Option<&str>, lazily: bool) -> Result<(), UnmountError> {
    let (at, device) = (path.to_owned(), device.map(str::to_owned));
    let unmounting = tokio::task::spawn_blocking(move || {
        if lazily { unmount::detach(&at, device.as_deref()) } else { unmount::unmount(&at, device.as_deref()) }
    });
    let reason =
        |e: tokio::task::JoinError| UnmountError::Failed { mountpoint: path.to_owned(), reason: e.to_string() };
    unmounting.await.map_err(reason)?
}

struct Mounted {
    running: Running,
    kernel: Kernel,
    path: PathBuf,
}

impl Mounted {
    /// Serves until the mount ends; then pushes. Returns how the last push went.
    async fn until_the_end(&mut self) -> Result<(), Vec<String>> {
        loop {
            tokio::select! {
                biased;
                _ = &mut self.kernel.ended => return self.after_unmount().await,
                signal = self.running.signals.next() => return self.on_signal(signal).await,
                Some(request) = self.running.requests.recv() => {
                    if let Some(pushed) = self.on_request(request).await {
                        return pushed;
                    }
                }
            }
        }
    }

    /// Somebody unmounted: go on until all is pushed, and hold the cache root meanwhile.
    async fn after_unmount(&mut self) -> Result<(), Vec<String>> {
        self.running.desk.set_phase(Phase::Flushing);
        // The session can also end by an abort of the connection, which leaves a dead mount.
        self.take_off_for_good().await;
        tracing::info!(
            "{} was unmounted; {} to be pushed before this process ends",
            self.path.display(),
            super::client::describe_pending(&self.running.engine.pending())
        );
        self.running.push(None, Patience::UntilPushed).await
    }

    async fn on_signal(&mut self, signal: Ending) -> Result<(), Vec<String>> {
        self.running.note(signal);
        tracing::info!("{}: flushing and unmounting", signal.name());
        self.running.desk.set_phase(Phase::Unmounting);
        let flushed = self.running.push(None, Patience::OneAttempt).await;
        match take_off(&self.path, self.kernel.device.as_deref(), false).await {
            Ok(()) => self.session_ended().await,
            Err(error) => {
                tracing::warn!("{error}; what is open there will fail from now on");
                self.take_off_for_good().await;
            }
        }
        self.push_the_rest(flushed, None).await
    }

    /// `None` when the mount stays.
    async fn on_request(&mut self, request: EndRequest) -> Option<Result<(), Vec<String>>> {
        let deadline = request.deadline;
        self.running.wait_for_end(request);
        self.running.desk.set_phase(Phase::Unmounting);
        let flushed = self.running.push(deadline, Patience::OneAttempt).await;
        let busy_until = tokio::time::Instant::now() + BUSY_PATIENCE;
        loop {
            match take_off(&self.path, self.kernel.device.as_deref(), false).await {
                Ok(()) => break,
                Err(UnmountError::Busy { .. }) if tokio::time::Instant::now() < busy_until => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(error) => {
                    let state = match &flushed {
                        Ok(()) => "everything written so far is in the bucket".to_owned(),
                        Err(reasons) => format!("not everything is in the bucket ({})", reasons.join("; ")),
                    };
                    tracing::warn!("not unmounted: {error}");
                    self.running.desk.set_phase(Phase::Mounted);
                    self.running.refuse(&format!("{error}\nIt stays mounted; {state}."));
                    return None;
                }
            }
        }
        self.session_ended().await;
        Some(self.push_the_rest(flushed, deadline).await)
    }

    /// What was written between the flush and the unmount.
    async fn push_the_rest(
        &mut self,
        flushed: Result<(), Vec<String>>,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<(), Vec<String>> {
        flushed?;
        self.running.desk.set_phase(Phase::Flushing);
        let at_least = tokio::time::Instant::now() + Duration::from_secs(2);
        self.running.push(deadline.map(|deadline| deadline.max(at_least)), Patience::OneAttempt).await
    }

    async fn session_ended(&mut self) {
        if tokio::time::timeout(KERNEL_PATIENCE, &mut self.kernel.ended).await.is_err() {
            tracing::warn!("the kernel session goes on after the unmount: the file system is still in use elsewhere");
        }
    }

    async fn take_off_for_good(&mut self) {
        if let Err(error) = take_off(&self.path, self.kernel.device.as_deref(), true).await {
            tracing::error!("{error}");
        }
    }
}
