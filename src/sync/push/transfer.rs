//! Contents of a push: uploads, copies within the bucket, and what needs neither.
//!
//! Invariants: an upload id and hash are recorded before the first byte leaves; a content that was written meanwhile is
//! never committed; a fingerprint found by HEAD counts only if the index, read after it, still shows the entry.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::StreamExt;

use super::super::base::{BaseVersion, head_base};
use super::super::merge::{Change, Row, Uploaded};
use super::super::pace::Urgency;
use super::super::{Engine, FetchError, SyncError};
use super::order::{Job, Next, next};
use super::uploads::fields_entry;
use crate::cache::rows::Version;
use crate::datastore::Entry;
use crate::store::{Fingerprint, StoreError};
use crate::volume::{LiveContent, PlannedRow, Stable, VolumeError};

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
    /// The rename is dropped; what is committed is the entry of an object that an earlier push of ours left.
    pub origin_lost: bool,
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

pub(super) enum Failed {
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
        let looked: Vec<(usize, Result<BaseVersion, StoreError>)> = futures_util::stream::iter(unknown)
            .map(|(at, key, entry)| async move {
                let written_at = self.volume.index_written_at(&key);
                (at, head_base(&*self.store, &key, &entry, written_at).await)
            })
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
                    let same =
                        shown.as_ref().is_some_and(|e| row.replaces.as_ref().is_some_and(|r| r.entry.same_version(e)));
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

    /// The row's entry in the index as this machine last saw it: what it replaced, or what pushes of ours left there before
    /// it could be settled. Whoever replaces an entry replaces its object first: while that is ours, so is the entry.
    async fn seen_entry(&self, row: &PlannedRow) -> Result<Option<Entry>, StoreError> {
        let replaced = row.replaces.as_ref().map(|replaced| replaced.entry.clone());
        let shown = self.volume.base().index.get(row.path.as_str());
        let (Some(mark), Some(shown)) = (&row.upload, shown) else { return Ok(replaced) };
        if replaced.as_ref().is_some_and(|replaced| replaced.same_version(&shown)) {
            return Ok(replaced);
        }
        let is_latest = shown.sha256.as_deref() == Some(&mark.sha256) && shown.size == mark.size;
        let ours = is_latest || self.own_upload(row.path.as_str(), mark).await?.is_some();
        Ok(if ours { Some(shown) } else { replaced })
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
        let place = self.uploads.place(Urgency::Awaited).await;
        let _place = place.ok_or_else(|| Failed::Row("the mount is ending".to_owned()))?;
        let seen = self.seen_entry(&row).await?;
        let mut done = Transferred { seen, row, read: None, copied: None, origin_lost: false, verdict: Verdict::Again };
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
                let fingerprint = origin.fingerprint.clone();
                let change = if is_undone(&done.row, &origin.entry) {
                    let uploaded =
                        Uploaded { fingerprint: fingerprint.clone(), upload_id: String::new(), confirmed: None };
                    Change::Restore(entry, uploaded)
                } else {
                    Change::Fields(entry)
                };
                done.verdict = Verdict::Commit(change, fingerprint);
                Ok(done)
            }
            (Some(origin), false) => self.copy_row(done, origin.clone(), &put, looked).await,
            _ => self.upload_row(done, &put, looked).await,
        }
    }
}

/// Whether the index does not speak of the upload of `entry` (any more).
fn is_undone(row: &PlannedRow, entry: &Entry) -> bool {
    row.replaces.as_ref().is_none_or(|replaced| {
        let before = &replaced.entry;
        (before.size, &before.sha256, &before.last_modified) != (entry.size, &entry.sha256, &entry.last_modified)
    })
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
