//! Reads an index: lenient towards entries, strict towards the document.
//!
//! Entries go straight into the map, without an intermediate tree, so that 100 MB of JSON stay bounded in time and memory.
//! Invariant: an entry is never dropped here, except internal names (zombies) that the format says to scrub; a document
//! that is no index is an error, never an empty index.

use std::fmt;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::document::{Document, Name, Opaque, Slot};
use super::entry::{Entry, MAX_SIZE};
use super::error::IndexError;
use crate::datastore::names::is_internal;
use crate::datastore::path::RelPath;

/// Reads the bytes of an index.
pub(super) fn parse(bytes: &[u8]) -> Result<Document, IndexError> {
    // The reference clients decode with a TextDecoder, which drops a byte order mark.
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let mut index = Document::bare();
    let mut entries = None;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    TopSeed { index: &mut index, entries: &mut entries }.deserialize(&mut deserializer).map_err(IndexError::json)?;
    deserializer.end().map_err(IndexError::json)?;
    match index.top.get("version") {
        Some(Value::Number(n)) if n.as_f64() == Some(1.0) => {}
        Some(Value::Number(n)) if n.as_f64() == Some(2.0) => return Err(IndexError::Version2),
        Some(other) => return Err(IndexError::UnknownVersion(shorten(other))),
        None => return Err(IndexError::NotAnIndex("it has no field \"version\"".into())),
    }
    match entries {
        Some(EntriesShape::Object) => Ok(index),
        Some(EntriesShape::Other) => Err(IndexError::NotAnIndex("its field \"entries\" is not an object".into())),
        Some(EntriesShape::Twice) => Err(IndexError::NotAnIndex("it has two fields \"entries\"".into())),
        None => Err(IndexError::NotAnIndex("it has no field \"entries\"".into())),
    }
}

fn shorten(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

enum EntriesShape {
    Object,
    Other,
    Twice,
}

struct TopSeed<'a> {
    index: &'a mut Document,
    entries: &'a mut Option<EntriesShape>,
}

impl<'de> DeserializeSeed<'de> for TopSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TopSeed<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an index, an object with \"version\" and \"entries\"")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if name == "entries" {
                let shape = map.next_value_seed(EntriesSeed(self.index))?;
                *self.entries = Some(if self.entries.is_some() { EntriesShape::Twice } else { shape });
                self.index.top.insert(name, Value::Null);
            } else {
                let value = map.next_value::<Value>()?;
                self.index.top.insert(name, value);
            }
        }
        Ok(())
    }
}

/// Implements the visits of scalars and arrays for a visitor that mainly wants objects.
macro_rules! visit_other_shapes {
    ($wrap:expr) => {
        fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<Self::Value, E> {
            $wrap(self, Value::from(v))
        }
        fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Self::Value, E> {
            $wrap(self, Value::from(v))
        }
        fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Self::Value, E> {
            $wrap(self, Value::from(v))
        }
        fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Self::Value, E> {
            $wrap(self, Value::from(v))
        }
        fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Self::Value, E> {
            $wrap(self, Value::from(v))
        }
        fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
            $wrap(self, Value::Null)
        }
        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut items = Vec::new();
            while let Some(item) = seq.next_element::<Value>()? {
                items.push(item);
            }
            $wrap(self, Value::Array(items))
        }
    };
}

struct EntriesSeed<'a>(&'a mut Document);

impl<'de> DeserializeSeed<'de> for EntriesSeed<'_> {
    type Value = EntriesShape;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<EntriesShape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for EntriesSeed<'_> {
    type Value = EntriesShape;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the entries of an index")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<EntriesShape, A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if is_internal(&name) {
                map.next_value::<IgnoredAny>()?;
                self.0.note_scrubbed();
                continue;
            }
            let (name, slot) = match RelPath::parse(&name) {
                Ok(path) => {
                    let slot = map.next_value_seed(SlotSeed { name: &name })?;
                    (Name::Path(path), slot)
                }
                Err(problem) => {
                    let value = map.next_value::<Value>()?;
                    (Name::Other(name.into()), Slot::Opaque(Arc::new(Opaque { value, reason: problem.to_string() })))
                }
            };
            self.0.insert_parsed(name, slot);
        }
        Ok(EntriesShape::Object)
    }
    visit_other_shapes!(|_, _| Ok(EntriesShape::Other));
}

struct SlotSeed<'a> {
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for SlotSeed<'_> {
    type Value = Slot;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Slot, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for SlotSeed<'_> {
    type Value = Slot;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry of an index")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Slot, A::Error> {
        let mut size = None;
        let mut last_modified = None;
        let mut entry = Entry::default();
        let mut extra = Map::new();
        let mut has_key = false;
        while let Some(field) = map.next_key::<FieldName>()? {
            let value = map.next_value::<Value>()?;
            match (field, value) {
                (FieldName::Key, Value::String(key)) if key == self.name => has_key = true,
                (FieldName::Size, value) => size = Some(value),
                (FieldName::LastModified, Value::String(text)) => last_modified = Some(text),
                (FieldName::LocalMtime, Value::String(text)) => entry.local_mtime = Some(text),
                (FieldName::Sha256, Value::String(text)) => entry.sha256 = Some(text),
                (FieldName::Mode, Value::String(text)) => entry.mode = Some(text),
                // A wrong type in a field that we can do without: the file is shown, the field is kept as it is.
                (field, value) => {
                    extra.insert(field.into_string(), value);
                }
            }
        }
        let number = size.as_ref().map(read_size);
        if let Some(Ok(size)) = number {
            entry.size = size;
            entry.last_modified = last_modified.unwrap_or_default();
            entry.extra = (!extra.is_empty()).then(|| Box::new(extra));
            return Ok(Slot::Known(Arc::new(entry)));
        }
        let reason = match number {
            Some(Err(reason)) => reason,
            _ => "the entry has no size".to_owned(),
        };
        let mut whole = Map::new();
        if has_key && !extra.contains_key("key") {
            whole.insert("key".into(), Value::from(self.name));
        }
        if let Some(size) = size {
            whole.insert("size".into(), size);
        }
        let texts = [
            ("lastModified", last_modified),
            ("localMtime", entry.local_mtime),
            ("sha256", entry.sha256),
            ("mode", entry.mode),
        ];
        whole.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text?)))));
        whole.extend(extra);
        Ok(Slot::Opaque(Arc::new(Opaque { value: Value::Object(whole), reason })))
    }
    visit_other_shapes!(|_, value| Ok(Slot::Opaque(Arc::new(Opaque {
        value,
        reason: "the entry is not an object".to_owned()
    }))));
}

fn read_size(value: &Value) -> Result<u64, String> {
    let Value::Number(number) = value else {
        return Err(format!("its size is not a number but {}", shorten(value)));
    };
    if let Some(size) = number.as_u64() {
        return if size <= MAX_SIZE { Ok(size) } else { Err(format!("its size {size} is absurd")) };
    }
    // JavaScript does not tell 12.0 from 12.
    match number.as_f64() {
        Some(size) if size < 0.0 => Err(format!("its size {number} is negative")),
        Some(size) if size > MAX_SIZE as f64 => Err(format!("its size {number} is absurd")),
        Some(size) if size.fract() == 0.0 => Ok(size as u64),
        _ => Err(format!("its size {number} is not a whole number")),
    }
}

enum FieldName {
    Key,
    Size,
    LastModified,
    LocalMtime,
    Sha256,
    Mode,
    Other(String),
}

impl FieldName {
    fn into_string(self) -> String {
        match self {
            Self::Key => "key".into(),
            Self::Size => "size".into(),
            Self::LastModified => "lastModified".into(),
            Self::LocalMtime => "localMtime".into(),
            Self::Sha256 => "sha256".into(),
            Self::Mode => "mode".into(),
            Self::Other(name) => name,
        }
    }
}

impl<'de> serde::Deserialize<'de> for FieldName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = FieldName;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a field name")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<FieldName, E> {
                Ok(match name {
                    "key" => FieldName::Key,
                    "size" => FieldName::Size,
                    "lastModified" => FieldName::LastModified,
                    "localMtime" => FieldName::LocalMtime,
                    "sha256" => FieldName::Sha256,
                    "mode" => FieldName::Mode,
                    other => FieldName::Other(other.to_owned()),
                })
            }
        }
        deserializer.deserialize_str(NameVisitor)
    }
}
