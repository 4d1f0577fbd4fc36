//! The two ends of a push: what is to be pushed, and what became of it.
//!
//! Part of the volume; the requests in between are the business of `sync::push`. Invariant: a delta is cleared only when
//! its generation and its content are still what the push saw; otherwise it stays and replaces what was pushed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::delta::Changes;
use super::inner::Inner;
use super::live::LiveContent;
use super::recording::complete_stamp;
use super::writes::Stable;
use super::{Result, Volume, VolumeError};
use crate::cache::rows::{
    CommittedRow, ContentRow, Delta, DeltaRow, Kind, PendingDelete, Replaced, UploadMark, Version,
};
use crate::datastore::RelPath;
use crate::store::Fingerprint;
use crate::tree::Ino;

/// Which changes to push.
#[derive(Clone, Copy, Debug)]
pub enum PushSelection {
    /// All.
    Everything,
    /// Those that were left alone for a while, or wait for long.
    Idle {
        /// Without a change for so long.
        quiet: Duration,
        /// Or changed first so long ago.
        max_age: Duration,
    },
}

/// A file to put into the bucket.
#[derive(Clone, Debug)]
pub struct PlannedPut {
    /// The file.
    pub ino: Ino,
    /// The same bytes in the bucket, if they are there; with `suspect` only perhaps.
    pub origin: Option<Version>,
    /// The content must be compared with `origin` first.
    pub suspect: bool,
    /// Git mode for the entry.
    pub mode: Option<&'static str>,
    /// Modification time, ns since the epoch.
    pub mtime: i64,
}

/// One change to push.
#[derive(Clone, Debug)]
pub struct PlannedRow {
    /// Where.
    pub path: RelPath,
    /// Its generation when planned.
    pub generation: u64,
    /// What it replaces in the bucket.
    pub replaces: Option<Replaced>,
    /// An upload that an earlier push began.
    pub upload: Option<UploadMark>,
    /// The file; `None`: a removal.
    pub put: Option<PlannedPut>,
}

/// A snapshot of what is to be pushed.
#[derive(Clone, Debug, Default)]
pub struct PushPlan {
    /// Changes.
    pub rows: Vec<PlannedRow>,
    /// Objects to delete.
    pub deletes: Vec<(String, PendingDelete)>,
}

impl PushPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.deletes.is_empty()
    }
}

/// What a push made of a change.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The index has this entry for it now.
    Put(Version),
    /// The index has no entry for it any more.
    Removed {
        /// The version of its object, to be deleted.
        version: Option<Fingerprint>,
    },
    /// The remote version stays; our change (a removal, or of attributes only) is dropped.
    Superseded,
    /// Our change is dropped, and the index has this entry now, of what an earlier push of ours had left under the name.
    Described(Version),
    /// The remote version keeps the name; ours goes on under another one, still to be pushed.
    Conflict(RelPath),
}

/// One change after its push.
#[derive(Debug)]
pub struct Settled {
    /// Where.
    pub path: RelPath,
    /// The generation that was pushed.
    pub generation: u64,
    /// The content that was uploaded, if somebody had it open, and when it was read.
    pub read: Option<(Arc<LiveContent>, Stable)>,
    /// Where its object was copied from.
    pub copied: Option<Version>,
    /// What became of it.
    pub outcome: Outcome,
}

/// Whether a push left the object as it was and changed its entry at most.
fn same_object(before: &Version, after: &Version) -> bool {
    match (&before.entry.sha256, &after.entry.sha256) {
        (Some(before), Some(after)) => before == after,
        _ => before.fingerprint.is_some() && before.fingerprint == after.fingerprint,
    }
}

impl Volume {
    /// Snapshot of what is to be pushed. Whatever copies from an object is planned with whatever changes that object.
    pub fn plan_push(&self, selection: PushSelection) -> PushPlan {
        let inner = self.lock();
        let now = Instant::now();
        let due = |path: &str, row: &DeltaRow| match selection {
            PushSelection::Everything => true,
            PushSelection::Idle { quiet, max_age } => {
                let stamp = inner.stamps.get(path);
                let written = self.live_of(&inner, path, row).and_then(|live| live.last_write());
                let last = stamp.map(|s| s.last).into_iter().chain(written).max();
                last.is_none_or(|at| now.duration_since(at) >= quiet)
                    || stamp.is_some_and(|s| now.duration_since(s.first) >= max_age)
            }
        };
        let mut chosen: Vec<&String> = Vec::new();
        let mut rest: Vec<(&String, &DeltaRow)> = Vec::new();
        for (path, row) in &inner.deltas {
            if self.needs_push(&inner, path, row) {
                if due(path, row) { chosen.push(path) } else { rest.push((path, row)) }
            }
        }
        loop {
            let touched: HashSet<&str> = chosen.iter().map(|p| p.as_str()).collect();
            let (dragged, left): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, row)| match &row.delta {
                Delta::Put { origin: Some(origin), .. } => touched.contains(origin.key.as_str()),
                _ => false,
            });
            rest = left;
            if dragged.is_empty() {
                break;
            }
            chosen.extend(dragged.into_iter().map(|(path, _)| path));
        }
        let rows = chosen.into_iter().filter_map(|path| self.planned_row(&inner, path)).collect();
        let deletes = Self::deletable_locked(&inner);
        PushPlan { rows, deletes }
    }

    fn is_being_changed(&self, inner: &Inner, path: &str, row: Option<&DeltaRow>) -> bool {
        row.and_then(|row| self.live_of(inner, path, row)).is_some_and(|live| live.writers() > 0 || live.is_dirty())
    }

    fn live_of(&self, inner: &Inner, path: &str, row: &DeltaRow) -> Option<Arc<LiveContent>> {
        matches!(row.delta, Delta::Put { .. }).then_some(())?;
        let id = inner.tree.get(inner.tree.find(path)?)?.content()?.id?;
        inner.live.get(&id).cloned()
    }

    /// A file that is only open for writing, without a change, has nothing to push.
    pub(super) fn needs_push(&self, inner: &Inner, path: &str, row: &DeltaRow) -> bool {
        let Delta::Put { origin: Some(origin), suspect: true } = &row.delta else { return true };
        match self.live_of(inner, path, row) {
            Some(live) if !live.is_dirty() => {
                let ino = inner.tree.find(path);
                origin.key != path || ino.is_some_and(|ino| self.attributes_differ(inner, ino, Some(&origin.entry)))
            }
            _ => true,
        }
    }

    fn planned_row(&self, inner: &Inner, path: &str) -> Option<PlannedRow> {
        let row = inner.deltas.get(path)?;
        let put = match &row.delta {
            Delta::Remove => None,
            Delta::Put { origin, suspect } => {
                let ino = inner.tree.find(path)?;
                let stat = self.stat_locked(inner, ino).ok()?;
                let live = self.live_of(inner, path, row);
                let dirty = live.as_ref().is_some_and(|l| l.is_dirty());
                let mode = match stat.kind {
                    Kind::Symlink => Some("120000"),
                    Kind::File if stat.perm & 0o100 != 0 => Some("100755"),
                    _ => None,
                };
                Some(PlannedPut {
                    ino,
                    origin: if dirty { None } else { inner.version_of(ino).or_else(|| origin.clone()) },
                    suspect: *suspect && !dirty && live.is_none(),
                    mode,
                    mtime: stat.mtime,
                })
            }
        };
        Some(PlannedRow {
            path: RelPath::parse(path).ok()?,
            generation: row.generation,
            replaces: row.replaces.clone(),
            upload: row.upload.clone(),
            put,
        })
    }

    /// Opens the content of a planned file for reading; close it with [`Volume::close_pushed`].
    ///
    /// # Errors
    /// `Stale` when the row changed since, disk errors.
    pub fn open_for_push(&self, row: &PlannedRow, ino: Ino) -> Result<Arc<LiveContent>> {
        let mut inner = self.lock();
        if inner.deltas.get(row.path.as_str()).is_none_or(|now| now.generation != row.generation) {
            return Err(VolumeError::Stale);
        }
        let live = self.live_for(&mut inner, ino)?;
        live.add_handle();
        inner.tree.count_open(ino, 1);
        Ok(live)
    }

    /// Ends [`Volume::open_for_push`].
    pub fn close_pushed(&self, live: &Arc<LiveContent>) {
        let mut inner = self.lock();
        live.drop_handle();
        if live.handles() == 0 {
            self.retire(&mut inner, live.ino, live);
        }
        inner.tree.count_open(live.ino, -1);
    }

    /// Records that an upload begins. `false`: the change is not what it was; do not upload.
    ///
    /// # Errors
    /// Disk errors.
    pub fn mark_upload(&self, path: &RelPath, generation: u64, mark: &UploadMark) -> Result<bool> {
        let mut inner = self.lock();
        let Some(row) = inner.deltas.get(path.as_str()).filter(|row| row.generation == generation) else {
            return Ok(false);
        };
        let row = DeltaRow { upload: Some(mark.clone()), ..row.clone() };
        let stamp = inner.stamps.get(path.as_str()).copied();
        let mut changes = Changes::default();
        changes.delta(path.as_str(), Some(row));
        inner.commit(changes)?;
        if let Some(stamp) = stamp {
            inner.stamps.insert(path.to_string(), stamp);
        }
        Ok(true)
    }

    /// Remembers an object to delete later.
    ///
    /// # Errors
    /// Disk errors.
    pub fn set_pending_delete(&self, key: &str, row: Option<PendingDelete>) -> Result<()> {
        let mut changes = Changes::default();
        changes.pending_delete(key, row);
        self.lock().commit(changes)
    }

    /// Row changes for one settled change. Runs before the new base is applied.
    pub(super) fn settle_row(&self, inner: &mut Inner, settled: &Settled, changes: &mut Changes) -> Result<()> {
        let path = settled.path.as_str();
        let row = inner.deltas.get(path).cloned();
        let same = row.as_ref().is_some_and(|row| row.generation == settled.generation);
        if let Outcome::Put(version) | Outcome::Described(version) = &settled.outcome {
            let before = row.as_ref().and_then(|row| row.replaces.as_ref());
            let commit = CommittedRow::new(Some(version), before.map(|before| &before.entry));
            changes.remember_commit(&inner.committed, path, commit);
        }
        match &settled.outcome {
            Outcome::Put(version) => {
                let unchanged = settled.read.as_ref().is_none_or(|(live, stable)| live.unchanged_since(*stable));
                let replaced = Replaced { entry: version.entry.clone(), fingerprint: version.fingerprint.clone() };
                changes.pending_delete(path, None);
                match row {
                    Some(row) if same && unchanged => {
                        if let Some((live, stable)) = &settled.read {
                            changes.carried(live, *stable);
                        }
                        self.settle_put(inner, path, row, version, replaced, changes)?;
                    }
                    Some(row) => {
                        // What was written since waits from now on, and the bytes it began with are replaced.
                        inner.stamps.remove(path);
                        let copied = |old: &Version| {
                            settled.copied.as_ref().is_some_and(|from| from.key == old.key && from.entry == old.entry)
                        };
                        let delta = match row.delta {
                            // The bytes lie under this name now; where they were, there may be others.
                            Delta::Put { origin: Some(old), suspect } if copied(&old) => {
                                Delta::Put { origin: Some(version.clone()), suspect }
                            }
                            Delta::Put { origin: Some(old), .. } if old.key == path && !same_object(&old, version) => {
                                Delta::Put { origin: None, suspect: false }
                            }
                            delta => delta,
                        };
                        changes.delta(path, Some(DeltaRow { delta, replaces: Some(replaced), upload: None, ..row }));
                    }
                    None => {
                        // Removed here while it was on its way.
                        let generation = inner.new_generation();
                        let delta = Delta::Remove;
                        changes
                            .delta(path, Some(DeltaRow { generation, delta, replaces: Some(replaced), upload: None }));
                    }
                }
            }
            // What is being written meanwhile must not go with an attribute: it stays, and meets the conflict rule.
            Outcome::Superseded | Outcome::Described(_)
                if same && !self.is_being_changed(inner, path, row.as_ref()) =>
            {
                changes.delta(path, None);
            }
            Outcome::Removed { version } => {
                let before = row.as_ref().and_then(|row| row.replaces.as_ref());
                let commit = CommittedRow::new(None, before.map(|before| &before.entry));
                changes.remember_commit(&inner.committed, path, commit);
                Self::remember_deletion(inner, row.as_ref(), path, version.as_ref(), changes);
                if same {
                    changes.delta(path, None);
                } else if let Some(row) = row {
                    changes.delta(path, Some(DeltaRow { replaces: None, upload: None, ..row }));
                }
            }
            Outcome::Superseded | Outcome::Described(_) | Outcome::Conflict(_) => {}
        }
        Ok(())
    }

    /// The entry is gone from the index: the object goes next, also in a version that waits for that already.
    fn remember_deletion(
        inner: &Inner,
        row: Option<&DeltaRow>,
        path: &str,
        version: Option<&Fingerprint>,
        changes: &mut Changes,
    ) {
        let before = inner.pending_deletes.get(path).cloned().unwrap_or(PendingDelete { replaced: None, upload: None });
        let replaced = row.and_then(|r| r.replaces.clone()).filter(|_| version.is_some());
        let replaced = replaced.map(|r| Replaced { fingerprint: version.cloned(), ..r }).or(before.replaced);
        let upload = row.and_then(|r| r.upload.clone()).or(before.upload);
        if replaced.is_some() || upload.is_some() {
            changes.pending_delete(path, Some(PendingDelete { replaced, upload }));
        }
    }

    /// Objects that were copied lie under another key now: what still points to the old one follows.
    pub(super) fn repoint(&self, inner: &Inner, settled: &[Settled], changes: &mut Changes) {
        let mut moved: HashMap<&str, Vec<(&Version, &Version)>> = HashMap::new();
        for one in settled {
            if let (Some(old), Outcome::Put(new)) = (&one.copied, &one.outcome) {
                moved.entry(&old.key).or_default().push((old, new));
            }
        }
        if moved.is_empty() {
            return;
        }
        let target = |v: &Version| {
            moved.get(v.key.as_str())?.iter().find(|(old, _)| old.entry == v.entry).map(|(_, new)| (*new).clone())
        };
        for (path, row) in &inner.deltas {
            if let Delta::Put { origin: Some(origin), suspect } = &row.delta
                && changes.delta_of(path).is_none()
                && let Some(new) = target(origin)
            {
                let delta = Delta::Put { origin: Some(new), suspect: *suspect };
                changes.delta(path, Some(DeltaRow { delta, ..row.clone() }));
            }
        }
        for live in inner.live.values() {
            let new = live.state().version.as_ref().and_then(&target);
            if let Some(new) = new {
                changes.live_version(live, new);
            }
        }
        for (id, row) in &inner.content_rows {
            if changes.content_of(*id).is_none()
                && let Some(new) = row.version.as_ref().and_then(&target)
            {
                changes.content(*id, Some(ContentRow { version: Some(new), ..row.clone() }));
            }
        }
    }

    /// The pending deletion of a key.
    pub fn pending_delete_of(&self, key: &str) -> Option<PendingDelete> {
        self.lock().pending_deletes.get(key).cloned()
    }

    /// Objects that can be deleted now: nobody here reads or copies from them any more.
    pub fn deletable(&self) -> Vec<(String, PendingDelete)> {
        Self::deletable_locked(&self.lock())
    }

    fn deletable_locked(inner: &Inner) -> Vec<(String, PendingDelete)> {
        if inner.pending_deletes.is_empty() {
            return Vec::new();
        }
        let mut needed: HashSet<String> = HashSet::new();
        for row in inner.deltas.values() {
            if let Delta::Put { origin: Some(origin), .. } = &row.delta {
                needed.insert(origin.key.clone());
            }
            needed.extend(row.upload.as_ref().and_then(|mark| mark.key.clone()));
        }
        for live in inner.live.values().filter(|live| live.handles() > 0) {
            let state = live.state();
            needed.extend(state.version.as_ref().filter(|_| !state.complete).map(|v| v.key.clone()));
        }
        let free = inner.pending_deletes.iter().filter(|(key, _)| !needed.contains(*key));
        free.map(|(key, row)| (key.clone(), row.clone())).collect()
    }

    /// Whether all bytes of a file are here.
    pub fn has_local_content(&self, ino: Ino) -> bool {
        self.lock().local_content(ino).is_some()
    }

    fn settle_put(
        &self,
        inner: &mut Inner,
        path: &str,
        row: DeltaRow,
        version: &Version,
        replaced: Replaced,
        changes: &mut Changes,
    ) -> Result<()> {
        let Some(ino) = inner.tree.find(path) else { return Ok(()) };
        let id = inner.tree.get(ino).and_then(|n| n.content()).and_then(|c| c.id);
        let live = id.and_then(|id| inner.live.get(&id)).cloned();
        if let Some(live) = &live {
            changes.live_version(live, version.clone());
        }
        if let Some(id) = id
            && let Some(known) = inner.content_rows.get(&id)
        {
            let stamp = match (&live, known.present.is_none()) {
                (_, false) => None,
                (Some(live), true) => complete_stamp(live, true)?,
                (None, true) => {
                    let node = inner.tree.get(ino).and_then(|n| n.content());
                    node.map(|c| crate::cache::rows::FileStamp { size: c.remote.size, mtime: c.remote.mtime })
                }
            };
            let row = ContentRow { version: Some(version.clone()), present: known.present.clone(), stamp };
            changes.content(id, Some(row));
        }
        if live.as_ref().is_some_and(|l| l.writers() > 0) {
            // Still open for writing: what is written next must be found after a crash, and its age counts from now.
            inner.stamps.remove(path);
            let delta = Delta::Put { origin: Some(version.clone()), suspect: true };
            let generation = row.generation;
            changes.delta(path, Some(DeltaRow { generation, delta, replaces: Some(replaced), upload: None }));
        } else {
            changes.delta(path, None);
            if let Some(node) = inner.node_row(ino, path) {
                changes.node(path, Some(node));
            }
        }
        Ok(())
    }

    /// What is not in the bucket yet: files, their bytes, removals (pending deletions included).
    pub fn pending_counts(&self) -> (u64, u64, u64) {
        let inner = self.lock();
        let (mut files, mut bytes, mut removals) = (0, 0, inner.pending_deletes.len() as u64);
        for (path, row) in inner.deltas.iter().filter(|(path, row)| self.needs_push(&inner, path, row)) {
            match &row.delta {
                Delta::Remove => removals += 1,
                Delta::Put { origin, .. } => {
                    files += 1;
                    if origin.is_none() {
                        let stat = inner.tree.find(path).and_then(|ino| self.stat_locked(&inner, ino).ok());
                        bytes += stat.map_or(0, |s| s.size);
                    }
                }
            }
        }
        (files, bytes, removals)
    }
}
