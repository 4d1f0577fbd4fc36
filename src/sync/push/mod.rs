//! Push: the delta goes into the bucket, contents first, then the index, then the deletions.
//!
//! Depends on the shared steps `upload`, `merge`, `base`, `remove_object`. Invariants: an entry is written only for an
//! object that the store confirmed; the local rows are settled together with the new base before any object is deleted;
//! deletions are remembered until they are done; a file that fails or does not get on never holds up the others.

mod copies;
mod deletions;
mod flights;
#[cfg(test)]
mod flights_tests;
mod left;
mod looks;
mod order;
mod transfer;
mod uploads;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;

use super::merge::{self, Change, Known, Row, RowOutcome};
use super::{Engine, SyncError};
use crate::cache::rows::Version;
use crate::datastore::lock::LockOptions;
use crate::datastore::{HeldLock, RelPath, Writer, now_nanos};
use crate::volume::{NewBase, Outcome, PlannedRow, PushPlan, PushSelection, Settled};
use flights::Flights;
use left::{Left, Then};
use looks::Looks;
use transfer::{Flown, Transferred, Verdict};

/// Rounds of a flush: conflicts and files that were written meanwhile need another one.
const ROUNDS: u32 = 6;
/// When no transfer has ended for so long, those that did go into the index without the rest.
const PATIENCE: Duration = Duration::from_secs(2);
/// At most so long where an index write is so expensive that more of them must not be made.
const LONGEST_PATIENCE: Duration = Duration::from_secs(30);

/// What pushes of one session know.
#[derive(Debug, Default)]
pub(super) struct PushState {
    /// The store was seen to honour preconditions (or the user waived them).
    conditions_proven: bool,
    /// How long the last index write took.
    pub last_index_write: Duration,
    /// Transfers, also of rounds that are over.
    flights: Flights<Flown>,
    looks: Looks,
}

impl PushState {
    /// How long a round waits for a transfer when no other ends.
    fn patience(&self) -> Duration {
        (self.last_index_write * 5).clamp(PATIENCE, LONGEST_PATIENCE)
    }
}

/// What became of the rows of one round, and the index that says so.
struct Committed {
    new: Option<NewBase>,
    settled: Vec<Settled>,
}

impl Committed {
    /// Whether it leaves objects that no entry names.
    fn leaves_objects(&self) -> bool {
        let leaves = |one: &Settled| !matches!(one.outcome, Outcome::Put(_)) || one.copied.is_some();
        self.settled.iter().any(leaves)
    }
}

impl Engine {
    /// Pushes until everything that was changed before the call is in the bucket.
    pub(super) async fn push_everything(self: &Arc<Self>) -> Result<(), Vec<String>> {
        let mut again = 0;
        loop {
            let mut left = self.round(Some(PushSelection::Everything)).await?;
            match left.then() {
                Then::Fail => {
                    // What failed is not tried again here, but what has not failed yet is not given up for it.
                    while let Some(landings) = &left.under_way {
                        landings.next().await;
                        let rest = self.round(None).await?;
                        left.reasons.extend(rest.reasons);
                        left.under_way = rest.under_way;
                    }
                    return Err(left.reasons);
                }
                Then::Again => {
                    again += 1;
                    if again == ROUNDS {
                        break;
                    }
                    if again > 1 {
                        tokio::time::sleep(Duration::from_millis(200) * again).await;
                    }
                }
                Then::Round => {}
                Then::Wait(landings) => landings.next().await,
                Then::Done => {
                    self.journal().last_flush = Some(now_nanos());
                    return Ok(());
                }
            }
        }
        Err(vec!["files keep changing while they are uploaded; close them, or flush again".to_owned()])
    }

    /// One push of what is due. What does not get on is left to the next one.
    pub(super) async fn push(self: &Arc<Self>, selection: PushSelection) -> Result<Duration, Vec<String>> {
        let left = self.round(Some(selection)).await;
        if !matches!(&left, Ok(left) if left.under_way.is_some()) {
            self.uploaded.store(0, Ordering::Relaxed);
        }
        let left = left?;
        if left.reasons.is_empty() { Ok(self.push_gate.lock().await.last_index_write) } else { Err(left.reasons) }
    }

    /// One round: what is selected (`None`: nothing), and what transfers of earlier rounds have come to.
    async fn round(self: &Arc<Self>, selection: Option<PushSelection>) -> Result<Left, Vec<String>> {
        let mut state = self.push_gate.lock().await;
        let landings = state.flights.landings();
        if state.flights.len() >= 2 * self.options.upload_concurrency.max(1) && !state.flights.any_landed() {
            // Nothing more could begin.
            return Ok(Left { under_way: Some(landings), ..Left::default() });
        }
        let mut plan = PushPlan::default();
        if let Some(selection) = selection {
            let volume = Arc::clone(&self.volume);
            plan = tokio::task::spawn_blocking(move || volume.plan_push(selection))
                .await
                .map_err(|error| vec![format!("planning the push failed: {error}")])?;
        }
        let busy = state.flights.keys();
        let waiting: Vec<PlannedRow> = plan.rows.extract_if(.., |row| state.flights.has(row.path.as_str())).collect();
        plan.deletes.retain(|(key, _)| !busy.contains(key));
        if plan.is_empty() && !state.flights.any_landed() {
            return Ok(Left { under_way: (!state.flights.is_empty()).then_some(landings), ..Left::default() });
        }
        if self.options.read_only {
            return Err(vec![
                "the mount is read-only: mount without --read-only, or run `swamp-mount flush`, to push what is left"
                    .into(),
            ]);
        }
        match self.push_plan(plan, &mut state).boxed().await {
            Ok(mut left) => {
                left.under_way = (!state.flights.is_empty()).then_some(landings);
                left.held_back = waiting.iter().any(|row| !state.flights.has(row.path.as_str()));
                if left.reasons.is_empty() {
                    self.note_contact("push");
                } else {
                    self.note_reasons("push", &left.reasons);
                }
                Ok(left)
            }
            Err(error) => {
                self.note_error("push", &error);
                Err(vec![error.to_string()])
            }
        }
    }

    // The futures of the steps are boxed: the compiler cannot show for the whole nest at once that it is Send.
    async fn push_plan(self: &Arc<Self>, plan: PushPlan, state: &mut PushState) -> Result<Left, SyncError> {
        if self.index_in_doubt.load(Ordering::SeqCst) {
            // Nothing is uploaded while the index cannot be read, is gone, or is in a format that we do not write.
            self.refresh().await?;
        }
        self.prove_conditions(state).await?;
        self.uploaded.store(0, Ordering::Relaxed);
        let mut left = Left::default();
        let transferred = self.transfer(plan.rows, state, &mut left).boxed().await?;
        let (rows, conflicts): (Vec<_>, Vec<_>) =
            transferred.into_iter().partition(|t| matches!(t.verdict, Verdict::Commit(..)));
        left.again += conflicts.iter().filter(|t| matches!(t.verdict, Verdict::Again)).count();
        let conflicts: Vec<Transferred> =
            conflicts.into_iter().filter(|t| !matches!(t.verdict, Verdict::Again)).collect();
        if rows.is_empty() && conflicts.is_empty() && plan.deletes.is_empty() {
            return Ok(left);
        }
        self.sync_uploaded(&rows).await?;
        let lock = self.datastore.lock(&LockOptions::default()).boxed().await?;
        crate::fail_point!("push.after_lock");
        let gate = self.index_gate.lock().await;
        let committed = self.commit(&lock, rows, conflicts, state, &mut left).boxed().await;
        let deletes = !plan.deletes.is_empty() || matches!(&committed, Ok(committed) if committed.leaves_objects());
        // Others may go on as soon as the index is written; only deletions are still to be made under the lock.
        let lock = if deletes && committed.is_ok() {
            Some(lock)
        } else {
            lock.release().await;
            None
        };
        let Committed { new, settled } = committed?;
        left.again += new.as_ref().map_or(0, |new| new.undone.len());
        let applied = self.apply(new, settled).await;
        drop(gate);
        crate::fail_point!("push.after_settle");
        if let Some(lock) = lock {
            if applied.is_ok()
                && let Err(error) = self.delete_pending(&lock, &state.flights.keys()).boxed().await
            {
                left.reasons.push(format!("objects that nothing needs could not be deleted yet: {error}"));
            }
            crate::fail_point!("push.before_unlock");
            lock.release().await;
            crate::fail_point!("push.after_unlock");
        }
        applied?;
        Ok(left)
    }

    /// What is settled as clean must not be lost to a power cut.
    async fn sync_uploaded(&self, rows: &[Transferred]) -> Result<(), SyncError> {
        let paths: Vec<RelPath> = rows.iter().filter(|t| t.row.put.is_some()).map(|t| t.row.path.clone()).collect();
        let volume = Arc::clone(&self.volume);
        let synced = tokio::task::spawn_blocking(move || volume.sync_uploaded(&paths)).await;
        Ok(synced.map_err(|e| crate::store::StoreError::other("sync what was uploaded", "", e.to_string()))??)
    }

    /// Before the first write of a session: does the store honour preconditions?
    async fn prove_conditions(&self, state: &mut PushState) -> Result<(), SyncError> {
        if state.conditions_proven {
            return Ok(());
        }
        let lock = self.datastore.lock(&LockOptions::default()).boxed().await?;
        let proven = lock.prove_conditions().boxed().await;
        lock.release().await;
        if !proven? {
            if !self.options.unsafe_no_conditional_writes {
                self.volume.make_read_only(SyncError::NoConditions.to_string());
                return Err(SyncError::NoConditions);
            }
            tracing::warn!(
                "the store ignores conditional writes; pushing all the same, as --unsafe-no-conditional-writes says"
            );
        }
        state.conditions_proven = true;
        Ok(())
    }

    /// Writes the index. The caller takes it into view, under `index_gate`.
    async fn commit(
        &self,
        lock: &HeldLock,
        rows: Vec<Transferred>,
        conflicts: Vec<Transferred>,
        state: &mut PushState,
        left: &mut Left,
    ) -> Result<Committed, SyncError> {
        let mut settled: Vec<Settled> = Vec::new();
        for conflict in conflicts {
            settled.extend(self.settle_refused(conflict, left));
        }
        if rows.is_empty() {
            let new = self.read_newer_base().await?;
            return Ok(Committed { new, settled });
        }
        let began = Instant::now();
        let base = self.volume.base();
        let known = Known { index: crate::datastore::Index::clone(&base.index), seen: base.seen() };
        let merge_rows: Vec<Row> = rows.iter().filter_map(Transferred::merge_row).collect();
        let unconditional = self.options.unsafe_no_conditional_writes;
        let writer = Writer { store: &*self.store, lock, unconditional };
        // Deletions that are still pending look at the fresh index too.
        let also: Vec<String> = self.volume.deletable().into_iter().map(|(key, _)| key).collect();
        crate::fail_point!("push.before_index_write");
        let committed = merge::commit(writer, &merge_rows, &also, &known).boxed().await?;
        crate::fail_point!("push.after_index_write");
        state.last_index_write = began.elapsed();
        for (row, outcome) in rows.into_iter().zip(committed.outcomes) {
            settled.extend(self.settle_committed(row, outcome, left));
        }
        // What others undid since the last refresh is part of this index: no refresh would find it any more.
        let undone = self.undone_at_commit(&committed.remote).await?;
        Ok(Committed { new: Some(NewBase { undone, ..committed.remote.into() }), settled })
    }

    fn settle_committed(&self, done: Transferred, outcome: RowOutcome, left: &mut Left) -> Option<Settled> {
        let Verdict::Commit(change, fingerprint) = done.verdict else { return None };
        let path = done.row.path.clone();
        let outcome = match (outcome, change) {
            (RowOutcome::Applied, Change::Put(entry, _)) if done.origin_lost => {
                self.note_origin_lost(&path);
                Outcome::Described(Version { key: path.to_string(), entry, fingerprint })
            }
            (RowOutcome::Superseded, _) if done.origin_lost => self.origin_lost(&path),
            (
                RowOutcome::Applied,
                Change::Put(entry, _) | Change::Fields(entry) | Change::Rewritten(entry) | Change::Restore(entry, _),
            ) => Outcome::Put(Version { key: path.to_string(), entry, fingerprint }),
            (RowOutcome::Applied, Change::Remove { .. }) => Outcome::Removed { version: fingerprint },
            (RowOutcome::Superseded, _) => self.conflict(&path, left),
            (RowOutcome::ObjectGone, _) => {
                left.again += 1;
                return None;
            }
            (RowOutcome::KeptTheirs, change) => {
                match change {
                    Change::Restore(..) => tracing::info!(%path, "replaced by another client after all"),
                    change => {
                        let what =
                            if matches!(change, Change::Remove { .. }) { "removal" } else { "change of attributes" };
                        self.note_conflict(format!(
                            "{path}: changed in the bucket meanwhile; our {what} gives way to it"
                        ));
                    }
                }
                Outcome::Superseded
            }
        };
        Some(Settled { path, generation: done.row.generation, read: done.read, copied: done.copied, outcome })
    }

    fn settle_refused(&self, refused: Transferred, left: &mut Left) -> Option<Settled> {
        let path = refused.row.path.clone();
        let outcome = match refused.verdict {
            Verdict::Conflict => self.conflict(&path, left),
            Verdict::OriginLost => self.origin_lost(&path),
            Verdict::Commit(..) | Verdict::Again => return None,
        };
        Some(Settled { path, generation: refused.row.generation, read: None, copied: None, outcome })
    }

    fn note_origin_lost(&self, path: &RelPath) {
        self.note_conflict(format!(
            "{path}: the file that was renamed to it was changed in the bucket meanwhile; it keeps its old name there"
        ));
    }

    fn origin_lost(&self, path: &RelPath) -> Outcome {
        self.note_origin_lost(path);
        Outcome::Superseded
    }

    fn conflict(&self, path: &RelPath, left: &mut Left) -> Outcome {
        let to = self.volume.conflict_path(path);
        self.note_conflict(format!("{path}: changed here and in the bucket; our version is now {to}"));
        left.again += 1;
        Outcome::Conflict(to)
    }
}
