//! A watcher inside a bucket: at the moment in which an index is written it holds every new or changed entry against the
//! object that is there. What it finds is a torn upload, or an entry without an object.
//!
//! An entry that stays is not looked at: contents are uploaded before their entries, so an object may be newer than its
//! entry. Keys that another client overwrites without a condition can be left out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::server::{Server, StoredObject, hex};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct IndexWatch(Arc<Mutex<Seen>>);

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Indexes, or shards of one.
    pub indexes: u64,
    /// New and changed entries.
    pub entries: u64,
    /// What must not be.
    pub torn: Vec<String>,
}

impl IndexWatch {
    /// Watches a server from now on, but for these names.
    pub fn over(server: &Server, but: impl Fn(&str) -> bool + Send + 'static) -> Self {
        let watch = Self::default();
        let seen = watch.clone();
        server.watch_writes(move |objects, key, bytes| seen.look(objects, key, bytes, &but));
        watch
    }

    fn look(&self, objects: &BTreeMap<String, StoredObject>, key: &str, written: &Bytes, but: &dyn Fn(&str) -> bool) {
        let shard = key.starts_with("_index/") && key != "_index/_meta.json";
        if !shard && key != swamp_mount::datastore::INDEX_KEY {
            return;
        }
        let (new, old) = (entries(written), objects.get(key).map(|old| entries(&old.bytes)).unwrap_or_default());
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.indexes += 1;
        let says = |entry: &Value| (entry["size"].clone(), entry["sha256"].clone());
        for (path, entry) in new {
            if old.get(&path).is_some_and(|before| says(before) == says(&entry)) || but(&path) {
                continue;
            }
            seen.entries += 1;
            let wrong = match objects.get(&path) {
                None => Some("there is no object".to_owned()),
                Some(object) if entry["size"] != object.bytes.len() => {
                    Some(format!("it has {} bytes", object.bytes.len()))
                }
                Some(object)
                    if entry["sha256"] != Value::Null && entry["sha256"] != hex(&Sha256::digest(&object.bytes)) =>
                {
                    Some("it has another hash".to_owned())
                }
                Some(_) => None,
            };
            seen.torn.extend(wrong.map(|wrong| format!("{key} says {entry} of {path}, but {wrong}")));
        }
    }

    /// What was seen so far.
    pub fn seen(&self) -> Seen {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn entries(document: &Bytes) -> Map<String, Value> {
    let parsed: Value = serde_json::from_slice(document).expect("an index is JSON");
    parsed["entries"].as_object().cloned().unwrap_or_default()
}
