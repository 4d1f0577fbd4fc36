//! How far a content is fetched: which bytes are here, who fetches which of the others, and who waits for them.
//!
//! Depends on values of `cache`, `bell` and `primitives` only, so that `tests/interleavings` can run through the orders in which
//! readers and transfers meet. Invariants: no byte is claimed twice at a time; before the version is pinned one claim is
//! given out; bytes of another version than the pinned one are never present; the content is complete only when all bytes
//! of one version are present; whoever waits is woken by every end of a transfer and by all of his bytes being present.

use std::ops::Range;
use std::sync::Arc;

use crate::bell::Bell;
use crate::cache::RangeSet;
use crate::cache::rows::Version;
use crate::primitives::{Mutex, MutexGuard, Place};
use crate::store::Fingerprint;

/// Files up to this size are fetched whole and shown only when their hash fits.
pub const SMALL: u64 = 4 << 20;
/// Largest range of one request.
const REQUEST_MAX: u64 = 8 << 20;

/// Why a fetch failed, as far as it matters to those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// Nothing answers.
    Unreachable,
    /// There is no room to store the bytes.
    NoRoom,
    /// Anything else.
    Other,
}

/// How far a content is fetched.
#[derive(Debug)]
pub struct FetchState {
    /// What is fetched: key, entry and, from the first answer on, the fingerprint that pins the version.
    pub version: Option<Version>,
    /// All bytes are here.
    pub complete: bool,
    /// state.db knows that it is complete and the bytes are durable.
    pub recorded: bool,
    /// Which bytes are here, unless complete.
    pub present: RangeSet,
    /// Bytes of this version were shown that are not in the file.
    pub streamed: bool,
    /// The version is gone from the bucket: what is here can be read, the rest never.
    pub version_gone: bool,
    /// Bytes with another hash came before: nothing is shown until all is compared.
    pub verify_first: bool,
    /// How often all bytes were forgotten, to be fetched anew.
    pub round: u64,
    pub(super) in_flight: Vec<Claim>,
    /// Number of the claim whose answer decides the version.
    pub(super) pinning: Option<u64>,
    pub(super) claims: u64,
    /// How many transfers failed, and why the last one did.
    pub(super) failures: (u64, Option<(Arc<str>, FailureCause)>),
    pub(super) waiting: Vec<Arc<Waiter>>,
}

/// The right and the duty to fetch a range. It counts as under way until [`Fetch::landed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    number: u64,
    /// Which bytes; none where only the hash is to be compared, or the object decides about the size.
    pub range: Range<u64>,
}

/// What somebody who wants bytes has to do.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Claimed {
    /// Nothing: they are here.
    Here,
    /// Fetch these, and wait.
    Fetch(Vec<Claim>),
}

/// Why bytes cannot be had.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nothing says where they are.
    Unknown,
    /// The version is gone.
    Gone,
    /// A transfer that he waited for failed.
    Failed(Arc<str>, FailureCause),
}

#[derive(Debug)]
pub(super) struct Waiter {
    range: Range<u64>,
    bell: Bell,
}

/// Somebody waits for bytes; until it is dropped.
#[derive(Debug)]
pub struct Waiting<'a> {
    fetch: &'a Fetch,
    waiter: Arc<Waiter>,
    /// Failures that were there before he came.
    seen: u64,
}

impl FetchState {
    /// Of a content whose bytes are all here and known to state.db.
    pub(super) fn complete(version: Option<Version>) -> Self {
        Self { complete: true, recorded: true, ..Self::partial(version, RangeSet::default()) }
    }

    /// Of a content of which `present` is here.
    pub(super) fn partial(version: Option<Version>, present: RangeSet) -> Self {
        Self {
            version,
            complete: false,
            recorded: false,
            present,
            streamed: false,
            version_gone: false,
            verify_first: false,
            round: 0,
            in_flight: Vec::new(),
            pinning: None,
            claims: 0,
            failures: (0, None),
            waiting: Vec::new(),
        }
    }

    /// Whether requests are under way.
    pub fn is_fetched(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether nobody sees a byte before all are here and compared with the hash.
    pub fn shown_whole(&self) -> bool {
        self.size() <= SMALL || self.verify_first
    }

    /// Whether a read of that range needs no request.
    pub fn is_here(&self, range: &Range<u64>) -> bool {
        if self.complete || self.version.is_none() {
            return self.complete;
        }
        // The read that would make the file whole waits until the hash was compared.
        !self.shown_whole() && self.present.contains(&self.clip(range)) && !self.has_all()
    }

    /// Nothing that is here counts any more, nor what is on its way.
    pub fn forget(&mut self) {
        self.round += 1;
        self.present = RangeSet::default();
        if let Some(version) = &mut self.version {
            version.fingerprint = None;
        }
    }

    /// The same bytes are to be had elsewhere, and from there alone.
    pub fn move_to(&mut self, version: Version) {
        self.forget();
        self.version = Some(version);
    }

    fn size(&self) -> u64 {
        self.version.as_ref().map_or(0, |version| version.entry.size)
    }

    fn clip(&self, range: &Range<u64>) -> Range<u64> {
        range.start.min(self.size())..range.end.min(self.size())
    }

    fn has_all(&self) -> bool {
        self.present.contains(&(0..self.size()))
    }

    /// What somebody has to do who wants a range and knew of `seen` failures when he came.
    fn claim(&mut self, range: &Range<u64>, seen: u64) -> Result<Claimed, Refused> {
        if self.is_here(range) {
            return Ok(Claimed::Here);
        }
        let Some(version) = &self.version else { return Err(Refused::Unknown) };
        let pinned = version.fingerprint.is_some();
        if self.version_gone {
            return Err(Refused::Gone);
        }
        let wanted = if self.shown_whole() { 0..self.size() } else { self.clip(range) };
        let mut parts = self.not_in_flight(&wanted);
        // Somebody else's failure is ours only if what we wait for is not under way any more.
        if self.failures.0 > seen && (!parts.is_empty() || self.in_flight.is_empty()) {
            let unknown = || ("failed".into(), FailureCause::Other);
            let (reason, cause) = self.failures.1.clone().unwrap_or_else(unknown);
            return Err(Refused::Failed(reason, cause));
        }
        if self.in_flight.is_empty() && parts.is_empty() {
            // All is here but not compared with the hash yet (an earlier process ended before it could), or the entry
            // says that there is nothing and the object decides.
            parts.push(0..0);
        }
        if !pinned {
            parts.truncate(usize::from(self.pinning.is_none()));
        }
        let claims: Vec<Claim> = parts
            .into_iter()
            .map(|range| {
                self.claims += 1;
                Claim { number: self.claims, range }
            })
            .collect();
        if !pinned && let Some(first) = claims.first() {
            self.pinning = Some(first.number);
        }
        self.in_flight.extend(claims.iter().cloned());
        Ok(Claimed::Fetch(claims))
    }

    /// The missing parts of a range that no request is under way for, cut to the size of one request.
    fn not_in_flight(&self, wanted: &Range<u64>) -> Vec<Range<u64>> {
        let mut here_or_busy = self.present.clone();
        self.in_flight.iter().for_each(|claim| here_or_busy.insert(claim.range.clone()));
        let mut parts = Vec::new();
        for free in here_or_busy.gaps(wanted) {
            let mut at = free.start;
            while at < free.end {
                let end = free.end.min(at + REQUEST_MAX);
                parts.push(at..end);
                at = end;
            }
        }
        parts
    }

    fn release(&mut self, claim: &Claim) {
        self.in_flight.retain(|other| other.number != claim.number);
        self.pinning.take_if(|number| *number == claim.number);
    }
}

/// See the module.
#[derive(Debug)]
pub struct Fetch(Mutex<FetchState>);

impl Fetch {
    pub(super) fn new(state: FetchState) -> Self {
        Self(Mutex::new(Place::Content, state))
    }

    /// The state. Never held across a wait.
    pub fn state(&self) -> MutexGuard<'_, FetchState> {
        self.0.lock()
    }

    /// To wait for bytes.
    pub fn wait_for(&self, range: Range<u64>) -> Waiting<'_> {
        let waiter = Arc::new(Waiter { range, bell: Bell::default() });
        let mut state = self.state();
        state.waiting.push(Arc::clone(&waiter));
        Waiting { fetch: self, waiter, seen: state.failures.0 }
    }

    /// For somebody who does not wait: what he has to fetch.
    ///
    /// # Errors
    /// When the bytes cannot be had.
    pub fn claim(&self, range: &Range<u64>) -> Result<Claimed, Refused> {
        let mut state = self.state();
        let seen = state.failures.0;
        state.claim(range, seen)
    }

    /// A request was answered with bytes of this version, which is pinned, or is the one that was. Returns the round that the
    /// bytes belong to; `None`: another version is pinned.
    pub fn answered(&self, fingerprint: Option<Fingerprint>) -> Option<u64> {
        let round = {
            let mut state = self.state();
            if let Some(fingerprint) = fingerprint {
                if let Some(now) = &mut state.version
                    && *now.fingerprint.get_or_insert_with(|| fingerprint.clone()) != fingerprint
                {
                    return None;
                }
                state.pinning = None;
            }
            state.round
        };
        self.announce();
        Some(round)
    }

    /// Bytes are in the file now: those who have all of theirs go on, and nobody else is woken. `false`: they belong to a
    /// round that was forgotten, and do not count.
    #[must_use]
    pub fn arrived(&self, range: Range<u64>, round: u64) -> bool {
        let served: Vec<Arc<Waiter>> = {
            let mut state = self.state();
            if state.round != round {
                return false;
            }
            state.present.insert(range.clone());
            state.recorded = false;
            let touched = |waiter: &&Arc<Waiter>| waiter.range.start < range.end && range.start < waiter.range.end;
            let served = |waiter: &&Arc<Waiter>| state.present.contains(&state.clip(&waiter.range));
            state.waiting.iter().filter(touched).filter(served).cloned().collect()
        };
        served.iter().for_each(|waiter| waiter.bell.ring());
        true
    }

    /// Whether somebody waits for bytes of which the last are among these.
    pub fn ends_a_wait(&self, range: &Range<u64>) -> bool {
        let state = self.state();
        state
            .waiting
            .iter()
            .map(|waiter| state.clip(&waiter.range).end)
            .any(|end| range.start < end && end <= range.end)
    }

    /// A transfer has brought its bytes. `Some`: they were the last ones, and whoever made it compares them all; the round of
    /// all bytes.
    pub fn brought(&self, claim: &Claim) -> Option<u64> {
        let mut state = self.state();
        let last = state.in_flight.iter().all(|other| other.number == claim.number);
        if last && !state.complete && state.has_all() {
            return Some(state.round);
        }
        // Within the same lock, so that of two which end together one is the last.
        state.release(claim);
        None
    }

    /// All bytes of a round were compared. `false`: it was forgotten meanwhile.
    pub(super) fn compared(&self, round: u64) -> bool {
        let mut state = self.state();
        if state.round != round {
            return false;
        }
        state.complete = true;
        state.recorded = false;
        true
    }

    /// A transfer has ended; those who waited for it meet its failure.
    pub fn landed(&self, claim: &Claim, failure: Option<(Arc<str>, FailureCause)>) {
        {
            // Within one lock: who comes later must neither wait for what has ended nor meet its failure.
            let mut state = self.state();
            state.release(claim);
            if failure.is_some() {
                state.failures = (state.failures.0 + 1, failure);
            }
        }
        self.announce();
    }

    /// Wakes everybody who waits: the state changed otherwise than by bytes.
    fn announce(&self) {
        let waiting = self.state().waiting.clone();
        waiting.iter().for_each(|waiter| waiter.bell.ring());
    }
}

impl Waiting<'_> {
    /// What is to be done now.
    ///
    /// # Errors
    /// When the bytes cannot be had.
    pub fn claim(&self) -> Result<Claimed, Refused> {
        self.fetch.state().claim(&self.waiter.range, self.seen)
    }

    /// Returns when another [`Waiting::claim`] may have another answer than the last one.
    pub async fn woken(&self) {
        self.waiter.bell.heard().await;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.fetch.state().waiting.retain(|waiter| !Arc::ptr_eq(waiter, &self.waiter));
    }
}
