//! Room for what arrives: clean contents that nobody has open go back to being remote, least recently opened first.
//!
//! Part of the volume. Invariants: nothing that is open, unpushed, local-only or being fetched is ever evicted; the link
//! in `cache/` goes first, then the row, then the file; the kernel drops what it had cached of an evicted file, so that
//! its pages are never joined with those of another version.

use super::delta::Changes;
use super::inner::Inner;
use super::live::LiveContent;
use super::notice::Notice;
use super::{Result, Volume, VolumeError};
use crate::cache::ContentId;
use crate::cache::rows::NodeRow;
use crate::tree::Ino;

/// Share of the disk that fetched contents leave free, and its upper bound in bytes: writers and other programs need it
/// more than a cache.
const KEEP_FREE: (u64, u64) = (20, 1 << 30);
/// Share of `--cache-size` that is evicted beyond the need, so that not every fetch has to evict.
const SLACK: u64 = 64;
/// What is evicted for a writer that found the disk full, in bytes.
const FOR_A_WRITER: u64 = 16 << 20;
/// How much may be written before the room is looked at again, in bytes.
const LOOK_EVERY: u64 = 8 << 20;

/// Whether bytes can be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// They fit; the content counts for them from now on.
    Made,
    /// They do not: read without keeping them.
    None,
}

struct Victim {
    id: ContentId,
    ino: Ino,
    path: String,
    bytes: u64,
}

impl Volume {
    /// Makes room for `bytes` more of a content that is about to be fetched.
    pub fn make_room(&self, live: &LiveContent, bytes: u64) -> Room {
        let mut inner = self.lock();
        let size = live.state().version.as_ref().map_or(0, |v| v.entry.size);
        let too_large = self.options.cache_size.is_some_and(|limit| size > limit);
        let needed = live.must_be_stored();
        if too_large && !needed {
            // It would push everything else out, and still not be here the next time.
            return Room::None;
        }
        if self.shortage(&inner, bytes) > 0 {
            let slack = self.options.cache_size.map_or(0, |limit| limit / SLACK);
            let shortage = self.shortage(&inner, bytes) + slack;
            self.evict(&mut inner, shortage);
            if self.shortage(&inner, bytes) > 0 && !needed {
                return Room::None;
            }
        }
        inner.space.grow(live.id, live.ino, bytes);
        Room::Made
    }

    /// Evicts what is above `--cache-size`, or keeps the disk too full.
    pub fn trim(&self) {
        let mut inner = self.lock();
        let shortage = self.shortage(&inner, 0);
        if shortage > 0 {
            self.evict(&mut inner, shortage);
        }
    }

    /// Room for a writer that found the disk full; whether there is some now.
    pub fn make_room_for_writer(&self) -> bool {
        let mut inner = self.lock();
        self.evict(&mut inner, FOR_A_WRITER) > 0
    }

    /// Runs a change; when the disk is full, once more after clean contents went.
    pub(super) fn with_room<T>(&self, inner: &mut Inner, mut change: impl FnMut(&mut Inner) -> Result<T>) -> Result<T> {
        match change(inner) {
            Err(error) if error.is_no_space() && self.evict(inner, FOR_A_WRITER) > 0 => change(inner),
            other => other,
        }
    }

    /// Resolves when there may be too much in the cache, or evicted files that the kernel was not told of.
    pub async fn wait_for_pressure(&self) {
        self.pressure.heard().await;
    }

    /// What the kernel must be told of evicted files.
    pub fn take_eviction_notices(&self) -> Vec<Notice> {
        std::mem::take(&mut self.lock().eviction_notices)
    }

    /// A file has at least so many bytes now.
    pub(super) fn note_growth(&self, inner: &mut Inner, live: &LiveContent, bytes: u64) {
        let before = inner.space.total();
        if inner.space.reach(live.id, live.ino, bytes) > 0 {
            let total = inner.space.total();
            let above = self.options.cache_size.is_some_and(|limit| total > limit);
            if above || before / LOOK_EVERY != total / LOOK_EVERY {
                self.pressure.ring();
            }
        }
    }

    /// How many bytes have to go before `more` can come.
    pub(super) fn shortage(&self, inner: &Inner, more: u64) -> u64 {
        let total = inner.space.total() + more;
        let above_limit = self.options.cache_size.map_or(0, |limit| total.saturating_sub(limit));
        let disk = match rustix::fs::fstatvfs(self.contents.dir()) {
            Ok(disk) => {
                let keep = (disk.f_blocks * disk.f_frsize / KEEP_FREE.0).min(KEEP_FREE.1);
                (keep + more).saturating_sub(disk.f_bavail * disk.f_frsize)
            }
            Err(error) => {
                tracing::debug!(%error, "cannot see how full the cache's disk is");
                0
            }
        };
        above_limit.max(disk)
    }

    /// Evicts at least `wanted` bytes, or all that can be; returns how many.
    fn evict(&self, inner: &mut Inner, wanted: u64) -> u64 {
        if inner.space.is_hopeless() {
            return 0;
        }
        let mut victims: Vec<Victim> = Vec::new();
        let mut freed = 0;
        for (id, ino, bytes) in inner.space.oldest_first() {
            if freed >= wanted {
                break;
            }
            if bytes > 0
                && let Some(path) = evictable(inner, id, ino)
            {
                freed += bytes;
                victims.push(Victim { id, ino, path, bytes });
            }
        }
        if freed < wanted {
            inner.space.give_up();
        }
        match self.forget_contents(inner, &victims) {
            Ok(()) => freed,
            Err(error) => {
                tracing::warn!(%error, "cannot evict cached files");
                inner.space.give_up();
                0
            }
        }
    }

    fn forget_contents(&self, inner: &mut Inner, victims: &[Victim]) -> Result<()> {
        if victims.is_empty() {
            return Ok(());
        }
        let mut changes = Changes::default();
        for victim in victims {
            self.reference.unlink(&victim.path);
            changes.content(victim.id, None);
            let Some(node) = inner.tree.get(victim.ino) else { continue };
            let mut attrs = node.attrs_row();
            let recorded = inner.base_entry(&victim.path).and_then(|entry| entry.mtime_nanos());
            // What the index cannot carry of the time stays with the name.
            attrs.mtime = attrs.mtime.or(node.content().map(|c| c.remote.mtime).filter(|now| Some(*now) != recorded));
            let row = NodeRow { path: victim.path.clone(), kind: node.kind(), content: None, attrs };
            changes.node(&victim.path, (!row.attrs.is_empty()).then_some(row));
        }
        inner.commit(changes)?;
        for victim in victims {
            inner.live.remove(&victim.id);
            inner.space.remove(victim.id);
            inner.space.evicted.0 += 1;
            inner.space.evicted.1 += victim.bytes;
            let known = inner.tree.get(victim.ino).is_some_and(|node| node.lookups() > 0);
            inner.tree.change_content(victim.ino, |content| content.id = None);
            if known {
                inner.eviction_notices.push(Notice::Content(victim.ino));
            }
            // A power cut that brings the row back finds no file, and fetches it again.
            self.remove_content_now(inner, victim.id);
        }
        tracing::debug!(files = victims.len(), "evicted");
        self.pressure.ring();
        Ok(())
    }
}

/// The path of a content that can be fetched again and that nobody needs now.
fn evictable(inner: &Inner, id: ContentId, ino: Ino) -> Option<String> {
    let node = inner.tree.get(ino).filter(|node| node.is_linked())?;
    if node.content()?.id != Some(id) || node.opens() > 0 {
        return None;
    }
    if let Some(live) = inner.live.get(&id)
        && (live.handles() > 0 || live.is_dirty() || live.state().is_fetched())
    {
        return None;
    }
    let path = inner.tree.path(ino)?;
    let is_clean = !inner.deltas.contains_key(&path) && Inner::is_synced(&path) && inner.base_entry(&path).is_some();
    is_clean.then_some(path)
}

impl VolumeError {
    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Cache(error) => error.is_no_space(),
            Self::Content { source, .. } => crate::cache::is_no_space(source),
            _ => false,
        }
    }
}
