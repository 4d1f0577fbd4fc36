//! What the volume lock protects: the tree, state.db, the base, and the rows in memory.
//!
//! Helpers here assume that the caller holds the lock. Invariant: `deltas`, `content_rows` and `pending_deletes` equal
//! the tables of state.db, but for contents whose fetch is not recorded yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use super::content_ids::ContentIds;
use super::live::LiveContent;
use super::notice::Notice;
use super::space::Space;
use super::{Result, VolumeError};
use crate::cache::rows::{CommittedRow, ContentRow, DeltaRow, NodeRow, PendingDelete, Replaced, Version};
use crate::cache::saved_base::BaseRecord;
use crate::cache::{ContentId, StateDb};
use crate::datastore::{Entry, Index, NameClass, Seen, classify};
use crate::tree::{Ino, Tree};

/// The last remote index that was read.
#[derive(Clone)]
pub struct Base {
    /// The index.
    pub index: Arc<Index>,
    /// How it is saved; `None` when no index of this source was ever read here.
    pub record: Option<BaseRecord>,
}

impl Base {
    /// What is known of the source's index: one that was only discovered does not count.
    pub fn seen(&self) -> Seen {
        match &self.record {
            Some(record) if !record.discovered => Seen::Index(record.layout()),
            _ => Seen::Never,
        }
    }
}

/// When an unpushed change was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamp {
    pub first: Instant,
    pub last: Instant,
}

pub(super) struct Inner {
    pub tree: Tree,
    pub db: StateDb,
    pub base: Base,
    pub deltas: BTreeMap<String, DeltaRow>,
    pub stamps: HashMap<String, Stamp>,
    pub content_rows: HashMap<ContentId, ContentRow>,
    pub pending_deletes: BTreeMap<String, PendingDelete>,
    /// What was committed lately.
    pub committed: HashMap<String, CommittedRow>,
    pub live: HashMap<ContentId, Arc<LiveContent>>,
    pub ids: ContentIds,
    pub next_generation: u64,
    /// Requests that the process before this one carried out: their paths by number.
    pub answered: HashMap<u64, String>,
    pub next_answer: u64,
    /// What every content takes on the disk, and which was opened last.
    pub space: Space,
    /// What the kernel was not told yet of evicted files.
    pub eviction_notices: Vec<Notice>,
    pub read_only: Option<String>,
    /// Index entries that a directory of ours hides, beside those the index itself reports.
    pub shadowed: BTreeMap<String, String>,
}

impl Inner {
    pub fn writable(&self) -> Result<()> {
        match &self.read_only {
            Some(reason) => Err(VolumeError::ReadOnly(reason.clone())),
            None => Ok(()),
        }
    }

    /// A name in a directory. One that a process before this one told the kernel of is stale.
    pub fn child(&self, parent: Ino, name: &str) -> Result<Ino> {
        self.tree.get(parent).ok_or(VolumeError::Stale)?;
        self.tree.child(parent, name).ok_or(VolumeError::NotFound)
    }

    pub fn new_generation(&mut self) -> u64 {
        self.next_generation += 1;
        self.next_generation
    }

    pub fn touch(&mut self, path: &str) {
        let now = Instant::now();
        self.stamps.entry(path.to_owned()).and_modify(|s| s.last = now).or_insert(Stamp { first: now, last: now });
    }

    /// What is in the bucket under a path, as far as this machine knows: what a change made now replaces.
    pub fn replaced_at(&self, path: &str) -> Option<Replaced> {
        if let Some(row) = self.deltas.get(path) {
            return row.replaces.clone();
        }
        let entry = self.base.index.get(path)?;
        let fingerprint = self
            .tree
            .find(path)
            .and_then(|ino| self.version_of(ino))
            .filter(|v| v.key == path && v.entry == entry)
            .and_then(|v| v.fingerprint);
        Some(Replaced { entry, fingerprint })
    }

    /// The version in the bucket whose bytes a file has, unless they were changed here.
    pub fn version_of(&self, ino: Ino) -> Option<Version> {
        let content = self.tree.get(ino)?.content()?;
        let path = self.tree.path(ino)?;
        let fetched = content.id.and_then(|id| match self.live.get(&id) {
            Some(live) => live.state().version.clone(),
            None => self.content_rows.get(&id).and_then(|row| row.version.clone()),
        });
        match self.deltas.get(&path).map(|row| &row.delta) {
            Some(crate::cache::rows::Delta::Put { origin, .. }) => {
                let origin = origin.clone()?;
                match fetched {
                    Some(fetched) if fetched.key == origin.key && fetched.entry == origin.entry => Some(fetched),
                    _ => Some(origin),
                }
            }
            Some(crate::cache::rows::Delta::Remove) => None,
            None => match fetched {
                Some(version) => Some(version),
                None => {
                    let entry = self.base.index.get(&path)?;
                    Some(Version { key: path, entry, fingerprint: None })
                }
            },
        }
    }

    pub fn is_synced(path: &str) -> bool {
        classify(path) == NameClass::Synced
    }

    /// The row of a node as it should be in state.db; `None` when there is nothing to remember.
    pub fn node_row(&self, ino: Ino, path: &str) -> Option<NodeRow> {
        let node = self.tree.get(ino)?;
        let content = node.content().and_then(|c| c.id).filter(|id| self.content_rows.contains_key(id));
        let attrs = node.attrs_row();
        let needed = content.is_some() || !attrs.is_empty() || node.explicit || self.deltas.contains_key(path);
        needed.then(|| NodeRow { path: path.to_owned(), kind: node.kind(), content, attrs })
    }

    /// The content of a file all of whose bytes are here.
    pub fn local_content(&self, ino: Ino) -> Option<ContentId> {
        let id = self.tree.get(ino)?.content()?.id?;
        let complete = match self.live.get(&id) {
            Some(live) => live.is_complete(),
            None => self.content_rows.get(&id)?.present.is_none(),
        };
        complete.then_some(id)
    }

    /// The path of a live content, unless its file lost its name or got another content.
    pub fn live_path(&self, live: &LiveContent) -> Option<String> {
        let node = self.tree.get(live.ino)?;
        (node.content()?.id == Some(live.id)).then(|| self.tree.path(live.ino)).flatten()
    }

    /// The entry of the base at a path.
    pub fn base_entry(&self, path: &str) -> Option<Entry> {
        self.base.index.get(path)
    }
}
