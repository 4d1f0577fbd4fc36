//! The index, version 1: every file of a datastore by name.
//!
//! Depends on names, paths and timestamps of the format; does no I/O. Invariants: reading and writing lose nothing that
//! belongs to somebody else (unknown fields, entries that cannot be shown, entries that make no sense), and internal names
//! are the only entries that are dropped, noticeably ([`Index::was_scrubbed`]). Clones share their entries.

mod entry;
mod parse;
#[cfg(test)]
mod tests;
mod write;

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, OnceLock};

use indexmap::IndexMap;
use serde_json::{Map, Value};

pub use entry::{Entry, EntryKind, MAX_SIZE};

use super::path::RelPath;

/// Why bytes are not an index that we can read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Not JSON, or cut off.
    #[error(
        "the index is not readable JSON ({0}); nothing was changed. Restore it from a version of the bucket, or let a reference client with a good cache push it again"
    )]
    Json(String),
    /// JSON of another shape.
    #[error("the document is not an index: {0}; nothing was changed")]
    NotAnIndex(String),
    /// Sharded.
    #[error("the index has version 2 (sharded), which this release does not read; use a newer swamp-mount")]
    Version2,
    /// A version that does not exist yet.
    #[error("the index has the unknown version {0}; use a newer swamp-mount")]
    UnknownVersion(String),
}

impl IndexError {
    fn json(error: serde_json::Error) -> Self {
        Self::Json(error.to_string().chars().take(256).collect())
    }
}

/// An entry that cannot be shown as a file, or not without doubt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexProblem {
    /// Its name in the index.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}

/// A name in an index: mostly a path.
#[derive(Clone, Debug)]
enum Name {
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
struct Opaque {
    value: Value,
    reason: String,
}

#[derive(Clone, Debug)]
enum Slot {
    Known(Arc<Entry>),
    Opaque(Arc<Opaque>),
    /// Removed: keeps the order of the others without moving them.
    Gone,
}

/// An index in memory.
#[derive(Clone, Debug)]
pub struct Index {
    /// Top-level fields in their order; `entries` is a placeholder.
    top: Map<String, Value>,
    slots: IndexMap<Name, Slot>,
    known: usize,
    gone: usize,
    scrubbed: bool,
    duplicates: Vec<Box<str>>,
    /// Files whose name is also a directory; computed when asked for.
    shadowed: OnceLock<Arc<HashSet<RelPath>>>,
}

impl Index {
    fn bare() -> Self {
        Self {
            top: Map::new(),
            slots: IndexMap::new(),
            known: 0,
            gone: 0,
            scrubbed: false,
            duplicates: Vec::new(),
            shadowed: OnceLock::new(),
        }
    }

    /// The index of a new bucket.
    pub fn empty() -> Self {
        let mut index = Self::bare();
        index.top.insert("version".into(), Value::from(1));
        index.top.insert("lastPulled".into(), Value::from(""));
        index.top.insert("entries".into(), Value::Null);
        index
    }

    /// Reads an index; drops internal names.
    ///
    /// # Errors
    /// When the bytes are not a complete index of version 1.
    pub fn parse(bytes: &[u8]) -> Result<Self, IndexError> {
        parse::parse(bytes)
    }

    fn insert_parsed(&mut self, name: Name, slot: Slot) {
        let known = matches!(slot, Slot::Known(_));
        if self.slots.contains_key(name.as_str()) {
            self.duplicates.push(name.as_str().into());
        }
        let before = self.slots.insert(name, slot);
        self.known += usize::from(known);
        self.known -= usize::from(matches!(before, Some(Slot::Known(_))));
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

    /// Whether every entry that it holds, understood or not, can be a file in a directory tree.
    pub fn is_fully_representable(&self) -> bool {
        self.known + self.gone == self.slots.len() && self.shadowed().is_empty()
    }

    /// The entry of a name.
    pub fn get(&self, path: &str) -> Option<&Entry> {
        match self.slots.get(path) {
            Some(Slot::Known(entry)) => Some(entry),
            _ => None,
        }
    }

    /// Whether any entry has that name, understood or not: its object must not be deleted.
    pub fn names(&self, key: &str) -> bool {
        matches!(self.slots.get(key), Some(Slot::Known(_) | Slot::Opaque(_)))
    }

    fn slots(&self) -> impl Iterator<Item = (&str, &Slot)> {
        self.slots.iter().filter(|(_, slot)| !matches!(slot, Slot::Gone)).map(|(name, slot)| (name.as_str(), slot))
    }

    fn understood(&self) -> impl Iterator<Item = (&RelPath, &Arc<Entry>)> {
        self.slots.iter().filter_map(|(name, slot)| match (name, slot) {
            (Name::Path(path), Slot::Known(entry)) => Some((path, entry)),
            _ => None,
        })
    }

    /// Every file that a tree can show, in the order of the index: without `f` where `f/g` exists.
    pub fn entries(&self) -> impl Iterator<Item = (&RelPath, &Entry)> {
        let shadowed = self.shadowed();
        self.understood().filter(move |(path, _)| !shadowed.contains(*path)).map(|(path, entry)| (path, &**entry))
    }

    /// The entry of a file, if a tree can show it: not that of `f` where `f/g` exists.
    pub fn shown(&self, path: &RelPath) -> Option<&Entry> {
        self.get(path.as_str()).filter(|_| !self.shadowed().contains(path))
    }

    /// Directories that only a marker (`dir/`) names: to be shown, unless a file has that name.
    pub fn marked_directories(&self) -> impl Iterator<Item = RelPath> {
        self.slots().filter_map(|(name, _)| {
            let path = RelPath::parse(name.strip_suffix('/')?).ok()?;
            let shadowed = self.shadowed();
            let is_file = |path: &str| self.get(path).is_some() && !shadowed.contains(path);
            (!is_file(path.as_str()) && !path.ancestors().any(is_file)).then_some(path)
        })
    }

    fn shadowed(&self) -> &Arc<HashSet<RelPath>> {
        self.shadowed.get_or_init(|| {
            let mut shadowed = HashSet::new();
            for (path, _) in self.understood() {
                for directory in path.ancestors() {
                    if let Some((_, Name::Path(file), Slot::Known(_))) = self.slots.get_full(directory) {
                        shadowed.insert(file.clone());
                    }
                }
            }
            Arc::new(shadowed)
        })
    }

    /// Entries that cannot be shown, or not without doubt, each with a reason.
    pub fn problems(&self) -> Vec<IndexProblem> {
        let problem = |name: &str, reason: &str| IndexProblem { name: name.to_owned(), reason: reason.to_owned() };
        let mut problems: Vec<_> = self
            .slots()
            .filter_map(|(name, slot)| match slot {
                Slot::Opaque(opaque) => Some(problem(name, &opaque.reason)),
                _ => None,
            })
            .collect();
        let shadowed = self.shadowed();
        problems.extend(self.understood().filter(|(path, _)| shadowed.contains(*path)).map(|(path, _)| {
            problem(path.as_str(), "it is also the directory of other entries, and the directory is shown")
        }));
        let twice = "the index names it more than once; the last entry counts";
        problems.extend(self.duplicates.iter().map(|name| problem(name, twice)));
        problems
    }

    /// Adds or replaces the entry of a file.
    pub fn set(&mut self, path: &RelPath, entry: Entry) {
        self.shadowed = OnceLock::new();
        match self.slots.get_mut(path.as_str()) {
            Some(slot) => {
                self.gone -= usize::from(matches!(slot, Slot::Gone));
                self.known += usize::from(!matches!(slot, Slot::Known(_)));
                *slot = Slot::Known(Arc::new(entry));
            }
            None => {
                self.known += 1;
                self.slots.insert(Name::Path(path.clone()), Slot::Known(Arc::new(entry)));
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

    /// Removes the entry of a file; `false` when there is none that is understood.
    pub fn remove(&mut self, path: &str) -> bool {
        match self.slots.get_mut(path) {
            Some(slot @ Slot::Known(_)) => *slot = Slot::Gone,
            _ => return false,
        }
        self.shadowed = OnceLock::new();
        self.known -= 1;
        self.gone += 1;
        if self.gone > 64 && self.gone > self.slots.len() / 2 {
            self.slots.retain(|_, slot| !matches!(slot, Slot::Gone));
            self.gone = 0;
        }
        true
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
