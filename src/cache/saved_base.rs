//! The saved base: the last index that was read, one file `base/<n>.json` for each of its parts, which state.db names.
//!
//! Depends on the file system and the format. Invariant: a file is complete and durable before state.db names it, and is
//! removed only after state.db names others, so that a crash leaves a base that can be read.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CacheError, Result};
use crate::datastore::index::{Meta, Part, PartStamp};
use crate::datastore::{Document, Fresh, Index, Layout, PartName};
use crate::store::Fingerprint;

/// From so many files on, one sync of the file system is cheaper than one for each file.
const SYNC_ONE_BY_ONE: usize = 8;

/// How state.db names the saved base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseRecord {
    /// The highest number that was ever used.
    pub last_number: u64,
    /// Its parts; none, when they could not be read back: the index has to be read from the bucket.
    pub parts: Vec<SavedPart>,
    /// The list of shards of an index of version 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meta: Option<Value>,
    /// There is no index yet: this one was made from a listing.
    #[serde(default)]
    pub discovered: bool,
    /// When it was read or confirmed, ns since the epoch, by this machine's clock.
    pub confirmed_at: i64,
}

impl BaseRecord {
    /// How the index lies in its bucket.
    pub fn layout(&self) -> Layout {
        if self.meta.is_some() { Layout::Shards } else { Layout::Monolith }
    }
}

/// One part of the saved base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedPart {
    /// Which part.
    pub name: String,
    /// Number in the file name.
    pub number: u64,
    /// Fingerprint of its object, from the response that carried these bytes or from our own PUT of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// When it was written, by the store's clock, in seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_at: Option<i64>,
    /// Whether the list of shards names it.
    pub listed: bool,
}

/// The base before: what of it need not be written again.
pub struct Before<'a> {
    /// Its index.
    pub index: &'a Index,
    /// How it is saved.
    pub record: Option<&'a BaseRecord>,
}

fn directory(root: &Path) -> PathBuf {
    root.join("base")
}

fn file_path(root: &Path, number: u64) -> PathBuf {
    directory(root).join(format!("{number}.json"))
}

/// Saves an index durably: the parts that changed, in new files.
///
/// # Errors
/// When the disk fails or is full.
pub fn save(
    root: &Path,
    before: &Before<'_>,
    index: &Index,
    fresh: &Fresh,
    discovered: bool,
    now: i64,
) -> Result<BaseRecord> {
    let saved: HashMap<&str, &SavedPart> =
        before.record.into_iter().flat_map(|record| &record.parts).map(|part| (part.name.as_str(), part)).collect();
    let mut last_number = before.record.map_or(0, |record| record.last_number);
    let mut written: Vec<(u64, Bytes)> = Vec::new();
    let mut parts = Vec::with_capacity(index.parts().len());
    for (name, part) in index.parts() {
        let same = before.index.parts().get(name).is_some_and(|old| Arc::ptr_eq(&old.document, &part.document));
        let number = match saved.get(&**name).filter(|_| same) {
            Some(saved) => saved.number,
            None => {
                last_number += 1;
                let bytes = fresh.get(name).cloned().unwrap_or_else(|| part.document.to_bytes().into());
                written.push((last_number, bytes));
                last_number
            }
        };
        parts.push(SavedPart {
            name: name.to_string(),
            number,
            fingerprint: part.stamp.fingerprint.as_ref().map(|f| f.as_str().to_owned()),
            written_at: part.stamp.written_at,
            listed: part.listed,
        });
    }
    write(root, &written).map_err(CacheError::io("write", "base"))?;
    Ok(BaseRecord { last_number, parts, meta: index.meta().map(Meta::to_record), discovered, confirmed_at: now })
}

fn write(root: &Path, files: &[(u64, Bytes)]) -> std::io::Result<()> {
    let directory = directory(root);
    if !directory.exists() {
        fs::create_dir(&directory)?;
        File::open(root)?.sync_all()?;
    }
    for (number, bytes) in files {
        let mut file = File::create(file_path(root, *number))?;
        file.write_all(bytes)?;
        if files.len() < SYNC_ONE_BY_ONE {
            file.sync_all()?;
        }
    }
    let directory = File::open(directory)?;
    if files.len() >= SYNC_ONE_BY_ONE {
        rustix::fs::syncfs(&directory)?;
    }
    directory.sync_all()
}

/// Reads the saved base.
///
/// # Errors
/// When a part cannot be read: the index has to be read from the bucket then.
pub fn load(root: &Path, record: &BaseRecord) -> std::result::Result<Index, String> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let share = record.parts.len().div_ceil(cores).max(1);
    let loaded: Vec<std::result::Result<Vec<(PartName, Part)>, String>> = thread::scope(|scope| {
        let load_all = |parts: &'_ [SavedPart]| parts.iter().map(|part| load_part(root, part)).collect();
        let threads: Vec<_> = record.parts.chunks(share).map(|parts| scope.spawn(move || load_all(parts))).collect();
        let lost = |_| Err("a thread that parsed it died".to_owned());
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
    });
    let mut parts = BTreeMap::new();
    for some in loaded {
        parts.extend(some?);
    }
    match &record.meta {
        Some(meta) => {
            let meta = Meta::from_record(meta).ok_or("its list of shards cannot be read")?;
            Ok(Index::sharded(meta, parts))
        }
        None => Index::from_monolith_part(parts).ok_or_else(|| "it has no document".to_owned()),
    }
}

fn load_part(root: &Path, saved: &SavedPart) -> std::result::Result<(PartName, Part), String> {
    let bytes = fs::read(file_path(root, saved.number)).map_err(|e| format!("base/{}.json: {e}", saved.number))?;
    let document = Document::parse(&bytes).map_err(|e| format!("base/{}.json: {e}", saved.number))?;
    let stamp = PartStamp {
        fingerprint: saved.fingerprint.as_deref().and_then(Fingerprint::from_record),
        written_at: saved.written_at,
    };
    Ok((saved.name.as_str().into(), Part::new(&saved.name, Arc::new(document), stamp, saved.listed)))
}

/// Removes the files of older bases. Best effort: what stays only costs space.
pub fn remove_others(root: &Path, keep: &BaseRecord) {
    let keep: HashSet<u64> = keep.parts.iter().map(|part| part.number).collect();
    let Ok(listing) = fs::read_dir(directory(root)) else { return };
    for entry in listing.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|n| n.strip_suffix(".json")?.parse::<u64>().ok());
        if number.is_some_and(|n| !keep.contains(&n))
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::warn!(file = ?entry.path(), %error, "cannot remove an old base");
        }
    }
}
