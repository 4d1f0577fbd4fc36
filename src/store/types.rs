//! The values that cross [`ObjectStore`](super::ObjectStore): fingerprints, preconditions, requests and answers.
//!
//! Plain data without behaviour of a backend. Invariant: fingerprints are opaque and compared as strings.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use time::OffsetDateTime;

use super::StoreError;

/// Which version of an object: an S3 ETag without quotes, a generation of Google Cloud Storage in decimal. Opaque; equal
/// strings mean equal bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(Box<str>);

impl Fingerprint {
    /// From the answer of a store. Empty strings and `0` are no fingerprint.
    pub(in crate::store) fn from_response(text: &str) -> Option<Self> {
        let text = text.trim_matches('"');
        (!text.is_empty() && text != "0").then(|| Self(text.into()))
    }

    /// Reads back a fingerprint that came from a response and was recorded (state.db, sidecar).
    pub fn from_record(text: &str) -> Option<Self> {
        Self::from_response(text)
    }

    /// The text, without quotes.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether index and sidecar may record it: the ETag of a multipart upload (`…-N`) is no fingerprint there.
    pub fn is_recordable(&self) -> bool {
        !self.0.contains('-')
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({})", self.0)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a store calls its fingerprints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FingerprintName {
    /// S3's entity tags (directories that play a bucket follow it).
    ETag,
    /// Generations of Google Cloud Storage.
    Generation,
}

/// What must be true of the target of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Precondition {
    /// Write whatever is there.
    None,
    /// Only if no object has that key (`If-None-Match: *`, `ifGenerationMatch=0`).
    Absent,
    /// Only if the object still has this fingerprint (`If-Match`, `ifGenerationMatch`).
    Match(Fingerprint),
}

/// What must be true of an object for a read to return it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// No condition.
    None,
    /// Only this version; another gives [`StoreErrorKind::Precondition`](super::StoreErrorKind::Precondition).
    IfMatch(Fingerprint),
    /// Only another version; this one gives [`Fetched::NotModified`].
    IfNoneMatch(Fingerprint),
}

/// User metadata of an object: lower-case ASCII names to ASCII values.
pub type UserMetadata = BTreeMap<String, String>;

/// A body on its way in, in order. An early end is an error item, never a silent end.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, StoreError>> + Send>>;

/// What to read.
#[derive(Clone, Debug)]
pub struct GetRequest {
    /// Object key, relative to the prefix.
    pub key: String,
    /// Byte range; `None` reads all of it. An end beyond the object is cut to its size.
    pub range: Option<Range<u64>>,
    /// Version pin or change test.
    pub condition: Condition,
    /// The answer must tell when the object was written, also where that takes another request.
    pub dated: bool,
}

impl GetRequest {
    /// The whole object, whatever its version.
    pub fn whole(key: impl Into<String>) -> Self {
        Self { key: key.into(), range: None, condition: Condition::None, dated: false }
    }

    /// With [`ObjectInfo::last_modified`] in the answer.
    pub fn dated(self) -> Self {
        Self { dated: true, ..self }
    }

    /// Adds a condition.
    pub fn with(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// Restricts to a byte range.
    pub fn range(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }
}

/// What a store says about one object.
#[derive(Clone, Debug)]
pub struct ObjectInfo {
    /// Size of the whole object in bytes, also when a range was read.
    pub size: u64,
    /// Its version.
    pub fingerprint: Option<Fingerprint>,
    /// Last modification by the store's clock (S3: whole seconds), when the answer tells.
    pub last_modified: Option<OffsetDateTime>,
    /// The store's clock when it answered (the `Date` header), when the answer tells.
    pub server_date: Option<OffsetDateTime>,
    /// User metadata.
    pub metadata: UserMetadata,
}

/// The answer to a read.
pub enum Fetched {
    /// The object still has the version of [`Condition::IfNoneMatch`].
    NotModified,
    /// The object, from its headers on.
    Object {
        /// About the object; `info.size` is the size of all of it.
        info: ObjectInfo,
        /// Which bytes `body` carries.
        range: Range<u64>,
        /// The bytes.
        body: ByteStream,
    },
}

/// The content of a write. Both kinds can be sent again from the start.
#[derive(Clone)]
pub enum Body {
    /// In memory.
    Bytes(Bytes),
    /// The first `size` bytes of a file; read as it is sent. A file that turns out shorter fails the write.
    File {
        /// Open for reading; read at offsets, never through its cursor.
        file: Arc<std::fs::File>,
        /// How many bytes.
        size: u64,
    },
}

impl Body {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }

    /// Fills `buffer` from `offset` on (blocking).
    ///
    /// # Errors
    /// `UnexpectedEof` when the body is shorter than it claimed.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        match self {
            Self::Bytes(bytes) => {
                let start = usize::try_from(offset).map_err(std::io::Error::other)?;
                let part = bytes.get(start..start + buffer.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(part);
                Ok(())
            }
            Self::File { file, .. } => file.read_exact_at(buffer, offset),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.size())
    }
}

/// What to write.
#[derive(Clone, Debug)]
pub struct PutRequest {
    /// Object key, relative to the prefix.
    pub key: String,
    /// Content.
    pub body: Body,
    /// What must hold.
    pub precondition: Precondition,
    /// User metadata to store with it.
    pub metadata: UserMetadata,
    /// MD5 of the whole body if the caller knows it, so that the store verifies what arrived.
    pub md5: Option<[u8; 16]>,
    /// Never split into parts (index and lock: a multipart ETag is no fingerprint).
    pub single_part: bool,
    /// Media type, such as `application/json`.
    pub content_type: Option<&'static str>,
}

impl PutRequest {
    /// A small JSON document in one part.
    pub fn json(key: impl Into<String>, body: Bytes, precondition: Precondition) -> Self {
        Self {
            key: key.into(),
            body: Body::Bytes(body),
            precondition,
            metadata: UserMetadata::new(),
            md5: None,
            single_part: true,
            content_type: Some("application/json"),
        }
    }
}

/// The answer to a write.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Version of what was written.
    pub fingerprint: Option<Fingerprint>,
    /// The store's clock when it answered.
    pub server_date: Option<OffsetDateTime>,
}

/// What to copy.
#[derive(Clone, Debug)]
pub struct CopySource {
    /// Key to copy from.
    pub key: String,
    /// Size in bytes (decides between one copy request and copying part by part).
    pub size: u64,
    /// Only this version.
    pub if_match: Option<Fingerprint>,
}

/// Which keys to list.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Keys that begin with this (relative to the store's prefix).
    pub prefix: String,
    /// Group keys below this separator into [`ListPage::prefixes`].
    pub delimiter: Option<char>,
    /// Where the last page ended.
    pub continuation: Option<String>,
    /// At most so many keys and prefixes on the page; the store may return fewer.
    pub max_keys: Option<u32>,
}

/// One listed object.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Key, relative to the prefix.
    pub key: String,
    /// Size in bytes.
    pub size: u64,
    /// Version, when the listing carries it.
    pub fingerprint: Option<Fingerprint>,
    /// Last modification by the store's clock.
    pub last_modified: Option<OffsetDateTime>,
}

/// One page of a listing.
#[derive(Clone, Debug, Default)]
pub struct ListPage {
    /// Objects, in bytewise order of their keys.
    pub objects: Vec<Listed>,
    /// Common prefixes up to and including the delimiter.
    pub prefixes: Vec<String>,
    /// Present when there is more.
    pub continuation: Option<String>,
}

/// An upload in parts that was begun and not completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedUpload {
    /// Key that it would have, relative to the prefix.
    pub key: String,
    /// What the store calls it.
    pub id: String,
    /// When it began, by the store's clock.
    pub began: Option<OffsetDateTime>,
}
