//! Writes in parts: uploads of large bodies, copies of objects beyond what one request may copy.
//!
//! Depends on `write` and the request policy. Invariants: parts are repeated freely, the completion carries the
//! precondition and decides; an upload that is not completed is aborted, also when its future is dropped.

use std::future::Future;
use std::ops::Range;

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures_util::{StreamExt, TryStreamExt};

use super::body;
use super::read::{ServerDate, fingerprint, quoted};
use super::write::{absent_is_precondition, conditions, copy_allowance, some_metadata};
use super::{S3Store, errors};
use crate::store::content::ContentError;
use crate::store::retry::Call;
use crate::store::{
    CopySource, Fingerprint, Precondition, PutRequest, Result, StoreError, StoreErrorKind, Stored, UserMetadata,
};

/// Most parts of an upload.
const MAX_PARTS: u64 = 10_000;

/// Splits `size` bytes into at most [`MAX_PARTS`] parts of at least `smallest` bytes (the last may be shorter).
fn parts(size: u64, smallest: u64) -> impl Iterator<Item = (i32, Range<u64>)> {
    const MIB: u64 = 1 << 20;
    let needed = size.div_ceil(MAX_PARTS);
    let part = if needed > smallest { needed.div_ceil(MIB) * MIB } else { smallest.max(1) };
    (1..).zip((0..size.div_ceil(part)).map(move |index| index * part..size.min((index + 1) * part)))
}

/// An upload that has begun; aborted when dropped before [`Upload::done`].
struct Upload {
    client: Client,
    bucket: String,
    full_key: String,
    id: String,
    open: bool,
}

impl Upload {
    /// It was completed: there is nothing to abort.
    fn done(mut self) {
        self.open = false;
    }

    /// Ends it, so that its parts cost nothing and a late completion cannot succeed.
    async fn abort(mut self, policy: &super::RequestPolicy) {
        self.open = false;
        let call = Call::harmless("abort the upload of", &self.full_key);
        let upload = &self;
        let aborted = policy.run(call, |_| async move {
            let sent = upload.request().send().await;
            sent.map_err(|error| errors::failure(&call, error))
        });
        if let Err(error) = aborted.await {
            tracing::warn!(%error, "the parts of a failed upload are left in the bucket");
        }
    }

    fn request(&self) -> aws_sdk_s3::operation::abort_multipart_upload::builders::AbortMultipartUploadFluentBuilder {
        self.client.abort_multipart_upload().bucket(&self.bucket).key(&self.full_key).upload_id(&self.id)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            tracing::warn!(key = self.full_key, "the parts of a cancelled upload are left in the bucket");
            return;
        };
        let (request, key) = (self.request(), std::mem::take(&mut self.full_key));
        runtime.spawn(async move {
            if let Err(error) = request.send().await {
                tracing::warn!(key, %error, "the parts of a cancelled upload are left in the bucket");
            }
        });
    }
}

impl S3Store {
    pub(super) async fn put_multipart(&self, request: &PutRequest) -> Result<Stored> {
        let upload = self.begin(&request.key, &request.metadata, request.content_type).await?;
        let send = |upload_id: String, number, range| self.upload_part(request, upload_id, number, range);
        let ranges = parts(request.body.size(), self.limits.upload_part);
        self.fill(upload, &request.key, &request.precondition, ranges, send).await
    }

    pub(super) async fn copy_multipart(
        &self,
        source: &CopySource,
        to: &str,
        precondition: &Precondition,
        metadata: &UserMetadata,
    ) -> Result<Stored> {
        // Pins the version even when the caller did not, so that parts of two versions are never mixed.
        let version = self.check_source(source).await?;
        let upload = self.begin(to, metadata, None).await?;
        let version = version.as_ref();
        let send = |upload_id, number, range| self.copy_part(source, version, to, upload_id, number, range);
        self.fill(upload, to, precondition, parts(source.size, self.limits.copy_part), send).await
    }

    async fn begin(&self, key: &str, metadata: &UserMetadata, content_type: Option<&str>) -> Result<Upload> {
        let call = Call::harmless("begin the upload of", key);
        let id = self
            .policy
            .run(call, |_| async move {
                let request = self
                    .client
                    .create_multipart_upload()
                    .bucket(&self.bucket)
                    .key(self.full_key(key))
                    .set_metadata(some_metadata(metadata))
                    .set_content_type(content_type.map(str::to_owned));
                let output = request.send().await.map_err(|error| errors::failure(&call, error))?;
                output.upload_id.ok_or_else(|| {
                    let message = "the answer names no upload id";
                    StoreError::new(StoreErrorKind::Server, call.operation, key, message).into()
                })
            })
            .await?;
        let full_key = self.full_key(key);
        Ok(Upload { client: self.client.clone(), bucket: self.bucket.clone(), full_key, id, open: true })
    }

    /// Sends all parts and completes the upload, or aborts it.
    async fn fill<F, Fut>(
        &self,
        upload: Upload,
        key: &str,
        precondition: &Precondition,
        ranges: impl Iterator<Item = (i32, Range<u64>)>,
        send: F,
    ) -> Result<Stored>
    where
        F: Fn(String, i32, Range<u64>) -> Fut,
        Fut: Future<Output = Result<CompletedPart>>,
    {
        let sending = ranges.map(|(number, range)| send(upload.id.clone(), number, range));
        let sent = futures_util::stream::iter(sending).buffered(self.limits.concurrency.max(1)).try_collect().await;
        let outcome = match sent {
            Ok(parts) => self.complete(key, &upload.id, parts, precondition).await,
            Err(error) => Err(error),
        };
        match &outcome {
            Ok(_) => upload.done(),
            // Also when undecided: either it was completed, and there is nothing to abort, or now it never will be.
            Err(_) => upload.abort(&self.policy).await,
        }
        outcome
    }

    async fn upload_part(
        &self,
        request: &PutRequest,
        upload_id: String,
        number: i32,
        range: Range<u64>,
    ) -> Result<CompletedPart> {
        let key = &request.key;
        let local = |error: ContentError| StoreError::new(StoreErrorKind::Local, "write", key, error.to_string());
        let length = i64::try_from(range.end - range.start);
        let length = length.map_err(|error| StoreError::other("write", key, error.to_string()))?;
        let md5 = body::content_md5(&request.body, range.clone()).await.map_err(local)?;
        let call = Call::harmless("write", key);
        let (upload_id, md5, range) = (&upload_id, &md5, &range);
        self.policy
            .run(call, |progress| async move {
                let builder = self
                    .client
                    .upload_part()
                    .bucket(&self.bucket)
                    .key(self.full_key(key))
                    .upload_id(upload_id)
                    .part_number(number)
                    .content_length(length)
                    .content_md5(md5)
                    .body(body::outgoing(&request.body, range.clone(), progress).map_err(local)?);
                let output = builder.send().await.map_err(|error| errors::failure(&call, error))?;
                Ok(CompletedPart::builder().part_number(number).set_e_tag(output.e_tag).build())
            })
            .await
    }

    async fn copy_part(
        &self,
        source: &CopySource,
        version: Option<&Fingerprint>,
        to: &str,
        upload_id: String,
        number: i32,
        range: Range<u64>,
    ) -> Result<CompletedPart> {
        let call = Call::harmless("copy to", to).allow(copy_allowance(range.end - range.start));
        let (upload_id, range) = (&upload_id, &range);
        self.policy
            .run(call, |_| async move {
                let builder = self
                    .client
                    .upload_part_copy()
                    .bucket(&self.bucket)
                    .key(self.full_key(to))
                    .upload_id(upload_id)
                    .part_number(number)
                    .copy_source(self.copy_source(&source.key))
                    .copy_source_range(format!("bytes={}-{}", range.start, range.end - 1))
                    .set_copy_source_if_match(version.map(quoted));
                let output = builder.send().await.map_err(|error| errors::failure(&call, error))?;
                let etag = output.copy_part_result.and_then(|result| result.e_tag);
                Ok(CompletedPart::builder().part_number(number).set_e_tag(etag).build())
            })
            .await
    }

    async fn complete(
        &self,
        key: &str,
        upload_id: &str,
        parts: Vec<CompletedPart>,
        precondition: &Precondition,
    ) -> Result<Stored> {
        // Not harmless even without a precondition: the upload is gone once it is complete.
        let size_hint = parts.len() as u64 * self.limits.upload_part;
        let call = Call::write("complete the upload of", key, true).allow(copy_allowance(size_hint));
        let list = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let list = &list;
        self.policy
            .run(call, |_| async move {
                let date = ServerDate::default();
                let (if_match, if_none_match) = conditions(precondition);
                let builder = self
                    .client
                    .complete_multipart_upload()
                    .bucket(&self.bucket)
                    .key(self.full_key(key))
                    .upload_id(upload_id)
                    .multipart_upload(list.clone())
                    .set_if_match(if_match)
                    .set_if_none_match(if_none_match);
                let sent = builder.customize().interceptor(date.clone()).send().await;
                let output = sent.map_err(|error| errors::failure(&call, error))?;
                Ok(Stored { fingerprint: fingerprint(output.e_tag()), server_date: date.get() })
            })
            .await
            .map_err(|error| absent_is_precondition(error, precondition))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_once_and_are_never_too_many() {
        const MIB: u64 = 1 << 20;
        for size in [1, 16 * MIB, 16 * MIB + 1, 160_000 * MIB, 160_001 * MIB, 5 << 40] {
            let split: Vec<_> = parts(size, 16 * MIB).collect();
            assert!(split.len() as u64 <= MAX_PARTS, "{size}");
            let mut end = 0;
            for (index, (number, range)) in split.iter().enumerate() {
                assert_eq!(*number as usize, index + 1);
                assert_eq!(range.start, end);
                assert!(range.end - range.start >= 16 * MIB || range.end == size, "{size}");
                end = range.end;
            }
            assert_eq!(end, size);
        }
    }
}
