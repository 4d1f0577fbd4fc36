//! Merges our changes into the index of the bucket and writes it, under the lock and with a precondition.
//!
//! Depends on `datastore`. Invariants: only our rows change, everything else of the freshly read index survives; a row
//! never describes an object that is not ours any more; removals apply only to the entry that was removed; the merge is
//! idempotent, so that a lost answer is settled by merging again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use crate::datastore::{
    DatastoreError, Edits, Entry, Index, IndexRead, RelPath, RemoteIndex, Seen, Writer, read_for_commit, write_index,
};
use crate::store::{Fingerprint, ObjectInfo, ObjectStore, StoreError, StoreErrorKind};

use super::upload::{META_UPLOAD_ID, is_of_change};

/// Uploads older than this are looked at again before their entry is written.
const RECHECK_AFTER: Duration = Duration::from_secs(5);
/// How often other writers may be faster.
const ATTEMPTS: u32 = 12;
/// Looks at the same time.
const CONCURRENCY: usize = 16;

/// An object that we uploaded or copied.
#[derive(Clone, Debug, Default)]
pub struct Uploaded {
    /// Its version, as far as known.
    pub fingerprint: Option<Fingerprint>,
    /// Its upload id.
    pub upload_id: String,
    /// When the store confirmed it; `None`: long ago, or nobody knows.
    pub confirmed: Option<Instant>,
}

/// What we did to a path.
#[derive(Clone, Debug)]
pub enum Change {
    /// We uploaded its content.
    Put(Entry, Uploaded),
    /// Only fields of its entry change (times, mode); the object stays.
    Fields(Entry),
    /// We wrote it, with the bytes that its object has: the same, but an edit, which a removal does not take away.
    Rewritten(Entry),
    /// An entry of ours that a writer with an old view dropped: it comes back if the object is still the one that it
    /// describes.
    Restore(Entry, Uploaded),
    /// We removed it.
    Remove {
        /// What may lie under the name: the version that we saw, if an answer ever carried it, or what pushes of ours that
        /// ended halfway left there.
        /// Whoever replaces an entry by one of other bytes replaces its object first: while that is this one, such an entry
        /// comes from an old view.
        left: Uploaded,
    },
}

/// One change of ours.
#[derive(Clone, Debug)]
pub struct Row {
    /// Which file.
    pub path: RelPath,
    /// What we did.
    pub change: Change,
    /// The entry that we saw when we did it.
    pub base: Option<Entry>,
}

/// What became of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOutcome {
    /// The index says so now.
    Applied,
    /// A put: another writer replaced our object after our upload. Theirs keeps the name, ours has to be pushed under a
    /// conflict name.
    Superseded,
    /// Something that we wrote: its object was deleted after our upload, or others removed it. It has to be uploaded (again).
    ObjectGone,
    /// A removal, a change of fields or a restored entry: what the bucket has is not what we saw, and stays.
    KeptTheirs,
}

/// The index as this machine last saw it: what need not be read again, and what to begin with where there is none.
#[derive(Clone, Debug)]
pub struct Known {
    /// What it said.
    pub index: Index,
    /// Whether the bucket had it; otherwise it is a new bucket, or a discovered one, and a commit begins with `index`.
    pub seen: Seen,
}

/// An index that holds our changes.
#[derive(Clone, Debug)]
pub struct Committed {
    /// What the index says, as read and written.
    pub remote: RemoteIndex,
    /// Of each row, in order.
    pub outcomes: Vec<RowOutcome>,
    /// Whether the index had to be written.
    pub wrote: bool,
}

/// Merges rows into the index of the bucket.
///
/// `also` are keys whose entries the caller will look at in the committed index, besides those of the rows.
///
/// # Errors
/// Nothing is half done: repeating it with the same rows is safe.
pub async fn commit(
    writer: Writer<'_>,
    rows: &[Row],
    also: &[String],
    known: &Known,
) -> Result<Committed, DatastoreError> {
    let mut checked: HashMap<usize, (Instant, ObjectState)> = HashMap::new();
    let mut undecided = false;
    let paths: Vec<String> = rows.iter().map(|row| row.path.to_string()).chain(also.iter().cloned()).collect();
    let mut known = known.clone();
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(Duration::from_millis(fastrand::u64(20..=200) * u64::from(attempt))).await;
        }
        let (read, exists) = match read_for_commit(writer.store, &known.index, known.seen, &paths).await? {
            IndexRead::Present(read) => (read, true),
            _ if known.seen == Seen::Never => {
                (RemoteIndex { index: known.index.clone(), fresh: Default::default() }, false)
            }
            _ => return Err(DatastoreError::IndexVanished),
        };
        recheck(writer.store, rows, &read.index, &mut checked).await?;
        let mut index = read.index.clone();
        let directories = directories_among(rows, &index);
        let mut edits = Edits::default();
        let mut outcomes = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            let outcome = match &row.change {
                Change::Put(..) if directories.contains(row.path.as_str()) => RowOutcome::Superseded,
                _ => apply(&mut index, row, checked.get(&at).map(|(_, state)| *state), &mut edits),
            };
            if outcome == RowOutcome::Applied {
                edits.applied.push(row.path.clone());
            }
            outcomes.push(outcome);
        }
        if exists && !edits.must_be_written(&read) {
            return Ok(Committed { remote: read, outcomes, wrote: undecided });
        }
        if exists {
            // What was read now need not be read again if another writer is faster.
            known = Known { index: read.index.clone(), seen: Seen::Index(read.index.layout()) };
        }
        match write_index(writer, read, index, &edits).boxed().await {
            Ok(remote) => return Ok(Committed { remote, outcomes, wrote: true }),
            Err(DatastoreError::Changed) => {}
            Err(DatastoreError::Store(error)) if error.kind == StoreErrorKind::Undecided => undecided = true,
            Err(error) => return Err(error),
        }
    }
    Err(DatastoreError::Changed)
}

/// New files of ours whose name is that of a directory by now, because of what others put below it: both cannot be shown.
fn directories_among(rows: &[Row], index: &Index) -> HashSet<String> {
    let is_new = |row: &&Row| row.base.is_none() && matches!(row.change, Change::Put(..));
    let paths = rows.iter().filter(is_new).map(|row| row.path.as_str());
    let new: HashSet<&str> = paths.filter(|path| index.is_directory(path)).collect();
    let mut found = HashSet::new();
    if new.is_empty() {
        return found;
    }
    let removed: HashSet<&str> =
        rows.iter().filter(|row| matches!(row.change, Change::Remove { .. })).map(|row| row.path.as_str()).collect();
    for path in index.entries().map(|entry| entry.path()).filter(|path| !removed.contains(path.as_str())) {
        found.extend(path.ancestors().filter(|directory| new.contains(directory)).map(str::to_owned));
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ObjectState {
    Ours,
    Theirs,
    Gone,
}

/// Looks again at objects that were uploaded a while ago, or whose entry somebody else changed.
async fn recheck(
    store: &dyn ObjectStore,
    rows: &[Row],
    index: &Index,
    checked: &mut HashMap<usize, (Instant, ObjectState)>,
) -> Result<(), StoreError> {
    let mut doubtful: Vec<(usize, String, Uploaded)> = Vec::new();
    for (at, row) in rows.iter().enumerate() {
        let current = index.get(row.path.as_str());
        let (entry, uploaded) = match &row.change {
            Change::Put(entry, uploaded) | Change::Restore(entry, uploaded) => (entry, uploaded),
            Change::Remove { left } => {
                if is_of_other_bytes(current.as_ref(), row) {
                    doubtful.push((at, row.path.to_string(), left.clone()));
                }
                continue;
            }
            _ => continue,
        };
        let confirmed = checked.get(&at).map_or(uploaded.confirmed, |(when, _)| Some(*when));
        let expected = match (&current, &row.base) {
            (Some(current), Some(base)) => current.same_version(base) || current == entry,
            (Some(current), None) => current == entry,
            (None, base) => base.is_none(),
        };
        if !expected || confirmed.is_none_or(|at| at.elapsed() > RECHECK_AFTER) {
            doubtful.push((at, row.path.to_string(), uploaded.clone()));
        }
    }
    let states: Vec<_> = stream::iter(doubtful)
        .map(|(at, key, uploaded)| async move {
            let when = Instant::now();
            let is_ours = |info: &ObjectInfo| match rows[at].change {
                Change::Remove { .. } => is_of_change(info, &uploaded.upload_id),
                _ => info.metadata.get(META_UPLOAD_ID) == Some(&uploaded.upload_id),
            };
            let state = match store.head(&key).await {
                Ok(info) if is_ours(&info) => ObjectState::Ours,
                Ok(info) if info.fingerprint.is_some() && info.fingerprint == uploaded.fingerprint => ObjectState::Ours,
                Ok(_) => ObjectState::Theirs,
                Err(error) if error.is_not_found() => ObjectState::Gone,
                Err(error) => return Err(error),
            };
            Ok((at, (when, state)))
        })
        .buffer_unordered(CONCURRENCY)
        .try_collect()
        .await?;
    checked.extend(states);
    Ok(())
}

/// Whether the entry is the one that we saw.
fn is_as_seen(current: Option<&Entry>, row: &Row) -> bool {
    match (current, &row.base) {
        (Some(current), Some(base)) => current.same_version(base),
        (None, None) => true,
        _ => false,
    }
}

/// Whether there is an entry, and of other bytes than the one that we saw.
fn is_of_other_bytes(current: Option<&Entry>, row: &Row) -> bool {
    current.is_some_and(|current| row.base.as_ref().is_none_or(|base| !current.same_bytes(base)))
}

fn apply(index: &mut Index, row: &Row, state: Option<ObjectState>, edits: &mut Edits) -> RowOutcome {
    let current = index.get(row.path.as_str());
    let as_seen = is_as_seen(current.as_ref(), row);
    match &row.change {
        Change::Put(..) if state == Some(ObjectState::Theirs) => RowOutcome::Superseded,
        Change::Put(..) if state == Some(ObjectState::Gone) => RowOutcome::ObjectGone,
        Change::Rewritten(_) if current.is_none() => RowOutcome::ObjectGone,
        Change::Put(entry, _) | Change::Fields(entry) | Change::Rewritten(entry) | Change::Restore(entry, _)
            if current.as_ref() == Some(entry) =>
        {
            RowOutcome::Applied
        }
        Change::Restore(..) if state != Some(ObjectState::Ours) => RowOutcome::KeptTheirs,
        // The object is ours: whatever the index says of other bytes comes from an old view.
        Change::Restore(entry, _) if !as_seen && current.as_ref().is_some_and(|c| c.same_bytes(entry)) => {
            RowOutcome::KeptTheirs
        }
        Change::Fields(_) | Change::Rewritten(_) if !as_seen => RowOutcome::KeptTheirs,
        Change::Put(entry, _) | Change::Fields(entry) | Change::Rewritten(entry) | Change::Restore(entry, _) => {
            index.set(&row.path, entry);
            edits.changed.push((row.path.clone(), Some(entry.clone())));
            RowOutcome::Applied
        }
        Change::Remove { .. } if current.is_none() => RowOutcome::Applied,
        Change::Remove { .. } if !as_seen && state != Some(ObjectState::Ours) => RowOutcome::KeptTheirs,
        Change::Remove { .. } => {
            index.remove(row.path.as_str());
            edits.changed.push((row.path.clone(), None));
            RowOutcome::Applied
        }
    }
}
