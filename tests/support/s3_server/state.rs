//! What the test server holds: objects and open uploads of one bucket, behind one mutex so that conditions are atomic.
//!
//! Knows nothing of HTTP. Conditions behave as those of S3 do, including its 404 for `If-Match` on an absent object.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use bytes::Bytes;
use hyper::HeaderMap;
use md5::{Digest, Md5};
use time::OffsetDateTime;

/// An object.
#[derive(Clone, Debug)]
pub struct StoredObject {
    pub bytes: Bytes,
    /// Without quotes.
    pub etag: String,
    pub last_modified: OffsetDateTime,
    pub metadata: HashMap<String, String>,
    pub content_type: Option<String>,
}

/// An upload in parts that is neither completed nor aborted.
#[derive(Clone, Debug, Default)]
pub struct OpenUpload {
    pub key: String,
    pub metadata: HashMap<String, String>,
    pub content_type: Option<String>,
    pub parts: BTreeMap<i32, (Bytes, [u8; 16])>,
}

#[derive(Debug, Default)]
pub struct State {
    pub objects: BTreeMap<String, StoredObject>,
    pub uploads: HashMap<String, OpenUpload>,
    /// Seconds that the server's clock is ahead of ours.
    pub clock_offset: i64,
}

/// Why a condition did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    NotModified,
    Failed,
    Absent,
}

/// The conditions of a request on the object it names.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
}

impl Conditions {
    /// From the two headers, whose names begin with `prefix`.
    pub fn from_headers(headers: &HeaderMap, prefix: &str) -> Self {
        let read = |name: &str| {
            let value = headers.get(format!("{prefix}{name}"))?.to_str().ok()?;
            Some(value.trim().trim_matches('"').to_owned())
        };
        Self { if_match: read("if-match"), if_none_match: read("if-none-match") }
    }

    /// For writes and deletes.
    pub fn check_write(&self, current: Option<&StoredObject>) -> Result<(), Unmet> {
        if let Some(wanted) = &self.if_match {
            let current = current.ok_or(Unmet::Absent)?;
            if wanted != "*" && *wanted != current.etag {
                return Err(Unmet::Failed);
            }
        }
        match (&self.if_none_match, current) {
            (Some(known), Some(current)) if known == "*" || *known == current.etag => Err(Unmet::Failed),
            _ => Ok(()),
        }
    }

    /// For reads and sources of copies.
    pub fn check_read(&self, current: &StoredObject) -> Result<(), Unmet> {
        if self.if_match.as_ref().is_some_and(|wanted| wanted != "*" && *wanted != current.etag) {
            return Err(Unmet::Failed);
        }
        if self.if_none_match.as_ref().is_some_and(|known| known == "*" || *known == current.etag) {
            return Err(Unmet::NotModified);
        }
        Ok(())
    }
}

impl State {
    /// The server's clock, in whole seconds as S3 has it.
    pub fn now(&self) -> OffsetDateTime {
        let now = OffsetDateTime::now_utc() + time::Duration::seconds(self.clock_offset);
        now.replace_nanosecond(0).expect("zero is a valid nanosecond")
    }

    pub fn object(&self, bytes: Bytes, etag: String) -> StoredObject {
        StoredObject { bytes, etag, last_modified: self.now(), metadata: HashMap::new(), content_type: None }
    }
}

pub fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

pub fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The entity tag of an upload: MD5 of the parts' MD5s, and their number.
pub fn multipart_etag<'a>(parts: impl ExactSizeIterator<Item = &'a [u8; 16]>) -> String {
    let count = parts.len();
    let mut hasher = Md5::new();
    for digest in parts {
        hasher.update(digest);
    }
    format!("{}-{count}", hex(&hasher.finalize()))
}
