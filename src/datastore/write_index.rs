//! Writing the index: the parts that changed, then, for shards, the list.
//!
//! Depends on `store`. Invariants: every write replaces exactly the version that was read, in one part, under a lock that
//! still holds; the list is written after the shards, so that it never names one that does not exist; after a write of the
//! monolith the layout is looked at again, because a monolith that does not count any more hides what it lists.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use md5::{Digest, Md5};
use time::OffsetDateTime;

use super::derived_shards::rewrite_derived_shards;
use super::error::DatastoreError;
use super::index::{Entry, Index, Layout, MONOLITH, Meta, MetaRead, PartName, PartStamp};
use super::lock::HeldLock;
use super::names::{INDEX_KEY, META_KEY};
use super::path::RelPath;
use super::remote_index::{RemoteIndex, read_meta};
use super::{shards, timestamp};
use crate::store::{Fingerprint, ObjectStore, Precondition, PutRequest, StoreErrorKind};

/// How often the list is merged again when other writers are faster.
const META_ATTEMPTS: u32 = 16;
/// Shards that are written at the same time.
const CONCURRENCY: usize = 16;

/// How to write.
#[derive(Clone, Copy)]
pub struct Writer<'a> {
    /// Where.
    pub store: &'a dyn ObjectStore,
    /// What protects the write from older clients.
    pub lock: &'a HeldLock,
    /// Without preconditions, for a store that ignores them.
    pub unconditional: bool,
}

/// What the new index says that the one that was read did not.
#[derive(Clone, Debug, Default)]
pub struct Edits {
    /// Entries that were set or removed.
    pub changed: Vec<(RelPath, Option<Entry>)>,
    /// Paths that the index is to speak of as we mean, whether or not it did before: their shards must be listed.
    pub applied: Vec<RelPath>,
}

impl Edits {
    /// Whether anything has to be written over `read`. Shards may have been written by an attempt of ours that ended before
    /// the list: where paths are found in a shard that is not the known one, the list is written (again).
    pub fn must_be_written(&self, read: &RemoteIndex) -> bool {
        let index = &read.index;
        let unsure = |path: &RelPath| index.touched_by(path.as_str()).iter().any(|name| read.fresh.contains_key(name));
        let unlisted = || index.parts().values().any(|part| !part.listed);
        !self.changed.is_empty()
            || index.was_scrubbed()
            || (index.layout() == Layout::Shards && (unlisted() || self.applied.iter().any(unsure)))
    }
}

/// Writes `new`, which was made from `read` by `edits`. Repeating it with what is then read does no harm.
///
/// # Errors
/// [`DatastoreError::Changed`] when another writer was first; [`StoreErrorKind::Undecided`] passes through: read again.
pub async fn write_index(
    writer: Writer<'_>,
    read: RemoteIndex,
    new: Index,
    edits: &Edits,
) -> Result<RemoteIndex, DatastoreError> {
    match new.layout() {
        Layout::Monolith => writer.write_monolith(read, new, edits).await,
        Layout::Shards => writer.write_shards(read, new, edits).await,
    }
}

impl Writer<'_> {
    async fn write_monolith(
        self,
        mut read: RemoteIndex,
        mut new: Index,
        edits: &Edits,
    ) -> Result<RemoteIndex, DatastoreError> {
        rewrite_derived_shards(self.store, self.lock, &edits.changed).await?;
        new.set_last_pulled(&timestamp::format_nanos(timestamp::now_nanos()));
        let (stamp, bytes) = self.put(INDEX_KEY, new.to_bytes(), read.index.fingerprint()).await?;
        if let Some(MetaRead::Shards(_)) = read_meta(self.store, None).await? {
            return Err(DatastoreError::Changed);
        }
        new.stamp(MONOLITH, stamp);
        read.fresh.insert(MONOLITH.into(), bytes);
        Ok(RemoteIndex { index: new, fresh: read.fresh })
    }

    async fn write_shards(
        self,
        mut read: RemoteIndex,
        mut new: Index,
        edits: &Edits,
    ) -> Result<RemoteIndex, DatastoreError> {
        let dirty: Vec<PartName> = new
            .parts()
            .iter()
            .filter(|(name, part)| {
                let before = read.index.parts().get(*name);
                before.is_none_or(|before| !Arc::ptr_eq(&before.document, &part.document))
                    || (part.document.was_scrubbed() && read.fresh.contains_key(*name))
            })
            .map(|(name, _)| name.clone())
            .collect();
        let mut writes = stream::iter(dirty)
            .map(|name| {
                let part = new.parts().get(&name).cloned();
                async move {
                    let Some(part) = part else { return Err(DatastoreError::Changed) };
                    let bytes = part.document.to_bytes();
                    let put = self.put(&shards::key_of(&name), bytes, part.stamp.fingerprint.as_ref()).await;
                    put.map(|(stamp, bytes)| (name, stamp, bytes))
                }
            })
            .buffer_unordered(CONCURRENCY);
        let mut written = Vec::new();
        let mut failed: Option<DatastoreError> = None;
        // Others go on when one fails: what is written is merged already when this is repeated.
        while let Some(result) = writes.next().await {
            match result {
                Ok(done) => written.push(done),
                Err(error) => failed = Some(more_telling(failed, error)),
            }
        }
        drop(writes);
        if let Some(error) = failed {
            return Err(error);
        }
        let mut listed: BTreeSet<PartName> = written.iter().map(|(name, ..)| name.clone()).collect();
        for (name, stamp, bytes) in written {
            new.stamp(&name, stamp);
            read.fresh.insert(name, bytes);
        }
        // Also what an earlier attempt of ours wrote and did not list.
        listed.extend(edits.applied.iter().flat_map(|path| new.touched_by(path.as_str())));
        listed.extend(new.parts().iter().filter(|(_, part)| !part.listed).map(|(name, _)| name.clone()));
        listed.retain(|name| new.parts().contains_key(name));
        let meta = self.commit_meta(new.meta().cloned().unwrap_or_default(), &listed).await?;
        new.list_parts(meta);
        Ok(RemoteIndex { index: new, fresh: read.fresh })
    }

    /// Adds partitions to the list and counts the commit.
    async fn commit_meta(self, mut meta: Meta, listed: &BTreeSet<PartName>) -> Result<Meta, DatastoreError> {
        for attempt in 0..META_ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(5..=40) * u64::from(attempt))).await;
                meta = match read_meta(self.store, None).await? {
                    Some(MetaRead::Shards(meta)) => meta,
                    // Lost meanwhile, or turned back to a monolith.
                    _ => return Err(DatastoreError::Changed),
                };
            }
            let replaces = meta.fingerprint.take();
            meta.partitions.extend(listed.iter().cloned());
            match self.write_meta(meta.clone(), replaces).await {
                Ok(meta) => return Ok(meta),
                Err(DatastoreError::Changed) => {}
                // The next attempt counts once more: nobody relies on the number.
                Err(DatastoreError::Store(error)) if error.kind == StoreErrorKind::Undecided => {}
                Err(error) => return Err(error),
            }
        }
        Err(DatastoreError::Changed)
    }

    /// Writes the list in place of the version `replaces`, and counts the commit.
    pub(super) async fn write_meta(
        self,
        mut meta: Meta,
        replaces: Option<Fingerprint>,
    ) -> Result<Meta, DatastoreError> {
        meta.commit_seq = meta.commit_seq.saturating_add(1);
        let (stamp, _) = self.put(META_KEY, meta.to_bytes(), replaces.as_ref()).await?;
        meta.fingerprint = stamp.fingerprint;
        Ok(meta)
    }

    /// Writes one object in place of the version `replaces`, or where there is none.
    pub(super) async fn put(
        self,
        key: &str,
        bytes: Vec<u8>,
        replaces: Option<&Fingerprint>,
    ) -> Result<(PartStamp, Bytes), DatastoreError> {
        let bytes = Bytes::from(bytes);
        let precondition = match (self.unconditional, replaces) {
            (true, _) => Precondition::None,
            (false, Some(fingerprint)) => Precondition::Match(fingerprint.clone()),
            (false, None) => Precondition::Absent,
        };
        let mut request = PutRequest::json(key, bytes.clone(), precondition);
        request.md5 = Some(Md5::digest(&bytes).into());
        self.lock.check()?;
        match self.store.put(request).await {
            Ok(stored) => {
                let written_at = stored.server_date.map(OffsetDateTime::unix_timestamp);
                Ok((PartStamp { fingerprint: stored.fingerprint, written_at }, bytes))
            }
            // With If-Match some stores answer that the object is gone instead.
            Err(error) if error.is_precondition() || error.is_not_found() => Err(DatastoreError::Changed),
            Err(error) => Err(error.into()),
        }
    }
}

/// Of two failures the one that decides what to do next: an error that merging again does not heal.
fn more_telling(first: Option<DatastoreError>, second: DatastoreError) -> DatastoreError {
    match first {
        Some(first) if !matches!(first, DatastoreError::Changed) => first,
        _ => second,
    }
}
