//! Bodies on their way out and in: streamed in small chunks with a known length, never whole in memory.
//!
//! Depends on the store's [`Body`] and on the SDK's body types. Invariants: files are read at offsets by blocking threads;
//! a file that turns out shorter, and an answer that ends early, are errors.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use aws_sdk_s3::primitives::{ByteStream as SdkStream, SdkBody};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use md5::{Digest, Md5};
use tokio::task::JoinHandle;

use crate::store::content::{CHUNK, ContentError, fold, read_chunk, slice};
use crate::store::retry::Progress;
use crate::store::{Body, ByteStream, StoreError, StoreErrorKind};

/// Bodies in memory up to this size are signed and sent whole.
const WHOLE: u64 = 256 << 10;

/// The body of one attempt.
pub(super) fn outgoing(body: &Body, range: Range<u64>, progress: Progress) -> Result<SdkStream, ContentError> {
    if let Body::Bytes(bytes) = body
        && range.end - range.start <= WHOLE
    {
        return Ok(SdkStream::from(slice(bytes, &range)?));
    }
    Ok(SdkStream::new(SdkBody::from_body_1_x(Outgoing { body: body.clone(), next: range, reading: None, progress })))
}

/// A part of a [`Body`] as an HTTP body.
struct Outgoing {
    body: Body,
    next: Range<u64>,
    reading: Option<JoinHandle<Result<Bytes, ContentError>>>,
    progress: Progress,
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = ContentError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ContentError>>> {
        let this = &mut *self;
        if this.next.is_empty() {
            return Poll::Ready(None);
        }
        let chunk = this.next.start..this.next.end.min(this.next.start + CHUNK);
        let outcome = if let Body::Bytes(bytes) = &this.body {
            slice(bytes, &chunk)
        } else {
            let body = &this.body;
            let reading = this.reading.get_or_insert_with(|| tokio::spawn(read_chunk(body.clone(), chunk.clone())));
            let outcome = ready!(Pin::new(reading).poll(context));
            this.reading = None;
            outcome.unwrap_or_else(|error| Err(ContentError { offset: chunk.start, source: io::Error::other(error) }))
        };
        match outcome {
            Ok(bytes) => {
                this.next.start = chunk.end;
                this.progress.touch();
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Err(error) => {
                this.next.start = this.next.end;
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.next.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.next.end - self.next.start)
    }
}

/// Content-MD5 of a part of a body.
pub(super) async fn content_md5(body: &Body, range: Range<u64>) -> Result<String, ContentError> {
    let hasher = fold(body, range, Md5::new(), |hasher, chunk| hasher.update(chunk)).await?;
    Ok(encode_md5(&hasher.finalize().into()))
}

/// The header's notation of a digest.
pub(super) fn encode_md5(digest: &[u8; 16]) -> String {
    STANDARD.encode(digest)
}

/// The body of an answer, which must be exactly `expected` bytes.
pub(super) fn incoming(key: &str, body: SdkStream, expected: u64) -> ByteStream {
    let key = key.to_owned();
    let broken = move |message: String| StoreError::new(StoreErrorKind::Unreachable, "read", &key, message);
    let state = Some((body, 0u64, broken));
    Box::pin(futures_util::stream::unfold(state, move |state| async move {
        let (mut body, seen, broken) = state?;
        match body.next().await {
            Some(Ok(chunk)) => {
                let seen = seen + chunk.len() as u64;
                if seen > expected {
                    return Some((Err(broken(format!("the body is longer than the {expected} bytes promised"))), None));
                }
                Some((Ok(chunk), Some((body, seen, broken))))
            }
            Some(Err(error)) => {
                Some((Err(broken(format!("the body broke off after {seen} of {expected} bytes: {error}"))), None))
            }
            None if seen < expected => {
                Some((Err(broken(format!("the body ended after {seen} of {expected} bytes"))), None))
            }
            None => None,
        }
    }))
}
