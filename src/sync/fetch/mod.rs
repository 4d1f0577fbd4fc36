//! Fetch: brings missing bytes of a content here, once for all who wait, always of one version.
//!
//! Invariants: the first answer pins the version, every later request carries it; a range counts as present only after
//! its bytes are in the file; a whole content counts as complete only after its hash was compared, where the index has one.

mod answers;
mod failure;
mod pieces;
mod stream;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;

use super::hash::{digest, hex};
use super::pace::{Place, Urgency};
use super::{Engine, FetchError};
use crate::cache::rows::Version;
use crate::datastore::names::is_rewritten_in_place;
use crate::store::Body;
use crate::volume::{FetchState, LiveContent, MustStore, Room};
use answers::expected_hash;
use failure::{Failure, broken_off};
use pieces::{LINGER, Piece};
pub(super) use stream::Blocks;
pub use stream::Served;

/// Files up to this size are fetched whole and shown only when their hash fits.
pub const SMALL: u64 = 4 << 20;
/// Largest range of one request.
const REQUEST_MAX: u64 = 8 << 20;
/// Bytes that are worth hashing while others arrive.
const HASH_STEP: u64 = 1 << 20;
/// How often a body that breaks off without a new byte is asked for again.
const BREAKS: u32 = 3;

impl Engine {
    /// Whether a read of that range needs no request.
    pub fn is_here(live: &LiveContent, range: &Range<u64>) -> bool {
        is_here(&live.state(), range)
    }

    /// Waits until a range is here (clipped to the content's size).
    ///
    /// # Errors
    /// When it cannot be had; the reason was noted.
    pub async fn ensure(self: &Arc<Self>, live: &Arc<LiveContent>, range: Range<u64>) -> Result<(), FetchError> {
        let _use = self.volume.in_use(live);
        self.check_reachable(live, &range)?;
        let size = live.state().version.as_ref().map_or(u64::MAX, |v| v.entry.size);
        let mut waiting = live.wait_for(range.start.min(size)..range.end.min(size));
        let seen = live.state().failure.0;
        loop {
            if self.request(live, &range, seen, Urgency::Awaited)? {
                return Ok(());
            }
            if self.read_in_contact(waiting.woken()).await?.is_err() {
                return Err(FetchError::Failed("the fetch was abandoned".into()));
            }
        }
    }

    /// Waits until the whole content is here, to be written or pushed: `--cache-size` does not count.
    ///
    /// # Errors
    /// As [`Engine::ensure`].
    pub async fn ensure_all(self: &Arc<Self>, live: &Arc<LiveContent>) -> Result<(), FetchError> {
        let _stored = MustStore::new(live);
        self.ensure_whole(live).await
    }

    /// Waits until the whole content is here.
    pub(super) async fn ensure_whole(self: &Arc<Self>, live: &Arc<LiveContent>) -> Result<(), FetchError> {
        self.ensure_for(live, Urgency::Awaited).await
    }

    /// The same for a file that nobody has asked for yet.
    pub(super) async fn ensure_ahead(self: &Arc<Self>, live: &Arc<LiveContent>) -> Result<(), FetchError> {
        self.ensure_for(live, Urgency::Ahead).await
    }

    async fn ensure_for(self: &Arc<Self>, live: &Arc<LiveContent>, urgency: Urgency) -> Result<(), FetchError> {
        let _use = self.volume.in_use(live);
        if !live.is_complete() {
            self.check_reachable(live, &(0..u64::MAX))?;
        }
        let mut progress = live.watch();
        let seen = live.state().failure.0;
        loop {
            let size = live.state().version.as_ref().map_or(0, |v| v.entry.size);
            self.request(live, &(0..size), seen, urgency)?;
            if live.is_complete() {
                return Ok(());
            }
            if self.read_in_contact(progress.changed()).await?.is_err() {
                return Err(FetchError::Failed("the fetch was abandoned".into()));
            }
        }
    }

    pub(super) fn check_reachable(&self, live: &LiveContent, range: &Range<u64>) -> Result<(), FetchError> {
        match self.cut_off() {
            Some(reason) if !is_here(&live.state(), range) => {
                self.note_read_error(&self.name_of(live), &reason);
                Err(FetchError::Unreachable(reason.into()))
            }
            _ => Ok(()),
        }
    }

    /// Starts what is missing of a range without waiting for it.
    pub fn fetch_ahead(self: &Arc<Self>, live: &Arc<LiveContent>, range: Range<u64>) {
        let seen = live.state().failure.0;
        // A failure here is noted by its task, and met again by the read that needs the bytes.
        if let Err(error) = self.request(live, &range, seen, Urgency::Ahead) {
            tracing::debug!(%error, "fetch ahead");
        }
    }

    /// `true` when the range is here; else makes sure that requests for its gaps are under way.
    fn request(
        self: &Arc<Self>,
        live: &Arc<LiveContent>,
        range: &Range<u64>,
        seen: u64,
        urgency: Urgency,
    ) -> Result<bool, FetchError> {
        if Self::is_here(live, range) {
            return Ok(true);
        }
        let mut start = Vec::new();
        {
            let mut state = live.state();
            let Some(version) = state.version.clone() else {
                return Err(FetchError::Failed("nothing says where the bytes are".into()));
            };
            let size = version.entry.size;
            if is_here(&state, range) {
                return Ok(true);
            }
            let whole = shown_whole(&state, size);
            let wanted = if whole { 0..size } else { range.start.min(size)..range.end.min(size) };
            let gaps = state.present.gaps(&wanted);
            if state.version_gone {
                return Err(FetchError::Stale);
            }
            let mut parts: Vec<_> = gaps.into_iter().flat_map(|gap| not_in_flight(gap, &state.in_flight)).collect();
            // Somebody else's failure is ours only if what we wait for is not under way any more.
            if state.failure.0 > seen && (!parts.is_empty() || state.in_flight.is_empty()) {
                let reason = state.failure.1.as_deref().unwrap_or("failed");
                return Err(FetchError::new(reason, state.cause));
            }
            if state.in_flight.is_empty() && parts.is_empty() {
                // All is here but not compared with the hash yet (an earlier process ended before it could), or the entry
                // says that there is nothing and the object decides.
                parts.push(0..0);
            }
            for gap in parts {
                let first = version.fingerprint.is_none();
                if first && state.pinning {
                    break;
                }
                state.pinning |= first;
                state.in_flight.push(gap.clone());
                start.push(gap);
            }
        }
        for gap in start {
            let (engine, live) = (Arc::clone(self), Arc::clone(live));
            tokio::spawn(async move { engine.run(live, gap, urgency).await });
        }
        Ok(false)
    }

    async fn run(self: Arc<Self>, live: Arc<LiveContent>, range: Range<u64>, urgency: Urgency) {
        let result = match self.make_room(&live, range.end - range.start).await {
            Ok(()) => self.fetch_resolving(&live, &range, urgency).await,
            Err(failure) => Err(failure),
        };
        let whole = {
            let mut state = live.state();
            state.pinning = false;
            let size = state.version.as_ref().map_or(0, |v| v.entry.size);
            let last = state.in_flight.iter().all(|r| *r == range);
            result.is_ok() && !state.complete && state.present.contains(&(0..size)) && last
        };
        let result = match result {
            Ok(()) if whole => self.complete(&live).await,
            Ok(()) => {
                hash_on(&live);
                Ok(())
            }
            failed => failed,
        };
        live.state().in_flight.retain(|r| *r != range);
        // Somebody who came meanwhile asks for what is missing by himself.
        if let Err(failure) = result
            && !matches!(failure, Failure::Abandoned)
        {
            let (reason, cause) = failure.into_reason();
            self.note_failure(&live, &reason, cause);
            let mut state = live.state();
            state.failure = (state.failure.0 + 1, Some(reason.into()));
            state.cause = cause;
        }
        live.announce();
        self.volume.fetched(&live);
    }

    pub(super) fn name_of(&self, live: &LiveContent) -> String {
        self.volume.path_of(live.ino).unwrap_or_else(|| format!("(removed file {})", live.ino.0))
    }

    async fn make_room(&self, live: &Arc<LiveContent>, bytes: u64) -> Result<(), Failure> {
        if bytes == 0 {
            return Ok(());
        }
        let (volume, content) = (Arc::clone(&self.volume), Arc::clone(live));
        // Evicting removes files.
        let room = tokio::task::spawn_blocking(move || volume.make_room(&content, bytes)).await;
        self.tell_kernel(self.volume.take_eviction_notices());
        match room {
            Ok(Room::Made) => Ok(()),
            Ok(Room::None) => Err(Failure::NoRoom("there is no room for it in the cache".to_owned())),
            Err(error) => Err(Failure::Failed(format!("making room failed: {error}"))),
        }
    }

    /// Fetches; when the bucket contradicts the index, reads the index again before that is believed.
    async fn fetch_resolving(
        self: &Arc<Self>,
        live: &Arc<LiveContent>,
        range: &Range<u64>,
        urgency: Urgency,
    ) -> Result<(), Failure> {
        let (mut resolves, mut breaks) = (0, 0);
        let mut todo = range.clone();
        loop {
            let (version, before) = {
                let state = live.state();
                let Some(version) = state.version.clone() else {
                    return Err(Failure::Failed("nothing says where the bytes are".into()));
                };
                if range.is_empty() && version.entry.size > 0 {
                    return Ok(());
                }
                (version, state.present.total())
            };
            let place = self.download(urgency).await?;
            let fetched = self.fetch_once(live, &version, todo.clone(), urgency).await;
            drop(place);
            let (reason, replaced) = match fetched {
                Err(Failure::Contradiction(reason)) => (reason, false),
                Err(Failure::Replaced(reason)) => (reason, true),
                Err(Failure::Broken(reason)) => {
                    let (now, gaps) = {
                        let state = live.state();
                        (state.present.total(), state.present.gaps(range))
                    };
                    breaks = if now > before { 1 } else { breaks + 1 };
                    match gaps.into_iter().next() {
                        Some(gap) if breaks < BREAKS => todo = gap,
                        Some(_) => return Err(Failure::Unreachable(reason)),
                        None => return Ok(()),
                    }
                    tracing::debug!(reason, breaks, "a body broke off; the rest is asked for again");
                    tokio::time::sleep(Duration::from_millis(100) * breaks).await;
                    continue;
                }
                other => return other,
            };
            resolves += 1;
            if self.resolve(live, &version, reason, replaced, resolves).await? {
                todo = range.clone();
            }
        }
    }

    /// Waits until one more download may be made.
    async fn download(&self, urgency: Urgency) -> Result<Place, Failure> {
        self.downloads.place(urgency).await.ok_or_else(|| Failure::Failed("the mount is ending".to_owned()))
    }

    async fn fetch_once(
        &self,
        live: &Arc<LiveContent>,
        version: &Version,
        range: Range<u64>,
        urgency: Urgency,
    ) -> Result<(), Failure> {
        let abandoned = || urgency == Urgency::Ahead && live.handles() == 0;
        if abandoned() {
            return Err(Failure::Abandoned);
        }
        let (sent, mut body) = self.answer(live, version, range).await?;
        let (mut piece, mut unhashed) = (Piece::at(live, sent.start), 0);
        loop {
            let next = match piece.is_empty() {
                true => Ok(body.next().await),
                false => tokio::time::timeout(LINGER, body.next()).await,
            };
            let (due, ended) = match next {
                Ok(Some(Ok(chunk))) => (piece.push(chunk), None),
                Ok(Some(Err(error))) => (true, Some(Err(Failure::in_body(error)))),
                Ok(None) if piece.end() < sent.end => {
                    (true, Some(Err(Failure::Broken(broken_off(version, piece.end(), sent.end)))))
                }
                Ok(None) => (true, Some(Ok(()))),
                Err(_) => (true, None),
            };
            if !due {
                continue;
            }
            unhashed += piece.write()?;
            crate::fail_point!("fetch.after_chunk");
            if let Some(ended) = ended {
                return ended;
            }
            if unhashed >= HASH_STEP {
                // At the end nobody is to wait for more than the last bytes.
                hash_on(live);
                unhashed = 0;
            }
            if piece.end() < sent.end && abandoned() {
                return Err(Failure::Abandoned);
            }
        }
    }

    /// All ranges are here: compares the hash and declares the content complete.
    async fn complete(&self, live: &Arc<LiveContent>) -> Result<(), Failure> {
        if let Some(expected) = expected_hash(live) {
            let content = Arc::clone(live);
            let (size, round) = {
                let state = live.state();
                (state.version.as_ref().map_or(0, |v| v.entry.size), state.round)
            };
            let hashed = move || content.hashed.finish(&content.file, size, round);
            let found = tokio::task::spawn_blocking(hashed).await.map_err(std::io::Error::other).flatten();
            let found = found.map_err(|error| Failure::Failed(format!("cannot read the cache: {error}")))?;
            let found = hex(&found);
            if !found.eq_ignore_ascii_case(&expected) {
                return Err(self.wrong_hash(live, &found, &expected).await);
            }
        }
        crate::fail_point!("fetch.before_complete");
        self.volume.fetch_completed(live);
        crate::fail_point!("fetch.after_complete");
        Ok(())
    }
}

/// Hashes what has arrived from the beginning on, while the rest arrives.
fn hash_on(live: &Arc<LiveContent>) {
    if expected_hash(live).is_none() {
        return;
    }
    let live = Arc::clone(live);
    let arrived = |live: &LiveContent| {
        let state = live.state();
        let size = state.version.as_ref().map_or(0, |v| v.entry.size);
        (state.present.gaps(&(0..size)).first().map_or(size, |gap| gap.start), state.round)
    };
    // Nobody waits for it; what fails here fails again when all is compared.
    drop(tokio::task::spawn_blocking(move || {
        let (mut upto, round) = arrived(&live);
        loop {
            if let Err(error) = live.hashed.advance(&live.file, upto, round) {
                return tracing::debug!(%error, "hashing what has arrived");
            }
            // More may have come meanwhile, and whoever brought it found this one at it.
            match arrived(&live) {
                (further, same) if same == round && further >= upto + HASH_STEP => upto = further,
                _ => return,
            }
        }
    }));
}

async fn hash_of(body: Body) -> Result<String, Failure> {
    match digest(body).await {
        Ok(digests) => Ok(digests.sha256),
        Err(error) => Err(Failure::Failed(format!("cannot read the cache: {error}"))),
    }
}

/// Whether a content that is here may be older than its object although the index has not changed.
pub fn may_change_unnoticed(live: &LiveContent) -> bool {
    let state = live.state();
    state.complete && state.version.as_ref().is_some_and(|v| is_rewritten_in_place(&v.key))
}

/// Whether nobody sees a byte before all are here and compared with the hash.
pub(super) fn shown_whole(state: &FetchState, size: u64) -> bool {
    size <= SMALL || state.verify_first
}

fn is_here(state: &FetchState, range: &Range<u64>) -> bool {
    let Some(size) = state.version.as_ref().map(|v| v.entry.size) else { return state.complete };
    let wanted = range.start.min(size)..range.end.min(size);
    // The read that would make the file whole waits until the hash was compared.
    let part = || state.present.contains(&wanted) && !state.present.contains(&(0..size));
    state.complete || (!shown_whole(state, size) && part())
}

/// The parts of a gap that no request is under way for, cut to the size of one request.
fn not_in_flight(gap: Range<u64>, in_flight: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut busy = crate::cache::RangeSet::default();
    in_flight.iter().for_each(|r| busy.insert(r.clone()));
    let mut parts = Vec::new();
    for free in busy.gaps(&gap) {
        let mut at = free.start;
        while at < free.end {
            let end = free.end.min(at + REQUEST_MAX);
            parts.push(at..end);
            at = end;
        }
    }
    parts
}
