//! The gRPC protocol, one match arm per call: metadata, listing, deletion, copies. Frames are written here; a server
//! framework would do no more for calls of one message each way.

use bytes::{BufMut, Bytes, BytesMut};
use googleapis_tonic_google_storage_v2::google::storage::v2::{
    DeleteObjectRequest, GetObjectRequest, ListObjectsRequest, ListObjectsResponse, Object, ObjectChecksums,
    RewriteObjectRequest, RewriteResponse,
};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Response};
use prost::Message;

use super::super::faults::BoxError;
use super::super::server::{Body, Call, StoredObject, full, hex, md5};
use super::state::{Conditions, Refusal, find};
use super::{BUCKET, Gcs};

pub(super) const SERVICE: &str = "/google.storage.v2.Storage/";

const INVALID_ARGUMENT: u8 = 3;
const DEADLINE_EXCEEDED: u8 = 4;
const NOT_FOUND: u8 = 5;
const PERMISSION_DENIED: u8 = 7;
const RESOURCE_EXHAUSTED: u8 = 8;
const FAILED_PRECONDITION: u8 = 9;
const ABORTED: u8 = 10;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;
const UNAVAILABLE: u8 = 14;
const UNAUTHENTICATED: u8 = 16;

/// The message of a request: five bytes of frame in front of it.
fn decode<M: Message + Default>(bytes: &Bytes) -> Option<M> {
    M::decode(bytes.get(5..)?).ok()
}

/// Operation and key.
pub(super) fn name(path: &str, bytes: &Bytes) -> (&'static str, String) {
    let named = match path.strip_prefix(SERVICE).unwrap_or_default() {
        "GetObject" => ("HeadObject", decode(bytes).map(|request: GetObjectRequest| request.object)),
        "DeleteObject" => ("DeleteObject", decode(bytes).map(|request: DeleteObjectRequest| request.object)),
        "ListObjects" => ("ListObjectsV2", decode(bytes).map(|request: ListObjectsRequest| request.prefix)),
        "RewriteObject" => ("CopyObject", decode(bytes).map(|request: RewriteObjectRequest| request.destination_name)),
        _ => ("Other", None),
    };
    (named.0, named.1.unwrap_or_default())
}

pub(super) fn answer(gcs: &Gcs, call: &Call) -> Response<Body> {
    match call.operation {
        "HeadObject" => with(call, |request| get(gcs, request)),
        "DeleteObject" => with(call, |request| delete(gcs, request, call.ignore_conditions)),
        "ListObjectsV2" => with(call, |request| list(gcs, request)),
        "CopyObject" => with(call, |request| rewrite(gcs, request, call.ignore_conditions)),
        _ => failed(UNIMPLEMENTED, "not implemented"),
    }
}

fn with<Request, Answer>(call: &Call, serve: impl FnOnce(Request) -> Result<Answer, Refusal>) -> Response<Body>
where
    Request: Message + Default,
    Answer: Message,
{
    let Some(request) = decode(&call.bytes) else { return failed(INVALID_ARGUMENT, "the message cannot be read") };
    match serve(request) {
        Ok(answer) => succeeded(&answer),
        Err(Refusal::NotFound) => failed(NOT_FOUND, "Object not found."),
        Err(Refusal::NoBucket) => failed(NOT_FOUND, "The specified bucket does not exist."),
        Err(Refusal::NotModified) => failed(ABORTED, "The object was not modified."),
        Err(Refusal::Precondition) => {
            failed(FAILED_PRECONDITION, "At least one of the pre-conditions you specified did not hold.")
        }
        Err(other) => failed(INVALID_ARGUMENT, &format!("{other:?}")),
    }
}

/// The answer of a fault, by the HTTP status that the other protocol would give.
pub(super) fn injected(status: u16) -> Response<Body> {
    let code = match status {
        400 => INVALID_ARGUMENT,
        401 => UNAUTHENTICATED,
        403 => PERMISSION_DENIED,
        404 => NOT_FOUND,
        409 => ABORTED,
        412 => FAILED_PRECONDITION,
        429 => RESOURCE_EXHAUSTED,
        501 => UNIMPLEMENTED,
        503 => UNAVAILABLE,
        504 => DEADLINE_EXCEEDED,
        _ => INTERNAL,
    };
    failed(code, "injected fault")
}

fn failed(code: u8, message: &str) -> Response<Body> {
    let mut response = Response::new(full(""));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    headers.insert("grpc-message", HeaderValue::from_str(message).expect("plain words"));
    response
}

fn succeeded(message: &impl Message) -> Response<Body> {
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).expect("a small message"));
    message.encode(&mut frame).expect("there is room");
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok::<_, BoxError>(Frame::data(frame.freeze())), Ok(Frame::<Bytes>::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

fn check_bucket(name: &str) -> Result<(), Refusal> {
    if name == format!("projects/_/buckets/{BUCKET}") { Ok(()) } else { Err(Refusal::NoBucket) }
}

fn resource(name: &str, object: &StoredObject) -> Object {
    let (crc32c, md5_hash) = (Some(crc32c::crc32c(&object.bytes)), md5(&object.bytes).to_vec());
    let updated = Some(prost_types::Timestamp {
        seconds: object.modified.unix_timestamp(),
        nanos: i32::try_from(object.modified.nanosecond()).expect("less than a second"),
    });
    Object {
        name: name.to_owned(),
        bucket: format!("projects/_/buckets/{BUCKET}"),
        generation: object.generation,
        metageneration: 1,
        size: i64::try_from(object.bytes.len()).expect("a small object"),
        content_type: object.content_type.clone().unwrap_or_default(),
        checksums: Some(ObjectChecksums { crc32c, md5_hash }),
        create_time: updated,
        update_time: updated,
        metadata: object.metadata.clone(),
        ..Object::default()
    }
}

fn get(gcs: &Gcs, request: GetObjectRequest) -> Result<Object, Refusal> {
    check_bucket(&request.bucket)?;
    find(&gcs.shared.state(), &request.object).map(|object| resource(&request.object, object))
}

fn delete(gcs: &Gcs, request: DeleteObjectRequest, ignore: bool) -> Result<(), Refusal> {
    check_bucket(&request.bucket)?;
    let mut state = gcs.shared.state();
    let current = find(&state, &request.object)?;
    if !ignore {
        let (generation_match, generation_not_match) = (request.if_generation_match, request.if_generation_not_match);
        Conditions { generation_match, generation_not_match }.check(Some(current))?;
    }
    state.remove(&request.object);
    Ok(())
}

fn list(gcs: &Gcs, request: ListObjectsRequest) -> Result<ListObjectsResponse, Refusal> {
    check_bucket(&request.parent)?;
    let state = gcs.shared.state();
    let most = usize::try_from(request.page_size).ok().filter(|size| *size > 0).map_or(1000, |size| size.min(1000));
    let after = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
    let page = state.list(&request.prefix, Some(&request.delimiter), after, most);
    let objects = page.names.iter().map(|name| find(&state, name).map(|object| resource(name, object)));
    let (objects, next_page_token) = (objects.collect::<Result<_, _>>()?, page.next.unwrap_or_default());
    Ok(ListObjectsResponse { objects, prefixes: page.prefixes, next_page_token })
}

/// Copies as much as one request does, and the whole at the last.
fn rewrite(gcs: &Gcs, request: RewriteObjectRequest, ignore: bool) -> Result<RewriteResponse, Refusal> {
    check_bucket(&request.source_bucket)?;
    check_bucket(&request.destination_bucket)?;
    let mut state = gcs.shared.state();
    let source = find(&state, &request.source_object)?.clone();
    let target = state.objects.get(&request.destination_name);
    if !ignore {
        let source_match = request.if_source_generation_match;
        Conditions { generation_match: source_match, generation_not_match: None }.check(Some(&source))?;
        let (generation_match, generation_not_match) = (request.if_generation_match, request.if_generation_not_match);
        Conditions { generation_match, generation_not_match }.check(target).map_err(|_| Refusal::Precondition)?;
    }
    let before = if request.rewrite_token.is_empty() {
        0
    } else {
        gcs.sessions().rewrites.remove(&request.rewrite_token).ok_or(Refusal::Malformed)?
    };
    let size = source.bytes.len() as u64;
    let done = before.saturating_add(state.copy_step);
    let object_size = i64::try_from(size).expect("a small object");
    if done < size {
        let token = format!("token-{:016x}", fastrand::u64(..));
        gcs.sessions().rewrites.insert(token.clone(), done);
        let total_bytes_rewritten = i64::try_from(done).expect("small");
        return Ok(RewriteResponse {
            total_bytes_rewritten,
            object_size,
            done: false,
            rewrite_token: token,
            resource: None,
        });
    }
    let (metadata, content_type) = match request.destination {
        Some(given) => (given.metadata, Some(given.content_type).filter(|text| !text.is_empty())),
        None => (source.metadata, source.content_type),
    };
    let etag = hex(&md5(&source.bytes));
    let object = state.put(&request.destination_name, source.bytes, etag, metadata, content_type);
    Ok(RewriteResponse {
        total_bytes_rewritten: object_size,
        object_size,
        done: true,
        rewrite_token: String::new(),
        resource: Some(resource(&request.destination_name, &object)),
    })
}
