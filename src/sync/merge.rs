//! Merges our changes into the index of the bucket and writes it, under the lock and with a precondition.
//!
//! Depends on `datastore`. Invariants: only our rows change, everything else of the freshly read index survives; a row
//! never describes an object that is not ours any more; removals apply only to the entry that was removed; the merge is
//! idempotent, so that a lost answer is settled by merging again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use crate::datastore::{
    DatastoreError, Entry, HeldLock, Index, IndexRead, RelPath, WrittenIndex, read_index, rewrite_derived_shards,
    timestamp, write_index,
};
use crate::store::{Fingerprint, ObjectStore, StoreError, StoreErrorKind};

use super::upload::META_UPLOAD_ID;

/// Uploads older than this are looked at again before their entry is written.
const RECHECK_AFTER: Duration = Duration::from_secs(5);
/// How often other writers may be faster.
const ATTEMPTS: u32 = 12;
/// Looks at the same time.
const CONCURRENCY: usize = 16;

/// An object that we uploaded or copied.
#[derive(Clone, Debug)]
pub struct Uploaded {
    /// Its version, as far as known.
    pub fingerprint: Option<Fingerprint>,
    /// Its upload id.
    pub upload_id: String,
    /// When the store confirmed it.
    pub confirmed: Instant,
}

/// What we did to a path.
#[derive(Clone, Debug)]
pub enum Change {
    /// We uploaded its content.
    Put(Entry, Uploaded),
    /// Only fields of its entry change (times, mode); the object stays.
    Fields(Entry),
    /// We removed it.
    Remove,
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
    /// A put: our object was deleted after our upload. It has to be uploaded again.
    ObjectGone,
    /// A removal or a change of fields: the entry is not the one that we saw, and stays.
    KeptTheirs,
}

/// What to do when there is no index object.
#[derive(Clone, Debug)]
pub enum MissingIndex {
    /// This source had one: stop.
    Refuse,
    /// It is a new bucket, or a discovered one: begin with this.
    StartFrom(Box<Index>),
}

/// An index that holds our changes.
#[derive(Clone, Debug)]
pub struct Committed {
    /// What the index says.
    pub index: Index,
    /// Its bytes, as they are in the bucket.
    pub bytes: Bytes,
    /// Its fingerprint: from our PUT, or from the GET of these bytes.
    pub fingerprint: Option<Fingerprint>,
    /// When it was written, by the store's clock.
    pub written_at: Option<time::OffsetDateTime>,
    /// Of each row, in order.
    pub outcomes: Vec<RowOutcome>,
    /// Whether the index had to be written.
    pub wrote: bool,
}

/// Merges rows into the index of the bucket. Derived shards are brought up to date before the index, so that a failure
/// there is repeated together with the rows.
///
/// # Errors
/// Nothing is half done: repeating it with the same rows is safe.
pub async fn commit(
    store: &dyn ObjectStore,
    lock: &HeldLock,
    rows: &[Row],
    missing: &MissingIndex,
    unconditional: bool,
) -> Result<Committed, DatastoreError> {
    let mut checked: HashMap<usize, (Instant, ObjectState)> = HashMap::new();
    let mut undecided = false;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            sleep(Duration::from_millis(fastrand::u64(20..=200) * u64::from(attempt))).await;
        }
        let (mut index, there) = match (read_index(store, None).await?, missing) {
            (IndexRead::Present(read), _) => (read.index.clone(), Some(read)),
            (_, MissingIndex::StartFrom(index)) => (Index::clone(index), None),
            (_, MissingIndex::Refuse) => return Err(DatastoreError::IndexVanished),
        };
        recheck(store, rows, &index, &mut checked).await?;
        let directories = directories_among(rows, &index);
        let mut changed = Vec::new();
        let outcomes: Vec<RowOutcome> = rows
            .iter()
            .enumerate()
            .map(|(at, row)| match &row.change {
                Change::Put(..) if directories.contains(row.path.as_str()) => RowOutcome::Superseded,
                _ => apply(&mut index, row, checked.get(&at).map(|(_, state)| *state), &mut changed),
            })
            .collect();
        if let Some(read) = &there
            && changed.is_empty()
            && !read.index.was_scrubbed()
        {
            let (bytes, fingerprint) = (read.bytes.clone(), read.fingerprint.clone());
            let written_at = read.written_at;
            return Ok(Committed { index, bytes, fingerprint, written_at, outcomes, wrote: undecided });
        }
        rewrite_derived_shards(store, lock, &changed).await?;
        index.set_last_pulled(&timestamp::format_nanos(timestamp::now_nanos()));
        let replaces = there.as_ref().and_then(|read| read.fingerprint.as_ref());
        match write_index(store, lock, &index, replaces, unconditional).await {
            Ok(written) => {
                let WrittenIndex { bytes, fingerprint, written_at } = written;
                return Ok(Committed { index, bytes, fingerprint, written_at, outcomes, wrote: true });
            }
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
    let new: HashSet<&str> = rows.iter().filter(is_new).map(|row| row.path.as_str()).collect();
    let removed: HashSet<&str> =
        rows.iter().filter(|row| matches!(row.change, Change::Remove)).map(|row| row.path.as_str()).collect();
    let mut found = HashSet::new();
    if new.is_empty() {
        return found;
    }
    for (path, _) in index.entries().filter(|(path, _)| !removed.contains(path.as_str())) {
        let above = path.as_str().match_indices('/').map(|(at, _)| &path.as_str()[..at]);
        found.extend(above.filter(|dir| new.contains(dir)).map(str::to_owned));
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
        let Change::Put(entry, uploaded) = &row.change else { continue };
        let confirmed = checked.get(&at).map_or(uploaded.confirmed, |(when, _)| *when);
        let current = index.get(row.path.as_str());
        let expected = match (current, &row.base) {
            (Some(current), Some(base)) => current.same_version(base) || current == entry,
            (Some(current), None) => current == entry,
            (None, base) => base.is_none(),
        };
        if !expected || confirmed.elapsed() > RECHECK_AFTER {
            doubtful.push((at, row.path.to_string(), uploaded.clone()));
        }
    }
    let states: Vec<_> = stream::iter(doubtful)
        .map(|(at, key, uploaded)| async move {
            let when = Instant::now();
            let state = match store.head(&key).await {
                Ok(info) if info.metadata.get(META_UPLOAD_ID) == Some(&uploaded.upload_id) => ObjectState::Ours,
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

fn apply(
    index: &mut Index,
    row: &Row,
    state: Option<ObjectState>,
    changed: &mut Vec<(RelPath, Option<Entry>)>,
) -> RowOutcome {
    let current = index.get(row.path.as_str());
    let as_seen = match (current, &row.base) {
        (Some(current), Some(base)) => current.same_version(base),
        (None, None) => true,
        _ => false,
    };
    match &row.change {
        Change::Put(..) if state == Some(ObjectState::Theirs) => RowOutcome::Superseded,
        Change::Put(..) if state == Some(ObjectState::Gone) => RowOutcome::ObjectGone,
        Change::Put(entry, _) | Change::Fields(entry) if current == Some(entry) => RowOutcome::Applied,
        Change::Fields(_) if !as_seen => RowOutcome::KeptTheirs,
        Change::Put(entry, _) | Change::Fields(entry) => {
            index.set(&row.path, entry.clone());
            changed.push((row.path.clone(), Some(entry.clone())));
            RowOutcome::Applied
        }
        Change::Remove if current.is_none() => RowOutcome::Applied,
        Change::Remove if !as_seen => RowOutcome::KeptTheirs,
        Change::Remove => {
            index.remove(row.path.as_str());
            changed.push((row.path.clone(), None));
            RowOutcome::Applied
        }
    }
}
