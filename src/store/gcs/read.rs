//! Reads of contents: whole, ranged, pinned to a generation, or only when changed.
//!
//! Depends on `errors` and the request policy. Invariants: the body has exactly the bytes that were asked for, or fails;
//! whole objects are checked against the CRC32C that the store keeps (by the crate, at the body's end).

use std::ops::Range;

use google_cloud_storage::model_ext::ReadRange;
use google_cloud_storage::read_object::ReadObjectResponse;

use super::{GcsStore, errors, fingerprint, generation, required_generation};
use crate::store::empty_range;
use crate::store::retry::{Call, Failure};
use crate::store::{ByteStream, Condition, Fetched, GetRequest, ObjectInfo, Result, StoreError, StoreErrorKind};

/// How often a dated read is begun anew because the object was replaced before its date was known.
const DATED_ATTEMPTS: u32 = 5;

impl GcsStore {
    pub(super) async fn get_object(&self, request: GetRequest) -> Result<Fetched> {
        if let Some(range) = &request.range
            && range.is_empty()
        {
            return self.get_nothing(&request, range.start).await;
        }
        if request.dated { self.get_dated(&request).await } else { self.get_undated(&request).await }
    }

    async fn get_undated(&self, request: &GetRequest) -> Result<Fetched> {
        let call = Call::harmless("read", &request.key);
        self.policy.run(call, |_| self.get_once(&call, request)).await
    }

    /// The crate keeps the dates of a read to itself: they are looked up, and must be those of the generation that was read.
    async fn get_dated(&self, request: &GetRequest) -> Result<Fetched> {
        for _ in 0..DATED_ATTEMPTS {
            let fetched = self.get_undated(request).await?;
            let Fetched::Object { mut info, range, body } = fetched else { return Ok(fetched) };
            match self.head_object(&request.key).await {
                Ok(now) if now.fingerprint == info.fingerprint => {
                    info.last_modified = now.last_modified;
                    return Ok(Fetched::Object { info, range, body });
                }
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let message = "the object is replaced again and again while it is read";
        Err(StoreError::new(StoreErrorKind::Server, "read", &request.key, message))
    }

    /// An empty range cannot be asked for: HTTP's ranges have at least one byte.
    async fn get_nothing(&self, request: &GetRequest, start: u64) -> Result<Fetched> {
        let info = self.head_object(&request.key).await?;
        empty_range(info, request, start)
    }

    async fn get_once(&self, call: &Call<'_>, request: &GetRequest) -> std::result::Result<Fetched, Failure> {
        let mut read = self.data.read_object(self.bucket_name(), self.full_key(&request.key));
        if let Some(range) = &request.range {
            read = read.set_read_range(ReadRange::segment(range.start, range.end - range.start));
        }
        match &request.condition {
            Condition::None => {}
            Condition::IfMatch(wanted) => {
                read = read.set_if_generation_match(required_generation(wanted, call.operation, call.key)?);
            }
            // What is no generation differs from every version.
            Condition::IfNoneMatch(known) => {
                if let Some(known) = generation(known) {
                    read = read.set_if_generation_not_match(known);
                }
            }
        }
        let response = match read.send().await {
            Ok(response) => response,
            Err(error) if error.http_status_code() == Some(304) => return Ok(Fetched::NotModified),
            Err(error) => return Err(errors::failure(call, &error)),
        };
        let object = response.object();
        let senseless = |message: &str| StoreError::new(StoreErrorKind::Server, call.operation, call.key, message);
        let info = ObjectInfo {
            size: u64::try_from(object.size).map_err(|_| senseless("the answer tells no size"))?,
            fingerprint: fingerprint(object.generation),
            // The answer's headers have both, but the crate does not hand them out (see `get_dated`).
            last_modified: None,
            server_date: None,
            metadata: object.metadata.into_iter().collect(),
        };
        if let Condition::IfMatch(wanted) = &request.condition
            && info.fingerprint.as_ref() != Some(wanted)
        {
            let message = "the object is not in the expected version, and the store ignored the condition";
            return Err(StoreError::new(StoreErrorKind::Precondition, call.operation, call.key, message).into());
        }
        let range = match &request.range {
            Some(asked) => asked.start..asked.end.min(info.size),
            None => 0..info.size,
        };
        if range.start > range.end {
            return Err(senseless("the store answered a range beyond the end of the object").into());
        }
        let body = self.policy.guard(&request.key, incoming(&request.key, response, range.clone()));
        Ok(Fetched::Object { info, range, body })
    }
}

/// The body of an answer, which must be exactly as long as its range.
fn incoming(key: &str, response: ReadObjectResponse, range: Range<u64>) -> ByteStream {
    let (key, expected) = (key.to_owned(), range.end - range.start);
    let state = Some((response, 0u64, key));
    Box::pin(futures_util::stream::unfold(state, move |state| async move {
        let (mut response, seen, key) = state?;
        let broken = |message: String| StoreError::new(StoreErrorKind::Unreachable, "read", &key, message);
        match response.next().await {
            Some(Ok(chunk)) => {
                let seen = seen + chunk.len() as u64;
                if seen > expected {
                    return Some((Err(broken(format!("the body is longer than the {expected} bytes promised"))), None));
                }
                Some((Ok(chunk), Some((response, seen, key))))
            }
            Some(Err(error)) => Some((Err(errors::broken_body(&key, &error, seen, expected)), None)),
            None if seen < expected => {
                Some((Err(broken(format!("the body ended after {seen} of {expected} bytes"))), None))
            }
            None => None,
        }
    }))
}
