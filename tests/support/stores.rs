//! Clients of buckets, and what the promises of a store are told in: every kind of bucket with and without a prefix, or a
//! bucket from the environment.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use swamp_mount::store::{
    Body, ByteStream, DirStore, Fetched, GetRequest, ListRequest, ObjectInfo, ObjectStore, Precondition, PutRequest,
    RequestPolicy, Result, UserMetadata,
};
#[cfg(feature = "gcs")]
use swamp_mount::store::{GcsOptions, GcsStore};
#[cfg(feature = "s3")]
use swamp_mount::store::{S3Options, S3Store};

use super::bucket::{Bucket, KINDS};
#[cfg(feature = "gcs")]
use super::gcs_server;
#[cfg(feature = "s3")]
use super::s3_server::{ACCESS_KEY, BUCKET, REGION, SECRET_KEY};
use super::server::Server;

#[cfg(feature = "s3")]
/// Names an S3 server, with our bucket and keys, to run the promises over as well: a second opinion on the protocol.
const OTHER_SERVER: &str = "SWAMP_TEST_S3_ENDPOINT";

/// Names a real bucket, to run the promises over nothing but that (scripts/test-cloud).
const CLOUD: &str = "SWAMP_TEST_CLOUD";

/// Deadlines that a loaded machine keeps, pauses that do not slow tests down.
pub fn quick_policy() -> RequestPolicy {
    RequestPolicy {
        timeout: Duration::from_secs(20),
        first_backoff: Duration::from_millis(2),
        ..RequestPolicy::default()
    }
}

/// A client of the test server for Google.
#[cfg(feature = "gcs")]
pub async fn gcs(server: &Server, prefix: &str, policy: RequestPolicy) -> GcsStore {
    let options =
        GcsOptions { endpoint_url: Some(server.endpoint()), policy, ..GcsOptions::new(gcs_server::BUCKET, prefix) };
    GcsStore::connect(options).await.expect("a client can be built")
}

/// A client of the test server for S3.
#[cfg(feature = "s3")]
pub async fn s3(server: &Server, prefix: &str, policy: RequestPolicy) -> S3Store {
    let options = S3Options {
        region: Some(REGION.to_owned()),
        endpoint_url: Some(server.endpoint()),
        policy,
        ..S3Options::new(BUCKET, prefix)
    };
    S3Store::connect_with_key(options, ACCESS_KEY, SECRET_KEY).await.expect("a client can be built")
}

/// Runs a check over every kind of store; each run has a store of its own.
pub async fn each(check: impl AsyncFn(&str, Arc<dyn ObjectStore>)) {
    if let Ok(source) = std::env::var(CLOUD) {
        return super::cloud::run(&source, check).await;
    }
    for prefix in ["", "some/prefix"] {
        for kind in KINDS {
            let bucket = Bucket::new(kind);
            let store = bucket.connect(prefix, quick_policy()).await;
            check(&format!("{} with prefix {prefix:?}", kind.name), store).await;
        }
        #[cfg(feature = "gcs")]
        {
            let server = Server::gcs();
            let store = gcs(&server, prefix, quick_policy()).await.with_resumable_from(0);
            check(&format!("gcs by resumable uploads with prefix {prefix:?}"), Arc::new(store)).await;
        }
    }
    #[cfg(feature = "s3")]
    if let Ok(endpoint) = std::env::var(OTHER_SERVER) {
        let options = S3Options {
            region: Some(REGION.to_owned()),
            endpoint_url: Some(endpoint),
            policy: quick_policy(),
            ..S3Options::new(BUCKET, format!("run-{:016x}", fastrand::u64(..)))
        };
        let store = S3Store::connect_with_key(options, ACCESS_KEY, SECRET_KEY).await.expect("a client can be built");
        check("the server from the environment", Arc::new(store)).await;
    }
    if Path::new("/dev/shm").is_dir() {
        let directory = tempfile::tempdir_in("/dev/shm").expect("a temporary directory in memory");
        let store = DirStore::open(directory.path(), "").expect("a directory store");
        check("dir on tmpfs", Arc::new(store)).await;
    }
}

/// A plain write.
pub fn request(key: &str, content: impl Into<Bytes>, precondition: Precondition) -> PutRequest {
    PutRequest {
        key: key.to_owned(),
        body: Body::Bytes(content.into()),
        precondition,
        metadata: UserMetadata::new(),
        md5: None,
        single_part: false,
        content_type: None,
    }
}

/// Writes whatever is there.
pub async fn put(store: &dyn ObjectStore, key: &str, content: impl Into<Bytes>) -> swamp_mount::store::Fingerprint {
    let stored = store.put(request(key, content, Precondition::None)).await.unwrap_or_else(|error| panic!("{error}"));
    stored.fingerprint.expect("a write answers with a fingerprint")
}

/// All of a body.
pub async fn collect(mut body: ByteStream) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    while let Some(chunk) = body.next().await {
        content.extend_from_slice(&chunk?);
    }
    Ok(content)
}

/// Reads; panics on [`Fetched::NotModified`].
pub async fn read(store: &dyn ObjectStore, request: GetRequest) -> Result<(ObjectInfo, Vec<u8>)> {
    match store.get(request).await? {
        Fetched::NotModified => panic!("not modified"),
        Fetched::Object { info, range, body } => {
            let content = collect(body).await?;
            assert_eq!(content.len() as u64, range.end - range.start, "the range must be what the body carries");
            Ok((info, content))
        }
    }
}

/// All keys and prefixes, page by page.
pub async fn list_all(
    store: &dyn ObjectStore,
    prefix: &str,
    delimiter: Option<char>,
    max_keys: Option<u32>,
) -> (Vec<String>, Vec<String>) {
    let (mut keys, mut prefixes) = (Vec::new(), Vec::new());
    let mut continuation = None;
    loop {
        let request = ListRequest { prefix: prefix.to_owned(), delimiter, continuation, max_keys };
        let page = store.list(request).await.unwrap_or_else(|error| panic!("{error}"));
        if let Some(max) = max_keys {
            assert!(page.objects.len() + page.prefixes.len() <= max as usize, "a page is larger than asked for");
        }
        keys.extend(page.objects.into_iter().map(|object| object.key));
        prefixes.extend(page.prefixes);
        continuation = page.continuation;
        if continuation.is_none() {
            return (keys, prefixes);
        }
    }
}
