//! What a fetch asks of the volume, and the census for `status`.
//!
//! Part of the volume. Invariant: a content is declared complete together with the mtime that stat showed all along.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::inner::Inner;
use super::live::LiveContent;
use super::notice::Notice;
use super::{Result, Volume, VolumeError};
use crate::cache::rows::Kind;
use crate::tree::Ino;

/// Counts for `status`.
#[derive(Clone, Debug, Default)]
pub struct Census {
    /// Files with local content.
    pub cached_files: u64,
    /// Their bytes on this disk.
    pub cached_bytes: u64,
    /// Files that never leave this machine.
    pub local_only: u64,
    /// Contents that were evicted since the start, and their bytes.
    pub evicted: (u64, u64),
    /// Index entries hidden by something on this machine, and why.
    pub shadowed: BTreeMap<String, String>,
}

/// Counts as an open handle: while somebody waits for a content, it is not closed.
pub struct InUse {
    volume: Arc<Volume>,
    live: Arc<LiveContent>,
}

impl std::ops::Deref for InUse {
    type Target = Arc<LiveContent>;

    fn deref(&self) -> &Self::Target {
        &self.live
    }
}

impl std::fmt::Debug for InUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.live.fmt(f)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.live.drop_handle();
        self.volume.fetched(&self.live);
    }
}

impl Volume {
    /// Keeps a content open for as long as the answer lives.
    pub fn in_use(self: &Arc<Self>, live: &Arc<LiveContent>) -> InUse {
        live.add_handle();
        InUse { volume: Arc::clone(self), live: Arc::clone(live) }
    }

    /// When the part of the index in view that holds a path was written, by the store's clock, in seconds since the epoch.
    pub fn index_written_at(&self, path: &str) -> Option<i64> {
        self.lock().base.index.written_at(path)
    }

    /// The relative path of an inode, if it has a name.
    pub fn path_of(&self, ino: Ino) -> Option<String> {
        self.lock().tree.path(ino)
    }

    /// Whether a content still is that of its file.
    pub fn is_current(&self, live: &LiveContent) -> bool {
        let inner = self.lock();
        inner.tree.get(live.ino).is_some_and(|n| n.is_linked() && n.content().is_some_and(|c| c.id == Some(live.id)))
    }

    /// All bytes of a round are here and verified.
    pub fn fetch_completed(&self, live: &LiveContent, round: u64) {
        let mut inner = self.lock();
        if inner.live_path(live).is_some() {
            self.stamp_mtime(&mut inner, live.ino, live);
        }
        if !live.fetch.compared(round) {
            tracing::debug!("what was compared with its hash was forgotten meanwhile");
        }
    }

    /// A fetch ended, well or not: there may be something to record, and nobody may be waiting any more.
    pub fn fetched(&self, live: &Arc<LiveContent>) {
        let mut inner = self.lock();
        self.count_fetched(&mut inner, live);
        if live.handles() == 0 {
            self.retire(&mut inner, live.ino, live);
            self.relieve(&mut inner);
        }
        self.fetched.ring();
    }

    /// What a content counts for, once no fetch is under way that room was made for.
    fn count_fetched(&self, inner: &mut Inner, live: &LiveContent) {
        let held = {
            let state = live.state();
            let is_settled = !state.is_fetched() && !state.complete;
            (is_settled && inner.live.contains_key(&live.id)).then(|| state.present.total())
        };
        if let Some(bytes) = held {
            inner.space.set(live.id, live.ino, bytes);
        }
    }

    /// What was open or unpushed is not any more: what it overshot by can go.
    pub(super) fn relieve(&self, inner: &mut Inner) {
        if self.options.cache_size.is_some_and(|limit| inner.space.total() > limit) {
            inner.space.hope();
            self.pressure.ring();
        }
    }

    /// Resolves when something was fetched since the last call.
    pub async fn wait_for_fetch(&self) {
        self.fetched.heard().await;
    }

    /// How many fetched contents wait for being recorded; each holds a descriptor.
    pub fn unrecorded(&self) -> usize {
        self.lock().live.values().filter(|live| !live.state().recorded).count()
    }

    /// A remote file has another size than its entry says, and the object is right.
    pub fn resize_remote(&self, ino: Ino, size: u64) -> Vec<Notice> {
        let mut inner = self.lock();
        match inner.tree.change_content(ino, |content| content.remote.size = size) {
            true => vec![Notice::Inode(ino)],
            false => Vec::new(),
        }
    }

    /// The content of a symlink, to be read (and first fetched, when it is not complete).
    ///
    /// # Errors
    /// `Stale`, `Invalid` for anything but a symlink, disk errors.
    pub fn open_link(self: &Arc<Self>, ino: Ino) -> Result<InUse> {
        let mut inner = self.lock();
        if inner.tree.kind(ino) != Some(Kind::Symlink) {
            return Err(VolumeError::Invalid("not a symbolic link"));
        }
        let live = self.live_for(&mut inner, ino)?;
        self.note_open(&mut inner, &live);
        Ok(self.in_use(&live))
    }

    /// Counts for `status`.
    pub fn census(&self) -> Census {
        let inner = self.lock();
        let evicted = inner.space.evicted;
        let mut census = Census { evicted, shadowed: inner.shadowed.clone(), ..Census::default() };
        for (ino, node) in inner.tree.linked() {
            let Some(content) = node.content() else { continue };
            if crate::datastore::names::may_be_internal(node.name()) {
                census.local_only += u64::from(inner.tree.path(ino).is_some_and(|path| !Inner::is_synced(&path)));
            }
            let Some(id) = content.id else { continue };
            let present = match inner.live.get(&id) {
                Some(live) => {
                    let state = live.state();
                    if state.complete { content.remote.size } else { state.present.total() }
                }
                None => match inner.content_rows.get(&id).and_then(|row| row.present.as_ref()) {
                    Some(present) => present.total(),
                    None => content.remote.size,
                },
            };
            census.cached_files += 1;
            census.cached_bytes += present;
        }
        census
    }
}
