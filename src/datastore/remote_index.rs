//! The index in the bucket: reading it, making one for a bucket that has none, and writing it.
//!
//! Depends on `store`. Invariants: `_index/_meta.json` is looked at with every read, because a bucket can be migrated at
//! any time; only "no such object" means that there is no index, every other failure is an error; a write is one
//! single-part PUT under a lock that still holds.

use std::collections::BTreeSet;

use bytes::Bytes;
use md5::{Digest, Md5};
use serde_json::Value;
use time::OffsetDateTime;

use super::error::DatastoreError;
use super::index::{Entry, Index};
use super::lock::HeldLock;
use super::names::{INDEX_KEY, META_KEY, NAMESPACE_FILE, is_ignored_by_discovery};
use super::path::RelPath;
use super::timestamp;
use crate::store::{
    Condition, Fingerprint, GetRequest, ListRequest, Listed, ObjectStore, Precondition, PutRequest, StoreError,
    StoreErrorKind, get_bytes,
};

/// Largest index that is read, in bytes.
const MAX_INDEX: u64 = 2 << 30;
/// Largest `_meta.json` that is read, in bytes.
const MAX_META: u64 = 64 << 20;

/// The answer to a read of the index.
// One lives at a time, and is taken apart at once: a box would only be in the way.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum IndexRead {
    /// It still has the known fingerprint.
    NotModified,
    /// The bucket has no index: it is new, or must be discovered, or, if there was one before, something is wrong.
    Missing,
    /// The index.
    Present(RemoteIndex),
}

/// An index that was read.
#[derive(Clone, Debug)]
pub struct RemoteIndex {
    /// What it says.
    pub index: Index,
    /// The bytes of the answer.
    pub bytes: Bytes,
    /// The fingerprint that came with these bytes.
    pub fingerprint: Option<Fingerprint>,
    /// When it was written, by the store's clock: objects that its entries speak of are not younger.
    pub written_at: Option<OffsetDateTime>,
}

/// An index that was written.
#[derive(Clone, Debug)]
pub struct WrittenIndex {
    /// Its fingerprint.
    pub fingerprint: Option<Fingerprint>,
    /// The bytes that were written.
    pub bytes: Bytes,
    /// When it was written, by the store's clock.
    pub written_at: Option<OffsetDateTime>,
}

/// Reads the index, unless it still has the `known` fingerprint.
///
/// # Errors
/// Every failure but "no such object"; a sharded index; an index that does not parse.
pub async fn read_index(store: &dyn ObjectStore, known: Option<&Fingerprint>) -> Result<IndexRead, DatastoreError> {
    let condition = known.map_or(Condition::None, |known| Condition::IfNoneMatch(known.clone()));
    let request = GetRequest::whole(INDEX_KEY).with(condition);
    let (meta, index) = tokio::join!(is_sharded(store), get_bytes(store, request, MAX_INDEX));
    if meta? {
        return Err(DatastoreError::Sharded);
    }
    let (info, bytes) = match index {
        Ok(Some(present)) => present,
        Ok(None) => return Ok(IndexRead::NotModified),
        Err(error) if error.is_not_found() => return Ok(IndexRead::Missing),
        Err(error) => return Err(error.into()),
    };
    if info.size != bytes.len() as u64 {
        let message = format!("the answer has {} of {} bytes", bytes.len(), info.size);
        return Err(StoreError::new(StoreErrorKind::Server, "read", INDEX_KEY, message).into());
    }
    let index = parse_elsewhere(bytes.clone()).await?;
    let (fingerprint, written_at) = (info.fingerprint, info.last_modified);
    Ok(IndexRead::Present(RemoteIndex { index, bytes, fingerprint, written_at }))
}

/// Parses where a hundred megabytes of JSON keep no other task waiting.
async fn parse_elsewhere(bytes: Bytes) -> Result<Index, DatastoreError> {
    if bytes.len() < 1 << 20 {
        return Ok(Index::parse(&bytes)?);
    }
    let parsed = tokio::task::spawn_blocking(move || Index::parse(&bytes)).await;
    Ok(parsed.map_err(|error| DatastoreError::Task(error.to_string()))??)
}

async fn is_sharded(store: &dyn ObjectStore) -> Result<bool, DatastoreError> {
    let bytes = match get_bytes(store, GetRequest::whole(META_KEY), MAX_META).await {
        Ok(Some((_, bytes))) => bytes,
        Ok(None) => return Ok(false),
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let meta: Value = serde_json::from_slice(&bytes)
        .map_err(|error| DatastoreError::UnreadableMeta(format!("is not JSON ({error})")))?;
    match meta.get("version").and_then(Value::as_f64) {
        Some(1.0) => Ok(false),
        Some(2.0) => Ok(true),
        _ => Err(DatastoreError::UnreadableMeta("has an unknown version".into())),
    }
}

/// Builds an index from a listing, for a bucket that was filled before indexes existed, or that is empty.
///
/// Call it only when [`read_index`] said [`IndexRead::Missing`] and no index of this source was ever seen.
///
/// # Errors
/// [`DatastoreError::OnlyNamespaces`] when there is data, and all of it belongs to namespaces.
pub async fn discover(store: &dyn ObjectStore) -> Result<Index, DatastoreError> {
    let listed = list_all(store, "").await?;
    let marker = format!("/{NAMESPACE_FILE}");
    let namespaces: BTreeSet<String> =
        listed.iter().filter_map(|object| object.key.strip_suffix(&marker)).map(|ns| format!("{ns}/")).collect();
    let in_namespace = |key: &str| key.match_indices('/').any(|(at, _)| namespaces.contains(&key[..=at]));
    let mut index = Index::empty();
    index.set_last_pulled(&timestamp::format_nanos(timestamp::now_nanos()));
    let mut found = false;
    for object in listed.iter().filter(|o| !is_ignored_by_discovery(&o.key) && !in_namespace(&o.key)) {
        found = true;
        let modified = object.last_modified.map_or_else(timestamp::now_nanos, timestamp::from_store);
        let entry = Entry { size: object.size, last_modified: timestamp::format_nanos(modified), ..Entry::default() };
        match RelPath::parse(&object.key) {
            Ok(path) => index.set(&path, entry),
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

/// Writes the index: one PUT, with a precondition unless `unconditional`.
///
/// `replaces` is the fingerprint of the index that it was merged into; `None` means that there was none (create-only).
///
/// # Errors
/// [`DatastoreError::Changed`] when another writer was first; [`StoreErrorKind::Undecided`] passes through: read again.
pub async fn write_index(
    store: &dyn ObjectStore,
    lock: &HeldLock,
    index: &Index,
    replaces: Option<&Fingerprint>,
    unconditional: bool,
) -> Result<WrittenIndex, DatastoreError> {
    let bytes = Bytes::from(index.to_bytes());
    let precondition = match (unconditional, replaces) {
        (true, _) => Precondition::None,
        (false, Some(fingerprint)) => Precondition::Match(fingerprint.clone()),
        (false, None) => Precondition::Absent,
    };
    let mut request = PutRequest::json(INDEX_KEY, bytes.clone(), precondition);
    request.md5 = Some(Md5::digest(&bytes).into());
    lock.check()?;
    match store.put(request).await {
        Ok(stored) => Ok(WrittenIndex { fingerprint: stored.fingerprint, bytes, written_at: stored.server_date }),
        // With If-Match some stores answer that the object is gone instead.
        Err(error) if error.is_precondition() || error.is_not_found() => Err(DatastoreError::Changed),
        Err(error) => Err(error.into()),
    }
}
