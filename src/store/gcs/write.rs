//! Writes: one request for small bodies, a resumable upload for large ones.
//!
//! Depends on `errors`, `payload` and the request policy. Invariants: a conditional write is never repeated blindly (a
//! resumable upload asks the store first); what the store says it stored is compared with what was sent.

use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_storage::model::Object;

use super::payload::{Course, Pauses, Resume, Source};
use super::{GcsStore, errors, fingerprint, target_generation, timestamp};
use crate::store::content::{ContentError, fold};
use crate::store::retry::{Call, Failure};
use crate::store::{Precondition, PutRequest, Result, StoreError, StoreErrorKind, Stored};

impl GcsStore {
    pub(super) async fn put_object(&self, request: &PutRequest) -> Result<Stored> {
        let key = request.key.as_str();
        let local = |error: ContentError| StoreError::new(StoreErrorKind::Local, "write", key, error.to_string());
        let size = request.body.size();
        let threshold =
            usize::try_from(self.resumable_from).map_err(|error| StoreError::other("write", key, error.to_string()))?;
        let target = target_generation(&request.precondition, "write", key)?;
        let append = |crc: &mut u32, chunk: &[u8]| *crc = crc32c::crc32c_append(*crc, chunk);
        let checksum = fold(&request.body, 0..size, 0u32, append).await.map_err(local)?;
        let call = Call::write("write", key, request.precondition != Precondition::None);
        self.policy
            .run(call, |progress| async move {
                let course = Course::new(progress);
                let source = Source::new(request.body.clone(), course.clone());
                let mut write = self
                    .data
                    .write_object(self.bucket_name(), self.full_key(key), source)
                    .set_metadata(&request.metadata)
                    .with_known_crc32c(checksum)
                    .with_resumable_upload_threshold(threshold);
                if let Some(md5) = request.md5 {
                    write = write.with_known_md5_hash(md5);
                }
                if let Some(content_type) = request.content_type {
                    write = write.set_content_type(content_type);
                }
                if let Some(generation) = target {
                    write = write.set_if_generation_match(generation);
                }
                write = if size >= self.resumable_from {
                    let policy = self.policy.clone();
                    let pauses = Pauses { policy: policy.clone(), course: course.clone() };
                    write.with_retry_policy(Resume { policy, course: course.clone() }).with_backoff_policy(pauses)
                } else {
                    write.with_retry_policy(NeverRetry)
                };
                match write.send_unbuffered().await {
                    Ok(object) => stored(&call, &object, size, checksum).map_err(Failure::from),
                    Err(error) => Err(match course.trouble() {
                        // The crate only tells that the request broke; the store never got the end of it.
                        Some(trouble) => StoreError::new(StoreErrorKind::Local, "write", key, trouble).into(),
                        None => errors::failure(&call, &error),
                    }),
                }
            })
            .await
    }
}

/// Checks the answer to a write.
fn stored(call: &Call<'_>, object: &Object, size: u64, checksum: u32) -> Result<Stored> {
    let wrong = |message: String| Err(StoreError::new(StoreErrorKind::Server, call.operation, call.key, message));
    if u64::try_from(object.size) != Ok(size) {
        return wrong(format!("the store says that it stored {} of {size} bytes", object.size));
    }
    match object.checksums.as_ref().and_then(|checksums| checksums.crc32c) {
        Some(theirs) if theirs != checksum => {
            return wrong(format!("the store says that it stored CRC32C {theirs:08x} where {checksum:08x} was sent"));
        }
        _ => {}
    }
    // The object was made while the store answered; the answer's own date is not to be had.
    let server_date = object.update_time.as_ref().and_then(|time| timestamp(time.seconds(), time.nanos()));
    Ok(Stored { fingerprint: fingerprint(object.generation), server_date })
}
