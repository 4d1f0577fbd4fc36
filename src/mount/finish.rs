//! Getting everything into the bucket before the process ends, and telling those who wait for it.
//!
//! Depends on `control`, `signals` and the engine; used with a mount and without. Invariants: the first signal or request
//! never cuts a push short, a second SIGINT or SIGTERM or a deadline does; whoever asked for the end gets an answer, after
//! the cache root is free again.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::control::{ControlServer, MountStatus, Phase, Service, UnmountOutcome, Unpushed};
use super::instance::Instance;
use super::link::History;
use super::registry::Registration;
use super::signals::{Ending, Signals};
use super::supervisor::visible_pid;
use super::{End, MountError, client};
use crate::sync::engine::Engine;
use crate::sync::status::Pending;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// Somebody wants the mount to end.
pub(super) struct EndRequest {
    /// When to stop pushing.
    pub deadline: Option<Instant>,
    reply: oneshot::Sender<UnmountOutcome>,
}

/// What the control socket sees of a running engine.
pub(super) struct Desk {
    engine: Arc<Engine>,
    about: MountStatus,
    phase: Mutex<Phase>,
    requests: mpsc::UnboundedSender<EndRequest>,
}

impl Desk {
    pub fn set_phase(&self, phase: Phase) {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) = phase;
    }
}

#[async_trait]
impl Service for Desk {
    fn status(&self) -> MountStatus {
        MountStatus { engine: self.engine.status(), phase: self.phase(), ..self.about.clone() }
    }

    fn pending(&self) -> Pending {
        self.engine.pending()
    }

    fn phase(&self) -> Phase {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn flush(&self) -> Result<(), String> {
        self.engine.flush().await.map_err(|error| {
            let left = client::describe_pending(&error.pending);
            format!("not everything is in the bucket ({left} left): {}", error.reasons.join("; "))
        })
    }

    async fn unmount(&self, timeout: Option<Duration>) -> UnmountOutcome {
        let (reply, outcome) = oneshot::channel();
        let request = EndRequest { deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)), reply };
        // Too late to ask is no failure to end: the process is about to.
        match self.requests.send(request) {
            Ok(()) => outcome.await.unwrap_or_else(|_| UnmountOutcome::Refused("the mount is ending".to_owned())),
            Err(_) => UnmountOutcome::Refused("the mount is ending".to_owned()),
        }
    }
}

/// How long to go on after a push failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// One attempt, with the retries of the store.
    OneAttempt,
    /// Until all is pushed or somebody asks for the end.
    UntilPushed,
}

enum Event {
    Signal(Ending),
    Request(EndRequest),
    Deadline,
}

/// A running engine with the lock on its cache root and its control socket.
pub(super) struct Running {
    pub engine: Arc<Engine>,
    pub desk: Arc<Desk>,
    pub signals: Signals,
    pub requests: mpsc::UnboundedReceiver<EndRequest>,
    instance: Instance,
    control: ControlServer,
    waiters: Vec<oneshot::Sender<UnmountOutcome>>,
    /// A SIGINT or SIGTERM came before.
    hurried: bool,
}

impl Running {
    /// Opens the control socket for an engine that has started.
    pub fn new(
        engine: Arc<Engine>,
        instance: Instance,
        signals: Signals,
        mountpoint: Option<&Path>,
        read_only: bool,
        history: &History,
    ) -> Result<Self, MountError> {
        let (sender, requests) = mpsc::unbounded_channel();
        let phase = if mountpoint.is_some() { Phase::Mounting } else { Phase::Flushing };
        let about = MountStatus {
            mountpoint: mountpoint.map(|path| path.display().to_string()),
            phase,
            cache_root: instance.root().display().to_string(),
            pid: visible_pid(),
            worker_pid: std::process::id(),
            restarts: history.restarts,
            last_crash: history.last.clone(),
            started: super::utc_now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            read_only,
            engine: Default::default(),
        };
        let desk = Arc::new(Desk { engine: Arc::clone(&engine), about, phase: Mutex::new(phase), requests: sender });
        let service: Arc<dyn Service> = Arc::clone(&desk) as _;
        let control = ControlServer::start(instance.root(), service)
            .map_err(MountError::io("listen on the control socket in", instance.root()))?;
        Ok(Self { engine, desk, signals, requests, instance, control, waiters: Vec::new(), hurried: false })
    }

    /// The cache root.
    pub fn root(&self) -> &Path {
        self.instance.root()
    }

    /// Takes note of a signal: whether it is one too many.
    pub fn note(&mut self, signal: Ending) -> bool {
        let again = self.hurried && signal != Ending::Hangup;
        self.hurried = true;
        again
    }

    /// Remembers who waits for the end.
    pub fn wait_for_end(&mut self, request: EndRequest) {
        self.waiters.push(request.reply);
    }

    /// Tells all who wait that the mount stays.
    pub fn refuse(&mut self, message: &str) {
        for waiter in self.waiters.drain(..) {
            // A client that went away needs no answer.
            let _gone = waiter.send(UnmountOutcome::Refused(message.to_owned()));
        }
    }

    /// Pushes everything; the reasons when it does not.
    pub async fn push(&mut self, mut deadline: Option<Instant>, mut patience: Patience) -> Result<(), Vec<String>> {
        let mut backoff = FIRST_BACKOFF;
        loop {
            let engine = Arc::clone(&self.engine);
            let attempt = engine.flush();
            tokio::pin!(attempt);
            let failure = loop {
                let event = tokio::select! {
                    biased;
                    result = &mut attempt => match result {
                        Ok(()) => return Ok(()),
                        Err(failure) => break failure,
                    },
                    event = self.event(deadline) => event,
                };
                self.handle(event, &mut deadline, &mut patience)?;
            };
            if patience == Patience::OneAttempt {
                return Err(failure.reasons);
            }
            tracing::warn!(
                "{} not in the bucket yet ({}); trying again in {} s",
                client::describe_pending(&failure.pending),
                failure.reasons.join("; "),
                backoff.as_secs()
            );
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                event = self.event(deadline) => self.handle(event, &mut deadline, &mut patience)?,
            }
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    async fn event(&mut self, deadline: Option<Instant>) -> Event {
        let passed = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            signal = self.signals.next() => Event::Signal(signal),
            Some(request) = self.requests.recv() => Event::Request(request),
            () = passed => Event::Deadline,
        }
    }

    fn handle(
        &mut self,
        event: Event,
        deadline: &mut Option<Instant>,
        patience: &mut Patience,
    ) -> Result<(), Vec<String>> {
        *patience = Patience::OneAttempt;
        match event {
            Event::Deadline => return Err(vec!["the time given for it is over".to_owned()]),
            Event::Signal(signal) if self.note(signal) => {
                return Err(vec![format!("stopped by a second signal ({})", signal.name())]);
            }
            Event::Signal(signal) => tracing::info!("{}: finishing the push first; once more stops it", signal.name()),
            Event::Request(request) => {
                *deadline = match (*deadline, request.deadline) {
                    (Some(one), Some(other)) => Some(one.min(other)),
                    (one, other) => one.or(other),
                };
                self.wait_for_end(request);
            }
        }
        Ok(())
    }

    /// Ends everything: engine, records, socket, lock, in this order; then answers those who wait.
    pub async fn end(self, pushed: Result<(), Vec<String>>, registration: Registration) -> End {
        let Self { engine, desk, instance, control, waiters, mut requests, .. } = self;
        requests.close();
        engine.close().await;
        let pending = engine.pending();
        let end = match pushed {
            Ok(()) => End::Pushed,
            Err(_) if pending == Pending::default() => End::Pushed,
            Err(reasons) => End::Unpushed(Unpushed {
                pending,
                reasons,
                kept_in: instance.root().display().to_string(),
                push_with: registration.flush_command().to_owned(),
            }),
        };
        registration.ended(pending);
        let connections = control.close().await;
        drop(instance);
        let outcome = match &end {
            End::Pushed => UnmountOutcome::Pushed,
            End::Unpushed(unpushed) => UnmountOutcome::Unpushed(unpushed.clone()),
        };
        let mut waiters = waiters;
        while let Ok(request) = requests.try_recv() {
            waiters.push(request.reply);
        }
        for waiter in waiters {
            // A client that went away needs no answer.
            let _gone = waiter.send(outcome.clone());
        }
        connections.finish().await;
        drop(desk);
        end
    }
}
