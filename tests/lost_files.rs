//! The stories in which earlier clients lost or hid files, played with pull and push on cache directories.

mod support;

use std::path::Path;
use std::time::SystemTime;

use support::bucket::each;
use support::hooked::{HookedStore, Verdict};
use support::machine::*;
use swamp_mount::datastore::*;
use swamp_mount::store::StoreErrorKind;
use swamp_mount::sync::migrate::migrate_index;

#[tokio::test]
async fn a_second_machine_that_joins_a_full_bucket_gets_everything() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        assert!(first.is_clean());
        let second = Machine::new(&store);
        let report = second.pull().await;
        assert_eq!((report.downloaded, report.clean), (2, true));
        assert_eq!((second.read("a").unwrap(), second.read("dir/b").unwrap()), ("one".into(), "two".into()));
        assert!(second.is_clean());
        let time = |m: &Machine| std::fs::metadata(m.path("a")).unwrap().modified().unwrap();
        let age = |t: SystemTime| t.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis();
        assert_eq!(age(time(&first)), age(time(&second)), "or a reference client uploads it again");
    })
    .await;
}

#[tokio::test]
async fn a_pull_with_nothing_to_do_asks_for_the_index_only() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        store.take_requests();
        assert!(first.pull().await.up_to_date);
        let mut requests = store.take_requests();
        requests.sort();
        assert_eq!(requests, ["get .datastore-index.json", "get _index/_meta.json"]);
    })
    .await;
}

#[tokio::test]
async fn a_push_from_an_empty_cache_directory_does_not_look_in_sync() {
    each(async |kind| {
        let (store, _) = two_files(kind).await;
        let joiner = Machine::new(&store);
        let report = joiner.push().await;
        assert!(!report.clean && !report.wrote_index && !joiner.is_clean());
        assert_eq!(joiner.sidecar().unwrap()["lazyPullActive"], true);
        assert_eq!(listed(&store), ["a", "dir/b"], "nothing is deleted");
        assert_eq!(joiner.pull().await.downloaded, 2);
        assert!(joiner.is_clean());
    })
    .await;
}

#[tokio::test]
async fn a_push_with_nothing_to_push_recovers_a_lost_sidecar_and_writes_nothing() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let before = index_etag(&store);
        first.remove(SIDECAR_NAME);
        store.take_requests();
        assert!(first.push().await.clean);
        assert!(first.is_clean());
        assert_eq!(index_etag(&store), before);
        assert!(store.take_requests().iter().all(|request| request.starts_with("get ")));
    })
    .await;
}

#[tokio::test]
async fn a_push_after_others_pushed_does_not_hide_their_files() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let second = Machine::new(&store);
        second.pull().await;
        second.write("c", "three", 50);
        second.push().await;
        // Nothing to push here, and the remote has one more.
        assert!(!first.push().await.clean);
        assert!(!first.is_clean());
        assert_eq!(first.pull().await.downloaded, 1);
        assert_eq!(first.read("c").unwrap(), "three");
    })
    .await;
}

#[tokio::test]
async fn a_push_merges_with_a_writer_between_its_read_and_its_write() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        first.write("mine", "m", 50);
        store.before("put", INDEX_KEY, |store| add_foreign(store, "theirs", "t"));
        let report = first.push().await;
        assert_eq!(listed(&store), ["a", "dir/b", "mine", "theirs"]);
        assert!(!report.clean && !first.is_clean(), "their file is not here yet");
        assert_eq!(first.pull().await.downloaded, 1);
        assert!(first.is_clean());
    })
    .await;
}

#[tokio::test]
async fn a_fingerprint_never_belongs_to_an_index_that_was_not_verified() {
    each(async |kind| {
        let (store, _) = two_files(kind).await;
        let second = Machine::new(&store);
        // Another writer pushes while we download.
        store.before("get", "dir/b", |store| add_foreign(store, "theirs", "t"));
        second.pull().await;
        assert!(!second.is_clean(), "the sidecar must not vouch for the newer index");
        assert_eq!(second.pull().await.downloaded, 1);
        assert!(second.is_clean() && second.read("theirs").is_some());
    })
    .await;
}

#[tokio::test]
async fn a_lazily_filled_cache_deletes_and_hides_nothing() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
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
    })
    .await;
}

#[tokio::test]
async fn marked_removals_reach_the_bucket_and_nothing_else_does() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
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
    })
    .await;
}

#[tokio::test]
async fn an_unmarked_absence_is_no_removal() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
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
    })
    .await;
}

#[tokio::test]
async fn a_missing_object_fails_the_pull_by_name_and_leaves_no_promise() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
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
    })
    .await;
}

#[tokio::test]
async fn an_interrupted_pull_is_a_lazily_filled_cache() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let second = Machine::new(&store);
        store.hook(|_, op, key| match (op, key) {
            ("get", "dir/b") => Verdict::Fail(StoreErrorKind::Unreachable),
            _ => Verdict::Proceed,
        });
        second.try_pull().await.unwrap_err();
        store.unhook();
        assert_eq!(second.sidecar().unwrap()["lazyPullActive"], true);
        assert_eq!(second.sidecar().unwrap()[store.fingerprint_field()], "");
        assert_eq!(second.pull().await.downloaded, 1);
        assert!(second.is_clean());
        drop(first);
    })
    .await;
}

#[tokio::test]
async fn an_index_that_cannot_be_read_is_not_an_empty_one() {
    each(async |kind| {
        for failure in [
            StoreErrorKind::Forbidden,
            StoreErrorKind::Server,
            StoreErrorKind::Unreachable,
            StoreErrorKind::NoSuchBucket,
        ] {
            let (store, first) = two_files(kind).await;
            let before = store.text(INDEX_KEY);
            first.write("c", "three", 5);
            store.hook(move |_, op, key| match (op, key) {
                ("get", INDEX_KEY) => Verdict::Fail(failure),
                _ => Verdict::Proceed,
            });
            first.try_push().await.unwrap_err();
            first.try_pull().await.unwrap_err();
            assert_eq!(store.text(INDEX_KEY), before);
            assert_eq!(first.read("a").unwrap(), "one");
        }
        let (store, first) = two_files(kind).await;
        let cut = store.text(INDEX_KEY).unwrap();
        store.set(INDEX_KEY, &cut[..cut.len() - 2]);
        first.try_push().await.unwrap_err();
        first.try_pull().await.unwrap_err();
        assert_eq!(first.read("a").unwrap(), "one");
    })
    .await;
}

#[tokio::test]
async fn an_index_that_disappears_is_not_an_empty_one() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        store.remove(INDEX_KEY);
        first.write("c", "three", 5);
        for error in [first.try_push().await.map(drop).unwrap_err(), first.try_pull().await.map(drop).unwrap_err()] {
            assert!(error.to_string().contains("is gone from a bucket that had one"), "{error}");
        }
        assert!(store.text(INDEX_KEY).is_none());
        assert_eq!(first.read("a").unwrap(), "one");
    })
    .await;
}

#[tokio::test]
async fn a_migrated_bucket_is_pulled_and_pushed_by_its_shards() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        let stale = store.text(INDEX_KEY).unwrap();
        migrate_index(&Datastore::new(store.clone()), &Machine::options().lock, false).await.unwrap();
        assert_eq!(first.pull().await.downloaded, 0, "the same files");
        assert_eq!(first.sidecar().unwrap()["localDirty"], false);
        first.write("dir/new", "n", 5);
        let report = first.push().await;
        assert_eq!((report.uploaded, report.clean), (1, true));
        assert_eq!(store.text(INDEX_KEY).unwrap(), stale, "what counts no more is left alone");
        // What a push promises is the number of its commit; no fingerprint of a monolith stands for shards.
        let sidecar = first.sidecar().unwrap();
        assert_eq!((&sidecar[store.fingerprint_field()], &sidecar["commitSeq"]), (&"".into(), &2.into()));
        // A machine that joins gets everything, and looks at nothing twice.
        let second = Machine::new(&store);
        let report = second.pull().await;
        assert_eq!((report.downloaded, report.clean), (3, true));
        let sidecar = second.sidecar().unwrap();
        assert_eq!((&sidecar["version"], sidecar.get("commitSeq")), (&2.into(), None), "that is set by a push only");
        store.take_requests();
        assert!(second.pull().await.up_to_date);
        assert!(store.take_requests().iter().all(|r| r.ends_with("_meta.json") || r.starts_with("list")));
        // A July client changes a shard without counting.
        let shard = store.text("_index/dir.json").unwrap().replace(r#""dir/new""#, r#""dir/renamed""#);
        store.set("dir/renamed", "n");
        store.set("_index/dir.json", shard);
        let report = second.pull().await;
        assert_eq!((report.downloaded, report.removed, report.clean), (1, 1, true));
    })
    .await;
}

#[tokio::test]
async fn a_complete_cache_with_something_unpushed_is_not_clean() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
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
    })
    .await;
}

#[tokio::test]
async fn a_zombie_entry_is_scrubbed_by_the_next_push_and_never_fetched() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
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
    })
    .await;
}

#[tokio::test]
async fn entries_that_cannot_be_shown_survive_a_push() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
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
    })
    .await;
}

#[tokio::test]
async fn an_unindexed_bucket_is_discovered_and_indexed_by_the_first_push() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
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
        let only = HookedStore::new(kind).await;
        only.set("infra/.namespace.json", "{}");
        only.set("infra/f", "x");
        let error = Machine::new(&only).try_pull().await.unwrap_err().to_string();
        assert!(error.contains("infra"), "{error}");
    })
    .await;
}

#[tokio::test]
async fn derived_shards_follow_and_keep_what_we_do_not_know() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
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
    })
    .await;
}

#[tokio::test]
async fn a_directory_mark_of_version_1_never_exists_so_nothing_is_removed() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
        first.remove("dir/b");
        let text =
            r#"{"version":1,"remoteIndexETag":"x","lastVerifiedAt":"2026-01-01T00:00:00.000Z","localDirty":true}"#;
        let text = text.replace("remoteIndexETag", store.fingerprint_field());
        std::fs::write(first.path(SIDECAR_NAME), text).unwrap();
        first.push().await;
        assert_eq!(listed(&store), ["a", "dir/b"]);
    })
    .await;
}

#[tokio::test]
async fn two_machines_in_turn_and_at_once_lose_nothing() {
    each(async |kind| {
        let (store, first) = two_files(kind).await;
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
    })
    .await;
}
