//! The distributed lock: taking it, keeping it, noticing that it is gone, giving it back.
//!
//! Depends on `store`. Invariants: only the store's clock or our own monotonic clock decides that a lock is stale, never a
//! wall clock; a [`HeldLock`] stops vouching for itself ([`HeldLock::check`]) no later than one time to live after its last
//! confirmed renewal; a conditional write of the lock is never repeated without looking.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::lock_abandoned as abandoned;
use super::lock_body::{LockBody, LockStatus};
use super::names::LOCK_KEY;
use super::timestamp;
use crate::store::{
    Fingerprint, GetRequest, ObjectStore, Precondition, PutRequest, StoreError, StoreErrorKind, get_bytes,
};

/// Why there is no lock (any more).
#[derive(Clone, Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error(
        "the datastore's lock {key:?} is held by {holder}, and was not free within {} s; try again, or, if that process is gone, run `swamp-mount lock release SOURCE --force`",
        .waited.as_secs()
    )]
    Busy {
        /// The lock object.
        key: String,
        /// Who and since when.
        holder: String,
        /// For how long we tried.
        waited: Duration,
    },
    /// We held it.
    #[error("the datastore's lock was lost: {0}")]
    Lost(String),
    /// A forced release named another lock.
    #[error("the lock was not released: its nonce is {found:?} and not {expected:?}; look at it again")]
    NonceDiffers {
        /// What was asked for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// It changed between the look and the forced release.
    #[error("the lock was not released: it was renewed or taken by another process meanwhile; look at it again")]
    ChangedMeanwhile,
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl LockError {
    /// Whether trying again later makes sense.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Busy { .. } | Self::Lost(_) => true,
            Self::Store(error) => error.is_transient() || error.kind == StoreErrorKind::Undecided,
            _ => false,
        }
    }
}

/// How to take the lock, and as whom.
#[derive(Clone, Debug)]
pub struct LockOptions {
    /// The lock object.
    pub key: String,
    /// How long it lives without a renewal.
    pub ttl: Duration,
    /// How long to wait for another holder.
    pub wait: Duration,
    /// `user@host`.
    pub holder: String,
    /// This host.
    pub hostname: String,
    /// This process.
    pub pid: u32,
}

impl Default for LockOptions {
    /// 30 s to live, 60 s of patience (or `SWAMP_LOCK_TIMEOUT_MS`), in the name of this process.
    fn default() -> Self {
        let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let user = ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok()).filter(|user| !user.is_empty());
        let user = user.unwrap_or_else(|| rustix::process::getuid().as_raw().to_string());
        let wait = std::env::var("SWAMP_LOCK_TIMEOUT_MS").ok().and_then(|text| text.trim().parse().ok());
        Self {
            key: LOCK_KEY.to_owned(),
            ttl: Duration::from_secs(30),
            wait: wait.map_or(Duration::from_secs(60), Duration::from_millis),
            holder: format!("{user}@{hostname}"),
            hostname,
            pid: std::process::id(),
        }
    }
}

impl LockOptions {
    fn body(&self, nonce: &str) -> LockBody {
        LockBody {
            holder: self.holder.clone(),
            hostname: self.hostname.clone(),
            pid: u64::from(self.pid),
            acquired_at: timestamp::format_nanos(timestamp::now_nanos()),
            ttl_ms: u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX),
            nonce: nonce.to_owned(),
        }
    }
}

/// Takes one lock object (a datastore has one or two: [`Datastore::lock`](super::Datastore::lock)): waits for its holder, takes over a stale one, and keeps it until it is released.
///
/// # Errors
/// [`LockError::Busy`] names the holder.
pub async fn acquire(store: Arc<dyn ObjectStore>, options: &LockOptions) -> Result<HeldLock, LockError> {
    acquire_as(store, options, new_nonce()).await
}

/// What tells one holding of a lock from others.
pub(super) fn new_nonce() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The same with a nonce of the caller's.
pub(super) async fn acquire_as(
    store: Arc<dyn ObjectStore>,
    options: &LockOptions,
    nonce: String,
) -> Result<HeldLock, LockError> {
    let start = Instant::now();
    let mut watched: Option<Watched> = None;
    let mut pause = Duration::from_secs(1);
    loop {
        let asked = Instant::now();
        let undecided = match create(&*store, &options.key, &options.body(&nonce)).await {
            Ok(()) => return Ok(HeldLock::new(store, options.clone(), nonce, asked)),
            Err(error) if error.is_precondition() => false,
            Err(error) if error.kind == StoreErrorKind::Undecided => true,
            Err(error) => return Err(error.into()),
        };
        let Some(status) = look(&*store, &options.key).await? else {
            watched = None;
            if undecided && start.elapsed() >= options.wait {
                let message = "the answer to taking the lock was lost, and there is no lock";
                return Err(StoreError::new(StoreErrorKind::Undecided, "write", &options.key, message).into());
            }
            sleep(jittered(Duration::from_millis(50))).await;
            continue;
        };
        if status.body.as_ref().is_some_and(|body| body.nonce == nonce) {
            return Ok(HeldLock::new(store, options.clone(), nonce, asked));
        }
        if let Some(own) = status.body.as_ref().map(|body| &body.nonce).filter(|nonce| abandoned::contains(nonce)) {
            match store.delete(&options.key, status.fingerprint.as_ref()).await {
                Err(error) if !error.is_not_found() => tracing::info!(%error, "an earlier lock of ours is still there"),
                _ => {
                    abandoned::forget(own);
                    continue;
                }
            }
        }
        if start.elapsed() >= options.wait {
            let (key, holder) = (options.key.clone(), status.holder());
            return Err(LockError::Busy { key, holder, waited: options.wait });
        }
        if status.is_stale() || unchanged_for_ttl(&status, &mut watched) {
            tracing::warn!(holder = status.holder(), "taking over a stale lock");
            if let Err(error) = store.delete(&options.key, status.fingerprint.as_ref()).await {
                tracing::info!(%error, "the stale lock was not removed; somebody else may have been faster");
            }
            watched = None;
            sleep(Duration::from_millis(fastrand::u64(200..=500))).await;
            continue;
        }
        sleep(jittered(pause).min(options.wait.saturating_sub(start.elapsed()))).await;
        pause = (pause.mul_f64(1.2)).min(Duration::from_secs(3));
    }
}

fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// One renewal of a lock, and since when we have seen no other.
struct Watched {
    fingerprint: Option<Fingerprint>,
    last_modified: Option<OffsetDateTime>,
    nonce: String,
    since: Instant,
}

/// Whether we have watched this very lock for its whole time to live, by our own clock.
fn unchanged_for_ttl(status: &LockStatus, watched: &mut Option<Watched>) -> bool {
    let Some(body) = &status.body else {
        *watched = None;
        return false;
    };
    match watched {
        Some(seen)
            if seen.fingerprint == status.fingerprint
                && seen.last_modified == status.last_modified
                && seen.nonce == body.nonce =>
        {
            status.fingerprint.is_some() && seen.since.elapsed() > body.ttl()
        }
        _ => {
            *watched = Some(Watched {
                fingerprint: status.fingerprint.clone(),
                last_modified: status.last_modified,
                nonce: body.nonce.clone(),
                since: Instant::now(),
            });
            false
        }
    }
}

async fn create(store: &dyn ObjectStore, key: &str, body: &LockBody) -> Result<(), StoreError> {
    let request = PutRequest::json(key, Bytes::from(body.to_bytes()), Precondition::Absent);
    store.put(request).await.map(|_| ())
}

async fn look(store: &dyn ObjectStore, key: &str) -> Result<Option<LockStatus>, StoreError> {
    match get_bytes(store, GetRequest::whole(key), 1 << 20).await {
        Ok(None) => Ok(None),
        Ok(Some((info, bytes))) => Ok(Some(LockStatus {
            body: LockBody::parse(&bytes),
            raw: String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).into_owned(),
            fingerprint: info.fingerprint,
            last_modified: info.last_modified,
            server_date: info.server_date,
        })),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
struct Standing {
    /// When the last confirmed write of the lock was sent.
    confirmed: Instant,
    lost: Option<String>,
}

/// A lock that we hold, with a task that renews it.
pub struct HeldLock {
    store: Arc<dyn ObjectStore>,
    options: LockOptions,
    nonce: String,
    standing: Arc<Mutex<Standing>>,
    stop: Arc<Notify>,
    heartbeat: Option<JoinHandle<()>>,
    /// The lock that was taken before this one, and is released after it.
    outer: Option<Box<HeldLock>>,
}

impl std::fmt::Debug for HeldLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeldLock({} {})", self.options.key, self.nonce)
    }
}

fn locked(standing: &Mutex<Standing>) -> MutexGuard<'_, Standing> {
    standing.lock().unwrap_or_else(PoisonError::into_inner)
}

impl HeldLock {
    fn new(store: Arc<dyn ObjectStore>, options: LockOptions, nonce: String, confirmed: Instant) -> Self {
        let standing = Arc::new(Mutex::new(Standing { confirmed, lost: None }));
        let stop = Arc::new(Notify::new());
        let heartbeat =
            tokio::spawn(heartbeat(store.clone(), options.clone(), nonce.clone(), standing.clone(), stop.clone()));
        Self { store, options, nonce, standing, stop, heartbeat: Some(heartbeat), outer: None }
    }

    /// Ties a lock to the one that was taken before it: both vouch, and both are released.
    pub(super) fn inside(mut self, outer: HeldLock) -> Self {
        self.outer = Some(Box::new(outer));
        self
    }

    /// Whether we can still vouch for the lock: call it right before every write that it protects.
    ///
    /// # Errors
    /// [`LockError::Lost`] when it is gone, or was not confirmed for its time to live.
    pub fn check(&self) -> Result<(), LockError> {
        if let Some(outer) = &self.outer {
            outer.check()?;
        }
        let standing = locked(&self.standing);
        if let Some(reason) = &standing.lost {
            return Err(LockError::Lost(reason.clone()));
        }
        let unconfirmed = standing.confirmed.elapsed();
        if unconfirmed > self.options.ttl {
            let reason = format!("it could not be renewed for {} s", unconfirmed.as_secs());
            return Err(LockError::Lost(reason));
        }
        Ok(())
    }

    /// The nonce that tells this lock from others.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Finds out whether the store honours conditions: a second create-only write of the lock must fail. `false` when it
    /// was done.
    ///
    /// # Errors
    /// When the answer stays open.
    pub async fn prove_conditions(&self) -> Result<bool, StoreError> {
        // One that succeeds may have met no lock: somebody took it over to whom it was stale. The next one meets ours again.
        for _ in 0..3 {
            match create(&*self.store, &self.options.key, &self.options.body(&self.nonce)).await {
                Err(error) if error.is_precondition() => return Ok(true),
                answer => answer.map(drop)?,
            }
        }
        Ok(false)
    }

    /// Gives the lock back, as well as that is possible; what fails is logged, and the time to live covers it.
    pub async fn release(mut self) {
        let outer = self.outer.take();
        self.release_this().await;
        if let Some(mut outer) = outer {
            outer.release_this().await;
        }
    }

    async fn release_this(&mut self) {
        self.stop.notify_one();
        if let Some(mut heartbeat) = self.heartbeat.take() {
            // Let a renewal that is on its way end, or it may land on the next holder's lock.
            if timeout(self.options.ttl / 3, &mut heartbeat).await.is_err() {
                heartbeat.abort();
            }
        }
        if locked(&self.standing).lost.is_some() {
            return;
        }
        for _ in 0..3 {
            match self.delete_ours().await {
                Ok(()) => return,
                // Renewed meanwhile, or gone without an answer: the next look tells.
                Err(error) if error.is_precondition() || error.kind == StoreErrorKind::Undecided => {}
                Err(error) => {
                    tracing::warn!(%error, "the lock was not released; it goes stale by itself");
                    return abandoned::remember(&self.nonce);
                }
            }
        }
        tracing::warn!("the lock was not released because it keeps changing; it goes stale by itself");
        abandoned::remember(&self.nonce);
    }

    async fn delete_ours(&self) -> Result<(), StoreError> {
        match look(&*self.store, &self.options.key).await? {
            Some(status) if status.body.as_ref().is_some_and(|body| body.nonce == self.nonce) => {
                match self.store.delete(&self.options.key, status.fingerprint.as_ref()).await {
                    Err(error) if error.is_not_found() => Ok(()),
                    other => other,
                }
            }
            Some(status) => {
                tracing::warn!(holder = status.holder(), "the lock belongs to somebody else and is left alone");
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Drop for HeldLock {
    fn drop(&mut self) {
        if let Some(heartbeat) = self.heartbeat.take() {
            heartbeat.abort();
            abandoned::remember(&self.nonce);
            tracing::warn!(
                key = self.options.key,
                "a lock was dropped without being released; it goes stale by itself"
            );
        }
    }
}

/// What one renewal showed.
enum Beat {
    Confirmed,
    Undecided(String),
    Lost(String),
}

async fn heartbeat(
    store: Arc<dyn ObjectStore>,
    options: LockOptions,
    nonce: String,
    standing: Arc<Mutex<Standing>>,
    stop: Arc<Notify>,
) {
    let period = options.ttl / 3;
    let mut pause = period;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            () = stop.notified() => return,
        }
        let sent = Instant::now();
        let beat = match timeout(period, renew(&*store, &options, &nonce)).await {
            Ok(beat) => beat,
            Err(_) => Beat::Undecided("the store did not answer in time".into()),
        };
        let mut standing = locked(&standing);
        pause = period;
        match beat {
            Beat::Confirmed => standing.confirmed = sent,
            Beat::Undecided(reason) if standing.confirmed.elapsed() > options.ttl => {
                tracing::warn!(reason, "the lock was not renewed for its time to live");
                standing.lost = Some(reason);
                return;
            }
            Beat::Undecided(reason) => {
                tracing::warn!(reason, "the lock was not renewed; trying again");
                pause = period / 4;
            }
            Beat::Lost(reason) => {
                tracing::warn!(reason, "the lock is lost");
                standing.lost = Some(reason);
                return;
            }
        }
    }
}

async fn renew(store: &dyn ObjectStore, options: &LockOptions, nonce: &str) -> Beat {
    let status = match look(store, &options.key).await {
        Ok(Some(status)) => status,
        Ok(None) => return Beat::Lost("the lock object is gone".into()),
        Err(error) => return Beat::Undecided(error.to_string()),
    };
    if status.body.as_ref().is_none_or(|body| body.nonce != nonce) {
        return Beat::Lost(format!("it was taken over by {}", status.holder()));
    }
    let bytes = Bytes::from(options.body(nonce).to_bytes());
    let precondition = status.fingerprint.map_or(Precondition::None, Precondition::Match);
    match store.put(PutRequest::json(&options.key, bytes, precondition)).await {
        Ok(_) => Beat::Confirmed,
        // Somebody wrote in between: the next look tells who.
        Err(error) => Beat::Undecided(error.to_string()),
    }
}

/// Looks at the lock.
///
/// # Errors
/// When it cannot be read; an absent lock is `None`.
pub async fn inspect(store: &dyn ObjectStore, key: &str) -> Result<Option<LockStatus>, LockError> {
    Ok(look(store, key).await?)
}

/// What a forced release found.
#[derive(Clone, Debug)]
pub enum ForceReleased {
    /// There was no lock.
    Absent,
    /// This lock was removed.
    Released(LockStatus),
}

/// Removes the lock whoever holds it, if it (still) has the expected nonce when one is given.
///
/// # Errors
/// When it has another nonce, or changes meanwhile.
pub async fn force_release(
    store: &dyn ObjectStore,
    key: &str,
    expected_nonce: Option<&str>,
) -> Result<ForceReleased, LockError> {
    let Some(status) = look(store, key).await? else { return Ok(ForceReleased::Absent) };
    if let Some(expected) = expected_nonce {
        let found = status.body.as_ref().map_or("", |body| &body.nonce);
        if found != expected {
            return Err(LockError::NonceDiffers { expected: expected.to_owned(), found: found.to_owned() });
        }
    }
    match store.delete(key, status.fingerprint.as_ref()).await {
        Ok(()) => Ok(ForceReleased::Released(status)),
        Err(error) if error.is_precondition() => Err(LockError::ChangedMeanwhile),
        Err(error) if error.is_not_found() => Ok(ForceReleased::Absent),
        Err(error) => Err(error.into()),
    }
}
