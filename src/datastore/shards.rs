//! Reading a sharded index: the list, one listing of `_index/`, and the shards whose fingerprint changed.
//!
//! Depends on `store`. Invariants: every listed shard is read or still the known one; one that is missing is an error, never
//! an empty shard; an entry of a shard that is not listed counts only if its object exists.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::error::DatastoreError;
use super::index::{Document, Index, Layout, Meta, MetaRead, Part, PartName, digest_of};
use super::names::SHARD_PREFIX;
use super::partition;
use super::remote_index::{Fresh, IndexRead, RemoteIndex, check_whole, list_all, parse_elsewhere, read_meta, stamp_of};
use crate::store::{Condition, GetRequest, ListRequest, Listed, ObjectStore, StoreError, get_bytes};

/// Largest shard that is read, in bytes.
pub(super) const MAX_SHARD: u64 = 1 << 30;
/// Shards that are read at the same time.
const CONCURRENCY: usize = 32;
/// How often the list is read again when a listed shard is missing: another writer may be between the two.
const ATTEMPTS: u32 = 4;
/// Up to so many objects are looked for one by one instead of by a listing.
const HEADS: usize = 48;

/// The object key of a shard.
pub(super) fn key_of(name: &str) -> String {
    format!("{SHARD_PREFIX}{name}.json")
}

/// Every shard object that exists, by the name of its partition.
pub(super) async fn list(store: &dyn ObjectStore) -> Result<BTreeMap<PartName, Listed>, StoreError> {
    let name = |key: &str| {
        let name = key.strip_prefix(SHARD_PREFIX)?.strip_suffix(".json")?;
        (name != "_meta" && !name.contains('/')).then(|| PartName::from(name))
    };
    let listed = list_all(store, SHARD_PREFIX).await?;
    Ok(listed.into_iter().filter_map(|object| Some((name(&object.key)?, object))).collect())
}

/// What stands for the shards that exist now, as [`Index::digest`] says it; `None` when the index is not sharded, or the
/// listing carries no fingerprints.
///
/// # Errors
/// The store's, and an unreadable list.
pub async fn current_digest(store: &dyn ObjectStore) -> Result<Option<String>, DatastoreError> {
    let Some(MetaRead::Shards(meta)) = read_meta(store, None).await? else { return Ok(None) };
    let existing = list(store).await?;
    let all_exist = meta.partitions.iter().all(|name| existing.contains_key(name));
    let mut shards = Vec::new();
    for (name, object) in &existing {
        let listed = meta.partitions.contains(name);
        if listed || partition::is_read_unlisted(name) {
            let Some(fingerprint) = &object.fingerprint else { return Ok(None) };
            shards.push((&**name, fingerprint, listed));
        }
    }
    Ok(all_exist.then(|| digest_of(shards.into_iter())))
}

/// Reads a sharded index, without the shards that are still those of `known`.
pub(super) async fn read(
    store: &dyn ObjectStore,
    mut meta: Meta,
    known: Option<&Index>,
) -> Result<IndexRead, DatastoreError> {
    for attempt in 1.. {
        let existing = list(store).await?;
        let mut missing: Vec<PartName> =
            meta.partitions.iter().filter(|n| !existing.contains_key(*n)).cloned().collect();
        if missing.is_empty() {
            match read_existing(store, &meta, existing, known).await? {
                Ok(read) => return Ok(read),
                Err(vanished) => missing = vanished,
            }
        }
        if attempt >= ATTEMPTS {
            let examples = missing.iter().take(3).map(|name| key_of(name)).collect();
            return Err(DatastoreError::ShardsMissing { count: missing.len(), examples });
        }
        tokio::time::sleep(Duration::from_millis(150) * attempt).await;
        meta = match read_meta(store, None).await? {
            Some(MetaRead::Shards(meta)) => meta,
            // Something else counts by now: the next read finds out.
            _ => return Err(DatastoreError::Changed),
        };
    }
    Err(DatastoreError::Changed)
}

/// One attempt; the inner error names listed shards that vanished after the listing.
async fn read_existing(
    store: &dyn ObjectStore,
    meta: &Meta,
    existing: BTreeMap<PartName, Listed>,
    known: Option<&Index>,
) -> Result<Result<IndexRead, Vec<PartName>>, DatastoreError> {
    let known = known.filter(|known| known.layout() == Layout::Shards);
    let mut parts: BTreeMap<PartName, Part> = BTreeMap::new();
    let mut wanted: Vec<(PartName, bool, Listed)> = Vec::new();
    for (name, object) in existing {
        let listed = meta.partitions.contains(&name);
        if !listed && !partition::is_read_unlisted(&name) {
            continue;
        }
        let same = known.and_then(|known| known.parts().get(&name)).filter(|part| {
            part.listed == listed && part.stamp.fingerprint.is_some() && part.stamp.fingerprint == object.fingerprint
        });
        match same {
            Some(part) => {
                parts.insert(name, part.clone());
            }
            None => wanted.push((name, listed, object)),
        }
    }
    let unchanged = known.is_some_and(|known| known.meta() == Some(meta) && known.parts().len() == parts.len());
    if unchanged && wanted.is_empty() {
        return Ok(Ok(IndexRead::NotModified));
    }
    let read: Vec<(PartName, Shard)> = stream::iter(wanted)
        .map(|(name, listed, object)| async move {
            let shard = read_shard(store, &name, listed, None, Some(object)).await?;
            Ok::<_, DatastoreError>((name, shard))
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .boxed()
        .await?;
    let mut fresh = Fresh::new();
    let mut vanished = Vec::new();
    for (name, shard) in read {
        match shard {
            Shard::Read(part, bytes) => {
                parts.insert(name.clone(), part);
                fresh.insert(name, bytes);
            }
            Shard::Absent if meta.partitions.contains(&name) => vanished.push(name),
            Shard::Absent | Shard::Same => {}
        }
    }
    if !vanished.is_empty() {
        return Ok(Err(vanished));
    }
    let index = Index::sharded(meta.clone(), parts);
    Ok(Ok(IndexRead::Present(RemoteIndex { index, fresh })))
}

/// Reads the shards that changes to `paths` touch, and those that have to be listed or written back; the others are as in
/// `known`.
pub(super) async fn read_touched(
    store: &dyn ObjectStore,
    meta: Meta,
    known: &Index,
    paths: &[String],
) -> Result<RemoteIndex, DatastoreError> {
    let mut wanted: BTreeSet<PartName> = BTreeSet::new();
    for path in paths {
        wanted.extend(known.touched_by(path));
        let held = partition::candidates(path).into_iter().map(PartName::from);
        wanted.extend(held.filter(|name| meta.partitions.contains(name)));
        if known.get(path).is_none() {
            let below = meta.partitions.iter().filter(|name| partition::may_hold_below(name, path));
            wanted.extend(below.cloned());
        }
    }
    let is_listed = |name: &PartName| meta.partitions.contains(name);
    let unsettled = |name: &PartName, part: &Part| !part.listed || !is_listed(name) || part.document.was_scrubbed();
    wanted.extend(known.parts().iter().filter(|(name, part)| unsettled(name, part)).map(|(name, _)| name.clone()));
    let counts = |name: &PartName| is_listed(name) || partition::is_read_unlisted(name);
    wanted.retain(counts);
    let read: Vec<(PartName, Shard)> = stream::iter(wanted)
        .map(|name| {
            let listed = is_listed(&name);
            // What is not listed is thinned out, and looked at as a whole.
            let part = known.parts().get(&name).filter(|part| part.listed && listed);
            async move {
                let shard = read_shard(store, &name, listed, part, None).await?;
                Ok::<_, DatastoreError>((name, shard))
            }
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .boxed()
        .await?;
    let mut parts = known.parts().clone();
    parts.retain(|name, _| counts(name));
    let mut fresh = Fresh::new();
    for (name, shard) in read {
        match shard {
            Shard::Same => {}
            Shard::Read(part, bytes) => {
                parts.insert(name.clone(), part);
                fresh.insert(name, bytes);
            }
            Shard::Absent if is_listed(&name) => {
                return Err(DatastoreError::ShardsMissing { count: 1, examples: vec![key_of(&name)] });
            }
            Shard::Absent => {
                parts.remove(&name);
            }
        }
    }
    Ok(RemoteIndex { index: Index::sharded(meta, parts), fresh })
}

enum Shard {
    Absent,
    Same,
    Read(Part, Bytes),
}

async fn read_shard(
    store: &dyn ObjectStore,
    name: &PartName,
    listed: bool,
    known: Option<&Part>,
    object: Option<Listed>,
) -> Result<Shard, DatastoreError> {
    let key = key_of(name);
    let condition = known.and_then(|part| part.stamp.fingerprint.clone()).map(Condition::IfNoneMatch);
    let mut request = GetRequest::whole(&key).with(condition.unwrap_or(Condition::None));
    request.dated = object.is_none();
    let (info, mut bytes) = match get_bytes(store, request, MAX_SHARD).await {
        Ok(Some(read)) => read,
        Ok(None) => return Ok(Shard::Same),
        Err(error) if error.is_not_found() => return Ok(Shard::Absent),
        Err(error) => return Err(error.into()),
    };
    check_whole(&key, &info, &bytes)?;
    let mut document =
        parse_elsewhere(bytes.clone()).await?.map_err(|source| DatastoreError::Shard { key: key.clone(), source })?;
    if !listed && thin_out(store, &mut document).await? {
        bytes = document.to_bytes().into();
    }
    let mut stamp = stamp_of(&info);
    if let Some(object) = object.filter(|object| object.fingerprint == info.fingerprint) {
        // Not every store dates what it sends, and asking for two thousand dates takes its time.
        stamp.written_at = stamp.written_at.or(object.last_modified.map(time::OffsetDateTime::unix_timestamp));
    }
    Ok(Shard::Read(Part::new(name, Arc::new(document), stamp, listed), bytes))
}

/// Drops the entries whose objects do not exist; `true` when there were any.
async fn thin_out(store: &dyn ObjectStore, document: &mut Document) -> Result<bool, StoreError> {
    let names: Vec<String> = document.all_names().map(|name| name.to_string()).collect();
    let existing = existing(store, names.clone()).await?;
    let dead: Vec<&String> = names.iter().filter(|name| !existing.contains(*name)).collect();
    for name in &dead {
        document.forget(name);
    }
    if !dead.is_empty() {
        document.note_scrubbed();
    }
    Ok(!dead.is_empty())
}

/// Which of these objects exist: one by one when they are few, else by listing the top-level directories that hold them.
async fn existing(store: &dyn ObjectStore, keys: Vec<String>) -> Result<HashSet<String>, StoreError> {
    if keys.len() <= HEADS {
        let looked = stream::iter(keys).map(|key| async move {
            match store.head(&key).await {
                Ok(_) => Ok(Some(key)),
                Err(error) if error.is_not_found() => Ok(None),
                Err(error) => Err(error),
            }
        });
        let found: Vec<Option<String>> = looked.buffer_unordered(CONCURRENCY).try_collect().boxed().await?;
        return Ok(found.into_iter().flatten().collect());
    }
    let directories: BTreeSet<&str> = keys.iter().map(|key| key.split_once('/').map_or("", |(top, _)| top)).collect();
    let mut found = HashSet::new();
    for directory in directories {
        if directory.is_empty() {
            found.extend(list_root(store).await?);
        } else {
            found.extend(list_all(store, &format!("{directory}/")).await?.into_iter().map(|object| object.key));
        }
    }
    Ok(found)
}

/// The objects at the root, without descending.
async fn list_root(store: &dyn ObjectStore) -> Result<Vec<String>, StoreError> {
    let mut all = Vec::new();
    let mut request = ListRequest { delimiter: Some('/'), ..ListRequest::default() };
    loop {
        let page = store.list(request.clone()).await?;
        all.extend(page.objects.into_iter().map(|object| object.key));
        match page.continuation {
            Some(more) => request.continuation = Some(more),
            None => return Ok(all),
        }
    }
}
