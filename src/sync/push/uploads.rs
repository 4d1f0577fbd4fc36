//! One upload of a push: the bytes of a file into its object.
//!
//! Invariants: an upload id and hash are recorded before the first byte leaves; only bytes that stood still from hash to
//! answer get an entry; a version that is neither the expected one nor ours is never overwritten.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::super::Engine;
use super::super::base::{BaseVersion, holds_bytes};
use super::super::hash::{Digests, digest_blocking};
use super::super::merge::{Change, Uploaded};
use super::super::upload::{Expect, META_SHA256, META_UPLOAD_ID, Upload, UploadOutcome, is_of_change, upload};
use super::transfer::{Failed, Transferred, Verdict};
use crate::cache::rows::UploadMark;
use crate::datastore::{Entry, format_nanos, now_nanos};
use crate::store::{Body, Fingerprint, StoreError};
use crate::volume::{LiveContent, PlannedPut, PlannedRow, Stable, VolumeError};

/// How often a content that is being written is read again.
const TORN_RETRIES: u32 = 3;
/// Files up to this size are copied first, so that one that never rests is pushed all the same.
const SNAPSHOT_MAX: u64 = 4 << 20;

/// An object that carries the upload id of a row: some state of its file, not always the latest.
pub(super) struct OwnUpload {
    /// Of this state.
    pub upload_id: String,
    pub fingerprint: Fingerprint,
    /// Its bytes.
    pub size: u64,
    /// Hash of its bytes, where the upload knew it.
    pub sha256: Option<String>,
}

impl Engine {
    pub(super) async fn upload_row(
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
            let Some(stable) = stable(live).await else { continue };
            let (size, mtime) = live.stat().map_err(|e| Failed::Row(format!("cannot read the cache: {e}")))?;
            let snapshot = size <= SNAPSHOT_MAX;
            let (body, digests) = match hashed(Arc::clone(&live.file), size, snapshot).await {
                Ok(hashed) if live.unchanged_since(stable) => hashed,
                Err(error) if live.unchanged_since(stable) => {
                    return Err(Failed::Row(format!("cannot read the cache: {error}")));
                }
                _ => continue,
            };
            let put = PlannedPut { mtime, ..put.clone() };
            if let Some((change, fingerprint)) = self.same_bytes(done, &put, &digests) {
                done.verdict = Verdict::Commit(change, fingerprint);
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

    /// What there is to do for a file whose bytes the bucket has under this name already.
    fn same_bytes(
        &self,
        done: &Transferred,
        put: &PlannedPut,
        digests: &Digests,
    ) -> Option<(Change, Option<Fingerprint>)> {
        if done.row.upload.is_some() {
            // An upload that was not settled may have replaced it.
            return None;
        }
        let path = done.row.path.as_str();
        let fits = |entry: &Entry| entry.size == digests.size && entry.sha256.as_deref() == Some(&digests.sha256);
        if let Some(origin) = put.origin.as_ref().filter(|o| o.key == path && fits(&o.entry)) {
            return Some((Change::Fields(fields_entry(&origin.entry, put)), origin.fingerprint.clone()));
        }
        let replaced = done.row.replaces.as_ref().filter(|r| fits(&r.entry))?;
        // Written again here, and removed by others: what is kept has to be uploaded.
        let removed = !self.volume.base().index.names(path);
        (!removed).then(|| (Change::Rewritten(fields_entry(&replaced.entry, put)), replaced.fingerprint.clone()))
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
        let id = self.upload_id(&done.row);
        let (sha256, size) = (digests.sha256.clone(), digests.size);
        let mark = UploadMark { id: id.clone(), sha256, size, key: None, moved: false, copy_of: None };
        crate::fail_point!("push.before_upload_mark");
        if !self.volume.mark_upload(&done.row.path, done.row.generation, &mark)? {
            return Ok(Verdict::Again);
        }
        crate::fail_point!("push.after_upload_mark");
        done.row.upload = Some(mark);
        let mut request =
            Upload { key: done.row.path.to_string(), body, digests: digests.clone(), upload_id: id.clone(), expect };
        loop {
            match upload(&*self.store, &request).await? {
                UploadOutcome::Stored(fingerprint) => {
                    crate::fail_point!("push.after_upload");
                    let entry = new_entry(put, digests.size, Some(digests.sha256.clone()));
                    let confirmed = Instant::now();
                    let uploaded =
                        Uploaded { fingerprint: fingerprint.clone(), upload_id: id, confirmed: Some(confirmed) };
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
        let there =
            Uploaded { fingerprint: fingerprint.clone(), upload_id: String::new(), confirmed: Some(Instant::now()) };
        Ok(Verdict::Commit(Change::Put(entry, there), fingerprint))
    }

    /// An object that an earlier push of ours left behind: its version.
    pub(super) async fn own_upload(&self, key: &str, mark: &UploadMark) -> Result<Option<OwnUpload>, StoreError> {
        match self.store.head(key).await {
            Ok(mut info) if is_of_change(&info, &mark.id) => {
                let (size, sha256) = (info.size, info.metadata.remove(META_SHA256));
                let upload_id = info.metadata.remove(META_UPLOAD_ID).unwrap_or_default();
                Ok(info.fingerprint.map(|fingerprint| OwnUpload { upload_id, fingerprint, size, sha256 }))
            }
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One id until the row is settled and what it replaced is gone: whatever state of the file an upload of ours left there
    /// is ours to replace.
    pub(super) fn upload_id(&self, row: &PlannedRow) -> String {
        let left = || self.volume.pending_delete_of(row.path.as_str()).and_then(|left| left.upload);
        row.upload.clone().or_else(left).map_or_else(|| uuid::Uuid::new_v4().to_string(), |mark| mark.id)
    }

    /// What the object must be for us to replace it; `None`: it is another writer's. An earlier push of ours may have
    /// replaced it already.
    pub(super) async fn expect(
        &self,
        row: &PlannedRow,
        looked: Option<BaseVersion>,
    ) -> Result<Option<Expect>, StoreError> {
        if let Some(mark) = &row.upload
            && let Some(left) = self.own_upload(row.path.as_str(), mark).await?
        {
            return Ok(Some(Expect::Version(left.fingerprint)));
        }
        let Some(replaced) = &row.replaces else {
            let Some(left) = self.volume.pending_delete_of(row.path.as_str()) else {
                // Others took an entry of ours out of the index, and have not deleted its object yet.
                return Ok(Some(match self.volume.committed_version(row.path.as_str()) {
                    Some(ours) if self.is_version(row.path.as_str(), &ours).await? => Expect::Version(ours),
                    _ => Expect::Absent,
                }));
            };
            // What was removed here before may not be deleted yet; it is ours to replace.
            // The last is the latest of them.
            let version = self.removable_versions(row.path.as_str(), &left).await?.pop();
            return Ok(Some(version.map_or(Expect::Absent, Expect::Version)));
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
}

/// A content that somebody else has open can still change before its row is settled, or has changed. One that nobody has
/// open cannot: an open for writing gives the row a new generation.
fn keep_while_open(live: &Arc<LiveContent>, stable: Stable) -> Option<(Arc<LiveContent>, Stable)> {
    // In this order: who closes it after the first look has done all writing before the second.
    let others = live.handles() > 1;
    (others || !live.unchanged_since(stable)).then(|| (Arc::clone(live), stable))
}

/// A moment in which nobody was writing. Waiting for what the kernel writes by itself takes the disk's time.
async fn stable(live: &Arc<LiveContent>) -> Option<Stable> {
    if !live.has_unseen_writers() {
        return live.stable();
    }
    let live = Arc::clone(live);
    tokio::task::spawn_blocking(move || live.stable_on_disk()).await.ok().flatten()
}

/// The bytes of a file as they are sent, and their hashes; `snapshot`: a copy in memory.
async fn hashed(file: Arc<std::fs::File>, size: u64, snapshot: bool) -> std::io::Result<(Body, Digests)> {
    let read = move || {
        let body = if snapshot {
            let mut buffer = vec![0; usize::try_from(size).unwrap_or(0)];
            file.read_exact_at(&mut buffer, 0)?;
            Body::Bytes(buffer.into())
        } else {
            Body::File { file, size }
        };
        digest_blocking(&body).map(|digests| (body, digests))
    };
    tokio::task::spawn_blocking(read).await.map_err(std::io::Error::other)?
}

pub(super) fn new_entry(put: &PlannedPut, size: u64, sha256: Option<String>) -> Entry {
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
pub(super) fn fields_entry(stays: &Entry, put: &PlannedPut) -> Entry {
    Entry { local_mtime: Some(format_nanos(put.mtime)), mode: put.mode.map(str::to_owned), ..stays.clone() }
}
