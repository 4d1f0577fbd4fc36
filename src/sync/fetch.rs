//! Fetch: brings missing bytes of a content here, once for all who wait, always of one version.
//!
//! Invariants: the first answer pins the version, every later request carries it; a range counts as present only after
//! its bytes are in the file; a whole content counts as complete only after its hash was compared, where the index has one.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::hash::digest;
use super::{Engine, FetchError};
use crate::cache::rows::Version;
use crate::datastore::names::is_rewritten_in_place;
use crate::store::{Body, Condition, Fetched, GetRequest, StoreError, StoreErrorKind};
use crate::volume::{FetchState, LiveContent, Notice};
use futures_util::StreamExt;

/// Files up to this size are fetched whole and shown only when their hash fits.
pub const SMALL: u64 = 4 << 20;
/// Largest range of one request.
const REQUEST_MAX: u64 = 8 << 20;
/// How often a fetch is tried again after the bucket said something else than the index.
const RESOLVES: u32 = 3;

/// How often a body that breaks off without a new byte is asked for again.
const BREAKS: u32 = 3;

enum Failure {
    /// The object is not what the index says; in words.
    Contradiction(String),
    /// The object is another upload than the one that was pinned.
    Replaced(String),
    /// The body ended early, or the connection did.
    Broken(String),
    Unreachable(String),
    Failed(String),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Precondition => Self::Replaced(error.to_string()),
            StoreErrorKind::NotFound | StoreErrorKind::RangeNotSatisfiable => Self::Contradiction(error.to_string()),
            StoreErrorKind::Unreachable => Self::Unreachable(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

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
        let mut progress = live.watch();
        let seen = live.state().failure.0;
        loop {
            if self.request(live, &range, seen)? {
                return Ok(());
            }
            if progress.changed().await.is_err() {
                return Err(FetchError::Failed("the fetch was abandoned".into()));
            }
        }
    }

    /// Waits until the whole content is here.
    ///
    /// # Errors
    /// As [`Engine::ensure`].
    pub async fn ensure_all(self: &Arc<Self>, live: &Arc<LiveContent>) -> Result<(), FetchError> {
        let _use = self.volume.in_use(live);
        if !live.is_complete() {
            self.check_reachable(live, &(0..u64::MAX))?;
        }
        let mut progress = live.watch();
        let seen = live.state().failure.0;
        loop {
            let size = live.state().version.as_ref().map_or(0, |v| v.entry.size);
            self.request(live, &(0..size), seen)?;
            if live.is_complete() {
                return Ok(());
            }
            if progress.changed().await.is_err() {
                return Err(FetchError::Failed("the fetch was abandoned".into()));
            }
        }
    }

    fn check_reachable(&self, live: &LiveContent, range: &Range<u64>) -> Result<(), FetchError> {
        match self.cut_off() {
            Some(reason) if !is_here(&live.state(), range) => {
                let path = self.volume.path_of(live.ino).unwrap_or_else(|| format!("(removed file {})", live.ino.0));
                self.note_read_error(&path, &reason);
                Err(FetchError::Unreachable(reason.into()))
            }
            _ => Ok(()),
        }
    }

    /// Starts what is missing of a range without waiting for it.
    pub fn fetch_ahead(self: &Arc<Self>, live: &Arc<LiveContent>, range: Range<u64>) {
        let seen = live.state().failure.0;
        // A failure here is noted by its task, and met again by the read that needs the bytes.
        if let Err(error) = self.request(live, &range, seen) {
            tracing::debug!(%error, "fetch ahead");
        }
    }

    /// `true` when the range is here; else makes sure that requests for its gaps are under way.
    fn request(self: &Arc<Self>, live: &Arc<LiveContent>, range: &Range<u64>, seen: u64) -> Result<bool, FetchError> {
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
                let reason = state.failure.1.clone().unwrap_or_else(|| "failed".into());
                return Err(if state.unreachable {
                    FetchError::Unreachable(reason)
                } else {
                    FetchError::Failed(reason)
                });
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
            tokio::spawn(async move { engine.run(live, gap).await });
        }
        Ok(false)
    }

    async fn run(self: Arc<Self>, live: Arc<LiveContent>, range: Range<u64>) {
        let result = self.fetch_resolving(&live, &range).await;
        let whole = {
            let mut state = live.state();
            state.pinning = false;
            let size = state.version.as_ref().map_or(0, |v| v.entry.size);
            let last = state.in_flight.iter().all(|r| *r == range);
            result.is_ok() && !state.complete && state.present.contains(&(0..size)) && last
        };
        let result = if whole { self.complete(&live).await } else { result };
        live.state().in_flight.retain(|r| *r != range);
        if let Err(failure) = result {
            let (reason, unreachable) = match failure {
                Failure::Contradiction(reason) | Failure::Replaced(reason) | Failure::Failed(reason) => (reason, false),
                Failure::Unreachable(reason) | Failure::Broken(reason) => (reason, true),
            };
            let stale = live.state().version_gone;
            if !stale {
                let path = self.volume.path_of(live.ino).unwrap_or_else(|| format!("(removed file {})", live.ino.0));
                self.note_read_error(&path, &reason);
            }
            let mut state = live.state();
            state.failure = (state.failure.0 + 1, Some(reason.into()));
            state.unreachable = unreachable;
        }
        live.announce();
        self.volume.fetched(&live);
    }

    /// Fetches; when the bucket contradicts the index, reads the index again before that is believed.
    async fn fetch_resolving(self: &Arc<Self>, live: &Arc<LiveContent>, range: &Range<u64>) -> Result<(), Failure> {
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
            let (reason, replaced) = match self.fetch_once(live, &version, todo.clone()).await {
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
            if let Err(error) = self.refresh().await {
                return Err(Failure::Failed(format!("{reason}; and the index cannot be read again: {error}")));
            }
            if !self.volume.is_current(live) {
                live.state().version_gone = true;
                return Err(Failure::Contradiction(reason));
            }
            if resolves == RESOLVES {
                return Err(Failure::Failed("the object keeps changing; try again".into()));
            }
            let mut state = live.state();
            if state.version.as_ref() != Some(&version) {
                continue;
            }
            let hidden = state.present.is_empty() || shown_whole(&state, version.entry.size);
            if replaced && hidden {
                // Nobody has seen a byte of the pinned version: another upload of the same entry may be pinned instead.
                forget(&mut state);
                todo = range.clone();
                continue;
            }
            drop(state);
            if replaced && self.supersede(live) {
                return Err(Failure::Replaced(reason));
            }
            return Err(Failure::Contradiction(format!(
                "{reason}, although the index still lists it; `swamp-mount verify` checks the bucket, and the client that wrote it can push it again"
            )));
        }
    }

    /// Another upload of the same entry took the place of the one whose bytes readers have: the name gets a new inode, so
    /// that the two are never stitched together.
    fn supersede(&self, live: &LiveContent) -> bool {
        match self.volume.supersede(live) {
            Ok(notices) if notices.is_empty() => false,
            Ok(notices) => {
                live.state().version_gone = true;
                self.notifications.tell(notices);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "cannot give a replaced object a new inode");
                false
            }
        }
    }

    /// Whether the object of a file whose index entry does not tell is another one by now; then the name has a new inode.
    /// What is here is good enough when the bucket does not say.
    pub async fn superseded(&self, live: &LiveContent) -> bool {
        let Some(version) = live.state().version.clone() else { return false };
        if self.cut_off().is_some() {
            return false;
        }
        match self.store.head(&version.key).await {
            Ok(info) => info.fingerprint != version.fingerprint && self.supersede(live),
            Err(error) => {
                tracing::debug!(%error, "cannot see whether the object was rewritten");
                false
            }
        }
    }

    async fn fetch_once(&self, live: &Arc<LiveContent>, version: &Version, range: Range<u64>) -> Result<(), Failure> {
        let _permit = self.downloads.acquire().await.map_err(|e| Failure::Failed(e.to_string()))?;
        let size = version.entry.size;
        let mut request = GetRequest::whole(&version.key);
        if range != (0..size) {
            request = request.range(range.clone());
        }
        if let Some(fingerprint) = &version.fingerprint {
            request = request.with(Condition::IfMatch(fingerprint.clone()));
        }
        let Fetched::Object { info, range: sent, mut body } = self.store.get(request).await? else {
            return Err(Failure::Failed(format!(
                "the store answered 304 to an unconditional read of {:?}",
                version.key
            )));
        };
        if info.size != size && !self.adopt_size(live, version, info.size).await {
            return Err(Failure::Contradiction(format!(
                "the object {:?} has {} bytes, its index entry says {size}",
                version.key, info.size
            )));
        }
        if let Some(fingerprint) = info.fingerprint {
            let mut state = live.state();
            if let Some(now) = &mut state.version
                && *now.fingerprint.get_or_insert_with(|| fingerprint.clone()) != fingerprint
            {
                return Err(Failure::Replaced(format!("the object {:?} was replaced while it was read", version.key)));
            }
            state.pinning = false;
        }
        live.announce();
        let mut at = sent.start;
        while let Some(chunk) = body.next().await {
            let chunk = chunk.map_err(|error| match error.is_transient() {
                true => Failure::Broken(error.to_string()),
                false => error.into(),
            })?;
            let written = live.file.write_all_at(&chunk, at);
            written.map_err(|e| Failure::Failed(format!("cannot write to the cache: {e}")))?;
            let end = at + chunk.len() as u64;
            let mut state = live.state();
            state.present.insert(at..end);
            state.recorded = false;
            drop(state);
            at = end;
            live.announce();
        }
        if at < sent.end {
            return Err(Failure::Broken(format!(
                "the answer for {:?} ended at byte {at} of {}",
                version.key, sent.end
            )));
        }
        Ok(())
    }

    /// `.catalog-export.json` is rewritten without an index update: its object's size is the truth (format.md section 1).
    async fn adopt_size(&self, live: &LiveContent, version: &Version, size: u64) -> bool {
        if !is_rewritten_in_place(&version.key) {
            return false;
        }
        if let Some(version) = &mut live.state().version {
            version.entry.size = size;
            version.entry.sha256 = None;
        }
        self.notifications.tell(self.volume.resize_remote(live.ino, size));
        // A program must see the new size as soon as it has the file open.
        self.notifications.delivered().await;
        true
    }

    /// All ranges are here: compares the hash and declares the content complete.
    async fn complete(&self, live: &Arc<LiveContent>) -> Result<(), Failure> {
        let expected = live
            .state()
            .version
            .as_ref()
            .filter(|v| !is_rewritten_in_place(&v.key))
            .and_then(|v| v.entry.sha256.clone());
        if let Some(expected) = expected {
            let file = Arc::clone(&live.file);
            let size = live.state().version.as_ref().map_or(0, |v| v.entry.size);
            let found = match digest(Body::File { file, size }).await {
                Ok(digests) => digests.sha256,
                Err(error) => return Err(Failure::Failed(format!("cannot read the cache: {error}"))),
            };
            if !found.eq_ignore_ascii_case(&expected) {
                self.reject(live);
                if let Err(error) = self.refresh().await {
                    tracing::debug!(%error, "refresh after a wrong hash");
                }
                if !self.volume.is_current(live) {
                    live.state().version_gone = true;
                }
                return Err(Failure::Contradiction(format!(
                    "the object's bytes have another sha256 ({found}) than its index entry ({expected}): a push by another client may be under way, or was cut off; \
                     try again, or push the file once more from where it was written"
                )));
            }
        }
        self.volume.fetch_completed(live);
        Ok(())
    }

    /// Forgets what was fetched: it is not what the index speaks of. What comes next is shown only when it was compared.
    fn reject(&self, live: &LiveContent) {
        let mut state = live.state();
        state.verify_first = true;
        state.recorded = false;
        forget(&mut state);
        drop(state);
        self.notifications.tell(vec![Notice::Content(live.ino)]);
    }
}

/// Whether a content that is here may be older than its object although the index has not changed.
pub fn may_change_unnoticed(live: &LiveContent) -> bool {
    let state = live.state();
    state.complete && state.version.as_ref().is_some_and(|v| is_rewritten_in_place(&v.key))
}

/// Whether nobody sees a byte before all are here and compared with the hash.
fn shown_whole(state: &FetchState, size: u64) -> bool {
    size <= SMALL || state.verify_first
}

fn is_here(state: &FetchState, range: &Range<u64>) -> bool {
    let Some(size) = state.version.as_ref().map(|v| v.entry.size) else { return state.complete };
    let wanted = range.start.min(size)..range.end.min(size);
    // The read that would make the file whole waits until the hash was compared.
    let part = || state.present.contains(&wanted) && !state.present.contains(&(0..size));
    state.complete || (!shown_whole(state, size) && part())
}

fn forget(state: &mut FetchState) {
    state.present = crate::cache::RangeSet::default();
    if let Some(version) = &mut state.version {
        version.fingerprint = None;
    }
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
