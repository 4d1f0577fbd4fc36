//! What a server holds: the objects of one bucket, with all that any protocol says of them. Knows nothing of HTTP.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use bytes::Bytes;
use md5::{Digest, Md5};
use time::OffsetDateTime;

use super::history::History;

pub type Metadata = HashMap<String, String>;

/// An object.
#[derive(Clone, Debug)]
pub struct StoredObject {
    pub bytes: Bytes,
    /// What is handed out instead of `bytes`, which all that is said of the object is about.
    pub rotten: Option<Bytes>,
    /// Without quotes.
    pub etag: String,
    pub generation: i64,
    pub modified: OffsetDateTime,
    pub metadata: Metadata,
    pub content_type: Option<String>,
}

impl StoredObject {
    /// What a read is given.
    pub fn served(&self) -> &Bytes {
        self.rotten.as_ref().unwrap_or(&self.bytes)
    }
}

/// Objects by key.
pub type Objects = BTreeMap<String, StoredObject>;

/// Is shown what is there, and which bytes a key is about to get.
pub(super) struct Watcher(pub Box<Watch>);

/// Sees the objects, and the key and bytes of a new one.
type Watch = dyn FnMut(&Objects, &str, &Bytes) + Send;

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Watcher")
    }
}

#[derive(Debug)]
pub struct State {
    pub objects: Objects,
    /// Seconds that the server's clock is ahead of ours.
    pub clock_offset: i64,
    /// Most bytes that one request of a copy does.
    pub copy_step: u64,
    /// What stands for the bytes of uploads in parts, where only their sizes are kept.
    pub zeros: Option<Bytes>,
    last_generation: i64,
    pub(super) watcher: Option<Watcher>,
    /// What happened, where that is wanted.
    pub(super) history: Option<History>,
}

impl Default for State {
    fn default() -> Self {
        let (objects, last_generation) = (BTreeMap::new(), 1_763_600_000_000_000);
        Self {
            objects,
            clock_offset: 0,
            copy_step: u64::MAX,
            zeros: None,
            last_generation,
            watcher: None,
            history: None,
        }
    }
}

/// A page of a listing.
#[derive(Debug, Default)]
pub struct Page {
    pub names: Vec<String>,
    pub prefixes: Vec<String>,
    /// The last name or prefix, if there is more.
    pub next: Option<String>,
}

impl State {
    /// The server's clock.
    pub fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + time::Duration::seconds(self.clock_offset)
    }

    /// Stores an object, whatever is there.
    pub fn put(
        &mut self,
        key: &str,
        bytes: Bytes,
        etag: String,
        metadata: Metadata,
        content_type: Option<String>,
    ) -> StoredObject {
        if let Some(Watcher(look)) = &mut self.watcher {
            look(&self.objects, key, &bytes);
        }
        if let Some(history) = &mut self.history {
            history.put(&self.objects, key, &bytes, &etag, &metadata);
        }
        self.last_generation += 1;
        let (generation, modified) = (self.last_generation, self.now());
        let object = StoredObject { bytes, rotten: None, etag, generation, modified, metadata, content_type };
        self.objects.insert(key.to_owned(), object.clone());
        object
    }

    /// Removes an object, if it is there.
    pub fn remove(&mut self, key: &str) -> Option<StoredObject> {
        let removed = self.objects.remove(key);
        if let (Some(history), Some(_)) = (&mut self.history, &removed) {
            history.removed(&self.objects, key);
        }
        removed
    }

    /// Does something behind the watcher's back.
    pub fn unwatched<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        let watcher = self.watcher.take();
        let done = act(self);
        self.watcher = watcher;
        done
    }

    /// A page of the names that begin with `prefix`, after a name or common prefix.
    pub fn list(&self, prefix: &str, delimiter: Option<&str>, after: Option<&str>, most: usize) -> Page {
        let mut page = Page::default();
        let mut last: Option<&str> = None;
        let delimiter = delimiter.filter(|delimiter| !delimiter.is_empty());
        let below = self.objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        for key in below.map(|(key, _)| key.as_str()) {
            let group = delimiter.and_then(|delimiter| {
                let end = key[prefix.len()..].find(delimiter)? + delimiter.len();
                Some(&key[..prefix.len() + end])
            });
            let item = group.unwrap_or(key);
            if after.is_some_and(|after| item <= after) || last == Some(item) {
                continue;
            }
            if page.names.len() + page.prefixes.len() >= most {
                page.next = Some(last.unwrap_or_default().to_owned());
                break;
            }
            last = Some(item);
            let list = if group.is_some() { &mut page.prefixes } else { &mut page.names };
            list.push(item.to_owned());
        }
        page
    }
}

pub fn md5(bytes: &[u8]) -> [u8; 16] {
    Md5::digest(bytes).into()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
