//! Shard objects in a bucket whose index is not sharded: copies, which newer clients nevertheless read by name.
//!
//! Depends on `store`. Invariants: shards are never created here and never trusted; one that exists and holds, or should
//! hold, a changed path is merged by compare-and-swap, so that entries that we do not know survive.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::error::DatastoreError;
use super::index::{Document, Entry};
use super::lock::HeldLock;
use super::path::RelPath;
use super::shards::MAX_SHARD;
use super::{partition, shards};
use crate::store::{GetRequest, ObjectStore, Precondition, PutRequest, StoreErrorKind, get_bytes};

/// How often a shard is merged again when other writers are faster.
const ATTEMPTS: u32 = 8;
/// Shards that are rewritten at the same time.
const CONCURRENCY: usize = 8;

type Change = (RelPath, Option<Entry>);

/// Brings every existing shard that holds one of the changed paths up to date. Repeating it does no harm.
///
/// # Errors
/// The first failure; shards after it may be untouched.
pub(super) async fn rewrite_derived_shards(
    store: &dyn ObjectStore,
    lock: &HeldLock,
    changed: &[Change],
) -> Result<(), DatastoreError> {
    if changed.is_empty() {
        return Ok(());
    }
    let existing: BTreeSet<String> = shards::list(store).await?.into_keys().map(|name| name.to_string()).collect();
    if existing.is_empty() {
        return Ok(());
    }
    let mut touched: BTreeMap<String, Vec<Change>> = BTreeMap::new();
    for change in changed {
        for name in partition::candidates(change.0.as_str()) {
            if existing.contains(&name) {
                touched.entry(name).or_default().push(change.clone());
            }
        }
    }
    stream::iter(touched)
        .map(|(name, changes)| async move { rewrite(store, lock, &name, &changes).await })
        .buffer_unordered(CONCURRENCY)
        .try_collect::<()>()
        .await
}

async fn rewrite(
    store: &dyn ObjectStore,
    lock: &HeldLock,
    name: &str,
    changes: &[Change],
) -> Result<(), DatastoreError> {
    let key = shards::key_of(name);
    for _ in 0..ATTEMPTS {
        let (info, bytes) = match get_bytes(store, GetRequest::whole(&key), MAX_SHARD).await {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let mut shard = match Document::parse(&bytes) {
            Ok(shard) => shard,
            Err(error) => {
                tracing::warn!(shard = key, %error, "a derived shard is unreadable and stays as it is");
                return Ok(());
            }
        };
        if !apply(&mut shard, name, changes) {
            return Ok(());
        }
        let precondition = info.fingerprint.map_or(Precondition::None, Precondition::Match);
        lock.check()?;
        match store.put(PutRequest::json(&key, Bytes::from(shard.to_bytes()), precondition)).await {
            Ok(_) => return Ok(()),
            // Another writer was faster, or the answer was lost: the next round sees what is there.
            Err(error) if error.is_precondition() || error.is_not_found() => {}
            Err(error) if error.kind == StoreErrorKind::Undecided => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(DatastoreError::Changed)
}

/// Applies changes to one shard; `false` when it already says so.
fn apply(shard: &mut Document, name: &str, changes: &[Change]) -> bool {
    let mut changed = shard.was_scrubbed();
    for (path, entry) in changes {
        let held = shard.get(path.as_str()).map(|entry| entry.to_entry());
        match entry {
            None => changed |= shard.remove(path.as_str()),
            Some(entry) if held.as_ref() == Some(entry) => {}
            Some(entry) if held.is_some() || partition::ours(path.as_str()) == name => {
                shard.set(path, entry);
                changed = true;
            }
            Some(_) => {}
        }
    }
    changed
}
