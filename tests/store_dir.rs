//! What a directory promises beyond what every store does: files under their own names, hands on them, several processes.

mod support;

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use support::stores::{list_all, put, read, request};
use swamp_mount::store::{
    Body, CopySource, DirStore, GetRequest, ObjectStore, Precondition, PutRequest, StoreErrorKind, UserMetadata,
};

const CHILD: &str = "SWAMP_TEST_COUNTING_CHILD";

fn opened() -> (tempfile::TempDir, DirStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = DirStore::open(directory.path(), "").unwrap();
    (directory, store)
}

/// Files in the private directory's part for new objects.
fn temporaries(root: &Path) -> usize {
    std::fs::read_dir(root.join(".swamp-dir-store/tmp")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn ordinary_keys_are_ordinary_files() {
    let (directory, store) = opened();
    for key in ["data/a b/é.yaml", "100%", ".hidden", "data/x.conflict-host-2026.txt"] {
        put(&store, key, key).await;
        assert_eq!(std::fs::read_to_string(directory.path().join(key)).unwrap(), key);
    }
    assert_eq!(temporaries(directory.path()), 0);
    store.delete("data/a b/é.yaml", None).await.unwrap();
    assert!(!directory.path().join("data/a b").exists(), "directories that are left empty go");
    assert!(directory.path().join("data").exists());
}

#[tokio::test]
async fn files_placed_and_changed_by_hand_are_objects() {
    let (directory, store) = opened();
    std::fs::create_dir_all(directory.path().join("by/hand")).unwrap();
    std::fs::create_dir(directory.path().join("empty")).unwrap();
    let path = directory.path().join("by/hand/file");
    std::fs::write(&path, "one").unwrap();
    let (first, content) = read(&store, GetRequest::whole("by/hand/file")).await.unwrap();
    assert_eq!(content, b"one");
    assert!(first.metadata.is_empty());
    assert_eq!(list_all(&store, "", None, None).await.0, ["by/hand/file"]);
    assert_eq!(list_all(&store, "", Some('/'), None).await.1, ["by/"]);
    std::fs::write(&path, "another").unwrap();
    let second = store.head("by/hand/file").await.unwrap();
    assert_ne!(first.fingerprint, second.fingerprint);
    let stale = store.put(request("by/hand/file", "x", Precondition::Match(first.fingerprint.unwrap()))).await;
    assert_eq!(stale.unwrap_err().kind, StoreErrorKind::Precondition);
    store.put(request("by/hand/file", "x", Precondition::Match(second.fingerprint.unwrap()))).await.unwrap();
    put(&store, "empty", "an object beside an empty directory").await;
    assert_eq!(store.head("empty").await.unwrap().size, 35);
}

#[tokio::test]
async fn nothing_outside_the_root_is_ever_read_written_or_listed() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "secret").unwrap();
    let (directory, store) = opened();
    symlink(outside.path(), directory.path().join("link")).unwrap();
    symlink(outside.path().join("secret"), directory.path().join("file")).unwrap();
    for key in ["link/secret", "file", "../secret", "link/new", "link/sub/new"] {
        assert!(store.head(key).await.unwrap_err().is_not_found(), "{key}");
        put(&store, key, "ours").await;
        assert_eq!(read(&store, GetRequest::whole(key)).await.unwrap().1, b"ours", "{key}");
        store.delete(key, None).await.unwrap();
    }
    assert_eq!(std::fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(list_all(&store, "", None, None).await.0, Vec::<String>::new());
}

#[tokio::test]
async fn an_object_moves_to_its_own_name_when_that_becomes_free() {
    let (directory, store) = opened();
    put(&store, "a/b", "below").await;
    let version = put(&store, "a", "beside").await;
    assert!(directory.path().join("a").is_dir());
    store.delete("a/b", None).await.unwrap();
    assert_eq!(store.head("a").await.unwrap().fingerprint, Some(version.clone()));
    store.put(request("a", "own name", Precondition::Match(version))).await.unwrap();
    assert_eq!(std::fs::read_to_string(directory.path().join("a")).unwrap(), "own name");
    put(&store, "a/b", "below a file").await;
    assert_eq!(list_all(&store, "", None, None).await.0, ["a", "a/b"]);
    store.delete("a", None).await.unwrap();
    assert_eq!(list_all(&store, "", None, None).await.0, ["a/b"]);
    assert_eq!(read(&store, GetRequest::whole("a/b")).await.unwrap().1, b"below a file");
}

#[tokio::test]
async fn metadata_is_kept_where_extended_attributes_cannot_hold_it() {
    let (directory, store) = opened();
    let metadata = UserMetadata::from([("large".to_owned(), "x".repeat(60_000))]);
    for round in 0..3 {
        let write = PutRequest { metadata: metadata.clone(), ..request("k", format!("{round}"), Precondition::None) };
        store.put(write).await.unwrap();
        assert_eq!(store.head("k").await.unwrap().metadata, metadata);
    }
    let refused = PutRequest { metadata: metadata.clone(), ..request("k", "no", Precondition::Absent) };
    store.put(refused).await.unwrap_err();
    let beside = directory.path().join(".swamp-dir-store/meta");
    assert!(std::fs::read_dir(&beside).map_or(0, Iterator::count) <= 1, "metadata of replaced objects goes");
    store.delete("k", None).await.unwrap();
    assert_eq!(std::fs::read_dir(&beside).map_or(0, Iterator::count), 0);
}

#[tokio::test]
async fn failed_writes_leave_nothing_behind() {
    let (directory, store) = opened();
    put(&store, "k", "x").await;
    store.put(request("k", "y", Precondition::Absent)).await.unwrap_err();
    let file = Arc::new(tempfile::tempfile().unwrap());
    let short = PutRequest { body: Body::File { file, size: 5 }, ..request("short", "", Precondition::None) };
    assert_eq!(store.put(short).await.unwrap_err().kind, StoreErrorKind::Local);
    let source = CopySource { key: "k".to_owned(), size: 1, if_match: None };
    store.copy(source, "k", Precondition::Absent, UserMetadata::new()).await.unwrap_err();
    assert_eq!(temporaries(directory.path()), 0);
    assert_eq!(list_all(&store, "", None, None).await.0, ["k"]);
}

#[tokio::test]
async fn a_missing_root_is_a_missing_bucket_and_reading_creates_nothing() {
    let (directory, store) = opened();
    let absent = DirStore::open(&directory.path().join("absent"), "").unwrap_err();
    assert_eq!(absent.kind, StoreErrorKind::NoSuchBucket, "{absent}");
    store.head("k").await.unwrap_err();
    store.delete("k", None).await.unwrap();
    assert_eq!(list_all(&store, "", None, None).await.0, Vec::<String>::new());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    drop(directory);
    for error in [
        store.head("k").await.unwrap_err(),
        store.get(GetRequest::whole("k")).await.err().unwrap(),
        store.list(Default::default()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind, StoreErrorKind::NoSuchBucket, "{error}");
    }
}

/// Adds one to a number in an object, by compare and swap.
async fn increment(store: &DirStore) {
    loop {
        let (info, content) = read(store, GetRequest::whole("counter")).await.unwrap();
        let number: u32 = std::str::from_utf8(&content).unwrap().parse().unwrap();
        let precondition = Precondition::Match(info.fingerprint.unwrap());
        match store.put(request("counter", (number + 1).to_string(), precondition)).await {
            Ok(_) => return,
            Err(error) => assert_eq!(error.kind, StoreErrorKind::Precondition, "{error}"),
        }
    }
}

/// The other process of the test below.
#[tokio::test]
async fn counting_child() {
    if let Some(root) = std::env::var_os(CHILD) {
        let store = DirStore::open(Path::new(&root), "").unwrap();
        for _ in 0..50 {
            increment(&store).await;
        }
    }
}

#[tokio::test]
async fn processes_that_compare_and_swap_lose_no_update() {
    let (directory, store) = opened();
    put(&store, "counter", "0").await;
    let children: Vec<_> = (0..3)
        .map(|_| {
            std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "counting_child"])
                .env(CHILD, directory.path())
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for _ in 0..50 {
        increment(&store).await;
    }
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(read(&store, GetRequest::whole("counter")).await.unwrap().1, b"200");
}
