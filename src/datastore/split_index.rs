//! The steps of turning an index of version 1 into shards; `sync::migrate` says in which order.
//!
//! Depends on `store`. Invariants: a shard object that exists is replaced only in the version that was read; one that holds
//! nothing of this index is emptied, because what it says is stale; the list is the last thing that is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::error::DatastoreError;
use super::index::{Document, Index, Layout, Meta, MetaRead, PartName};
use super::remote_index::{Fresh, IndexRead, RemoteIndex, read_meta, read_monolith};
use super::shards::{self, MAX_SHARD};
use super::write_index::Writer;
use crate::store::{Fingerprint, GetRequest, ObjectStore, get_bytes};

/// Shards at the same time.
const CONCURRENCY: usize = 16;

/// Writes every shard that does not say already what `shards` says; their number.
///
/// # Errors
/// [`DatastoreError::Changed`] when another writer was faster: begin again.
pub async fn write_shards(writer: Writer<'_>, shards: &Index) -> Result<usize, DatastoreError> {
    let existing = shards::list(writer.store).await?;
    let mut wanted: BTreeMap<PartName, Arc<Document>> =
        existing.keys().map(|name| (name.clone(), Arc::new(Document::empty_shard()))).collect();
    wanted.extend(shards.parts().iter().map(|(name, part)| (name.clone(), Arc::clone(&part.document))));
    let written: Vec<bool> = stream::iter(wanted)
        .map(|(name, document)| {
            let exists = existing.contains_key(&name);
            async move { write_shard(writer, &name, &document, exists).await }
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .boxed()
        .await?;
    Ok(written.into_iter().filter(|written| *written).count())
}

async fn write_shard(
    writer: Writer<'_>,
    name: &str,
    document: &Document,
    exists: bool,
) -> Result<bool, DatastoreError> {
    let (key, bytes) = (shards::key_of(name), document.to_bytes());
    let mut replaces = None;
    if exists {
        match get_bytes(writer.store, GetRequest::whole(&key), MAX_SHARD).await {
            Ok(Some((_, there))) if there == bytes => return Ok(false),
            Ok(read) => replaces = read.and_then(|(info, _)| info.fingerprint),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    writer.put(&key, bytes, replaces.as_ref()).await?;
    Ok(true)
}

/// Writes the list, which makes the shards count.
///
/// # Errors
/// [`DatastoreError::Changed`] when there is one already, or another writer was faster.
pub async fn write_list(writer: Writer<'_>, shards: &Index) -> Result<RemoteIndex, DatastoreError> {
    let meta = Meta::of(shards.parts().keys().cloned().collect());
    let replaces = match read_meta(writer.store, None).await? {
        None => None,
        Some(MetaRead::Monolith(fingerprint)) => fingerprint,
        Some(MetaRead::Shards(_)) => return Err(DatastoreError::Changed),
    };
    writer.write_meta(meta, replaces).await?;
    match super::read_index(writer.store, None, super::Seen::Index(Layout::Shards)).await? {
        IndexRead::Present(read) => Ok(read),
        _ => Ok(RemoteIndex { index: shards.clone(), fresh: Fresh::new() }),
    }
}

/// The monolith, whether or not it counts, unless it has that fingerprint, or is gone.
///
/// # Errors
/// As reading an index.
pub async fn read_stale_monolith(
    store: &dyn ObjectStore,
    known: Option<&Fingerprint>,
) -> Result<Option<Index>, DatastoreError> {
    match read_monolith(store, known).await? {
        IndexRead::Present(read) => Ok(Some(read.index)),
        IndexRead::NotModified | IndexRead::Missing => Ok(None),
    }
}
