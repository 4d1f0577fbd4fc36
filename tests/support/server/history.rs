//! What became of objects and their entries, for the message of a test that misses one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Instant;

use bytes::Bytes;
use serde_json::{Map, Value};
use swamp_mount::datastore::LOCK_KEY;

use super::state::{Metadata, Objects};

/// See the module.
#[derive(Debug)]
pub struct History {
    began: Instant,
    events: BTreeMap<String, Vec<String>>,
    /// What each document of the index said last.
    indexes: BTreeMap<String, Map<String, Value>>,
}

impl Default for History {
    fn default() -> Self {
        Self { began: Instant::now(), events: BTreeMap::new(), indexes: BTreeMap::new() }
    }
}

impl History {
    pub fn put(&mut self, objects: &Objects, key: &str, bytes: &Bytes, etag: &str, metadata: &Metadata) {
        let of_index = key.starts_with("_index/") || key == swamp_mount::datastore::INDEX_KEY;
        if !of_index {
            let begins = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
            let upload = metadata.get("swamp-upload-id").map_or("no upload id", String::as_str);
            let etag = &etag[..etag.len().min(8)];
            self.note(objects, key, &format!("object {etag} ({upload}), {} bytes: {begins}", bytes.len()));
            return;
        }
        let parsed: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let new = parsed["entries"].as_object().cloned().unwrap_or_default();
        let old = self.indexes.insert(key.to_owned(), new.clone()).unwrap_or_default();
        for (path, before) in &old {
            if !new.contains_key(path) {
                self.note(objects, path, &format!("no entry in {key} any more, which was {}", brief(before)));
            }
        }
        for (path, entry) in &new {
            if old.get(path) != Some(entry) {
                self.note(objects, path, &format!("entry in {key}: {}", brief(entry)));
            }
        }
    }

    pub fn removed(&mut self, objects: &Objects, key: &str) {
        self.note(objects, key, "object removed");
    }

    fn note(&mut self, objects: &Objects, key: &str, what: &str) {
        let body = objects.get(LOCK_KEY).and_then(|lock| serde_json::from_slice::<Value>(&lock.bytes).ok());
        let holder = body.map_or_else(|| "nobody".to_owned(), |body| body["pid"].to_string());
        let at = self.began.elapsed().as_secs_f64();
        self.events.entry(key.to_owned()).or_default().push(format!("{at:8.3} s, {holder} holds the lock: {what}"));
    }

    pub fn of(&self, key: &str) -> String {
        let events = self.events.get(key).map(Vec::as_slice).unwrap_or_default();
        events.iter().fold(format!("{key}:\n"), |mut text, event| {
            let _ = writeln!(text, "    {event}");
            text
        })
    }
}

fn brief(entry: &Value) -> String {
    let hash = entry["sha256"].as_str().unwrap_or("no hash");
    format!("{} bytes, {}, of {}", entry["size"], &hash[..hash.len().min(8)], entry["lastModified"])
}
