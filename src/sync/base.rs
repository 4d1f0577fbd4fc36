//! Which version of an object an index entry speaks of.
//!
//! Depends on `store` and `datastore`. The index records no fingerprints, so the version that a change replaces is either
//! known from our own GET or PUT, or found by one HEAD. Invariant: a fingerprint found by HEAD counts only if the object
//! looks like the entry, *and* an index read made after the HEAD still shows that entry (the caller's part): otherwise the
//! HEAD may have seen a newer upload whose entry is still on its way.

use crate::datastore::Entry;
use crate::store::{Condition, Fetched, Fingerprint, GetRequest, ObjectInfo, ObjectStore, StoreError};

use super::hash;
use super::upload::META_SHA256;

/// Largest object that is read only to compare it.
const MAX_COMPARE: u64 = 64 << 20;

/// What a HEAD says about an entry's object.
#[derive(Clone, Debug)]
pub enum BaseVersion {
    /// The object looks like the entry; this is its version.
    Found(Fingerprint),
    /// There is no such object, although an entry names it.
    Missing,
    /// The object is another one than the entry's: a conflict.
    Different(ObjectInfo),
}

/// Looks for the version of an entry's object. `index_written_at` is when the index with the entry was written, by the
/// store's clock, in seconds since the epoch, where known. See the module's invariant for what the caller has to check afterwards.
///
/// # Errors
/// Every failure but "no such object".
pub async fn head_base(
    store: &dyn ObjectStore,
    key: &str,
    entry: &Entry,
    index_written_at: Option<i64>,
) -> Result<BaseVersion, StoreError> {
    let info = match store.head(key).await {
        Ok(info) => info,
        Err(error) if error.is_not_found() => return Ok(BaseVersion::Missing),
        Err(error) => return Err(error),
    };
    let hash_differs = match (info.metadata.get(META_SHA256), &entry.sha256) {
        (Some(stored), Some(listed)) => stored != listed,
        _ => false,
    };
    let Some(fingerprint) = info.fingerprint.clone().filter(|_| info.size == entry.size && !hash_differs) else {
        return Ok(BaseVersion::Different(info));
    };
    let younger = match (info.last_modified, index_written_at) {
        (Some(object), Some(index)) => object.unix_timestamp() > index,
        _ => false,
    };
    // Younger than the index: an upload whose entry is still on its way, unless its bytes are those of the entry (a bucket
    // that was copied object by object has younger objects everywhere).
    let stored_hash = info.metadata.get(META_SHA256);
    if younger && stored_hash.is_none() && !has_hash(store, key, &fingerprint, entry).await? {
        return Ok(BaseVersion::Different(info));
    }
    Ok(BaseVersion::Found(fingerprint))
}

/// Whether one version of an object has the hash of an entry; large ones are not read, and do not count.
async fn has_hash(
    store: &dyn ObjectStore,
    key: &str,
    version: &Fingerprint,
    entry: &Entry,
) -> Result<bool, StoreError> {
    let Some(expected) = entry.sha256.as_deref().filter(|_| entry.size <= MAX_COMPARE) else { return Ok(false) };
    match store.get(GetRequest::whole(key).with(Condition::IfMatch(version.clone()))).await {
        Ok(Fetched::Object { body, .. }) => Ok(hash::digest_stream(body).await?.1.eq_ignore_ascii_case(expected)),
        Ok(Fetched::NotModified) => Ok(false),
        Err(error) if error.is_precondition() || error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether an object holds exactly these bytes: by its metadata, by its fingerprint, or by reading it when it is not large.
///
/// # Errors
/// Of the reading; an object that changes meanwhile does not hold them.
pub async fn holds_bytes(
    store: &dyn ObjectStore,
    key: &str,
    info: &ObjectInfo,
    content: &hash::Digests,
) -> Result<bool, StoreError> {
    if info.size != content.size {
        return Ok(false);
    }
    if let Some(stored) = info.metadata.get(META_SHA256) {
        return Ok(*stored == content.sha256);
    }
    let Some(fingerprint) = &info.fingerprint else { return Ok(false) };
    if content.md5.is_some_and(|md5| fingerprint.as_str().eq_ignore_ascii_case(&hash::hex(&md5))) {
        return Ok(true);
    }
    if info.size > MAX_COMPARE {
        return Ok(false);
    }
    match store.get(GetRequest::whole(key).with(Condition::IfMatch(fingerprint.clone()))).await {
        Ok(Fetched::Object { body, .. }) => {
            let (size, sha256) = hash::digest_stream(body).await?;
            Ok(size == content.size && sha256 == content.sha256)
        }
        Ok(Fetched::NotModified) => Ok(false),
        Err(error) if error.is_precondition() || error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}
