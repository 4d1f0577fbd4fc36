//! What can go wrong on request: rules that match requests and say what happens to them, and gates that hold requests.
//!
//! Independent of the protocol; the HTTP layer asks [`Faults::take`] once per request.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// What happens to a request that a rule matches.
#[derive(Clone, Debug)]
pub enum Action {
    /// It waits before it is served.
    Delay(Duration),
    /// It has no effect and is answered with this status and the service's usual error code for it.
    Status(u16),
    /// It has no effect and is answered with this status and body (a proxy's page, say).
    Answer(u16, String),
    /// It has no effect and is never answered.
    Stall,
    /// It has its effect, but the connection is closed instead of an answer.
    LoseAnswer,
    /// It has its effect, and is then answered with this status.
    StatusAfterEffect(u16),
    /// The answer's body breaks off after so many bytes.
    CutBody(usize),
    /// The answer's body stops after so many bytes, and nothing more ever comes.
    StallBody(usize),
    /// `If-Match` and `If-None-Match` are ignored.
    IgnoreConditions,
    /// It waits at a gate before it has its effect.
    Hold(Gate),
    /// It waits at a gate after its effect, before the answer.
    HoldAnswer(Gate),
}

/// Holds requests until the test lets them go: the way to order events without sleeping.
#[derive(Clone, Debug)]
pub struct Gate(Arc<(watch::Sender<usize>, watch::Sender<bool>)>);

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new((watch::Sender::new(0), watch::Sender::new(false))))
    }
}

impl Gate {
    /// Returns once `count` requests have come to the gate.
    pub async fn arrived(&self, count: usize) {
        // The sender lives in `self`, so that waiting cannot fail.
        let _ = self.0.0.subscribe().wait_for(|arrived| *arrived >= count).await;
    }

    /// The same from synchronous code.
    pub fn arrived_blocking(&self, count: usize) {
        let began = Instant::now();
        while *self.0.0.borrow() < count {
            assert!(began.elapsed() < Duration::from_secs(30), "no request came to the gate");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets all requests through, now and later.
    pub fn open(&self) {
        self.0.1.send_replace(true);
    }

    pub(super) async fn pass(&self) {
        self.0.0.send_modify(|arrived| *arrived += 1);
        let _ = self.0.1.subscribe().wait_for(|open| *open).await;
    }
}

type KeyPredicate = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// A rule: which requests, how often, what happens.
#[derive(Clone)]
pub struct Fault {
    operation: Option<String>,
    key: Option<KeyPredicate>,
    skip: usize,
    times: usize,
    action: Action,
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fault({:?}: {:?})", self.operation, self.action)
    }
}

impl Fault {
    /// On every request, for ever.
    pub fn any(action: Action) -> Self {
        Self { operation: None, key: None, skip: 0, times: usize::MAX, action }
    }

    /// On every request of one operation, by its S3 name (`PutObject`), for ever.
    pub fn on(operation: &str, action: Action) -> Self {
        Self { operation: Some(operation.to_owned()), ..Self::any(action) }
    }

    /// Only for this key.
    pub fn key(self, key: &str) -> Self {
        let wanted = key.to_owned();
        self.keys(move |key| key == wanted)
    }

    /// Only for keys that satisfy a predicate.
    pub fn keys(self, predicate: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        Self { key: Some(Arc::new(predicate)), ..self }
    }

    /// Only so many times.
    pub fn times(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// Not for the first so many requests that it matches.
    pub fn skip(self, skip: usize) -> Self {
        Self { skip, ..self }
    }
}

/// All rules in force.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(super) fn add(&self, fault: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Everything that happens to one request; counts.
    pub(super) fn take(&self, operation: &str, key: &str) -> Vec<Action> {
        let mut rules = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut actions = Vec::new();
        for rule in rules.iter_mut().filter(|rule| rule.times > 0) {
            let matches = rule.operation.as_deref().is_none_or(|wanted| wanted == operation)
                && rule.key.as_ref().is_none_or(|predicate| predicate(key));
            if !matches {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times = if rule.times == usize::MAX { usize::MAX } else { rule.times - 1 };
            actions.push(rule.action.clone());
        }
        actions
    }
}

/// One request that arrived.
#[derive(Clone, Debug)]
pub struct Record {
    pub method: String,
    /// S3 name of the operation, such as `GetObject`.
    pub operation: &'static str,
    pub key: String,
    pub range: Option<String>,
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub content_length: Option<u64>,
    /// `None` while it is served, and for ever when it is not answered.
    pub status: Option<u16>,
    pub arrived: Instant,
    /// When the answer's headers were ready.
    pub answered: Option<Instant>,
}
