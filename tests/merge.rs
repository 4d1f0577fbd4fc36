//! The building blocks of every push: an upload is never lost or doubled, a merge changes our rows only.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::bucket::each;
use support::hooked::{HookedStore, Verdict};
use swamp_mount::datastore::*;
use swamp_mount::store::{Body, Fingerprint, StoreErrorKind};
use swamp_mount::sync::base::{BaseVersion, head_base};
use swamp_mount::sync::hash;
use swamp_mount::sync::merge::*;
use swamp_mount::sync::remove_object::{ObjectRemoval, remove_object};
use swamp_mount::sync::upload::*;
use tokio::time::{Instant, advance};

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn entry(text: &str) -> Entry {
    Entry { size: text.len() as u64, last_modified: text.into(), ..Entry::default() }
}

async fn send(store: &HookedStore, text: &str, id: &str, expect: Expect) -> UploadOutcome {
    let body = Body::Bytes(text.to_owned().into());
    let digests = hash::digest(body.clone()).await.unwrap();
    upload(store, &Upload { key: "f".into(), body, digests, upload_id: id.into(), expect }).await.unwrap()
}

fn version(store: &HookedStore) -> Fingerprint {
    Fingerprint::from_record(&store.fingerprint("f").unwrap()).unwrap()
}

#[tokio::test]
async fn an_upload_with_a_lost_answer_is_recognised() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.lose_answer("put", "f");
        assert!(matches!(send(&store, "one", "id", Expect::Absent).await, UploadOutcome::Stored(Some(_))));
        store.lose_answer("put", "f");
        let expect = Expect::Version(version(&store));
        assert!(matches!(send(&store, "two", "id2", expect).await, UploadOutcome::Stored(Some(_))));
        assert_eq!(store.text("f").unwrap(), "two");
    })
    .await;
}

#[tokio::test]
async fn an_upload_that_did_not_arrive_is_sent_again() {
    each(async |kind| {
        for expect_existing in [false, true] {
            let store = HookedStore::new(kind).await;
            let mut expect = Expect::Absent;
            if expect_existing {
                store.set("f", "old");
                expect = Expect::Version(version(&store));
            }
            let mut armed = true;
            store.hook(move |_, op, _| match op {
                "put" if std::mem::take(&mut armed) => Verdict::Fail(StoreErrorKind::Undecided),
                _ => Verdict::Proceed,
            });
            assert!(matches!(send(&store, "one", "id", expect).await, UploadOutcome::Stored(_)));
            assert_eq!(store.text("f").unwrap(), "one");
        }
    })
    .await;
}

#[tokio::test]
async fn an_upload_never_replaces_what_it_did_not_expect() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set("f", "theirs");
        let stale = Fingerprint::from_record("feed").unwrap();
        for expect in [Expect::Absent, Expect::Version(stale.clone())] {
            assert!(matches!(send(&store, "ours!!", "id", expect).await, UploadOutcome::Conflict(_)));
            assert_eq!(store.text("f").unwrap(), "theirs");
        }
        assert!(
            matches!(send(&store, "theirs", "id", Expect::Absent).await, UploadOutcome::Stored(_)),
            "the same bytes"
        );
        store.remove("f");
        assert!(matches!(send(&store, "ours", "id", Expect::Version(stale)).await, UploadOutcome::Vanished));
    })
    .await;
}

#[tokio::test]
async fn a_base_is_found_only_where_the_object_looks_like_the_entry() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        assert!(matches!(head_base(&*store, "f", &entry("one"), None).await, Ok(BaseVersion::Missing)));
        send(&store, "one", "id", Expect::Absent).await;
        assert!(matches!(head_base(&*store, "f", &entry("one"), None).await, Ok(BaseVersion::Found(_))));
        assert!(matches!(head_base(&*store, "f", &entry("longer"), None).await, Ok(BaseVersion::Different(_))));
        let other_hash = Entry { sha256: Some("0".repeat(64)), ..entry("one") };
        assert!(matches!(head_base(&*store, "f", &other_hash, None).await, Ok(BaseVersion::Different(_))));
    })
    .await;
}

#[tokio::test]
async fn an_object_that_came_after_the_index_is_no_base_although_it_looks_like_the_entry() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set("f", "one");
        let mut index = Index::empty();
        index.set(&path("f"), &entry("one"));
        store.set(INDEX_KEY, index.to_bytes());
        store.age("f", Duration::from_secs(20));
        store.age(INDEX_KEY, Duration::from_secs(10));
        let IndexRead::Present(read) = read_index(&*store, None, Seen::Never).await.unwrap() else {
            panic!("no index")
        };
        let written_at = read.index.written_at("f");
        assert!(written_at.is_some(), "every store tells when an index was written");
        let base = head_base(&*store, "f", &entry("one"), written_at).await;
        assert!(matches!(base, Ok(BaseVersion::Found(_))));
        // A client that records no hash has uploaded, and not written its index yet.
        store.set("f", "two");
        let base = head_base(&*store, "f", &entry("one"), written_at).await;
        assert!(matches!(base, Ok(BaseVersion::Different(_))));
    })
    .await;
}

#[tokio::test]
async fn an_object_is_removed_in_the_version_that_was_removed_only() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set("f", "one");
        let one = version(&store);
        let mut named = Index::empty();
        named.set(&path("f"), &entry("one"));
        assert_eq!(remove_object(&*store, "f", &one, &named).await.unwrap(), ObjectRemoval::Kept);
        store.set("f", "newer");
        assert_eq!(remove_object(&*store, "f", &one, &Index::empty()).await.unwrap(), ObjectRemoval::Kept);
        assert_eq!(store.text("f").unwrap(), "newer");
        store.lose_answer("delete", "f");
        let newer = version(&store);
        assert_eq!(remove_object(&*store, "f", &newer, &Index::empty()).await.unwrap(), ObjectRemoval::AlreadyGone);
        assert!(store.text("f").is_none());
    })
    .await;
}

async fn held(store: &Arc<HookedStore>) -> HeldLock {
    acquire(store.clone(), &LockOptions::default()).await.unwrap()
}

fn start() -> Known {
    Known { index: Index::empty(), seen: Seen::Never }
}

/// Of a bucket that had an index of version 1, which is not at hand.
fn had_one() -> Known {
    Known { index: Index::empty(), seen: Seen::Index(Layout::Monolith) }
}

fn writer<'a>(store: &'a HookedStore, lock: &'a HeldLock) -> Writer<'a> {
    Writer { store, lock, unconditional: false }
}

fn put(store: &HookedStore, text: &str) -> Row {
    let uploaded = Uploaded {
        fingerprint: store.fingerprint("f").and_then(|text| Fingerprint::from_record(&text)),
        upload_id: "id".into(),
        confirmed: Some(Instant::now()),
    };
    Row { path: path("f"), change: Change::Put(entry(text), uploaded), base: None }
}

#[tokio::test(start_paused = true)]
async fn an_old_upload_is_looked_at_again_before_its_entry_is_written() {
    each(async |kind| {
        for (theirs, expected) in [(Some("theirs"), RowOutcome::Superseded), (None, RowOutcome::ObjectGone)] {
            let store = HookedStore::new(kind).await;
            store.set("f", "ours");
            let row = put(&store, "ours");
            match theirs {
                Some(text) => store.set("f", text),
                None => store.remove("f"),
            }
            advance(Duration::from_secs(6)).await;
            let lock = held(&store).await;
            let committed = commit(writer(&store, &lock), &[row], &[], &start()).await.unwrap();
            assert_eq!(committed.outcomes, [expected]);
            assert!(committed.remote.index.get("f").is_none());
            lock.release().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_merge_with_a_lost_answer_is_settled_by_merging_again() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set("f", "ours");
        let lock = held(&store).await;
        store.lose_answer("put", INDEX_KEY);
        let committed = commit(writer(&store, &lock), &[put(&store, "ours")], &[], &start()).await.unwrap();
        assert!(committed.wrote);
        let remote = committed.remote;
        assert_eq!(remote.index.fingerprint().map(|f| f.to_string()), store.fingerprint(INDEX_KEY));
        assert_eq!(Some(remote.index.to_bytes()), store.bytes(INDEX_KEY));
        let again = commit(writer(&store, &lock), &[put(&store, "ours")], &[], &had_one()).await.unwrap();
        assert!(!again.wrote, "nothing to say twice");
        lock.release().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn rows_apply_to_the_entry_that_was_seen_only() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        let mut index = Index::empty();
        index.set(&path("f"), &entry("current"));
        index.set(&path("g"), &entry("g"));
        store.set(INDEX_KEY, index.to_bytes());
        let lock = held(&store).await;
        let row = |name: &str, change, base: &str| Row { path: path(name), change, base: Some(entry(base)) };
        let mode = Entry { mode: Some("100755".into()), ..entry("g") };
        let rows = [
            row("f", Change::Remove { left: Uploaded::default() }, "seen before"),
            row("f", Change::Fields(entry("x")), "seen before"),
            row("g", Change::Fields(mode.clone()), "g"),
            row("absent", Change::Remove { left: Uploaded::default() }, "x"),
        ];
        let committed = commit(writer(&store, &lock), &rows, &[], &had_one()).await.unwrap();
        use RowOutcome::*;
        assert_eq!(committed.outcomes, [KeptTheirs, KeptTheirs, Applied, Applied]);
        assert_eq!(
            (committed.remote.index.get("f"), committed.remote.index.get("g")),
            (Some(entry("current")), Some(mode))
        );
        lock.release().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_index_that_vanished_is_not_written_anew() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        let lock = held(&store).await;
        let result = commit(writer(&store, &lock), &[], &[], &had_one()).await;
        assert!(matches!(result, Err(DatastoreError::IndexVanished)));
        assert!(store.text(INDEX_KEY).is_none());
        lock.release().await;
    })
    .await;
}
