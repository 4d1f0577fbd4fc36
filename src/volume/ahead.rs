//! Which files a program that reads a tree in order comes to next.
//!
//! Part of the volume. Invariant: a look costs a bounded number of steps under the volume lock, however large the tree.

use std::sync::Arc;

use super::fetching::InUse;
use super::inner::Inner;
use super::{Result, Volume, VolumeError};
use crate::cache::rows::Kind;
use crate::tree::{Ino, ROOT};

/// How many directories upwards the order is followed.
const CLIMB: usize = 2;

/// A file that comes later in the order of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileAhead {
    /// Its inode.
    pub ino: Ino,
    /// Bytes that would have to be fetched; `None`: they are here, or on their way.
    pub missing: Option<u64>,
}

impl Volume {
    /// At most `count` files that follow `ino` in the order of listings, depth first, and the files of the directories
    /// that follow its own.
    pub fn files_after(&self, ino: Ino, count: usize) -> Vec<FileAhead> {
        let inner = self.lock();
        let mut found = Vec::new();
        let mut steps = 4 * count + 64;
        let mut at = ino;
        for _ in 0..=CLIMB {
            let Some(node) = inner.tree.get(at).filter(|node| node.is_linked() && at != ROOT) else { break };
            let Some(parent) = inner.tree.parent(at) else { break };
            collect(&inner, inner.tree.children_after(parent, node.name()), count, &mut steps, &mut found);
            at = parent;
        }
        found
    }

    /// The content of a file that is to be fetched before somebody opens it. `None` when `bytes`, of it and of all that is
    /// fetched ahead now, do not fit: nothing is evicted for what nobody asked for.
    ///
    /// # Errors
    /// `Stale`, disk errors.
    pub fn content_ahead(self: &Arc<Self>, ino: Ino, bytes: u64) -> Result<Option<InUse>> {
        let mut inner = self.lock();
        if !inner.tree.get(ino).is_some_and(|node| node.is_linked()) {
            return Err(VolumeError::Stale);
        }
        if self.shortage(&inner, bytes) > 0 {
            return Ok(None);
        }
        let live = self.live_for(&mut inner, ino)?;
        Ok(Some(self.in_use(&live)))
    }
}

fn collect(
    inner: &Inner,
    children: impl Iterator<Item = Ino>,
    count: usize,
    steps: &mut usize,
    found: &mut Vec<FileAhead>,
) {
    for child in children {
        if found.len() >= count || *steps == 0 {
            return;
        }
        *steps -= 1;
        match inner.tree.kind(child) {
            Some(Kind::Dir) => {
                let below: &mut dyn Iterator<Item = Ino> = &mut inner.tree.children(child).map(|(ino, _)| ino);
                collect(inner, below, count, steps, found);
            }
            Some(Kind::File) => found.push(FileAhead { ino: child, missing: missing(inner, child) }),
            Some(Kind::Symlink) | None => {}
        }
    }
}

fn missing(inner: &Inner, ino: Ino) -> Option<u64> {
    let content = inner.tree.get(ino)?.content()?;
    let here = match content.id {
        Some(id) => match inner.live.get(&id) {
            Some(live) => {
                let state = live.state();
                state.complete || state.is_fetched()
            }
            None => inner.content_rows.get(&id).is_some_and(|row| row.present.is_none()),
        },
        None => false,
    };
    (!here).then_some(content.remote.size)
}
