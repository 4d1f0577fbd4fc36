//! S3's protocol for the test server: real requests and signatures (s3s).
//!
//! This names requests, `service` serves them, `conditions` is what S3 makes of `If-Match` and `If-None-Match`.

mod conditions;
mod service;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use s3s::auth::SimpleAuth;
use s3s::config::{S3Config, StaticConfigProvider};
use s3s::service::{S3Service, S3ServiceBuilder};
use time::OffsetDateTime;

#[allow(unused_imports)] // Each test takes what it needs.
pub use super::faults::{Action, Fault, Gate, Record};
use super::faults::{BoxError, percent_decode};
#[allow(unused_imports)]
pub use super::server::Server as S3Server;
use super::server::{Body, Call, Protocol, Server, Shared, StoredObject, full};
use service::{Bucket, OpenUpload};

/// The only bucket.
pub const BUCKET: &str = "swamp-test";
/// The only access key.
pub const ACCESS_KEY: &str = "SWAMPTESTACCESSKEY";
/// Its secret.
pub const SECRET_KEY: &str = "swamp-test-secret";
/// The region that the server calls itself.
pub const REGION: &str = "us-east-1";

impl Server {
    /// A server that speaks S3, on a free port of 127.0.0.1.
    pub fn s3() -> Self {
        Self::s3_on("127.0.0.1:0", 2).expect("a local port can be bound")
    }

    /// The same on an address, with a number of worker threads.
    pub fn s3_on(address: &str, workers: usize) -> std::io::Result<Self> {
        Self::start_with(address, workers, |shared, _| S3::new(shared))
    }
}

type Uploads = Arc<Mutex<HashMap<String, OpenUpload>>>;

fn lock(uploads: &Uploads) -> MutexGuard<'_, HashMap<String, OpenUpload>> {
    uploads.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Marks a request whose conditions are to be ignored.
#[derive(Clone, Copy, Debug)]
struct IgnoreConditions;

struct S3 {
    service: S3Service,
    uploads: Uploads,
}

impl S3 {
    fn new(shared: Arc<Shared>) -> Self {
        let uploads = Uploads::default();
        let mut builder = S3ServiceBuilder::new(Bucket { shared, uploads: uploads.clone() });
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        // Clients follow the clock of the Date header, which tests move; signatures are checked against the real one.
        let mut config = S3Config::default();
        config.presigned_url_max_skew_time_secs = 10 * 365 * 86_400;
        builder.set_config(Arc::new(StaticConfigProvider::new(Arc::new(config))));
        Self { service: builder.build(), uploads }
    }
}

#[async_trait]
impl Protocol for S3 {
    fn source(&self) -> String {
        format!("s3://{BUCKET}")
    }

    fn env(&self, address: SocketAddr) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{address}")),
            ("AWS_EC2_METADATA_DISABLED", "true".to_owned()),
            ("AWS_CONFIG_FILE", "/dev/null".to_owned()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".to_owned()),
        ]
    }

    fn fingerprint(&self, object: &StoredObject) -> String {
        object.etag.clone()
    }

    fn leave_upload(&self, key: &str, age: Duration) {
        let began = OffsetDateTime::now_utc() - age;
        let upload = OpenUpload::begun(key, began);
        lock(&self.uploads).insert(uuid::Uuid::new_v4().to_string(), upload);
    }

    fn open_uploads(&self) -> Vec<String> {
        lock(&self.uploads).values().map(|upload| upload.key.clone()).collect()
    }

    fn request_id(&self) -> &'static str {
        "x-amz-request-id"
    }

    async fn receive(&self, parts: Parts, body: Incoming) -> Result<Call, BoxError> {
        let (operation, key) = name(&parts);
        let text = |name: &str| parts.headers.get(name)?.to_str().ok().map(str::to_owned);
        let (range, if_match, if_none_match) = (text("range"), text("if-match"), text("if-none-match"));
        let body = body.map_err(BoxError::from).boxed_unsync();
        let (bytes, ignore_conditions) = (Bytes::new(), false);
        Ok(Call { operation, key, parts, body, bytes, range, if_match, if_none_match, ignore_conditions })
    }

    async fn serve(&self, call: Call) -> Result<Response<Body>, BoxError> {
        let mut request = Request::from_parts(call.parts, s3s::Body::http_body_unsync(call.body));
        if call.ignore_conditions {
            request.extensions_mut().insert(IgnoreConditions);
        }
        let response = self.service.call(request).await.map_err(BoxError::from)?;
        Ok(response.map(BodyExt::boxed_unsync))
    }

    fn refusal(&self, _: &str, status: u16) -> Response<Body> {
        let code = match status {
            403 => "AccessDenied",
            404 => "NoSuchKey",
            409 => "ConditionalRequestConflict",
            412 => "PreconditionFailed",
            429 => "TooManyRequests",
            500 => "InternalError",
            501 => "NotImplemented",
            503 => "SlowDown",
            _ => "InjectedFault",
        };
        let mut response = Response::new(full(format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>injected fault</Message></Error>"
        )));
        *response.status_mut() = StatusCode::from_u16(status).expect("a fault has a valid status");
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
        response
    }
}

/// The S3 operation and the key of a path-style request.
fn name(parts: &Parts) -> (&'static str, String) {
    let path = parts.uri.path().trim_start_matches('/');
    let key = path.split_once('/').map(|(_, key)| key).unwrap_or_default();
    let query = parts.uri.query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let copies = parts.headers.contains_key("x-amz-copy-source");
    let operation = match (parts.method.as_str(), key.is_empty()) {
        ("GET", true) if has("list-type") => "ListObjectsV2",
        ("GET", true) if has("uploads") => "ListMultipartUploads",
        ("GET", true) if query.is_empty() || has("prefix") || has("delimiter") => "ListObjects",
        ("GET", false) => "GetObject",
        ("HEAD", false) => "HeadObject",
        ("PUT", false) if has("uploadId") && copies => "UploadPartCopy",
        ("PUT", false) if has("uploadId") => "UploadPart",
        ("PUT", false) if copies => "CopyObject",
        ("PUT", false) => "PutObject",
        ("POST", false) if has("uploads") => "CreateMultipartUpload",
        ("POST", false) if has("uploadId") => "CompleteMultipartUpload",
        ("DELETE", false) if has("uploadId") => "AbortMultipartUpload",
        ("DELETE", false) => "DeleteObject",
        _ => "Other",
    };
    (operation, percent_decode(key))
}
