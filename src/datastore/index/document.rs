//! One document of an index: a JSON object with entries. The whole index of version 1, or one shard of version 2.
//!
//! Depends on names, paths and timestamps of the format; does no I/O. Invariants: reading and writing lose nothing that
//! belongs to somebody else (unknown fields, entries that cannot be shown, entries that make no sense), and internal names
//! are the only entries that are dropped, noticeably ([`Document::was_scrubbed`]).

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value};

use super::entry::Entry;
use super::error::{IndexError, IndexProblem};
use super::record::Fields;
use super::slots::{EntryRef, NameRef, Opaque, Slot, Slots};
use super::{parse, write};
use crate::datastore::path::RelPath;

/// One document in memory.
#[derive(Clone, Debug, Default)]
pub struct Document {
    /// Top-level fields in their order; `entries` is a placeholder.
    pub(super) top: Map<String, Value>,
    pub(super) slots: Slots,
    scrubbed: bool,
    duplicates: Vec<Box<str>>,
    /// Every directory on the way to an entry; computed when asked for.
    directories: OnceLock<HashSet<Box<str>>>,
}

impl Document {
    /// The index of a new bucket.
    pub fn empty() -> Self {
        let mut document = Self::default();
        document.top.insert("version".into(), Value::from(1));
        document.top.insert("lastPulled".into(), Value::from(""));
        document.top.insert("entries".into(), Value::Null);
        document
    }

    /// A shard without entries.
    pub fn empty_shard() -> Self {
        let mut document = Self::default();
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

    /// Takes an entry over as it was read; the name is a path.
    pub(super) fn insert_parsed(&mut self, name: &str, fields: &Fields<'_>) {
        if self.slots.set(NameRef::of(name), fields) {
            self.duplicates.push(name.into());
        }
    }

    /// Takes over what is not understood.
    pub(super) fn insert_opaque(&mut self, name: &str, value: Value, reason: String) {
        if self.slots.set_opaque(name, Arc::new(Opaque { value, reason })) {
            self.duplicates.push(name.into());
        }
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
        self.slots.known()
    }

    /// Whether no entry is understood.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it holds entries that are not understood.
    pub(super) fn has_oddities(&self) -> bool {
        self.slots.has_opaque()
    }

    /// The entry of a name.
    pub fn get(&self, path: &str) -> Option<EntryRef<'_>> {
        match self.slots.get(path)? {
            Slot::Known(entry) => Some(entry),
            Slot::Opaque(..) => None,
        }
    }

    /// As [`get`](Self::get), for a name of another document.
    pub(super) fn find(&self, name: NameRef<'_>) -> Option<EntryRef<'_>> {
        match self.slots.find(name)? {
            Slot::Known(entry) => Some(entry),
            Slot::Opaque(..) => None,
        }
    }

    /// Whether any entry has that name, understood or not.
    pub fn names(&self, key: &str) -> bool {
        self.slots.get(key).is_some()
    }

    /// Every name, of entries understood or not.
    pub fn all_names(&self) -> impl Iterator<Item = NameRef<'_>> {
        self.slots.iter().map(|slot| slot.name())
    }

    /// Every entry that is understood, in the order of the document.
    pub(super) fn understood(&self) -> impl Iterator<Item = EntryRef<'_>> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Known(entry) => Some(entry),
            Slot::Opaque(..) => None,
        })
    }

    /// Every directory on the way to an entry that is understood.
    pub(super) fn directories(&self) -> &HashSet<Box<str>> {
        self.directories.get_or_init(|| self.slots.all_directories())
    }

    /// Entries that are not understood, or that came twice, each with a reason.
    pub(super) fn problems(&self) -> impl Iterator<Item = IndexProblem> {
        let opaque = self.slots.opaque();
        let opaque =
            opaque.map(|(name, opaque)| IndexProblem { name: name.to_string(), reason: opaque.reason.clone() });
        let twice = "the index names it more than once; the last entry counts";
        let duplicates = self.duplicates.iter();
        opaque.chain(
            duplicates.map(move |name| IndexProblem { name: name.as_ref().to_owned(), reason: twice.to_owned() }),
        )
    }

    /// Adds or replaces the entry of a file.
    pub fn set(&mut self, path: &RelPath, entry: &Entry) {
        // Whatever came out of JSON goes back into it.
        let extra = entry.extra.as_ref().and_then(|extra| serde_json::to_string(extra).ok());
        self.directories = OnceLock::new();
        self.slots.set(NameRef::of(path.as_str()), &Fields::of(entry, extra.as_deref()));
    }

    /// Adds an entry under a name that cannot be shown, so that it is not lost.
    pub(super) fn set_unshowable(&mut self, name: &str, entry: &Entry, reason: String) {
        let mut value = Map::new();
        value.insert("key".into(), Value::from(name));
        value.insert("size".into(), Value::from(entry.size));
        value.insert("lastModified".into(), Value::from(entry.last_modified.as_str()));
        self.insert_opaque(name, Value::Object(value), reason);
    }

    /// Takes over an entry of another document as it is, understood or not.
    pub(super) fn take(&mut self, slot: &Slot<'_>) {
        self.directories = OnceLock::new();
        match slot {
            Slot::Known(entry) => self.slots.set(entry.name(), &entry.fields),
            Slot::Opaque(name, opaque) => self.slots.set_opaque(&name.to_string(), Arc::clone(opaque)),
        };
    }

    /// Takes over an entry of another document, by name; nothing if the other document does not have it.
    pub fn take_from(&mut self, other: &Self, name: &str) {
        if let Some(slot) = other.slots.get(name) {
            self.take(&slot);
        }
    }

    /// Removes the entry of a file; `false` when there is none that is understood.
    pub fn remove(&mut self, path: &str) -> bool {
        self.get(path).is_some() && self.forget(path)
    }

    /// Removes an entry, understood or not.
    pub fn forget(&mut self, name: &str) -> bool {
        self.directories = OnceLock::new();
        self.slots.remove(name)
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
