//! The HTTP layer in front of the protocol: names the operation, records the request, applies faults.

use std::sync::Arc;
use std::time::Instant;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, DATE, HeaderValue};
use hyper::{HeaderMap, Method, Request, Response, StatusCode};
use s3s::service::S3Service;

use super::Shared;
use super::faults::{Action, BoxError, Damaged, Record, http_date, percent_decode};
use super::state::lock;

/// Marks a request whose conditions are to be ignored.
#[derive(Clone, Copy, Debug)]
pub(super) struct IgnoreConditions;

/// Serves one request. An error makes hyper close the connection.
pub(super) async fn serve(
    shared: Arc<Shared>,
    service: S3Service,
    mut request: Request<Incoming>,
) -> Result<Response<s3s::Body>, BoxError> {
    let (operation, key) = name(&request);
    let index = shared.record(record(&request, operation, &key));
    let actions = shared.faults.take(operation, &key);
    for action in &actions {
        match action {
            Action::Delay(time) => tokio::time::sleep(*time).await,
            Action::Hold(gate) => gate.pass().await,
            Action::Stall => std::future::pending().await,
            Action::IgnoreConditions => {
                request.extensions_mut().insert(IgnoreConditions);
            }
            Action::Status(status) => {
                let body = error_body(*status);
                return refuse(&shared, index, request, *status, "application/xml", body).await;
            }
            Action::Answer(status, body) => {
                return refuse(&shared, index, request, *status, "text/html", body.clone()).await;
            }
            _ => {}
        }
    }
    let head = request.method() == Method::HEAD;
    let mut response = service.call(request.map(s3s::Body::from)).await.map_err(BoxError::from)?;
    for action in &actions {
        match action {
            Action::LoseAnswer => return Err("the answer is lost on purpose".into()),
            Action::HoldAnswer(gate) => gate.pass().await,
            Action::StatusAfterEffect(status) => response = answer(*status, "application/xml", error_body(*status)),
            Action::CutBody(bytes) if !head => {
                response = response.map(|body| s3s::Body::http_body_unsync(Damaged::new(body, *bytes, false)))
            }
            Action::StallBody(bytes) if !head => {
                response = response.map(|body| s3s::Body::http_body_unsync(Damaged::new(body, *bytes, true)))
            }
            _ => {}
        }
    }
    Ok(finish(&shared, index, response))
}

/// Answers without serving; the request's body is read first, or the client would see a broken connection.
async fn refuse(
    shared: &Shared,
    index: usize,
    request: Request<Incoming>,
    status: u16,
    media: &'static str,
    body: String,
) -> Result<Response<s3s::Body>, BoxError> {
    request.into_body().collect().await?;
    Ok(finish(shared, index, answer(status, media, body)))
}

fn answer(status: u16, media: &'static str, body: String) -> Response<s3s::Body> {
    let mut response = Response::new(s3s::Body::from(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("a fault has a valid status");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media));
    response
}

fn finish(shared: &Shared, index: usize, mut response: Response<s3s::Body>) -> Response<s3s::Body> {
    response.headers_mut().insert(DATE, http_date(lock(&shared.state).now()));
    let id = HeaderValue::from_str(&format!("test-{index}")).expect("a number is a header");
    response.headers_mut().insert("x-amz-request-id", id);
    let mut records = shared.records();
    if let Some(record) = records.get_mut(index) {
        record.status = Some(response.status().as_u16());
        record.answered = Some(Instant::now());
    }
    response
}

fn error_body(status: u16) -> String {
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
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>injected fault</Message></Error>"
    )
}

/// The S3 operation and the key of a path-style request.
fn name(request: &Request<Incoming>) -> (&'static str, String) {
    let path = request.uri().path().trim_start_matches('/');
    let key = path.split_once('/').map(|(_, key)| key).unwrap_or_default();
    let query = request.uri().query().unwrap_or_default();
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let copies = request.headers().contains_key("x-amz-copy-source");
    let operation = match (request.method().as_str(), key.is_empty()) {
        ("GET", true) if has("list-type") => "ListObjectsV2",
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

fn record(request: &Request<Incoming>, operation: &'static str, key: &str) -> Record {
    let text = |headers: &HeaderMap, name: &str| headers.get(name)?.to_str().ok().map(str::to_owned);
    let headers = request.headers();
    Record {
        method: request.method().to_string(),
        operation,
        key: key.to_owned(),
        range: text(headers, "range"),
        if_match: text(headers, "if-match"),
        if_none_match: text(headers, "if-none-match"),
        content_length: text(headers, "content-length").and_then(|length| length.parse().ok()),
        authorized: headers.contains_key("authorization"),
        status: None,
        arrived: Instant::now(),
        answered: None,
    }
}
