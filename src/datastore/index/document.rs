//! One document of an index: a JSON object with entries. The whole index of version 1, or one shard of version 2.
//!
//! Depends on names, paths and timestamps of the format; does no I/O. Invariants: reading and writing lose nothing that
//! belongs to somebody else (unknown fields, entries that cannot be shown, entries that make no sense), and internal names
//! are the only entries that are dropped, noticeably ([`Document::was_scrubbed`]). Clones share their entries.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::entry::Entry;
use super::error::{IndexError, IndexProblem};
use super::{parse, write};
use crate::datastore::path::RelPath;

/// A name in an index: mostly a path.
#[derive(Clone, Debug)]
pub(super) enum Name {
    Path(RelPath),
    Other(Box<str>),
}

impl Name {
    fn as_str(&self) -> &str {
        match self {
            Self::Path(path) => path.as_str(),
            Self::Other(text) => text,
        }
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

#[derive(Debug)]
pub(super) struct Opaque {
    pub value: Value,
    pub reason: String,
}

#[derive(Clone, Debug)]
pub(super) enum Slot {
    Known(Arc<Entry>),
    Opaque(Arc<Opaque>),
    /// Removed: keeps the order of the others without moving them.
    Gone,
}

/// One document in memory.
#[derive(Clone, Debug)]
pub struct Document {
    /// Top-level fields in their order; `entries` is a placeholder.
    pub(super) top: Map<String, Value>,
    slots: IndexMap<Name, Slot>,
    known: usize,
    gone: usize,
    scrubbed: bool,
    duplicates: Vec<Box<str>>,
    /// Every directory on the way to an entry; computed when asked for.
    directories: OnceLock<HashSet<Box<str>>>,
}

impl Document {
    pub(super) fn bare() -> Self {
        Self {
            top: Map::new(),
            slots: IndexMap::new(),
            known: 0,
            gone: 0,
            scrubbed: false,
            duplicates: Vec::new(),
            directories: OnceLock::new(),
        }
    }

    /// The index of a new bucket.
    pub fn empty() -> Self {
        let mut document = Self::bare();
        document.top.insert("version".into(), Value::from(1));
        document.top.insert("lastPulled".into(), Value::from(""));
        document.top.insert("entries".into(), Value::Null);
        document
    }

    /// A shard without entries.
    pub fn empty_shard() -> Self {
        let mut document = Self::bare();
        document.top.insert("version".into(), Value::from(1));
        document.top.insert("entries".into(), Value::Null);
        document
    }

    /// Reads a document; drops internal names.
    ///
    /// # Errors
    /// When the bytes are not a complete index of version 1.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        parse::parse(bytes)
    }

    pub(super) fn insert_parsed(&mut self, name: Name, slot: Slot) {
        let known = matches!(slot, Slot::Known(_));
        if self.slots.contains_key(name.as_str()) {
            self.duplicates.push(name.as_str().into());
        }
        let before = self.slots.insert(name, slot);
        self.known += usize::from(known);
        self.known -= usize::from(matches!(before, Some(Slot::Known(_))));
    }

    /// Internal names were dropped while it was read.
    pub(in crate::datastore) fn note_scrubbed(&mut self) {
        self.scrubbed = true;
    }

    /// Whether internal names were dropped when it was read, so that it should be written back.
    pub fn was_scrubbed(&self) -> bool {
        self.scrubbed
    }

    /// How many entries are understood.
    pub fn len(&self) -> usize {
        self.known
    }

    /// Whether no entry is understood.
    pub fn is_empty(&self) -> bool {
        self.known == 0
    }

    /// Whether it holds entries that are not understood.
    pub(super) fn has_oddities(&self) -> bool {
        self.known + self.gone != self.slots.len()
    }

    /// The entry of a name.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        match self.slots.get(path) {
            Some(Slot::Known(entry)) => Some(entry),
            _ => None,
        }
    }

    /// Whether any entry has that name, understood or not.
    pub fn names(&self, key: &str) -> bool {
        matches!(self.slots.get(key), Some(Slot::Known(_) | Slot::Opaque(_)))
    }

    /// Every name, of entries understood or not.
    pub fn all_names(&self) -> impl Iterator<Item = &str> {
        self.slots().map(|(name, _)| name)
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = (&str, &Slot)> {
        self.slots.iter().filter(|(_, slot)| !matches!(slot, Slot::Gone)).map(|(name, slot)| (name.as_str(), slot))
    }

    /// Every entry that is understood, in the order of the document.
    pub(super) fn understood(&self) -> impl Iterator<Item = (&RelPath, &Arc<Entry>)> {
        self.slots.iter().filter_map(|(name, slot)| match (name, slot) {
            (Name::Path(path), Slot::Known(entry)) => Some((path, entry)),
            _ => None,
        })
    }

    /// The path of an entry that is understood, sharing its text.
    pub(super) fn path_of(&self, path: &str) -> Option<&RelPath> {
        match self.slots.get_full(path) {
            Some((_, Name::Path(path), Slot::Known(_))) => Some(path),
            _ => None,
        }
    }

    /// Every directory on the way to an entry that is understood.
    pub(super) fn directories(&self) -> &HashSet<Box<str>> {
        self.directories.get_or_init(|| {
            let mut found: HashSet<Box<str>> = HashSet::new();
            for (path, _) in self.understood() {
                // Deepest first: what is known has its parents in the set.
                for directory in path.ancestors() {
                    if found.contains(directory) {
                        break;
                    }
                    found.insert(directory.into());
                }
            }
            found
        })
    }

    /// Entries that are not understood, or that came twice, each with a reason.
    pub(super) fn problems(&self) -> impl Iterator<Item = IndexProblem> {
        let opaque = self.slots().filter_map(|(name, slot)| match slot {
            Slot::Opaque(opaque) => Some(IndexProblem { name: name.to_owned(), reason: opaque.reason.clone() }),
            _ => None,
        });
        let twice = "the index names it more than once; the last entry counts";
        let duplicates = self.duplicates.iter();
        opaque.chain(
            duplicates.map(move |name| IndexProblem { name: name.as_ref().to_owned(), reason: twice.to_owned() }),
        )
    }

    /// Adds or replaces the entry of a file.
    pub fn set(&mut self, path: &RelPath, entry: Entry) {
        self.set_shared(path, Arc::new(entry));
    }

    pub(super) fn set_shared(&mut self, path: &RelPath, entry: Arc<Entry>) {
        self.directories = OnceLock::new();
        match self.slots.get_mut(path.as_str()) {
            Some(slot) => {
                self.gone -= usize::from(matches!(slot, Slot::Gone));
                self.known += usize::from(!matches!(slot, Slot::Known(_)));
                *slot = Slot::Known(entry);
            }
            None => {
                self.known += 1;
                self.slots.insert(Name::Path(path.clone()), Slot::Known(entry));
            }
        }
    }

    /// Adds an entry under a name that cannot be shown, so that it is not lost.
    pub(super) fn set_unshowable(&mut self, name: &str, entry: &Entry, reason: String) {
        let mut value = Map::new();
        value.insert("key".into(), Value::from(name));
        value.insert("size".into(), Value::from(entry.size));
        value.insert("lastModified".into(), Value::from(entry.last_modified.as_str()));
        let opaque = Opaque { value: Value::Object(value), reason };
        self.insert_parsed(Name::Other(name.into()), Slot::Opaque(Arc::new(opaque)));
    }

    /// Takes over an entry of another document as it is, understood or not.
    pub fn take_from(&mut self, other: &Self, name: &str) {
        if let Some((_, key, slot)) = other.slots.get_full(name)
            && !matches!(slot, Slot::Gone)
        {
            self.directories = OnceLock::new();
            let before = self.slots.insert(key.clone(), slot.clone());
            self.known += usize::from(matches!(slot, Slot::Known(_)));
            self.known -= usize::from(matches!(before, Some(Slot::Known(_))));
            self.gone -= usize::from(matches!(before, Some(Slot::Gone)));
        }
    }

    /// Removes the entry of a file; `false` when there is none that is understood.
    pub fn remove(&mut self, path: &str) -> bool {
        matches!(self.slots.get(path), Some(Slot::Known(_))) && self.forget(path)
    }

    /// Removes an entry, understood or not.
    pub fn forget(&mut self, name: &str) -> bool {
        match self.slots.get_mut(name) {
            None | Some(Slot::Gone) => return false,
            Some(slot) => {
                self.known -= usize::from(matches!(slot, Slot::Known(_)));
                *slot = Slot::Gone;
            }
        }
        self.directories = OnceLock::new();
        self.gone += 1;
        if self.gone > 64 && self.gone > self.slots.len() / 2 {
            self.slots.retain(|_, slot| !matches!(slot, Slot::Gone));
            self.gone = 0;
        }
        true
    }

    /// Names of the top-level fields besides those that every index has.
    pub fn foreign_fields(&self) -> impl Iterator<Item = &str> {
        self.top.keys().map(String::as_str).filter(|name| !matches!(*name, "version" | "lastPulled" | "entries"))
    }

    /// Sets the field `lastPulled`.
    pub fn set_last_pulled(&mut self, iso: &str) {
        self.top.insert("lastPulled".into(), Value::from(iso));
    }

    /// Compact JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        write::compact(self)
    }

    /// JSON indented by two spaces.
    pub fn to_indented(&self) -> Vec<u8> {
        write::indented(self)
    }
}
