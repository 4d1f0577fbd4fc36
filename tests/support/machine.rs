//! Machines with cache directories that share one bucket, and another writer that takes no lock.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use swamp_mount::datastore::*;
use swamp_mount::sync::offline::*;

use super::bucket::{Bucket, Kind};
use super::hooked::HookedStore;

/// A machine with a cache directory, and nothing beside it.
pub struct Machine {
    pub store: Arc<HookedStore>,
    home: tempfile::TempDir,
}

impl Machine {
    pub fn new(store: &Arc<HookedStore>) -> Self {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("cache")).unwrap();
        Self { store: store.clone(), home }
    }

    /// The cache directory.
    pub fn root(&self) -> PathBuf {
        self.home.path().join("cache")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Writes a file whose time is `age` seconds ago.
    pub fn write(&self, name: &str, text: &str, age: u64) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        let at = SystemTime::now() - Duration::from_secs(age);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
    }

    pub fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)).ok()
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    pub fn options() -> OfflineOptions {
        OfflineOptions { host: "here".into(), ..OfflineOptions::default() }
    }

    pub async fn try_pull(&self) -> Result<PullReport, OfflineError> {
        pull(&Datastore::new(self.store.clone()), &self.root(), &Self::options(), &()).await
    }

    pub async fn try_push(&self) -> Result<PushReport, OfflineError> {
        push(&Datastore::new(self.store.clone()), &self.root(), &Self::options(), &()).await
    }

    pub async fn pull(&self) -> PullReport {
        self.try_pull().await.unwrap()
    }

    pub async fn push(&self) -> PushReport {
        self.try_push().await.unwrap()
    }

    pub fn sidecar(&self) -> Option<Value> {
        Some(serde_json::from_str(&self.read(SIDECAR_NAME)?).unwrap())
    }

    /// Writes a version 2 sidecar as a reference client leaves it after local changes.
    pub fn mark(&self, paths: &[&str], lazy: bool) {
        let sidecar = json!({
            "version": 2, (self.store.fingerprint_field()): "e", "lastVerifiedAt": "2026-01-01T00:00:00.000Z", "localDirty": true,
            "dirtyPaths": paths, "bulkInvalidated": false, "lazyPullActive": lazy, "dirtyPathsOverflowed": false,
            "future": 1,
        });
        std::fs::write(self.path(SIDECAR_NAME), sidecar.to_string()).unwrap();
    }

    pub fn is_clean(&self) -> bool {
        let field = self.store.fingerprint_field();
        self.sidecar().is_some_and(|s| s["localDirty"] == false && s[field] == index_etag(&self.store))
    }
}

pub fn index_etag(bucket: &Bucket) -> String {
    bucket.fingerprint(INDEX_KEY).unwrap()
}

pub fn listed(bucket: &Bucket) -> Vec<String> {
    let index = Index::parse(&bucket.bytes(INDEX_KEY).unwrap()).unwrap();
    let mut names: Vec<_> = index.entries().map(|entry| entry.path().to_string()).collect();
    names.sort();
    names
}

/// What every listed file holds, so that nothing dangles and nothing is old.
pub fn contents(bucket: &Bucket) -> Vec<(String, String)> {
    listed(bucket).into_iter().map(|name| (name.clone(), bucket.text(&name).expect(&name))).collect()
}

pub fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
}

fn index_of(bucket: &Bucket) -> Index {
    bucket.bytes(INDEX_KEY).map_or_else(Index::empty, |bytes| Index::parse(&bytes).unwrap())
}

/// Another writer removes a file, lock or no lock.
pub fn remove_foreign(bucket: &Bucket, name: &str) {
    let mut index = index_of(bucket);
    index.remove(name);
    bucket.set(INDEX_KEY, index.to_bytes());
    bucket.remove(name);
}

/// Another writer adds a file, lock or no lock.
pub fn add_foreign(bucket: &Bucket, name: &str, text: &str) {
    add_with(bucket, name, text, None);
}

/// The same with the hash in the entry.
pub fn add_hashed(bucket: &Bucket, name: &str, text: &str) {
    let entry = super::mount::entry(name, text.as_bytes());
    add_with(bucket, name, text, entry["sha256"].as_str().map(str::to_owned));
}

fn add_with(bucket: &Bucket, name: &str, text: &str, sha256: Option<String>) {
    bucket.set(name, text);
    list_foreign(bucket, name, text, sha256);
}

/// Another writer writes only an entry, as one with an old view does.
pub fn list_foreign(bucket: &Bucket, name: &str, text: &str, sha256: Option<String>) {
    let mut index = index_of(bucket);
    let last_modified = timestamp::format_nanos(timestamp::now_nanos());
    let entry = Entry { size: text.len() as u64, last_modified, sha256, ..Entry::default() };
    index.set(&RelPath::parse(name).unwrap(), &entry);
    bucket.set(INDEX_KEY, index.to_bytes());
}

/// A bucket with two files, and the machine that pushed them.
pub async fn two_files(kind: &'static Kind) -> (Arc<HookedStore>, Machine) {
    let store = HookedStore::new(kind).await;
    let first = Machine::new(&store);
    first.write("a", "one", 100);
    first.write("dir/b", "two", 100);
    first.push().await;
    (store, first)
}
