//! control.sock: how other processes of the user ask a running mount for its status, a flush, or its end.
//!
//! Depends on `sync::status` for what is told. One request per connection: a line of JSON, answered by lines of JSON, the
//! last of which is the answer and those before it progress. Invariants: the socket lies in a directory that is closed to
//! others, and is itself 0600; a request that waits never keeps others from being answered.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::sync::status::{Pending, Status};

/// Name of the socket in the cache root.
pub const SOCKET_NAME: &str = "control.sock";

/// Time between two lines of progress.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// How long a client may take to send its request or to take an answer.
const CLIENT_PATIENCE: Duration = Duration::from_secs(5);

const LONGEST_REQUEST: u64 = 64 * 1024;

/// What may be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case")]
pub enum Request {
    /// How are things?
    Status,
    /// Answer when everything written before is in the bucket.
    Flush,
    /// Flush, unmount, end.
    Unmount {
        /// Milliseconds after which to unmount although not all is pushed.
        timeout_ms: Option<u64>,
    },
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "response", rename_all = "snake_case")]
pub enum Response {
    /// Work goes on.
    Progress {
        /// What is left.
        pending: Pending,
        /// Where the mount is on its way.
        phase: Phase,
    },
    /// To [`Request::Status`].
    Status {
        /// About the mount.
        status: Box<MountStatus>,
    },
    /// The request is done.
    Done,
    /// To [`Request::Unmount`]: unmounted, but this is left.
    Unpushed {
        /// What, and why.
        unpushed: Unpushed,
    },
    /// The request failed, and nothing changed.
    Failed {
        /// Why.
        message: String,
    },
}

/// Where a mount is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Known, but not to be used yet: the mount has not answered its own process.
    Mounting,
    /// Mounted and at work.
    Mounted,
    /// Asked to end: flushing before the unmount.
    Unmounting,
    /// No longer mounted: pushing the rest.
    Flushing,
}

/// What a mount tells about itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountStatus {
    /// Where it is mounted, or was; none for a flush without a mount.
    pub mountpoint: Option<String>,
    /// Where it is on its way.
    pub phase: Phase,
    /// Its cache root.
    pub cache_root: String,
    /// Its process: the one to signal.
    pub pid: u32,
    /// The process that does the work; the same when there is no supervisor.
    pub worker_pid: u32,
    /// How often the worker crashed and was started again.
    pub restarts: u32,
    /// How and when (UTC) the last crash happened.
    pub last_crash: Option<String>,
    /// When it started (UTC).
    pub started: String,
    /// Version of the program.
    pub version: String,
    /// Whether the mount was asked to be read-only.
    pub read_only: bool,
    /// What the engine tells.
    #[serde(flatten)]
    pub engine: Status,
}

/// Data that is only on this machine when a mount ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpushed {
    /// How much.
    pub pending: Pending,
    /// Why.
    pub reasons: Vec<String>,
    /// The cache root that keeps it.
    pub kept_in: String,
    /// The command that pushes it.
    pub push_with: String,
}

/// How a request to end went.
#[derive(Clone, Debug)]
pub enum UnmountOutcome {
    /// All is in the bucket.
    Pushed,
    /// Unmounted, but this is left.
    Unpushed(Unpushed),
    /// It stays mounted.
    Refused(String),
}

/// What answers requests.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Everything about the mount.
    fn status(&self) -> MountStatus;
    /// What is not in the bucket yet; cheap.
    fn pending(&self) -> Pending;
    /// Where the mount is on its way.
    fn phase(&self) -> Phase;
    /// Returns when everything written before the call is in the bucket.
    async fn flush(&self) -> Result<(), String>;
    /// Ends the mount.
    async fn unmount(&self, timeout: Option<Duration>) -> UnmountOutcome;
}

/// The listening side.
pub struct ControlServer {
    path: PathBuf,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<JoinSet<()>>,
}

impl ControlServer {
    /// Listens in the cache root, which the caller holds. Call it within a tokio runtime.
    pub fn start(root: &Path, service: Arc<dyn Service>) -> io::Result<Self> {
        let path = root.join(SOCKET_NAME);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = with_short_path(root, |short| UnixListener::bind(short))?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(listener, service, stopped));
        Ok(Self { path, stop, task })
    }

    /// Stops listening and removes the socket; connections go on. To be called while the cache root is still held.
    pub async fn close(self) -> OpenConnections {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
        // The task may be gone only if the runtime is.
        self.stop.send_replace(true);
        match self.task.await {
            Ok(connections) => OpenConnections(connections),
            Err(error) => {
                tracing::warn!("the control socket ended early: {error}");
                OpenConnections(JoinSet::new())
            }
        }
    }
}

/// Connections that still wait for their answer.
pub struct OpenConnections(JoinSet<()>);

impl OpenConnections {
    /// Lets them have their answers, for a moment.
    pub async fn finish(mut self) {
        let all = async { while self.0.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(2), all).await.is_err() {
            tracing::warn!("a client of the control socket did not take its answer");
        }
    }
}

async fn accept(listener: UnixListener, service: Arc<dyn Service>, mut stopped: watch::Receiver<bool>) -> JoinSet<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = stopped.changed() => return connections,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let service = Arc::clone(&service);
                    connections.spawn(async move {
                        if let Err(error) = serve(stream, service).await {
                            tracing::debug!("a client of the control socket went away: {error}");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!("cannot accept on the control socket: {error}");
                    // Out of descriptors, most likely: others must close theirs first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve(stream: UnixStream, service: Arc<dyn Service>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(LONGEST_REQUEST));
    tokio::time::timeout(CLIENT_PATIENCE, reader.read_line(&mut line)).await??;
    let request = match serde_json::from_str::<Request>(&line) {
        Ok(request) => request,
        Err(error) => {
            let message = format!("the request is not understood ({error}); is it of another version of swamp-mount?");
            return send(&mut write, &Response::Failed { message }).await;
        }
    };
    tracing::debug!("control request: {request:?}");
    let answer = async {
        match request {
            Request::Status => Response::Status { status: Box::new(service.status()) },
            Request::Flush => match service.flush().await {
                Ok(()) => Response::Done,
                Err(message) => Response::Failed { message },
            },
            Request::Unmount { timeout_ms } => match service.unmount(timeout_ms.map(Duration::from_millis)).await {
                UnmountOutcome::Pushed => Response::Done,
                UnmountOutcome::Unpushed(unpushed) => Response::Unpushed { unpushed },
                UnmountOutcome::Refused(message) => Response::Failed { message },
            },
        }
    };
    tokio::pin!(answer);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    ticks.tick().await;
    loop {
        tokio::select! {
            biased;
            response = &mut answer => return send(&mut write, &response).await,
            _ = ticks.tick() => {
                send(&mut write, &Response::Progress { pending: service.pending(), phase: service.phase() }).await?;
            }
        }
    }
}

async fn send(write: &mut (impl AsyncWriteExt + Unpin), response: &Response) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    tokio::time::timeout(CLIENT_PATIENCE, write.write_all(&line)).await?
}

/// Calls `with` a path to the socket that fits into a socket address (108 bytes), however long the cache root's is.
pub(super) fn with_short_path<T>(root: &Path, with: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let directory = File::open(root)?;
    with(&PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::client;
    use tokio::sync::Notify;

    struct Fake {
        go: Notify,
    }

    #[async_trait]
    impl Service for Fake {
        fn status(&self) -> MountStatus {
            MountStatus {
                mountpoint: Some("/mnt".into()),
                phase: Phase::Mounted,
                cache_root: "/c".into(),
                pid: 1,
                worker_pid: 2,
                restarts: 0,
                last_crash: None,
                started: String::new(),
                version: String::new(),
                read_only: false,
                engine: Status { entries: 5, ..Status::default() },
            }
        }
        fn pending(&self) -> Pending {
            Pending { files: 3, ..Pending::default() }
        }
        fn phase(&self) -> Phase {
            Phase::Unmounting
        }
        async fn flush(&self) -> Result<(), String> {
            self.go.notified().await;
            Ok(())
        }
        async fn unmount(&self, timeout: Option<Duration>) -> UnmountOutcome {
            UnmountOutcome::Refused(format!("{timeout:?}"))
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn requests_are_answered_with_progress_also_below_a_very_long_path() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("x".repeat(120)).join("y".repeat(120));
        std::fs::create_dir_all(&root).expect("made");
        let fake = Arc::new(Fake { go: Notify::new() });
        let server = ControlServer::start(&root, Arc::clone(&fake) as Arc<dyn Service>).expect("listens");
        let mode = std::fs::metadata(root.join(SOCKET_NAME)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        tokio::task::spawn_blocking(move || {
            // A flush waits until the first progress was seen; meanwhile the status is answered.
            let mut seen = Vec::new();
            let flushed = client::request(&root, &Request::Flush, |pending, phase| {
                if seen.is_empty() {
                    let status = client::status(&root).expect("answered");
                    assert_eq!((status.engine.entries, status.mountpoint.as_deref()), (5, Some("/mnt")));
                    fake.go.notify_one();
                }
                seen.push((pending.files, phase));
            });
            assert!(matches!(flushed, Ok(Response::Done)), "{flushed:?}");
            assert_eq!(seen.first(), Some(&(3, Phase::Unmounting)));
            match client::request(&root, &Request::Unmount { timeout_ms: Some(1500) }, |_, _| ()) {
                Ok(Response::Failed { message }) => assert_eq!(message, "Some(1.5s)"),
                other => panic!("{other:?}"),
            }
        })
        .await
        .expect("no panic");
        let connections = server.close().await;
        connections.finish().await;
    }
}
