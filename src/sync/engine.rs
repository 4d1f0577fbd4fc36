//! The engine of one mounted datastore: it ties the local volume to the bucket.
//!
//! Depends on `volume`, `datastore` and `store`. Invariants: the base changes under `index_gate` only; one push runs at
//! a time; kernel notifications leave through a thread of their own, with no lock held.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use super::notify::Notifications;
use super::pace::Pace;
use super::status::{Pending, Problem, Status, TimedError};
use super::{FlushError, SyncError};
use crate::datastore::{Datastore, Flavour, format_nanos, now_nanos};
use crate::store::ObjectStore;
use crate::tree::Incarnation;
use crate::volume::{Volume, VolumeOptions};

/// How many read errors and conflicts `status` remembers.
const REMEMBERED: usize = 20;
/// How many hidden entries `status` lists.
const LISTED: usize = 100;

/// How an engine works.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The cache directory, held by this process.
    pub cache_root: PathBuf,
    /// Turns changes away.
    pub read_only: bool,
    /// Time between refreshes.
    pub refresh: Duration,
    /// Idle time before a background flush.
    pub flush_after: Duration,
    /// Longest time that a change waits for a background flush.
    pub flush_max_age: Duration,
    /// Pushes even to a store that ignores preconditions.
    pub unsafe_no_conditional_writes: bool,
    /// fsync returns when the file is in the bucket.
    pub fsync_waits_for_bucket: bool,
    /// Uploads at a time.
    pub upload_concurrency: usize,
    /// Fetches at a time.
    pub download_concurrency: usize,
    /// Owner of files without an owner of their own.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// Permission bits taken away from files without a mode of their own.
    pub umask: u32,
    /// Bytes of prefix in object keys.
    pub key_prefix_len: usize,
    /// Most bytes that cached contents may take; `None`: as much as the disk has.
    pub cache_size: Option<u64>,
    /// This machine's name.
    pub host: String,
    /// Which process of the mount this is.
    pub incarnation: Incarnation,
}

#[derive(Default)]
pub(super) struct Journal {
    pub offline_since: Option<i64>,
    /// The last look at the bucket got no answer, for this reason.
    pub unreachable: Option<String>,
    pub last_error: Option<TimedError>,
    pub read_errors: VecDeque<TimedError>,
    pub conflicts: VecDeque<String>,
    pub last_refresh: Option<i64>,
    pub last_flush: Option<i64>,
}

/// See the module.
pub struct Engine {
    pub(super) options: EngineOptions,
    pub(super) datastore: Datastore,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) volume: Arc<Volume>,
    pub(super) notifications: Notifications,
    pub(super) downloads: Arc<Pace>,
    pub(super) uploads: Arc<Pace>,
    /// What was read past the full cache.
    pub(super) blocks: super::fetch::Blocks,
    pub(super) read_ahead: super::readahead::ReadAhead,
    /// Held while the base is read, merged or replaced.
    pub(super) index_gate: tokio::sync::Mutex<()>,
    /// Held by the push that is under way.
    pub(super) push_gate: tokio::sync::Mutex<super::push::PushState>,
    /// Number of the last refresh that began, and of the last that succeeded.
    pub(super) refreshes_begun: AtomicU64,
    pub(super) refreshed: AtomicU64,
    pub(super) uploaded: AtomicU64,
    /// The last look at the index failed.
    pub(super) index_in_doubt: AtomicBool,
    /// The index in view may have lost commits of ours that could not be told from changes under way.
    pub(super) commits_in_doubt: AtomicBool,
    pub(super) lost_contact: tokio::sync::Notify,
    pub(super) contact: super::contact::Contact,
    journal: Mutex<Journal>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Engine {
    /// Opens the cache directory and reads the index, or takes the saved base when the bucket cannot be reached.
    ///
    /// # Errors
    /// When the state cannot be used, or the bucket answers with an error, or there is neither a bucket nor a base.
    pub async fn start(options: EngineOptions, datastore: Datastore) -> Result<Arc<Self>, SyncError> {
        let store = Arc::clone(datastore.store());
        let volume_options = VolumeOptions {
            root: options.cache_root.clone(),
            uid: options.uid,
            gid: options.gid,
            umask: options.umask,
            key_prefix_len: options.key_prefix_len,
            read_only: options.read_only,
            cache_size: options.cache_size,
            host: options.host.clone(),
            incarnation: options.incarnation,
            flavour: Flavour::of(&*store),
            namespace: datastore.namespace().cloned(),
            started_at: now_nanos(),
        };
        let volume = tokio::task::spawn_blocking(move || Volume::load(volume_options))
            .await
            .map_err(|e| crate::store::StoreError::other("load the state", "", e.to_string()))??;
        let engine = Arc::new(Self {
            contact: super::contact::Contact::new(store.heard()),
            downloads: Pace::new(options.download_concurrency, store.refusals()),
            uploads: Pace::new(options.upload_concurrency, store.refusals()),
            read_ahead: super::readahead::ReadAhead::default(),
            options,
            datastore,
            store,
            blocks: super::fetch::Blocks::default(),
            volume: Arc::new(volume),
            notifications: Notifications::start(),
            index_gate: tokio::sync::Mutex::default(),
            push_gate: tokio::sync::Mutex::default(),
            refreshes_begun: AtomicU64::new(0),
            refreshed: AtomicU64::new(0),
            uploaded: AtomicU64::new(0),
            index_in_doubt: AtomicBool::new(false),
            // A process before this one may have ended in doubt.
            commits_in_doubt: AtomicBool::new(true),
            lost_contact: tokio::sync::Notify::new(),
            journal: Mutex::default(),
            tasks: Mutex::default(),
        });
        crate::fail_point!("start.before_refresh");
        let has_base = engine.volume.base().record.is_some_and(|r| !r.parts.is_empty());
        if engine.options.incarnation.number > 0 && has_base {
            // Programs wait for the one that comes after a crash: the background asks the bucket.
            engine.lost_contact.notify_one();
        } else if let Err(error) = engine.refresh().await {
            match (error.is_offline(), has_base) {
                (true, true) => tracing::warn!(%error, "starting without the bucket"),
                (true, false) => return Err(SyncError::NothingCached(Box::new(error))),
                (false, true) if matches!(error, SyncError::IndexVanished { .. }) => {
                    tracing::error!(%error, "starting")
                }
                _ => return Err(error),
            }
        }
        Ok(engine)
    }

    /// The local side.
    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// How it works.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    pub(super) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the kernel of changes from now on.
    pub fn attach_notifier(&self, notifier: fuser::Notifier) {
        self.notifications.attach(notifier);
    }

    /// Tells the kernel, without waiting for it.
    pub fn tell_kernel(&self, notices: Vec<crate::volume::Notice>) {
        self.notifications.tell(notices);
    }

    /// Remembers a read that failed, for `status` and the log.
    pub fn note_read_error(&self, path: &str, reason: &str) {
        tracing::error!(path, reason, "read failed");
        let mut journal = self.journal();
        // The newest of each file: a file that is tried again and again must not push out the others.
        journal.read_errors.retain(|known| known.message.strip_prefix(path).is_none_or(|rest| !rest.starts_with(": ")));
        if journal.read_errors.len() == REMEMBERED {
            journal.read_errors.pop_front();
        }
        journal
            .read_errors
            .push_back(TimedError { at: format_nanos(now_nanos()), message: format!("{path}: {reason}") });
    }

    /// Why nothing can be fetched now, when the last look at the bucket got no answer: a reader is not to wait for the same
    /// time-outs for every file. The refresh finds out when that is over.
    pub(super) fn cut_off(&self) -> Option<String> {
        let journal = self.journal();
        let since = format_nanos(journal.offline_since?);
        journal.unreachable.as_ref().map(|reason| format!("the bucket cannot be reached since {since}: {reason}"))
    }

    pub(super) fn note_conflict(&self, message: String) {
        tracing::warn!("{message}");
        let mut journal = self.journal();
        if journal.conflicts.len() == REMEMBERED {
            journal.conflicts.pop_front();
        }
        journal.conflicts.push_back(message);
    }

    pub(super) fn note_error(&self, operation: &str, error: &SyncError) {
        let message = format!("{operation}: {error}");
        tracing::error!("{message}");
        let mut journal = self.journal();
        let now = now_nanos();
        if error.is_offline() {
            journal.offline_since.get_or_insert(now);
        }
        journal.unreachable = error.is_unreachable().then(|| error.to_string());
        if journal.unreachable.is_some() {
            self.lost_contact.notify_one();
        }
        journal.last_error = Some(TimedError { at: format_nanos(now), message });
    }

    /// Some files failed, each for its reason.
    pub(super) fn note_reasons(&self, operation: &str, reasons: &[String]) {
        let shown = reasons.iter().take(3).map(String::as_str).collect::<Vec<_>>().join("; ");
        let message = format!("{operation}: {shown}");
        tracing::error!(failures = reasons.len(), "{message}");
        self.journal().last_error = Some(TimedError { at: format_nanos(now_nanos()), message });
    }

    /// What is not in the bucket yet.
    pub fn pending(&self) -> Pending {
        let (files, bytes, removals) = self.volume.pending_counts();
        Pending { files, bytes, removals, uploaded_bytes: self.uploaded.load(Ordering::Relaxed) }
    }

    /// The state of this mount.
    pub fn status(&self) -> Status {
        let base = self.volume.base();
        let census = self.volume.census();
        let mut hidden: Vec<Problem> = base
            .index
            .problems()
            .into_iter()
            .map(|p| Problem { name: p.name, reason: p.reason })
            .chain(census.shadowed.into_iter().map(|(name, reason)| Problem { name, reason }))
            .collect();
        let hidden_count = hidden.len() as u64;
        hidden.truncate(LISTED);
        let (read_ahead_bytes, read_ahead_unused_bytes) = self.read_ahead.bytes();
        let journal = self.journal();
        Status {
            source: self.datastore.bucket().describe(),
            namespace: self.datastore.namespace().map(ToString::to_string),
            offline_since: journal.offline_since.map(format_nanos),
            read_only_reason: self.volume.read_only_reason(),
            entries: base.index.len() as u64,
            hidden,
            hidden_count,
            cached_files: census.cached_files,
            cached_bytes: census.cached_bytes,
            cache_limit: self.options.cache_size,
            evicted_files: census.evicted.0,
            evicted_bytes: census.evicted.1,
            read_ahead_bytes,
            read_ahead_unused_bytes,
            downloads_at_a_time: self.downloads.limit() as u64,
            uploads_at_a_time: self.uploads.limit() as u64,
            pending: self.pending(),
            local_only: census.local_only,
            conflicts: journal.conflicts.iter().cloned().collect(),
            last_error: journal.last_error.clone(),
            read_errors: journal.read_errors.iter().cloned().collect(),
            last_refresh: journal.last_refresh.map(format_nanos),
            last_flush: journal.last_flush.map(format_nanos),
        }
    }

    /// Pushes everything that was written before the call.
    ///
    /// # Errors
    /// What is left, and why.
    pub async fn flush(self: &Arc<Self>) -> Result<(), FlushError> {
        // A task of its own: whoever waits may go away, and a push that stops halfway would keep the lock until it is stale.
        let engine = Arc::clone(self);
        let pushed = tokio::spawn(async move { engine.push_everything().await }).await;
        let result = pushed.unwrap_or_else(|error| Err(vec![format!("the push failed: {error}")]));
        self.uploaded.store(0, Ordering::Relaxed);
        result.map_err(|mut reasons| {
            reasons.truncate(3);
            FlushError { pending: self.pending(), reasons }
        })
    }

    /// Starts the tasks that refresh, flush and record in the background.
    pub fn spawn_background(self: &Arc<Self>) {
        let tasks = [
            tokio::spawn(super::background::refresh(Arc::clone(self))),
            tokio::spawn(super::background::record(Arc::clone(self))),
            tokio::spawn(super::background::remember_opens(Arc::clone(self))),
            tokio::spawn(super::background::keep_room(Arc::clone(self))),
            tokio::spawn(super::background::flush(Arc::clone(self))),
        ];
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).extend(tasks);
    }

    /// Ends the background tasks and leaves the cache directory in order. After the last flush.
    pub async fn close(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        for task in tasks {
            task.abort();
            if let Err(error) = task.await
                && error.is_panic()
            {
                tracing::error!(%error, "a background task had failed");
            }
        }
        let volume = Arc::clone(&self.volume);
        match tokio::task::spawn_blocking(move || volume.close()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "cannot leave the cache directory in order; the next start repairs it")
            }
            Err(error) => tracing::error!(%error, "closing failed"),
        }
    }
}
