//! The index in the bucket: which layout counts, reading it, and making one for a bucket that has none.
//!
//! Depends on `store`. Invariants: `_index/_meta.json` decides about the layout and is looked at with every read, because a
//! bucket can be migrated, and even turn back, at any time; only "no such object" means that there is no index, every
//! other failure is an error.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures_util::FutureExt;

use super::error::DatastoreError;
use super::index::{Document, Entry, Index, Layout, MONOLITH, Meta, MetaRead, PartName, PartStamp};
use super::names::{INDEX_KEY, META_KEY, NAMESPACE_FILE, is_ignored_by_discovery};
use super::path::RelPath;
use super::{shards, timestamp};
use crate::store::{
    Condition, Fingerprint, GetRequest, ListRequest, Listed, ObjectInfo, ObjectStore, StoreError, StoreErrorKind,
    get_bytes,
};

/// Largest index that is read, in bytes.
const MAX_INDEX: u64 = 2 << 30;
/// Largest `_meta.json` that is read, in bytes.
const MAX_META: u64 = 64 << 20;

/// Documents of an index, by part, as they are in the bucket: those that a read or write brought anew.
pub type Fresh = BTreeMap<PartName, Bytes>;

/// What is known of a source from before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nobody here ever saw an index of it.
    Never,
    /// It had an index in that layout.
    Index(Layout),
}

/// The answer to a read of the index.
// One lives at a time, and is taken apart at once: a box would only be in the way.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum IndexRead {
    /// It is still the known one.
    NotModified,
    /// The bucket has no index: it is new, or must be discovered, or, if there was one before, something is wrong.
    Missing,
    /// The index.
    Present(RemoteIndex),
}

/// An index that was read, or written.
#[derive(Clone, Debug)]
pub struct RemoteIndex {
    /// What it says, with the stamps of the responses that carried it.
    pub index: Index,
    /// The documents that are not those of the known index.
    pub fresh: Fresh,
}

/// One document with everything that `index` says, for a cache directory: as it came from the bucket, where it came as one.
pub fn index_copy(index: &Index, fresh: &Fresh) -> Bytes {
    match fresh.get(MONOLITH) {
        Some(bytes) if index.layout() == Layout::Monolith && !index.was_scrubbed() => bytes.clone(),
        _ => index.to_bytes().into(),
    }
}

/// Reads the index, without what is still the same as in `known`.
///
/// # Errors
/// Every failure but "no such object"; an index that does not parse; shards that are missing.
pub async fn read_index(
    store: &dyn ObjectStore,
    known: Option<&Index>,
    seen: Seen,
) -> Result<IndexRead, DatastoreError> {
    let known_meta = known.and_then(Index::meta);
    if seen == Seen::Index(Layout::Shards) {
        let meta = match read_meta(store, known_meta).await? {
            Some(MetaRead::Shards(meta)) => meta,
            Some(MetaRead::Monolith(_)) => return read_monolith(store, None).await,
            None => match without_meta(store).await? {
                WithoutMeta::Shards(meta) => meta,
                WithoutMeta::Monolith => return read_monolith(store, None).await,
                WithoutMeta::Nothing => return Ok(IndexRead::Missing),
            },
        };
        return shards::read(store, meta, known).boxed().await;
    }
    let known_monolith = known.and_then(Index::fingerprint);
    let (meta, monolith) = tokio::join!(read_meta(store, None), read_monolith(store, known_monolith));
    if let Some(MetaRead::Shards(meta)) = meta? {
        return shards::read(store, meta, None).boxed().await;
    }
    // Shards without a list, in a bucket that nobody here knows as sharded, may be the derived copies of a few files of a
    // lost monolith: to take them for the whole index would hide all others. Discovery lists every object.
    monolith
}

/// Reads what a commit of changes to `paths` needs, freshly: all of an index of version 1, the touched shards of one of
/// version 2. What it does not need is as in `known`.
///
/// # Errors
/// As [`read_index`].
pub async fn read_for_commit(
    store: &dyn ObjectStore,
    known: &Index,
    seen: Seen,
    paths: &[String],
) -> Result<IndexRead, DatastoreError> {
    if known.layout() == Layout::Shards
        && let Some(MetaRead::Shards(meta)) = read_meta(store, known.meta()).await?
    {
        return Ok(IndexRead::Present(shards::read_touched(store, meta, known, paths).boxed().await?));
    }
    match read_index(store, Some(known), seen).await? {
        IndexRead::NotModified => Ok(IndexRead::Present(RemoteIndex { index: known.clone(), fresh: Fresh::default() })),
        read => Ok(read),
    }
}

pub(super) async fn read_monolith(
    store: &dyn ObjectStore,
    known: Option<&Fingerprint>,
) -> Result<IndexRead, DatastoreError> {
    let condition = known.map_or(Condition::None, |known| Condition::IfNoneMatch(known.clone()));
    let (info, bytes) = match get_bytes(store, GetRequest::whole(INDEX_KEY).with(condition).dated(), MAX_INDEX).await {
        Ok(Some(present)) => present,
        Ok(None) => return Ok(IndexRead::NotModified),
        Err(error) if error.is_not_found() => return Ok(IndexRead::Missing),
        Err(error) => return Err(error.into()),
    };
    check_whole(INDEX_KEY, &info, &bytes)?;
    let document = parse_elsewhere(bytes.clone()).await?.map_err(DatastoreError::Index)?;
    let index = Index::monolith(document, stamp_of(&info));
    let fresh = index.parts().keys().map(|name| (name.clone(), bytes.clone())).collect();
    Ok(IndexRead::Present(RemoteIndex { index, fresh }))
}

/// A document that was cut off must not pass for a shorter one.
pub(super) fn check_whole(key: &str, info: &ObjectInfo, bytes: &Bytes) -> Result<(), StoreError> {
    if info.size == bytes.len() as u64 {
        return Ok(());
    }
    let message = format!("the answer has {} of {} bytes", bytes.len(), info.size);
    Err(StoreError::new(StoreErrorKind::Server, "read", key, message))
}

/// The stamp of the answer that carried a part.
pub(super) fn stamp_of(info: &ObjectInfo) -> PartStamp {
    PartStamp {
        fingerprint: info.fingerprint.clone(),
        written_at: info.last_modified.map(time::OffsetDateTime::unix_timestamp),
    }
}

/// Parses where a hundred megabytes of JSON keep no other task waiting.
pub(super) async fn parse_elsewhere(
    bytes: Bytes,
) -> Result<Result<Document, super::index::IndexError>, DatastoreError> {
    if bytes.len() < 1 << 14 {
        return Ok(Document::parse(&bytes));
    }
    let parsed = tokio::task::spawn_blocking(move || Document::parse(&bytes)).await;
    parsed.map_err(|error| DatastoreError::Task(error.to_string()))
}

/// Reads `_index/_meta.json`; `None` when there is none. The known one is not read again.
pub(super) async fn read_meta(
    store: &dyn ObjectStore,
    known: Option<&Meta>,
) -> Result<Option<MetaRead>, DatastoreError> {
    let fingerprint = known.and_then(|meta| meta.fingerprint.clone());
    let condition = fingerprint.map_or(Condition::None, Condition::IfNoneMatch);
    match (get_bytes(store, GetRequest::whole(META_KEY).with(condition), MAX_META).await, known) {
        (Ok(Some((info, bytes))), _) => {
            check_whole(META_KEY, &info, &bytes)?;
            Meta::parse(&bytes, info.fingerprint).map(Some).map_err(DatastoreError::UnreadableMeta)
        }
        (Ok(None), Some(known)) => Ok(Some(MetaRead::Shards(known.clone()))),
        (Ok(None), None) => Err(DatastoreError::UnreadableMeta("was not sent".into())),
        (Err(error), _) if error.is_not_found() => Ok(None),
        (Err(error), _) => Err(error.into()),
    }
}

/// What counts in a bucket whose index was sharded, and whose `_meta.json` is gone.
enum WithoutMeta {
    /// The shards that exist: the list was lost.
    Shards(Meta),
    /// The monolith: the bucket turned back to version 1.
    Monolith,
    /// There is nothing.
    Nothing,
}

async fn without_meta(store: &dyn ObjectStore) -> Result<WithoutMeta, DatastoreError> {
    let shards = shards::list(store).await?;
    let monolith = list_all(store, INDEX_KEY).await?.into_iter().find(|listed| listed.key == INDEX_KEY);
    let Some(monolith) = monolith else {
        if shards.is_empty() {
            return Ok(WithoutMeta::Nothing);
        }
        tracing::warn!(shards = shards.len(), "_index/_meta.json is missing; the list is rebuilt from the shards");
        return Ok(WithoutMeta::Shards(Meta::of(shards.into_keys().collect())));
    };
    let newest = shards.values().map(|listed| listed.last_modified).max();
    match (newest, monolith.last_modified) {
        (None, _) => Ok(WithoutMeta::Monolith),
        (Some(Some(shard)), Some(monolith)) if monolith > shard => Ok(WithoutMeta::Monolith),
        _ => Err(DatastoreError::MetaVanished),
    }
}

/// Builds an index from a listing, for a bucket that was filled before indexes existed, or that is empty.
///
/// `in_namespace`: all of the store belongs to one namespace; otherwise what belongs to namespaces is left out.
/// Call it only when [`read_index`] said [`IndexRead::Missing`] and no index of this source was ever seen.
///
/// # Errors
/// [`DatastoreError::OnlyNamespaces`] when there is data, and all of it belongs to namespaces.
pub async fn discover(store: &dyn ObjectStore, in_namespace: bool) -> Result<Index, DatastoreError> {
    let listed = list_all(store, "").await?;
    let marker = format!("/{NAMESPACE_FILE}");
    let marked = listed.iter().filter(|_| !in_namespace).filter_map(|object| object.key.strip_suffix(&marker));
    let namespaces: BTreeSet<String> = marked.map(|ns| format!("{ns}/")).collect();
    let of_namespace = |key: &str| key.match_indices('/').any(|(at, _)| namespaces.contains(&key[..=at]));
    let mut index = Index::empty();
    index.set_last_pulled(&timestamp::format_nanos(timestamp::now_nanos()));
    let mut found = false;
    for object in listed.iter().filter(|o| !is_ignored_by_discovery(&o.key) && !of_namespace(&o.key)) {
        found = true;
        let modified = object.last_modified.map_or_else(timestamp::now_nanos, timestamp::from_store);
        let entry = Entry { size: object.size, last_modified: timestamp::format_nanos(modified), ..Entry::default() };
        match RelPath::parse(&object.key) {
            Ok(path) => index.set(&path, &entry),
            Err(problem) => index.set_unshowable(&object.key, &entry, problem.to_string()),
        }
    }
    if !found && !namespaces.is_empty() {
        let names = namespaces.iter().map(|ns| ns.trim_end_matches('/').to_owned()).collect();
        return Err(DatastoreError::OnlyNamespaces(names));
    }
    Ok(index)
}

/// Every object whose key begins with `prefix`.
pub(super) async fn list_all(store: &dyn ObjectStore, prefix: &str) -> Result<Vec<Listed>, StoreError> {
    let mut all = Vec::new();
    let mut request = ListRequest { prefix: prefix.to_owned(), ..ListRequest::default() };
    loop {
        let page = store.list(request.clone()).await?;
        all.extend(page.objects);
        match page.continuation {
            Some(more) => request.continuation = Some(more),
            None => return Ok(all),
        }
    }
}
