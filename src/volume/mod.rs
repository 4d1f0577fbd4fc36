//! The local side of a mounted datastore: names, contents and unpushed changes, kept consistent in memory and in
//! state.db. View = base ⊕ delta.
//!
//! Depends on `tree`, `cache` and `datastore`; makes no request. Invariants: every operation is one transaction of
//! state.db, committed before memory changes and before the caller is answered; nothing is removed from disk that a row
//! still names. Lock order: `Volume::inner` (the volume lock) before the state lock of one [`LiveContent`], which
//! `lock_order` watches; neither is held across a network wait or a kernel notification.

mod ahead;
mod answered;
mod attributes;
mod committed;
mod conflict;
mod content_ids;
mod delta;
mod error;
mod eviction;
mod fetch_state;
mod fetching;
mod files;
mod first_view;
mod hashed;
mod inner;
mod live;
mod load;
mod naming;
mod notice;
mod pattern;
mod pushing;
mod rebase;
mod reconcile;
mod recording;
mod rename;
mod space;
mod unseen;
mod writes;

pub use ahead::FileAhead;
pub use answered::answering;
pub use attributes::{SetAttributes, Stat};
pub use committed::Undone;
pub use delta::CopiesMade;
pub use error::VolumeError;
pub use eviction::Room;
pub use fetch_state::{Claim, Claimed, FailureCause, Fetch, FetchState, Refused, SMALL, Waiting};
pub use fetching::{Census, InUse};
pub use files::{Handle, OpenOutcome, OpenRequest, Unseen};
pub use live::{LiveContent, MustStore};
pub use load::VolumeOptions;
pub use naming::{DirEntry, DirListing};
pub use notice::Notice;
pub use pushing::{Outcome, PlannedPut, PlannedRow, PushPlan, PushSelection, Settled};
pub use rebase::NewBase;
pub use rename::RenameMode;
pub use unseen::{is_held_elsewhere, keeps_times};
pub use writes::Stable;

use std::sync::Arc;

use crate::bell::Bell;
use crate::cache::Contents;
use crate::cache::reference::ReferenceCache;
use crate::lock_order::{Mutex, MutexGuard};
use inner::Inner;

/// What this layer answers with.
pub type Result<T> = std::result::Result<T, VolumeError>;

/// The local side of one mounted datastore.
pub struct Volume {
    options: VolumeOptions,
    contents: Contents,
    reference: ReferenceCache,
    inner: Mutex<Inner>,
    /// Wakes the background flush when something was changed.
    changed: Bell,
    /// Wakes the recorder of fetched contents.
    fetched: Bell,
    /// Wakes who evicts, and tells the kernel of evicted files.
    pressure: Bell,
    /// Wakes the recorder of opens.
    opened: Bell,
}

impl Volume {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic in one operation does not take the mount away from all others; transactions keep the rows whole.
        self.inner.lock()
    }

    /// Resolves when something was changed since the last call.
    pub async fn wait_for_change(&self) {
        self.changed.heard().await;
    }

    /// Options it was opened with.
    pub fn options(&self) -> &VolumeOptions {
        &self.options
    }

    /// The base in view: its index and fingerprint.
    pub fn base(&self) -> inner::Base {
        self.lock().base.clone()
    }

    /// Turns all further changes away with EROFS.
    pub fn make_read_only(&self, reason: String) {
        self.lock().read_only = Some(reason);
    }

    /// Why changes are turned away, if they are.
    pub fn read_only_reason(&self) -> Option<String> {
        self.lock().read_only.clone()
    }

    /// Inodes that the kernel knows from a process before this one.
    pub fn taken_over(&self) -> Vec<crate::tree::Ino> {
        self.lock().tree.taken_over().collect()
    }

    /// The open content of a file that is being read or written, if any.
    pub fn live(&self, ino: crate::tree::Ino) -> Option<Arc<LiveContent>> {
        let inner = self.lock();
        let id = inner.tree.get(ino)?.content()?.id?;
        inner.live.get(&id).cloned()
    }
}

pub use inner::Base;
