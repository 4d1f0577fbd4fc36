//! A newer base under the same delta: what changed in the bucket appears in the tree, what was pushed becomes base.
//!
//! Part of the volume. Invariants: cleared rows and the base that holds their entries are one transaction, so no crash
//! hides a pushed file; a replaced file is a new inode; links in `cache/` go before the newer index copy is stored.

use std::collections::HashSet;
use std::sync::Arc;

use super::committed::{self, Undone};
use super::conflict::rows_for_new_name;
use super::delta::Changes;
use super::inner::{Base, Inner};
use super::live::LiveContent;
use super::notice::Notice;
use super::pushing::{Outcome, Settled};
use super::{Result, Volume};
use crate::cache::rows::{Attrs, ContentRow, Delta, DeltaRow, Kind, PendingDelete, Version};
use crate::cache::saved_base::{self, Before};
use crate::cache::{ContentId, StateDb};
use crate::datastore::{Entry, EntryKind, Fresh, Index, RelPath, RemoteIndex, now_nanos};
use crate::tree::{Content, Ino, NodeData, ROOT, Remote};

/// A newer remote index, from the responses that carried it or from our own writes of it.
#[derive(Clone)]
pub struct NewBase {
    /// The index.
    pub remote: RemoteIndex,
    /// There is no index yet: this one was made from a listing.
    pub discovered: bool,
    /// Commits of ours that it lost, and that are to be brought back.
    pub undone: Vec<Undone>,
}

impl From<RemoteIndex> for NewBase {
    fn from(remote: RemoteIndex) -> Self {
        Self { remote, discovered: false, undone: Vec::new() }
    }
}

enum TreeStep {
    Remove(Ino),
    Insert { path: RelPath, data: NodeData, attrs: Option<Attrs> },
    Rename { ino: Ino, to: RelPath },
    Refresh { ino: Ino, remote: Remote },
    Mark(RelPath),
}

struct Work<'a> {
    volume: &'a Volume,
    inner: &'a mut Inner,
    changes: Changes,
    steps: Vec<TreeStep>,
    dropped: Vec<ContentId>,
    pushed: HashSet<String>,
    moved: HashSet<String>,
    pruned: Vec<String>,
    notices: Vec<Notice>,
}

impl Volume {
    /// Takes a newer base and the results of a push into view. One at a time (the caller's duty).
    ///
    /// # Errors
    /// Disk errors; nothing changed then.
    pub fn rebase(&self, new: Option<NewBase>, settled: &[Settled]) -> Result<Vec<Notice>> {
        let old = self.base();
        let new_base = match &new {
            Some(new) => {
                crate::fail_point!("refresh.before_base_saved");
                Some(self.save_base(&old, new)?)
            }
            None => None,
        };
        crate::fail_point!("refresh.after_base_saved");
        let index = new_base.as_ref().map_or_else(|| Arc::clone(&old.index), |b| Arc::clone(&b.index));
        // All of it, in one pass, when there was nothing before.
        let is_first = old.index.is_empty() && settled.is_empty();
        let first = match (&new, &new_base) {
            (Some(new), Some(base)) if is_first && new.undone.is_empty() => self.show_first(base)?,
            _ => None,
        };
        let notices = match first {
            Some(notices) => notices,
            None => self.step_by_step(&old, new.as_ref(), new_base, &index, settled)?,
        };
        if let Some(new) = &new {
            if !new.undone.is_empty() {
                self.changed.ring();
            }
            self.store_index_copy(&index, &new.remote.fresh);
            crate::fail_point!("refresh.after_index_copy");
            // Only now: before, a reference client would have taken them for files that nobody pushed.
            for settled in settled.iter().filter(|s| matches!(s.outcome, Outcome::Put(_))) {
                self.show_pushed(settled.path.as_str());
            }
        }
        Ok(notices)
    }

    /// What changed between two bases, one path after another.
    fn step_by_step(
        &self,
        old: &Base,
        new: Option<&NewBase>,
        new_base: Option<Base>,
        index: &Arc<Index>,
        settled: &[Settled],
    ) -> Result<Vec<Notice>> {
        let same = Arc::ptr_eq(index, &old.index);
        let changed = if same { Vec::new() } else { index.changed_since(&old.index) };
        let marked: Vec<RelPath> = if same { Vec::new() } else { index.marked_directories().collect() };

        let mut guard = self.lock();
        let mut work = Work::new(self, &mut guard);
        let mut revealed: Vec<RelPath> = Vec::new();
        for settled in settled {
            work.settle(settled, &mut revealed)?;
        }
        self.repoint(work.inner, settled, &mut work.changes);
        let restored = new.map(|new| committed::rows_of(new, || work.inner.new_generation()));
        for (path, row) in restored.unwrap_or_default() {
            // The bucket was asked without the lock: what was done here meanwhile counts.
            if work.row_after(&path).is_none() {
                work.bring_back(&path, &row)?;
                work.changes.delta(&path, Some(row));
            }
        }
        let mut seen: HashSet<&RelPath> = HashSet::new();
        for path in changed.iter().chain(&revealed).filter(|path| seen.insert(path)) {
            work.apply(path, index.shown(path).map(|entry| entry.to_entry()).as_ref())?;
        }
        for path in marked {
            work.note_name(path.as_str());
            work.steps.push(TreeStep::Mark(path));
        }
        if let Some(base) = &new_base
            && let Some(record) = &base.record
        {
            work.changes.base(record.clone());
        }
        work.finish(new_base)
    }

    /// Gives a file a new inode although its entry is the same: readers of the old one keep what they have. Nothing to tell
    /// when the file has changes of ours, or another content by now.
    ///
    /// # Errors
    /// Disk errors; nothing changed then.
    pub fn supersede(&self, live: &LiveContent) -> Result<Vec<Notice>> {
        let mut guard = self.lock();
        let path = guard.live_path(live).filter(|path| !guard.deltas.contains_key(path));
        let Some(path) = path.and_then(|path| RelPath::parse(&path).ok()) else { return Ok(Vec::new()) };
        let entry = guard.base_entry(path.as_str());
        let content = guard.tree.get(live.ino).and_then(|n| n.content());
        let (Some(entry), Some(content)) = (entry, content) else { return Ok(Vec::new()) };
        let mut work = Work::new(self, &mut guard);
        work.replace(&path, live.ino, content, Some(&entry));
        work.finish(None)
    }

    /// The base was confirmed by the store: nothing changed.
    pub fn confirm_base(&self) {
        if let Some(record) = &mut self.lock().base.record {
            record.confirmed_at = now_nanos();
        }
    }

    fn save_base(&self, old: &Base, new: &NewBase) -> Result<Base> {
        let (remote, before) = (&new.remote, Before { index: &old.index, record: old.record.as_ref() });
        let root = &self.options.root;
        let record = saved_base::save(root, &before, &remote.index, &remote.fresh, new.discovered, now_nanos())?;
        Ok(Base { index: Arc::new(remote.index.clone()), record: Some(record) })
    }

    fn store_index_copy(&self, index: &Index, fresh: &Fresh) {
        let store = || -> Result<()> {
            self.reference.store_index(index, fresh)?;
            self.record_reference_stamp()
        };
        if let Err(error) = store() {
            tracing::warn!(%error, "cache/ keeps an older index copy; the next mount looks through it");
        }
        // The older base may go once a power cut cannot bring back the record that names it.
        if let Err(error) = self.lock().db.commit_durable() {
            tracing::warn!(%error, "older bases stay until the next change");
            return;
        }
        if let Some(record) = self.base().record {
            saved_base::remove_others(&self.options.root, &record);
        }
    }

    /// Remembers what index copy and sidecar look like, to see at the next start whether somebody else worked there.
    ///
    /// # Errors
    /// Disk errors.
    pub(super) fn record_reference_stamp(&self) -> Result<()> {
        let stamp = self.reference.stamp()?;
        let mut inner = self.lock();
        let db: &mut StateDb = &mut inner.db;
        let tx = db.begin()?;
        tx.set_meta("reference", &stamp)?;
        Ok(tx.commit()?)
    }
}

impl<'a> Work<'a> {
    fn new(volume: &'a Volume, inner: &'a mut Inner) -> Self {
        Self {
            volume,
            inner,
            changes: Changes::default(),
            steps: Vec::new(),
            dropped: Vec::new(),
            pushed: HashSet::new(),
            moved: HashSet::new(),
            pruned: Vec::new(),
            notices: Vec::new(),
        }
    }

    fn settle(&mut self, settled: &Settled, revealed: &mut Vec<RelPath>) -> Result<()> {
        self.volume.settle_row(self.inner, settled, &mut self.changes)?;
        match &settled.outcome {
            Outcome::Put(_) => {
                self.pushed.insert(settled.path.to_string());
            }
            Outcome::Removed { .. } | Outcome::Superseded | Outcome::Described(_) => {
                revealed.push(settled.path.clone())
            }
            Outcome::Conflict(to) => {
                let row = self.inner.deltas.get(settled.path.as_str());
                let same = row.is_some_and(|row| row.generation == settled.generation);
                let mark = row.and_then(|row| row.upload.clone());
                let found = self.inner.tree.find(settled.path.as_str()).filter(|_| same);
                // Something else has the name by now: the next push finds out about that.
                if let Some(ino) = found.filter(|ino| self.inner.tree.kind(*ino) != Some(Kind::Dir)) {
                    // What an upload of ours left under the old name goes, if it still is ours.
                    if let Some(mark) = mark {
                        let left = PendingDelete { replaced: None, upload: Some(mark) };
                        self.changes.pending_delete(settled.path.as_str(), Some(left));
                    }
                    rows_for_new_name(self.inner, ino, settled.path.as_str(), to.as_str(), &mut self.changes);
                    self.steps.push(TreeStep::Rename { ino, to: to.clone() });
                    self.moved.insert(settled.path.to_string());
                    self.note_name(settled.path.as_str());
                    self.note_name(to.as_str());
                    revealed.push(settled.path.clone());
                }
            }
        }
        Ok(())
    }

    fn row_after(&self, path: &str) -> Option<&DeltaRow> {
        match self.changes.delta_of(path) {
            Some(change) => change.as_ref(),
            None => self.inner.deltas.get(path),
        }
    }

    fn version_after(&self, id: ContentId) -> Option<Version> {
        match self.changes.content_of(id) {
            Some(change) => change.as_ref().and_then(|row| row.version.clone()),
            None => match self.inner.live.get(&id) {
                Some(live) => live.state().version.clone(),
                None => self.inner.content_rows.get(&id).and_then(|row| row.version.clone()),
            },
        }
    }

    /// Brings one path of the tree in line with its entry in the base.
    fn apply(&mut self, path: &RelPath, entry: Option<&Entry>) -> Result<()> {
        let moved = self.moved.contains(path.as_str());
        if !moved && let Some(row) = self.row_after(path.as_str()) {
            // With a version to delete it stays: a push of ours may have ended between the entry and its object.
            if row.delta == Delta::Remove && entry.is_none() && row.upload.is_none() && row.replaces.is_none() {
                self.changes.delta(path.as_str(), None);
            }
            return Ok(());
        }
        let found = if moved { None } else { self.inner.tree.find(path.as_str()) };
        self.show(path, found, entry)
    }

    /// A commit of ours that is to be made again is in view, also when a base before lost it already.
    fn bring_back(&mut self, path: &str, row: &DeltaRow) -> Result<()> {
        let Ok(path) = RelPath::parse(path) else { return Ok(()) };
        let shown = self.inner.base_entry(path.as_str());
        let ours = match &row.delta {
            Delta::Put { origin, .. } => origin.as_ref().map(|origin| &origin.entry),
            Delta::Remove => None,
        };
        if shown.as_ref() == ours {
            return Ok(());
        }
        self.show(&path, self.inner.tree.find(path.as_str()), ours)
    }

    /// Brings what is found under a path in line with an entry.
    fn show(&mut self, path: &RelPath, found: Option<Ino>, entry: Option<&Entry>) -> Result<()> {
        let Some(ino) = found else {
            if let Some(entry) = entry {
                self.steps.push(TreeStep::Insert { path: path.clone(), data: NodeData::of(entry), attrs: None });
                self.note_name(path.as_str());
            }
            return Ok(());
        };
        let Some(content) = self.inner.tree.get(ino).and_then(|n| n.content()) else {
            if let Some(entry) = entry {
                // The directory may be gone by the time of the step, with the last file below it.
                self.steps.push(TreeStep::Insert { path: path.clone(), data: NodeData::of(entry), attrs: None });
            }
            return Ok(());
        };
        if let Some(entry) = entry
            && self.keeps(path, ino, content, entry)?
        {
            return Ok(());
        }
        self.replace(path, ino, content, entry);
        Ok(())
    }

    /// Whether the file that is here is what the entry describes; takes over new attributes.
    fn keeps(&mut self, path: &RelPath, ino: Ino, content: Content, entry: &Entry) -> Result<bool> {
        if self.pushed.contains(path.as_str()) {
            return Ok(true);
        }
        let Some(id) = content.id else { return Ok(false) };
        let Some(version) = self.version_after(id) else { return Ok(false) };
        if version.key != path.as_str() {
            // A rename that was dropped: equal entries of two files say nothing of the bytes to come.
            return Ok(false);
        }
        if version.entry == *entry {
            return Ok(true);
        }
        let same_bytes = version.entry.size == entry.size
            && version.entry.sha256.is_some()
            && version.entry.sha256 == entry.sha256
            && version.entry.kind() == entry.kind();
        if !same_bytes {
            return Ok(false);
        }
        self.volume.reference.unlink(path.as_str());
        // Another upload of the same bytes: the next request pins its fingerprint.
        let version = Version { key: version.key, entry: entry.clone(), fingerprint: None };
        let live = self.inner.live.get(&id).cloned();
        if let Some(live) = &live {
            self.changes.live_version(live, version.clone());
        }
        let remote = Remote::of(entry);
        if let Some(row) = self.inner.content_rows.get(&id).cloned() {
            let stamp = row.stamp.map(|s| crate::cache::rows::FileStamp { mtime: remote.mtime, ..s });
            self.changes.content(id, Some(ContentRow { version: Some(version), stamp, ..row }));
        }
        if self.inner.local_content(ino).is_some()
            && let Err(error) = self.volume.restamp(self.inner, id, remote.mtime)
        {
            tracing::warn!(%path, %error, "a cached content cannot be used; it will be fetched again");
            return Ok(false);
        }
        self.steps.push(TreeStep::Refresh { ino, remote });
        self.notices.push(Notice::Inode(ino));
        Ok(true)
    }

    fn replace(&mut self, path: &RelPath, ino: Ino, content: Content, entry: Option<&Entry>) {
        self.volume.reference.unlink(path.as_str());
        self.changes.node(path.as_str(), None);
        if let Some(id) = content.id {
            self.changes.content(id, None);
            self.dropped.push(id);
        }
        self.note_name(path.as_str());
        let attrs = self.inner.tree.get(ino).and_then(|n| n.attrs().cloned());
        self.steps.push(TreeStep::Remove(ino));
        if let Some(entry) = entry {
            // Owner and attributes stay with the name; times and the executable bit come with the new version.
            let attrs = attrs.map(|mut a| {
                a.mtime = None;
                a.atime = None;
                a.ctime = None;
                let bits = if entry.kind() == EntryKind::Executable { 0o111 } else { 0 };
                a.mode = a.mode.map(|m| (m & !0o111) | (bits & (m >> 2 | 0o100)));
                a
            });
            self.steps.push(TreeStep::Insert { path: path.clone(), data: NodeData::of(entry), attrs });
        }
    }

    /// Notes the deepest directory on the way to a path that the kernel can know, and the name below it.
    fn note_name(&mut self, path: &str) {
        let mut dir = ROOT;
        for name in path.split('/') {
            let known = dir == ROOT || self.inner.tree.get(dir).is_some_and(|n| n.lookups() > 0);
            let next = self.inner.tree.child(dir, name);
            let last = next.is_none_or(|n| !self.inner.tree.get(n).is_some_and(|n| n.is_dir()));
            if last {
                if known {
                    self.notices.push(Notice::Entry { parent: dir, name: name.to_owned() });
                }
                return;
            }
            if let Some(next) = next {
                dir = next;
            }
        }
    }

    fn finish(mut self, new_base: Option<Base>) -> Result<Vec<Notice>> {
        let changes = std::mem::take(&mut self.changes);
        self.inner.commit(changes)?;
        if let Some(base) = new_base {
            self.inner.base = base;
        }
        for step in std::mem::take(&mut self.steps) {
            // The base is committed: one name that fails must not hide all others.
            if let Err(error) = self.step(step) {
                tracing::error!(%error, "a change of the bucket cannot be shown until the next mount");
            }
        }
        self.forget_pruned();
        for id in std::mem::take(&mut self.dropped) {
            self.volume.discard_unless_live(self.inner, id);
        }
        let mut seen = HashSet::new();
        self.notices.retain(|notice| seen.insert(notice.clone()));
        Ok(self.notices)
    }

    fn step(&mut self, step: TreeStep) -> Result<()> {
        match step {
            TreeStep::Remove(ino) => {
                let parent = self.inner.tree.parent(ino).unwrap_or(ROOT);
                self.inner.tree.unlink(ino);
                self.inner.touch_directory(parent);
                self.prune(parent);
            }
            TreeStep::Insert { path, data, attrs } => {
                self.volume.insert_remote(self.inner, &path, data, attrs, &mut self.notices)?;
            }
            TreeStep::Mark(path) => {
                // A file in the way stays; the marker is reported by the index itself.
                if let Ok(dir) = self.inner.tree.make_dirs(path.as_str())
                    && let Some(node) = self.inner.tree.get_mut(dir)
                {
                    node.explicit = true;
                }
            }
            TreeStep::Rename { ino, to } => {
                if let Ok(parent) = self.inner.tree.make_dirs(to.parent().unwrap_or("")) {
                    self.inner.tree.rename(ino, parent, to.name());
                }
            }
            TreeStep::Refresh { ino, remote } => {
                self.inner.tree.change_content(ino, |content| content.remote = remote);
                if let Some(attrs) = self.inner.tree.get_mut(ino).and_then(|node| node.attrs_if_any()) {
                    attrs.mtime = None;
                    attrs.mode = attrs.mode.map(|m| if remote.executable { m | 0o100 } else { m & !0o111 });
                }
            }
        }
        Ok(())
    }

    /// A directory that is gone takes its attributes along: its row would bring it back.
    fn forget_pruned(&mut self) {
        let mut changes = Changes::default();
        for path in std::mem::take(&mut self.pruned) {
            changes.node(&path, None);
        }
        if let Err(error) = self.inner.commit(changes) {
            tracing::warn!(%error, "an empty directory comes back with the next mount");
        }
    }

    /// Removes directories that only existed for what was below them.
    fn prune(&mut self, mut dir: Ino) {
        while dir != ROOT {
            let Some(node) = self.inner.tree.get(dir) else { return };
            if node.explicit || !node.is_dir() || !node.is_empty() {
                return;
            }
            let (parent, name) = (self.inner.tree.parent(dir).unwrap_or(ROOT), node.name().to_owned());
            self.pruned.extend(self.inner.tree.path(dir).filter(|_| node.attrs().is_some()));
            self.notices.push(Notice::Entry { parent, name });
            self.inner.tree.unlink(dir);
            dir = parent;
        }
    }
}
