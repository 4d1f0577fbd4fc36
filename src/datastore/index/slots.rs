//! The entries of a document, packed: one buffer of records, found by name through a table of positions.
//!
//! Depends on nothing else of the index but records. Invariants: entries keep the order in which they came, and one that is
//! replaced keeps its place; a directory is stored once for all names in it; room that replaced records took is given back
//! before it is as much as all others.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};
use serde_json::Value;

use super::entry::{Entry, EntryKind};
use super::record::{Cursor, Fields, put_number, put_text};
use crate::datastore::path::RelPath;

/// From so many bytes of unused records on the buffer is packed anew.
const MUCH_WASTE: usize = 64 << 10;

/// An entry that is not understood.
#[derive(Debug)]
pub(super) struct Opaque {
    pub value: Value,
    pub reason: String,
}

/// Where a record begins: five bytes, which is more than an index of any size that is read can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offset([u8; 5]);

impl Offset {
    /// No record: the entry was removed.
    const GONE: Self = Self([0xFF; 5]);

    fn new(at: usize) -> Self {
        let [a, b, c, d, e, ..] = (at as u64).to_le_bytes();
        Self([a, b, c, d, e])
    }

    fn get(self) -> usize {
        let Self([a, b, c, d, e]) = self;
        u64::from_le_bytes([a, b, c, d, e, 0, 0, 0]) as usize
    }
}

#[derive(Clone, Debug)]
struct Directory {
    /// With its slash at the end; empty for the root.
    text: Arc<str>,
    /// How many entries it has that are understood.
    known: u32,
}

/// The entries of a document.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    bytes: Vec<u8>,
    /// Of every entry, in order.
    offsets: Vec<Offset>,
    /// Positions in `offsets`, by name.
    lookup: HashTable<u32>,
    hasher: DefaultHashBuilder,
    directories: Vec<Directory>,
    directory_ids: HashMap<Arc<str>, u32>,
    /// What is not understood, by position.
    opaque: BTreeMap<u32, Arc<Opaque>>,
    gone: usize,
    /// Bytes of records that no offset names.
    waste: usize,
}

/// The name of an entry.
#[derive(Clone, Copy, Debug)]
pub struct NameRef<'a> {
    /// Up to its last slash, that included.
    directory: &'a str,
    last: &'a str,
}

impl<'a> NameRef<'a> {
    /// Splits a name.
    pub(super) fn of(text: &'a str) -> Self {
        let (directory, last) = text.split_at(text.rfind('/').map_or(0, |slash| slash + 1));
        Self { directory, last }
    }

    /// The path of the directory; empty for the root.
    pub fn directory(self) -> &'a str {
        self.directory.strip_suffix('/').unwrap_or(self.directory)
    }

    /// What comes after the last slash.
    pub fn last(self) -> &'a str {
        self.last
    }

    /// Puts the whole name in place of what `buffer` held.
    pub fn write_into(self, buffer: &mut String) {
        buffer.clear();
        buffer.push_str(self.directory);
        buffer.push_str(self.last);
    }
}

impl std::fmt::Display for NameRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.directory)?;
        f.write_str(self.last)
    }
}

/// An entry that is understood, as it lies in the index.
#[derive(Clone, Copy, Debug)]
pub struct EntryRef<'a> {
    name: NameRef<'a>,
    pub(super) fields: Fields<'a>,
}

impl<'a> EntryRef<'a> {
    /// Its name.
    pub fn name(&self) -> NameRef<'a> {
        self.name
    }

    /// Its path.
    pub fn path(&self) -> RelPath {
        RelPath::from_checked(&self.name.to_string())
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.fields.size
    }

    /// What the entry describes.
    pub fn kind(&self) -> EntryKind {
        self.fields.kind()
    }

    /// As [`Entry::mtime_nanos`].
    pub fn mtime_nanos(&self) -> Option<i64> {
        self.fields.mtime_nanos()
    }

    /// The entry by itself.
    pub fn to_entry(&self) -> Entry {
        self.fields.to_entry()
    }

    /// Whether it says the same as another.
    pub(super) fn says_the_same(&self, other: &EntryRef<'_>) -> bool {
        self.fields == other.fields
            || (self.fields.extra.is_some() && other.fields.extra.is_some() && self.to_entry() == other.to_entry())
    }
}

/// What a document has under a name.
pub(super) enum Slot<'a> {
    Known(EntryRef<'a>),
    Opaque(NameRef<'a>, &'a Arc<Opaque>),
}

impl<'a> Slot<'a> {
    pub fn name(&self) -> NameRef<'a> {
        match self {
            Self::Known(entry) => entry.name,
            Self::Opaque(name, _) => *name,
        }
    }
}

impl Slots {
    /// How many entries are understood.
    pub fn known(&self) -> usize {
        self.len() - self.opaque.len()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.offsets.len() - self.gone
    }

    /// Whether entries are not understood.
    pub fn has_opaque(&self) -> bool {
        !self.opaque.is_empty()
    }

    pub fn get(&self, name: &str) -> Option<Slot<'_>> {
        self.slot(self.position(NameRef::of(name))?)
    }

    pub fn find(&self, name: NameRef<'_>) -> Option<Slot<'_>> {
        self.slot(self.position(name)?)
    }

    /// Every entry, in order.
    pub fn iter(&self) -> impl Iterator<Item = Slot<'_>> {
        // Positions are counted in 32 bits: an index of the largest size that is read has far fewer entries.
        (0..self.offsets.len() as u32).filter_map(|position| self.slot(position))
    }

    /// Those that are not understood.
    pub fn opaque(&self) -> impl Iterator<Item = (NameRef<'_>, &Opaque)> {
        self.opaque.iter().filter_map(|(position, opaque)| Some((self.name(*position)?, &**opaque)))
    }

    /// Every directory that holds an entry that is understood, without the root.
    pub fn directories(&self) -> impl Iterator<Item = &str> {
        let used = self.directories.iter().filter(|directory| directory.known > 0);
        used.filter_map(|directory| directory.text.strip_suffix('/'))
    }

    /// Adds or replaces an entry; `true` when there was one.
    pub fn set(&mut self, name: NameRef<'_>, fields: &Fields<'_>) -> bool {
        self.put(name, None, |out| fields.encode(out))
    }

    /// Adds or replaces an entry that is not understood; `true` when there was one.
    pub fn set_opaque(&mut self, name: &str, opaque: Arc<Opaque>) -> bool {
        self.put(NameRef::of(name), Some(opaque), |_| {})
    }

    /// Removes an entry; `false` when there is none.
    pub fn remove(&mut self, name: &str) -> bool {
        let Some(position) = self.position(NameRef::of(name)) else { return false };
        let hash = self.hash(NameRef::of(name));
        if let Ok(found) = self.lookup.find_entry(hash, |at| *at == position) {
            found.remove();
        }
        self.drop_record(position);
        self.offsets[position as usize] = Offset::GONE;
        self.gone += 1;
        if self.waste > MUCH_WASTE && self.waste > self.bytes.len() / 2 {
            self.pack();
        }
        true
    }

    /// Gives back what growing reserved.
    pub fn shrink(&mut self) {
        self.bytes.shrink_to_fit();
        self.offsets.shrink_to_fit();
    }

    fn put(&mut self, name: NameRef<'_>, opaque: Option<Arc<Opaque>>, encode: impl FnOnce(&mut Vec<u8>)) -> bool {
        let before = self.position(name);
        if let Some(position) = before {
            self.drop_record(position);
        }
        let directory = self.directory_id(name.directory);
        let offset = Offset::new(self.bytes.len());
        put_number(&mut self.bytes, u64::from(directory));
        put_text(&mut self.bytes, name.last);
        if opaque.is_none() {
            encode(&mut self.bytes);
            self.directories[directory as usize].known += 1;
        }
        let position = match before {
            Some(position) => {
                self.offsets[position as usize] = offset;
                position
            }
            None => {
                let position = self.offsets.len() as u32;
                self.offsets.push(offset);
                let hash = self.hash(name);
                let Self { bytes, offsets, lookup, hasher, directories, .. } = self;
                let rehash = |at: &u32| hash_of(hasher, name_at(bytes, directories, offsets[*at as usize]).0);
                lookup.insert_unique(hash, position, rehash);
                position
            }
        };
        if let Some(opaque) = opaque {
            self.opaque.insert(position, opaque);
        }
        if self.waste > MUCH_WASTE && self.waste > self.bytes.len() / 2 {
            self.pack();
        }
        before.is_some()
    }

    /// Forgets what a position holds, but not the position.
    fn drop_record(&mut self, position: u32) {
        let record = &self.bytes[self.offsets[position as usize].get()..];
        let mut cursor = Cursor(record);
        let directory = cursor.number() as usize;
        cursor.text();
        if self.opaque.remove(&position).is_none() {
            Fields::decode(&mut cursor);
            self.directories[directory].known -= 1;
        }
        self.waste += record.len() - cursor.0.len();
    }

    /// Copies what is used to a new buffer.
    fn pack(&mut self) {
        let mut packed = Self { hasher: self.hasher.clone(), ..Self::default() };
        for slot in self.iter() {
            match slot {
                Slot::Known(entry) => packed.set(entry.name, &entry.fields),
                Slot::Opaque(name, opaque) => packed.set_opaque(&name.to_string(), Arc::clone(opaque)),
            };
        }
        packed.shrink();
        *self = packed;
    }

    fn directory_id(&mut self, text: &str) -> u32 {
        if let Some(id) = self.directory_ids.get(text) {
            return *id;
        }
        let id = self.directories.len() as u32;
        let text: Arc<str> = text.into();
        self.directory_ids.insert(Arc::clone(&text), id);
        self.directories.push(Directory { text, known: 0 });
        id
    }

    fn position(&self, name: NameRef<'_>) -> Option<u32> {
        let same =
            |at: &u32| self.name(*at).is_some_and(|found| found.last == name.last && found.directory == name.directory);
        self.lookup.find(self.hash(name), same).copied()
    }

    fn hash(&self, name: NameRef<'_>) -> u64 {
        hash_of(&self.hasher, name)
    }

    fn name(&self, position: u32) -> Option<NameRef<'_>> {
        let offset = self.offsets[position as usize];
        (offset != Offset::GONE).then(|| name_at(&self.bytes, &self.directories, offset).0)
    }

    fn slot(&self, position: u32) -> Option<Slot<'_>> {
        let offset = self.offsets[position as usize];
        if offset == Offset::GONE {
            return None;
        }
        let (name, mut cursor) = name_at(&self.bytes, &self.directories, offset);
        match self.opaque.get(&position) {
            Some(opaque) => Some(Slot::Opaque(name, opaque)),
            None => Some(Slot::Known(EntryRef { name, fields: Fields::decode(&mut cursor) })),
        }
    }

    /// Every directory on the way to an entry that is understood.
    pub fn all_directories(&self) -> HashSet<Box<str>> {
        let mut found: HashSet<Box<str>> = HashSet::new();
        for directory in self.directories() {
            let above = directory.rmatch_indices('/').map(|(slash, _)| &directory[..slash]);
            // Deepest first: what is known has its parents in the set.
            for directory in std::iter::once(directory).chain(above) {
                if !found.insert(directory.into()) {
                    break;
                }
            }
        }
        found
    }
}

/// The name of the record at an offset, and what comes after it.
fn name_at<'a>(bytes: &'a [u8], directories: &'a [Directory], offset: Offset) -> (NameRef<'a>, Cursor<'a>) {
    let mut cursor = Cursor(&bytes[offset.get()..]);
    let directory = cursor.number() as usize;
    (NameRef { directory: &directories[directory].text, last: cursor.text() }, cursor)
}

fn hash_of(hasher: &DefaultHashBuilder, name: NameRef<'_>) -> u64 {
    let mut state = hasher.build_hasher();
    state.write(name.directory.as_bytes());
    state.write(name.last.as_bytes());
    state.finish()
}
