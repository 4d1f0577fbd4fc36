//! Requests that change nothing, and deletion: HEAD, GET, LIST, DELETE.
//!
//! Depends on `errors`, `body` and the request policy. Invariant: sizes and ranges come from the answer's headers and are
//! checked against what was asked.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_s3::config::interceptors::BeforeDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::EncodingType;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;

use super::{S3Store, body, encode, errors};
use crate::store::empty_range;
use crate::store::retry::{Call, Failure};
use crate::store::{
    Condition, Fetched, Fingerprint, GetRequest, ListPage, ListRequest, Listed, ObjectInfo, Result, StoreError,
    StoreErrorKind,
};

/// Notes the `Date` header of an answer, which the SDK's outputs leave out.
#[derive(Clone, Debug, Default)]
pub(super) struct ServerDate(Arc<Mutex<Option<OffsetDateTime>>>);

impl ServerDate {
    pub(super) fn get(&self) -> Option<OffsetDateTime> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Intercept for ServerDate {
    fn name(&self) -> &'static str {
        "ServerDate"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> std::result::Result<(), BoxError> {
        let date = context.response().headers().get("date").and_then(parse_http_date);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = date;
        Ok(())
    }
}

fn parse_http_date(text: &str) -> Option<OffsetDateTime> {
    // RFC 2822 wants a numeric zone where HTTP has the word.
    OffsetDateTime::parse(&text.replace("GMT", "+0000"), &Rfc2822).ok()
}

pub(super) fn timestamp(date: Option<&DateTime>) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(date?.as_nanos()).ok()
}

pub(super) fn fingerprint(etag: Option<&str>) -> Option<Fingerprint> {
    Fingerprint::from_response(etag?)
}

/// An entity tag as conditions carry it.
pub(super) fn quoted(fingerprint: &Fingerprint) -> String {
    format!("\"{fingerprint}\"")
}

impl S3Store {
    pub(super) async fn head_object(&self, key: &str) -> Result<ObjectInfo> {
        let call = Call::harmless("look up", key);
        self.policy
            .run(call, |_| async move {
                let date = ServerDate::default();
                let request = self.client.head_object().bucket(&self.bucket).key(self.full_key(key));
                let sent = request.customize().interceptor(date.clone()).send().await;
                let output = sent.map_err(|error| errors::failure(&call, error))?;
                let size = output.content_length().and_then(|size| u64::try_from(size).ok());
                Ok(ObjectInfo {
                    size: size.ok_or_else(|| senseless(&call, "the answer has no Content-Length"))?,
                    fingerprint: fingerprint(output.e_tag()),
                    last_modified: timestamp(output.last_modified()),
                    server_date: date.get(),
                    metadata: output.metadata().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
                })
            })
            .await
    }

    pub(super) async fn get_object(&self, request: GetRequest) -> Result<Fetched> {
        let key = request.key.as_str();
        if let Some(range) = &request.range
            && range.is_empty()
        {
            return self.get_nothing(&request, range.start).await;
        }
        let call = Call::harmless("read", key);
        let request = &request;
        self.policy.run(call, |_| self.get_once(&call, request)).await
    }

    /// An empty range cannot be asked for: HTTP's ranges have at least one byte.
    async fn get_nothing(&self, request: &GetRequest, start: u64) -> Result<Fetched> {
        let info = self.head_object(&request.key).await?;
        empty_range(info, request, start)
    }

    async fn get_once(&self, call: &Call<'_>, request: &GetRequest) -> std::result::Result<Fetched, Failure> {
        let date = ServerDate::default();
        let mut builder = self.client.get_object().bucket(&self.bucket).key(self.full_key(&request.key));
        if let Some(range) = &request.range {
            builder = builder.range(format!("bytes={}-{}", range.start, range.end - 1));
        }
        builder = match &request.condition {
            Condition::None => builder,
            Condition::IfMatch(wanted) => builder.if_match(quoted(wanted)),
            Condition::IfNoneMatch(known) => builder.if_none_match(quoted(known)),
        };
        let output = match builder.customize().interceptor(date.clone()).send().await {
            Ok(output) => output,
            Err(error) if error.raw_response().is_some_and(|raw| raw.status().as_u16() == 304) => {
                return Ok(Fetched::NotModified);
            }
            Err(error) => return Err(errors::failure(call, error)),
        };
        let length = output.content_length().and_then(|length| u64::try_from(length).ok());
        let length = length.ok_or_else(|| senseless(call, "the answer has no Content-Length"))?;
        let (range, size) = match output.content_range() {
            None => (0..length, length),
            Some(text) => parse_content_range(text)
                .filter(|(range, _)| range.end - range.start == length)
                .ok_or_else(|| senseless(call, &format!("the answer has the Content-Range {text:?}")))?,
        };
        let asked = match &request.range {
            Some(asked) => asked.start..asked.end.min(size),
            None => 0..size,
        };
        if range != asked {
            let message = format!("the answer covers bytes {range:?} where {asked:?} were asked for");
            return Err(senseless(call, &message).into());
        }
        let info = ObjectInfo {
            size,
            fingerprint: fingerprint(output.e_tag()),
            last_modified: timestamp(output.last_modified()),
            server_date: date.get(),
            metadata: output.metadata().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect(),
        };
        if let (Condition::IfMatch(wanted), Some(got)) = (&request.condition, &info.fingerprint)
            && wanted != got
        {
            // A store that ignores the condition must not have two versions stitched together.
            let message = "the object is not in the expected version, and the store ignored the condition";
            return Err(StoreError::new(StoreErrorKind::Precondition, call.operation, call.key, message).into());
        }
        let body = self.policy.guard(&request.key, body::incoming(&request.key, output.body, length));
        Ok(Fetched::Object { info, range, body })
    }

    pub(super) async fn delete_object(&self, key: &str, if_match: Option<&Fingerprint>) -> Result<()> {
        let call = Call::write("delete", key, if_match.is_some());
        let deleted = self
            .policy
            .run(call, |_| async move {
                let request = self.client.delete_object().bucket(&self.bucket).key(self.full_key(key));
                let sent = request.set_if_match(if_match.map(quoted)).send().await;
                sent.map_err(|error| errors::failure(&call, error))
            })
            .await;
        match deleted {
            Err(error) if error.is_not_found() && if_match.is_none() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    pub(super) async fn list_objects(&self, request: ListRequest) -> Result<ListPage> {
        let call = Call::harmless("list", &request.prefix);
        let request = &request;
        self.policy.run(call, |_| self.list_once(&call, request)).await
    }

    async fn list_once(&self, call: &Call<'_>, request: &ListRequest) -> std::result::Result<ListPage, Failure> {
        let max_keys = request.max_keys.map(|keys| i32::try_from(keys).unwrap_or(i32::MAX));
        let builder = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(self.full_key(&request.prefix))
            .set_delimiter(request.delimiter.map(String::from))
            .set_continuation_token(request.continuation.clone())
            .set_max_keys(max_keys)
            .encoding_type(EncodingType::Url);
        let output = builder.send().await.map_err(|error| errors::failure(call, error))?;
        let encoded = output.encoding_type() == Some(&EncodingType::Url);
        let relative = |text: Option<&str>| -> Result<String> {
            let text = text.ok_or_else(|| senseless(call, "the listing has an entry without a key"))?;
            let full = if encoded { encode::decode(text) } else { Some(text.to_owned()) };
            full.as_deref()
                .and_then(|full| full.strip_prefix(&self.prefix))
                .map(str::to_owned)
                .ok_or_else(|| senseless(call, &format!("the listing has the unexpected key {text:?}")))
        };
        let mut page = ListPage::default();
        for object in output.contents() {
            let size = object.size().and_then(|size| u64::try_from(size).ok());
            page.objects.push(Listed {
                key: relative(object.key())?,
                size: size.ok_or_else(|| senseless(call, "the listing has an object without a size"))?,
                fingerprint: fingerprint(object.e_tag()),
                last_modified: timestamp(object.last_modified()),
            });
        }
        for prefix in output.common_prefixes() {
            page.prefixes.push(relative(prefix.prefix())?);
        }
        page.continuation = output.next_continuation_token().map(str::to_owned);
        if output.is_truncated() == Some(true) && page.continuation.is_none() {
            return Err(senseless(call, "the listing is incomplete but does not say where it goes on").into());
        }
        Ok(page)
    }
}

/// A successful answer that makes no sense.
fn senseless(call: &Call<'_>, message: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Server, call.operation, call.key, message)
}

/// `bytes 0-9/100` as a half-open range and the size of the whole.
fn parse_content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    (first <= last && last < size).then(|| (first..last + 1, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    #[test]
    fn http_dates_are_read_whatever_their_zone_is_called() {
        let expected = Some(datetime!(2026-04-28 08:05:37 UTC));
        assert_eq!(parse_http_date("Tue, 28 Apr 2026 08:05:37 GMT"), expected);
        assert_eq!(parse_http_date("Tue, 28 Apr 2026 10:05:37 +0200"), expected);
        assert_eq!(parse_http_date("yesterday"), None);
    }

    #[test]
    fn a_content_range_must_make_sense() {
        assert_eq!(parse_content_range("bytes 0-9/100"), Some((0..10, 100)));
        for wrong in ["bytes 9-0/100", "bytes 0-100/100", "bytes */100", "0-9/100", "bytes 0-9/*"] {
            assert_eq!(parse_content_range(wrong), None, "{wrong}");
        }
    }
}
