//! The uploads of a push: find out what each replaces, send it, settle conflicts under another name.
//!
//! Depends on the shared modules of `sync`. Invariant: what comes out as a row is in the bucket, in the version that the
//! row's entry describes.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::push_plan::Put;
use super::session::{Remote, Session};
use super::{OfflineError, Progress, PushReport, disk};
use crate::datastore::{DatastoreError, Entry, Index, IndexRead, RelPath, read_index, timestamp};
use crate::store::{Body, Fingerprint, ObjectStore, StoreError};
use crate::sync::base::{BaseVersion, head_base};
use crate::sync::conflict::conflict_name;
use crate::sync::hash;
use crate::sync::merge::{Change, Known, Row, Uploaded};
use crate::sync::upload::{Expect, Upload, UploadOutcome, upload};

/// What a file's object is, before we touch it.
pub(super) struct Bases {
    /// Versions that the index vouches for.
    pub versions: HashMap<RelPath, Fingerprint>,
    /// Objects that are missing although an entry names them.
    pub missing: Vec<RelPath>,
    /// Objects or entries that changed meanwhile.
    pub changed: Vec<RelPath>,
}

/// Finds the versions of objects that are to be replaced or removed: one HEAD each, and one index read after them.
pub(super) async fn find_bases(
    store: &dyn ObjectStore,
    remote: &Remote,
    wanted: Vec<(RelPath, Entry)>,
    concurrency: usize,
) -> Result<Bases, OfflineError> {
    let mut bases = Bases { versions: HashMap::new(), missing: Vec::new(), changed: Vec::new() };
    if wanted.is_empty() {
        return Ok(bases);
    }
    let found: Vec<(RelPath, Entry, BaseVersion)> = stream::iter(wanted)
        .map(|(path, entry)| async move {
            let version = head_base(store, path.as_str(), &entry, remote.index.written_at(path.as_str())).await?;
            Ok::<_, StoreError>((path, entry, version))
        })
        .buffer_unordered(concurrency)
        .try_collect()
        .await?;
    let Known { index: known, seen } = remote.known();
    let fresh = match read_index(store, Some(&known), seen).await? {
        IndexRead::NotModified => None,
        IndexRead::Present(read) => Some(read.index),
        IndexRead::Missing if !remote.published => None,
        IndexRead::Missing => return Err(DatastoreError::IndexVanished.into()),
    };
    let still = |path: &RelPath, entry: &Entry| match &fresh {
        None => true,
        Some(index) => index.get(path.as_str()).is_some_and(|now| now.same_version(entry)),
    };
    for (path, entry, version) in found {
        match version {
            BaseVersion::Found(fingerprint) if still(&path, &entry) => {
                bases.versions.insert(path, fingerprint);
            }
            BaseVersion::Missing if still(&path, &entry) => bases.missing.push(path),
            _ => bases.changed.push(path),
        }
    }
    Ok(bases)
}

/// Sends files and keeps the books.
pub(super) struct Uploads<'a> {
    pub store: &'a dyn ObjectStore,
    pub session: &'a Session<'a>,
    pub progress: &'a dyn Progress,
    /// Whether the user waived conditions.
    pub unconditional: bool,
    pub report: &'a mut PushReport,
    pub failed: Vec<(String, String)>,
}

enum Sent {
    Row(Box<Row>, u64),
    Conflict(RelPath),
    Failed(RelPath, String),
}

impl Uploads<'_> {
    /// Uploads files; those that turn out to be in conflict are set aside and uploaded under another name.
    pub async fn send(&mut self, puts: Vec<(Put, Expect)>, known: &Index) -> Result<Vec<Row>, OfflineError> {
        let mut rows = Vec::new();
        let mut pending = puts;
        while !pending.is_empty() {
            let (store, session) = (self.store, self.session);
            let mut sending = stream::iter(std::mem::take(&mut pending))
                .map(|(put, expect)| send_one(store, session, put, expect))
                .buffer_unordered(session.options.concurrency.max(1));
            let mut conflicts = Vec::new();
            while let Some(sent) = sending.next().await {
                match sent {
                    Sent::Row(row, size) => {
                        self.report.uploaded += 1;
                        self.report.bytes += size;
                        self.progress.done(row.path.as_str(), size);
                        rows.push(*row);
                    }
                    Sent::Conflict(path) => conflicts.push(path),
                    Sent::Failed(path, reason) => self.failed.push((path.to_string(), reason)),
                }
            }
            drop(sending);
            for path in conflicts {
                pending.push(self.set_aside(&path, known)?);
            }
        }
        Ok(rows)
    }

    /// Gives our version another name, under which it is a new file.
    pub fn set_aside(&mut self, path: &RelPath, known: &Index) -> Result<(Put, Expect), OfflineError> {
        let cache = &self.session.cache;
        let full = cache.path_of(path);
        // The name is about to be missing here.
        self.session.mark_lazy()?;
        let taken =
            |name: &RelPath| known.names(name.as_str()) || cache.stat(name).map_or(true, |there| there.is_some());
        let name = conflict_name(path, &self.session.options.host, timestamp::now_nanos(), taken);
        disk(cache.rename_to_free(path, &name), "set aside", &full)?;
        tracing::warn!(file = %full.display(), kept_as = %name, "both sides changed a file");
        self.report.conflicts.push(name.to_string());
        let stat = disk(cache.stat(&name), "look at", &full)?;
        let stat = stat.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound));
        let stat = disk(stat, "look at", &full)?;
        let expect = if self.unconditional { Expect::Anything } else { Expect::Absent };
        Ok((Put { path: name, stat, base: None }, expect))
    }
}

async fn send_one(store: &dyn ObjectStore, session: &Session<'_>, put: Put, expect: Expect) -> Sent {
    match try_send(store, session, &put, expect).await {
        Ok(Some(row)) => Sent::Row(Box::new(row), put.stat.size),
        Ok(None) => Sent::Conflict(put.path),
        Err(reason) => Sent::Failed(put.path, reason),
    }
}

/// `None` is a conflict.
async fn try_send(
    store: &dyn ObjectStore,
    session: &Session<'_>,
    put: &Put,
    expect: Expect,
) -> Result<Option<Row>, String> {
    let local = |error: std::io::Error| format!("cannot read it: {error}");
    let file = Arc::new(session.cache.open_file(&put.path).map_err(local)?);
    let size = file.metadata().map_err(local)?.len();
    let body = Body::File { file, size };
    let digests = hash::digest(body.clone()).await.map_err(local)?;
    let upload_id = uuid::Uuid::new_v4().to_string();
    let mut request = Upload { key: put.path.to_string(), body, digests, upload_id, expect };
    let mut outcome = upload(store, &request).await;
    if matches!(outcome, Ok(UploadOutcome::Vanished)) {
        // Removed there, changed here: our change survives, as a new file.
        request.expect = Expect::Absent;
        outcome = upload(store, &request).await;
    }
    let fingerprint = match outcome.map_err(|error| error.to_string())? {
        UploadOutcome::Stored(fingerprint) => fingerprint,
        UploadOutcome::Conflict(_) | UploadOutcome::Vanished => return Ok(None),
    };
    let confirmed = Instant::now();
    let unchanged = session.cache.stat(&put.path).map_err(local)?;
    if unchanged.is_none_or(|now| now.size != put.stat.size || now.mtime_nanos != put.stat.mtime_nanos) {
        tracing::info!(file = %put.path, "it changed while it was uploaded; the next push brings the change");
    }
    let executable = put.stat.mode & 0o111 != 0;
    let mode = match put.base.as_ref().and_then(|base| base.mode.clone()) {
        Some(mode) => Some(mode),
        None if executable => Some("100755".to_owned()),
        None => None,
    };
    let entry = Entry {
        size: request.digests.size,
        last_modified: timestamp::format_nanos(timestamp::now_nanos()),
        local_mtime: Some(timestamp::format_nanos(put.stat.mtime_nanos)),
        sha256: Some(request.digests.sha256.clone()),
        mode,
        extra: None,
    };
    let uploaded = Uploaded { fingerprint, upload_id: request.upload_id, confirmed: Some(confirmed) };
    Ok(Some(Row { path: put.path.clone(), change: Change::Put(entry, uploaded), base: put.base.clone() }))
}
