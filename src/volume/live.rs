//! A content that is open or being fetched: its file, how much of it is here, and who is writing.
//!
//! Depends on `cache` values. Invariants: `present` names a range only after its bytes were written to the file; a
//! [`Stable`] that still holds proves that no write began or ended since it was taken.

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use crate::cache::rows::Version;
use crate::cache::{ContentId, RangeSet};
use crate::tree::Ino;

/// Why a fetch failed, as far as it matters to those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCause {
    /// Nothing answers.
    Unreachable,
    /// There is no room to store the bytes.
    NoRoom,
    /// Anything else.
    Other,
}

/// How far a content is fetched.
#[derive(Debug)]
pub struct FetchState {
    /// What is fetched: key, entry and, from the first answer on, the fingerprint that pins the version.
    pub version: Option<Version>,
    /// All bytes are here.
    pub complete: bool,
    /// state.db knows that it is complete and the bytes are durable.
    pub recorded: bool,
    /// Which bytes are here, unless complete.
    pub present: RangeSet,
    /// Ranges that requests are under way for.
    pub in_flight: Vec<Range<u64>>,
    /// A first request is under way whose answer decides the version.
    pub pinning: bool,
    /// Number and reason of the last failure.
    pub failure: (u64, Option<Arc<str>>),
    /// What kind it was.
    pub cause: FailureCause,
    /// Bytes of this version were shown that are not in the file.
    pub streamed: bool,
    /// The version is gone from the bucket: what is here can be read, the rest never.
    pub version_gone: bool,
    /// Bytes with another hash came before: nothing is shown until all is compared.
    pub verify_first: bool,
}

impl FetchState {
    /// Of a content whose bytes are all here and known to state.db.
    pub(super) fn complete(version: Option<Version>) -> Self {
        Self { complete: true, recorded: true, ..Self::partial(version, RangeSet::default()) }
    }

    /// Of a content of which `present` is here.
    pub(super) fn partial(version: Option<Version>, present: RangeSet) -> Self {
        Self {
            version,
            complete: false,
            recorded: false,
            present,
            in_flight: Vec::new(),
            pinning: false,
            failure: (0, None),
            cause: FailureCause::Other,
            streamed: false,
            version_gone: false,
            verify_first: false,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct LiveContent {
    /// Number of the content.
    pub id: ContentId,
    /// The file that has it.
    pub ino: Ino,
    /// Its file, read and written at offsets.
    pub file: Arc<File>,
    state: Mutex<FetchState>,
    progress: watch::Sender<u64>,
    begun: AtomicU64,
    ended: AtomicU64,
    writers: AtomicU32,
    handles: AtomicU32,
    dirty: AtomicBool,
    replaced: AtomicBool,
    /// How many wait for all of it to be stored here, whatever `--cache-size` says.
    storing: AtomicU32,
    /// Held by whoever reads a block past the file.
    pub streaming: tokio::sync::Mutex<()>,
    last_write: Mutex<Option<Instant>>,
}

/// Proof of a moment in which nobody was writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stable(u64);

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
    pub(super) fn new(id: ContentId, ino: Ino, file: File, state: FetchState) -> Self {
        Self {
            id,
            ino,
            file: Arc::new(file),
            state: Mutex::new(state),
            progress: watch::Sender::new(0),
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            writers: AtomicU32::new(0),
            handles: AtomicU32::new(0),
            dirty: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            storing: AtomicU32::new(0),
            streaming: tokio::sync::Mutex::default(),
            last_write: Mutex::new(None),
        }
    }

    /// The fetch state. Never held across a wait.
    pub fn state(&self) -> MutexGuard<'_, FetchState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all bytes are here.
    pub fn is_complete(&self) -> bool {
        self.state().complete
    }

    /// To be told of fetch progress; subscribe before looking at the state.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.progress.subscribe()
    }

    /// Tells everybody who waits that the state changed.
    pub fn announce(&self) {
        self.progress.send_modify(|n| *n += 1);
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
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.dirty.store(true, Ordering::SeqCst);
        let result = change(&self.file);
        *self.last_write.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.ended.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// A point in time without a write under way; `None` while there is one.
    pub fn stable(&self) -> Option<Stable> {
        let ended = self.ended.load(Ordering::SeqCst);
        (self.begun.load(Ordering::SeqCst) == ended).then_some(Stable(ended))
    }

    /// Whether nothing was written since.
    pub fn unchanged_since(&self, stable: Stable) -> bool {
        self.begun.load(Ordering::SeqCst) == stable.0
    }

    /// Whether anything was written that no push carried away.
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    /// A push carried the bytes of `stable` away. Returns whether they still are all there is.
    pub(super) fn clean_if_unchanged(&self, stable: Stable) -> bool {
        let was = self.dirty.swap(false, Ordering::SeqCst);
        // A write that begins after the swap sets the flag again by itself; one that began before is seen here.
        if self.unchanged_since(stable) {
            return true;
        }
        self.dirty.fetch_or(was, Ordering::SeqCst);
        false
    }

    /// When the last write ended.
    pub fn last_write(&self) -> Option<Instant> {
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

    pub(super) fn add_writer(&self) {
        self.writers.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns how many are left.
    pub(super) fn drop_writer(&self) -> u32 {
        self.writers.fetch_sub(1, Ordering::SeqCst).saturating_sub(1)
    }
}
