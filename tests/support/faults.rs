//! What can go wrong on request: rules that match requests and say what happens to them, gates that hold requests, bodies
//! that end badly, and the record of what arrived.
//!
//! Independent of the protocol; the HTTP layer of the test servers asks [`Faults::take`] once per request.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::header::HeaderValue;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::watch;

use super::weather::Weather;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

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
    /// The connection breaks after so many bytes of the request's body.
    CutRequest(usize),
    /// Conditions are ignored.
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

    pub async fn pass(&self) {
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

    /// On every request of one operation, by the name that S3 has for it (`PutObject`) whatever the protocol, for ever.
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

/// All rules in force, and the weather.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<Fault>>, Mutex<Option<Arc<Weather>>>);

impl Faults {
    pub fn add(&self, fault: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    /// Removes the rules.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Faults at random from now on, or no more of them.
    pub fn set_weather(&self, weather: Option<Arc<Weather>>) {
        *self.1.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }

    /// Everything that happens to one request; counts.
    pub fn take(&self, operation: &str, key: &str) -> Vec<Action> {
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
        drop(rules);
        let weather = self.1.lock().unwrap_or_else(PoisonError::into_inner).clone();
        actions.extend(weather.into_iter().flat_map(|weather| weather.take(operation, key)));
        actions
    }
}

/// One request that arrived.
#[derive(Clone, Debug)]
pub struct Record {
    pub method: String,
    /// Name of the operation, such as `GetObject`.
    pub operation: &'static str,
    pub key: String,
    pub range: Option<String>,
    /// Whether there were credentials.
    pub authorized: bool,
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    pub content_length: Option<u64>,
    /// `None` while it is served, and for ever when it is not answered.
    pub status: Option<u16>,
    pub arrived: Instant,
    /// When the answer's headers were ready.
    pub answered: Option<Instant>,
}

/// A body that ends badly.
pub struct Damaged<B> {
    inner: B,
    left: usize,
    stalls: bool,
    flushed: bool,
    broke: Arc<AtomicBool>,
}

impl<B> Damaged<B> {
    pub fn new(inner: B, left: usize, stalls: bool) -> Self {
        Self { inner, left, stalls, flushed: false, broke: Arc::default() }
    }

    /// Whether it has broken off, for whoever hands it on.
    pub fn broke(&self) -> Arc<AtomicBool> {
        self.broke.clone()
    }
}

impl<B> http_body::Body for Damaged<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.left == 0 {
            if self.stalls {
                return Poll::Pending;
            }
            if !self.flushed {
                // Once more around, so that what came before is sent before the connection is closed.
                self.flushed = true;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.broke.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err("the body breaks off on purpose".into())));
        }
        let left = self.left;
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(mut data) => {
                    data.truncate(left);
                    self.left -= data.len();
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Err(frame) => Poll::Ready(Some(Ok(frame))),
            },
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A time as the `Date` header has it.
pub fn http_date(time: OffsetDateTime) -> HeaderValue {
    let format =
        format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT");
    HeaderValue::from_str(&time.format(&format).expect("a date can be written")).expect("a date is a header")
}

pub fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
