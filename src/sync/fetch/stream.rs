//! Streaming: bytes for which the cache has no room are read past it, and kept in memory for a moment only.
//!
//! Invariants: what is streamed comes from the pinned version; a small file is shown only when its hash fits; all blocks
//! together take at most [`MEMORY`] bytes, and one more block for each reader.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use lru::LruCache;

use super::answers::expected_hash;
use super::failure::{Failure, broken_off};
use super::{BREAKS, hash_of};
use crate::cache::ContentId;
use crate::cache::rows::Version;
use crate::store::Body;
use crate::sync::pace::Urgency;
use crate::sync::{Engine, FetchError};
use crate::volume::{LiveContent, SMALL};

/// What is read of a large file at a time.
const BLOCK: u64 = 2 << 20;
/// What is kept of all files.
const MEMORY: usize = 64 << 20;

/// Where the bytes of a read are.
#[derive(Debug)]
pub enum Served {
    /// In the file of the content.
    InFile,
    /// Only in memory.
    InMemory(Bytes),
}

/// Blocks in memory, by content and offset.
pub(in crate::sync) struct Blocks(Mutex<Kept>);

struct Kept {
    blocks: LruCache<(ContentId, u64), Bytes>,
    total: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        Self(Mutex::new(Kept { blocks: LruCache::unbounded(), total: 0 }))
    }
}

impl Blocks {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, content: ContentId, offset: u64) -> Option<Bytes> {
        self.lock().blocks.get(&(content, offset)).cloned()
    }

    fn has(&self, content: ContentId, offset: u64) -> bool {
        self.lock().blocks.contains(&(content, offset))
    }

    fn put(&self, content: ContentId, offset: u64, block: Bytes) {
        let mut kept = self.lock();
        kept.total += block.len();
        if let Some(before) = kept.blocks.put((content, offset), block) {
            kept.total -= before.len();
        }
        while kept.total > MEMORY
            && let Some((_, oldest)) = kept.blocks.pop_lru()
        {
            kept.total -= oldest.len();
        }
    }
}

impl Engine {
    /// Waits until a range can be read: in the content's file, or, where there is no room for it, from memory.
    ///
    /// # Errors
    /// When it cannot be had; the reason was noted.
    pub async fn read(self: &Arc<Self>, live: &Arc<LiveContent>, range: Range<u64>) -> Result<Served, FetchError> {
        match self.ensure(live, range.clone()).await {
            Ok(()) => Ok(Served::InFile),
            Err(FetchError::NoRoom(_)) => Ok(Served::InMemory(self.stream(live, range).await?)),
            Err(error) => Err(error),
        }
    }

    /// Waits until a small file can be read: all of it is here, or was seen to be what the index says.
    ///
    /// # Errors
    /// As [`Engine::read`].
    pub async fn ready(self: &Arc<Self>, live: &Arc<LiveContent>) -> Result<(), FetchError> {
        match self.ensure_whole(live).await {
            Err(FetchError::NoRoom(_)) => self.stream(live, 0..1).await.map(drop),
            other => other,
        }
    }

    /// Reads a range (clipped to the content's size) past the cache.
    async fn stream(self: &Arc<Self>, live: &Arc<LiveContent>, range: Range<u64>) -> Result<Bytes, FetchError> {
        let _use = self.volume.in_use(live);
        let mut wanted = BytesMut::new();
        let mut at = range.start;
        loop {
            let Some(version) = live.state().version.clone() else {
                return Err(FetchError::Failed("nothing says where the bytes are".into()));
            };
            let size = version.entry.size;
            let end = range.end.min(size);
            if at >= end {
                return Ok(wanted.freeze());
            }
            let place = place_of(at, size);
            let block = self.block(live, place.clone()).await?;
            let from = usize::try_from(at - place.start).unwrap_or(usize::MAX).min(block.len());
            let to = usize::try_from(end - place.start).unwrap_or(usize::MAX).min(block.len());
            if from == to {
                // It is shorter by now than the version said a moment ago.
                return Ok(wanted.freeze());
            }
            wanted.extend_from_slice(&block[from..to]);
            at = place.start + to as u64;
            let before = place.start.checked_sub(BLOCK);
            if place.end < size && before.is_some_and(|before| self.blocks.has(live.id, before)) {
                self.block_ahead(live, place_of(place.end, size));
            }
        }
    }

    /// A sequential reader gets the next block while it uses this one.
    fn block_ahead(self: &Arc<Self>, live: &Arc<LiveContent>, place: Range<u64>) {
        if self.blocks.has(live.id, place.start) || live.streaming.try_lock().is_err() {
            return;
        }
        let (engine, live) = (Arc::clone(self), Arc::clone(live));
        tokio::spawn(async move {
            let _use = engine.volume.in_use(&live);
            // Noted, and met again by the read that needs the block.
            if let Err(error) = engine.block(&live, place).await {
                tracing::debug!(%error, "block ahead");
            }
        });
    }

    async fn block(self: &Arc<Self>, live: &Arc<LiveContent>, place: Range<u64>) -> Result<Bytes, FetchError> {
        if let Some(block) = self.blocks.get(live.id, place.start) {
            return Ok(block);
        }
        let _turn = live.streaming.lock().await;
        if let Some(block) = self.blocks.get(live.id, place.start) {
            return Ok(block);
        }
        self.check_reachable(live, &place)?;
        match self.read_in_contact(self.block_resolving(live, place.clone())).await? {
            Ok(block) => {
                let first = !std::mem::replace(&mut live.state().streamed, true);
                self.note_streamed(live, first);
                self.blocks.put(live.id, place.start, block.clone());
                Ok(block)
            }
            Err(failure) => {
                let (reason, cause) = failure.into_reason();
                self.note_failure(live, &reason, cause);
                Err(if live.state().version_gone { FetchError::Stale } else { FetchError::new(&reason, cause) })
            }
        }
    }

    async fn block_resolving(&self, live: &Arc<LiveContent>, place: Range<u64>) -> Result<Bytes, Failure> {
        let (mut resolves, mut breaks) = (0, 0);
        loop {
            let (version, verify_first, here) = {
                let state = live.state();
                let version = state.version.clone();
                let version = version.ok_or_else(|| Failure::Failed("nothing says where the bytes are".into()))?;
                (version, state.verify_first, state.complete || state.present.contains(&place))
            };
            let size = version.entry.size;
            if size > SMALL && verify_first {
                let reason = "all of it must be compared with its hash first, and there is no room for it in the cache";
                return Err(Failure::NoRoom(reason.to_owned()));
            }
            if here && size > SMALL {
                return read_file(live, &place);
            }
            let place = if size <= SMALL { 0..size } else { place.clone() };
            let (reason, replaced) = match self.block_once(live, &version, place).await {
                Err(Failure::Contradiction(reason)) => (reason, false),
                Err(Failure::Replaced(reason)) => (reason, true),
                Err(Failure::Broken(reason)) => {
                    breaks += 1;
                    if breaks >= BREAKS {
                        return Err(Failure::Unreachable(reason));
                    }
                    tokio::time::sleep(Duration::from_millis(100) * breaks).await;
                    continue;
                }
                Ok(block) if size <= SMALL => return self.compared(live, block).await,
                other => return other,
            };
            resolves += 1;
            self.resolve(live, &version, reason, replaced, resolves).await?;
        }
    }

    fn note_streamed(&self, live: &LiveContent, first: bool) {
        if first {
            tracing::info!(path = self.name_of(live), "no room in the cache: it is read without being kept");
        }
    }

    async fn block_once(&self, live: &LiveContent, version: &Version, place: Range<u64>) -> Result<Bytes, Failure> {
        let _place = self.download(Urgency::Awaited).await?;
        let (round, sent, mut body) = self.answer(live, version, place.clone()).await?;
        let mut block = BytesMut::with_capacity(usize::try_from(sent.end - sent.start).unwrap_or(0));
        while let Some(chunk) = body.next().await {
            block.extend_from_slice(&chunk.map_err(Failure::in_body)?);
        }
        let end = sent.start + block.len() as u64;
        if end < sent.end {
            return Err(Failure::Broken(broken_off(version, end, sent.end)));
        }
        let first = {
            let mut state = live.state();
            if state.round != round {
                return Err(Failure::replaced(version));
            }
            // Within the same lock: from here on no other version may be pinned. One block of a small file is all of it.
            version.entry.size > SMALL && !std::mem::replace(&mut state.streamed, true)
        };
        self.note_streamed(live, first);
        Ok(block.freeze())
    }

    async fn compared(&self, live: &LiveContent, block: Bytes) -> Result<Bytes, Failure> {
        let Some(expected) = expected_hash(live) else { return Ok(block) };
        let found = hash_of(Body::Bytes(block.clone())).await?;
        if found.eq_ignore_ascii_case(&expected) {
            Ok(block)
        } else {
            Err(self.wrong_hash(live, &found, &expected).await)
        }
    }
}

/// The block of a file that has an offset; a small file is one.
fn place_of(offset: u64, size: u64) -> Range<u64> {
    if size <= SMALL {
        return 0..size;
    }
    let start = offset - offset % BLOCK;
    start..size.min(start + BLOCK)
}

fn read_file(live: &LiveContent, place: &Range<u64>) -> Result<Bytes, Failure> {
    let mut block = vec![0; usize::try_from(place.end - place.start).unwrap_or(0)];
    match live.file.read_exact_at(&mut block, place.start) {
        Ok(()) => Ok(block.into()),
        Err(error) => Err(Failure::Failed(format!("cannot read the cache: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_a_file_without_overlap_and_a_small_file_is_one_block() {
        for size in [1, SMALL, SMALL + 1, 5 * BLOCK, 5 * BLOCK + 7] {
            let mut at = 0;
            while at < size {
                let place = place_of(at, size);
                assert_eq!(place.start, at, "{size}");
                assert_eq!(place_of(place.end - 1, size), place, "{size}");
                at = place.end;
            }
            assert_eq!(at, size);
        }
    }

    #[test]
    fn memory_is_bounded_and_what_was_used_last_stays() {
        let blocks = Blocks::default();
        let block = Bytes::from(vec![0; usize::try_from(BLOCK).unwrap()]);
        let most = MEMORY as u64 / BLOCK;
        for n in 0..most {
            blocks.put(ContentId(1), n, block.clone());
        }
        assert!(blocks.get(ContentId(1), 0).is_some());
        blocks.put(ContentId(2), 0, block.clone());
        blocks.put(ContentId(2), 0, block.clone());
        assert!(blocks.has(ContentId(1), 0) && blocks.has(ContentId(2), 0) && !blocks.has(ContentId(1), 1));
        assert_eq!(blocks.lock().total, MEMORY);
    }
}
