//! The request policy: a deadline per attempt, bounded retries, and what may be sent twice.
//!
//! Depends on the store's error type only; backends run every request through [`RequestPolicy::run`] and hand out every
//! body through [`RequestPolicy::guard`]. Invariants: a write whose repetition could do harm is never sent again once an
//! earlier attempt may have had an effect ([`StoreErrorKind::Undecided`] instead); nothing ever waits for the network
//! longer than `timeout` without progress.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::{ByteStream, StoreError, StoreErrorKind};

/// No pause between attempts is (much) longer than this, whatever the policy says.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Counts the answers of a store that asked for patience (503, 429), retried or not. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Refusals(Arc<AtomicU64>);

impl Refusals {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// When something last came from a store. Clones share it.
#[derive(Clone, Debug)]
pub struct Heard(Arc<Mutex<Instant>>);

impl Default for Heard {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Heard {
    /// How long ago that was; at first, since when there is somebody to listen.
    pub fn ago(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Something came.
    pub fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// How patient a backend is with a request.
#[derive(Clone, Debug)]
pub struct RequestPolicy {
    /// Longest wait without progress in one attempt: for the answer, or for the next bytes of a body.
    pub timeout: Duration,
    /// Attempts in total; at least one is made.
    pub attempts: u32,
    /// Pause before the second attempt; it grows threefold for each further one, ±25 %.
    pub first_backoff: Duration,
    /// What the store refused for now.
    pub refusals: Refusals,
    /// When it last answered, or sent bytes.
    pub heard: Heard,
}

impl Default for RequestPolicy {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            attempts: 3,
            first_backoff: Duration::from_millis(500),
            refusals: Refusals::default(),
            heard: Heard::default(),
        }
    }
}

/// Whether a request may be repeated when nobody knows whether an earlier attempt took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Replay {
    /// Doing it twice is the same as doing it once.
    Harmless,
    /// The repetition would be judged against the effect of the first attempt: conditional writes.
    Dangerous,
}

/// A request, for the policy and for messages.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Call<'a> {
    /// Operation, such as `read`.
    pub operation: &'static str,
    /// Key, relative.
    pub key: &'a str,
    /// Whether it may be repeated blindly.
    pub replay: Replay,
    /// Time that the store needs for the work itself, on top of the timeout (server-side copies).
    pub allowance: Duration,
}

impl<'a> Call<'a> {
    /// A request that may be repeated.
    pub fn harmless(operation: &'static str, key: &'a str) -> Self {
        Self { operation, key, replay: Replay::Harmless, allowance: Duration::ZERO }
    }

    /// A request that must not be repeated blindly if `conditional`.
    pub fn write(operation: &'static str, key: &'a str, conditional: bool) -> Self {
        let replay = if conditional { Replay::Dangerous } else { Replay::Harmless };
        Self { replay, ..Self::harmless(operation, key) }
    }

    /// Adds time for work inside the store.
    pub fn allow(self, allowance: Duration) -> Self {
        Self { allowance, ..self }
    }
}

/// How one attempt failed.
#[derive(Debug)]
pub(in crate::store) struct Failure {
    /// What to report if this was the last attempt.
    pub error: StoreError,
    /// Whether it is certain that the request had no effect.
    pub no_effect: bool,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        // A store that asks for patience has not done the work; nor has this machine when it failed before sending.
        let no_effect = matches!(error.kind, StoreErrorKind::Throttled | StoreErrorKind::Local);
        Self { error, no_effect }
    }
}

/// When an attempt last moved; shared between the attempt and its deadline.
#[derive(Clone, Debug)]
pub(in crate::store) struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Notes that bytes moved.
    pub fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns once nothing has moved for `timeout`.
    async fn stalled(&self, timeout: Duration) {
        loop {
            let deadline = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + timeout;
            if Instant::now() >= deadline {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

impl RequestPolicy {
    /// Makes attempts until one succeeds, one fails for good, or the policy is exhausted.
    pub(in crate::store) async fn run<T, F, Fut>(&self, call: Call<'_>, mut attempt: F) -> Result<T, StoreError>
    where
        F: FnMut(Progress) -> Fut,
        Fut: Future<Output = Result<T, Failure>>,
    {
        let mut made = 0;
        loop {
            made += 1;
            let progress = Progress::new();
            let timeout = self.timeout + call.allowance;
            let outcome = tokio::select! {
                outcome = attempt(progress.clone()) => outcome,
                () = progress.stalled(timeout) => Err(Failure { error: self.timed_out(call, timeout), no_effect: false }),
            };
            let failure = match outcome {
                Ok(value) => {
                    self.heard.note();
                    return Ok(value);
                }
                Err(failure) => failure,
            };
            if !matches!(failure.error.kind, StoreErrorKind::Unreachable | StoreErrorKind::Local) {
                self.heard.note();
            }
            if failure.error.kind == StoreErrorKind::Throttled {
                self.refusals.add();
            }
            if !failure.error.is_transient() {
                return Err(failure.error);
            }
            if call.replay == Replay::Dangerous && !failure.no_effect {
                return Err(undecided(failure.error));
            }
            if made >= self.attempts {
                return Err(failure.error);
            }
            let pause = self.pause(made);
            tracing::debug!(error = %failure.error, attempt = made, ?pause, "a request failed and is repeated");
            tokio::time::sleep(pause).await;
        }
    }

    /// Puts the deadline on every chunk of a body.
    pub(in crate::store) fn guard(&self, key: &str, body: ByteStream) -> ByteStream {
        let (timeout, heard) = (self.timeout, self.heard.clone());
        let begun = Some((body, key.to_owned()));
        Box::pin(futures_util::stream::unfold(begun, move |state| {
            let heard = heard.clone();
            async move {
                let (mut body, key) = state?;
                match tokio::time::timeout(timeout, body.next()).await {
                    Ok(Some(Ok(chunk))) => {
                        heard.note();
                        Some((Ok(chunk), Some((body, key))))
                    }
                    Ok(Some(Err(error))) => Some((Err(error), None)),
                    Ok(None) => None,
                    Err(_) => {
                        let message = format!("the body stalled: nothing arrived for {timeout:?}");
                        Some((Err(StoreError::new(StoreErrorKind::Unreachable, "read", &key, message)), None))
                    }
                }
            }
        }))
    }

    fn timed_out(&self, call: Call<'_>, timeout: Duration) -> StoreError {
        let message = format!("no answer within {timeout:?}");
        StoreError::new(StoreErrorKind::Unreachable, call.operation, call.key, message)
    }

    /// The pause after attempt number `made`, which counts from one.
    pub(in crate::store) fn pause(&self, made: u32) -> Duration {
        let growth = 3u32.saturating_pow(made.saturating_sub(1));
        self.first_backoff.saturating_mul(growth).min(LONGEST_PAUSE).mul_f64(0.75 + fastrand::f64() * 0.5)
    }
}

fn undecided(error: StoreError) -> StoreError {
    let message = format!("the request was sent but it is not known whether it took effect: {}", error.message);
    StoreError { kind: StoreErrorKind::Undecided, message, ..error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    fn policy() -> RequestPolicy {
        RequestPolicy {
            timeout: Duration::from_millis(50),
            attempts: 3,
            first_backoff: Duration::from_millis(1),
            ..RequestPolicy::default()
        }
    }

    fn failing(kind: StoreErrorKind) -> Failure {
        StoreError::new(kind, "write", "k", "because").into()
    }

    #[tokio::test]
    async fn only_transient_failures_are_repeated_and_only_where_harmless() {
        use StoreErrorKind::*;
        let cases = [
            (Server, Replay::Harmless, 3, Server),
            (Server, Replay::Dangerous, 1, Undecided),
            (Unreachable, Replay::Harmless, 3, Unreachable),
            (Unreachable, Replay::Dangerous, 1, Undecided),
            (Throttled, Replay::Harmless, 3, Throttled),
            (Throttled, Replay::Dangerous, 3, Throttled),
            (NotFound, Replay::Harmless, 1, NotFound),
            (Precondition, Replay::Dangerous, 1, Precondition),
            (Forbidden, Replay::Harmless, 1, Forbidden),
            (Local, Replay::Dangerous, 1, Local),
            (Other, Replay::Harmless, 1, Other),
        ];
        for (kind, replay, attempts, reported) in cases {
            let made = AtomicU32::new(0);
            let call = Call { replay, ..Call::harmless("write", "k") };
            let outcome: Result<(), _> = policy()
                .run(call, |_| {
                    made.fetch_add(1, Ordering::SeqCst);
                    async { Err(failing(kind)) }
                })
                .await;
            assert_eq!(outcome.unwrap_err().kind, reported, "{kind:?} {replay:?}");
            assert_eq!(made.load(Ordering::SeqCst), attempts, "{kind:?} {replay:?}");
        }
    }

    #[tokio::test]
    async fn a_connection_that_was_never_made_is_repeated_even_for_a_conditional_write() {
        let made = AtomicU32::new(0);
        let outcome: Result<(), _> = policy()
            .run(Call::write("write", "k", true), |_| {
                made.fetch_add(1, Ordering::SeqCst);
                async { Err(Failure { no_effect: true, ..failing(StoreErrorKind::Unreachable) }) }
            })
            .await;
        assert_eq!(outcome.unwrap_err().kind, StoreErrorKind::Unreachable);
        assert_eq!(made.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn progress_postpones_the_deadline_and_its_absence_ends_the_attempt() {
        let policy = RequestPolicy { timeout: Duration::from_millis(600), attempts: 1, ..RequestPolicy::default() };
        let moving: Result<(), _> = policy
            .run(Call::harmless("write", "k"), |progress| async move {
                for _ in 0..8 {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    progress.touch();
                }
                Ok(())
            })
            .await;
        assert!(moving.is_ok());
        let begun = Instant::now();
        let stuck: Result<(), _> = policy.run(Call::harmless("write", "k"), |_| std::future::pending()).await;
        assert_eq!(stuck.unwrap_err().kind, StoreErrorKind::Unreachable);
        assert!(begun.elapsed() >= policy.timeout);
    }

    #[test]
    fn pauses_grow_threefold_within_a_quarter() {
        let policy = RequestPolicy::default();
        for (made, expected) in [(1, 500.0), (2, 1500.0), (3, 4500.0)] {
            for _ in 0..100 {
                let pause = policy.pause(made).as_secs_f64() * 1000.0;
                assert!((expected * 0.749..=expected * 1.251).contains(&pause), "{made}: {pause}");
            }
        }
    }
}
