//! What the test server holds: objects, open uploads and unfinished copies of one bucket, behind one mutex so that
//! conditions are atomic. Knows nothing of HTTP or gRPC.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use md5::{Digest, Md5};
use time::OffsetDateTime;

/// An object.
#[derive(Clone, Debug)]
pub struct StoredObject {
    pub bytes: Bytes,
    pub generation: i64,
    pub updated: OffsetDateTime,
    pub metadata: HashMap<String, String>,
    pub content_type: Option<String>,
    pub crc32c: u32,
    pub md5: [u8; 16],
}

/// What an upload says of its object.
#[derive(Clone, Debug, Default)]
pub struct Described {
    pub name: String,
    pub metadata: HashMap<String, String>,
    pub content_type: Option<String>,
    pub crc32c: Option<u32>,
    pub md5: Option<[u8; 16]>,
    pub conditions: Conditions,
}

/// A resumable upload.
#[derive(Clone, Debug, Default)]
pub struct Upload {
    pub described: Described,
    pub received: Vec<u8>,
    /// What it became.
    pub done: Option<StoredObject>,
}

/// The conditions of a request on the object that it names.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions {
    pub generation_match: Option<i64>,
    pub generation_not_match: Option<i64>,
}

/// Why a request was refused, in words that both protocols have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    NotModified,
    Precondition,
    NotFound,
    NoBucket,
    Checksum,
    Range,
    Malformed,
}

impl Conditions {
    pub fn check(self, current: Option<&StoredObject>) -> Result<(), Refusal> {
        let generation = current.map_or(0, |object| object.generation);
        if self.generation_match.is_some_and(|wanted| wanted != generation) {
            return Err(Refusal::Precondition);
        }
        if self.generation_not_match.is_some_and(|known| known == generation) {
            return Err(Refusal::NotModified);
        }
        Ok(())
    }
}

#[derive(Debug)]
pub struct State {
    pub objects: BTreeMap<String, StoredObject>,
    pub uploads: HashMap<String, Upload>,
    /// Bytes done, by token.
    pub rewrites: HashMap<String, u64>,
    pub rewrite_step: u64,
    last_generation: i64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            uploads: HashMap::new(),
            rewrites: HashMap::new(),
            rewrite_step: u64::MAX,
            last_generation: 1_763_600_000_000_000,
        }
    }
}

impl State {
    pub fn now() -> OffsetDateTime {
        OffsetDateTime::now_utc()
    }

    pub fn put(
        &mut self,
        key: &str,
        bytes: Bytes,
        metadata: HashMap<String, String>,
        content_type: Option<String>,
    ) -> StoredObject {
        self.last_generation += 1;
        let (crc32c, md5) = (crc32c::crc32c(&bytes), Md5::digest(&bytes).into());
        let (generation, updated) = (self.last_generation, Self::now());
        let object = StoredObject { bytes, generation, updated, metadata, content_type, crc32c, md5 };
        self.objects.insert(key.to_owned(), object.clone());
        object
    }

    /// Ends an upload: conditions and checksums are judged now, all at once.
    pub fn finish(&mut self, described: &Described, bytes: Bytes) -> Result<StoredObject, Refusal> {
        described.conditions.check(self.objects.get(&described.name)).map_err(|_| Refusal::Precondition)?;
        if described.crc32c.is_some_and(|wanted| wanted != crc32c::crc32c(&bytes))
            || described.md5.is_some_and(|wanted| wanted != <[u8; 16]>::from(Md5::digest(&bytes)))
        {
            return Err(Refusal::Checksum);
        }
        Ok(self.put(&described.name, bytes, described.metadata.clone(), described.content_type.clone()))
    }

    pub fn find(&self, key: &str) -> Result<&StoredObject, Refusal> {
        self.objects.get(key).ok_or(Refusal::NotFound)
    }

    /// A page of names: objects, prefixes, and where the next page begins.
    pub fn list(&self, prefix: &str, delimiter: &str, after: &str, most: usize) -> (Vec<String>, Vec<String>, String) {
        let (mut names, mut prefixes, mut last) = (Vec::new(), Vec::<String>::new(), String::new());
        for name in self.objects.keys().filter(|name| name.starts_with(prefix)) {
            let cut = (!delimiter.is_empty()).then(|| name[prefix.len()..].find(delimiter)).flatten();
            let group = cut.map(|at| &name[..prefix.len() + at + delimiter.len()]);
            let shown = group.unwrap_or(name);
            if shown <= after || prefixes.last().is_some_and(|seen| seen == shown) {
                continue;
            }
            if names.len() + prefixes.len() == most {
                return (names, prefixes, last);
            }
            last = shown.to_owned();
            if group.is_some() { prefixes.push(last.clone()) } else { names.push(last.clone()) }
        }
        (names, prefixes, String::new())
    }
}
