//! Pull: makes a cache directory hold every file of the datastore.
//!
//! Depends on `datastore` and the other modules here. Order, so that a crash at any point leaves a cache that is safe to
//! use and to pull into again: announce an incomplete cache, set aside or remove files whose entry changed, store the newer
//! index, fetch, verify, and only then promise.

use std::collections::HashMap;
use std::path::Path;

use futures_util::{StreamExt, stream};

use super::download::download;
use super::local::{Local, Relation};
use super::session::{Remote, Session};
use super::{OfflineError, OfflineOptions, Progress, PullReport, disk};
use crate::datastore::cache_dir::FileStat;
use crate::datastore::{Datastore, Entry, RelPath, timestamp};
use crate::store::ObjectStore;
use crate::sync::conflict::conflict_name;

/// How often a pull begins again because the index changed under it.
const ATTEMPTS: u32 = 3;

/// Brings a cache directory up to date.
///
/// # Errors
/// [`OfflineError::Batch`] names the files that could not be fetched; the others are there.
pub async fn pull(
    datastore: &Datastore,
    cache: &Path,
    options: &OfflineOptions,
    progress: &dyn Progress,
) -> Result<PullReport, OfflineError> {
    let store = datastore.store();
    let mut report = PullReport::default();
    let mut session = Session::open(datastore, cache, true, options)?;
    let Some(mut remote) = session.read_remote(datastore).await? else {
        return Ok(PullReport { up_to_date: true, clean: true, ..report });
    };
    for attempt in 1..=ATTEMPTS {
        let failed = pull_towards(&**store, &session, &remote, progress, &mut report).await?;
        if failed.is_empty() {
            break;
        }
        // Objects are uploaded before their entries: perhaps the entries have arrived by now.
        session = reopen(datastore, session, cache, options)?;
        let fresh = session.read_remote(datastore).await?;
        match fresh {
            Some(fresh) if attempt < ATTEMPTS && !fresh.index.is_same_version(&remote.index) => remote = fresh,
            _ => return Err(OfflineError::Batch { operation: "pull", failed }),
        }
    }
    report.clean = session.settle(&remote, !report.unpushed.is_empty())?;
    report.problems = remote.index.problems();
    Ok(report)
}

/// Looks at the directory again, as it is after a part of the work.
fn reopen<'a>(
    datastore: &Datastore,
    session: Session<'a>,
    cache: &Path,
    options: &'a OfflineOptions,
) -> Result<Session<'a>, OfflineError> {
    let sidecar = session.sidecar.clone();
    drop(session);
    let mut session = Session::open(datastore, cache, true, options)?;
    // The one that we found first decides the version and the unknown fields of the one that we leave.
    session.sidecar = sidecar;
    Ok(session)
}

/// What has to happen in the cache.
#[derive(Default)]
struct Plan {
    remove: Vec<RelPath>,
    set_aside: Vec<RelPath>,
    stamp: Vec<(RelPath, i64)>,
    fetch: Vec<(RelPath, Entry)>,
    removed_remotely: u64,
}

async fn plan(
    session: &Session<'_>,
    remote: &Remote,
    files: &HashMap<RelPath, FileStat>,
    unpushed: &mut Vec<String>,
) -> Result<Plan, OfflineError> {
    let mut plan = Plan::default();
    let old = |path: &RelPath| session.old.as_ref().and_then(|old| old.get(path.as_str()));
    for (path, entry) in remote.index.entries().map(|entry| (entry.path(), entry.to_entry())) {
        let Some(stat) = files.get(&path) else {
            plan.fetch.push((path, entry));
            continue;
        };
        let mut local = Local::new(&session.cache, &path, *stat);
        let relation = local.relation(old(&path).as_ref(), Some(&entry)).await;
        match disk(relation, "read", &session.cache.path_of(&path))? {
            Relation::Same => match entry.mtime_nanos() {
                Some(at) if timestamp::format_nanos(at) != local.mtime() => plan.stamp.push((path, at)),
                _ => {}
            },
            Relation::Stale => {
                plan.remove.push(path.clone());
                plan.fetch.push((path, entry));
            }
            Relation::Edited => unpushed.push(path.to_string()),
            _ => {
                plan.set_aside.push(path.clone());
                plan.fetch.push((path, entry));
            }
        }
    }
    let directories: std::collections::HashSet<&str> =
        plan.fetch.iter().flat_map(|(path, _)| path.ancestors()).collect();
    for (path, stat) in files {
        if remote.index.find(path.as_str()).is_some() && !directories.contains(path.as_str()) {
            continue;
        }
        let mut local = Local::new(&session.cache, path, *stat);
        let relation = local.relation(old(path).as_ref(), None).await;
        match disk(relation, "read", &session.cache.path_of(path))? {
            Relation::StaleRemoved => {
                plan.remove.push(path.clone());
                plan.removed_remotely += 1;
            }
            // A file that has the name of a directory there.
            _ if directories.contains(path.as_str()) => plan.set_aside.push(path.clone()),
            _ => unpushed.push(path.to_string()),
        }
    }
    unpushed.sort_unstable();
    Ok(plan)
}

/// One attempt; gives the files that could not be fetched.
async fn pull_towards(
    store: &dyn ObjectStore,
    session: &Session<'_>,
    remote: &Remote,
    progress: &dyn Progress,
    report: &mut PullReport,
) -> Result<Vec<(String, String)>, OfflineError> {
    let cache = &session.cache;
    let walk = disk(cache.walk(), "look through", cache.path())?;
    let files: HashMap<RelPath, FileStat> = walk.files.into_iter().collect();
    report.unpushed.clear();
    let plan = plan(session, remote, &files, &mut report.unpushed).await?;

    session.mark_lazy()?;
    let now = timestamp::now_nanos();
    let mut aside: HashMap<RelPath, RelPath> = HashMap::new();
    for path in &plan.set_aside {
        let taken = |name: &RelPath| files.contains_key(name) || remote.index.names(name.as_str());
        let name = conflict_name(path, &session.options.host, now, taken);
        disk(cache.rename_to_free(path, &name), "set aside", &session.cache.path_of(path))?;
        aside.insert(path.clone(), name);
    }
    for path in &plan.remove {
        disk(cache.remove_file(path), "remove", &session.cache.path_of(path))?;
    }
    report.removed += plan.removed_remotely;
    session.store_copy(remote)?;
    for (path, at) in &plan.stamp {
        disk(cache.set_mtime(path, *at), "stamp", &session.cache.path_of(path))?;
    }

    progress.total(plan.fetch.len() as u64, plan.fetch.iter().map(|(_, entry)| entry.size).sum());
    let mut failed = Vec::new();
    let mut fetches = stream::iter(plan.fetch)
        .map(|(path, entry)| async move { (download(store, cache, &path, &entry).await, path) })
        .buffer_unordered(session.options.concurrency.max(1));
    while let Some((result, path)) = fetches.next().await {
        match result {
            Ok(done) => {
                report.downloaded += 1;
                report.bytes += done.size;
                progress.done(path.as_str(), done.size);
                if let Some(name) = aside.remove(&path) {
                    keep_or_drop(session, &name, &done.sha256, report).await?;
                }
            }
            Err(reason) => failed.push((path.to_string(), reason)),
        }
    }
    for name in aside.into_values() {
        report.conflicts.push(name.to_string());
        report.unpushed.push(name.to_string());
    }
    failed.sort_unstable();
    Ok(failed)
}

/// Keeps our version of a file that was set aside, unless it turned out to be what the datastore has.
async fn keep_or_drop(
    session: &Session<'_>,
    name: &RelPath,
    fetched: &str,
    report: &mut PullReport,
) -> Result<(), OfflineError> {
    let full = session.cache.path_of(name);
    let Some(stat) = disk(session.cache.stat(name), "look at", &full)? else { return Ok(()) };
    let mut ours = Local::new(&session.cache, name, stat);
    if disk(ours.digests().await, "read", &full)?.sha256 == fetched {
        disk(session.cache.remove_file(name), "remove", &full)?;
        return Ok(());
    }
    tracing::warn!(file = %full.display(), "both sides changed a file; the local version is kept under this name");
    report.conflicts.push(name.to_string());
    report.unpushed.push(name.to_string());
    Ok(())
}
