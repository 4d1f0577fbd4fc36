//! Fetch: brings missing bytes of a content here, once for all who wait, always of one version.
//!
//! Depends on `volume`, whose `fetch_state` decides who fetches what and whom the end of a transfer concerns. Invariants: the
//! first answer pins the version, every later request carries it; a range counts as present only after its bytes are in the
//! file; a whole content counts as complete only after its hash was compared, where the index has one.

mod answers;
mod failure;
mod pieces;
mod stream;

use std::ops::Range;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};

use super::hash::{digest, hex};
use super::pace::{Place, Urgency};
use super::{Engine, FetchError};
use crate::cache::rows::Version;
use crate::datastore::names::is_rewritten_in_place;
use crate::store::Body;
use crate::volume::{Claim, Claimed, LiveContent, MustStore, Room};
use answers::expected_hash;
use failure::{Failure, broken_off};
use pieces::{LINGER, Piece};
pub(super) use stream::Blocks;
pub use stream::Served;

/// Bytes that are worth hashing while others arrive.
const HASH_STEP: u64 = 1 << 20;
/// How often a body that breaks off without a new byte is asked for again.
const BREAKS: u32 = 3;
/// Whatever the size is.
const ALL: Range<u64> = 0..u64::MAX;

impl Engine {
    /// Whether a read of that range needs no request.
    pub fn is_here(live: &LiveContent, range: &Range<u64>) -> bool {
        live.state().is_here(range)
    }

    /// Waits until a range is here (clipped to the content's size).
    ///
    /// # Errors
    /// When it cannot be had; the reason was noted.
    pub async fn ensure(self: &Arc<Self>, live: &Arc<LiveContent>, range: Range<u64>) -> Result<(), FetchError> {
        self.ensure_for(live, range, Urgency::Awaited).await
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
        self.ensure_for(live, ALL, Urgency::Awaited).await
    }

    /// The same for a file that nobody has asked for yet.
    pub(super) async fn ensure_ahead(self: &Arc<Self>, live: &Arc<LiveContent>) -> Result<(), FetchError> {
        self.ensure_for(live, ALL, Urgency::Ahead).await
    }

    async fn ensure_for(
        self: &Arc<Self>,
        live: &Arc<LiveContent>,
        range: Range<u64>,
        urgency: Urgency,
    ) -> Result<(), FetchError> {
        let _use = self.volume.in_use(live);
        self.check_reachable(live, &range)?;
        let waiting = live.fetch.wait_for(range);
        while !self.begin(live, waiting.claim()?, urgency) {
            self.read_in_contact(waiting.woken()).await?;
        }
        Ok(())
    }

    pub(super) fn check_reachable(&self, live: &LiveContent, range: &Range<u64>) -> Result<(), FetchError> {
        if Self::is_here(live, range) {
            return Ok(());
        }
        match self.cut_off() {
            Some(reason) => {
                self.note_read_error(&self.name_of(live), &reason);
                Err(FetchError::Unreachable(reason.into()))
            }
            None => Ok(()),
        }
    }

    /// Starts what is missing of a range without waiting for it.
    pub fn fetch_ahead(self: &Arc<Self>, live: &Arc<LiveContent>, range: Range<u64>) {
        match live.fetch.claim(&range) {
            Ok(claimed) => drop(self.begin(live, claimed, Urgency::Ahead)),
            // Met again by the read that needs the bytes, as is what its task notes.
            Err(refused) => tracing::debug!(?refused, "fetch ahead"),
        }
    }

    /// Begins the transfers that were claimed; `true`: all is here.
    fn begin(self: &Arc<Self>, live: &Arc<LiveContent>, claimed: Claimed, urgency: Urgency) -> bool {
        let Claimed::Fetch(claims) = claimed else { return true };
        for claim in claims {
            let (engine, live) = (Arc::clone(self), Arc::clone(live));
            tokio::spawn(async move { engine.run(live, claim, urgency).await });
        }
        false
    }

    async fn run(self: Arc<Self>, live: Arc<LiveContent>, claim: Claim, urgency: Urgency) {
        // Whatever becomes of it, those who wait are told.
        let result = AssertUnwindSafe(self.bring(&live, &claim, urgency)).catch_unwind().await;
        let panicked = |_| Err(Failure::Failed("the program failed; its log says where".into()));
        let failure = match result.unwrap_or_else(panicked) {
            // Somebody who came meanwhile asks for what is missing by himself.
            Ok(()) | Err(Failure::Abandoned) => None,
            Err(failure) => {
                let (reason, cause) = failure.into_reason();
                self.note_failure(&live, &reason, cause);
                Some((reason.into(), cause))
            }
        };
        live.fetch.landed(&claim, failure);
        self.volume.fetched(&live);
    }

    async fn bring(self: &Arc<Self>, live: &Arc<LiveContent>, claim: &Claim, urgency: Urgency) -> Result<(), Failure> {
        self.make_room(live, claim.range.end - claim.range.start).await?;
        self.fetch_resolving(live, &claim.range, urgency).await?;
        match live.fetch.brought(claim) {
            Some(round) => self.complete(live, round).await?,
            None => hash_on(live),
        }
        Ok(())
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
                Err(Failure::Forgotten) => {
                    todo = range.clone();
                    continue;
                }
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
        let (round, sent, mut body) = self.answer(live, version, range).await?;
        let (mut piece, mut unhashed) = (Piece::at(live, sent.start, round), 0);
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
    async fn complete(&self, live: &Arc<LiveContent>, round: u64) -> Result<(), Failure> {
        if let Some(expected) = expected_hash(live) {
            let content = Arc::clone(live);
            let size = live.state().version.as_ref().map_or(0, |v| v.entry.size);
            let hashed = move || content.hashed.finish(&content.file, size, round);
            let found = tokio::task::spawn_blocking(hashed).await.map_err(std::io::Error::other).flatten();
            let found = found.map_err(|error| Failure::Failed(format!("cannot read the cache: {error}")))?;
            let found = hex(&found);
            // Of bytes that were forgotten meanwhile the hash says nothing.
            if !found.eq_ignore_ascii_case(&expected) && live.state().round == round {
                return Err(self.wrong_hash(live, &found, &expected).await);
            }
        }
        crate::fail_point!("fetch.before_complete");
        self.volume.fetch_completed(live, round);
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
