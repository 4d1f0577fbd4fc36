//! A content that is open or being fetched: its file, how much of it is here, and who is writing.
//!
//! Depends on `cache` values. Invariant: a [`Stable`] that still holds proves that no write began or ended since it was taken.

use std::fs::File;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::fetch_state::{Fetch, FetchState};
use super::hashed::HashedPrefix;
use super::unseen::UnseenWrites;
use super::writes::{Stable, Writes};
use crate::cache::ContentId;
use crate::lock_order::MutexGuard;
use crate::tree::Ino;

/// See the module.
#[derive(Debug)]
pub struct LiveContent {
    /// Number of the content.
    pub id: ContentId,
    /// The file that has it.
    pub ino: Ino,
    /// Its file, read and written at offsets.
    pub file: Arc<File>,
    /// How far it is fetched.
    pub fetch: Fetch,
    /// The hash of what is here from the beginning on.
    pub hashed: HashedPrefix,
    writes: Writes,
    writers: AtomicU32,
    handles: AtomicU32,
    /// Its size or mtime may have changed since it was opened.
    touched: AtomicBool,
    replaced: AtomicBool,
    /// How many wait for all of it to be stored here, whatever `--cache-size` says.
    storing: AtomicU32,
    /// Held by whoever reads a block past the file.
    pub streaming: tokio::sync::Mutex<()>,
    unseen: UnseenWrites,
    /// Unseen writes were found that the attributes do not show yet.
    untold: AtomicBool,
    last_write: Mutex<Option<Instant>>,
}

/// While it lives, all of a content must be stored here, not streamed.
#[derive(Debug)]
pub struct MustStore(Arc<LiveContent>);

impl MustStore {
    /// Of this content.
    pub fn new(live: &Arc<LiveContent>) -> Self {
        live.storing.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(live))
    }
}

impl Drop for MustStore {
    fn drop(&mut self) {
        self.0.storing.fetch_sub(1, Ordering::SeqCst);
    }
}

impl LiveContent {
    pub(super) fn new(id: ContentId, ino: Ino, file: Arc<File>, state: FetchState) -> Self {
        Self {
            id,
            ino,
            file,
            touched: AtomicBool::new(!state.complete),
            fetch: Fetch::new(state),
            hashed: HashedPrefix::default(),
            writes: Writes::default(),
            writers: AtomicU32::new(0),
            handles: AtomicU32::new(0),
            replaced: AtomicBool::new(false),
            storing: AtomicU32::new(0),
            streaming: tokio::sync::Mutex::default(),
            unseen: UnseenWrites::default(),
            untold: AtomicBool::new(false),
            last_write: Mutex::new(None),
        }
    }

    /// The fetch state. Never held across a wait.
    pub fn state(&self) -> MutexGuard<'_, FetchState> {
        self.fetch.state()
    }

    /// Whether all bytes are here.
    pub fn is_complete(&self) -> bool {
        self.state().complete
    }

    /// Size and mtime (ns since the epoch) of the file.
    ///
    /// # Errors
    /// Disk errors.
    pub fn stat(&self) -> std::io::Result<(u64, i64)> {
        super::attributes::file_stat(&self.file)
    }

    /// Runs a modification of the bytes.
    pub fn modify<T>(&self, change: impl FnOnce(&File) -> T) -> T {
        self.writes.during(|| {
            let result = change(&self.file);
            *self.last_write.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            result
        })
    }

    /// A change that was not made through [`LiveContent::modify`].
    fn count_change(&self) {
        self.modify(|_| self.untold.store(true, Ordering::SeqCst));
    }

    /// Looks for writes that the kernel did by itself; they count from here on.
    fn look(&self) {
        self.unseen.look(&self.file, || self.count_change());
    }

    /// The kernel will write to the file by itself; `mappable`: also through shared mappings.
    ///
    /// # Errors
    /// Disk errors; then it must not.
    pub(super) fn begin_unseen(&self, mappable: bool) -> std::io::Result<()> {
        if !self.unseen.begin(&self.file, mappable)? {
            self.modify(|_| ());
        }
        Ok(())
    }

    /// Before the last look at what was written: a mapping that a push overtook makes the content count as changed.
    pub(super) fn unmapped(&self) {
        if self.unseen.take_carried() {
            self.modify(|_| ());
        }
    }

    pub(super) fn end_unseen(&self, mappable: bool) {
        self.unseen.end(mappable);
    }

    /// Whether the kernel may be writing by itself.
    pub fn has_unseen_writers(&self) -> bool {
        self.unseen.any()
    }

    /// Whether unseen writes were found since the last call.
    pub(super) fn take_untold(&self) -> bool {
        self.look();
        self.untold.swap(false, Ordering::SeqCst)
    }

    /// Sets the mtime (ns since the epoch) as the kernel asked: no change of the bytes.
    pub(super) fn set_mtime(&self, nanos: i64) -> std::io::Result<()> {
        self.touched.store(true, Ordering::SeqCst);
        let set = |file: &File| super::attributes::set_mtime(file, nanos);
        self.unseen.quietly(&self.file, || self.count_change(), set)
    }

    /// The same as [`LiveContent::stable`], also where the kernel writes by itself: then it waits for the disk. Proves that
    /// whatever had been written by then can be read.
    pub fn stable_on_disk(&self) -> Option<Stable> {
        let before = self.stable()?;
        if self.has_unseen_writers() {
            if let Err(error) = self.unseen.wait(&self.file) {
                tracing::warn!(%error, "cannot wait for the writers of a content");
                return None;
            }
            return self.unchanged_since(before).then_some(before);
        }
        Some(before)
    }

    /// A point in time without a write under way; `None` while there is one. See [`LiveContent::stable_on_disk`] for what
    /// the kernel writes by itself.
    pub fn stable(&self) -> Option<Stable> {
        self.look();
        self.writes.stable()
    }

    /// Whether nothing was written since.
    pub fn unchanged_since(&self, stable: Stable) -> bool {
        self.look();
        self.writes.unchanged_since(stable)
    }

    /// Whether anything was written that no push carried away.
    pub fn is_dirty(&self) -> bool {
        self.look();
        self.writes.are_dirty()
    }

    /// A push carried the bytes of `stable` away. Returns whether they still are all there is.
    pub(super) fn clean_if_unchanged(&self, stable: Stable) -> bool {
        self.unseen.note_carried();
        self.writes.clean_if_unchanged(stable, || self.look())
    }

    /// When the last write ended.
    pub fn last_write(&self) -> Option<Instant> {
        self.look();
        *self.last_write.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many handles are open for writing.
    pub fn writers(&self) -> u32 {
        self.writers.load(Ordering::SeqCst)
    }

    /// Whether somebody needs all of it here, to write.
    pub fn must_be_stored(&self) -> bool {
        self.storing.load(Ordering::SeqCst) > 0
    }

    /// Whether its file was emptied by giving it another content.
    pub fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::SeqCst)
    }

    pub(super) fn replace(&self) {
        self.replaced.store(true, Ordering::SeqCst);
    }

    /// How many handles are open.
    pub fn handles(&self) -> u32 {
        self.handles.load(Ordering::SeqCst)
    }

    pub(super) fn add_handle(&self) {
        self.handles.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn drop_handle(&self) {
        self.handles.fetch_sub(1, Ordering::SeqCst);
    }

    /// Whether its size or mtime may be others than when it was opened.
    pub(super) fn was_touched(&self) -> bool {
        self.touched.load(Ordering::SeqCst) || self.writes.any()
    }

    pub(super) fn add_writer(&self) {
        self.touched.store(true, Ordering::SeqCst);
        self.writers.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns how many are left.
    pub(super) fn drop_writer(&self) -> u32 {
        self.writers.fetch_sub(1, Ordering::SeqCst).saturating_sub(1)
    }
}
