//! Everything in a bucket at one moment, also where an ordinary read of the index would refuse: for repairs.
//!
//! Depends on `store`. Invariants: what cannot be read is an error or is named, never taken for empty; the list of shards is
//! read before the shards are looked for, so that a shard which appears meanwhile is never taken for a missing one.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use futures_util::FutureExt;
use time::OffsetDateTime;

use super::error::DatastoreError;
use super::index::{Index, Meta, MetaRead, PartName};
use super::names::{INDEX_KEY, NAMESPACE_FILE, is_ignored_by_discovery};
use super::remote_index::{Fresh, IndexRead, RemoteIndex, read_meta, read_monolith};
use super::shards;
use crate::store::{Fingerprint, ListRequest, ObjectStore};

/// How often a listed shard is looked for.
const ATTEMPTS: u32 = 4;

/// The index, as far as it can be read.
#[derive(Debug)]
pub struct IndexSurvey {
    /// What can be read; without the entries of shards that are missing.
    pub read: RemoteIndex,
    /// Whether the bucket has an index at all.
    pub published: bool,
    /// Shards that are listed and do not exist.
    pub missing: BTreeSet<PartName>,
    /// `_index/_meta.json` is gone, and there is nothing but shards.
    pub list_lost: bool,
    /// `_index/_meta.json` is gone, and shards are newer than the monolith, which counts therefore: what they say.
    pub beside: Option<Index>,
    /// There are shards that count, and a monolith that does not.
    pub stale_monolith: bool,
}

/// Reads the index.
///
/// # Errors
/// The store's; an index or a shard that does not parse.
pub async fn survey_index(store: &dyn ObjectStore) -> Result<IndexSurvey, DatastoreError> {
    let mut attempt = 0;
    loop {
        attempt += 1;
        let meta = read_meta(store, None).await?;
        let existing = shards::list(store).await?;
        let (meta, list_lost) = match meta {
            Some(MetaRead::Shards(meta)) => (meta, false),
            Some(MetaRead::Monolith(_)) => return monolith(store, None).await,
            None if exists(store, INDEX_KEY).await? || existing.is_empty() => {
                let newest = existing.values().filter_map(|shard| shard.last_modified).max();
                return monolith(store, newest.map(|newest| (newest, existing.into_keys().collect()))).await;
            }
            None => (Meta::of(existing.keys().cloned().collect()), true),
        };
        let missing: BTreeSet<PartName> =
            meta.partitions.iter().filter(|name| !existing.contains_key(*name)).cloned().collect();
        if !missing.is_empty() && attempt < ATTEMPTS {
            tokio::time::sleep(Duration::from_millis(150) * attempt).await;
            continue;
        }
        let mut found = meta;
        found.partitions.retain(|name| !missing.contains(name));
        let read = match shards::read(store, found, None).boxed().await? {
            IndexRead::Present(read) => read,
            IndexRead::NotModified | IndexRead::Missing => return Err(DatastoreError::Changed),
        };
        let stale_monolith = exists(store, INDEX_KEY).await?;
        return Ok(IndexSurvey { read, published: true, missing, list_lost, beside: None, stale_monolith });
    }
}

async fn exists(store: &dyn ObjectStore, key: &str) -> Result<bool, DatastoreError> {
    match store.head(key).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// An index of version 1; `newest` is when the newest of the shards was written, where no list says that they do not count.
async fn monolith(
    store: &dyn ObjectStore,
    newest: Option<(OffsetDateTime, BTreeSet<PartName>)>,
) -> Result<IndexSurvey, DatastoreError> {
    let (read, published) = match read_monolith(store, None).await? {
        IndexRead::Present(read) => (read, true),
        IndexRead::Missing | IndexRead::NotModified => {
            (RemoteIndex { index: Index::empty(), fresh: Fresh::default() }, false)
        }
    };
    let written = read.index.parts().values().find_map(|part| part.stamp.written_at);
    let beside = match newest {
        Some((newest, names)) if written.is_none_or(|written| newest.unix_timestamp() >= written) => {
            match shards::read(store, Meta::of(names), None).boxed().await? {
                IndexRead::Present(read) => Some(read.index),
                IndexRead::NotModified | IndexRead::Missing => None,
            }
        }
        _ => None,
    };
    Ok(IndexSurvey { read, published, missing: BTreeSet::new(), list_lost: false, beside, stale_monolith: false })
}

/// One object of data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeenObject {
    /// Size in bytes.
    pub size: u64,
    /// Its version.
    pub fingerprint: Option<Fingerprint>,
    /// When it was written, by the store's clock.
    pub last_modified: Option<OffsetDateTime>,
}

/// Lists every object that may be a file: no internal names, no markers of directories. `in_namespace`: all of the store
/// belongs to one namespace; otherwise what belongs to namespaces is left out. `progress` is told how many were seen.
///
/// # Errors
/// The store's: a partial listing is none.
pub async fn survey_objects(
    store: &dyn ObjectStore,
    in_namespace: bool,
    progress: impl Fn(usize),
) -> Result<HashMap<String, SeenObject>, DatastoreError> {
    let marker = format!("/{NAMESPACE_FILE}");
    let (mut all, mut namespaces) = (HashMap::new(), BTreeSet::new());
    let mut request = ListRequest::default();
    loop {
        let page = store.list(request.clone()).await?;
        for object in page.objects {
            if let Some(namespace) = object.key.strip_suffix(&marker).filter(|_| !in_namespace) {
                namespaces.insert(format!("{namespace}/"));
            }
            if !is_ignored_by_discovery(&object.key) {
                let (size, fingerprint, last_modified) = (object.size, object.fingerprint, object.last_modified);
                all.insert(object.key, SeenObject { size, fingerprint, last_modified });
            }
        }
        progress(all.len());
        match page.continuation {
            Some(more) => request.continuation = Some(more),
            None => break,
        }
    }
    if !namespaces.is_empty() {
        all.retain(|key, _| !key.match_indices('/').any(|(at, _)| namespaces.contains(&key[..=at])));
    }
    Ok(all)
}

/// Shard objects that exist and are not listed, although their entries count.
pub fn unlisted(index: &Index) -> impl Iterator<Item = &PartName> {
    index.parts().iter().filter(|(_, part)| !part.listed).map(|(name, _)| name)
}
