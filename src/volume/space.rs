//! The ledger of the cache: how many bytes each content takes on the disk, and which was opened last.
//!
//! Part of the volume; pure data under the volume lock. Invariant: `total` is the sum over all contents that are held,
//! each counted with what it has or with what was promised to a fetch, whichever is more.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use lru::LruCache;

use crate::cache::ContentId;
use crate::tree::Ino;

/// When nothing could be evicted, how long nobody looks again.
const HOPELESS_FOR: Duration = Duration::from_millis(500);

/// What one content takes.
#[derive(Clone, Copy, Debug)]
struct Held {
    ino: Ino,
    bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Space {
    held: LruCache<ContentId, Held>,
    total: u64,
    /// Opened since their recency was last written.
    opened: HashSet<ContentId>,
    hopeless_until: Option<Instant>,
    /// Since the start: contents, and their bytes.
    pub evicted: (u64, u64),
}

impl Default for Space {
    fn default() -> Self {
        let held = LruCache::unbounded();
        Self { held, total: 0, opened: HashSet::new(), hopeless_until: None, evicted: (0, 0) }
    }
}

impl Space {
    /// Bytes of all contents.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// A content has so many bytes now; one that is new counts as opened last.
    pub fn set(&mut self, id: ContentId, ino: Ino, bytes: u64) {
        let held = Held { ino, bytes };
        let before = match self.held.peek_mut(&id) {
            Some(known) => std::mem::replace(known, held).bytes,
            None => {
                self.held.put(id, held);
                0
            }
        };
        self.total = self.total - before + bytes;
    }

    /// A content grows by so many bytes.
    pub fn grow(&mut self, id: ContentId, ino: Ino, bytes: u64) {
        let before = self.bytes(id);
        self.set(id, ino, before + bytes);
    }

    /// A content has at least so many bytes now; how many more than before.
    pub fn reach(&mut self, id: ContentId, ino: Ino, bytes: u64) -> u64 {
        let more = bytes.saturating_sub(self.bytes(id));
        if more > 0 {
            self.set(id, ino, bytes);
        }
        more
    }

    /// What a content counts for.
    pub fn bytes(&self, id: ContentId) -> u64 {
        self.held.peek(&id).map_or(0, |held| held.bytes)
    }

    /// A content is gone.
    pub fn remove(&mut self, id: ContentId) {
        if let Some(held) = self.held.pop(&id) {
            self.total -= held.bytes;
        }
        self.opened.remove(&id);
        self.hopeless_until = None;
    }

    /// A content was opened; whether it is the first since the last batch was taken.
    pub fn opened(&mut self, id: ContentId, ino: Ino) -> bool {
        if self.held.get(&id).is_none() {
            self.set(id, ino, 0);
        }
        let first = self.opened.is_empty();
        self.opened.insert(id);
        first
    }

    /// The contents that were opened since the last call, least recently first.
    pub fn take_opened(&mut self) -> Vec<ContentId> {
        let opened = std::mem::take(&mut self.opened);
        if opened.is_empty() {
            return Vec::new();
        }
        self.held.iter().rev().map(|(id, _)| *id).filter(|id| opened.contains(id)).collect()
    }

    /// All contents, least recently opened first, with their inodes and bytes.
    pub fn oldest_first(&self) -> impl Iterator<Item = (ContentId, Ino, u64)> {
        self.held.iter().rev().map(|(id, held)| (*id, held.ino, held.bytes))
    }

    /// Whether a look for something to evict was in vain just now.
    pub fn is_hopeless(&self) -> bool {
        self.hopeless_until.is_some_and(|until| Instant::now() < until)
    }

    /// Something may be evicted again.
    pub fn hope(&mut self) {
        self.hopeless_until = None;
    }

    /// Notes that nothing more can be evicted.
    pub fn give_up(&mut self) {
        self.hopeless_until = Some(Instant::now() + HOPELESS_FOR);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(space: &Space) -> Vec<u64> {
        space.oldest_first().map(|(id, _, _)| id.0).collect()
    }

    #[test]
    fn the_total_follows_every_change_and_the_order_that_of_opens() {
        let mut space = Space::default();
        for id in 1..=3 {
            space.set(ContentId(id), Ino(id + 10), 10 * id);
        }
        assert_eq!((space.total(), ids(&space)), (60, vec![1, 2, 3]));
        assert!(space.opened(ContentId(1), Ino(11)));
        assert!(!space.opened(ContentId(3), Ino(13)));
        assert_eq!(ids(&space), [2, 1, 3], "what was opened last is evicted last");
        space.set(ContentId(2), Ino(12), 5);
        space.grow(ContentId(2), Ino(12), 7);
        assert_eq!((space.reach(ContentId(2), Ino(12), 20), space.reach(ContentId(2), Ino(12), 3)), (8, 0));
        assert_eq!((space.total(), ids(&space)), (60, vec![2, 1, 3]), "growing is no use");
        assert_eq!(space.take_opened(), [ContentId(1), ContentId(3)]);
        assert_eq!(space.take_opened(), []);
        space.remove(ContentId(1));
        space.remove(ContentId(1));
        assert_eq!((space.total(), ids(&space)), (50, vec![2, 3]));
    }

    #[test]
    fn a_look_in_vain_is_not_repeated_until_something_goes() {
        let mut space = Space::default();
        space.set(ContentId(1), Ino(1), 1);
        assert!(!space.is_hopeless());
        space.give_up();
        assert!(space.is_hopeless());
        space.remove(ContentId(1));
        assert!(!space.is_hopeless());
    }
}
