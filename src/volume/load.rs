//! Start: state.db and the saved base become the tree, whatever way the last process ended.
//!
//! Part of the volume. Invariant: nothing here needs the network; what a crash left half done (contents without rows,
//! files open for writing) is found by looking at rows, never by walking `data/` or `cache/`.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::attributes::file_stat;
use super::content_ids::Leftovers;
use super::delta::Changes;
use super::first_view::{Unplaced, show_all};
use super::inner::{Base, Inner, Stamp};
use super::space::Space;
use super::{Result, Volume};
use crate::bell::Bell;
use crate::cache::rows::{AnsweredRow, ContentRow, Delta, DeltaRow, Kind, NodeRow};
use crate::cache::saved_base::{self, BaseRecord};
use crate::cache::{ContentId, Contents, StateDb, reference::ReferenceCache};
use crate::datastore::{Flavour, Index, Namespace, Seen};
use crate::lock_order::{Mutex, Place};
use crate::tree::{Content, Incarnation, Ino, NodeData, Remote, Tree};

/// How a volume is opened.
#[derive(Clone, Debug)]
pub struct VolumeOptions {
    /// The cache directory.
    pub root: PathBuf,
    /// Owner of what has no owner of its own.
    pub uid: u32,
    /// Group likewise.
    pub gid: u32,
    /// Permission bits taken away from what has no mode of its own.
    pub umask: u32,
    /// Bytes of the prefix before every relative path in an object key.
    pub key_prefix_len: usize,
    /// Turns changes away.
    pub read_only: bool,
    /// Most bytes that contents may take; unpushed and open ones stay all the same. `None`: as much as the disk has.
    pub cache_size: Option<u64>,
    /// This machine's name in conflict names.
    pub host: String,
    /// Flavour of the sidecar in `cache/`.
    pub flavour: Flavour,
    /// Namespace whose directory holds the files of `cache/`.
    pub namespace: Option<Namespace>,
    /// Which process of the mount this is.
    pub incarnation: Incarnation,
    /// When the mount began, ns since the epoch: the mtime of directories that nobody touched.
    pub started_at: i64,
}

impl Volume {
    /// Opens the cache directory and builds the view of the saved base and the delta.
    ///
    /// # Errors
    /// When the directory or state.db cannot be used.
    pub fn load(options: VolumeOptions) -> Result<Self> {
        let mut db = StateDb::open(&options.root)?;
        let contents = Contents::open(&options.root)?;
        let reference = ReferenceCache::open(&options.root, options.flavour, options.namespace.as_ref())?;
        let base = load_base(&options, &db)?;
        let loaded = db.load()?;
        let stamp = db.meta("reference")?;

        let answered = take_answered(&mut db, options.incarnation)?;
        let mut left = Leftovers::find(&db, &contents)?;
        // Also the ids of rows that are forgotten below: one id never stands for two contents.
        let known = loaded.contents.iter().map(|(id, _)| *id).chain(loaded.nodes.iter().filter_map(|n| n.content));
        let ids = left.ids_after(known);
        let mut builder = Builder {
            contents: &contents,
            rows: loaded.contents.into_iter().collect(),
            deltas: loaded.deltas.into_iter().collect(),
            tree: Tree::new(options.incarnation),
            base: &base.index,
            forgotten: Vec::new(),
        };
        // What is only here comes first: an entry of the base never takes its place away.
        let (local, cached) = builder.split(loaded.nodes);
        builder.directories(&local);
        builder.local_files(local);
        builder.origin_only_puts();
        let Unplaced { blocked, shadowed } = show_all(&mut builder.tree, &base.index, &builder.deltas);
        builder.cached_files(cached);
        if options.incarnation.number > 0 {
            let open = options.incarnation.open_files().into_iter();
            builder.tree.take_over(&open.map(|(_, file)| (file.content, file.ino)).collect());
        }
        let Builder { rows, deltas, tree, forgotten, .. } = builder;

        let now = Instant::now();
        let inner = Inner {
            tree,
            db,
            base,
            stamps: deltas.keys().map(|p| (p.clone(), Stamp { first: now, last: now })).collect(),
            next_generation: deltas.values().map(|r| r.generation).max().unwrap_or(0),
            deltas,
            content_rows: rows,
            pending_deletes: loaded.pending_deletes.into_iter().collect(),
            committed: loaded.committed.into_iter().collect(),
            next_answer: answered.iter().map(|(slot, _)| slot + 1).max().unwrap_or(0),
            answered: answered.into_iter().map(|(_, row)| (row.request, row.path)).collect(),
            live: HashMap::new(),
            space: Space::default(),
            eviction_notices: Vec::new(),
            ids,
            read_only: options.read_only.then(|| "mounted with --read-only".to_owned()),
            shadowed,
        };
        let volume = Self {
            options,
            contents,
            reference,
            inner: Mutex::new(Place::Volume, inner),
            changed: Bell::default(),
            fetched: Bell::default(),
            pressure: Bell::default(),
            opened: Bell::default(),
        };
        crate::fail_point!("start.after_load");
        left.forget(forgotten.iter().filter_map(|(_, content)| *content));
        volume.forget_rows(forgotten)?;
        volume.place_blocked(&mut volume.lock(), blocked, &mut Vec::new())?;
        volume.collect_garbage(&left)?;
        crate::fail_point!("start.before_reconcile");
        volume.reconcile(stamp)?;
        volume.count_contents(&loaded.opened);
        volume.reference.mark_lazy()?;
        crate::fail_point!("start.after_mark_lazy");
        volume.record_reference_stamp()?;
        Ok(volume)
    }

    /// Rows of cached files that the base does not describe any more.
    fn forget_rows(&self, forgotten: Vec<(Option<String>, Option<ContentId>)>) -> Result<()> {
        let mut changes = Changes::default();
        for (path, content) in forgotten {
            if let Some(path) = path {
                changes.node(&path, None);
            }
            if let Some(id) = content {
                changes.content(id, None);
            }
        }
        self.lock().commit(changes)
    }

    /// Begins the ledger of the cache; `opened` are contents in the order of their last opens.
    fn count_contents(&self, opened: &[ContentId]) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let mut order: HashMap<ContentId, usize> = opened.iter().enumerate().map(|(at, id)| (*id, at + 1)).collect();
        let mut held: Vec<(usize, ContentId, Ino, u64)> = Vec::new();
        for (ino, node) in inner.tree.linked() {
            let Some(content) = node.content() else { continue };
            let Some((id, row)) = content.id.and_then(|id| Some((id, inner.content_rows.get(&id)?))) else { continue };
            let bytes = row.present.as_ref().map_or(content.remote.size, crate::cache::RangeSet::total);
            held.push((order.remove(&id).unwrap_or(0), id, ino, bytes));
        }
        held.sort_unstable();
        for (_, id, ino, bytes) in held {
            inner.space.set(id, ino, bytes);
        }
        self.pressure.ring();
    }

    /// Ends the use of the volume: what was fetched is recorded, and `cache/` says what it holds.
    ///
    /// # Errors
    /// Disk errors.
    pub fn close(&self) -> Result<()> {
        crate::fail_point!("unmount.before_close");
        self.record_fetched()?;
        self.record_opened()?;
        self.remove_doomed()?;
        let base = self.base();
        let (files, _, removals) = self.pending_counts();
        let unpushed = files + removals > 0 || !self.lock().deltas.is_empty();
        if !unpushed && base.seen() != Seen::Never && base.index.len() <= self.lock().content_rows.len() {
            self.reference.finish(&base.index)?;
        }
        crate::fail_point!("unmount.before_stamp");
        self.record_reference_stamp()?;
        self.lock().release_ids()?;
        crate::fail_point!("unmount.before_checkpoint");
        Ok(self.lock().db.checkpoint()?)
    }
}

/// What the process before this one on the same mount carried out; numbers of another mount mean nothing.
fn take_answered(db: &mut StateDb, incarnation: Incarnation) -> Result<Vec<(u64, AnsweredRow)>> {
    let answered = db.answered()?;
    if incarnation.number > 0 || answered.is_empty() {
        return Ok(answered);
    }
    let tx = db.begin()?;
    tx.clear_answered()?;
    tx.commit()?;
    Ok(Vec::new())
}

fn load_base(options: &VolumeOptions, db: &StateDb) -> Result<Base> {
    let none = Base { index: Arc::new(Index::empty()), record: None };
    let Some(record) = db.meta::<BaseRecord>("base")? else { return Ok(none) };
    match saved_base::load(&options.root, &record) {
        Ok(index) => Ok(Base { index: Arc::new(index), record: Some(record) }),
        Err(error) => {
            // Without parts the next read is a whole one; the record says that this source had an index.
            tracing::warn!(error, "the saved base cannot be read; the index must be read from the bucket");
            Ok(Base { record: Some(BaseRecord { parts: Vec::new(), ..record }), ..none })
        }
    }
}

struct Builder<'a> {
    contents: &'a Contents,
    rows: HashMap<ContentId, ContentRow>,
    deltas: BTreeMap<String, DeltaRow>,
    tree: Tree,
    base: &'a Index,
    /// Rows that describe nothing any more.
    forgotten: Vec<(Option<String>, Option<ContentId>)>,
}

impl Builder<'_> {
    /// Rows of what is only here (unpushed, local-only, directories), and rows of what the base has too.
    fn split(&self, nodes: Vec<NodeRow>) -> (Vec<NodeRow>, Vec<NodeRow>) {
        nodes.into_iter().partition(|row| {
            let put = matches!(self.deltas.get(&row.path), Some(DeltaRow { delta: Delta::Put { .. }, .. }));
            row.kind == Kind::Dir || put || !Inner::is_synced(&row.path)
        })
    }

    fn explicit_directory(&mut self, path: &str) -> Option<Ino> {
        let ino = self.tree.make_dirs(path).ok()?;
        self.tree.get_mut(ino)?.explicit = true;
        Some(ino)
    }

    fn directories(&mut self, nodes: &[NodeRow]) {
        for row in nodes.iter().filter(|row| row.kind == Kind::Dir) {
            if let Some(ino) = self.explicit_directory(&row.path)
                && let Some(node) = self.tree.get_mut(ino)
                && !row.attrs.is_empty()
            {
                node.set_attrs(Some(row.attrs.clone()));
            }
        }
    }

    fn local_files(&mut self, nodes: Vec<NodeRow>) {
        for row in nodes.into_iter().filter(|row| row.kind != Kind::Dir) {
            let content = row.content.filter(|id| self.rows.contains_key(id));
            self.local_file(row, content);
        }
    }

    fn cached_files(&mut self, nodes: Vec<NodeRow>) {
        for row in nodes {
            let content = row.content.filter(|id| self.rows.contains_key(id));
            self.cached_file(row, content);
        }
    }

    /// A file that the delta puts here, or that never leaves this machine.
    fn local_file(&mut self, row: NodeRow, content: Option<ContentId>) {
        // Nobody saw the end of the writing, so the bytes count as changed until a push has compared them.
        if let Some(DeltaRow { delta: delta @ Delta::Put { suspect: true, .. }, .. }) = self.deltas.get_mut(&row.path)
            && let Some(known) = content.and_then(|id| self.rows.get_mut(&id)).filter(|known| known.present.is_none())
        {
            *delta = Delta::Put { origin: None, suspect: false };
            *known = ContentRow::changed();
        }
        let origin = match self.deltas.get(&row.path).map(|d| &d.delta) {
            Some(Delta::Put { origin, .. }) => origin.as_ref(),
            _ => None,
        };
        let mut remote = origin.map(|o| Remote::of(&o.entry)).unwrap_or_default();
        if let Some(id) = content
            && self.rows.get(&id).is_some_and(|r| r.present.is_none())
        {
            match self.contents.open_existing(id).map(|file| file_stat(&file)) {
                Ok(Ok((size, mtime))) => (remote.size, remote.mtime) = (size, mtime),
                Ok(Err(error)) => {
                    tracing::error!(path = row.path, %error, "the content of an unpushed file cannot be read")
                }
                Err(error) => tracing::error!(path = row.path, %error, "the content of an unpushed file is missing"),
            }
        }
        self.place(row, Content { id: content, remote });
    }

    /// A file of the base with something local about it.
    fn cached_file(&mut self, row: NodeRow, content: Option<ContentId>) {
        let there = self.tree.find(&row.path).is_some_and(|ino| self.tree.kind(ino) != Some(Kind::Dir));
        let Some(entry) = self.base.get(&row.path).filter(|_| there) else {
            self.forget(content);
            return self.forgotten.push((Some(row.path), row.content));
        };
        let content =
            content.filter(|id| self.rows.get(id).and_then(|r| r.version.as_ref()).is_some_and(|v| v.entry == entry));
        let mut remote = Remote::of(&entry);
        if let Some(stamp) = content.and_then(|id| self.rows.get(&id)).and_then(|r| r.stamp) {
            remote.mtime = stamp.mtime;
        }
        if content.is_none() && row.content.is_some() {
            self.forget(row.content);
            // Owner and attributes stay with the name.
            let node = row.attrs.is_empty().then(|| row.path.clone());
            self.forgotten.push((node, row.content));
        }
        self.place(row, Content { id: content, remote });
    }

    fn forget(&mut self, content: Option<ContentId>) {
        if let Some(id) = content {
            self.rows.remove(&id);
        }
    }

    fn place(&mut self, row: NodeRow, content: Content) {
        let data = if row.kind == Kind::Symlink { NodeData::Symlink(content) } else { NodeData::File(content) };
        let (dir, name) = row.path.rsplit_once('/').unwrap_or(("", &row.path));
        let Ok(parent) = self.tree.make_dirs(dir) else {
            tracing::error!(path = row.path, "an unpushed file has no place in the tree");
            return;
        };
        if let Some(existing) = self.tree.child(parent, name) {
            if self.tree.kind(existing) == Some(Kind::Dir) {
                return;
            }
            self.tree.unlink(existing);
        }
        let ino = self.tree.insert(parent, name, data);
        if let Some(node) = self.tree.get_mut(ino)
            && !row.attrs.is_empty()
        {
            node.set_attrs(Some(row.attrs));
        }
    }

    /// Puts that have no node row: nothing local but the change itself.
    fn origin_only_puts(&mut self) {
        let missing: Vec<(String, NodeData)> = self
            .deltas
            .iter()
            .filter(|(path, _)| self.tree.find(path).is_none())
            .filter_map(|(path, row)| match &row.delta {
                Delta::Put { origin: Some(origin), .. } => Some((path.clone(), NodeData::of(&origin.entry))),
                _ => None,
            })
            .collect();
        for (path, data) in missing {
            let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
            if let Ok(parent) = self.tree.make_dirs(dir) {
                self.tree.insert(parent, name, data);
            }
        }
    }
}
