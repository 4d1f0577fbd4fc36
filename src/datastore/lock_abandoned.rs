//! Locks that this process gave up without hearing that they are gone: it need not wait for their time to live.
//!
//! Depends on nothing. Invariant: a nonce is in here only when nothing of this process vouches for its lock any more, nor
//! renews it.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

static NONCES: Mutex<Option<HashSet<String>>> = Mutex::new(None);

fn nonces() -> MutexGuard<'static, Option<HashSet<String>>> {
    NONCES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nobody holds the lock with this nonce, and it may still be there.
pub(super) fn remember(nonce: &str) {
    nonces().get_or_insert_default().insert(nonce.to_owned());
}

/// Whether such a lock was given up by this process.
pub(super) fn contains(nonce: &str) -> bool {
    nonces().as_ref().is_some_and(|known| known.contains(nonce))
}

/// It is gone.
pub(super) fn forget(nonce: &str) {
    if let Some(known) = &mut *nonces() {
        known.remove(nonce);
    }
}
