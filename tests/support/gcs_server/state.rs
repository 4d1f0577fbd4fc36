//! What Google's protocol needs beside the objects: open uploads, unfinished copies, conditions on generations. Knows
//! nothing of HTTP or gRPC.

use std::collections::HashMap;

use bytes::Bytes;

use super::super::server::{Metadata, State, StoredObject, hex, md5};

/// What an upload says of its object.
#[derive(Clone, Debug, Default)]
pub struct Described {
    pub name: String,
    pub metadata: Metadata,
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

/// Work that takes several requests.
#[derive(Debug, Default)]
pub struct Sessions {
    pub uploads: HashMap<String, Upload>,
    /// Bytes copied, by token.
    pub rewrites: HashMap<String, u64>,
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

/// Ends an upload: conditions and checksums are judged now, all at once.
pub fn finish(state: &mut State, described: &Described, bytes: Bytes) -> Result<StoredObject, Refusal> {
    described.conditions.check(state.objects.get(&described.name)).map_err(|_| Refusal::Precondition)?;
    let digest = md5(&bytes);
    if described.crc32c.is_some_and(|wanted| wanted != crc32c::crc32c(&bytes))
        || described.md5.is_some_and(|wanted| wanted != digest)
    {
        return Err(Refusal::Checksum);
    }
    let (metadata, content_type) = (described.metadata.clone(), described.content_type.clone());
    Ok(state.put(&described.name, bytes, hex(&digest), metadata, content_type))
}

pub fn find<'a>(state: &'a State, key: &str) -> Result<&'a StoredObject, Refusal> {
    state.objects.get(key).ok_or(Refusal::NotFound)
}
