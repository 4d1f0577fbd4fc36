//! How a local file relates to the entry it came from and to the entry that the datastore has now.
//!
//! Depends on `datastore` and hashing. Invariant: a file is called old ([`Relation::Stale`], [`Relation::StaleRemoved`]:
//! it may be dropped) only with proof that it is the very version of the old entry.

use std::io;
use std::sync::Arc;

use crate::datastore::cache_dir::FileStat;
use crate::datastore::names::is_rewritten_in_place;
use crate::datastore::{CacheDir, Entry, RelPath, timestamp};
use crate::store::Body;
use crate::sync::hash::{self, Digests};

/// A local file.
pub(super) struct Local<'a> {
    pub cache: &'a CacheDir,
    pub path: &'a RelPath,
    pub stat: FileStat,
    digests: Option<Digests>,
}

/// Whether a file has an entry's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Likeness {
    Equal,
    Different,
    /// Same size, and nothing else to go by.
    Unknown,
}

/// How a file that exists here relates to the datastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// It is what the datastore has.
    Same,
    /// Changed here only.
    Edited,
    /// Changed there only.
    Stale,
    /// Changed on both sides, or nobody knows where it comes from.
    Both,
    /// Only here, and never was there.
    New,
    /// Removed there, changed here.
    EditedRemoved,
    /// Removed there, unchanged here.
    StaleRemoved,
}

impl<'a> Local<'a> {
    pub fn new(cache: &'a CacheDir, path: &'a RelPath, stat: FileStat) -> Self {
        Self { cache, path, stat, digests: None }
    }

    /// Its content's hashes.
    pub async fn digests(&mut self) -> io::Result<&Digests> {
        if self.digests.is_none() {
            let file = Arc::new(self.cache.open_file(self.path)?);
            let size = file.metadata()?.len();
            self.digests = Some(hash::digest(Body::File { file, size }).await?);
        }
        self.digests.as_ref().ok_or_else(|| io::Error::other("unreachable: the hashes were just computed"))
    }

    /// Its time as an index would have it.
    pub fn mtime(&self) -> String {
        timestamp::format_nanos(self.stat.mtime_nanos)
    }

    /// Whether size and time are the entry's.
    pub fn looks_like(&self, entry: &Entry) -> bool {
        self.stat.size == entry.size && self.mtime() == *entry.local_mtime.as_ref().unwrap_or(&entry.last_modified)
    }

    async fn likeness(&mut self, entry: &Entry, trust_mtime: bool) -> io::Result<Likeness> {
        let same_time = trust_mtime && self.mtime() == *entry.local_mtime.as_ref().unwrap_or(&entry.last_modified);
        if same_time && is_rewritten_in_place(self.path.as_str()) {
            return Ok(Likeness::Equal);
        }
        if self.stat.size != entry.size {
            return Ok(Likeness::Different);
        }
        if same_time {
            return Ok(Likeness::Equal);
        }
        let Some(expected) = &entry.sha256 else { return Ok(Likeness::Unknown) };
        let equal = self.digests().await?.sha256.eq_ignore_ascii_case(expected);
        Ok(if equal { Likeness::Equal } else { Likeness::Different })
    }

    /// Compares with the entry that the local copy of the index has and the one that the datastore has.
    pub async fn relation(&mut self, old: Option<&Entry>, remote: Option<&Entry>) -> io::Result<Relation> {
        let Some(remote) = remote else {
            return Ok(match old {
                None => Relation::New,
                Some(old) if self.likeness(old, true).await? == Likeness::Equal => Relation::StaleRemoved,
                Some(_) => Relation::EditedRemoved,
            });
        };
        let changed_there = old.is_some_and(|old| !old.same_version(remote));
        // Equal times prove nothing where somebody pushed a new version with an old time.
        if self.likeness(remote, !changed_there).await? == Likeness::Equal {
            return Ok(Relation::Same);
        }
        let Some(old) = old else { return Ok(Relation::Both) };
        Ok(match (self.likeness(old, true).await?, changed_there) {
            (Likeness::Equal, false) => Relation::Same,
            // Without hash and time the size decides, as for every client.
            (Likeness::Unknown, false) if old.local_mtime.is_none() => Relation::Same,
            (_, false) => Relation::Edited,
            (Likeness::Equal, true) => Relation::Stale,
            (_, true) => Relation::Both,
        })
    }
}
