//! Hashes of contents.
//!
//! Depends on `store` for the type of a body. Reads in blocks; nothing large is held in memory.

use std::io;

use futures_util::StreamExt;
use md5::Md5;
use sha2::{Digest, Sha256};

use crate::store::{Body, ByteStream, StoreError};

/// What a content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Size in bytes.
    pub size: u64,
    /// As an index records it, in hex.
    pub sha256: String,
    /// As an upload in one part sends it; `None` for what is too large for that.
    pub md5: Option<[u8; 16]>,
}

/// Above this no upload is in one part, and each part is sent with a hash of its own.
const MD5_MAX: u64 = 64 << 20;

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        text.extend([byte >> 4, byte & 15].map(|half| char::from_digit(u32::from(half), 16).unwrap_or('0')));
        text
    })
}

/// Hashes a body (blocking).
///
/// # Errors
/// When it cannot be read, or is shorter than it claims.
pub fn digest_blocking(body: &Body) -> io::Result<Digests> {
    let size = body.size();
    let mut sha256 = Sha256::new();
    let mut md5 = (size <= MD5_MAX).then(Md5::new);
    let mut buffer = vec![0; usize::try_from(size.clamp(1, 256 << 10)).unwrap_or(1)];
    let mut offset = 0;
    while offset < size {
        let length = usize::try_from((size - offset).min(buffer.len() as u64)).unwrap_or(buffer.len());
        let block = &mut buffer[..length];
        body.read_exact_at(block, offset)?;
        sha256.update(&*block);
        if let Some(md5) = &mut md5 {
            md5.update(&*block);
        }
        offset += length as u64;
    }
    Ok(Digests { size, sha256: hex(&sha256.finalize()), md5: md5.map(|md5| md5.finalize().into()) })
}

/// Hashes a body without keeping other tasks waiting.
///
/// # Errors
/// As [`digest_blocking`].
pub async fn digest(body: Body) -> io::Result<Digests> {
    tokio::task::spawn_blocking(move || digest_blocking(&body)).await.map_err(io::Error::other)?
}

/// Hashes a stream; gives its size too.
///
/// # Errors
/// The stream's.
pub async fn digest_stream(mut stream: ByteStream) -> Result<(u64, String), StoreError> {
    let (mut sha256, mut size) = (Sha256::new(), 0);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        size += chunk.len() as u64;
        sha256.update(&chunk);
    }
    Ok((size, hex(&sha256.finalize())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        let digests = digest_blocking(&Body::Bytes("abc".into())).unwrap();
        assert_eq!(digests.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(digests.md5.map(|md5| hex(&md5)).as_deref(), Some("900150983cd24fb0d6963f7d28e17f72"));
        let empty = digest_blocking(&Body::Bytes("".into())).unwrap();
        assert_eq!(empty.md5.map(|md5| hex(&md5)).as_deref(), Some("d41d8cd98f00b204e9800998ecf8427e"));
    }
}
