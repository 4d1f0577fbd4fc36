//! Writes a document as JavaScript would: integer-like names first, in ascending order, then the others as they came.
//!
//! Invariant: entries that nobody changed keep every field; the fields we know come in the reference clients' order.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use serde_json::ser::PrettyFormatter;

use super::document::{Document, Slot};
use super::entry::Entry;

/// Compact JSON.
pub(super) fn compact(document: &Document) -> Vec<u8> {
    let mut out = Vec::with_capacity(256 * document.len() + 128);
    let mut serializer = serde_json::Serializer::new(&mut out);
    finish(Whole(document).serialize(&mut serializer), out)
}

/// JSON indented by two spaces.
pub(super) fn indented(document: &Document) -> Vec<u8> {
    let mut out = Vec::with_capacity(300 * document.len() + 128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PrettyFormatter::with_indent(b"  "));
    finish(Whole(document).serialize(&mut serializer), out)
}

fn finish(result: serde_json::Result<()>, out: Vec<u8>) -> Vec<u8> {
    // Writing strings, numbers and string-keyed maps into memory cannot fail; an empty body would be refused by parse.
    debug_assert!(result.is_ok());
    match result {
        Ok(()) => out,
        Err(_) => Vec::new(),
    }
}

struct Whole<'a>(&'a Document);

impl Serialize for Whole<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in &self.0.top {
            if name == "entries" {
                map.serialize_entry(name, &Entries(self.0))?;
            } else {
                map.serialize_entry(name, value)?;
            }
        }
        map.end()
    }
}

struct Entries<'a>(&'a Document);

impl Serialize for Entries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        let mut numbered: Vec<(u32, &str, &Slot)> =
            self.0.slots().filter_map(|(name, slot)| Some((array_index(name)?, name, slot))).collect();
        numbered.sort_unstable_by_key(|(number, ..)| *number);
        for (_, name, slot) in numbered {
            map.serialize_entry(name, &SlotOf { name, slot })?;
        }
        for (name, slot) in self.0.slots().filter(|(name, _)| array_index(name).is_none()) {
            map.serialize_entry(name, &SlotOf { name, slot })?;
        }
        map.end()
    }
}

/// The number that JavaScript takes a property name for, when it orders properties.
fn array_index(name: &str) -> Option<u32> {
    let canonical =
        name == "0" || (name.len() <= 10 && !name.starts_with('0') && name.bytes().all(|b| b.is_ascii_digit()));
    if !canonical {
        return None;
    }
    name.parse::<u32>().ok().filter(|number| *number != u32::MAX)
}

struct SlotOf<'a> {
    name: &'a str,
    slot: &'a Slot,
}

impl Serialize for SlotOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.slot {
            Slot::Known(entry) => write_entry(self.name, entry, serializer),
            Slot::Opaque(opaque) => opaque.value.serialize(serializer),
            Slot::Gone => serializer.serialize_unit(),
        }
    }
}

fn write_entry<S: Serializer>(name: &str, entry: &Entry, serializer: S) -> Result<S::Ok, S::Error> {
    let extra = entry.extra.as_deref();
    let kept = |field: &str| extra.and_then(|extra| extra.get(field));
    let mut map = serializer.serialize_map(None)?;
    match kept("key") {
        Some(key) => map.serialize_entry("key", key)?,
        None => map.serialize_entry("key", name)?,
    }
    map.serialize_entry("size", &entry.size)?;
    match kept("lastModified") {
        Some(raw) if entry.last_modified.is_empty() => map.serialize_entry("lastModified", raw)?,
        _ => map.serialize_entry("lastModified", &entry.last_modified)?,
    }
    let optional = [("localMtime", &entry.local_mtime), ("sha256", &entry.sha256), ("mode", &entry.mode)];
    for (field, text) in optional {
        match (text, kept(field)) {
            (Some(text), _) => map.serialize_entry(field, text)?,
            (None, Some(raw)) => map.serialize_entry(field, raw)?,
            (None, None) => {}
        }
    }
    let known = ["key", "size", "lastModified", "localMtime", "sha256", "mode"];
    for (field, value) in extra.into_iter().flatten().filter(|(field, _)| !known.contains(&field.as_str())) {
        map.serialize_entry::<str, Value>(field, value)?;
    }
    map.end()
}
