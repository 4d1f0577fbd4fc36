//! Push: brings what changed in a cache directory to the bucket.
//!
//! Depends on `datastore` and the shared modules of `sync`. Order: upload contents, each with a precondition; then under
//! the lock merge our rows into the freshly read index and write it, delete objects that no entry names; then the copy of
//! the index here, and the sidecar that the cache deserves.

use std::collections::HashSet;
use std::path::Path;

use super::local::{Local, Relation};
use super::push_plan::{Plan, Put, plan};
use super::push_upload::{Bases, Uploads, find_bases};
use super::session::{Remote, Session};
use super::{OfflineError, OfflineOptions, Progress, PushReport, disk};
use crate::datastore::{Datastore, DatastoreError, HeldLock, RelPath, Seen, Writer};
use crate::sync::merge::{Change, Committed, Known, Row, RowOutcome, Uploaded, commit};
use crate::sync::remove_object::{ObjectRemoval, remove_object};
use crate::sync::upload::Expect;

/// How often rows are merged again because other writers replaced our objects.
const ATTEMPTS: u32 = 4;

/// Pushes a cache directory.
///
/// # Errors
/// [`OfflineError::Batch`] names the files that could not be uploaded; the others are in the bucket.
pub async fn push(
    datastore: &Datastore,
    cache: &Path,
    options: &OfflineOptions,
    progress: &dyn Progress,
) -> Result<PushReport, OfflineError> {
    let store = &**datastore.store();
    let session = Session::open(datastore, cache, false, options)?;
    let walk = disk(session.cache.walk(), "look through", cache)?;
    let remote = match session.read_remote(datastore).await? {
        Some(remote) => remote,
        None => session.trusted_remote().ok_or(DatastoreError::Changed)?,
    };
    let mut plan = plan(store, &session, &remote, walk).await?;
    let mut report = PushReport { skipped: std::mem::take(&mut plan.skipped), ..PushReport::default() };
    let worked = if plan.has_work() || remote.index.was_scrubbed() {
        work(datastore, &session, remote, &plan, progress, &mut report).await?
    } else {
        Worked { remote, pushed: HashSet::new(), failed: Vec::new() }
    };
    finish(&session, &worked, &plan, &mut report).await?;
    let mut failed = worked.failed;
    failed.sort_unstable();
    if failed.is_empty() { Ok(report) } else { Err(OfflineError::Batch { operation: "push", failed }) }
}

/// Everything that writes to the bucket.
async fn work(
    datastore: &Datastore,
    session: &Session<'_>,
    remote: Remote,
    plan: &Plan,
    progress: &dyn Progress,
    report: &mut PushReport,
) -> Result<Worked, OfflineError> {
    let options = session.options;
    session.mark_dirty()?;
    let lock = datastore.lock(&options.lock).await?;
    let unconditional = match lock.prove_conditions().await {
        Ok(true) => false,
        Ok(false) if options.unsafe_no_conditional_writes => true,
        refused => {
            lock.release().await;
            return Err(refused.map_or_else(OfflineError::from, |_| OfflineError::NoConditions));
        }
    };
    let mut held = None;
    if unconditional {
        tracing::warn!("the store ignores conditions: pushing under the lock alone, as asked");
        held = Some(lock);
    } else {
        // Contents need no lock, and others need not wait for them.
        lock.release().await;
    }
    let mut uploads =
        Uploads { store: &**datastore.store(), session, progress, unconditional, report, failed: Vec::new() };
    let sent = send_all(&mut uploads, &remote, plan).await;
    let committed = match sent {
        Ok((rows, bases)) => {
            let lock = match held.take() {
                Some(lock) => lock,
                None => datastore.lock(&options.lock).await?,
            };
            let committed = publish(&lock, &mut uploads, &remote, rows, &bases).await;
            held = Some(lock);
            committed
        }
        Err(error) => Err(error),
    };
    if let Some(lock) = held {
        lock.release().await;
    }
    let (committed, pushed) = committed?;
    uploads.report.wrote_index = committed.wrote;
    let failed = uploads.failed;
    Ok(Worked { remote: committed.remote.into(), pushed, failed })
}

/// What the bucket has after the work.
struct Worked {
    remote: Remote,
    /// Whose content is in the bucket now.
    pushed: HashSet<RelPath>,
    failed: Vec<(String, String)>,
}

async fn send_all(uploads: &mut Uploads<'_>, remote: &Remote, plan: &Plan) -> Result<(Vec<Row>, Bases), OfflineError> {
    let wanted = plan.puts.iter().filter_map(|put| Some((put.path.clone(), put.base.clone()?)));
    let wanted = wanted.chain(plan.removals.iter().cloned()).collect();
    let concurrency = uploads.session.options.concurrency.max(1);
    let bases = find_bases(uploads.store, remote, wanted, concurrency).await?;
    let changed: HashSet<&RelPath> = bases.changed.iter().collect();
    let mut puts = Vec::new();
    for path in &plan.conflicts {
        puts.push(uploads.set_aside(path, &remote.index)?);
    }
    for put in &plan.puts {
        let expect = match (&put.base, bases.versions.get(&put.path)) {
            _ if uploads.unconditional => Expect::Anything,
            _ if changed.contains(&put.path) => {
                puts.push(uploads.set_aside(&put.path, &remote.index)?);
                continue;
            }
            (Some(_), Some(version)) => Expect::Version(version.clone()),
            _ => Expect::Absent,
        };
        puts.push((put.clone(), expect));
    }
    uploads.progress.total(puts.len() as u64, puts.iter().map(|(put, _)| put.stat.size).sum());
    let mut rows = uploads.send(puts, &remote.index).await?;
    let removals = plan.removals.iter().filter(|(path, _)| !changed.contains(path));
    rows.extend(removals.map(|(path, entry)| Row {
        path: path.clone(),
        change: Change::Remove { left: Uploaded::default() },
        base: Some(entry.clone()),
    }));
    Ok((rows, bases))
}

/// Under the lock: the index, then the objects that it does not name any more.
async fn publish(
    lock: &HeldLock,
    uploads: &mut Uploads<'_>,
    remote: &Remote,
    mut rows: Vec<Row>,
    bases: &Bases,
) -> Result<(Committed, HashSet<RelPath>), OfflineError> {
    let mut known = remote.known();
    let writer = Writer { store: uploads.store, lock, unconditional: uploads.unconditional };
    let mut wrote = false;
    for _ in 0..ATTEMPTS {
        let mut committed = commit(writer, &rows, &[], &known).await?;
        wrote |= committed.wrote;
        committed.wrote = wrote;
        let again = lost_puts(uploads, &rows, &committed)?;
        if again.is_empty() {
            remove_objects(uploads, lock, &rows, &committed, bases).await?;
            let put = rows.iter().filter(|row| matches!(row.change, Change::Put(..))).map(|row| row.path.clone());
            let pushed = put.collect();
            return Ok((committed, pushed));
        }
        let lost = |outcome: &RowOutcome| matches!(outcome, RowOutcome::Superseded | RowOutcome::ObjectGone);
        let mut outcomes = committed.outcomes.iter();
        rows.retain(|_| !outcomes.next().is_some_and(lost));
        rows.extend(uploads.send(again, &committed.remote.index).await?);
        known = Known { seen: Seen::Index(committed.remote.index.layout()), index: committed.remote.index };
    }
    Err(DatastoreError::Changed.into())
}

/// Puts whose objects other writers replaced or deleted before our entry was there.
fn lost_puts(
    uploads: &mut Uploads<'_>,
    rows: &[Row],
    committed: &Committed,
) -> Result<Vec<(Put, Expect)>, OfflineError> {
    let mut again = Vec::new();
    for (row, outcome) in rows.iter().zip(&committed.outcomes) {
        match outcome {
            RowOutcome::Superseded => again.push(uploads.set_aside(&row.path, &committed.remote.index)?),
            RowOutcome::ObjectGone => {
                let full = uploads.session.cache.path_of(&row.path);
                if let Some(stat) = disk(uploads.session.cache.stat(&row.path), "look at", &full)? {
                    again.push((Put { path: row.path.clone(), stat, base: None }, Expect::Absent));
                }
            }
            RowOutcome::Applied | RowOutcome::KeptTheirs => {}
        }
    }
    Ok(again)
}

async fn remove_objects(
    uploads: &mut Uploads<'_>,
    lock: &HeldLock,
    rows: &[Row],
    committed: &Committed,
    bases: &Bases,
) -> Result<(), OfflineError> {
    for (row, outcome) in rows.iter().zip(&committed.outcomes) {
        if !matches!(row.change, Change::Remove { .. }) || *outcome != RowOutcome::Applied {
            continue;
        }
        uploads.report.removed += 1;
        let Some(version) = bases.versions.get(&row.path) else { continue };
        lock.check()?;
        match remove_object(uploads.store, row.path.as_str(), version, &committed.remote.index).await {
            Ok(ObjectRemoval::Deleted | ObjectRemoval::AlreadyGone) => {}
            Ok(ObjectRemoval::Kept) => tracing::info!(object = %row.path, "another version of it appeared, and stays"),
            Err(error) => tracing::warn!(%error, "an object that no entry names is left over"),
        }
    }
    Ok(())
}

/// The cache after the push: nothing old beside the newer copy of the index, and the sidecar it deserves.
async fn finish(
    session: &Session<'_>,
    worked: &Worked,
    plan: &Plan,
    report: &mut PushReport,
) -> Result<(), OfflineError> {
    let (cache, remote) = (&session.cache, &worked.remote);
    let mut outdated = Vec::new();
    let mut unpushed = !worked.failed.is_empty() || plan.blocked;
    for (path, stat) in disk(cache.walk(), "look through", cache.path())?.files {
        let entry = remote.index.get(path.as_str());
        let old = session.old.as_ref().and_then(|old| old.get(path.as_str()));
        let mut local = Local::new(cache, &path, stat);
        let compared = worked.pushed.contains(&path) || plan.identical.contains(&path);
        if compared && entry.as_ref().is_some_and(|entry| local.looks_like(entry)) {
            continue;
        }
        match disk(local.relation(old.as_ref(), entry.as_ref()).await, "read", &cache.path_of(&path))? {
            Relation::Same => {}
            Relation::Stale | Relation::StaleRemoved => outdated.push(path),
            _ => unpushed = true,
        }
    }
    if !outdated.is_empty() {
        session.mark_lazy()?;
    }
    for path in outdated {
        disk(cache.remove_file(&path), "remove", &cache.path_of(&path))?;
        report.outdated.push(path.to_string());
    }
    report.outdated.sort_unstable();
    store_copy_if_new(session, remote)?;
    report.clean = session.settle(remote, unpushed)?;
    Ok(())
}

/// Leaves the copy alone when it says the same: its time is part of the sidecar's promise.
fn store_copy_if_new(session: &Session<'_>, remote: &Remote) -> Result<(), OfflineError> {
    let old = session.old.as_ref().filter(|_| session.is_trusted());
    let same = old.is_some_and(|old| remote.index.changed_since(old).is_empty() && !remote.index.was_scrubbed());
    if same { Ok(()) } else { session.store_copy(remote) }
}
