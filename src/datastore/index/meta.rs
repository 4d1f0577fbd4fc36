//! `_index/_meta.json`: which index counts, and which shards it has.
//!
//! Depends on nothing but JSON. Invariants: version 2 makes the shards the truth, version 1 the monolith; anything else is an
//! error, never a guess; fields that we do not know are written back.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::PartName;
use crate::store::Fingerprint;

/// The list of shards, as it was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meta {
    /// Version of the object that said so; `None`: there is none (any more), and the list comes from the shards that exist.
    pub fingerprint: Option<Fingerprint>,
    /// The shards that count.
    pub partitions: BTreeSet<PartName>,
    /// Number of commits, as far as the writers count them: for others, never to be trusted.
    pub commit_seq: u64,
    /// Fields that are not ours.
    extra: Map<String, Value>,
}

/// What the object says.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaRead {
    /// The monolith counts; with the version of the object that says so.
    Monolith(Option<Fingerprint>),
    /// These shards count.
    Shards(Meta),
}

/// How state.db keeps a [`Meta`].
#[derive(Serialize, Deserialize)]
struct Record {
    fingerprint: Option<String>,
    partitions: Vec<String>,
    commit_seq: u64,
    extra: Map<String, Value>,
}

impl Meta {
    /// Reads the object.
    ///
    /// # Errors
    /// What is wrong with it, as the end of a sentence.
    pub fn parse(bytes: &[u8], fingerprint: Option<Fingerprint>) -> Result<MetaRead, String> {
        let value: Value = serde_json::from_slice(bytes).map_err(|error| format!("is not JSON ({error})"))?;
        let Value::Object(mut fields) = value else { return Err("is not an object".into()) };
        match fields.shift_remove("version").as_ref().and_then(Value::as_f64) {
            Some(1.0) => return Ok(MetaRead::Monolith(fingerprint)),
            Some(2.0) => {}
            _ => return Err("has an unknown version".into()),
        }
        let Some(Value::Array(listed)) = fields.shift_remove("partitions") else {
            return Err("has no list \"partitions\"".into());
        };
        let mut partitions = BTreeSet::new();
        for name in listed {
            match name {
                Value::String(name) if is_partition_name(&name) => partitions.insert(PartName::from(name)),
                other => return Err(format!("lists a partition that cannot be one: {other}")),
            };
        }
        // Anything but a number is as good as none: it is for others.
        let commit_seq = fields.shift_remove("commitSeq").and_then(|v| v.as_f64()).map_or(0, |seq| seq as u64);
        Ok(MetaRead::Shards(Self { fingerprint, partitions, commit_seq, extra: fields }))
    }

    /// A list for shards whose object was lost, or that are new.
    pub fn of(partitions: BTreeSet<PartName>) -> Self {
        Self { partitions, ..Self::default() }
    }

    /// The object, compact.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut fields = Map::new();
        fields.insert("version".into(), Value::from(2));
        fields.insert("partitions".into(), self.partitions.iter().map(|name| Value::from(&**name)).collect());
        fields.insert("commitSeq".into(), Value::from(self.commit_seq));
        fields.extend(self.extra.clone());
        Value::Object(fields).to_string().into_bytes()
    }

    /// For a record on this machine.
    pub fn to_record(&self) -> Value {
        let record = Record {
            fingerprint: self.fingerprint.as_ref().map(|f| f.as_str().to_owned()),
            partitions: self.partitions.iter().map(|name| name.to_string()).collect(),
            commit_seq: self.commit_seq,
            extra: self.extra.clone(),
        };
        serde_json::to_value(record).unwrap_or(Value::Null)
    }

    /// Back from [`to_record`](Self::to_record).
    pub fn from_record(value: &Value) -> Option<Self> {
        let record = Record::deserialize(value).ok()?;
        Some(Self {
            fingerprint: record.fingerprint.as_deref().and_then(Fingerprint::from_record),
            partitions: record.partitions.into_iter().map(PartName::from).collect(),
            commit_seq: record.commit_seq,
            extra: record.extra,
        })
    }
}

/// Whether a shard can have that name: it is one component of an object key.
pub fn is_partition_name(name: &str) -> bool {
    !name.is_empty() && name != "_meta" && !name.contains(['/', '\0']) && name != "." && name != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shards(text: &str) -> Result<Meta, String> {
        match Meta::parse(text.as_bytes(), None)? {
            MetaRead::Shards(meta) => Ok(meta),
            MetaRead::Monolith(_) => Err("monolith".into()),
        }
    }

    #[test]
    fn it_is_written_compactly_in_the_order_of_the_format() {
        let golden = r#"{"version":2,"partitions":["audit","data--mytype--abc"],"commitSeq":42,"lastCompacted":"t"}"#;
        let meta = shards(golden).unwrap();
        assert_eq!(String::from_utf8(meta.to_bytes()).unwrap(), golden);
        let unsorted = r#"{"commitSeq":1,"partitions":["b","a"],"version":2}"#;
        assert_eq!(
            String::from_utf8(shards(unsorted).unwrap().to_bytes()).unwrap(),
            r#"{"version":2,"partitions":["a","b"],"commitSeq":1}"#
        );
        assert_eq!(Meta::from_record(&meta.to_record()), Some(meta));
    }

    #[test]
    fn the_version_decides_and_nothing_is_guessed() {
        assert_eq!(Meta::parse(br#"{"version":1,"partitions":["a"]}"#, None), Ok(MetaRead::Monolith(None)));
        for (text, reason) in [
            ("", "is not JSON"),
            (r#"{"version":2"#, "is not JSON"),
            ("[]", "is not an object"),
            (r#"{"version":3,"partitions":[]}"#, "unknown version"),
            (r#"{"partitions":[]}"#, "unknown version"),
            (r#"{"version":2}"#, "no list"),
            (r#"{"version":2,"partitions":{}}"#, "no list"),
            (r#"{"version":2,"partitions":[1]}"#, "cannot be one"),
            (r#"{"version":2,"partitions":["../x"]}"#, "cannot be one"),
            (r#"{"version":2,"partitions":["_meta"]}"#, "cannot be one"),
        ] {
            let found = shards(text).unwrap_err();
            assert!(found.contains(reason), "{text}: {found}");
        }
        assert_eq!(shards(r#"{"version":2,"partitions":[],"commitSeq":"x"}"#).unwrap().commit_seq, 0);
    }
}
