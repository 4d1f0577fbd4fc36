//! From the SDK's errors to [`StoreError`]: the only place that looks into one.
//!
//! Invariants: a 404 is [`StoreErrorKind::NotFound`] only if the *store* says that the key is absent, not when some proxy
//! answers with a page; a failure counts as "without effect" only if that is certain.

use std::error::Error;

use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::store::causes::{chain, find};
use crate::store::retry::{Call, Failure};
use crate::store::{Service, StoreError, StoreErrorKind};

/// Most bytes of an unreadable body that a message quotes.
const QUOTED: usize = 256;

/// Translates the failure of one attempt.
pub(super) fn failure<E>(call: &Call<'_>, error: SdkError<E>) -> Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    match &error {
        SdkError::ServiceError(service) => answered(call, service.raw(), Some(service.err())),
        SdkError::ResponseError(response) => {
            let mut failure = answered::<E>(call, response.raw(), None);
            failure.error.message = format!("{}: {}", failure.error.message, chain(&error));
            failure
        }
        _ => unanswered(call, &error),
    }
}

/// There is a response.
fn answered<E: ProvideErrorMetadata>(call: &Call<'_>, raw: &HttpResponse, service: Option<&E>) -> Failure {
    let status = raw.status().as_u16();
    let code = service.and_then(|error| error.code()).map(str::to_owned);
    let kind = classify(call, status, code.as_deref());
    let request_id = ["x-amz-request-id", "x-request-id"].iter().find_map(|name| raw.headers().get(*name));
    let mut message = match service.and_then(|error| error.message()) {
        Some(text) => text.to_owned(),
        None => describe(kind, status, raw.body().bytes().unwrap_or_default(), code.is_some()),
    };
    if let (300..=400, Some(region)) = (status, raw.headers().get("x-amz-bucket-region")) {
        message = format!("{message}; the bucket is in region {region}");
    }
    let error = StoreError {
        kind,
        operation: call.operation,
        key: call.key.to_owned(),
        status: Some(status),
        code,
        request_id: request_id.map(str::to_owned),
        message,
        service: Service::S3,
    };
    Failure::from(error)
}

fn classify(call: &Call<'_>, status: u16, code: Option<&str>) -> StoreErrorKind {
    let bodiless = call.operation == "look up";
    match (status, code) {
        (_, Some("NoSuchBucket")) => StoreErrorKind::NoSuchBucket,
        (_, Some("NoSuchKey" | "NotFound")) => StoreErrorKind::NotFound,
        (404, None) if bodiless => StoreErrorKind::NotFound,
        (412, _) | (_, Some("PreconditionFailed")) => StoreErrorKind::Precondition,
        // Two conditional writes met inside the store; nothing was written, and the store wants it sent again.
        (409, Some("ConditionalRequestConflict" | "OperationAborted")) => StoreErrorKind::Throttled,
        (416, _) => StoreErrorKind::RangeNotSatisfiable,
        (401 | 403, _) => StoreErrorKind::Forbidden,
        (_, Some("ExpiredToken" | "InvalidToken" | "AuthorizationHeaderMalformed" | "TokenRefreshRequired")) => {
            StoreErrorKind::Forbidden
        }
        (429 | 503, _) | (_, Some("SlowDown" | "Throttling" | "TooManyRequests")) => StoreErrorKind::Throttled,
        (_, Some("RequestTimeout")) => StoreErrorKind::Unreachable,
        (501 | 505, _) => StoreErrorKind::Other,
        // An answer of 200 that does not parse or that carries an error says no more than a 500.
        (200..=299 | 500..=599, _) => StoreErrorKind::Server,
        _ => StoreErrorKind::Other,
    }
}

/// Words for an answer that brought none of its own.
fn describe(kind: StoreErrorKind, status: u16, body: &[u8], understood: bool) -> String {
    let text = match kind {
        StoreErrorKind::NotFound => "there is no such object",
        StoreErrorKind::Precondition => "the object is not in the expected version",
        StoreErrorKind::Forbidden => "access is denied",
        StoreErrorKind::RangeNotSatisfiable => "the range lies beyond the end of the object",
        StoreErrorKind::Throttled => "the store asks for fewer requests",
        _ if status == 501 => "the store does not implement this request",
        _ => "the store answered with an error",
    };
    if understood || body.is_empty() {
        return text.to_owned();
    }
    let quoted = String::from_utf8_lossy(&body[..body.len().min(QUOTED)]);
    format!("{text}, and its answer begins {quoted:?}")
}

/// There is none.
fn unanswered<E>(call: &Call<'_>, error: &SdkError<E>) -> Failure
where
    E: Error + Send + Sync + 'static,
{
    let text = chain(error);
    if let Some(local) = find::<crate::store::content::ContentError>(error) {
        let failed = StoreError::new(StoreErrorKind::Local, call.operation, call.key, local.to_string());
        return Failure { error: failed, no_effect: true };
    }
    let (kind, no_effect) = match error {
        SdkError::ConstructionFailure(_) if !text.contains("credential") => (StoreErrorKind::Other, true),
        SdkError::DispatchFailure(failed) if !text.contains("credential") && !failed.is_user() => {
            // The connector tells only in words whether it got as far as a connection.
            (StoreErrorKind::Unreachable, text.contains("client error (Connect)"))
        }
        SdkError::TimeoutError(_) => (StoreErrorKind::Unreachable, false),
        _ if text.contains("credential") => (StoreErrorKind::Forbidden, true),
        _ => (StoreErrorKind::Other, false),
    };
    let error = StoreError { service: Service::S3, ..StoreError::new(kind, call.operation, call.key, text) };
    Failure { error, no_effect }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_store_itself_can_say_that_an_object_is_absent() {
        use StoreErrorKind::*;
        let cases = [
            ("read", 404, Some("NoSuchKey"), NotFound),
            ("read", 404, Some("NoSuchBucket"), NoSuchBucket),
            ("read", 404, Some("NoSuchUpload"), Other),
            ("read", 404, None, Other),
            ("look up", 404, None, NotFound),
            ("look up", 403, None, Forbidden),
            ("write", 412, Some("PreconditionFailed"), Precondition),
            ("write", 409, Some("ConditionalRequestConflict"), Throttled),
            ("write", 400, Some("RequestTimeout"), Unreachable),
            ("write", 400, Some("ExpiredToken"), Forbidden),
            ("write", 501, Some("NotImplemented"), Other),
            ("write", 500, None, Server),
            ("write", 503, None, Throttled),
            ("write", 429, None, Throttled),
            ("copy", 200, Some("InternalError"), Server),
            ("read", 416, Some("InvalidRange"), RangeNotSatisfiable),
        ];
        for (operation, status, code, kind) in cases {
            assert_eq!(classify(&Call::harmless(operation, "k"), status, code), kind, "{operation} {status} {code:?}");
        }
    }
}
