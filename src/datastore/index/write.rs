//! Writes a document as JavaScript would: integer-like names first, in ascending order, then the others as they came.
//!
//! Invariant: entries that nobody changed keep every field; the fields we know come in the reference clients' order.

use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::Value;
use serde_json::ser::PrettyFormatter;

use super::document::Document;
use super::record::{Fields, Moment};
use super::slots::Slot;

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
        let mut name = String::new();
        let mut numbered: Vec<(u32, Slot<'_>)> = Vec::new();
        for slot in self.0.slots.iter() {
            slot.name().write_into(&mut name);
            numbered.extend(array_index(&name).map(|number| (number, slot)));
        }
        numbered.sort_unstable_by_key(|(number, _)| *number);
        for (number, slot) in &numbered {
            let name = number.to_string();
            map.serialize_entry(&name, &SlotOf { name: &name, slot })?;
        }
        for slot in self.0.slots.iter() {
            slot.name().write_into(&mut name);
            if numbered.is_empty() || array_index(&name).is_none() {
                map.serialize_entry(&name, &SlotOf { name: &name, slot: &slot })?;
            }
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
    slot: &'a Slot<'a>,
}

impl Serialize for SlotOf<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.slot {
            Slot::Known(entry) => write_entry(self.name, &entry.fields, serializer),
            Slot::Opaque(_, opaque) => opaque.value.serialize(serializer),
        }
    }
}

fn write_entry<S: Serializer>(name: &str, fields: &Fields<'_>, serializer: S) -> Result<S::Ok, S::Error> {
    let extra = fields.extra();
    let kept = |field: &str| extra.as_ref().and_then(|extra| extra.get(field));
    let mut map = serializer.serialize_map(None)?;
    match kept("key") {
        Some(key) => map.serialize_entry("key", key)?,
        None => map.serialize_entry("key", name)?,
    }
    map.serialize_entry("size", &fields.size)?;
    match kept("lastModified") {
        Some(raw) if fields.last_modified == Moment::Text("") => map.serialize_entry("lastModified", raw)?,
        _ => fields.last_modified.with_text(|text| map.serialize_entry("lastModified", text))?,
    }
    match (fields.local_mtime, kept("localMtime")) {
        (Some(at), _) => at.with_text(|text| map.serialize_entry("localMtime", text))?,
        (None, Some(raw)) => map.serialize_entry("localMtime", raw)?,
        (None, None) => {}
    }
    match (fields.sha256, kept("sha256")) {
        (Some(hash), _) => hash.with_text(|text| map.serialize_entry("sha256", text))?,
        (None, Some(raw)) => map.serialize_entry("sha256", raw)?,
        (None, None) => {}
    }
    match (fields.mode, kept("mode")) {
        (Some(mode), _) => map.serialize_entry("mode", mode)?,
        (None, Some(raw)) => map.serialize_entry("mode", raw)?,
        (None, None) => {}
    }
    let known = ["key", "size", "lastModified", "localMtime", "sha256", "mode"];
    for (field, value) in extra.iter().flatten().filter(|(field, _)| !known.contains(&field.as_str())) {
        map.serialize_entry::<str, Value>(field, value)?;
    }
    map.end()
}
