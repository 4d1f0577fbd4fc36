//! The HTTP layer in front of a protocol: records each request, applies its faults, and finishes the answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, DATE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};

use super::super::faults::{Action, BoxError, Damaged, Record, http_date};
use super::{Shared, StoredObject};

/// A body on its way in or out.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A request, named by its protocol.
pub struct Call {
    /// As S3 calls it, whichever protocol carried it, so that a rule means the same everywhere: `GetObject` reads contents,
    /// `HeadObject` looks at one object, then `PutObject`, `CopyObject`, `DeleteObject`, `ListObjectsV2`. The steps of large
    /// uploads have names of their own in each protocol.
    pub operation: &'static str,
    pub key: String,
    pub parts: Parts,
    /// What is still to be read of the request.
    pub body: Body,
    /// What was read of it already in order to name it.
    pub bytes: Bytes,
    pub range: Option<String>,
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
    /// Set by a fault.
    pub ignore_conditions: bool,
}

impl Call {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }
}

/// What differs between stores.
#[async_trait]
pub trait Protocol: Send + Sync + 'static {
    /// See [`super::Server::source`].
    fn source(&self) -> String;
    /// See [`super::Server::env`].
    fn env(&self, address: SocketAddr) -> Vec<(&'static str, String)>;
    /// See [`super::Server::fingerprint`].
    fn fingerprint(&self, object: &StoredObject) -> String;
    /// See [`super::Server::leave_upload`].
    fn leave_upload(&self, key: &str, _age: std::time::Duration) {
        panic!("this protocol keeps no upload of {key}");
    }

    /// See [`super::Server::open_uploads`].
    fn open_uploads(&self) -> Vec<String>;
    /// The header that carries the id of a request.
    fn request_id(&self) -> &'static str;
    /// Names a request.
    async fn receive(&self, parts: Parts, body: Incoming) -> Result<Call, BoxError>;
    /// Serves it. An error breaks the connection (or the stream of it).
    async fn serve(&self, call: Call) -> Result<Response<Body>, BoxError>;
    /// The protocol's usual answer with this HTTP status, or what it has instead of one, to a request for this path.
    fn refusal(&self, path: &str, status: u16) -> Response<Body>;
}

/// A body in memory.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Serves one request. An error makes hyper break the connection (or the stream of it).
pub(super) async fn serve(
    shared: Arc<Shared>,
    protocol: Arc<dyn Protocol>,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let _serving = Serving::begin(&shared);
    let (parts, incoming) = request.into_parts();
    let mut call = protocol.receive(parts, incoming).await?;
    let (path, head) = (call.parts.uri.path().to_owned(), call.parts.method == Method::HEAD);
    let index = record(&shared, &call);
    let finish = |response| finish(&shared, protocol.request_id(), index, response);
    let actions = shared.faults.take(call.operation, &call.key);
    let mut broke = None;
    for action in &actions {
        let refusal = match action {
            Action::Delay(time) => {
                tokio::time::sleep(*time).await;
                continue;
            }
            Action::Hold(gate) => {
                gate.pass().await;
                continue;
            }
            Action::Stall => std::future::pending().await,
            Action::IgnoreConditions => {
                call.ignore_conditions = true;
                continue;
            }
            Action::CutRequest(bytes) => {
                let cut = Damaged::new(call.body, *bytes, false);
                broke = Some(cut.broke());
                call.body = cut.boxed_unsync();
                continue;
            }
            Action::Status(status) => protocol.refusal(&path, *status),
            Action::Answer(status, body) => page(*status, body.clone()),
            _ => continue,
        };
        // Read first, or a client that is still sending would see a broken connection instead of an answer.
        call.body.collect().await?;
        return Ok(finish(refusal));
    }
    let mut response = protocol.serve(call).await?;
    if broke.is_some_and(|broke| broke.load(Ordering::Relaxed)) {
        return Err("the connection breaks on purpose".into());
    }
    for action in &actions {
        match action {
            Action::LoseAnswer => return Err("the answer is lost on purpose".into()),
            Action::HoldAnswer(gate) => gate.pass().await,
            Action::StatusAfterEffect(status) => response = protocol.refusal(&path, *status),
            Action::CutBody(bytes) if !head => {
                response = response.map(|body| Damaged::new(body, *bytes, false).boxed_unsync())
            }
            Action::StallBody(bytes) if !head => {
                response = response.map(|body| Damaged::new(body, *bytes, true).boxed_unsync())
            }
            _ => {}
        }
    }
    Ok(finish(response))
}

/// Counts a request while it is served, also one whose client goes away.
struct Serving(Arc<Shared>);

impl Serving {
    fn begin(shared: &Arc<Shared>) -> Self {
        shared.serving.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.serving.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An answer of something between client and store.
fn page(status: u16, body: String) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("a fault has a valid status");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}

fn finish(shared: &Shared, request_id: &'static str, index: usize, mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(DATE, http_date(shared.state().now()));
    let id = HeaderValue::from_str(&format!("test-{index}")).expect("a number is a header");
    response.headers_mut().insert(request_id, id);
    if let Some(record) = shared.records().get_mut(index) {
        record.status = Some(response.status().as_u16());
        record.answered = Some(Instant::now());
    }
    response
}

/// Returns the record's index.
fn record(shared: &Shared, call: &Call) -> usize {
    let record = Record {
        method: call.parts.method.to_string(),
        operation: call.operation,
        key: call.key.clone(),
        range: call.range.clone(),
        authorized: call.parts.headers.contains_key("authorization"),
        if_match: call.if_match.clone(),
        if_none_match: call.if_none_match.clone(),
        content_length: call.header("content-length").and_then(|length| length.parse().ok()),
        status: None,
        arrived: Instant::now(),
        answered: None,
    };
    let mut records = shared.records();
    records.push(record);
    records.len() - 1
}
