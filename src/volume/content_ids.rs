//! Numbers of contents, and the files that no row names: what a start has to look for is known, so that it need not walk
//! `data/`.
//!
//! Part of the volume. Invariants: ids are reserved in blocks, durably, before the first of them is used; a file without a
//! row has an id of the last block or one in the table `unclaimed`; an id leaves that table after its file.

use std::collections::BTreeSet;
use std::fs::File;

use serde::{Deserialize, Serialize};

use super::inner::Inner;
use super::{Result, Volume};
use crate::cache::{ContentId, Contents, StateDb};

/// How many ids are reserved at a time. So many files at most are looked for after a crash.
const BLOCK: u64 = 1024;
/// Its record in the table `meta`.
const META: &str = "content_ids";

/// The ids that may have been used since the table `unclaimed` was complete: after `after`, up to `upto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Block {
    after: u64,
    upto: u64,
}

/// The ids of a volume.
#[derive(Debug, Default)]
pub(super) struct ContentIds {
    last: u64,
    reserved: u64,
    /// Contents that no row names any more; their files go once that is durable.
    doomed: BTreeSet<ContentId>,
    /// Contents whose files are gone.
    gone: Vec<ContentId>,
}

/// What a start found about ids.
pub(super) struct Leftovers {
    /// Ids that may have a file without a row.
    candidates: BTreeSet<ContentId>,
    unclaimed: BTreeSet<ContentId>,
    last: u64,
    /// Nothing says which ids were used: written by an earlier release, or state.db is new.
    walked: bool,
}

impl Leftovers {
    pub fn find(db: &StateDb, contents: &Contents) -> Result<Self> {
        let unclaimed: BTreeSet<ContentId> = db.unclaimed()?.into_iter().collect();
        let mut candidates = unclaimed.clone();
        let block: Option<Block> = db.meta(META)?;
        match block {
            Some(block) => {
                let upto = block.upto.min(block.after.saturating_add(BLOCK));
                candidates.extend((block.after..upto).map(|before| ContentId(before + 1)));
            }
            None => candidates.extend(contents.ids()?),
        }
        let last = candidates.last().map_or(0, |id| id.0).max(block.map_or(0, |block| block.upto));
        Ok(Self { candidates, unclaimed, last, walked: block.is_none() })
    }

    /// Contents whose rows this start forgets.
    pub fn forget(&mut self, ids: impl IntoIterator<Item = ContentId>) {
        for id in ids {
            self.candidates.insert(id);
            self.unclaimed.insert(id);
        }
    }

    /// Ids that come after all of these and after those of `rows`.
    pub fn ids_after(&self, rows: impl Iterator<Item = ContentId>) -> ContentIds {
        let last = rows.map(|id| id.0).max().unwrap_or(0).max(self.last);
        ContentIds { last, reserved: last, ..ContentIds::default() }
    }
}

impl ContentIds {
    /// Contents whose files are gone, and may be forgotten with the next commit.
    pub fn gone(&self) -> &[ContentId] {
        &self.gone
    }

    /// They are forgotten.
    pub fn forgotten(&mut self) {
        self.gone.clear();
    }

    fn removed(&mut self, id: ContentId) {
        self.doomed.remove(&id);
        self.gone.push(id);
    }
}

impl Inner {
    /// A number that no content ever had.
    pub fn new_content_id(&mut self) -> Result<ContentId> {
        if self.ids.last >= self.ids.reserved {
            self.reserve_ids(BLOCK)?;
        }
        self.ids.last += 1;
        Ok(ContentId(self.ids.last))
    }

    /// Ends the block, and begins one of `size` ids. Only contents that are open, or wait for their removal, have no row.
    fn reserve_ids(&mut self, size: u64) -> Result<()> {
        let block = Block { after: self.ids.last, upto: self.ids.last.saturating_add(size) };
        let open = self.live.keys().filter(|id| !self.content_rows.contains_key(id));
        let tx = self.db.begin()?;
        for id in open.chain(&self.ids.doomed) {
            tx.set_unclaimed(*id)?;
        }
        for id in &self.ids.gone {
            tx.forget_unclaimed(*id)?;
        }
        tx.set_meta(META, &block)?;
        tx.commit()?;
        // After a power cut a file must not have an id that was never reserved.
        self.db.commit_durable()?;
        self.ids.reserved = block.upto;
        self.ids.forgotten();
        Ok(())
    }

    /// Its file goes later.
    pub fn doom(&mut self, id: ContentId) {
        self.ids.doomed.insert(id);
    }

    /// The end of use: the next start has nothing to look for but what is still open.
    pub fn release_ids(&mut self) -> Result<()> {
        self.reserve_ids(0)
    }
}

impl Volume {
    /// Makes the file of a new content.
    pub(super) fn new_content(&self, inner: &mut Inner) -> Result<(ContentId, File)> {
        loop {
            let id = inner.new_content_id()?;
            match self.contents.create(id) {
                // An older state.db was put beside newer contents, say. Nothing names the file, and nothing touches it.
                Err(error) if error.is_taken() => tracing::warn!(%error, "a content without a row is in the way"),
                made => return Ok((id, made?)),
            }
        }
    }

    /// Removes the files of contents that nothing needs.
    ///
    /// # Errors
    /// When the rows cannot be made durable; nothing is removed then.
    pub fn remove_doomed(&self) -> Result<()> {
        let doomed: Vec<ContentId> = {
            let mut inner = self.lock();
            if inner.ids.doomed.is_empty() {
                return Ok(());
            }
            inner.db.commit_durable()?;
            inner.ids.doomed.iter().copied().collect()
        };
        for id in doomed {
            self.remove_content_file(id, |removed| self.lock().ids.removed(removed));
        }
        Ok(())
    }

    /// Removes a file that no row names; `removed` hears of it when it worked.
    pub(super) fn remove_content_file(&self, id: ContentId, removed: impl FnOnce(ContentId)) {
        match self.contents.remove(id) {
            Ok(()) => removed(id),
            Err(error) => tracing::warn!(%error, content = %id, "a removed content stays until the next start"),
        }
    }

    /// The same under the volume lock.
    pub(super) fn remove_content_now(&self, inner: &mut Inner, id: ContentId) {
        inner.doom(id);
        self.remove_content_file(id, |removed| inner.ids.removed(removed));
    }

    /// Contents without a row: a process ended between making the file and recording it, or between the two of a removal.
    pub(super) fn collect_garbage(&self, left: &Leftovers) -> Result<()> {
        let mut inner = self.lock();
        for id in &left.candidates {
            if !inner.content_rows.contains_key(id) {
                self.remove_content_now(&mut inner, *id);
            }
        }
        inner.ids.gone.retain(|id| left.unclaimed.contains(id));
        if left.walked { inner.reserve_ids(BLOCK) } else { Ok(()) }
    }
}
