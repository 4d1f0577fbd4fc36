//! What a push has to do, decided from the local files, the copy of the index they came from, and the index of the bucket.
//!
//! Depends on `datastore`. Invariants: an old version is never planned over a new one; a removal needs a mark that names
//! it, the entry in our copy of the index, and the same entry in the bucket; a lazily filled cache removes nothing.

use std::collections::{HashMap, HashSet};

use super::local::{Local, Relation};
use super::session::{Remote, Session};
use super::{OfflineError, disk};
use crate::datastore::cache_dir::{FileStat, Walk};
use crate::datastore::sidecar::Marks;
use crate::datastore::{Entry, Index, RelPath};
use crate::store::ObjectStore;
use crate::sync::base::holds_bytes;

/// A file to upload.
#[derive(Clone, Debug)]
pub(super) struct Put {
    /// Where it lies.
    pub path: RelPath,
    /// As it was when it was compared.
    pub stat: FileStat,
    /// The entry that it replaces; `None` for a new name.
    pub base: Option<Entry>,
}

/// What has to happen.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub puts: Vec<Put>,
    /// Changed on both sides: to be pushed under another name.
    pub conflicts: Vec<RelPath>,
    /// Found to be what the datastore has by comparing the bytes.
    pub identical: HashSet<RelPath>,
    pub removals: Vec<(RelPath, Entry)>,
    /// Cannot be pushed, with the reason; nothing is lost, they stay here.
    pub skipped: Vec<(String, String)>,
    /// Whether a skipped file is one that should have been pushed.
    pub blocked: bool,
}

impl Plan {
    /// Whether the bucket has to be written.
    pub fn has_work(&self) -> bool {
        !self.puts.is_empty() || !self.conflicts.is_empty() || !self.removals.is_empty()
    }
}

/// Compares everything.
pub(super) async fn plan(
    store: &dyn ObjectStore,
    session: &Session<'_>,
    remote: &Remote,
    walk: Walk,
) -> Result<Plan, OfflineError> {
    let mut plan = Plan { skipped: walk.skipped, ..Plan::default() };
    let files: HashMap<RelPath, FileStat> = walk.files.iter().cloned().collect();
    let marks = marks(session);
    plan.removals = removals(marks.as_ref(), session.old.as_ref(), &remote.index, &files);
    let removed: HashSet<&str> = plan.removals.iter().map(|(path, _)| path.as_str()).collect();
    let is_kept_file = |path: &str| remote.index.find(path).is_some() && !removed.contains(path);
    let kept = remote.index.entries().map(|entry| entry.path()).filter(|path| !removed.contains(path.as_str()));
    let mut directories: HashSet<String> = HashSet::new();
    for path in kept {
        directories.extend(
            path.ancestors().take_while(|above| !directories.contains(*above)).map(str::to_owned).collect::<Vec<_>>(),
        );
    }
    let mut skipped = Vec::new();
    for (path, stat) in &walk.files {
        let old = session.old.as_ref().and_then(|old| old.get(path.as_str()));
        let entry = remote.index.get(path.as_str());
        let mut local = Local::new(&session.cache, path, *stat);
        let full = session.cache.path_of(path);
        let put = |base: Option<&Entry>| Put { path: path.clone(), stat: *stat, base: base.cloned() };
        match disk(local.relation(old.as_ref(), entry.as_ref()).await, "read", &full)? {
            // Old versions are dropped at the end, before a newer copy of the index lies beside them.
            Relation::Same | Relation::Stale | Relation::StaleRemoved => {}
            Relation::Edited => plan.puts.push(put(entry.as_ref())),
            Relation::New | Relation::EditedRemoved => {
                if directories.contains(path.as_str()) {
                    skipped
                        .push((path.to_string(), "the datastore has a directory of that name; rename the file".into()));
                } else if let Some(file) = path.ancestors().find(|above| is_kept_file(above)) {
                    let reason = format!("the datastore has a file {file:?}; remove it there, or rename the directory");
                    skipped.push((path.to_string(), reason));
                } else {
                    plan.puts.push(put(None));
                }
            }
            Relation::Both => {
                if is_same_object(store, &mut local).await? {
                    // With the entry's time, everybody sees at a glance what we had to compare for.
                    if let Some(at) = entry.as_ref().and_then(Entry::mtime_nanos) {
                        disk(session.cache.set_mtime(path, at), "stamp", &full)?;
                    }
                    plan.identical.insert(path.clone());
                } else {
                    plan.conflicts.push(path.clone());
                }
            }
        }
    }
    plan.blocked = !skipped.is_empty();
    plan.skipped.extend(skipped);
    Ok(plan)
}

/// Whether the datastore's object has a local file's bytes, whatever the entries say.
async fn is_same_object(store: &dyn ObjectStore, local: &mut Local<'_>) -> Result<bool, OfflineError> {
    let path = local.path.clone();
    let full = local.cache.path_of(&path);
    let info = match store.head(path.as_str()).await {
        Ok(info) => info,
        Err(error) if error.is_not_found() => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    if info.size != local.stat.size {
        return Ok(false);
    }
    let digests = disk(local.digests().await, "read", &full)?;
    Ok(holds_bytes(store, path.as_str(), &info, digests).await?)
}

/// The sidecar's marks that say what was removed; their paths as the index has them. With a namespace a mark counts only
/// below its directory: another one may be about something else.
fn marks(session: &Session<'_>) -> Option<Marks> {
    let mut marks = session.sidecar.as_ref()?.marks.clone().filter(|marks| !marks.lazy_pull_active)?;
    if let Some(namespace) = session.cache.namespace() {
        let inside = marks.dirty_paths.iter().filter_map(|path| namespace.strip(path));
        marks.dirty_paths = inside.filter(|path| !path.is_empty()).map(str::to_owned).collect();
    }
    Some(marks)
}

/// Entries to remove: marked in the sidecar, absent here, known to our copy of the index, and unchanged in the bucket.
fn removals(
    marks: Option<&Marks>,
    old: Option<&Index>,
    remote: &Index,
    files: &HashMap<RelPath, FileStat>,
) -> Vec<(RelPath, Entry)> {
    let (Some(marks), Some(old)) = (marks, old) else { return Vec::new() };
    if marks.dirty_paths.is_empty() && !marks.dirty_paths_overflowed {
        return Vec::new();
    }
    let marked: Vec<&str> = marks.dirty_paths.iter().map(|path| path.trim_end_matches('/')).collect();
    let exact: HashSet<&str> = marked.iter().copied().collect();
    let below_mark = |path: &RelPath| path.ancestors().any(|above| exact.contains(above));
    let absent = old.entries().map(|entry| (entry.path(), entry)).filter(|(path, _)| !files.contains_key(path));
    let absent: Vec<(RelPath, Entry)> = absent.map(|(path, entry)| (path, entry.to_entry())).collect();
    // Files that are missing although nobody marked them: this cache was never complete, or lost files some other way. Then
    // only what is marked by its own name was removed for certain.
    let complete = !files.is_empty()
        && (marks.dirty_paths_overflowed
            || absent.iter().all(|(path, _)| exact.contains(path.as_str()) || below_mark(path)));
    absent
        .into_iter()
        .filter(|(path, _)| {
            exact.contains(path.as_str()) || (complete && (marks.dirty_paths_overflowed || below_mark(path)))
        })
        .filter_map(|(path, seen)| {
            let current = remote.get(path.as_str())?;
            current.same_version(&seen).then_some((path, current))
        })
        .collect()
}
