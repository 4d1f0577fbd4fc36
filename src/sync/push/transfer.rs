//! Contents of a push: uploads, copies within the bucket, and what needs neither.
//!
//! Invariants: an upload id and hash are recorded before the first byte leaves; a content that was written meanwhile is
//! never committed; a transfer that nobody waits for any more holds up only what it writes or copies from.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::timeout;

use super::super::base::BaseVersion;
use super::super::merge::{Change, Row, Uploaded};
use super::super::{Engine, FetchError, SyncError};
use super::PushState;
use super::flights::Flights;
use super::left::Left;
use super::looks::Look;
use super::order::{Job, Next, next};
use super::uploads::fields_entry;
use crate::cache::rows::Version;
use crate::datastore::Entry;
use crate::store::{Fingerprint, StoreError};
use crate::volume::{CopiesMade, LiveContent, PlannedRow, Stable, VolumeError};

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

/// How a transfer ended.
pub(super) type Flown = Result<Transferred, Failed>;

#[derive(Debug)]
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

/// The transfers of one round.
struct Wave<'a> {
    rows: Vec<PlannedRow>,
    looks: Vec<Look>,
    jobs: Vec<Job>,
    /// Number of each path's job.
    places: HashMap<String, usize>,
    waiting: Vec<usize>,
    /// Failed, or still under way: what they copy from must stay.
    stuck: Vec<usize>,
    done: Vec<Transferred>,
    /// Ends the round.
    broken: Option<SyncError>,
    left: &'a mut Left,
}

impl Wave<'_> {
    /// Takes the results of what ended; how many of them began in this round.
    fn take(&mut self, flights: &mut Flights<Flown>) -> usize {
        let mut count = 0;
        for (path, result) in flights.take_landed() {
            let place = self.places.get(&path).copied();
            count += usize::from(place.is_some_and(|at| at < self.rows.len()));
            self.stuck.retain(|at| Some(*at) != place);
            match result {
                Some(Ok(transferred)) => {
                    // A conflict's new name gets its copy in the next round.
                    if matches!(transferred.verdict, Verdict::Again | Verdict::Conflict) {
                        self.stuck.extend(place);
                    }
                    self.done.push(transferred);
                }
                Some(Err(Failed::Row(reason))) => self.failed(place, &path, &reason),
                Some(Err(Failed::Whole(error))) => self.broken = Some(error),
                None => self.failed(place, &path, "the transfer ended without a result"),
            }
        }
        count
    }

    fn failed(&mut self, place: Option<usize>, path: &str, reason: &str) {
        self.stuck.extend(place);
        self.left.reasons.push(format!("{path}: {reason}"));
    }
}

impl Engine {
    /// Transfers what the rows need. Files that failed are left out, with their reasons; so are those that are under way
    /// when nothing has ended for `patience`: they go on, and a later round takes their results. This one takes those of
    /// transfers that began in earlier rounds.
    pub(super) async fn transfer(
        self: &Arc<Self>,
        rows: Vec<PlannedRow>,
        state: &mut PushState,
        left: &mut Left,
    ) -> Result<Vec<Transferred>, SyncError> {
        let patience = state.patience();
        let looks = self.versions_before(&rows, patience, &mut state.looks, &mut left.reasons).await?;
        let flights = &mut state.flights;
        let paths = rows.iter().map(|row| row.path.to_string()).chain(flights.jobs().map(|(path, _)| path.clone()));
        let looked = |at: &usize| !matches!(looks[*at], Look::Failed);
        let (waiting, unseen): (Vec<usize>, Vec<usize>) = (0..rows.len()).partition(looked);
        let made = self.volume.all_copies_made();
        let mut wave = Wave {
            jobs: rows.iter().map(|row| job_of(row, &made)).chain(flights.jobs().map(|(_, job)| job.clone())).collect(),
            places: paths.enumerate().map(|(at, path)| (path, at)).collect(),
            waiting,
            stuck: unseen.into_iter().chain(rows.len()..rows.len() + flights.len()).collect(),
            done: Vec::new(),
            broken: None,
            rows,
            looks,
            left,
        };
        wave.take(flights);
        while wave.broken.is_none() {
            match next(&wave.jobs, &wave.waiting, &wave.stuck) {
                Next::Done => break,
                Next::Break(at) => match self.fetch_origin(&wave.rows[at]).await {
                    Ok(()) => {
                        wave.jobs[at].copies_from.clear();
                        if let Some(put) = &mut wave.rows[at].put {
                            put.origin = None;
                        }
                    }
                    // Nothing to wait for: its transfer finds out what that means for the rename.
                    Err(_) if self.lost_origin(&wave.rows[at]).await => wave.jobs[at].copies_from.clear(),
                    Err(error) => {
                        let path = wave.rows[at].path.to_string();
                        wave.waiting.retain(|i| *i != at);
                        wave.failed(Some(at), &path, &error.to_string());
                    }
                },
                Next::Run(ready) => {
                    if !self.run_jobs(ready, &mut wave, flights, patience).await {
                        break;
                    }
                }
            }
        }
        // A removal must not take away what a copy still needs that failed, is under way, or could not begin.
        let Wave { rows, looks, jobs, mut done, waiting, stuck, broken, .. } = wave;
        if let Some(error) = broken {
            return Err(error);
        }
        Self::keep_looks(waiting.iter().map(|at| (&rows[*at], &looks[*at])), &mut state.looks);
        let needed: HashSet<&str> =
            stuck.iter().chain(&waiting).flat_map(|i| jobs[*i].copies_from.iter().map(String::as_str)).collect();
        done.retain(|t| t.row.put.is_some() || !needed.contains(t.row.path.as_str()));
        Ok(done)
    }

    /// Runs these jobs side by side. `false`: nothing ends any more, so that what did should not wait.
    async fn run_jobs(
        self: &Arc<Self>,
        ready: Vec<usize>,
        wave: &mut Wave<'_>,
        flights: &mut Flights<Flown>,
        patience: Duration,
    ) -> bool {
        let running: HashSet<usize> = ready.iter().copied().collect();
        wave.waiting.retain(|i| !running.contains(i));
        let mut queue = ready.into_iter().peekable();
        let landings = flights.landings();
        let mut here = 0;
        loop {
            // Slow ones of earlier rounds leave room for others, but not without end.
            let at_once = self.uploads.limit();
            while here < at_once && flights.len() < 2 * at_once {
                let Some(at) = queue.next() else { break };
                let (engine, row, look) = (Arc::clone(self), wave.rows[at].clone(), wave.looks[at].clone());
                wave.stuck.push(at);
                let path = row.path.to_string();
                let transfer = async move { engine.transfer_row(row, look).await };
                flights.begin(path, wave.jobs[at].clone(), transfer.boxed());
                here += 1;
            }
            if here == 0 && queue.peek().is_none() {
                return true;
            }
            if timeout(patience, landings.next()).await.is_err() {
                wave.waiting.extend(queue);
                return false;
            }
            let ended = wave.take(flights);
            (0..ended).for_each(|_| self.uploads.learn());
            here -= ended;
            if wave.broken.is_some() {
                return false;
            }
        }
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

    async fn transfer_row(self: &Arc<Self>, row: PlannedRow, look: Look) -> Result<Transferred, Failed> {
        let looked = match look {
            Look::Found(version) => Some(version),
            Look::Late => self.version_before(&row).await?,
            Look::Nothing | Look::Failed => None,
        };
        let seen = self.seen_entry(&row).await?;
        let mut done = Transferred { seen, row, read: None, copied: None, origin_lost: false, verdict: Verdict::Again };
        let Some(put) = done.row.put.clone() else {
            let version = match looked {
                Some(BaseVersion::Found(fingerprint)) => Some(fingerprint),
                Some(_) => None,
                None => self.version_to_remove(&done.row).await?,
            };
            let upload_id = done.row.upload.as_ref().map(|mark| mark.id.clone()).unwrap_or_default();
            // Not what a look at the object took for the version that we saw.
            let fingerprint = done.row.replaces.as_ref().and_then(|replaced| replaced.fingerprint.clone());
            let left = Uploaded { fingerprint, upload_id, confirmed: None };
            done.verdict = Verdict::Commit(Change::Remove { left }, version);
            return Ok(done);
        };
        match (&put.origin, put.suspect) {
            (Some(origin), false)
                if origin.key == done.row.path.as_str() && !self.is_overwritten(&done.row, origin).await? =>
            {
                let entry = fields_entry(&origin.entry, &put);
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

/// The order that a row asks for; `made` is where pushes of ours left copies.
fn job_of(row: &PlannedRow, made: &CopiesMade) -> Job {
    let path = row.path.as_str();
    let origin = row.put.as_ref().filter(|p| !p.suspect).and_then(|p| p.origin.as_ref());
    let mut copies_from = Vec::new();
    if let Some(origin) = origin
        // Renamed away and back it needs none, unless a push of ours may have replaced it.
        && (origin.key != path || row.upload.is_some())
    {
        copies_from.extend(made.of(&origin.entry).iter().chain([&origin.key]).filter(|key| *key != path).cloned());
    }
    let only_fields = origin.is_some() && copies_from.is_empty();
    let writes = (row.put.is_some() && !only_fields).then(|| row.path.to_string());
    Job { writes, copies_from }
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
