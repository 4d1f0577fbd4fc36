//! Deletes an object that no entry names any more, if it is still the version that was removed.
//!
//! Depends on `store` and `datastore`. Invariant: called under the lock, after the index without the entry was written; an
//! object that somebody replaced meanwhile, or that an entry names again, stays.

use crate::datastore::Index;
use crate::store::{Fingerprint, ObjectStore, StoreError, StoreErrorKind};

/// What became of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectRemoval {
    /// It is deleted.
    Deleted,
    /// It was gone already.
    AlreadyGone,
    /// It is another version by now, or an entry names it again: not ours to delete.
    Kept,
}

/// Deletes an object in the version that was removed (known from our GET or PUT, or found by
/// [`head_base`](super::base::head_base) before the index was written).
///
/// # Errors
/// The store's; the deletion stays pending then.
pub async fn remove_object(
    store: &dyn ObjectStore,
    key: &str,
    version: &Fingerprint,
    fresh: &Index,
) -> Result<ObjectRemoval, StoreError> {
    if fresh.names(key) {
        return Ok(ObjectRemoval::Kept);
    }
    let mut last = None;
    for _ in 0..3 {
        match store.delete(key, Some(version)).await {
            Ok(()) => return Ok(ObjectRemoval::Deleted),
            Err(error) if error.is_not_found() => return Ok(ObjectRemoval::AlreadyGone),
            Err(error) if error.is_precondition() => return Ok(ObjectRemoval::Kept),
            // Sent, and not answered: the next attempt finds it gone, or still there.
            Err(error) if error.kind == StoreErrorKind::Undecided => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| StoreError::other("delete", key, "the deletion did not settle")))
}
