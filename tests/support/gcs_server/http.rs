//! The HTTP layer in front of both protocols: names the operation, records the request, applies faults.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, DATE, HeaderValue};
use hyper::{Request, Response, StatusCode};

use super::faults::{Action, BoxError, Damaged, Record, http_date, percent_decode};
use super::state::State;
use super::{Shared, grpc, json};

pub(super) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A request as both protocols see it.
pub(super) struct Call {
    pub operation: &'static str,
    pub key: String,
    pub query: Vec<(String, String)>,
    pub parts: hyper::http::request::Parts,
    /// Empty for the transmission of a resumable upload, which reads it piece by piece.
    pub body: Bytes,
    pub ignore_conditions: bool,
    pub cut_after: Option<usize>,
}

impl Call {
    pub fn is_grpc(&self) -> bool {
        self.parts.uri.path().starts_with(grpc::SERVICE)
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// Serves one request. An error makes hyper break the connection (or the stream of it).
pub(super) async fn serve(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, BoxError> {
    let (parts, incoming) = request.into_parts();
    let query: Vec<(String, String)> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), percent_decode(&value.replace('+', " "))))
        .collect();
    let mut call = Call {
        operation: "Other",
        key: String::new(),
        query,
        parts,
        body: Bytes::new(),
        ignore_conditions: false,
        cut_after: None,
    };
    let mut pieces = Some(incoming);
    let transmits = call.parts.method == hyper::Method::PUT;
    if !transmits && let Some(incoming) = pieces.take() {
        // Read first, or a client that is still sending would see a broken connection instead of an answer.
        call.body = incoming.collect().await?.to_bytes();
    }
    (call.operation, call.key) = if call.is_grpc() { grpc::name(&call) } else { json::name(&shared, &call) };
    let index = record(&shared, &call);
    let actions = shared.faults.take(call.operation, &call.key);
    for action in &actions {
        match action {
            Action::Delay(time) => tokio::time::sleep(*time).await,
            Action::Hold(gate) => gate.pass().await,
            Action::Stall => std::future::pending().await,
            Action::IgnoreConditions => call.ignore_conditions = true,
            Action::CutRequest(bytes) => call.cut_after = Some(*bytes),
            Action::Status(_) | Action::Answer(..) => {
                if let Some(incoming) = pieces.take() {
                    incoming.collect().await?;
                }
                return Ok(finish(&shared, index, injected(&call, action)));
            }
            _ => {}
        }
    }
    let mut response = match pieces {
        Some(incoming) => json::transmit(&shared, &call, incoming).await?,
        None if call.is_grpc() => grpc::answer(&shared, &call),
        None => json::answer(&shared, &call),
    };
    for action in &actions {
        match action {
            Action::LoseAnswer => return Err("the answer is lost on purpose".into()),
            Action::HoldAnswer(gate) => gate.pass().await,
            Action::StatusAfterEffect(_) => response = injected(&call, action),
            Action::CutBody(bytes) => response = response.map(|body| Damaged::new(body, *bytes, false).boxed_unsync()),
            Action::StallBody(bytes) => response = response.map(|body| Damaged::new(body, *bytes, true).boxed_unsync()),
            _ => {}
        }
    }
    Ok(finish(&shared, index, response))
}

/// The answer of a fault, in the form of the request's protocol.
fn injected(call: &Call, action: &Action) -> Response<Body> {
    match action {
        Action::Answer(status, body) => {
            let mut response = Response::new(full(body.clone()));
            *response.status_mut() = StatusCode::from_u16(*status).expect("a fault has a valid status");
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
            response
        }
        Action::Status(status) | Action::StatusAfterEffect(status) if call.is_grpc() => grpc::injected(*status),
        Action::Status(status) | Action::StatusAfterEffect(status) => json::error(*status, "injected fault"),
        other => panic!("{other:?} has no answer"),
    }
}

fn finish(shared: &Shared, index: usize, mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(DATE, http_date(State::now()));
    let id = HeaderValue::from_str(&format!("test-{index}")).expect("a number is a header");
    response.headers_mut().insert("x-guploader-uploadid", id);
    if let Some(record) = shared.records().get_mut(index) {
        record.status = Some(response.status().as_u16());
        record.answered = Some(Instant::now());
    }
    response
}

fn record(shared: &Shared, call: &Call) -> usize {
    let parameter = |name: &str| call.parameter(name).map(str::to_owned);
    let record = Record {
        method: call.parts.method.to_string(),
        operation: call.operation,
        key: call.key.clone(),
        range: call.header("range").or_else(|| call.header("content-range")).map(str::to_owned),
        authorized: call.parts.headers.contains_key("authorization"),
        if_match: parameter("ifGenerationMatch"),
        if_none_match: parameter("ifGenerationNotMatch"),
        content_length: call.header("content-length").and_then(|length| length.parse().ok()),
        status: None,
        arrived: Instant::now(),
        answered: None,
    };
    let mut records = shared.records();
    records.push(record);
    records.len() - 1
}
