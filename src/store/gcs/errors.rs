//! From the crate's errors to [`StoreError`]: the only place that looks into one.
//!
//! The data client answers with HTTP statuses, the control client with gRPC codes; both end as the same kinds. Invariants:
//! a 404 is [`StoreErrorKind::NotFound`] only if the *store* says that the object is absent; a failure counts as "without
//! effect" only if that is certain.

use std::error::Error as StdError;

use google_cloud_gax::error::rpc::Code;
use google_cloud_storage::Error;
use google_cloud_storage::error::{ReadError, WriteError};

use crate::store::causes::{chain, find};
use crate::store::retry::{Call, Failure};
use crate::store::{Service, StoreError, StoreErrorKind};

/// Most bytes of an unreadable body that a message quotes.
const QUOTED: usize = 256;

/// The clients cannot be built.
pub(super) fn unprepared(error: &google_cloud_gax::client_builder::Error) -> StoreError {
    if error.is_default_credentials() {
        return no_credentials(error);
    }
    StoreError::other("connect", "", chain(error))
}

/// There are no credentials.
pub(super) fn no_credentials(error: &(dyn StdError + 'static)) -> StoreError {
    let failed = StoreError::new(StoreErrorKind::Forbidden, "connect", "", chain(error));
    StoreError { service: Service::Google, ..failed }
}

/// Whether an upload may go on after this.
pub(super) fn is_transient(error: &Error) -> bool {
    failure(&Call::harmless("write", ""), error).error.is_transient()
}

/// The failure of a body after so many bytes.
pub(super) fn broken_body(key: &str, error: &Error, seen: u64, expected: u64) -> StoreError {
    if let Some(ReadError::ChecksumMismatch(mismatch)) = find::<ReadError>(error) {
        let message = format!("the bytes are not those that the store keeps: {mismatch}");
        return StoreError::new(StoreErrorKind::Server, "read", key, message);
    }
    let message = format!("the body broke off after {seen} of {expected} bytes: {}", chain(error));
    StoreError::new(StoreErrorKind::Unreachable, "read", key, message)
}

/// Translates the failure of one attempt.
pub(super) fn failure(call: &Call<'_>, error: &Error) -> Failure {
    let status = error.http_status_code();
    let code = error.status().map(|status| status.code);
    let payload = error.http_payload().map(|bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(QUOTED)]));
    let text = match (error.status(), &payload) {
        (Some(status), _) => status.message.clone(),
        (None, Some(body)) => body.to_string(),
        (None, None) => chain(error),
    };
    let (kind, no_effect) = match (status, code) {
        (Some(status), code) => from_http(call, status, code.is_some(), &text),
        (None, Some(code)) => from_grpc(code, &text),
        (None, None) => unanswered(error),
    };
    // Nothing that a write names could be missing but the bucket, or the session of an upload, which starts anew.
    let kind = match kind {
        StoreErrorKind::NotFound if call.operation == "write" => StoreErrorKind::Server,
        kind => kind,
    };
    let header = |name: &str| error.http_headers()?.get(name)?.to_str().ok().map(str::to_owned);
    let failed = StoreError {
        kind,
        operation: call.operation,
        key: call.key.to_owned(),
        status,
        code: code.filter(|code| *code != Code::Unknown).map(|code| code.name().to_owned()),
        request_id: header("x-guploader-uploadid"),
        message: describe(kind, text, payload.is_some() && status.is_some()),
        service: Service::Google,
    };
    Failure { error: failed, no_effect }
}

/// An answer of the data client; `understood` when its body is in the store's own form.
fn from_http(call: &Call<'_>, status: u16, understood: bool, text: &str) -> (StoreErrorKind, bool) {
    use StoreErrorKind::*;
    let kind = match status {
        404 if names_the_bucket(text) => NoSuchBucket,
        // Reads of contents are answered in plain words.
        404 if understood || text.starts_with("No such object") => NotFound,
        // The session of an upload is gone.
        410 if call.operation == "write" => Server,
        412 => Precondition,
        416 => RangeNotSatisfiable,
        401 | 403 => Forbidden,
        408 => Unreachable,
        429 | 503 => Throttled,
        501 | 505 => Other,
        // An answer of 200 that cannot be read says no more than a 500; a 308 is an upload that is not finished.
        200..=299 | 308 | 500..=599 => Server,
        _ => Other,
    };
    // 503 is also what is said when the work was begun.
    (kind, status == 429)
}

/// An answer of the control client.
fn from_grpc(code: Code, text: &str) -> (StoreErrorKind, bool) {
    use StoreErrorKind::*;
    let kind = match code {
        Code::NotFound if names_the_bucket(text) => NoSuchBucket,
        Code::NotFound => NotFound,
        Code::FailedPrecondition | Code::AlreadyExists => Precondition,
        Code::OutOfRange => RangeNotSatisfiable,
        Code::Unauthenticated | Code::PermissionDenied => Forbidden,
        Code::ResourceExhausted | Code::Unavailable => Throttled,
        Code::DeadlineExceeded | Code::Cancelled => Unreachable,
        Code::Internal | Code::Unknown | Code::DataLoss | Code::Aborted => Server,
        _ => Other,
    };
    (kind, code == Code::ResourceExhausted)
}

fn names_the_bucket(text: &str) -> bool {
    text.contains("bucket does not exist")
}

/// There is no answer.
fn unanswered(error: &Error) -> (StoreErrorKind, bool) {
    use StoreErrorKind::*;
    if error.is_authentication() {
        // Credentials that need the network are as unreachable as the store. But the last resort of the chain, the metadata
        // server, has a name on Google's machines only: elsewhere its absence says that there are no credentials.
        let text = chain(error);
        let none = text.contains("metadata.google.internal") && text.contains("dns error");
        return if error.is_transient_and_before_rpc() && !none { (Unreachable, true) } else { (Forbidden, true) };
    }
    if error.is_connect() {
        return (Unreachable, true);
    }
    if find::<WriteError>(error).is_some() {
        return (Server, false);
    }
    if error.is_timeout() || error.is_io() || error.is_transport() || error.is_exhausted() {
        return (Unreachable, false);
    }
    if error.is_deserialization() { (Server, false) } else { (Other, false) }
}

/// Words of ours in front of those of an answer that is not in the store's own form.
fn describe(kind: StoreErrorKind, text: String, foreign: bool) -> String {
    let ours = match kind {
        StoreErrorKind::NotFound => "there is no such object",
        StoreErrorKind::Precondition => "the object is not in the expected version",
        StoreErrorKind::Forbidden => "access is denied",
        StoreErrorKind::RangeNotSatisfiable => "the range lies beyond the end of the object",
        StoreErrorKind::Throttled => "the store asks for fewer requests",
        _ => "the store answered with an error",
    };
    match (text.is_empty(), foreign) {
        (true, _) => ours.to_owned(),
        (false, true) => format!("{ours}, and its answer begins {text:?}"),
        (false, false) => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_of_an_answer_are_one_kind() {
        use StoreErrorKind::*;
        let bucket = "The specified bucket does not exist.";
        let http: &[(&str, u16, bool, &str, StoreErrorKind, bool)] = &[
            ("read", 404, false, "No such object: b/k", NotFound, false),
            ("read", 404, true, "", NotFound, false),
            ("read", 404, false, "<html>", Other, false),
            ("read", 404, false, bucket, NoSuchBucket, false),
            ("write", 410, false, "", Server, false),
            ("write", 412, true, "", Precondition, false),
            ("read", 416, false, "", RangeNotSatisfiable, false),
            ("read", 401, false, "", Forbidden, false),
            ("read", 403, true, "", Forbidden, false),
            ("write", 429, true, "", Throttled, true),
            ("write", 503, true, "", Throttled, false),
            ("write", 500, true, "", Server, false),
            ("write", 501, true, "", Other, false),
            ("write", 400, true, "", Other, false),
        ];
        for (operation, status, understood, text, kind, no_effect) in http {
            let call = Call::harmless(operation, "k");
            assert_eq!(
                from_http(&call, *status, *understood, text),
                (*kind, *no_effect),
                "{operation} {status} {text}"
            );
        }
        let grpc = [
            (Code::NotFound, "Object not found", NotFound, false),
            (Code::NotFound, bucket, NoSuchBucket, false),
            (Code::FailedPrecondition, "", Precondition, false),
            (Code::Unauthenticated, "", Forbidden, false),
            (Code::PermissionDenied, "", Forbidden, false),
            (Code::ResourceExhausted, "", Throttled, true),
            (Code::Unavailable, "", Throttled, false),
            (Code::DeadlineExceeded, "", Unreachable, false),
            (Code::Internal, "", Server, false),
            (Code::InvalidArgument, "", Other, false),
        ];
        for (code, text, kind, no_effect) in grpc {
            assert_eq!(from_grpc(code, text), (kind, no_effect), "{code:?}");
        }
    }

    #[test]
    fn a_refusal_speaks_of_googles_credentials() {
        let error = google_cloud_storage::Error::service(
            google_cloud_gax::error::rpc::Status::default().set_code(Code::PermissionDenied).set_message("no"),
        );
        let text = failure(&Call::harmless("read", "k"), &error).error.to_string();
        assert!(text.contains("application default credentials") && !text.contains("AWS"), "{text}");
    }
}
