//! A bucket that is as it should be, in either layout, and what a check says of it.

use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use swamp_mount::datastore::*;
use swamp_mount::sync::fsck::cached::Cached;
use swamp_mount::sync::fsck::findings::{Finding, Kind};
use swamp_mount::sync::fsck::{Report, fsck};
use swamp_mount::sync::migrate::migrate_index;

use super::hooked::HookedStore;

/// What is in the bucket.
pub const FILES: &[(&str, &str)] =
    &[("README.md", "read me"), ("notes/todo.md", "to do"), ("notes/done.md", "done"), ("data/t/i/v/x", "bytes")];
pub const TIME: &str = "2026-04-28T08:05:37.001Z";
pub const LAYOUTS: &[Layout] = &[Layout::Monolith, Layout::Shards];
pub const LONG_AGO: Duration = Duration::from_secs(3 * 24 * 60 * 60);

pub fn entry(name: &str, content: &str) -> String {
    let hash: String = Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        r#""{name}":{{"key":"{name}","size":{},"lastModified":"{TIME}","localMtime":"{TIME}","sha256":"{hash}"}}"#,
        content.len()
    )
}

/// A bucket with files, as it should be.
pub async fn sound(store: &Arc<HookedStore>, layout: Layout) {
    let entries: Vec<String> = FILES.iter().map(|(name, content)| entry(name, content)).collect();
    store.set(INDEX_KEY, format!(r#"{{"version":1,"lastPulled":"{TIME}","entries":{{{}}}}}"#, entries.join(",")));
    for (name, content) in FILES {
        store.set(name, *content);
        store.age(name, LONG_AGO);
    }
    if layout == Layout::Shards {
        migrate_index(&Datastore::new(store.clone()), &LockOptions::default(), false).await.unwrap();
        store.remove(INDEX_KEY);
    }
}

/// A check, or a repair.
pub async fn run(store: &Arc<HookedStore>, cached: Option<&mut Cached>, repair: bool) -> Report {
    fsck(&Datastore::new(store.clone()), cached, repair.then_some(&LockOptions::default()), &|_, _| {}).await.unwrap()
}

/// The findings that make a check fail.
pub fn counting(findings: &[Finding]) -> Vec<(Kind, String)> {
    let mut all: Vec<_> = findings.iter().filter(|f| f.counts()).map(|f| (f.kind, f.name.clone())).collect();
    all.sort();
    all
}

pub async fn index(store: &HookedStore) -> Index {
    match read_index(store, None, Seen::Never).await.unwrap() {
        IndexRead::Present(read) => read.index,
        other => panic!("{other:?}"),
    }
}

/// The object that holds the entries of `notes/…`.
pub fn holder(layout: Layout) -> &'static str {
    if layout == Layout::Shards { "_index/notes.json" } else { INDEX_KEY }
}

/// Changes the text of an object behind every client's back.
pub fn edit(store: &HookedStore, key: &str, from: &str, to: &str) {
    let text = store.text(key).unwrap();
    assert!(text.contains(from), "{text}");
    store.set(key, text.replace(from, to));
}
