//! Content on its way out, read in small chunks: never whole in memory, files at offsets and by blocking threads.
//!
//! Depends on the store's [`Body`]; the backends that stream share it. Invariant: a body that turns out shorter than it
//! claimed is an error.

use std::io;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::Body;

/// Bytes read and handed over at a time.
pub(in crate::store) const CHUNK: u64 = 512 << 10;

/// The content could not be read while it was sent.
#[derive(Debug, thiserror::Error)]
#[error("the content cannot be read at byte {offset}: {source}")]
pub(in crate::store) struct ContentError {
    /// Where.
    pub(in crate::store) offset: u64,
    /// What the disk, or a reading thread, said.
    pub(in crate::store) source: io::Error,
}

/// A part of a body in memory.
pub(in crate::store) fn slice(bytes: &Bytes, range: &Range<u64>) -> Result<Bytes, ContentError> {
    let too_short = || ContentError { offset: range.start, source: io::ErrorKind::UnexpectedEof.into() };
    let (Ok(start), Ok(end)) = (usize::try_from(range.start), usize::try_from(range.end)) else {
        return Err(too_short());
    };
    if start > end || end > bytes.len() {
        return Err(too_short());
    }
    Ok(bytes.slice(start..end))
}

/// Reads one chunk; files on a blocking thread.
pub(in crate::store) async fn read_chunk(body: Body, range: Range<u64>) -> Result<Bytes, ContentError> {
    if let Body::Bytes(bytes) = &body {
        return slice(bytes, &range);
    }
    let offset = range.start;
    let failed = |source| ContentError { offset, source };
    let length = usize::try_from(range.end - range.start).map_err(io::Error::other).map_err(failed)?;
    let read = tokio::task::spawn_blocking(move || {
        let mut buffer = BytesMut::zeroed(length);
        body.read_exact_at(&mut buffer, offset).map(|()| buffer.freeze())
    });
    read.await.map_err(io::Error::other).and_then(|outcome| outcome).map_err(failed)
}

/// Feeds a range of a body, chunk by chunk, to a digest.
pub(in crate::store) async fn fold<D: Send + 'static>(
    body: &Body,
    range: Range<u64>,
    digest: D,
    update: fn(&mut D, &[u8]),
) -> Result<D, ContentError> {
    let (body, offset) = (body.clone(), range.start);
    let folded = tokio::task::spawn_blocking(move || fold_blocking(&body, range, digest, update));
    folded.await.unwrap_or_else(|error| Err(ContentError { offset, source: io::Error::other(error) }))
}

fn fold_blocking<D>(
    body: &Body,
    range: Range<u64>,
    mut digest: D,
    update: fn(&mut D, &[u8]),
) -> Result<D, ContentError> {
    if let Body::Bytes(bytes) = body {
        update(&mut digest, &slice(bytes, &range)?);
        return Ok(digest);
    }
    let mut buffer = vec![0; usize::try_from(CHUNK.min(range.end - range.start)).unwrap_or_default()];
    let mut offset = range.start;
    while offset < range.end {
        let length = usize::try_from(range.end - offset).unwrap_or(usize::MAX).min(buffer.len());
        body.read_exact_at(&mut buffer[..length], offset).map_err(|source| ContentError { offset, source })?;
        update(&mut digest, &buffer[..length]);
        offset += length as u64;
    }
    Ok(digest)
}
