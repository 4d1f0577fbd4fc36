//! The bucket as this program sees it: the trait [`ObjectStore`], the values that cross it, and its backends.
//!
//! Lowest layer: depends on nothing else in the crate. Invariants: a [`Fingerprint`] is only ever made from an answer of
//! the store (or read back from where such a one was recorded); a precondition that failed is
//! [`StoreErrorKind::Precondition`], an absent object is [`StoreErrorKind::NotFound`], and *everything else* says nothing
//! about whether the object exists. Bodies are streams: no backend ever holds a whole large object in memory.

#[cfg(any(feature = "s3", feature = "gcs"))]
mod causes;
#[cfg(any(feature = "s3", feature = "gcs"))]
mod content;
pub mod dir;
mod error;
#[cfg(feature = "gcs")]
pub mod gcs;
#[cfg_attr(not(any(feature = "s3", feature = "gcs")), allow(dead_code))]
mod retry;
#[cfg(feature = "s3")]
pub mod s3;
mod types;

pub use dir::DirStore;
pub use error::{Service, StoreError, StoreErrorKind};
#[cfg(feature = "gcs")]
pub use gcs::{GcsOptions, GcsStore};
pub use retry::{Heard, Refusals, RequestPolicy};
#[cfg(feature = "s3")]
pub use s3::{PartLimits, S3Options, S3Store};
pub use types::{
    Body, ByteStream, Condition, CopySource, Fetched, Fingerprint, FingerprintName, GetRequest, ListPage, ListRequest,
    Listed, ObjectInfo, Precondition, PutRequest, Stored, UnfinishedUpload, UserMetadata,
};

use async_trait::async_trait;

/// What every backend answers with.
pub type Result<T> = std::result::Result<T, StoreError>;

/// A bucket (below a prefix that the backend adds and strips): flat, strongly consistent, with conditional writes.
///
/// Keys are relative to the prefix, `/`-separated UTF-8. Every method applies the request policy (deadline per request,
/// bounded retries) itself; a conditional write whose answer was lost is *not* retried blindly: it fails with
/// [`StoreErrorKind::Undecided`] and the caller finds out what happened.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// The source as users write it, such as `s3://bucket/prefix`; for messages.
    fn describe(&self) -> String;

    /// How the reference clients of this store name the fingerprint of an index in their sidecar.
    fn fingerprint_name(&self) -> FingerprintName {
        FingerprintName::ETag
    }

    /// When something last came from it, or from one that shares its client.
    fn heard(&self) -> Heard {
        Heard::default()
    }

    /// Counts the answers that asked for patience, of this store and of all that share its client.
    fn refusals(&self) -> Refusals {
        Refusals::default()
    }

    /// Size, fingerprint and metadata of an object.
    async fn head(&self, key: &str) -> Result<ObjectInfo>;

    /// Reads an object or one range of it. A range that begins at or beyond the end gives
    /// [`StoreErrorKind::RangeNotSatisfiable`].
    async fn get(&self, request: GetRequest) -> Result<Fetched>;

    /// Writes a whole object, in several parts when it is large and [`PutRequest::single_part`] is not set.
    async fn put(&self, request: PutRequest) -> Result<Stored>;

    /// Copies an object within the bucket, without its bytes passing through this machine.
    async fn copy(
        &self,
        source: CopySource,
        to: &str,
        precondition: Precondition,
        metadata: UserMetadata,
    ) -> Result<Stored>;

    /// Deletes an object, if it still has that fingerprint when one is given. An absent object is success without a
    /// condition, [`StoreErrorKind::NotFound`] or [`StoreErrorKind::Precondition`] with one.
    async fn delete(&self, key: &str, if_match: Option<&Fingerprint>) -> Result<()>;

    /// One page of keys, in bytewise order.
    async fn list(&self, request: ListRequest) -> Result<ListPage>;

    /// Uploads in parts that were begun and not completed, where the store keeps such and shows them.
    async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>> {
        Ok(Vec::new())
    }

    /// Ends such an upload. One that is gone is success.
    async fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<()> {
        Err(StoreError::other("abort the upload of", &upload.key, "this store shows no unfinished uploads"))
    }
}

/// How often [`get_bytes`] asks in all when the body breaks off.
const BODY_ATTEMPTS: u32 = 3;

/// Reads a whole small object (an index, a lock) into memory, again from the start when its body breaks off.
///
/// `limit` is the largest body accepted, in bytes; beyond it the error is [`StoreErrorKind::Other`].
pub async fn get_bytes(
    store: &dyn ObjectStore,
    request: GetRequest,
    limit: u64,
) -> Result<Option<(ObjectInfo, bytes::Bytes)>> {
    let mut attempt = 1;
    loop {
        // Failures before the body have been repeated already, as the policy wants.
        let (info, body) = match store.get(request.clone()).await? {
            Fetched::NotModified => return Ok(None),
            Fetched::Object { info, body, .. } => (info, body),
        };
        match collect(&request.key, body, limit).await {
            Ok(bytes) => return Ok(Some((info, bytes))),
            Err(error) if error.is_transient() && attempt < BODY_ATTEMPTS => {
                tracing::debug!(%error, attempt, "a body broke off and is read again");
                attempt += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn collect(key: &str, mut body: ByteStream, limit: u64) -> Result<bytes::Bytes> {
    use futures_util::StreamExt;
    let mut buffer = bytes::BytesMut::new();
    while let Some(chunk) = body.next().await {
        buffer.extend_from_slice(&chunk?);
        if buffer.len() as u64 > limit {
            return Err(StoreError::other("read", key, format!("the object is larger than {limit} bytes")));
        }
    }
    Ok(buffer.freeze())
}

/// The answer to a read of an empty range, which HTTP cannot ask for: what a HEAD said decides.
#[cfg(any(feature = "s3", feature = "gcs"))]
fn empty_range(info: ObjectInfo, request: &GetRequest, start: u64) -> Result<Fetched> {
    let fail = |kind, message: &str| Err(StoreError::new(kind, "read", &request.key, message));
    match &request.condition {
        Condition::IfMatch(wanted) if info.fingerprint.as_ref() != Some(wanted) => {
            return fail(StoreErrorKind::Precondition, "the object is not in the expected version");
        }
        Condition::IfNoneMatch(known) if info.fingerprint.as_ref() == Some(known) => {
            return Ok(Fetched::NotModified);
        }
        _ => {}
    }
    if start >= info.size {
        return fail(StoreErrorKind::RangeNotSatisfiable, "the range lies beyond the end of the object");
    }
    Ok(Fetched::Object { info, range: start..start, body: Box::pin(futures_util::stream::empty()) })
}
