//! The view over the parts of an index.
//!
//! Invariants: where several parts hold a path, one of them counts, the same for every question: the listed shard that the
//! newest rule derives, else another listed one, else one that is not listed; a change is made in every part that holds the
//! path, so that clients which prefer another part see it too.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use super::document::Document;
use super::entry::Entry;
use super::error::{IndexError, IndexProblem};
use super::meta::Meta;
use super::part::{MONOLITH, Part, PartName, PartStamp};
use super::slots::{EntryRef, NameRef};
use crate::datastore::partition;
use crate::datastore::path::RelPath;
use crate::store::Fingerprint;

/// How an index lies in its bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One object (version 1).
    Monolith,
    /// One object per partition (version 2).
    Shards,
}

/// An index in memory.
#[derive(Clone, Debug)]
pub struct Index {
    /// Present for shards.
    meta: Option<Meta>,
    parts: BTreeMap<PartName, Part>,
    /// Which parts hold a path that the newest rule puts elsewhere.
    elsewhere: HashMap<Box<str>, Vec<PartName>>,
    /// Files whose name is also a directory; computed when asked for.
    shadowed: OnceLock<Arc<HashSet<RelPath>>>,
}

impl Index {
    /// The index of a new bucket.
    pub fn empty() -> Self {
        Self::monolith(Document::empty(), PartStamp::default())
    }

    /// Reads an index of version 1, without a stamp; drops internal names.
    ///
    /// # Errors
    /// When the bytes are not a complete index of version 1.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        Ok(Self::monolith(Document::parse(bytes)?, PartStamp::default()))
    }

    /// An index of version 1.
    pub fn monolith(document: Document, stamp: PartStamp) -> Self {
        let part = Part::new(MONOLITH, Arc::new(document), stamp, true);
        Self::over(None, BTreeMap::from([(PartName::from(MONOLITH), part)]))
    }

    /// An index of version 1 from its saved part.
    pub fn from_monolith_part(parts: BTreeMap<PartName, Part>) -> Option<Self> {
        (parts.len() == 1 && parts.contains_key(MONOLITH)).then(|| Self::over(None, parts))
    }

    /// An index of version 2. A part that `meta` does not list is one that was found beside.
    pub fn sharded(meta: Meta, parts: BTreeMap<PartName, Part>) -> Self {
        Self::over(Some(meta), parts)
    }

    fn over(meta: Option<Meta>, parts: BTreeMap<PartName, Part>) -> Self {
        let mut elsewhere: HashMap<Box<str>, Vec<PartName>> = HashMap::new();
        for (name, part) in &parts {
            for path in part.foreign.iter() {
                elsewhere.entry(path.clone()).or_default().push(name.clone());
            }
        }
        Self { meta, parts, elsewhere, shadowed: OnceLock::new() }
    }

    /// The same index of version 1, known to be that version of its object.
    pub fn with_fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.stamp(MONOLITH, PartStamp { fingerprint: Some(fingerprint), written_at: None });
        self
    }

    /// How it lies in its bucket.
    pub fn layout(&self) -> Layout {
        if self.meta.is_some() { Layout::Shards } else { Layout::Monolith }
    }

    /// The list of shards.
    pub fn meta(&self) -> Option<&Meta> {
        self.meta.as_ref()
    }

    /// Its parts by name.
    pub fn parts(&self) -> &BTreeMap<PartName, Part> {
        &self.parts
    }

    /// The fingerprint of its object, for an index of version 1.
    pub fn fingerprint(&self) -> Option<&Fingerprint> {
        self.parts.get(MONOLITH)?.stamp.fingerprint.as_ref()
    }

    /// Whether another index is the same version of the same objects.
    pub fn is_same_version(&self, other: &Self) -> bool {
        self.layout() == other.layout()
            && self.parts.len() == other.parts.len()
            && self.parts.iter().all(|(name, part)| {
                let same =
                    |other: &Part| other.stamp.fingerprint == part.stamp.fingerprint && other.listed == part.listed;
                other.parts.get(name).is_some_and(same)
            })
    }

    /// What stands for all parts of an index of version 2 together; `None` when some fingerprint is not known.
    pub fn digest(&self) -> Option<String> {
        let stamped =
            |(name, part): (&PartName, &Part)| Some((name.clone(), part.stamp.fingerprint.clone()?, part.listed));
        let parts: Option<Vec<_>> = self.parts.iter().map(stamped).collect();
        Some(digest_of(parts?.iter().map(|(name, fingerprint, listed)| (&**name, fingerprint, *listed))))
    }

    /// When the part that holds, or would hold, a path was written, by the store's clock, in seconds since the epoch.
    pub fn written_at(&self, path: &str) -> Option<i64> {
        let part = self.holder(path).map(|(_, part)| part).or_else(|| self.parts.get(&*self.home(path)));
        part?.stamp.written_at
    }

    /// The part that the newest rule derives for a path.
    pub fn home(&self, path: &str) -> PartName {
        match self.layout() {
            Layout::Monolith => MONOLITH.into(),
            Layout::Shards => partition::ours(path).into(),
        }
    }

    /// The parts that a change of a path touches: its home, and whatever else holds it.
    pub fn touched_by(&self, path: &str) -> Vec<PartName> {
        let mut touched = vec![self.home(path)];
        for name in self.elsewhere.get(path).into_iter().flatten() {
            if self.parts.get(name).is_some_and(|part| part.document.names(path)) {
                touched.push(name.clone());
            }
        }
        touched
    }

    /// The part whose entry for a path counts.
    fn holder(&self, path: &str) -> Option<(&PartName, &Part)> {
        let home = self.parts.get_key_value(&*self.home(path)).filter(|(_, part)| part.document.names(path));
        if home.is_some_and(|(_, part)| part.listed) || self.elsewhere.is_empty() {
            return home;
        }
        let others = self.elsewhere.get(path).into_iter().flatten();
        let others = others.filter_map(|name| self.parts.get_key_value(name));
        let others = others.filter(|(_, part)| part.document.names(path));
        let rank = |(name, part): &(&PartName, &Part)| {
            let changed = part.document.get(path).map(|entry| entry.to_entry().last_modified).unwrap_or_default();
            (part.listed, &***name != partition::MOUNT_PARTITION, changed, (*name).clone())
        };
        let best = others.max_by_key(rank);
        match (home, best) {
            (Some(_), Some(best)) if best.1.listed => Some(best),
            (home @ Some(_), _) => home,
            (None, best) => best,
        }
    }

    /// Whether internal names were dropped when it was read, so that it should be written back.
    pub fn was_scrubbed(&self) -> bool {
        self.parts.values().any(|part| part.document.was_scrubbed())
    }

    /// How many entries are understood.
    pub fn len(&self) -> usize {
        let all: usize = self.parts.values().map(|part| part.document.len()).sum();
        let again = self.elsewhere.iter().map(|(path, held)| {
            let holds = |name: &PartName| self.parts.get(name).is_some_and(|p| p.document.get(path).is_some());
            let copies = held.iter().filter(|name| holds(name)).count() + usize::from(holds(&self.home(path)));
            copies.saturating_sub(1)
        });
        all - again.sum::<usize>()
    }

    /// Whether no entry is understood.
    pub fn is_empty(&self) -> bool {
        self.parts.values().all(|part| part.document.is_empty())
    }

    /// Whether every entry that it holds, understood or not, can be a file in a directory tree.
    pub fn is_fully_representable(&self) -> bool {
        self.parts.values().all(|part| !part.document.has_oddities()) && self.shadowed().is_empty()
    }

    /// Whether an entry that is understood lies below this path.
    pub fn is_directory(&self, path: &str) -> bool {
        self.parts.values().any(|part| part.document.directories().contains(path))
    }

    /// The entry of a name.
    pub fn get(&self, path: &str) -> Option<Entry> {
        self.find(path).map(|entry| entry.to_entry())
    }

    /// The entry of a name, as it lies here.
    pub fn find(&self, path: &str) -> Option<EntryRef<'_>> {
        self.holder(path)?.1.document.get(path)
    }

    /// Whether any entry has that name, understood or not: its object must not be deleted.
    pub fn names(&self, key: &str) -> bool {
        self.holder(key).is_some()
    }

    /// Whether the entry of a name in a part is the one that counts.
    fn counts_in(&self, part: &PartName, name: NameRef<'_>) -> bool {
        if self.elsewhere.is_empty() {
            return true;
        }
        let path = name.to_string();
        !self.elsewhere.contains_key(&*path) || self.holder(&path).is_some_and(|(holder, _)| holder == part)
    }

    /// Every entry that is understood and counts.
    fn understood(&self) -> impl Iterator<Item = EntryRef<'_>> {
        self.parts.iter().flat_map(move |(name, part)| {
            part.document.understood().filter(move |entry| self.counts_in(name, entry.name()))
        })
    }

    /// Every file that a tree can show, in the order of the index: without `f` where `f/g` exists.
    pub fn entries(&self) -> impl Iterator<Item = EntryRef<'_>> {
        let shadowed = self.shadowed();
        self.understood().filter(move |entry| shadowed.is_empty() || !shadowed.contains(&entry.path()))
    }

    /// The entry of a file, if a tree can show it: not that of `f` where `f/g` exists.
    pub fn shown(&self, path: &RelPath) -> Option<EntryRef<'_>> {
        self.find(path.as_str()).filter(|_| !self.shadowed().contains(path))
    }

    /// Directories that only a marker (`dir/`) names: to be shown, unless a file has that name.
    pub fn marked_directories(&self) -> impl Iterator<Item = RelPath> {
        self.parts.values().filter(|part| part.document.has_oddities()).flat_map(|part| {
            part.document.all_names().filter_map(|name| {
                let path = RelPath::parse(name.to_string().strip_suffix('/')?).ok()?;
                let shadowed = self.shadowed();
                let is_file = |path: &str| self.find(path).is_some() && !shadowed.contains(path);
                (!is_file(path.as_str()) && !path.ancestors().any(is_file)).then_some(path)
            })
        })
    }

    fn shadowed(&self) -> &Arc<HashSet<RelPath>> {
        self.shadowed.get_or_init(|| {
            let directories = self.parts.values().flat_map(|part| part.document.directories());
            Arc::new(directories.filter_map(|directory| Some(self.find(directory)?.path())).collect())
        })
    }

    /// Entries that cannot be shown, or not without doubt, each with a reason.
    pub fn problems(&self) -> Vec<IndexProblem> {
        let mut problems: Vec<_> = self.parts.values().flat_map(|part| part.document.problems()).collect();
        let shadowed = self.shadowed();
        problems.extend(shadowed.iter().map(|path| IndexProblem {
            name: path.to_string(),
            reason: "it is also the directory of other entries, and the directory is shown".to_owned(),
        }));
        problems
    }

    /// Paths whose entry differs from that in an older index, removals first: a file may have become a directory.
    pub fn changed_since(&self, old: &Self) -> Vec<RelPath> {
        let mut candidates: HashSet<RelPath> = HashSet::new();
        for (of, than) in [(old, self), (self, old)] {
            for (name, part) in &of.parts {
                // A part that is listed, or not any more, may count where another one did.
                let other = than.parts.get(name).filter(|other| other.listed == part.listed);
                if other.is_some_and(|other| Arc::ptr_eq(&other.document, &part.document)) {
                    continue;
                }
                let same = |entry: &EntryRef<'_>| {
                    let other = other.and_then(|other| other.document.find(entry.name()));
                    other.is_some_and(|other| other.says_the_same(entry))
                };
                candidates.extend(part.document.understood().filter(|entry| !same(entry)).map(|entry| entry.path()));
            }
        }
        candidates.extend(self.shadowed().iter().cloned());
        candidates.extend(old.shadowed().iter().cloned());
        let mut removed = Vec::new();
        let mut others = Vec::new();
        for path in candidates {
            match (old.shown(&path), self.shown(&path)) {
                (Some(_), None) => removed.push(path),
                (Some(before), Some(after)) if before.says_the_same(&after) => {}
                (None, None) => {}
                _ => others.push(path),
            }
        }
        removed.extend(others);
        removed
    }

    /// Adds or replaces the entry of a file, in every part that holds it.
    pub fn set(&mut self, path: &RelPath, entry: &Entry) {
        for name in self.touched_by(path.as_str()) {
            let part = self.parts.entry(name).or_insert_with(|| Part {
                document: Arc::new(Document::empty_shard()),
                stamp: PartStamp::default(),
                listed: true,
                foreign: Arc::default(),
            });
            Arc::make_mut(&mut part.document).set(path, entry);
        }
        self.shadowed = OnceLock::new();
    }

    /// Adds an entry under a name that cannot be shown, so that it is not lost.
    pub(in crate::datastore) fn set_unshowable(&mut self, name: &str, entry: &Entry, reason: String) {
        if let Some(part) = self.parts.get_mut(&*self.home(name)) {
            Arc::make_mut(&mut part.document).set_unshowable(name, entry, reason);
        }
    }

    /// Removes the entry of a file from every part; `false` when there is none that is understood.
    pub fn remove(&mut self, path: &str) -> bool {
        let mut removed = false;
        for name in self.touched_by(path) {
            if let Some(part) = self.parts.get_mut(&name).filter(|part| part.document.get(path).is_some()) {
                removed |= Arc::make_mut(&mut part.document).remove(path);
            }
        }
        self.shadowed = OnceLock::new();
        removed
    }

    /// Notes which version of its object a part is now: from the answer to its write.
    pub(in crate::datastore) fn stamp(&mut self, name: &str, stamp: PartStamp) {
        if let Some(part) = self.parts.get_mut(name) {
            part.stamp = stamp;
        }
    }

    /// Takes over the list as it was written.
    pub(in crate::datastore) fn list_parts(&mut self, meta: Meta) {
        for (name, part) in &mut self.parts {
            part.listed = meta.partitions.contains(name);
        }
        self.meta = Some(meta);
    }

    /// Sets the field `lastPulled` of an index of version 1.
    pub fn set_last_pulled(&mut self, iso: &str) {
        if let Some(part) = self.parts.get_mut(MONOLITH) {
            Arc::make_mut(&mut part.document).set_last_pulled(iso);
        }
    }

    /// The same entries as shards, placed by the newest rule, all listed.
    pub fn split(&self) -> Self {
        let whole = self.to_document();
        let mut documents: BTreeMap<PartName, Document> = BTreeMap::new();
        for slot in whole.slots.iter() {
            let name = slot.name().to_string();
            documents.entry(partition::ours(&name).into()).or_insert_with(Document::empty_shard).take(&slot);
        }
        let part = |(name, document): (PartName, Document)| {
            let part = Part::new(&name, Arc::new(document), PartStamp::default(), true);
            (name, part)
        };
        let parts: BTreeMap<PartName, Part> = documents.into_iter().map(part).collect();
        Self::sharded(Meta::of(parts.keys().cloned().collect()), parts)
    }

    /// The same entries as one document: the form of version 1, which copies in cache directories have.
    pub fn to_document(&self) -> Arc<Document> {
        if let Some(part) = self.parts.get(MONOLITH) {
            return Arc::clone(&part.document);
        }
        let mut whole = Document::empty();
        for (name, part) in &self.parts {
            for slot in part.document.slots.iter().filter(|slot| self.counts_in(name, slot.name())) {
                whole.take(&slot);
            }
        }
        Arc::new(whole)
    }

    /// [`to_document`](Self::to_document), as compact JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.to_document().to_bytes()
    }

    /// [`to_document`](Self::to_document), as JSON indented by two spaces.
    pub fn to_indented(&self) -> Vec<u8> {
        self.to_document().to_indented()
    }
}

/// What stands for shards, given by name, fingerprint and whether they are listed, in the order of their names.
pub fn digest_of<'a>(shards: impl Iterator<Item = (&'a str, &'a Fingerprint, bool)>) -> String {
    let mut hash = Sha256::new();
    for (name, fingerprint, listed) in shards {
        hash.update(format!("{name}\n{fingerprint}\n{listed}\n"));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
