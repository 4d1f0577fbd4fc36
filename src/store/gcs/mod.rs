//! [`ObjectStore`] on Google Cloud Storage.
//!
//! `client` builds the two clients of the official crate, `read` and `write` use its data client (JSON over HTTP),
//! `control` the other one (gRPC), `payload` streams a body out, `errors` is the only place that reads the crate's errors.
//! Depends on the store's types and on that crate. Invariants: a fingerprint is a generation in decimal, compared as a
//! string; the crate never repeats a request by itself, except to go on with a resumable upload after asking how far it
//! came; every upload carries its CRC32C, and every whole read is checked against the object's.

mod client;
mod control;
mod errors;
mod payload;
mod read;
mod write;

use std::time::Duration;

use async_trait::async_trait;
use google_cloud_storage::client::{Storage, StorageControl};
use time::OffsetDateTime;

use super::{
    CopySource, Fetched, Fingerprint, FingerprintName, GetRequest, Heard, ListPage, ListRequest, ObjectInfo,
    ObjectStore, Precondition, PutRequest, Refusals, RequestPolicy, Result, StoreError, StoreErrorKind, Stored,
    UserMetadata,
};

/// Bodies of at least this size are sent as resumable uploads.
const RESUMABLE_FROM: u64 = 16 << 20;

/// Where a bucket is and how to talk to it.
#[derive(Clone, Debug)]
pub struct GcsOptions {
    /// Bucket name.
    pub bucket: String,
    /// Everything happens below this prefix; a `/` follows it in object names. May be empty.
    pub prefix: String,
    /// Project that requests are accounted to (the quota project); else what the credentials say.
    pub project: Option<String>,
    /// Endpoint of an emulator: nothing is signed, and no credentials are looked for.
    pub endpoint_url: Option<String>,
    /// Deadlines and retries.
    pub policy: RequestPolicy,
}

impl GcsOptions {
    /// Options for a bucket at Google, with the application default credentials.
    pub fn new(bucket: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: prefix.into(),
            project: None,
            endpoint_url: None,
            policy: RequestPolicy::default(),
        }
    }
}

/// A bucket on Google Cloud Storage.
#[derive(Clone, Debug)]
pub struct GcsStore {
    data: Storage,
    control: StorageControl,
    bucket: String,
    /// Empty or ending in `/`.
    prefix: String,
    policy: RequestPolicy,
    resumable_from: u64,
}

impl GcsStore {
    /// Prepares the clients; makes no request to the bucket.
    ///
    /// # Errors
    /// [`StoreErrorKind::Forbidden`] when there are no application default credentials.
    pub async fn connect(options: GcsOptions) -> Result<Self> {
        let (data, control) = client::build(&options).await?;
        let prefix = match options.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let (bucket, policy) = (options.bucket, options.policy);
        Ok(Self { data, control, bucket, prefix, policy, resumable_from: RESUMABLE_FROM })
    }

    /// The same bucket, by the same clients, below a further directory.
    pub fn below(&self, directory: &str) -> Self {
        Self { prefix: format!("{}{directory}/", self.prefix), ..self.clone() }
    }

    /// With another size from which uploads are resumable. The default is right; tests shrink it.
    pub fn with_resumable_from(mut self, size: u64) -> Self {
        self.resumable_from = size;
        self
    }

    /// The object's full name.
    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The bucket as the interface names it.
    fn bucket_name(&self) -> String {
        format!("projects/_/buckets/{}", self.bucket)
    }
}

#[async_trait]
impl ObjectStore for GcsStore {
    fn describe(&self) -> String {
        format!("gs://{}/{}", self.bucket, self.prefix).trim_end_matches('/').to_owned()
    }

    fn fingerprint_name(&self) -> FingerprintName {
        FingerprintName::Generation
    }

    fn refusals(&self) -> Refusals {
        self.policy.refusals.clone()
    }

    fn heard(&self) -> Heard {
        self.policy.heard.clone()
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo> {
        self.head_object(key).await
    }

    async fn get(&self, request: GetRequest) -> Result<Fetched> {
        self.get_object(request).await
    }

    async fn put(&self, request: PutRequest) -> Result<Stored> {
        self.put_object(&request).await
    }

    async fn copy(
        &self,
        source: CopySource,
        to: &str,
        precondition: Precondition,
        metadata: UserMetadata,
    ) -> Result<Stored> {
        self.copy_object(&source, to, &precondition, &metadata).await
    }

    async fn delete(&self, key: &str, if_match: Option<&Fingerprint>) -> Result<()> {
        self.delete_object(key, if_match).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        self.list_objects(request).await
    }
}

/// A generation of an answer.
fn fingerprint(generation: i64) -> Option<Fingerprint> {
    Fingerprint::from_response(&generation.to_string())
}

/// A fingerprint as the generation that it must be; `None` when it is none, such as an entity tag of another store.
fn generation(fingerprint: &Fingerprint) -> Option<i64> {
    // Fingerprints are compared as strings: `007` is not `7`.
    fingerprint.as_str().parse().ok().filter(|number: &i64| *number > 0 && number.to_string() == fingerprint.as_str())
}

/// The condition on the target of a write, as `ifGenerationMatch`. Outer error: it can never hold.
fn target_generation(precondition: &Precondition, operation: &'static str, key: &str) -> Result<Option<i64>> {
    match precondition {
        Precondition::None => Ok(None),
        Precondition::Absent => Ok(Some(0)),
        Precondition::Match(wanted) => required_generation(wanted, operation, key).map(Some),
    }
}

/// The same for a version that must exist.
fn required_generation(wanted: &Fingerprint, operation: &'static str, key: &str) -> Result<i64> {
    generation(wanted).ok_or_else(|| {
        let message = format!("the expected version {wanted} is no generation, so the object cannot be in it");
        StoreError::new(StoreErrorKind::Precondition, operation, key, message)
    })
}

/// A time of the interface.
fn timestamp(seconds: i64, nanos: i32) -> Option<OffsetDateTime> {
    let whole = OffsetDateTime::from_unix_timestamp(seconds).ok()?;
    Some(whole + Duration::from_nanos(u64::try_from(nanos).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_generation_in_decimal_is_a_condition() {
        for (text, expected) in [
            ("1763696297123456", Some(1_763_696_297_123_456)),
            ("1", Some(1)),
            ("007", None),
            ("+7", None),
            ("-7", None),
            ("d41d8cd98f00b204e9800998ecf8427e", None),
            ("9223372036854775808", None),
        ] {
            let fingerprint = Fingerprint::from_record(text).expect("some text");
            assert_eq!(generation(&fingerprint), expected, "{text}");
            let condition = target_generation(&Precondition::Match(fingerprint), "write", "k");
            assert_eq!(condition.ok().flatten(), expected, "{text}");
        }
        assert_eq!(fingerprint(0), None);
        assert_eq!(Fingerprint::from_record("0"), None);
        assert_eq!(target_generation(&Precondition::Absent, "write", "k").expect("no error"), Some(0));
        assert_eq!(target_generation(&Precondition::None, "write", "k").expect("no error"), None);
    }
}
