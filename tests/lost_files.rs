//! The stories in which earlier clients lost or hid files, played with pull and push on cache directories.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use support::memory_store::{MemoryStore, Verdict};
use swamp_mount::datastore::*;
use swamp_mount::store::StoreErrorKind;
use swamp_mount::sync::offline::*;

/// A machine with a cache directory.
struct Machine {
    store: Arc<MemoryStore>,
    root: tempfile::TempDir,
}

impl Machine {
    fn new(store: &Arc<MemoryStore>) -> Self {
        Self { store: store.clone(), root: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Writes a file whose time is `age` seconds ago.
    fn write(&self, name: &str, text: &str, age: u64) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        let at = SystemTime::now() - Duration::from_secs(age);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
    }

    fn read(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(self.path(name)).ok()
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.path(name)).unwrap();
    }

    fn options() -> OfflineOptions {
        OfflineOptions { host: "here".into(), ..OfflineOptions::default() }
    }

    async fn try_pull(&self) -> Result<PullReport, OfflineError> {
        pull(self.store.clone(), self.root.path(), &Self::options(), &()).await
    }

    async fn try_push(&self) -> Result<PushReport, OfflineError> {
        push(self.store.clone(), self.root.path(), &Self::options(), &()).await
    }

    async fn pull(&self) -> PullReport {
        self.try_pull().await.unwrap()
    }

    async fn push(&self) -> PushReport {
        self.try_push().await.unwrap()
    }

    fn sidecar(&self) -> Option<Value> {
        Some(serde_json::from_str(&self.read(SIDECAR_NAME)?).unwrap())
    }

    /// Writes a version 2 sidecar as a reference client leaves it after local changes.
    fn mark(&self, paths: &[&str], lazy: bool) {
        let sidecar = json!({
            "version": 2, "remoteIndexETag": "e", "lastVerifiedAt": "2026-01-01T00:00:00.000Z", "localDirty": true,
            "dirtyPaths": paths, "bulkInvalidated": false, "lazyPullActive": lazy, "dirtyPathsOverflowed": false,
            "future": 1,
        });
        std::fs::write(self.path(SIDECAR_NAME), sidecar.to_string()).unwrap();
    }

    fn is_clean(&self) -> bool {
        self.sidecar().is_some_and(|s| s["localDirty"] == false && s["remoteIndexETag"] == index_etag(&self.store))
    }
}

fn index_etag(store: &MemoryStore) -> String {
    store.object(INDEX_KEY).unwrap().fingerprint().as_str().to_owned()
}

fn listed(store: &MemoryStore) -> Vec<String> {
    let index = Index::parse(&store.object(INDEX_KEY).unwrap().bytes).unwrap();
    let mut names: Vec<_> = index.entries().map(|(path, _)| path.to_string()).collect();
    names.sort();
    names
}

/// What every listed file holds, so that nothing dangles and nothing is old.
fn contents(store: &MemoryStore) -> Vec<(String, String)> {
    listed(store).into_iter().map(|name| (name.clone(), store.text(&name).expect(&name))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
}

/// Another writer adds a file, lock or no lock.
fn add_foreign(store: &MemoryStore, name: &str, text: &str) {
    let mut index = match store.object(INDEX_KEY) {
        Some(object) => Index::parse(&object.bytes).unwrap(),
        None => Index::empty(),
    };
    let entry = Entry {
        size: text.len() as u64,
        last_modified: timestamp::format_nanos(timestamp::now_nanos()),
        ..Entry::default()
    };
    index.set(&RelPath::parse(name).unwrap(), entry);
    store.set(name, text);
    store.set(INDEX_KEY, index.to_bytes());
}

async fn two_files() -> (Arc<MemoryStore>, Machine) {
    let store = MemoryStore::new();
    let first = Machine::new(&store);
    first.write("a", "one", 100);
    first.write("dir/b", "two", 100);
    first.push().await;
    (store, first)
}

#[tokio::test]
async fn a_second_machine_that_joins_a_full_bucket_gets_everything() {
    let (store, first) = two_files().await;
    assert!(first.is_clean());
    let second = Machine::new(&store);
    let report = second.pull().await;
    assert_eq!((report.downloaded, report.clean), (2, true));
    assert_eq!((second.read("a").unwrap(), second.read("dir/b").unwrap()), ("one".into(), "two".into()));
    assert!(second.is_clean());
    let time = |m: &Machine| std::fs::metadata(m.path("a")).unwrap().modified().unwrap();
    let age = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
    assert_eq!(age(time(&first)), age(time(&second)), "or a reference client uploads it again");
}

#[tokio::test]
async fn a_pull_with_nothing_to_do_asks_for_the_index_only() {
    let (store, first) = two_files().await;
    store.take_requests();
    assert!(first.pull().await.up_to_date);
    let mut requests = store.take_requests();
    requests.sort();
    assert_eq!(requests, ["get .datastore-index.json", "get _index/_meta.json"]);
}

#[tokio::test]
async fn a_push_from_an_empty_cache_directory_does_not_look_in_sync() {
    let (store, _) = two_files().await;
    let joiner = Machine::new(&store);
    let report = joiner.push().await;
    assert!(!report.clean && !report.wrote_index && !joiner.is_clean());
    assert_eq!(joiner.sidecar().unwrap()["lazyPullActive"], true);
    assert_eq!(listed(&store), ["a", "dir/b"], "nothing is deleted");
    assert_eq!(joiner.pull().await.downloaded, 2);
    assert!(joiner.is_clean());
}

#[tokio::test]
async fn a_push_with_nothing_to_push_recovers_a_lost_sidecar_and_writes_nothing() {
    let (store, first) = two_files().await;
    let before = index_etag(&store);
    first.remove(SIDECAR_NAME);
    store.take_requests();
    assert!(first.push().await.clean);
    assert!(first.is_clean());
    assert_eq!(index_etag(&store), before);
    assert!(store.take_requests().iter().all(|request| request.starts_with("get ")));
}

#[tokio::test]
async fn a_push_after_others_pushed_does_not_hide_their_files() {
    let (store, first) = two_files().await;
    let second = Machine::new(&store);
    second.pull().await;
    second.write("c", "three", 50);
    second.push().await;
    // Nothing to push here, and the remote has one more.
    assert!(!first.push().await.clean);
    assert!(!first.is_clean());
    assert_eq!(first.pull().await.downloaded, 1);
    assert_eq!(first.read("c").unwrap(), "three");
}

#[tokio::test]
async fn a_push_merges_with_a_writer_between_its_read_and_its_write() {
    let (store, first) = two_files().await;
    first.write("mine", "m", 50);
    store.before("put", INDEX_KEY, |store| add_foreign(store, "theirs", "t"));
    let report = first.push().await;
    assert_eq!(listed(&store), ["a", "dir/b", "mine", "theirs"]);
    assert!(!report.clean && !first.is_clean(), "their file is not here yet");
    assert_eq!(first.pull().await.downloaded, 1);
    assert!(first.is_clean());
}

#[tokio::test]
async fn a_fingerprint_never_belongs_to_an_index_that_was_not_verified() {
    let (store, _) = two_files().await;
    let second = Machine::new(&store);
    // Another writer pushes while we download.
    store.before("get", "dir/b", |store| add_foreign(store, "theirs", "t"));
    second.pull().await;
    assert!(!second.is_clean(), "the sidecar must not vouch for the newer index");
    assert_eq!(second.pull().await.downloaded, 1);
    assert!(second.is_clean() && second.read("theirs").is_some());
}

#[tokio::test]
async fn a_lazily_filled_cache_deletes_and_hides_nothing() {
    let (store, first) = two_files().await;
    first.write("dir/c", "three", 50);
    first.push().await;
    let lazy = Machine::new(&store);
    lazy.pull().await;
    lazy.remove("dir/b");
    lazy.remove("a");
    // Meanwhile a file that is here gets newer there, with the same size.
    first.write("dir/c", "THREE", 10);
    first.push().await;
    lazy.mark(&["dir", "a"], true);
    lazy.push().await;
    assert_eq!(contents(&store), pairs(&[("a", "one"), ("dir/b", "two"), ("dir/c", "THREE")]));
    assert!(!lazy.is_clean());
    lazy.mark(&["dir", "a"], true);
    lazy.pull().await;
    assert_eq!(lazy.read("dir/c").unwrap(), "THREE");
    assert_eq!(lazy.read("dir/b").unwrap(), "two");
    assert!(lazy.is_clean());
    assert_eq!(lazy.sidecar().unwrap()["future"], 1, "unknown fields stay");
}

#[tokio::test]
async fn marked_removals_reach_the_bucket_and_nothing_else_does() {
    let (store, first) = two_files().await;
    for name in ["dir/c", "dir/d/e", "keep"] {
        first.write(name, name, 50);
    }
    first.push().await;
    first.remove("a");
    first.remove("dir/b");
    first.remove("dir/d/e");
    first.mark(&["a", "dir"], false);
    add_foreign(&store, "dir/new", "added by somebody since");
    let report = first.push().await;
    assert_eq!(report.removed, 3);
    assert_eq!(listed(&store), ["dir/c", "dir/new", "keep"]);
    assert!(store.text("a").is_none() && store.text("dir/b").is_none());
}

#[tokio::test]
async fn an_unmarked_absence_is_no_removal() {
    let (store, first) = two_files().await;
    first.write("dir/c", "three", 50);
    first.push().await;
    first.remove("dir/b");
    first.push().await;
    assert_eq!(listed(&store), ["a", "dir/b", "dir/c"]);
    assert!(!first.is_clean());
    // A directory mark in a cache that also lacks other files: it was never complete.
    first.remove("a");
    first.mark(&["dir"], false);
    first.push().await;
    assert_eq!(listed(&store), ["a", "dir/b", "dir/c"]);
}

#[tokio::test]
async fn a_removal_of_what_somebody_changed_since_is_no_removal() {
    let (store, first) = two_files().await;
    let second = Machine::new(&store);
    second.pull().await;
    second.write("a", "newer", 10);
    second.push().await;
    first.remove("a");
    first.mark(&["a"], false);
    first.push().await;
    assert_eq!(contents(&store), pairs(&[("a", "newer"), ("dir/b", "two")]));
}

#[tokio::test]
async fn an_old_version_is_never_pushed_over_a_new_one() {
    let (store, first) = two_files().await;
    let second = Machine::new(&store);
    second.pull().await;
    second.write("a", "newer", 10);
    second.push().await;
    let report = first.push().await;
    assert_eq!((report.uploaded, report.outdated), (0, vec!["a".to_owned()]));
    assert_eq!(store.text("a").unwrap(), "newer");
    first.pull().await;
    assert_eq!(first.read("a").unwrap(), "newer");
}

#[tokio::test]
async fn a_same_size_edit_reaches_the_bucket_and_the_others() {
    let (store, first) = two_files().await;
    let second = Machine::new(&store);
    second.pull().await;
    first.write("a", "ONE", 10);
    assert_eq!(first.push().await.uploaded, 1);
    assert!(first.is_clean());
    assert_eq!(second.pull().await.downloaded, 1);
    assert_eq!(second.read("a").unwrap(), "ONE");
}

#[tokio::test]
async fn a_touched_file_with_the_same_bytes_is_not_uploaded() {
    let (_, first) = two_files().await;
    first.write("a", "one", 5);
    let report = first.push().await;
    assert_eq!((report.uploaded, report.clean), (0, true));
}

#[tokio::test]
async fn when_both_sides_changed_both_versions_survive_a_push() {
    let (store, first) = two_files().await;
    let second = Machine::new(&store);
    second.pull().await;
    second.write("a", "theirs", 10);
    second.push().await;
    first.write("a", "ours", 5);
    let report = first.push().await;
    assert_eq!(report.conflicts.len(), 1);
    assert_eq!(store.text("a").unwrap(), "theirs");
    assert_eq!(store.text(&report.conflicts[0]).unwrap(), "ours");
    assert!(listed(&store).contains(&report.conflicts[0]));
    first.pull().await;
    assert!(first.is_clean());
    assert_eq!(first.read("a").unwrap(), "theirs");
}

#[tokio::test]
async fn when_both_sides_changed_a_pull_keeps_our_version_beside_theirs() {
    let (store, first) = two_files().await;
    let second = Machine::new(&store);
    second.pull().await;
    second.write("a", "theirs", 10);
    second.push().await;
    first.write("a", "ours", 5);
    first.write("dir/b", "two edited", 5);
    first.write("new", "n", 5);
    let report = first.pull().await;
    assert_eq!(report.conflicts.len(), 1);
    assert_eq!(report.unpushed.len(), 3);
    assert!(!report.clean && !first.is_clean());
    assert_eq!(first.read("a").unwrap(), "theirs");
    assert_eq!(first.read(&report.conflicts[0]).unwrap(), "ours");
    assert_eq!(first.read("dir/b").unwrap(), "two edited");
    assert_eq!(first.push().await.uploaded, 3);
    assert!(first.is_clean());
}

#[tokio::test]
async fn when_both_sides_made_the_same_change_there_is_no_conflict() {
    let (store, first) = two_files().await;
    let second = Machine::new(&store);
    second.pull().await;
    for machine in [&first, &second] {
        machine.write("a", "same", 10);
    }
    second.push().await;
    let report = first.push().await;
    assert!(report.conflicts.is_empty() && report.clean, "{report:?}");
    // Against a client that records no hash, the bytes themselves are compared.
    add_foreign(&store, "x", "content");
    first.write("x", "content", 77);
    assert!(first.pull().await.conflicts.is_empty());
    assert!(first.is_clean());
}

#[tokio::test]
async fn a_file_that_was_removed_there_goes_here_unless_it_was_edited() {
    let (store, first) = two_files().await;
    first.write("c", "three", 50);
    first.push().await;
    let second = Machine::new(&store);
    second.pull().await;
    second.remove("a");
    second.remove("c");
    second.mark(&["a", "c"], false);
    second.push().await;
    first.write("c", "edited", 5);
    let report = first.pull().await;
    assert_eq!((report.removed, first.read("a")), (1, None));
    assert_eq!(first.read("c").unwrap(), "edited");
    first.push().await;
    assert_eq!(store.text("c").unwrap(), "edited");
}

#[tokio::test]
async fn a_missing_object_fails_the_pull_by_name_and_leaves_no_promise() {
    let (store, first) = two_files().await;
    store.remove("a");
    let second = Machine::new(&store);
    let error = second.try_pull().await.unwrap_err().to_string();
    assert!(error.contains("\"a\"") || error.contains("(a)"), "{error}");
    assert!(error.contains("missing from the bucket"), "{error}");
    assert_eq!(second.read("dir/b").unwrap(), "two", "the others are there");
    assert_eq!(second.sidecar().unwrap()["lazyPullActive"], true);
    assert_eq!(second.push().await.uploaded, 0);
    assert_eq!(listed(&store), ["a", "dir/b"]);
    drop(first);
}

#[tokio::test]
async fn an_interrupted_pull_is_a_lazily_filled_cache() {
    let (store, first) = two_files().await;
    let second = Machine::new(&store);
    store.hook(|_, op, key| match (op, key) {
        ("get", "dir/b") => Verdict::Fail(StoreErrorKind::Unreachable),
        _ => Verdict::Proceed,
    });
    second.try_pull().await.unwrap_err();
    store.unhook();
    assert_eq!(second.sidecar().unwrap()["lazyPullActive"], true);
    assert_eq!(second.sidecar().unwrap()["remoteIndexETag"], "");
    assert_eq!(second.pull().await.downloaded, 1);
    assert!(second.is_clean());
    drop(first);
}

#[tokio::test]
async fn an_index_that_cannot_be_read_is_not_an_empty_one() {
    for kind in
        [StoreErrorKind::Forbidden, StoreErrorKind::Server, StoreErrorKind::Unreachable, StoreErrorKind::NoSuchBucket]
    {
        let (store, first) = two_files().await;
        let before = store.text(INDEX_KEY);
        first.write("c", "three", 5);
        store.hook(move |_, op, key| match (op, key) {
            ("get", INDEX_KEY) => Verdict::Fail(kind),
            _ => Verdict::Proceed,
        });
        first.try_push().await.unwrap_err();
        first.try_pull().await.unwrap_err();
        assert_eq!(store.text(INDEX_KEY), before);
        assert_eq!(first.read("a").unwrap(), "one");
    }
    let (store, first) = two_files().await;
    let cut = store.text(INDEX_KEY).unwrap();
    store.set(INDEX_KEY, &cut[..cut.len() - 2]);
    first.try_push().await.unwrap_err();
    first.try_pull().await.unwrap_err();
    assert_eq!(first.read("a").unwrap(), "one");
}

#[tokio::test]
async fn an_index_that_disappears_is_not_an_empty_one() {
    let (store, first) = two_files().await;
    store.remove(INDEX_KEY);
    first.write("c", "three", 5);
    for error in [first.try_push().await.map(drop).unwrap_err(), first.try_pull().await.map(drop).unwrap_err()] {
        assert!(error.to_string().contains("is gone from a bucket that had one"), "{error}");
    }
    assert!(store.text(INDEX_KEY).is_none());
    assert_eq!(first.read("a").unwrap(), "one");
}

#[tokio::test]
async fn a_sharded_index_is_refused() {
    let (store, first) = two_files().await;
    store.set(META_KEY, r#"{"version":2,"partitions":[],"commitSeq":1}"#);
    for error in [first.try_push().await.map(drop).unwrap_err(), first.try_pull().await.map(drop).unwrap_err()] {
        assert!(error.to_string().contains("version 2"), "{error}");
    }
    store.set(META_KEY, r#"{"version":1}"#);
    first.pull().await;
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_not_written_to() {
    let (store, first) = two_files().await;
    store.ignores_conditions.store(true, std::sync::atomic::Ordering::Relaxed);
    first.write("a", "edited", 5);
    let before = contents(&store);
    assert!(matches!(first.try_push().await, Err(OfflineError::NoConditions)));
    assert_eq!(contents(&store), before);
    assert!(store.text(LOCK_KEY).is_none());
    let options = OfflineOptions { unsafe_no_conditional_writes: true, ..Machine::options() };
    push(store.clone(), first.root.path(), &options, &()).await.unwrap();
    assert_eq!(store.text("a").unwrap(), "edited");
}

#[tokio::test]
async fn lost_answers_lose_nothing() {
    for key in ["c", INDEX_KEY, LOCK_KEY] {
        let (store, first) = two_files().await;
        first.write("c", "three", 5);
        store.lose_answer("put", key);
        let report = first.push().await;
        assert_eq!(report.conflicts, Vec::<String>::new(), "{key}");
        assert_eq!(listed(&store), ["a", "c", "dir/b"], "{key}");
        assert!(first.is_clean(), "{key}");
    }
}

#[tokio::test]
async fn a_new_name_that_somebody_took_first_keeps_both() {
    let (store, first) = two_files().await;
    first.write("c", "ours", 5);
    store.before("put", "c", |store| add_foreign(store, "c", "theirs"));
    let report = first.push().await;
    assert_eq!(store.text("c").unwrap(), "theirs");
    assert_eq!(store.text(&report.conflicts[0]).unwrap(), "ours");
}

#[tokio::test]
async fn a_complete_cache_with_something_unpushed_is_not_clean() {
    let (store, first) = two_files().await;
    first.remove(SIDECAR_NAME);
    first.write("new", "n", 5);
    let report = first.pull().await;
    assert_eq!((report.unpushed, report.clean), (vec!["new".to_owned()], false));
    assert!(!first.is_clean());
    // The same size as the entry, so that only the content tells.
    first.push().await;
    first.write("a", "ONE", 5);
    first.remove(SIDECAR_NAME);
    assert!(!first.pull().await.clean);
    assert_eq!(first.read("a").unwrap(), "ONE");
    first.push().await;
    assert_eq!(store.text("a").unwrap(), "ONE");
}

#[tokio::test]
async fn a_push_compares_bytes_before_it_speaks_of_a_conflict() {
    let (store, first) = two_files().await;
    add_foreign(&store, "x", "content");
    add_foreign(&store, "y", "theirs");
    first.write("x", "content", 77);
    first.write("y", "ourown", 77);
    let report = first.push().await;
    assert_eq!((report.conflicts.len(), report.uploaded), (1, 1), "{report:?}");
    assert_eq!((store.text("x").unwrap(), store.text("y").unwrap()), ("content".into(), "theirs".into()));
    assert_eq!(first.pull().await.downloaded, 1);
    assert!(first.is_clean());
}

/// Lets another writer act when everything is uploaded and the lock is about to be taken for the index.
fn before_the_merge(store: &MemoryStore, act: impl FnOnce(&MemoryStore) + Send + 'static) {
    let (mut writes_of_the_lock, mut act) = (0, Some(act));
    store.hook(move |store, op, key| {
        writes_of_the_lock += u32::from(op == "put" && key == LOCK_KEY);
        // The first takes it, the second proves that conditions are honoured.
        if writes_of_the_lock == 3
            && let Some(act) = act.take()
        {
            act(store);
        }
        Verdict::Proceed
    });
}

#[tokio::test]
async fn a_file_that_changes_while_its_removal_is_pushed_stays() {
    let (store, first) = two_files().await;
    first.remove("a");
    first.mark(&["a"], false);
    before_the_merge(&store, |store| add_foreign(store, "a", "newer"));
    assert_eq!(first.push().await.removed, 0);
    assert_eq!(contents(&store), pairs(&[("a", "newer"), ("dir/b", "two")]));
    assert!(!first.is_clean());
}

#[tokio::test]
async fn an_object_that_was_replaced_without_a_condition_before_our_entry_keeps_both() {
    let (store, first) = two_files().await;
    first.write("a", "ours", 5);
    before_the_merge(&store, |store| add_foreign(store, "a", "theirs"));
    let report = first.push().await;
    assert_eq!(store.text("a").unwrap(), "theirs");
    assert_eq!(store.text(&report.conflicts[0]).unwrap(), "ours");
    assert_eq!(contents(&store).len(), 3);
}

#[tokio::test]
async fn a_new_version_with_the_old_size_and_time_is_pulled() {
    let (_, first) = two_files().await;
    let second = Machine::new(&first.store);
    second.pull().await;
    let time = std::fs::metadata(first.path("a")).unwrap().modified().unwrap();
    first.write("a", "ONE", 1);
    first.push().await;
    first.write("a", "eno", 1);
    std::fs::File::options().write(true).open(first.path("a")).unwrap().set_modified(time).unwrap();
    first.push().await;
    second.pull().await;
    assert_eq!(second.read("a").unwrap(), "eno");
}

#[tokio::test]
async fn a_zombie_entry_is_scrubbed_by_the_next_push_and_never_fetched() {
    let (store, first) = two_files().await;
    let text = store.text(INDEX_KEY).unwrap();
    let zombie = r#""entries":{"x/_catalog.db":{"key":"x/_catalog.db","size":1,"lastModified":"t"},"#;
    store.set(INDEX_KEY, text.replace(r#""entries":{"#, zombie));
    let second = Machine::new(&store);
    assert_eq!(second.pull().await.downloaded, 2);
    first.write("x/_catalog.db", "local", 5);
    assert!(first.push().await.wrote_index);
    assert_eq!(listed(&store), ["a", "dir/b"]);
    assert!(!store.text(INDEX_KEY).unwrap().contains("_catalog"));
    assert!(store.text("x/_catalog.db").is_none());
}

#[tokio::test]
async fn entries_that_cannot_be_shown_survive_a_push() {
    let (store, first) = two_files().await;
    let text = store.text(INDEX_KEY).unwrap();
    let odd = r#""entries":{"../x":{"key":"../x","size":1,"lastModified":"t"},"neg":{"size":-1},"#;
    store.set(INDEX_KEY, text.replace(r#""entries":{"#, odd));
    first.write("c", "three", 5);
    assert!(!first.push().await.clean);
    let after = store.text(INDEX_KEY).unwrap();
    assert!(after.contains("../x") && after.contains("neg"));
    assert_eq!(listed(&store), ["a", "c", "dir/b"]);
    let second = Machine::new(&store);
    assert_eq!(second.pull().await.problems.len(), 2);
    assert!(!Path::new(&second.path("../x")).exists());
}

#[tokio::test]
async fn an_unindexed_bucket_is_discovered_and_indexed_by_the_first_push() {
    let store = MemoryStore::new();
    for (key, text) in [
        ("old/file", "data"),
        ("_index/x.json", "{}"),
        (".locks/a", ""),
        ("dir/", ""),
        ("ns/.namespace.json", "{}"),
        ("ns/f", "x"),
    ] {
        store.set(key, text);
    }
    let machine = Machine::new(&store);
    assert_eq!(machine.pull().await.downloaded, 1);
    assert_eq!(machine.pull().await.downloaded, 0);
    machine.write("new", "n", 5);
    machine.push().await;
    assert_eq!(listed(&store), ["new", "old/file"]);
    assert!(machine.is_clean());
    let only = MemoryStore::new();
    only.set("infra/.namespace.json", "{}");
    only.set("infra/f", "x");
    let error = Machine::new(&only).try_pull().await.unwrap_err().to_string();
    assert!(error.contains("infra"), "{error}");
}

#[tokio::test]
async fn derived_shards_follow_and_keep_what_we_do_not_know() {
    let (store, first) = two_files().await;
    let shard = |text: &str| format!(r#"{{"version":1,"entries":{{{text}}}}}"#);
    store.set("_index/dir.json", shard(r#""dir/theirs":{"key":"dir/theirs","size":9,"lastModified":"t"}"#));
    store.set("_index/other.json", shard(""));
    first.write("dir/c", "three", 5);
    store.before("put", "_index/dir.json", {
        let racing = shard(r#""dir/theirs":{"key":"dir/theirs","size":10,"lastModified":"u"}"#);
        move |store| store.set("_index/dir.json", racing)
    });
    first.push().await;
    let index = Index::parse(store.text("_index/dir.json").unwrap().as_bytes()).unwrap();
    assert_eq!(index.get("dir/theirs").unwrap().size, 10);
    assert_eq!(index.get("dir/c").unwrap().size, 5);
    first.remove("dir/c");
    first.mark(&["dir/c"], false);
    first.push().await;
    let index = Index::parse(store.text("_index/dir.json").unwrap().as_bytes()).unwrap();
    assert!(index.get("dir/c").is_none() && index.get("dir/theirs").is_some());
    assert_eq!(store.text("_index/other.json").unwrap(), shard(""));
}

#[tokio::test]
async fn a_directory_mark_of_version_1_never_exists_so_nothing_is_removed() {
    let (store, first) = two_files().await;
    first.remove("dir/b");
    let text = r#"{"version":1,"remoteIndexETag":"x","lastVerifiedAt":"2026-01-01T00:00:00.000Z","localDirty":true}"#;
    std::fs::write(first.path(SIDECAR_NAME), text).unwrap();
    first.push().await;
    assert_eq!(listed(&store), ["a", "dir/b"]);
}

#[tokio::test]
async fn two_machines_in_turn_and_at_once_lose_nothing() {
    let (store, first) = two_files().await;
    let second = Machine::new(&store);
    second.pull().await;
    for round in 0..5 {
        first.write(&format!("first/{round}"), "f", 5);
        second.write(&format!("second/{round}"), "s", 5);
        let (a, b) = tokio::join!(first.try_push(), second.try_push());
        a.unwrap();
        b.unwrap();
    }
    assert_eq!(contents(&store).len(), 12);
    for machine in [&first, &second] {
        machine.pull().await;
        assert!(machine.is_clean());
    }
}
