//! [`ObjectStore`] on S3 and whatever speaks its protocol.
//!
//! `client` builds the SDK client, `read`, `write` and `multipart` are the operations, `body` the streams, `errors` the
//! only place that reads an SDK error. Depends on the store's types and on aws-sdk-s3. Invariants: the SDK never retries
//! (the request policy does); every upload carries Content-MD5; fingerprints are ETags without quotes.

mod body;
mod client;
mod encode;
mod errors;
mod multipart;
mod read;
mod unfinished;
mod write;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::Credentials;

use super::{
    CopySource, Fetched, Fingerprint, GetRequest, Heard, ListPage, ListRequest, ObjectInfo, ObjectStore, Precondition,
    PutRequest, Refusals, RequestPolicy, Result, Stored, UnfinishedUpload, UserMetadata,
};

/// Where a bucket is and how to talk to it.
#[derive(Clone, Debug)]
pub struct S3Options {
    /// Bucket name.
    pub bucket: String,
    /// Everything happens below this prefix; a `/` follows it in object names. May be empty.
    pub prefix: String,
    /// Region; else the AWS configuration, else `us-east-1` when there is an endpoint.
    pub region: Option<String>,
    /// Endpoint of a store that is not AWS; else the AWS configuration (`AWS_ENDPOINT_URL`).
    pub endpoint_url: Option<String>,
    /// Address the bucket in the path rather than in the host name.
    pub force_path_style: bool,
    /// Deadlines and retries.
    pub policy: RequestPolicy,
}

impl S3Options {
    /// Options for a bucket that the AWS configuration knows how to reach.
    pub fn new(bucket: impl Into<String>, prefix: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            prefix: prefix.into(),
            region: None,
            endpoint_url: None,
            force_path_style: false,
            policy: RequestPolicy::default(),
        }
    }
}

/// Sizes at which bodies are split. The defaults are right; tests shrink them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartLimits {
    /// Bodies of at least this size are uploaded in parts.
    pub multipart_from: u64,
    /// Smallest part of an upload; grows so that there are at most 10 000.
    pub upload_part: u64,
    /// Objects above this size are copied in parts.
    pub copy_single_max: u64,
    /// Smallest part of a copy; grows so that there are at most 10 000.
    pub copy_part: u64,
    /// Parts on their way at the same time.
    pub concurrency: usize,
}

impl Default for PartLimits {
    fn default() -> Self {
        Self {
            multipart_from: 64 << 20,
            upload_part: 16 << 20,
            copy_single_max: 5 << 30,
            copy_part: 512 << 20,
            concurrency: 4,
        }
    }
}

/// A bucket on S3.
#[derive(Clone, Debug)]
pub struct S3Store {
    client: Client,
    bucket: String,
    /// Empty or ending in `/`.
    prefix: String,
    policy: RequestPolicy,
    limits: PartLimits,
}

impl S3Store {
    /// Prepares a client; makes no request to the bucket.
    ///
    /// # Errors
    /// Only for options that make no sense.
    pub async fn connect(options: S3Options) -> Result<Self> {
        Self::connect_as(options, None).await
    }

    /// The same with an access key and its secret instead of what the AWS chain finds.
    ///
    /// # Errors
    /// Only for options that make no sense.
    pub async fn connect_with_key(options: S3Options, access_key: &str, secret_key: &str) -> Result<Self> {
        Self::connect_as(options, Some(Credentials::new(access_key, secret_key, None, None, "given"))).await
    }

    /// The same bucket, by the same client, below a further directory.
    pub fn below(&self, directory: &str) -> Self {
        Self { prefix: format!("{}{directory}/", self.prefix), ..self.clone() }
    }

    async fn connect_as(options: S3Options, credentials: Option<Credentials>) -> Result<Self> {
        let client = client::build(&options, credentials).await?;
        let prefix = match options.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Ok(Self { client, bucket: options.bucket, prefix, policy: options.policy, limits: PartLimits::default() })
    }

    /// With other sizes for parts.
    pub fn with_part_limits(mut self, limits: PartLimits) -> Self {
        self.limits = limits;
        self
    }

    /// The object's full name.
    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    fn describe(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.prefix).trim_end_matches('/').to_owned()
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
        if request.single_part || request.body.size() < self.limits.multipart_from {
            self.put_single(&request).await
        } else {
            self.put_multipart(&request).await
        }
    }

    async fn copy(
        &self,
        source: CopySource,
        to: &str,
        precondition: Precondition,
        metadata: UserMetadata,
    ) -> Result<Stored> {
        if source.size <= self.limits.copy_single_max {
            self.copy_single(&source, to, &precondition, &metadata).await
        } else {
            self.copy_multipart(&source, to, &precondition, &metadata).await
        }
    }

    async fn delete(&self, key: &str, if_match: Option<&Fingerprint>) -> Result<()> {
        self.delete_object(key, if_match).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        self.list_objects(request).await
    }

    async fn unfinished_uploads(&self) -> Result<Vec<UnfinishedUpload>> {
        self.list_uploads().await
    }

    async fn abort_upload(&self, upload: &UnfinishedUpload) -> Result<()> {
        self.abort_listed(upload).await
    }
}
