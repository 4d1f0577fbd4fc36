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

/// Looks for the version of an entry's object. See the module's invariant for what the caller has to check afterwards.
///
/// # Errors
/// Every failure but "no such object".
pub async fn head_base(store: &dyn ObjectStore, key: &str, entry: &Entry) -> Result<BaseVersion, StoreError> {
    let info = match store.head(key).await {
        Ok(info) => info,
        Err(error) if error.is_not_found() => return Ok(BaseVersion::Missing),
        Err(error) => return Err(error),
    };
    let hash_differs = match (info.metadata.get(META_SHA256), &entry.sha256) {
        (Some(stored), Some(listed)) => stored != listed,
        _ => false,
    };
    match &info.fingerprint {
        Some(fingerprint) if info.size == entry.size && !hash_differs => Ok(BaseVersion::Found(fingerprint.clone())),
        _ => Ok(BaseVersion::Different(info)),
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
    if fingerprint.as_str().eq_ignore_ascii_case(&hash::hex(&content.md5)) {
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
