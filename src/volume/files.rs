//! Open files: opening, the durable mark before the first write, truncation, closing, fsync.
//!
//! Part of the volume. Invariants: a content is opened for writing only when all of it is here, and only after state.db
//! says that it may change; its hard link in `cache/` is gone by then.

use std::sync::Arc;

use super::delta::Changes;
use super::fetch_state::FetchState;
use super::fetching::InUse;
use super::inner::Inner;
use super::live::LiveContent;
use super::notice::Notice;
use super::pattern::Pattern;
use super::recording::complete_stamp;
use super::{Result, Volume, VolumeError};
use crate::cache::rows::{ContentRow, Delta, DeltaRow, NodeRow};
use crate::datastore::names::is_rewritten_in_place;
use crate::tree::{Ino, OpenFile, Remote};

/// An open file.
#[derive(Debug)]
pub struct Handle {
    /// The inode.
    pub ino: Ino,
    /// Its content at open; a reader keeps the version that it opened.
    pub live: Arc<LiveContent>,
    /// Opened for writing.
    pub writable: bool,
    /// The kernel writes through it by itself; how.
    pub unseen: Option<Unseen>,
    /// How it is read.
    pub pattern: Pattern,
}

/// How the kernel writes by itself through a handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// By write(2) and its kin alone.
    Written,
    /// Through shared mappings too.
    Mappable,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenRequest {
    /// For writing.
    pub writable: bool,
    /// Emptied first.
    pub truncate: bool,
}

/// Result of an operation that may need bytes which are not here.
#[derive(Debug)]
pub enum OpenOutcome {
    /// Done.
    Ready(Handle),
    /// All of this content must be fetched first; then ask again while this is held.
    Fetch(InUse),
}

impl Volume {
    pub(super) fn handle(&self, inner: &mut Inner, ino: Ino, live: Arc<LiveContent>, writable: bool) -> Handle {
        live.add_handle();
        if writable {
            live.add_writer();
        }
        inner.tree.count_open(ino, 1);
        Handle { ino, live, writable, unseen: None, pattern: Pattern::default() }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// `IsDir`, `Stale`, `ReadOnly`, disk errors.
    pub fn open(self: &Arc<Self>, ino: Ino, request: OpenRequest) -> Result<OpenOutcome> {
        let mut inner = self.lock();
        self.with_room(&mut inner, |inner| self.open_locked(inner, ino, request))
    }

    fn open_locked(self: &Arc<Self>, inner: &mut Inner, ino: Ino, request: OpenRequest) -> Result<OpenOutcome> {
        let node = inner.tree.get(ino).ok_or(VolumeError::Stale)?;
        if node.is_dir() {
            return Err(VolumeError::IsDir);
        }
        if !node.is_linked() {
            // The kernel looks the name up again and finds what is there now.
            return Err(VolumeError::Stale);
        }
        if request.writable || request.truncate {
            inner.writable()?;
        }
        if request.truncate
            && let Some(fetch) = self.truncate_locked(inner, ino, 0)?
        {
            return Ok(OpenOutcome::Fetch(fetch));
        }
        let live = self.live_for(inner, ino)?;
        self.note_open(inner, &live);
        if !request.writable {
            return Ok(OpenOutcome::Ready(self.handle(inner, ino, live, false)));
        }
        if !live.is_complete() {
            return Ok(OpenOutcome::Fetch(self.in_use(&live)));
        }
        self.mark_suspect(inner, ino, &live)?;
        Ok(OpenOutcome::Ready(self.handle(inner, ino, live, true)))
    }

    /// Opens a file again that a process before this one had open, unless it has another content now.
    ///
    /// # Errors
    /// `Stale`, `ReadOnly`, disk errors.
    pub fn open_again(self: &Arc<Self>, file: &OpenFile) -> Result<Option<Handle>> {
        let id = self.lock().tree.get(file.ino).and_then(|node| node.content()?.id);
        if id.is_none_or(|id| id.0 != file.content) {
            return Ok(None);
        }
        match self.open(file.ino, OpenRequest { writable: file.writable, truncate: false })? {
            OpenOutcome::Ready(handle) if Some(handle.live.id) == id => Ok(Some(handle)),
            OpenOutcome::Ready(handle) => {
                self.release(&handle);
                Ok(None)
            }
            OpenOutcome::Fetch(_) => Ok(None),
        }
    }

    /// What is opened is evicted last.
    pub(super) fn note_open(&self, inner: &mut Inner, live: &LiveContent) {
        if inner.space.opened(live.id, live.ino) {
            self.opened.ring();
        }
    }

    /// The live content of a file, opening or preparing it.
    pub(super) fn live_for(&self, inner: &mut Inner, ino: Ino) -> Result<Arc<LiveContent>> {
        let content = inner.tree.get(ino).and_then(|n| n.content()).ok_or(VolumeError::Stale)?;
        if let Some(live) = content.id.and_then(|id| inner.live.get(&id)) {
            return Ok(Arc::clone(live));
        }
        if let Some(id) = content.id
            && let Some(row) = inner.content_rows.get(&id).cloned()
        {
            match self.contents.open_existing(id) {
                Ok(file) => {
                    let state = match row.present {
                        None => FetchState::complete(row.version),
                        Some(present) => FetchState { recorded: true, ..FetchState::partial(row.version, present) },
                    };
                    let live = Arc::new(LiveContent::new(id, ino, file, state));
                    inner.live.insert(id, Arc::clone(&live));
                    return Ok(live);
                }
                Err(error) if !error.is_not_found() || self.has_own_bytes(inner, ino) => return Err(error.into()),
                // Evicted just before a power cut, say.
                Err(error) => tracing::warn!(%error, "a cached content is missing and will be fetched again"),
            }
        }
        let version = inner.version_of(ino).ok_or(VolumeError::Stale)?;
        let (id, file) = self.new_content(inner)?;
        let mut state = FetchState::partial(Some(version), crate::cache::RangeSet::default());
        let export = state.version.as_ref().is_some_and(|v| is_rewritten_in_place(&v.key));
        state.complete = content.remote.size == 0 && !export;
        let live = Arc::new(LiveContent::new(id, ino, Arc::new(file), state));
        inner.live.insert(id, Arc::clone(&live));
        inner.tree.change_content(ino, |content| content.id = Some(id));
        if live.is_complete() {
            self.stamp_mtime(inner, ino, &live);
        }
        Ok(live)
    }

    /// Whether a file's bytes are, or may be, only here.
    fn has_own_bytes(&self, inner: &Inner, ino: Ino) -> bool {
        let row = inner.tree.path(ino).and_then(|path| inner.deltas.get(&path));
        let suspect = row.is_some_and(|row| matches!(row.delta, Delta::Put { suspect: true, .. }));
        suspect || inner.version_of(ino).is_none()
    }

    /// Records, before the first byte, that the content may change.
    fn mark_suspect(&self, inner: &mut Inner, ino: Ino, live: &Arc<LiveContent>) -> Result<()> {
        let Some(path) = inner.tree.path(ino) else { return Ok(()) };
        let generation = inner.new_generation();
        let row = match inner.deltas.get_mut(&path) {
            Some(row) if matches!(row.delta, Delta::Put { origin: None, .. } | Delta::Put { suspect: true, .. }) => {
                // A push that is under way must not clear what may be written from now on.
                row.generation = generation;
                return Ok(());
            }
            _ if !Inner::is_synced(&path) => return Ok(()),
            _ => {
                let origin = inner.version_of(ino);
                inner.put_row(&path, origin, true)
            }
        };
        self.reference.unlink(&path);
        crate::fail_point!("open.before_suspect");
        let mut changes = Changes::default();
        self.record_content(inner, live, &mut changes)?;
        changes.delta(&path, row);
        if let Some(mut node) = inner.node_row(ino, &path) {
            node.content = Some(live.id);
            changes.node(&path, Some(node));
        } else {
            let node = inner.tree.get(ino).ok_or(VolumeError::Stale)?;
            let (kind, attrs) = (node.kind(), node.attrs_row());
            let row = NodeRow { path: path.clone(), kind, content: Some(live.id), attrs };
            changes.node(&path, Some(row));
        }
        inner.commit(changes)?;
        live.state().recorded = true;
        self.changed.ring();
        Ok(())
    }

    /// Adds the row of a fetched content whose bytes are made durable here.
    fn record_content(&self, inner: &Inner, live: &LiveContent, changes: &mut Changes) -> Result<()> {
        let (recorded, version, present) = {
            let state = live.state();
            (state.recorded, state.version.clone(), (!state.complete).then(|| state.present.clone()))
        };
        if recorded && inner.content_rows.contains_key(&live.id) {
            return Ok(());
        }
        live.file.sync_data().map_err(VolumeError::content("sync"))?;
        changes
            .content(live.id, Some(ContentRow { stamp: complete_stamp(live, present.is_none())?, version, present }));
        Ok(())
    }

    /// Changes the size of a file. `Some`: that content must be fetched first.
    ///
    /// # Errors
    /// `IsDir`, `ReadOnly`, disk errors.
    pub fn truncate(self: &Arc<Self>, ino: Ino, size: u64) -> Result<Option<InUse>> {
        let mut inner = self.lock();
        inner.writable()?;
        self.with_room(&mut inner, |inner| self.truncate_locked(inner, ino, size))
    }

    fn truncate_locked(self: &Arc<Self>, inner: &mut Inner, ino: Ino, size: u64) -> Result<Option<InUse>> {
        let node = inner.tree.get(ino).ok_or(VolumeError::Stale)?;
        if node.is_dir() {
            return Err(VolumeError::IsDir);
        }
        if !node.is_linked() && node.content().is_none_or(|c| c.id.is_none()) {
            return Err(VolumeError::Stale);
        }
        let complete = node.content().and_then(|c| c.id).is_some_and(|id| match inner.live.get(&id) {
            Some(live) => live.is_complete(),
            None => inner.content_rows.get(&id).is_some_and(|row| row.present.is_none()),
        });
        if !complete && size == 0 && node.is_linked() {
            return self.replace_with_empty(inner, ino).map(|()| None);
        }
        let live = self.live_for(inner, ino)?;
        if !live.is_complete() {
            return Ok(Some(self.in_use(&live)));
        }
        self.mark_suspect(inner, ino, &live)?;
        crate::fail_point!("truncate.before");
        live.modify(|file| file.set_len(size)).map_err(VolumeError::content("truncate"))?;
        inner.space.set(live.id, ino, size);
        crate::fail_point!("truncate.after");
        inner.touch_ctime(ino);
        self.changed.ring();
        if live.writers() == 0 {
            self.settle(inner, ino, &live)?;
        }
        if live.handles() == 0 {
            self.retire(inner, ino, &live);
        }
        Ok(None)
    }

    /// Gives a file that is not here a new, empty content: nothing is fetched.
    fn replace_with_empty(&self, inner: &mut Inner, ino: Ino) -> Result<()> {
        let path = inner.tree.path(ino).ok_or(VolumeError::Stale)?;
        let old = inner.tree.get(ino).and_then(|n| n.content()).and_then(|c| c.id);
        let id = self.new_content(inner)?.0;
        self.reference.unlink(&path);
        let mut changes = Changes::default();
        let row = inner.put_row(&path, None, false);
        changes.delta(&path, row);
        changes.content(id, Some(ContentRow::changed()));
        if let Some(old) = old {
            changes.content(old, None);
        }
        let node = inner.tree.get(ino).ok_or(VolumeError::Stale)?;
        let (kind, attrs) = (node.kind(), node.attrs_row());
        changes.node(&path, Some(NodeRow { path: path.clone(), kind, content: Some(id), attrs }));
        if let Err(error) = inner.commit(changes) {
            self.remove_content_now(inner, id);
            return Err(error);
        }
        inner.tree.change_content(ino, |content| {
            content.id = Some(id);
            content.remote = Remote { size: 0, mtime: crate::datastore::now_nanos(), ..content.remote };
        });
        if let Some(node) = inner.tree.get_mut(ino) {
            node.attrs_mut().mtime = None;
        }
        inner.touch_ctime(ino);
        if let Some(old) = old {
            if let Some(live) = inner.live.get(&old) {
                live.replace();
            }
            self.discard_unless_live(inner, old);
        }
        self.changed.ring();
        Ok(())
    }

    /// The content that a handle reads: that of its inode, while the inode has a name. Another one than at open when the
    /// file was emptied without being fetched.
    ///
    /// # Errors
    /// Disk errors.
    pub fn content_of(&self, handle: &Handle) -> Result<Arc<LiveContent>> {
        if !handle.live.is_replaced() {
            return Ok(Arc::clone(&handle.live));
        }
        let mut inner = self.lock();
        if inner.tree.get(handle.ino).is_some_and(|n| n.is_linked()) {
            self.live_for(&mut inner, handle.ino)
        } else {
            Ok(Arc::clone(&handle.live))
        }
    }

    /// Bytes up to `end` were written through a handle: ctime moves, and privileges are taken away as POSIX asks.
    pub fn written(&self, handle: &Handle, end: u64) {
        let mut inner = self.lock();
        self.note_growth(&mut inner, &handle.live, end);
        self.note_written(&mut inner, handle.ino);
    }

    /// The kernel wrote to a content by itself: the same as [`Volume::written`], however much it was.
    pub(super) fn note_unseen(&self, inner: &mut Inner, ino: Ino, live: &LiveContent) {
        match live.stat() {
            Ok((size, _)) => self.note_growth(inner, live, size),
            Err(error) => tracing::warn!(%error, "cannot see how much was written to a content"),
        }
        self.note_written(inner, ino);
    }

    fn note_written(&self, inner: &mut Inner, ino: Ino) {
        self.changed.ring();
        inner.touch_ctime(ino);
        if let Some(mode) = inner.tree.get_mut(ino).and_then(|n| n.attrs_if_any()).and_then(|a| a.mode.as_mut()) {
            *mode &= !0o4000;
            if *mode & 0o010 != 0 {
                *mode &= !0o2000;
            }
        }
    }

    /// From now on the kernel writes through this handle by itself. Before it is told that it may.
    ///
    /// # Errors
    /// Disk errors; then it must not.
    pub fn write_unseen(&self, handle: &mut Handle, how: Unseen) -> Result<()> {
        handle.live.begin_unseen(how == Unseen::Mappable).map_err(VolumeError::content("stat"))?;
        handle.unseen = Some(how);
        Ok(())
    }

    /// Looks for what the kernel wrote by itself. Returns the files whose attributes it does not show yet.
    pub fn notice_unseen(&self) -> Vec<Notice> {
        let mut inner = self.lock();
        let written: Vec<_> = inner.live.values().filter(|live| live.take_untold()).map(Arc::clone).collect();
        written.iter().for_each(|live| self.note_unseen(&mut inner, live.ino, live));
        written.iter().map(|live| Notice::Inode(live.ino)).collect()
    }

    /// Closes a handle.
    pub fn release(&self, handle: &Handle) {
        let mut inner = self.lock();
        let live = &handle.live;
        if live.take_untold() {
            self.note_unseen(&mut inner, handle.ino, live);
        }
        if handle.unseen == Some(Unseen::Mappable) {
            live.unmapped();
        }
        if handle.writable
            && live.drop_writer() == 0
            && let Err(error) = self.settle(&mut inner, handle.ino, live)
        {
            // The suspect mark stays: the next push compares the bytes.
            tracing::warn!(%error, "cannot record the end of writing");
        }
        if let Some(how) = handle.unseen {
            live.end_unseen(how == Unseen::Mappable);
        }
        live.drop_handle();
        if live.handles() == 0 {
            self.retire(&mut inner, handle.ino, live);
        }
        inner.tree.count_open(handle.ino, -1);
        self.relieve(&mut inner);
    }

    /// The last writer is gone: replaces the suspicion by the fact.
    fn settle(&self, inner: &mut Inner, ino: Ino, live: &Arc<LiveContent>) -> Result<()> {
        let Some(path) = inner.tree.path(ino) else { return Ok(()) };
        let Some(row) = inner.deltas.get(&path).cloned() else { return Ok(()) };
        let Delta::Put { origin, suspect: true } = row.delta else { return Ok(()) };
        let mut changes = Changes::default();
        if live.is_dirty() {
            live.state().version = None;
            let generation = inner.new_generation();
            let delta = Delta::Put { origin: None, suspect: false };
            changes.delta(&path, Some(DeltaRow { generation, delta, ..row }));
            changes.content(live.id, Some(ContentRow::changed()));
        } else if origin.as_ref().is_some_and(|o| o.key == path && Some(&o.entry) == inner.base_entry(&path).as_ref())
            && !self.attributes_differ(inner, ino, origin.as_ref().map(|o| &o.entry))
        {
            changes.delta(&path, None);
        } else {
            let delta = Delta::Put { origin, suspect: false };
            changes.delta(&path, Some(DeltaRow { delta, ..row }));
        }
        inner.commit(changes)?;
        self.changed.ring();
        Ok(())
    }

    /// Nobody has the content open any more.
    pub(super) fn retire(&self, inner: &mut Inner, ino: Ino, live: &Arc<LiveContent>) {
        let named =
            inner.tree.get(ino).filter(|n| n.is_linked()).and_then(|n| n.content()).and_then(|c| c.id) == Some(live.id);
        if !named {
            if inner.live.remove(&live.id).is_some() {
                self.doom(inner, live.id);
            }
            return;
        }
        if live.was_touched() {
            self.remember_stat(inner, ino, live);
        }
        let (recorded, busy) = {
            let state = live.state();
            (state.recorded, state.is_fetched())
        };
        if recorded && !busy {
            self.contents.keep(live.id, &live.file);
            inner.live.remove(&live.id);
        }
    }

    /// Copies size and mtime of a local content into its node.
    pub(super) fn remember_stat(&self, inner: &mut Inner, ino: Ino, live: &LiveContent) {
        if !live.is_complete() {
            return;
        }
        match super::attributes::file_stat(&live.file) {
            Ok((size, mtime)) => {
                inner.tree.change_content(ino, |content| content.remote = Remote { size, mtime, ..content.remote });
                inner.space.set(live.id, ino, size);
            }
            Err(error) => tracing::warn!(%error, "cannot stat a local content"),
        }
    }

    /// Makes everything about a file survive a power cut: bytes, name, rows.
    ///
    /// # Errors
    /// Disk errors.
    pub fn fsync(&self, live: &LiveContent) -> Result<()> {
        live.file.sync_data().map_err(VolumeError::content("sync"))?;
        self.sync_names()
    }

    /// Makes all names and rows so far survive a power cut.
    ///
    /// # Errors
    /// Disk errors.
    pub fn sync_names(&self) -> Result<()> {
        self.contents.sync_dir()?;
        Ok(self.lock().db.commit_durable()?)
    }
}
