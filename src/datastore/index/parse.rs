//! Reads an index: lenient towards entries, strict towards the document.
//!
//! Entries go from the input straight into their packed form, without an intermediate tree or a string for each field.
//! Invariant: an entry is never dropped here, except internal names (zombies) that the format says to scrub; a document
//! that is no index is an error, never an empty index.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::document::Document;
use super::entry::MAX_SIZE;
use super::error::IndexError;
use super::record::{Fields, Hash, Moment};
use crate::datastore::names::is_internal;
use crate::datastore::path::check;

/// Reads the bytes of an index.
pub(super) fn parse(bytes: &[u8]) -> Result<Document, IndexError> {
    // The reference clients decode with a TextDecoder, which drops a byte order mark.
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let mut index = Document::default();
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
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            if is_internal(&name) {
                map.next_value::<IgnoredAny>()?;
                self.0.note_scrubbed();
                continue;
            }
            match check(&name) {
                Ok(()) => map.next_value_seed(EntrySeed { document: self.0, name: &name })?,
                Err(problem) => {
                    let value = map.next_value::<Value>()?;
                    self.0.insert_opaque(&name, value, problem.to_string());
                }
            }
        }
        self.0.slots.shrink();
        Ok(EntriesShape::Object)
    }
    visit_other_shapes!(|_, _| Ok(EntriesShape::Other));
}

/// Puts what is under the name of a file into the document.
struct EntrySeed<'a> {
    document: &'a mut Document,
    name: &'a str,
}

impl EntrySeed<'_> {
    fn opaque(self, value: Value, reason: String) {
        self.document.insert_opaque(self.name, value, reason);
    }
}

impl<'de> DeserializeSeed<'de> for EntrySeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for EntrySeed<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry of an index")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut size = None;
        let [mut last_modified, mut local_mtime, mut sha256, mut mode] = [None, None, None, None];
        let mut extra = Map::new();
        let mut has_key = false;
        while let Some(Text(field)) = map.next_key::<Text<'de>>()? {
            match (&*field, map.next_value::<FieldValue<'de>>()?) {
                ("key", FieldValue::Text(key)) if key == self.name => has_key = true,
                ("size", value) => size = Some(value),
                ("lastModified", FieldValue::Text(text)) => last_modified = Some(text),
                ("localMtime", FieldValue::Text(text)) => local_mtime = Some(text),
                ("sha256", FieldValue::Text(text)) => sha256 = Some(text),
                ("mode", FieldValue::Text(text)) => mode = Some(text),
                // A wrong type in a field that we can do without: the file is shown, the field is kept as it is.
                (_, value) => {
                    extra.insert(field.into_owned(), value.into_value());
                }
            }
        }
        let number = size.as_ref().map(read_size);
        if let Some(Ok(size)) = number {
            let extra = if extra.is_empty() { None } else { Some(to_json(&extra)?) };
            let fields = Fields {
                size,
                last_modified: Moment::of(last_modified.as_deref().unwrap_or_default()),
                local_mtime: local_mtime.as_deref().map(Moment::of),
                sha256: sha256.as_deref().map(Hash::of),
                mode: mode.as_deref(),
                extra: extra.as_deref(),
            };
            self.document.insert_parsed(self.name, &fields);
            return Ok(());
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
            whole.insert("size".into(), size.into_value());
        }
        let texts = [("lastModified", last_modified), ("localMtime", local_mtime), ("sha256", sha256), ("mode", mode)];
        whole.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), Value::from(text?)))));
        whole.extend(extra);
        self.opaque(Value::Object(whole), reason);
        Ok(())
    }
    visit_other_shapes!(|seed: Self, value| {
        seed.opaque(value, "the entry is not an object".to_owned());
        Ok(())
    });
}

fn to_json<E: serde::de::Error>(extra: &Map<String, Value>) -> Result<String, E> {
    serde_json::to_string(extra).map_err(E::custom)
}

fn read_size(value: &FieldValue<'_>) -> Result<u64, String> {
    let number = match value {
        FieldValue::Size(size) => return Ok(*size),
        FieldValue::Other(Value::Number(number)) => number,
        FieldValue::Other(other) => return Err(format!("its size is not a number but {}", shorten(other))),
        FieldValue::Text(text) => {
            return Err(format!("its size is not a number but {}", shorten(&Value::from(&**text))));
        }
    };
    if let Some(size) = number.as_u64() {
        return Err(format!("its size {size} is absurd"));
    }
    // JavaScript does not tell 12.0 from 12.
    match number.as_f64() {
        Some(size) if size < 0.0 => Err(format!("its size {number} is negative")),
        Some(size) if size > MAX_SIZE as f64 => Err(format!("its size {number} is absurd")),
        Some(size) if size.fract() == 0.0 => Ok(size as u64),
        _ => Err(format!("its size {number} is not a whole number")),
    }
}

/// A text, lent by the input where it has no escapes.
struct Text<'de>(Cow<'de, str>);

impl<'de> serde::Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// The value of a field of an entry.
enum FieldValue<'de> {
    Text(Cow<'de, str>),
    /// A number that can be a size.
    Size(u64),
    Other(Value),
}

impl FieldValue<'_> {
    fn into_value(self) -> Value {
        match self {
            Self::Text(text) => Value::from(text),
            Self::Size(size) => Value::from(size),
            Self::Other(value) => value,
        }
    }
}

impl<'de> serde::Deserialize<'de> for FieldValue<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = FieldValue<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_borrowed_str<E: serde::de::Error>(self, text: &'de str) -> Result<FieldValue<'de>, E> {
                Ok(FieldValue::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<FieldValue<'de>, E> {
                Ok(FieldValue::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<FieldValue<'de>, E> {
                let fits = number <= MAX_SIZE;
                Ok(if fits { FieldValue::Size(number) } else { FieldValue::Other(Value::from(number)) })
            }
            fn visit_i64<E: serde::de::Error>(self, number: i64) -> Result<FieldValue<'de>, E> {
                Ok(FieldValue::Other(Value::from(number)))
            }
            fn visit_f64<E: serde::de::Error>(self, number: f64) -> Result<FieldValue<'de>, E> {
                Ok(FieldValue::Other(Value::from(number)))
            }
            fn visit_bool<E: serde::de::Error>(self, truth: bool) -> Result<FieldValue<'de>, E> {
                Ok(FieldValue::Other(Value::from(truth)))
            }
            fn visit_unit<E: serde::de::Error>(self) -> Result<FieldValue<'de>, E> {
                Ok(FieldValue::Other(Value::Null))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<FieldValue<'de>, A::Error> {
                Value::deserialize(SeqAccessDeserializer::new(seq)).map(FieldValue::Other)
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<FieldValue<'de>, A::Error> {
                Value::deserialize(MapAccessDeserializer::new(map)).map(FieldValue::Other)
            }
        }
        deserializer.deserialize_any(ValueVisitor)
    }
}
