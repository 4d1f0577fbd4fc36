//! [`ObjectStore`] on a directory: `file:///DIR` plays the bucket, with the same preconditions and atomicity as S3.
//!
//! Objects lie under their own names (`names` says what becomes of keys that no file can have); `root` is the only part
//! that touches the file system to change it, `meta` knows fingerprints and metadata, `list` walks. Depends on the store's
//! types. Invariants: several processes may use one root at the same time; a write is on disk before it is acknowledged;
//! blocking calls run on tokio's blocking threads; symbolic links and special files are not objects.

mod list;
mod meta;
mod names;
mod root;

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::BytesMut;
use md5::{Digest, Md5};
use time::OffsetDateTime;

use self::root::{Found, Root, Temporary};
use super::{
    Body, ByteStream, Condition, CopySource, Fetched, Fingerprint, GetRequest, ListPage, ListRequest, ObjectInfo,
    ObjectStore, Precondition, PutRequest, Result, StoreError, StoreErrorKind, Stored, UserMetadata,
};

/// Bytes copied or handed over at a time.
const CHUNK: u64 = 1 << 20;
/// Keys on a page of a listing unless the caller says.
const DEFAULT_PAGE: usize = 10_000;

/// A directory that plays a bucket.
#[derive(Clone, Debug)]
pub struct DirStore {
    path: PathBuf,
    root: Arc<Root>,
    /// Empty or ending in `/`.
    prefix: String,
}

impl DirStore {
    /// Opens an existing directory; everything happens below `prefix` in it, which need not exist.
    ///
    /// # Errors
    /// [`StoreErrorKind::NoSuchBucket`] when there is no such directory.
    pub fn open(root: &Path, prefix: &str) -> Result<Self> {
        let prefix = match prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        Ok(Self { path: root.to_owned(), root: Arc::new(Root::open(root)?), prefix })
    }

    /// The same directory below a further one in it.
    pub fn below(&self, directory: &str) -> Self {
        Self { prefix: format!("{}{directory}/", self.prefix), ..self.clone() }
    }

    /// Runs blocking work on a blocking thread.
    async fn blocking<T, F>(&self, operation: &'static str, key: &str, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Target<'_>) -> Result<T> + Send + 'static,
    {
        let root = self.root.clone();
        let (key, full) = (key.to_owned(), format!("{}{key}", self.prefix));
        let failed = StoreError::new(StoreErrorKind::Local, operation, &key, "the work was interrupted");
        let task =
            tokio::task::spawn_blocking(move || work(&Target { root: &root, operation, key: &key, full: &full }));
        task.await.unwrap_or_else(|error| Err(StoreError { message: error.to_string(), ..failed }))
    }
}

/// What an operation is about.
struct Target<'a> {
    root: &'a Root,
    operation: &'static str,
    /// Key as the caller gave it.
    key: &'a str,
    /// With the store's prefix.
    full: &'a str,
}

impl Target<'_> {
    fn error(&self, kind: StoreErrorKind, message: impl Into<String>) -> StoreError {
        StoreError::new(kind, self.operation, self.key, message)
    }

    fn local(&self, error: io::Error) -> StoreError {
        let kind = match error.kind() {
            io::ErrorKind::TimedOut => StoreErrorKind::Unreachable,
            _ => StoreErrorKind::Local,
        };
        self.error(kind, error.to_string())
    }

    fn absent(&self) -> StoreError {
        if self.root.is_gone() {
            return self.error(StoreErrorKind::NoSuchBucket, "the directory was deleted");
        }
        self.error(StoreErrorKind::NotFound, "there is no such object")
    }

    fn changed(&self) -> StoreError {
        self.error(StoreErrorKind::Precondition, "the object is not in the expected version")
    }

    fn find(&self) -> Result<Found> {
        self.root.find(self.full).map_err(|error| self.local(error))?.ok_or_else(|| self.absent())
    }

    fn head(&self) -> Result<ObjectInfo> {
        let found = self.find()?;
        meta::info(self.root, &found.file).map_err(|error| self.local(error))
    }

    /// Everything of a read but the body.
    fn read(&self, request: &GetRequest) -> Result<Option<(ObjectInfo, Range<u64>, File)>> {
        let found = self.find()?;
        let info = meta::info(self.root, &found.file).map_err(|error| self.local(error))?;
        match &request.condition {
            Condition::IfMatch(wanted) if info.fingerprint.as_ref() != Some(wanted) => return Err(self.changed()),
            Condition::IfNoneMatch(known) if info.fingerprint.as_ref() == Some(known) => return Ok(None),
            _ => {}
        }
        let range = match &request.range {
            None => 0..info.size,
            Some(range) if range.start >= info.size => {
                let message = "the range lies beyond the end of the object";
                return Err(self.error(StoreErrorKind::RangeNotSatisfiable, message));
            }
            Some(range) => range.start..range.end.clamp(range.start, info.size),
        };
        Ok(Some((info, range, found.file)))
    }

    fn write(&self, request: &PutRequest) -> Result<Stored> {
        let mut new = self.root.temporary().map_err(|error| self.local(error))?;
        let digest = fill(&mut new.file, &request.body).map_err(|error| self.local(error))?;
        if request.md5.is_some_and(|md5| md5 != digest) {
            return Err(self.error(StoreErrorKind::Local, "the content is not what its MD5 says: it changed meanwhile"));
        }
        self.publish(new, &request.precondition, &request.metadata)
    }

    fn copy_from(
        &self,
        source: &Target<'_>,
        wanted: &CopySource,
        to: (&Precondition, &UserMetadata),
    ) -> Result<Stored> {
        let mut found = source.find()?;
        let version = meta::fingerprint(&found.stat);
        if wanted.if_match.is_some() && wanted.if_match != version {
            return Err(source.changed());
        }
        let mut new = self.root.temporary().map_err(|error| self.local(error))?;
        let copied = io::copy(&mut found.file, &mut new.file).map_err(|error| self.local(error))?;
        let after = rustix::fs::fstat(&found.file).map_err(|error| source.local(error.into()))?;
        let moved = (after.st_mtime, after.st_mtime_nsec) != (found.stat.st_mtime, found.stat.st_mtime_nsec);
        if moved || copied != meta::size(&found.stat) {
            return Err(source.error(StoreErrorKind::Precondition, "the source changed while it was copied"));
        }
        self.publish(new, to.0, to.1)
    }

    /// Makes a new object durable, and visible if the precondition holds.
    fn publish(&self, new: Temporary<'_>, precondition: &Precondition, metadata: &UserMetadata) -> Result<Stored> {
        let local = |error| self.local(error);
        meta::stamp(&new.file).map_err(local)?;
        meta::write(self.root, &new.file, metadata).map_err(local)?;
        new.file.sync_all().map_err(local)?;
        let stat = rustix::fs::fstat(&new.file).map_err(|error| self.local(error.into()))?;
        let locked = self.root.lock().map_err(local)?;
        let current = self.root.find(self.full).map_err(local)?;
        if !locked.allows(precondition, current.as_ref()) {
            drop(locked);
            meta::forget(self.root, &stat);
            return Err(match precondition {
                Precondition::Absent => self.error(StoreErrorKind::Precondition, "the object exists already"),
                _ => self.changed(),
            });
        }
        let (path, fingerprint) = locked.publish(new, self.full, current.as_ref()).map_err(local)?;
        drop(locked);
        self.root.sync_dirs(&path).map_err(local)?;
        Ok(Stored { fingerprint, server_date: Some(OffsetDateTime::now_utc()) })
    }

    fn delete(&self, if_match: Option<&Fingerprint>) -> Result<()> {
        let local = |error| self.local(error);
        // Nothing to lock, and nothing to create, where there is nothing.
        if self.root.find(self.full).map_err(local)?.is_none() {
            return if if_match.is_some() || self.root.is_gone() { Err(self.absent()) } else { Ok(()) };
        }
        let locked = self.root.lock().map_err(local)?;
        let Some(current) = self.root.find(self.full).map_err(local)? else {
            return if if_match.is_some() { Err(self.absent()) } else { Ok(()) };
        };
        if if_match.is_some() && if_match != meta::fingerprint(&current.stat).as_ref() {
            return Err(self.changed());
        }
        let path = locked.remove(&current).map_err(local)?;
        drop(locked);
        self.root.sync_dirs(&path).map_err(local)
    }
}

/// Copies a body into a file; returns its MD5.
fn fill(file: &mut File, body: &Body) -> io::Result<[u8; 16]> {
    let mut hasher = Md5::new();
    if let Body::Bytes(bytes) = body {
        hasher.update(bytes);
        file.write_all(bytes)?;
        return Ok(hasher.finalize().into());
    }
    let size = body.size();
    let mut buffer = vec![0; usize::try_from(CHUNK.min(size)).map_err(io::Error::other)?];
    let mut offset = 0;
    while offset < size {
        let length = usize::try_from(size - offset).unwrap_or(usize::MAX).min(buffer.len());
        body.read_exact_at(&mut buffer[..length], offset)?;
        hasher.update(&buffer[..length]);
        file.write_all(&buffer[..length])?;
        offset += length as u64;
    }
    Ok(hasher.finalize().into())
}

/// A range of an open file as a stream.
fn stream(key: String, file: File, range: Range<u64>) -> ByteStream {
    let size = range.end;
    let body = Body::File { file: Arc::new(file), size };
    Box::pin(futures_util::stream::unfold(Some(range.start), move |offset| {
        let (body, key) = (body.clone(), key.clone());
        async move {
            let offset = offset.filter(|offset| *offset < size)?;
            let end = size.min(offset + CHUNK);
            let read = tokio::task::spawn_blocking(move || {
                let length = usize::try_from(end - offset).map_err(io::Error::other)?;
                let mut buffer = BytesMut::zeroed(length);
                body.read_exact_at(&mut buffer, offset).map(|()| buffer.freeze())
            });
            match read.await.map_err(io::Error::other).and_then(|outcome| outcome) {
                Ok(bytes) => Some((Ok(bytes), Some(end))),
                Err(error) => {
                    let message = format!("the content cannot be read at byte {offset}: {error}");
                    Some((Err(StoreError::new(StoreErrorKind::Local, "read", &key, message)), None))
                }
            }
        }
    }))
}

#[async_trait]
impl ObjectStore for DirStore {
    fn describe(&self) -> String {
        format!("file://{}/{}", self.path.display(), self.prefix).trim_end_matches('/').to_owned()
    }

    async fn head(&self, key: &str) -> Result<ObjectInfo> {
        self.blocking("look up", key, |target| target.head()).await
    }

    async fn get(&self, request: GetRequest) -> Result<Fetched> {
        let key = request.key.clone();
        match self.blocking("read", &key, move |target| target.read(&request)).await? {
            None => Ok(Fetched::NotModified),
            Some((info, range, file)) => {
                Ok(Fetched::Object { info, range: range.clone(), body: stream(key, file, range) })
            }
        }
    }

    async fn put(&self, request: PutRequest) -> Result<Stored> {
        let key = request.key.clone();
        self.blocking("write", &key, move |target| target.write(&request)).await
    }

    async fn copy(
        &self,
        source: CopySource,
        to: &str,
        precondition: Precondition,
        metadata: UserMetadata,
    ) -> Result<Stored> {
        let full = format!("{}{}", self.prefix, source.key);
        self.blocking("copy to", to, move |target| {
            let from = Target { root: target.root, operation: "copy from", key: &source.key, full: &full };
            target.copy_from(&from, &source, (&precondition, &metadata))
        })
        .await
    }

    async fn delete(&self, key: &str, if_match: Option<&Fingerprint>) -> Result<()> {
        let if_match = if_match.cloned();
        self.blocking("delete", key, move |target| target.delete(if_match.as_ref())).await
    }

    async fn list(&self, request: ListRequest) -> Result<ListPage> {
        let prefix = self.prefix.clone();
        let key = request.prefix.clone();
        self.blocking("list", &key, move |target| {
            let page = list::page(target.root, &prefix, &request).map_err(|error| target.local(error))?;
            if page.objects.is_empty() && page.prefixes.is_empty() && target.root.is_gone() {
                return Err(target.error(StoreErrorKind::NoSuchBucket, "the directory was deleted"));
            }
            Ok(page)
        })
        .await
    }
}
