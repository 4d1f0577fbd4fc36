//! Writes in one request: PUT and COPY.
//!
//! Depends on `errors`, `body` and the request policy. Invariant: conditional requests go out as calls that the policy
//! never repeats blindly.

use std::time::Duration;

use aws_sdk_s3::types::MetadataDirective;

use super::body;
use super::read::{ServerDate, fingerprint, quoted};
use super::{S3Store, encode, errors};
use crate::store::content::ContentError;
use crate::store::retry::Call;
use crate::store::{
    CopySource, Fingerprint, Precondition, PutRequest, Result, StoreError, StoreErrorKind, Stored, UserMetadata,
};

/// Slowest server-side copy to wait for, in bytes per second.
const COPY_RATE: u64 = 16 << 20;

/// A precondition as the two headers.
pub(super) fn conditions(precondition: &Precondition) -> (Option<String>, Option<String>) {
    match precondition {
        Precondition::None => (None, None),
        Precondition::Absent => (None, Some("*".to_owned())),
        Precondition::Match(version) => (Some(quoted(version)), None),
    }
}

/// A target that is gone no longer has the version that was asked for: some stores call that 404.
pub(super) fn absent_is_precondition(error: StoreError, precondition: &Precondition) -> StoreError {
    if error.is_not_found() && matches!(precondition, Precondition::Match(_)) {
        return StoreError { kind: StoreErrorKind::Precondition, ..error };
    }
    error
}

/// Time for the store to copy `bytes`.
pub(super) fn copy_allowance(bytes: u64) -> Duration {
    Duration::from_secs(bytes / COPY_RATE)
}

impl S3Store {
    /// `x-amz-copy-source`.
    pub(super) fn copy_source(&self, key: &str) -> String {
        format!("{}/{}", encode::encode(&self.bucket), encode::encode(&self.full_key(key)))
    }

    pub(super) async fn put_single(&self, request: &PutRequest) -> Result<Stored> {
        let size = request.body.size();
        let local =
            |error: ContentError| StoreError::new(StoreErrorKind::Local, "write", &request.key, error.to_string());
        let length =
            i64::try_from(size).map_err(|error| StoreError::other("write", &request.key, error.to_string()))?;
        let md5 = match &request.md5 {
            Some(digest) => body::encode_md5(digest),
            None => body::content_md5(&request.body, 0..size).await.map_err(local)?,
        };
        let md5 = md5.as_str();
        let conditional = request.precondition != Precondition::None;
        let call = Call::write("write", &request.key, conditional);
        self.policy
            .run(call, |progress| async move {
                let date = ServerDate::default();
                let (if_match, if_none_match) = conditions(&request.precondition);
                let builder = self
                    .client
                    .put_object()
                    .bucket(&self.bucket)
                    .key(self.full_key(&request.key))
                    .set_if_match(if_match)
                    .set_if_none_match(if_none_match)
                    .set_metadata(some_metadata(&request.metadata))
                    .set_content_type(request.content_type.map(str::to_owned))
                    .content_length(length)
                    .content_md5(md5)
                    .body(body::outgoing(&request.body, 0..size, progress).map_err(local)?);
                let sent = builder.customize().interceptor(date.clone()).send().await;
                let output = sent.map_err(|error| errors::failure(&call, error))?;
                Ok(Stored { fingerprint: fingerprint(output.e_tag()), server_date: date.get() })
            })
            .await
            .map_err(|error| absent_is_precondition(error, &request.precondition))
    }

    pub(super) async fn copy_single(
        &self,
        source: &CopySource,
        to: &str,
        precondition: &Precondition,
        metadata: &UserMetadata,
    ) -> Result<Stored> {
        let conditional = *precondition != Precondition::None;
        let call = Call::write("copy to", to, conditional).allow(copy_allowance(source.size));
        self.policy
            .run(call, |_| async move {
                let date = ServerDate::default();
                let (if_match, if_none_match) = conditions(precondition);
                let builder = self
                    .client
                    .copy_object()
                    .bucket(&self.bucket)
                    .key(self.full_key(to))
                    .copy_source(self.copy_source(&source.key))
                    .set_copy_source_if_match(source.if_match.as_ref().map(quoted))
                    .set_if_match(if_match)
                    .set_if_none_match(if_none_match)
                    .metadata_directive(MetadataDirective::Replace)
                    .set_metadata(some_metadata(metadata));
                let sent = builder.customize().interceptor(date.clone()).send().await;
                let output = sent.map_err(|error| errors::failure(&call, error))?;
                let etag = output.copy_object_result().and_then(|result| result.e_tag());
                Ok(Stored { fingerprint: fingerprint(etag), server_date: date.get() })
            })
            .await
    }

    /// Whether the source of a copy still has the version that was asked for.
    pub(super) async fn check_source(&self, source: &CopySource) -> Result<Option<Fingerprint>> {
        let info = self.head_object(&source.key).await?;
        match &source.if_match {
            Some(wanted) if info.fingerprint.as_ref() != Some(wanted) => {
                let message = "the source of the copy is not in the expected version";
                Err(StoreError::new(StoreErrorKind::Precondition, "copy from", &source.key, message))
            }
            _ if info.size != source.size => {
                let message = format!("the source of the copy has {} bytes, not {}", info.size, source.size);
                Err(StoreError::new(StoreErrorKind::Precondition, "copy from", &source.key, message))
            }
            _ => Ok(info.fingerprint),
        }
    }
}

/// Metadata for a request; the SDK wants a hash map.
pub(super) fn some_metadata(metadata: &UserMetadata) -> Option<std::collections::HashMap<String, String>> {
    (!metadata.is_empty()).then(|| metadata.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
}
