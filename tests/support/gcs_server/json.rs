//! The JSON protocol: reads of contents, uploads in one request, resumable uploads.

use std::collections::HashMap;
use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;

use super::super::faults::{BoxError, percent_decode};
use super::super::server::{Body, Call, StoredObject, full, md5};
use super::state::{Conditions, Described, Refusal, Upload, find, finish};
use super::{BUCKET, Gcs, parameter};

const OBJECTS: &str = "/storage/v1/b/";
const UPLOADS: &str = "/upload/storage/v1/b/";
/// What is kept of a transmission that broke is a multiple of this.
const QUANTUM: usize = 256 << 10;

/// Operation and key.
pub(super) fn name(gcs: &Gcs, parts: &Parts) -> (&'static str, String) {
    let path = parts.uri.path();
    if let Some((_, key)) = path.strip_prefix(OBJECTS).and_then(|rest| rest.split_once("/o/")) {
        return ("GetObject", percent_decode(key));
    }
    let name = parameter(parts, "name").unwrap_or_default();
    match (path.starts_with(UPLOADS), parameter(parts, "uploadType").as_deref(), &parts.method) {
        (true, Some("multipart"), &Method::POST) => ("PutObject", name),
        (true, Some("resumable"), &Method::POST) => ("StartUpload", name),
        (true, _, &Method::PUT) => {
            let asks = parts.headers.get("content-range").is_some_and(|range| range == "bytes */*");
            let sessions = gcs.sessions();
            let upload = parameter(parts, "upload_id").and_then(|id| sessions.uploads.get(&id));
            let key = upload.map(|upload| upload.described.name.clone()).unwrap_or_default();
            (if asks { "QueryUpload" } else { "ContinueUpload" }, key)
        }
        _ => ("Other", name),
    }
}

pub(super) fn answer(gcs: &Gcs, call: &Call) -> Response<Body> {
    let rest = call.parts.uri.path().strip_prefix(OBJECTS).or_else(|| call.parts.uri.path().strip_prefix(UPLOADS));
    let bucket = rest.and_then(|rest| rest.split('/').next()).unwrap_or_default();
    if bucket != BUCKET {
        return refuse(call, Refusal::NoBucket);
    }
    match call.operation {
        "GetObject" => read(gcs, call),
        "PutObject" => {
            insert(gcs, call).map_or_else(|refusal| refuse(call, refusal), |object| resource(&call.key, &object))
        }
        "StartUpload" => start(gcs, call).unwrap_or_else(|refusal| refuse(call, refusal)),
        _ => error(501, "not implemented"),
    }
}

/// An error in the form of the protocol.
pub(super) fn error(status: u16, message: &str) -> Response<Body> {
    let body = json!({"error": {"code": status, "message": message,
        "errors": [{"message": message, "domain": "global", "reason": "injected"}]}});
    respond(status, body.to_string())
}

fn respond(status: u16, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(status).expect("a valid status");
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=UTF-8"));
    response
}

fn refuse(call: &Call, refusal: Refusal) -> Response<Body> {
    let plain = call.operation == "GetObject";
    let (status, message) = match refusal {
        Refusal::NotModified => return respond(304, ""),
        Refusal::Precondition => (412, "At least one of the pre-conditions you specified did not hold.".to_owned()),
        Refusal::NotFound => (404, format!("No such object: {BUCKET}/{}", call.key)),
        Refusal::NoBucket => (404, "The specified bucket does not exist.".to_owned()),
        Refusal::Checksum => (400, "The checksum that was given does not match the one that was computed.".to_owned()),
        Refusal::Range => (416, "The requested range cannot be satisfied.".to_owned()),
        Refusal::Malformed => (400, "The request is malformed.".to_owned()),
    };
    // Contents are asked for without wanting JSON, and that is how errors are answered.
    if plain { respond(status, message) } else { error(status, &message) }
}

fn conditions(call: &Call) -> Conditions {
    if call.ignore_conditions {
        return Conditions::default();
    }
    let number = |text: &Option<String>| text.as_ref().and_then(|text| text.parse().ok());
    Conditions { generation_match: number(&call.if_match), generation_not_match: number(&call.if_none_match) }
}

fn read(gcs: &Gcs, call: &Call) -> Response<Body> {
    let state = gcs.shared.state();
    let object = match find(&state, &call.key) {
        Ok(object) => object,
        Err(refusal) => return refuse(call, refusal),
    };
    if let Err(refusal) = conditions(call).check(Some(object)) {
        return refuse(call, refusal);
    }
    let range = match call.header("range").map(|text| parse_range(text, object.bytes.len())) {
        None => None,
        Some(Some(range)) => Some(range),
        Some(None) => return refuse(call, Refusal::Range),
    };
    let body = object.served().slice(range.clone().unwrap_or(0..object.bytes.len()));
    let length = body.len();
    let mut response = Response::new(full(body));
    let mut set = |name: &str, value: String| {
        let name = HeaderName::try_from(name).expect("a header name");
        response.headers_mut().insert(name, HeaderValue::from_str(&value).expect("a header value"));
    };
    set("x-goog-generation", object.generation.to_string());
    set("x-goog-metageneration", "1".to_owned());
    set("x-goog-stored-content-encoding", "identity".to_owned());
    set("x-goog-stored-content-length", object.bytes.len().to_string());
    set("x-goog-hash", format!("crc32c={},md5={}", crc32c(object), STANDARD.encode(md5(&object.bytes))));
    set("content-type", object.content_type.clone().unwrap_or_else(|| "application/octet-stream".to_owned()));
    set(CONTENT_LENGTH.as_str(), length.to_string());
    for (name, value) in &object.metadata {
        set(&format!("x-goog-meta-{name}"), value.clone());
    }
    if let Some(range) = &range {
        set(CONTENT_RANGE.as_str(), format!("bytes {}-{}/{}", range.start, range.end - 1, object.bytes.len()));
    }
    *response.status_mut() = if range.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    response
}

fn parse_range(text: &str, size: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first: usize = first.parse().ok()?;
    let end = if last.is_empty() { size } else { (last.parse::<usize>().ok()? + 1).min(size) };
    (first < end).then_some(first..end)
}

fn crc32c(object: &StoredObject) -> String {
    STANDARD.encode(crc32c::crc32c(&object.bytes).to_be_bytes())
}

/// The resource of an upload.
fn describe(call: &Call, document: &[u8]) -> Result<Described, Refusal> {
    let document: Value = serde_json::from_slice(document).map_err(|_| Refusal::Malformed)?;
    let decoded = |field: &str| document[field].as_str().and_then(|text| STANDARD.decode(text).ok());
    let metadata: HashMap<String, String> = document["metadata"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect();
    Ok(Described {
        name: call.key.clone(),
        metadata,
        content_type: document["contentType"].as_str().map(str::to_owned),
        crc32c: decoded("crc32c").and_then(|bytes| Some(u32::from_be_bytes(bytes.try_into().ok()?))),
        md5: decoded("md5Hash").and_then(|bytes| bytes.try_into().ok()),
        conditions: conditions(call),
    })
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// An upload in one request: parts for the resource, the content and perhaps checksums.
fn insert(gcs: &Gcs, call: &Call) -> Result<StoredObject, Refusal> {
    let media = call.header("content-type").unwrap_or_default();
    let boundary = media.split_once("boundary=").ok_or(Refusal::Malformed)?.1.trim_matches('"');
    let delimiter = format!("\r\n--{boundary}");
    let (delimiter, blank) = (delimiter.as_bytes(), b"\r\n\r\n");
    let body = &call.bytes;
    let document = position(body, blank).ok_or(Refusal::Malformed)? + blank.len();
    let end = document + position(&body[document..], delimiter).ok_or(Refusal::Malformed)?;
    let content = end + position(&body[end..], blank).ok_or(Refusal::Malformed)? + blank.len();
    // Only the end of a content is searched: it may be large, and what follows it is small.
    let tail = content.max(body.len().saturating_sub(4096));
    let last = tail + position(&body[tail..], delimiter).ok_or(Refusal::Malformed)?;
    let described = describe(call, &body[document..end])?;
    finish(&mut gcs.shared.state(), &described, Bytes::copy_from_slice(&body[content..last]))
}

fn resource(name: &str, object: &StoredObject) -> Response<Body> {
    let updated = object.modified.format(&Rfc3339).expect("a time can be written");
    let body = json!({
        "kind": "storage#object", "name": name, "bucket": BUCKET, "generation": object.generation.to_string(),
        "metageneration": "1", "size": object.bytes.len().to_string(), "metadata": object.metadata,
        "contentType": object.content_type.as_deref().unwrap_or("application/octet-stream"),
        "crc32c": crc32c(object), "md5Hash": STANDARD.encode(md5(&object.bytes)),
        "timeCreated": updated, "updated": updated,
    });
    respond(200, body.to_string())
}

fn start(gcs: &Gcs, call: &Call) -> Result<Response<Body>, Refusal> {
    let described = describe(call, &call.bytes)?;
    described.conditions.check(gcs.shared.state().objects.get(&described.name)).map_err(|_| Refusal::Precondition)?;
    let id = format!("upload-{:016x}", fastrand::u64(..));
    gcs.sessions().uploads.insert(id.clone(), Upload { described, ..Upload::default() });
    let url = format!("http://{}{UPLOADS}{BUCKET}/o?uploadType=resumable&upload_id={id}", gcs.address);
    let mut response = respond(200, "");
    response.headers_mut().insert("location", HeaderValue::from_str(&url).expect("a URL is a header"));
    Ok(response)
}

/// A transmission of a resumable upload, or the question how far it came. What arrives is kept, also when it breaks off.
pub(super) async fn transmit(gcs: &Gcs, mut call: Call) -> Result<Response<Body>, BoxError> {
    let mut body = std::mem::replace(&mut call.body, full(""));
    let id = parameter(&call.parts, "upload_id").unwrap_or_default();
    let range = call.header("content-range").unwrap_or_default().trim_start_matches("bytes ").to_owned();
    let (part, total) = range.split_once('/').unwrap_or_default();
    let first = part.split_once('-').map(|(first, _)| first.parse::<usize>().unwrap_or(usize::MAX));
    let known = {
        let sessions = gcs.sessions();
        sessions.uploads.get(&id).map(|upload| (upload.done.clone(), upload.received.len()))
    };
    let Some((done, received)) = known else {
        body.collect().await?;
        return Ok(error(404, "there is no such upload"));
    };
    if let Some(object) = done {
        body.collect().await?;
        return Ok(resource(&call.key, &object));
    }
    if first.is_some_and(|first| first != received) {
        body.collect().await?;
        return Ok(error(503, "the transmission begins elsewhere"));
    }
    while let Some(frame) = body.frame().await {
        let mut sessions = gcs.sessions();
        let Some(upload) = sessions.uploads.get_mut(&id) else { break };
        let frame = frame.inspect_err(|_| {
            let kept = upload.received.len() / QUANTUM * QUANTUM;
            upload.received.truncate(kept);
        })?;
        if let Some(data) = frame.data_ref() {
            upload.received.extend_from_slice(data);
        }
    }
    let mut state = gcs.shared.state();
    let mut sessions = gcs.sessions();
    let Some(upload) = sessions.uploads.get_mut(&id) else { return Ok(error(404, "there is no such upload")) };
    if total.parse() == Ok(upload.received.len()) {
        let (described, bytes) = (upload.described.clone(), Bytes::copy_from_slice(&upload.received));
        return Ok(match finish(&mut state, &described, bytes) {
            Ok(object) => {
                upload.done = Some(object.clone());
                resource(&call.key, &object)
            }
            Err(refusal) => {
                sessions.uploads.remove(&id);
                refuse(&call, refusal)
            }
        });
    }
    let mut response = respond(308, "");
    if !upload.received.is_empty() {
        let range = format!("bytes=0-{}", upload.received.len() - 1);
        response.headers_mut().insert("range", HeaderValue::from_str(&range).expect("a range is a header"));
    }
    Ok(response)
}
