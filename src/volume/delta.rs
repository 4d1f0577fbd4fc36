//! One atomic change of the rows: collected first, then committed to state.db and to memory together.
//!
//! Invariant: memory changes only after the commit succeeded, so a full disk leaves everything as it was.

use std::collections::HashMap;
use std::sync::Arc;

use super::inner::Inner;
use super::live::LiveContent;
use super::writes::Stable;
use super::{Result, Volume, VolumeError};
use crate::cache::ContentId;
use crate::cache::rows::{
    AnsweredRow, CommittedRow, ContentRow, Delta, DeltaRow, NodeRow, PendingDelete, UploadMark, Version,
};
use crate::datastore::Entry;
use crate::tree::{Ino, ROOT};

/// Row changes of one operation; the last word on a path counts.
#[derive(Clone, Default)]
pub(super) struct Changes {
    deltas: HashMap<String, Option<DeltaRow>>,
    nodes: HashMap<String, Option<NodeRow>>,
    contents: HashMap<ContentId, Option<ContentRow>>,
    pending_deletes: HashMap<String, Option<PendingDelete>>,
    committed: HashMap<String, Option<CommittedRow>>,
    base: Option<crate::cache::saved_base::BaseRecord>,
    pub(super) answers: Option<AnsweredRow>,
    versions: Vec<(Arc<LiveContent>, Version)>,
    carried: Vec<(Arc<LiveContent>, Stable)>,
}

impl Changes {
    /// Whether it takes away more than it adds.
    fn makes_room(&self) -> bool {
        self.contents.values().any(Option::is_none)
            || self.deltas.values().any(Option::is_none)
            || self.pending_deletes.values().any(Option::is_none)
    }

    pub fn delta(&mut self, path: &str, row: Option<DeltaRow>) -> &mut Self {
        self.deltas.insert(path.to_owned(), row);
        self
    }

    pub fn node(&mut self, path: &str, row: Option<NodeRow>) -> &mut Self {
        self.nodes.insert(path.to_owned(), row);
        self
    }

    pub fn content(&mut self, id: ContentId, row: Option<ContentRow>) -> &mut Self {
        self.contents.insert(id, row);
        self
    }

    pub fn pending_delete(&mut self, key: &str, row: Option<PendingDelete>) -> &mut Self {
        self.pending_deletes.insert(key.to_owned(), row);
        self
    }

    pub fn committed(&mut self, path: &str, row: Option<CommittedRow>) -> &mut Self {
        self.committed.insert(path.to_owned(), row);
        self
    }

    /// An open content has this version, once the rows say so too. A pin that a request set meanwhile stays.
    pub fn live_version(&mut self, live: &Arc<LiveContent>, version: Version) -> &mut Self {
        self.versions.push((Arc::clone(live), version));
        self
    }

    /// A push carried the bytes of that moment away, once the rows say so too.
    pub fn carried(&mut self, live: &Arc<LiveContent>, stable: Stable) -> &mut Self {
        self.carried.push((Arc::clone(live), stable));
        self
    }

    pub fn base(&mut self, record: crate::cache::saved_base::BaseRecord) -> &mut Self {
        self.base = Some(record);
        self
    }
}

impl Changes {
    /// What these changes make of a delta; `None` when they do not touch it.
    pub fn delta_of(&self, path: &str) -> Option<&Option<DeltaRow>> {
        self.deltas.get(path)
    }

    /// What these changes make of a content; `None` when they do not touch it.
    pub fn content_of(&self, id: ContentId) -> Option<&Option<ContentRow>> {
        self.contents.get(&id)
    }
}

/// Where pushes of ours may have left which bytes: keys, by size and hash.
#[derive(Debug, Default)]
pub struct CopiesMade(HashMap<(u64, String), Vec<String>>);

impl CopiesMade {
    /// The objects that may have the bytes of an entry.
    pub fn of(&self, entry: &Entry) -> &[String] {
        // Most pushes begin without any.
        if self.0.is_empty() {
            return &[];
        }
        let bytes = (entry.size, entry.sha256.clone().unwrap_or_default());
        self.0.get(&bytes).map_or(&[], Vec::as_slice)
    }
}

impl Volume {
    /// Objects that pushes of ours may have made of these bytes, and that may be all that is left of them.
    pub fn copies_made(&self, version: &Version) -> Vec<(String, UploadMark)> {
        let inner = self.lock();
        let made = inner.uploads_left().filter(|(_, mark)| mark.is_about(version));
        made.map(|(key, mark)| (key.to_owned(), mark.clone())).collect()
    }

    /// The same for all bytes.
    pub fn all_copies_made(&self) -> CopiesMade {
        let mut made = CopiesMade::default();
        for (key, mark) in self.lock().uploads_left() {
            made.0.entry((mark.size, mark.sha256.clone())).or_default().push(key.to_owned());
        }
        made
    }
}

impl Inner {
    /// Keys of objects that pushes of ours may have made and not settled.
    fn uploads_left(&self) -> impl Iterator<Item = (&str, &UploadMark)> {
        let of_rows = self.deltas.iter().filter_map(|(path, row)| Some((path, row.upload.as_ref()?)));
        let of_deletes = self.pending_deletes.iter().filter_map(|(key, row)| Some((key, row.upload.as_ref()?)));
        of_rows.chain(of_deletes).map(|(at, mark)| (mark.key.as_deref().unwrap_or(at), mark))
    }
}

impl Inner {
    /// Commits to state.db, then to memory.
    pub fn commit(&mut self, changes: Changes) -> Result<()> {
        crate::fail_point!("rows.before_commit");
        match self.write(&changes) {
            // A full disk must not keep anybody from making room.
            Err(VolumeError::Cache(error))
                if error.is_no_space() && changes.makes_room() && self.db.reserve().release() =>
            {
                self.write(&changes)?;
            }
            other => other?,
        }
        crate::fail_point!("rows.after_commit");
        self.db.reserve().refill();

        for (path, row) in changes.deltas {
            match row {
                Some(row) => {
                    self.touch(&path);
                    self.deltas.insert(path, row);
                }
                None => {
                    self.stamps.remove(&path);
                    self.deltas.remove(&path);
                }
            }
        }
        for (id, row) in changes.contents {
            match row {
                Some(row) => self.content_rows.insert(id, row),
                None => self.content_rows.remove(&id),
            };
        }
        for (key, row) in changes.pending_deletes {
            match row {
                Some(row) => self.pending_deletes.insert(key, row),
                None => self.pending_deletes.remove(&key),
            };
        }
        for (path, row) in changes.committed {
            match row {
                Some(row) => self.committed.insert(path, row),
                None => self.committed.remove(&path),
            };
        }
        for (live, mut version) in changes.versions {
            let mut state = live.state();
            if version.fingerprint.is_none()
                && let Some(known) = state.version.as_ref().filter(|v| v.key == version.key && v.entry == version.entry)
            {
                version.fingerprint = known.fingerprint.clone();
            }
            state.version = Some(version);
        }
        for (live, stable) in changes.carried {
            live.clean_if_unchanged(stable);
        }
        Ok(())
    }

    /// Commits what gives these nodes other names. A crash in the middle must not let the next process take one for another.
    pub fn commit_move(&mut self, changes: Changes, moving: &[Option<Ino>]) -> Result<()> {
        let moving = || moving.iter().copied().flatten();
        moving().for_each(|ino| self.tree.doubt(ino));
        let committed = self.commit(changes);
        if committed.is_err() {
            moving().for_each(|ino| self.tree.assure(ino));
        }
        committed
    }

    fn write(&mut self, changes: &Changes) -> Result<()> {
        let tx = self.db.begin()?;
        for (path, row) in &changes.deltas {
            match row {
                Some(row) => tx.set_delta(path, row)?,
                None => tx.remove_delta(path)?,
            }
        }
        for (path, row) in &changes.nodes {
            match row {
                Some(row) => tx.set_node(row)?,
                None => tx.remove_node(path)?,
            }
        }
        for (id, row) in &changes.contents {
            match row {
                Some(row) => tx.set_content(*id, row)?,
                None => tx.remove_content(*id)?,
            }
        }
        for (key, row) in &changes.pending_deletes {
            match row {
                Some(row) => tx.set_pending_delete(key, row)?,
                None => tx.remove_pending_delete(key)?,
            }
        }
        for (path, row) in &changes.committed {
            match row {
                Some(row) => tx.set_committed(path, row)?,
                None => tx.remove_committed(path)?,
            }
        }
        for id in self.ids.gone() {
            tx.forget_unclaimed(*id)?;
        }
        if let Some(record) = &changes.base {
            tx.set_meta("base", record)?;
        }
        if let Some(row) = &changes.answers {
            tx.set_answered(self.next_answer % super::answered::REMEMBERED, row)?;
        }
        tx.commit()?;
        self.next_answer += u64::from(changes.answers.is_some());
        self.ids.forgotten();
        Ok(())
    }

    /// The delta of a file that is at `path` from now on; `None` for a name that stays local.
    pub fn put_row(&mut self, path: &str, origin: Option<Version>, suspect: bool) -> Option<DeltaRow> {
        if !Self::is_synced(path) {
            return None;
        }
        let upload = self.deltas.get(path).and_then(|row| row.upload.clone());
        let replaces = self.replaced_at(path);
        Some(DeltaRow { generation: self.new_generation(), delta: Delta::Put { origin, suspect }, replaces, upload })
    }

    /// The delta of a path that is empty from now on; `None` when the bucket never had anything there.
    pub fn removal_row(&mut self, path: &str) -> Option<DeltaRow> {
        let upload = self.deltas.get(path).and_then(|row| row.upload.clone()).filter(|mark| !mark.moved);
        let replaces = self.replaced_at(path);
        if replaces.is_none() && upload.is_none() {
            return None;
        }
        Some(DeltaRow { generation: self.new_generation(), delta: Delta::Remove, replaces, upload })
    }

    /// Before `leaving` loses its last name in `dir`: a directory that empties stays until it is removed by name.
    pub fn keep_directory(&mut self, dir: Ino, leaving: Ino, changes: &mut Changes) {
        if dir == ROOT {
            return;
        }
        let only = self.tree.child_count(dir) == 1 && self.tree.parent(leaving) == Some(dir);
        let Some(node) = self.tree.get_mut(dir) else { return };
        if !only || node.explicit {
            return;
        }
        node.explicit = true;
        if let Some(path) = self.tree.path(dir)
            && let Some(row) = self.node_row(dir, &path)
        {
            changes.node(&path, Some(row));
        }
    }

    /// Notes that a directory's entries changed: its mtime and ctime.
    pub fn touch_directory(&mut self, dir: Ino) {
        let now = crate::datastore::now_nanos();
        if let Some(node) = self.tree.get_mut(dir) {
            let attrs = node.attrs_mut();
            attrs.mtime = Some(now);
            attrs.ctime = Some(now);
        }
    }

    /// Notes a change of a node's attributes or links.
    pub fn touch_ctime(&mut self, ino: Ino) {
        let now = crate::datastore::now_nanos();
        if let Some(node) = self.tree.get_mut(ino) {
            node.attrs_mut().ctime = Some(now);
        }
    }
}
