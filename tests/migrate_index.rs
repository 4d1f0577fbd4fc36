//! `migrate-index` loses nothing and hides nothing: wherever it stops, whoever writes at the same time, and for a mount that
//! is at work meanwhile.

mod support;

use std::sync::Arc;

use serde_json::Value;
use support::bucket::each;
use support::hooked::{HookedStore, Verdict};
use support::mount::{Lab, eventually};
use swamp_mount::datastore::*;
use swamp_mount::store::StoreErrorKind;
use swamp_mount::sync::migrate::{MigrateError, Migration, migrate_index};

fn monolith(files: &[&str]) -> String {
    let entry =
        |name: &&str| format!(r#""{name}":{{"key":"{name}","size":1,"lastModified":"t","theirs":{{"z":[1]}}}}"#);
    let entries: Vec<String> = files.iter().map(entry).collect();
    format!(r#"{{"version":1,"lastPulled":"t","entries":{{{}}}}}"#, entries.join(","))
}

const FILES: &[&str] = &[
    "README.md",
    "notes/todo.md",
    "data/short",
    "data/t/i/v/x",
    "workflow-runs/w/r",
    "a b/é.yaml",
    "dir/",
    "../odd",
    "_meta/x",
];

async fn migrate(store: &Arc<HookedStore>, dry_run: bool) -> Result<Migration, MigrateError> {
    migrate_index(&Datastore::new(store.clone()), &LockOptions::default(), dry_run).await
}

async fn index(store: &HookedStore) -> Index {
    match read_index(store, None, Seen::Never).await.unwrap() {
        IndexRead::Present(read) => read.index,
        other => panic!("{other:?}"),
    }
}

/// Both as one document, entries compared with all their fields.
fn same(a: &Index, b: &Index) {
    let entries = |index: &Index| serde_json::from_slice::<Value>(&index.to_bytes()).unwrap()["entries"].clone();
    assert_eq!(entries(a), entries(b));
}

#[tokio::test(start_paused = true)]
async fn every_entry_lands_in_a_shard_with_all_its_fields() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set(INDEX_KEY, monolith(FILES));
        let before = index(&store).await;
        let keys = store.keys();
        let rehearsed = migrate(&store, true).await.unwrap();
        assert_eq!((rehearsed.entries, rehearsed.shards, store.keys()), (7, 7, keys), "a dry run writes nothing");
        let done = migrate(&store, false).await.unwrap();
        assert_eq!((done.entries, done.shards, done.written, done.already), (7, 7, 7, false));
        assert_eq!(
            store.text(META_KEY).unwrap(),
            r#"{"version":2,"partitions":["_mount","_root","a b","data--t--i--v","dir","notes","workflow-runs--w"],"commitSeq":1}"#
        );
        assert_eq!(
            store.text("_index/notes.json").unwrap(),
            r#"{"version":1,"entries":{"notes/todo.md":{"key":"notes/todo.md","size":1,"lastModified":"t","theirs":{"z":[1]}}}}"#
        );
        let after = index(&store).await;
        assert_eq!(after.layout(), Layout::Shards);
        same(&before, &after);
        assert_eq!(store.text(INDEX_KEY).unwrap(), monolith(FILES), "the old one stays");
        assert!(migrate(&store, false).await.unwrap().already && migrate(&store, true).await.unwrap().already);
        assert!(!store.keys().iter().any(|key| key.contains(".lock")));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_shards_cannot_say_is_refused() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        assert!(matches!(migrate(&store, false).await, Err(MigrateError::NoIndex)));
        let text = r#"{"version":1,"lastPulled":"t","future":1,"entries":{}}"#;
        store.set(INDEX_KEY, text);
        let error = migrate(&store, false).await.unwrap_err();
        assert!(error.to_string().contains("future"), "{error}");
        assert_eq!(store.keys(), [INDEX_KEY]);
        store.set(INDEX_KEY, "{");
        assert!(migrate(&store, false).await.is_err());
        assert_eq!(store.keys(), [INDEX_KEY]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_migration_that_stopped_anywhere_is_completed_by_repeating_it() {
    each(async |kind| {
        for stop in ["_index/_root.json", "_index/notes.json", META_KEY] {
            for done in [false, true] {
                let store = HookedStore::new(kind).await;
                store.set(INDEX_KEY, monolith(FILES));
                let before = index(&store).await;
                store.hook(move |_, op, key| match (op == "put" && key == stop, done) {
                    (true, true) => Verdict::DoAndFail(StoreErrorKind::Server),
                    (true, false) => Verdict::Fail(StoreErrorKind::Server),
                    _ => Verdict::Proceed,
                });
                assert!(migrate(&store, false).await.is_err());
                store.unhook();
                same(&before, &index(&store).await);
                migrate(&store, false).await.unwrap();
                let after = index(&store).await;
                assert_eq!(after.layout(), Layout::Shards, "{stop} {done}");
                same(&before, &after);
            }
        }
    })
    .await;
}

/// Shards of a bucket of version 1 are derived copies: what is stale in them must not come back with the migration.
#[tokio::test(start_paused = true)]
async fn stale_copies_do_not_come_back() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set(INDEX_KEY, monolith(&["notes/todo.md"]));
        for (name, file) in [("notes", "notes/removed"), ("logs", "logs/removed"), ("data--t--i", "data/t/i/removed")] {
            let text = monolith(&[file]).replace(r#""lastPulled":"t","#, "");
            store.set(&format!("_index/{name}.json"), text);
            store.set(file, "an object that nothing names");
        }
        migrate(&store, false).await.unwrap();
        let after = index(&store).await;
        assert_eq!(after.entries().map(|entry| entry.path().to_string()).collect::<Vec<_>>(), ["notes/todo.md"]);
        assert_eq!(store.text("_index/data--t--i.json").unwrap(), r#"{"version":1,"entries":{}}"#);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn writers_that_take_no_lock_are_not_lost() {
    each(async |kind| {
        // The write, in the version before which another client changes the monolith.
        for (operation, key) in
            [("put", "_index/_root.json"), ("get", META_KEY), ("put", META_KEY), ("list", "_index/")]
        {
            let store = HookedStore::new(kind).await;
            store.set(INDEX_KEY, monolith(&["README.md", "notes/removed", "notes/kept"]));
            store.before(operation, key, |store| {
                store.set(INDEX_KEY, monolith(&["README.md", "notes/kept", "new/late"]));
            });
            migrate(&store, false).await.unwrap();
            let after = index(&store).await;
            let mut names: Vec<_> = after.entries().map(|entry| entry.path().to_string()).collect();
            names.sort_unstable();
            assert_eq!(after.layout(), Layout::Shards, "{key}");
            assert_eq!(names, ["README.md", "new/late", "notes/kept"], "{key}");
        }
    })
    .await;
}

#[test]
fn a_bucket_that_is_migrated_under_a_running_mount_hides_and_loses_nothing() {
    for lab in Lab::each() {
        lab.seed(&[("README.md", b"read me"), ("notes/todo.md", b"todo"), ("data/t/i/v/x", b"x")]);
        let machine = lab.machine();
        let mount = machine.mount_with(&["--refresh", "1"]);
        mount.write("notes/new", "written before, pushed after");
        let other = lab.machine();
        let output = other.run(&["migrate-index", &lab.source()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        mount.flushed();
        mount.write("notes/todo.md", "changed");
        std::fs::remove_file(mount.path("README.md")).unwrap();
        mount.flushed();
        let expected = ["data/t/i/v/x", "notes/new", "notes/todo.md"];
        assert_eq!(mount.files(), expected);
        assert_eq!(mount.unmount(), 0);
        // Another machine sees the same, and what it writes is seen by the first, which comes back with what it saved.
        let second = other.mount();
        assert_eq!(second.files(), expected);
        assert_eq!(second.read("notes/todo.md"), "changed");
        second.write("late", "late");
        second.flushed();
        let mount = machine.mount_with(&["--refresh", "1"]);
        eventually("what the other wrote", || mount.files().contains(&"late".to_owned()).then_some(()));
        assert_eq!(mount.read("late"), "late");
        let old: Value = serde_json::from_slice(&lab.object(".datastore-index.json").unwrap()).unwrap();
        assert_eq!(old["entries"].as_object().unwrap().len(), 3, "the stale monolith is left alone");
    }
}
