//! Requests of the kernel that were carried out: one that comes again after a crash is answered, and not carried out twice.
//!
//! Part of the volume. The kernel sends what a crashed process left unanswered to the next one, under the same number. An
//! operation on names records the number in the transaction that carries it out. Invariant: a recorded request was carried
//! out; of those that may still come again, none is missing.

use std::cell::Cell;

use super::delta::Changes;
use super::{Result, Stat, Volume, VolumeError};
use crate::cache::rows::AnsweredRow;

/// How many requests are remembered. Operations on names answer before their thread begins another one, so that there need
/// be no more than threads that serve a connection.
pub(super) const REMEMBERED: u64 = 1024;

thread_local! {
    static REQUEST: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Carries an operation on names out for a request of the kernel, by its number.
pub fn answering<T>(request: u64, operation: impl FnOnce() -> T) -> T {
    REQUEST.set(Some(request));
    let outcome = operation();
    REQUEST.set(None);
    outcome
}

impl Changes {
    /// The change that carries out the request of this thread, if there is one; `path` is what it makes or takes away.
    pub(super) fn answering(path: &str) -> Self {
        let answers = REQUEST.get().map(|request| AnsweredRow { request, path: path.to_owned() });
        let mut changes = Self::default();
        changes.answers = answers;
        changes
    }
}

impl Volume {
    /// The path that a request was carried out on by the process before this one, if it was.
    pub fn answered(&self, request: u64) -> Option<String> {
        self.lock().answered.get(&request).cloned()
    }

    /// What such a request has made; the kernel is counted as knowing the inode.
    ///
    /// # Errors
    /// `NotFound`: it went away since.
    pub fn lookup_answered(&self, path: &str) -> Result<Stat> {
        let mut inner = self.lock();
        let ino = inner.tree.find(path).ok_or(VolumeError::NotFound)?;
        inner.tree.remember(ino);
        self.stat_locked(&inner, ino)
    }
}
