//! Contents of a push: uploads, copies within the bucket, and what needs neither.
//!
//! Invariants: an upload id and hash are recorded before the first byte leaves; a content that was written meanwhile is
//! never committed; a fingerprint found by HEAD counts only if the index, read after it, still shows the entry.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::Instant;

use super::super::base::{BaseVersion, head_base, holds_bytes};
use super::super::hash::{Digests, digest};
use super::super::merge::{Change, Row, Uploaded};
use super::super::upload::{Expect, META_UPLOAD_ID, Upload, UploadOutcome, metadata, upload};
use super::super::{Engine, FetchError, SyncError};
use super::order::{Job, Next, next};
use super::seen_entry;
use crate::cache::rows::{UploadMark, Version};
use crate::datastore::{Entry, format_nanos, now_nanos};
use crate::store::{Body, CopySource, Fingerprint, Precondition, StoreError, StoreErrorKind};
use crate::volume::{LiveContent, PlannedPut, PlannedRow, Stable, VolumeError};

/// How often a content that is being written is read again.
const TORN_RETRIES: u32 = 3;
/// Files up to this size are copied first, so that one that never rests is pushed all the same.
const SNAPSHOT_MAX: u64 = 4 << 20;

/// What is to be done for a row after its transfer.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Into the index; with the object's version (for a removal: the version to delete).
    Commit(Change, Option<Fingerprint>),
    /// The object is another writer's now.
    Conflict,
    /// What it was to be copied from is gone.
    OriginLost,
    /// It was changed meanwhile: next round.
    Again,
}

/// A row after its transfer.
#[derive(Debug)]
pub(super) struct Transferred {
    pub row: PlannedRow,
    /// The entry that the row was made against.
    pub seen: Option<Entry>,
    /// The content, if somebody has it open.
    pub read: Option<(Arc<LiveContent>, Stable)>,
    /// Where the object was copied from.
    pub copied: Option<Version>,
    pub verdict: Verdict,
}

impl Transferred {
    pub fn merge_row(&self) -> Option<Row> {
        match &self.verdict {
            Verdict::Commit(change, _) => {
                Some(Row { path: self.row.path.clone(), change: change.clone(), base: self.seen.clone() })
            }
            _ => None,
        }
    }
}

enum Failed {
    Row(String),
    Whole(SyncError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self::Row(error.to_string())
    }
}

impl From<VolumeError> for Failed {
    fn from(error: VolumeError) -> Self {
        Self::Whole(error.into())
    }
}

impl Engine {
    /// Transfers what the rows need. Files that failed are left out, with their reasons.
    pub(super) async fn transfer(
        self: &Arc<Self>,
        rows: &[PlannedRow],
        reasons: &mut Vec<String>,
    ) -> Result<Vec<Transferred>, SyncError> {
        let (versions, unseen) = self.versions_before(rows, reasons).await?;
        let mut rows: Vec<PlannedRow> = rows.to_vec();
        let mut jobs: Vec<Job> = rows.iter().map(job_of).collect();
        // Without a look at the object nothing can be said about a conflict: such a row waits for the next push.
        let mut waiting: Vec<usize> = (0..rows.len()).filter(|at| !unseen.contains(at)).collect();
        let mut stuck: Vec<usize> = unseen;
        let mut done = Vec::new();
        loop {
            match next(&jobs, &waiting, &stuck) {
                Next::Done => break,
                Next::Break(at) => match self.fetch_origin(&rows[at]).await {
                    Ok(()) => {
                        jobs[at].copies_from = None;
                        if let Some(put) = &mut rows[at].put {
                            put.origin = None;
                        }
                    }
                    Err(error) => {
                        reasons.push(format!("{}: {error}", rows[at].path));
                        waiting.retain(|i| *i != at);
                        stuck.push(at);
                    }
                },
                Next::Run(ready) => {
                    let running: HashSet<usize> = ready.iter().copied().collect();
                    waiting.retain(|i| !running.contains(i));
                    let results: Vec<(usize, Result<Transferred, Failed>)> =
                        futures_util::stream::iter(ready.into_iter().map(|at| {
                            let (row, version) = (rows[at].clone(), versions.get(&at).cloned());
                            async move { (at, self.transfer_row(row, version).await) }
                        }))
                        .buffer_unordered(self.options.upload_concurrency.max(1))
                        .collect()
                        .await;
                    for (at, result) in results {
                        match result {
                            Ok(transferred) => {
                                if matches!(transferred.verdict, Verdict::Again) {
                                    stuck.push(at);
                                }
                                done.push(transferred);
                            }
                            Err(Failed::Row(reason)) => {
                                stuck.push(at);
                                reasons.push(format!("{}: {reason}", rows[at].path));
                            }
                            Err(Failed::Whole(error)) => return Err(error),
                        }
                    }
                }
            }
        }
        // A removal must not take away what a copy that failed still needs.
        let needed: Vec<&str> = stuck.iter().filter_map(|i| jobs[*i].copies_from.as_deref()).collect();
        done.retain(|t| t.row.put.is_some() || !needed.contains(&t.row.path.as_str()));
        Ok(done)
    }

    /// One HEAD for each object that is replaced or removed and whose version nobody here ever saw; then one look at the
    /// index, which must still show the same entries.
    async fn versions_before(
        self: &Arc<Self>,
        rows: &[PlannedRow],
        reasons: &mut Vec<String>,
    ) -> Result<(HashMap<usize, BaseVersion>, Vec<usize>), SyncError> {
        let mut unknown: Vec<(usize, String, Entry)> = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            if let Some(replaced) = row.replaces.as_ref().filter(|r| r.fingerprint.is_none()) {
                unknown.push((at, row.path.to_string(), replaced.entry.clone()));
            }
        }
        let written_at = self.volume.index_written_at();
        let looked: Vec<(usize, Result<BaseVersion, StoreError>)> = futures_util::stream::iter(unknown)
            .map(|(at, key, entry)| async move { (at, head_base(&*self.store, &key, &entry, written_at).await) })
            .buffer_unordered(self.options.upload_concurrency.max(1))
            .collect()
            .await;
        if looked.is_empty() {
            return Ok((HashMap::new(), Vec::new()));
        }
        self.refresh().await?;
        let index = self.volume.base().index;
        let (mut versions, mut unseen) = (HashMap::new(), Vec::new());
        for (at, result) in looked {
            let row = &rows[at];
            match result {
                Ok(found) => {
                    let shown = index.get(row.path.as_str());
                    let same = shown.is_some_and(|e| row.replaces.as_ref().is_some_and(|r| r.entry.same_version(e)));
                    let version = match found {
                        BaseVersion::Found(_) if !same && shown.is_some() => continue,
                        other => other,
                    };
                    versions.insert(at, version);
                }
                Err(error) => {
                    unseen.push(at);
                    reasons.push(format!("{}: {error}", row.path));
                }
            }
        }
        Ok((versions, unseen))
    }

    async fn fetch_origin(self: &Arc<Self>, row: &PlannedRow) -> Result<(), SyncOrFetch> {
        let Some(put) = &row.put else { return Ok(()) };
        let live = self.volume.open_for_push(row, put.ino)?;
        let fetched = self.ensure_all(&live).await;
        let recorded = self.volume.record_fetched();
        self.volume.close_pushed(&live);
        fetched?;
        Ok(recorded?)
    }

    async fn transfer_row(
        self: &Arc<Self>,
        row: PlannedRow,
        looked: Option<BaseVersion>,
    ) -> Result<Transferred, Failed> {
        let seen = seen_entry(&row, &self.volume.base().index);
        let mut done = Transferred { seen, row, read: None, copied: None, verdict: Verdict::Again };
        let Some(put) = done.row.put.clone() else {
            let version = match looked {
                Some(BaseVersion::Found(fingerprint)) => Some(fingerprint),
                Some(_) => None,
                None => self.version_to_remove(&done.row).await?,
            };
            done.verdict = Verdict::Commit(Change::Remove, version);
            return Ok(done);
        };
        match (&put.origin, put.suspect) {
            (Some(origin), false) if origin.key == done.row.path.as_str() => {
                let entry = fields_entry(origin, &put);
                done.verdict = Verdict::Commit(Change::Fields(entry), origin.fingerprint.clone());
                Ok(done)
            }
            (Some(origin), false) => self.copy_row(done, origin.clone(), &put, looked).await,
            _ => self.upload_row(done, &put, looked).await,
        }
    }

    async fn upload_row(
        self: &Arc<Self>,
        mut done: Transferred,
        put: &PlannedPut,
        looked: Option<BaseVersion>,
    ) -> Result<Transferred, Failed> {
        let live = match self.volume.open_for_push(&done.row, put.ino) {
            Ok(live) => live,
            Err(VolumeError::Stale) => return Ok(done),
            Err(error) => return Err(Failed::Row(error.to_string())),
        };
        let result = self.upload_content(&mut done, put, &live, looked).await;
        self.volume.close_pushed(&live);
        result.map(|()| done)
    }

    async fn upload_content(
        self: &Arc<Self>,
        done: &mut Transferred,
        put: &PlannedPut,
        live: &Arc<LiveContent>,
        looked: Option<BaseVersion>,
    ) -> Result<(), Failed> {
        if !live.is_complete() {
            self.ensure_all(live).await.map_err(|e| Failed::Row(e.to_string()))?;
        }
        for attempt in 0..TORN_RETRIES {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(100) * attempt).await;
            }
            let Some(stable) = live.stable() else { continue };
            let (size, mtime) = live.stat().map_err(|e| Failed::Row(format!("cannot read the cache: {e}")))?;
            let snapshot = size <= SNAPSHOT_MAX;
            let body = if snapshot {
                match read_whole(Arc::clone(&live.file), size).await {
                    Ok(bytes) if live.unchanged_since(stable) => Body::Bytes(bytes),
                    Err(error) if live.unchanged_since(stable) => return Err(Failed::Row(error)),
                    _ => continue,
                }
            } else {
                Body::File { file: Arc::clone(&live.file), size }
            };
            let digests = match digest(body.clone()).await {
                Ok(digests) => digests,
                Err(_) if !live.unchanged_since(stable) => continue,
                Err(error) => return Err(Failed::Row(format!("cannot read the cache: {error}"))),
            };
            if !snapshot && !live.unchanged_since(stable) {
                continue;
            }
            let put = PlannedPut { mtime, ..put.clone() };
            if let Some(origin) = same_bytes(done, &put, &digests) {
                let entry = fields_entry(&origin, &put);
                done.verdict = Verdict::Commit(Change::Fields(entry), origin.fingerprint.clone());
                done.read = keep_while_open(live, stable);
                return Ok(());
            }
            let outcome = match self.send(done, &put, body, &digests, looked.clone()).await {
                // The store refuses bytes that are not what was hashed.
                Err(Failed::Row(_)) if !live.unchanged_since(stable) && attempt + 1 < TORN_RETRIES => continue,
                outcome => outcome?,
            };
            // Only bytes that stood still from hash to answer may get an entry.
            if snapshot || live.unchanged_since(stable) || matches!(outcome, Verdict::Conflict) {
                done.verdict = outcome;
                done.read = keep_while_open(live, stable);
                self.uploaded.fetch_add(size, Ordering::Relaxed);
                return Ok(());
            }
        }
        Ok(())
    }

    async fn send(
        &self,
        done: &mut Transferred,
        put: &PlannedPut,
        body: Body,
        digests: &Digests,
        looked: Option<BaseVersion>,
    ) -> Result<Verdict, Failed> {
        let Some(expect) = self.expect(&done.row, looked).await? else {
            return Ok(self.same_change(done.row.path.as_str(), put, digests).await?);
        };
        // One id until the row is settled: whatever state of the file an upload of ours left there is ours to replace.
        let id = done.row.upload.as_ref().map_or_else(|| uuid::Uuid::new_v4().to_string(), |mark| mark.id.clone());
        let mark = UploadMark { id: id.clone(), sha256: digests.sha256.clone(), size: digests.size };
        if !self.volume.mark_upload(&done.row.path, done.row.generation, &mark)? {
            return Ok(Verdict::Again);
        }
        done.row.upload = Some(mark);
        let mut request =
            Upload { key: done.row.path.to_string(), body, digests: digests.clone(), upload_id: id.clone(), expect };
        loop {
            match upload(&*self.store, &request).await? {
                UploadOutcome::Stored(fingerprint) => {
                    let entry = new_entry(put, digests.size, Some(digests.sha256.clone()));
                    let confirmed = Instant::now();
                    let uploaded = Uploaded { fingerprint: fingerprint.clone(), upload_id: id, confirmed };
                    return Ok(Verdict::Commit(Change::Put(entry, uploaded), fingerprint));
                }
                UploadOutcome::Conflict(_) => return Ok(Verdict::Conflict),
                // An edit against a removal: the edit is kept.
                UploadOutcome::Vanished if request.expect != Expect::Absent => request.expect = Expect::Absent,
                UploadOutcome::Vanished => return Ok(Verdict::Again),
            }
        }
    }

    /// Another writer replaced the object: a conflict, unless it did so with the same bytes.
    async fn same_change(&self, key: &str, put: &PlannedPut, digests: &Digests) -> Result<Verdict, StoreError> {
        let info = match self.store.head(key).await {
            Ok(info) => info,
            Err(error) if error.is_not_found() => return Ok(Verdict::Again),
            Err(error) => return Err(error),
        };
        if !holds_bytes(&*self.store, key, &info, digests).await? {
            return Ok(Verdict::Conflict);
        }
        let entry = new_entry(put, digests.size, Some(digests.sha256.clone()));
        let fingerprint = info.fingerprint;
        let there = Uploaded { fingerprint: fingerprint.clone(), upload_id: String::new(), confirmed: Instant::now() };
        Ok(Verdict::Commit(Change::Put(entry, there), fingerprint))
    }

    /// An object that an earlier push of ours left behind: its version.
    async fn own_upload(&self, key: &str, mark: &UploadMark) -> Result<Option<Fingerprint>, StoreError> {
        match self.store.head(key).await {
            Ok(info) if info.metadata.get(META_UPLOAD_ID) == Some(&mark.id) => Ok(info.fingerprint),
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the object must be for us to replace it; `None`: it is another writer's. An earlier push of ours may have
    /// replaced it already.
    async fn expect(&self, row: &PlannedRow, looked: Option<BaseVersion>) -> Result<Option<Expect>, StoreError> {
        if let Some(mark) = &row.upload
            && let Some(left) = self.own_upload(row.path.as_str(), mark).await?
        {
            return Ok(Some(Expect::Version(left)));
        }
        let Some(replaced) = &row.replaces else {
            // What was removed here before may not be deleted yet; it is ours to replace.
            let left = self.volume.pending_delete_of(row.path.as_str());
            return Ok(Some(left.map_or(Expect::Absent, Expect::Version)));
        };
        if let Some(known) = &replaced.fingerprint {
            return Ok(Some(Expect::Version(known.clone())));
        }
        Ok(match looked {
            Some(BaseVersion::Found(fingerprint)) => Some(Expect::Version(fingerprint)),
            Some(BaseVersion::Missing) => Some(Expect::Absent),
            Some(BaseVersion::Different(_)) | None => None,
        })
    }

    async fn copy_row(
        self: &Arc<Self>,
        mut done: Transferred,
        origin: Version,
        put: &PlannedPut,
        looked: Option<BaseVersion>,
    ) -> Result<Transferred, Failed> {
        // An interrupted push may have made the copy, and replaced the origin after it.
        let (size, sha256) = (origin.entry.size, origin.entry.sha256.clone());
        if let Some(mark) = done.row.upload.clone()
            && (mark.size, mark.sha256.as_str()) == (size, sha256.as_deref().unwrap_or_default())
            && let Some(left) = self.own_upload(done.row.path.as_str(), &mark).await?
        {
            let there = Uploaded { fingerprint: Some(left.clone()), upload_id: mark.id, confirmed: Instant::now() };
            done.verdict = Verdict::Commit(Change::Put(new_entry(put, size, sha256), there), Some(left));
            done.copied = Some(origin);
            return Ok(done);
        }
        let source = match &origin.fingerprint {
            Some(known) => Some(known.clone()),
            None => match head_base(&*self.store, &origin.key, &origin.entry, self.volume.index_written_at()).await? {
                BaseVersion::Found(fingerprint) => Some(fingerprint),
                BaseVersion::Missing | BaseVersion::Different(_) => None,
            },
        };
        let copied = match source {
            Some(source) => self.copy(&mut done, &origin, source, put, looked.clone()).await?,
            None => false,
        };
        if copied {
            return Ok(done);
        }
        // The origin is gone; the bytes may be here.
        if self.volume.has_local_content(put.ino) {
            return self.upload_row(done, &PlannedPut { origin: None, suspect: false, ..put.clone() }, looked).await;
        }
        done.verdict = Verdict::OriginLost;
        Ok(done)
    }

    /// `false`: the origin is not there any more.
    async fn copy(
        &self,
        done: &mut Transferred,
        origin: &Version,
        source: Fingerprint,
        put: &PlannedPut,
        looked: Option<BaseVersion>,
    ) -> Result<bool, Failed> {
        let key = done.row.path.as_str();
        let Some(expect) = self.expect(&done.row, looked).await? else {
            done.verdict = Verdict::Conflict;
            return Ok(true);
        };
        let sha256 = origin.entry.sha256.clone().unwrap_or_default();
        let mark = UploadMark { id: uuid::Uuid::new_v4().to_string(), sha256: sha256.clone(), size: origin.entry.size };
        if !self.volume.mark_upload(&done.row.path, done.row.generation, &mark)? {
            return Ok(true);
        }
        done.row.upload = Some(mark.clone());
        let precondition = match expect {
            Expect::Absent => Precondition::Absent,
            Expect::Version(fingerprint) => Precondition::Match(fingerprint),
            Expect::Anything => Precondition::None,
        };
        let mut labels = metadata(&mark.id, &sha256);
        labels.retain(|_, value| !value.is_empty());
        let from = CopySource { key: origin.key.clone(), size: origin.entry.size, if_match: Some(source.clone()) };
        let fingerprint = match self.store.copy(from, key, precondition, labels).await {
            Ok(stored) => stored.fingerprint,
            Err(error)
                if matches!(
                    error.kind,
                    StoreErrorKind::Precondition | StoreErrorKind::NotFound | StoreErrorKind::Undecided
                ) =>
            {
                match self.own_upload(key, &mark).await? {
                    Some(fingerprint) => Some(fingerprint),
                    None => {
                        // Which of the two conditions failed?
                        return match self.store.head(&origin.key).await {
                            Ok(info) if info.fingerprint.as_ref() == Some(&source) => {
                                if error.kind == StoreErrorKind::Undecided {
                                    return Err(error.into());
                                }
                                done.verdict = Verdict::Conflict;
                                Ok(true)
                            }
                            Ok(_) => Ok(false),
                            Err(missing) if missing.is_not_found() => Ok(false),
                            Err(error) => Err(error.into()),
                        };
                    }
                }
            }
            Err(error) => return Err(error.into()),
        };
        let entry = new_entry(put, origin.entry.size, origin.entry.sha256.clone());
        let uploaded = Uploaded { fingerprint: fingerprint.clone(), upload_id: mark.id, confirmed: Instant::now() };
        done.verdict = Verdict::Commit(Change::Put(entry, uploaded), fingerprint);
        done.copied = Some(origin.clone());
        Ok(true)
    }
}

/// Why a cycle could not be broken.
#[derive(Debug, thiserror::Error)]
enum SyncOrFetch {
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

fn job_of(row: &PlannedRow) -> Job {
    let origin = row.put.as_ref().filter(|p| !p.suspect).and_then(|p| p.origin.as_ref());
    let copies_from = origin.map(|o| o.key.clone()).filter(|key| key != row.path.as_str());
    let only_fields = origin.is_some() && copies_from.is_none();
    let writes = (row.put.is_some() && !only_fields).then(|| row.path.to_string());
    Job { writes, copies_from }
}

/// A content that somebody else has open can still change before its row is settled, or has changed. One that nobody has
/// open cannot: an open for writing gives the row a new generation.
fn keep_while_open(live: &Arc<LiveContent>, stable: Stable) -> Option<(Arc<LiveContent>, Stable)> {
    // In this order: who closes it after the first look has done all writing before the second.
    let others = live.handles() > 1;
    (others || !live.unchanged_since(stable)).then(|| (Arc::clone(live), stable))
}

async fn read_whole(file: Arc<std::fs::File>, size: u64) -> Result<bytes::Bytes, String> {
    let read = move || {
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(0)];
        file.read_exact_at(&mut buffer, 0).map(|()| bytes::Bytes::from(buffer))
    };
    let result = tokio::task::spawn_blocking(read).await.map_err(|e| e.to_string())?;
    result.map_err(|e| format!("cannot read the cache: {e}"))
}

/// The version in the bucket that has these bytes under this name already.
fn same_bytes(done: &Transferred, put: &PlannedPut, digests: &Digests) -> Option<Version> {
    if done.row.upload.is_some() {
        // An upload that was not settled may have replaced it.
        return None;
    }
    let fits = |entry: &Entry| entry.size == digests.size && entry.sha256.as_deref() == Some(&digests.sha256);
    if let Some(origin) = put.origin.as_ref().filter(|o| o.key == done.row.path.as_str() && fits(&o.entry)) {
        return Some(origin.clone());
    }
    let replaced = done.row.replaces.as_ref().filter(|r| fits(&r.entry))?;
    let (entry, fingerprint) = (replaced.entry.clone(), replaced.fingerprint.clone());
    Some(Version { key: done.row.path.to_string(), entry, fingerprint })
}

fn new_entry(put: &PlannedPut, size: u64, sha256: Option<String>) -> Entry {
    Entry {
        size,
        last_modified: format_nanos(now_nanos()),
        local_mtime: Some(format_nanos(put.mtime)),
        sha256,
        mode: put.mode.map(str::to_owned),
        extra: None,
    }
}

/// The entry of an object that stays, with our attributes.
fn fields_entry(origin: &Version, put: &PlannedPut) -> Entry {
    Entry { local_mtime: Some(format_nanos(put.mtime)), mode: put.mode.map(str::to_owned), ..origin.entry.clone() }
}
