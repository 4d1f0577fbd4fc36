//! A sharded index hides nothing and loses nothing: whichever release wrote its shards, whoever writes at the same time, and
//! wherever a writer stops.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::bucket::each;
use support::documents::{meta, monolith, shard};
use support::hooked::{HookedStore, Verdict};
use swamp_mount::datastore::*;
use swamp_mount::store::{Fingerprint, StoreErrorKind};
use swamp_mount::sync::merge::*;
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);
const SHARDS: Seen = Seen::Index(Layout::Shards);
const MONOLITH: Seen = Seen::Index(Layout::Monolith);

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn entry(modified: &str) -> Entry {
    Entry { size: 1, last_modified: modified.into(), ..Entry::default() }
}

/// A bucket with these shards, all listed, and an object for every entry.
fn seed(store: &HookedStore, shards: &[(&str, &[&str])]) {
    for (name, files) in shards {
        store.set(&format!("_index/{name}.json"), shard(files));
        files.iter().for_each(|file| store.set(file, "x"));
    }
    let names: Vec<&str> = shards.iter().map(|(name, _)| *name).collect();
    store.set(META_KEY, meta(&names, 41));
}

async fn read(store: &HookedStore, known: Option<&Index>, seen: Seen) -> Result<Index, DatastoreError> {
    match read_index(store, known, seen).await? {
        IndexRead::Present(read) => Ok(read.index),
        IndexRead::NotModified => Ok(known.expect("known").clone()),
        IndexRead::Missing => panic!("there is an index"),
    }
}

fn listed(index: &Index) -> Vec<String> {
    let mut all: Vec<String> = index.entries().map(|entry| entry.path().to_string()).collect();
    all.sort_unstable();
    all
}

fn put(store: &HookedStore, name: &str) -> Row {
    store.set(name, "y");
    let fingerprint = store.fingerprint(name).and_then(|text| Fingerprint::from_record(&text));
    let uploaded = Uploaded { fingerprint, upload_id: "id".into(), confirmed: Some(Instant::now()) };
    Row { path: path(name), change: Change::Put(entry("new"), uploaded), base: None }
}

fn removal(name: &str) -> Row {
    Row { path: path(name), change: Change::Remove { left: Uploaded::default() }, base: Some(entry("old")) }
}

async fn push(store: &Arc<HookedStore>, rows: &[Row], known: &Known) -> Result<Committed, DatastoreError> {
    let lock = acquire(store.clone(), &LockOptions::default()).await.unwrap();
    let committed = commit(Writer { store: &**store, lock: &lock, unconditional: false }, rows, &[], known).await;
    lock.release().await;
    committed
}

async fn known(store: &HookedStore) -> Known {
    Known { index: read(store, None, Seen::Never).await.unwrap(), seen: SHARDS }
}

#[tokio::test(start_paused = true)]
async fn every_entry_is_found_whichever_release_placed_it() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(
            &store,
            &[
                ("data--t--i", &["data/t/i/v/r/x/raw"]),
                ("workflows-evaluated--w", &["workflows-evaluated/w/july"]),
                ("workflows-evaluated", &["workflows-evaluated/w/newest"]),
                ("misplaced", &["files/where/nobody/expects"]),
                ("empty", &[]),
            ],
        );
        // Shards that an August push dropped from the list: what has an object counts.
        store.set("_index/notes.json", shard(&["notes/kept", "notes/removed since"]));
        store.set("_index/_root.json", shard(&["README.md"]));
        store.set("_index/_mount.json", shard(&["data/short"]));
        store.set("_index/data--stale--copy.json", shard(&["data/stale/copy/x"]));
        for object in ["notes/kept", "README.md", "data/short", "data/stale/copy/x"] {
            store.set(object, "x");
        }
        // The monolith from before the migration says something else.
        store.set(INDEX_KEY, monolith(&["stale"]));
        for seen in [Seen::Never, MONOLITH, SHARDS] {
            let index = read(&store, None, seen).await.unwrap();
            assert_eq!(
                listed(&index),
                [
                    "README.md",
                    "data/short",
                    "data/t/i/v/r/x/raw",
                    "files/where/nobody/expects",
                    "notes/kept",
                    "workflows-evaluated/w/july",
                    "workflows-evaluated/w/newest",
                ],
                "{seen:?}"
            );
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_large_unlisted_shard_is_checked_by_listing_its_directory() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(&store, &[]);
        let names: Vec<String> = (0..60).map(|i| format!("notes/{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        store.set("_index/notes.json", shard(&names));
        names[1..].iter().for_each(|name| store.set(name, "x"));
        let index = read(&store, None, SHARDS).await.unwrap();
        assert_eq!(index.len(), 59);
        assert!(store.take_requests().iter().all(|request| !request.starts_with("head")));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn only_shards_that_changed_are_read_again() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(&store, &[("a", &["a/1"]), ("b", &["b/1"]), ("c", &["c/1"])]);
        let before = read(&store, None, SHARDS).await.unwrap();
        store.take_requests();
        assert!(matches!(read_index(&*store, Some(&before), SHARDS).await, Ok(IndexRead::NotModified)));
        let gets = |store: &HookedStore| -> Vec<String> {
            store.take_requests().into_iter().filter(|r| r.starts_with("get") && !r.ends_with("_meta.json")).collect()
        };
        assert_eq!(gets(&store), [] as [&str; 0]);
        // A July push changes shards without counting.
        store.set("_index/b.json", shard(&["b/1", "b/2"]));
        let after = read(&store, Some(&before), SHARDS).await.unwrap();
        assert_eq!(gets(&store), ["get _index/b.json"]);
        assert_eq!(after.changed_since(&before), [path("b/2")]);
        // A count without a change is none either.
        store.set(META_KEY, meta(&["a", "b", "c"], 99));
        let counted = read(&store, Some(&after), SHARDS).await.unwrap();
        assert_eq!(gets(&store), [] as [&str; 0]);
        assert!(counted.changed_since(&after).is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_listed_shard_that_is_missing_is_an_error_and_never_empty() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(&store, &[("a", &["a/1"]), ("b", &["b/1"])]);
        store.remove("_index/b.json");
        let error = read(&store, None, SHARDS).await.unwrap_err();
        assert!(matches!(&error, DatastoreError::ShardsMissing { count: 1, .. }), "{error}");
        assert!(error.to_string().contains("_index/b.json") && error.to_string().contains("fsck"), "{error}");
        // Between the two halves of another client's write there is no error.
        store.before("list", "_index/", |store| store.set(META_KEY, meta(&["a"], 42)));
        assert_eq!(listed(&read(&store, None, SHARDS).await.unwrap()), ["a/1"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_cannot_be_read_stops_the_read_and_every_write() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(&store, &[("a", &["a/1"]), ("b", &["b/1"])]);
        let known = known(&store).await;
        for bad in [&b"{"[..], b"", br#"{"version":2,"entries":{}}"#, br#"{"version":1}"#] {
            store.set("_index/b.json", bad);
            let error = read(&store, None, SHARDS).await.unwrap_err();
            assert!(error.to_string().contains("_index/b.json"), "{error}");
            let row = put(&store, "b/2");
            assert!(push(&store, &[row], &known).await.is_err());
            assert_eq!(store.bytes("_index/b.json").unwrap(), bad, "left as it is");
        }
        for kind in [StoreErrorKind::Server, StoreErrorKind::Forbidden] {
            store.hook(move |_, op, key| match (op, key) {
                ("get", "_index/a.json") => Verdict::Fail(kind),
                _ => Verdict::Proceed,
            });
            assert!(read(&store, None, SHARDS).await.is_err(), "{kind:?} is not empty");
            store.unhook();
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_list_is_rebuilt_and_a_stale_monolith_never_counts() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(&store, &[("a", &["a/1"]), ("data--t--i", &["data/t/i/x"])]);
        let before = known(&store).await;
        store.remove(META_KEY);
        for known in [Some(&before.index), None] {
            assert_eq!(listed(&read(&store, known, SHARDS).await.unwrap()), ["a/1", "data/t/i/x"]);
        }
        // Who never saw it cannot know that these are all: every object of the bucket is listed instead.
        for seen in [Seen::Never, MONOLITH] {
            assert!(matches!(read_index(&*store, None, seen).await, Ok(IndexRead::Missing)), "{seen:?}");
        }
        assert_eq!(listed(&discover(&*store, false).await.unwrap()), ["a/1", "data/t/i/x"]);
        let row = put(&store, "a/2");
        push(&store, &[row], &before).await.unwrap();
        assert_eq!(store.text(META_KEY).unwrap(), meta(&["a", "data--t--i"], 1), "the next commit writes it");
        store.remove(META_KEY);
        store.set(INDEX_KEY, monolith(&["stale"]));
        store.age(INDEX_KEY, HOUR);
        let error = read(&store, Some(&before.index), SHARDS).await.unwrap_err();
        assert!(matches!(error, DatastoreError::MetaVanished), "{error}");
    })
    .await;
}

/// The first namespaced push of August writes the monolith anew and deletes the list.
#[tokio::test(start_paused = true)]
async fn a_bucket_that_turns_back_to_a_monolith_is_followed() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(&store, &[("a", &["a/1"])]);
        let before = known(&store).await;
        store.remove(META_KEY);
        store.set(INDEX_KEY, monolith(&["a/1", "moved"]));
        store.age("_index/a.json", HOUR);
        let index = read(&store, Some(&before.index), SHARDS).await.unwrap();
        assert_eq!(index.layout(), Layout::Monolith);
        assert_eq!(listed(&index), ["a/1", "moved"]);
        store.set(META_KEY, r#"{"version":1}"#);
        assert_eq!(read(&store, Some(&before.index), SHARDS).await.unwrap().layout(), Layout::Monolith);
        let row = put(&store, "b");
        push(&store, &[row], &before).await.unwrap();
        assert!(store.text(INDEX_KEY).unwrap().contains("\"b\""));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_moves_the_touched_shard_and_the_list_and_nothing_else() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(&store, &[("a", &["a/1"]), ("b", &["b/1"]), ("data--t--i", &["data/t/i/x"])]);
        store.set(
            "_index/a.json",
            shard(&["a/1", "a/unknown to us"]).replace(":1,\"last", ":1,\"theirs\":{\"z\":1},\"last"),
        );
        let known = known(&store).await;
        let row = put(&store, "a/2");
        store.take_requests();
        let committed = push(&store, &[row], &known).await.unwrap();
        let moved: Vec<String> = store.take_requests().into_iter().filter(|r| !r.contains(".lock")).collect();
        assert_eq!(moved, ["get _index/_meta.json", "get _index/a.json", "put _index/a.json", "put _index/_meta.json"]);
        let theirs = shard(&["a/1", "a/unknown to us"]).replace(":1,\"last", ":1,\"theirs\":{\"z\":1},\"last");
        let theirs = theirs.replace(
            r#""size":1,"theirs":{"z":1},"lastModified":"old""#,
            r#""size":1,"lastModified":"old","theirs":{"z":1}"#,
        );
        let golden = theirs.replace("}}}}", r#"}},"a/2":{"key":"a/2","size":1,"lastModified":"new"}}}"#);
        assert_eq!(store.text("_index/a.json").unwrap(), golden);
        assert_eq!(store.text(META_KEY).unwrap(), meta(&["a", "b", "data--t--i"], 42));
        // What we wrote is what a read gives, and the next refresh has nothing to read.
        let index = committed.remote.index;
        assert!(matches!(read_index(&*store, Some(&index), SHARDS).await, Ok(IndexRead::NotModified)));
        assert!(read(&store, None, SHARDS).await.unwrap().changed_since(&index).is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn new_files_make_the_shards_that_the_newest_rule_wants() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set(META_KEY, meta(&[], 0));
        let known = Known { index: read(&store, None, SHARDS).await.unwrap(), seen: SHARDS };
        let rows: Vec<Row> =
            ["README.md", "data/x", "data/t/i/v/x", "notes/a b/é.yaml"].iter().map(|name| put(&store, name)).collect();
        push(&store, &rows, &known).await.unwrap();
        assert_eq!(store.text(META_KEY).unwrap(), meta(&["_mount", "_root", "data--t--i--v", "notes"], 1));
        assert_eq!(
            store.text("_index/notes.json").unwrap(),
            r#"{"version":1,"entries":{"notes/a b/é.yaml":{"key":"notes/a b/é.yaml","size":1,"lastModified":"new"}}}"#
        );
        assert_eq!(read(&store, None, SHARDS).await.unwrap().len(), 4);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_emptied_shard_stays_and_stays_listed() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(&store, &[("a", &["a/1"]), ("b", &["b/1"])]);
        let known = known(&store).await;
        let committed = push(&store, &[removal("a/1")], &known).await.unwrap();
        assert_eq!(committed.outcomes, [RowOutcome::Applied]);
        assert_eq!(store.text("_index/a.json").unwrap(), r#"{"version":1,"entries":{}}"#);
        assert_eq!(store.text(META_KEY).unwrap(), meta(&["a", "b"], 42));
        assert_eq!(listed(&read(&store, None, SHARDS).await.unwrap()), ["b/1"]);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn writers_that_are_faster_are_merged_with() {
    each(async |kind| {
        type Act = fn(&HookedStore);
        let table: [(&'static str, &str, Act); 5] = [
            ("put", "_index/a.json", |store| store.set("_index/a.json", shard(&["a/1", "a/theirs"]))),
            ("put", META_KEY, |store| {
                store.set("_index/theirs.json", shard(&["a/theirs"]));
                store.set(META_KEY, meta(&["a", "theirs"], 50));
            }),
            // The list is replaced after our shard, by someone who does not know it.
            ("put", META_KEY, |store| store.set(META_KEY, meta(&["a"], 50))),
            // An August push deletes a shard that it emptied.
            ("put", "_index/a.json", |store| {
                store.remove("_index/a.json");
                store.set(META_KEY, meta(&[], 50));
            }),
            ("get", "_index/new.json", |store| {
                store.set("_index/new.json", shard(&["new/theirs"]));
                store.set("new/theirs", "x");
            }),
        ];
        for (at, (operation, key, act)) in table.into_iter().enumerate() {
            let store = HookedStore::new(kind).await;
            seed(&store, &[("a", &["a/1"])]);
            let known = known(&store).await;
            let rows = [put(&store, "a/ours"), put(&store, "new/ours")];
            store.before(operation, key, act);
            push(&store, &rows, &known).await.unwrap();
            let index = read(&store, None, SHARDS).await.unwrap();
            let shown = listed(&index);
            let mut expected = vec!["a/ours", "new/ours"];
            expected.extend(matches!(at, 0 | 1).then_some("a/theirs"));
            expected.extend((at == 4).then_some("new/theirs"));
            assert!(expected.iter().all(|path| shown.iter().any(|shown| shown == path)), "{at}: {shown:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_stopped_anywhere_is_completed_by_repeating_it() {
    each(async |kind| {
        for (key, kind_of) in [
            ("_index/a.json", StoreErrorKind::Server),
            ("_index/new.json", StoreErrorKind::Server),
            (META_KEY, StoreErrorKind::Server),
        ] {
            for done in [false, true] {
                let store = HookedStore::new(kind).await;
                seed(&store, &[("a", &["a/1", "a/gone"])]);
                let known = known(&store).await;
                let rows = [put(&store, "a/2"), put(&store, "new/1"), removal("a/gone")];
                let stop = key.to_owned();
                store.hook(move |_, op, key| match (op == "put" && key == stop, done) {
                    (true, true) => Verdict::DoAndFail(kind_of),
                    (true, false) => Verdict::Fail(kind_of),
                    _ => Verdict::Proceed,
                });
                assert!(push(&store, &rows, &known).await.is_err());
                store.unhook();
                // Another machine reads: it sees old or new, and nothing that was there is hidden.
                assert!(read(&store, None, SHARDS).await.unwrap().get("a/1").is_some());
                let committed = push(&store, &rows, &known).await.unwrap();
                assert_eq!(committed.outcomes, [RowOutcome::Applied; 3], "{key} {done}");
                let index = read(&store, None, SHARDS).await.unwrap();
                assert_eq!(listed(&index), ["a/1", "a/2", "new/1"], "{key} {done}");
                assert!(store.text(META_KEY).unwrap().contains(r#"["a","new"]"#), "{key} {done}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn lost_answers_are_settled_by_reading() {
    each(async |kind| {
        for key in ["_index/a.json", "_index/new.json", META_KEY] {
            let store = HookedStore::new(kind).await;
            seed(&store, &[("a", &["a/1"])]);
            let known = known(&store).await;
            let rows = [put(&store, "a/2"), put(&store, "new/1")];
            store.lose_answer("put", key);
            let committed = push(&store, &rows, &known).await.unwrap();
            assert_eq!(committed.outcomes, [RowOutcome::Applied; 2], "{key}");
            let index = read(&store, None, SHARDS).await.unwrap();
            assert_eq!(listed(&index), ["a/1", "a/2", "new/1"], "{key}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn shards_that_were_unlisted_are_listed_again_without_what_was_removed() {
    each(async |kind| {
        for unlisted_after_our_read in [false, true] {
            let store = HookedStore::new(kind).await;
            seed(&store, &[("a", &["a/1"])]);
            store.set("_index/notes.json", shard(&["notes/kept", "notes/removed since"]));
            store.set("notes/kept", "x");
            if unlisted_after_our_read {
                store.set(META_KEY, meta(&["a", "notes"], 40));
            }
            let known = known(&store).await;
            store.set(META_KEY, meta(&["a"], 41));
            let row = put(&store, "a/2");
            let committed = push(&store, &[row], &known).await.unwrap();
            // Also our own view goes on showing it.
            assert_eq!(listed(&committed.remote.index), ["a/1", "a/2", "notes/kept"]);
            assert_eq!(store.text(META_KEY).unwrap(), meta(&["a", "notes"], 42));
            assert_eq!(store.text("_index/notes.json").unwrap(), shard(&["notes/kept"]));
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_bucket_that_is_migrated_under_a_commit_gets_it_in_its_shards() {
    each(async |kind| {
        fn migrate(store: &HookedStore) {
            store.set("_index/a.json", shard(&["a/1"]));
            store.set(META_KEY, meta(&["a"], 1));
        }
        let when: [Option<(&'static str, &str)>; 4] =
            [None, Some(("get", META_KEY)), Some(("get", INDEX_KEY)), Some(("put", INDEX_KEY))];
        for when in when {
            let store = HookedStore::new(kind).await;
            store.set("a/1", "x");
            store.set(INDEX_KEY, monolith(&["a/1"]));
            let known = Known { index: read(&store, None, Seen::Never).await.unwrap(), seen: MONOLITH };
            let row = put(&store, "a/2");
            match when {
                Some((operation, key)) => store.before(operation, key, migrate),
                None => migrate(&store),
            }
            let committed = push(&store, &[row], &known).await.unwrap();
            assert_eq!(committed.remote.index.layout(), Layout::Shards, "{when:?}");
            let index = read(&store, None, Seen::Never).await.unwrap();
            assert_eq!(index.layout(), Layout::Shards, "{when:?}");
            assert_eq!(listed(&index), ["a/1", "a/2"], "{when:?}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_entry_in_two_shards_is_changed_and_removed_in_both() {
    each(async |kind| {
        let file = "workflows-evaluated/w/x";
        let store = HookedStore::new(kind).await;
        seed(&store, &[("workflows-evaluated", &[file]), ("workflows-evaluated--w", &[file])]);
        let known = known(&store).await;
        let fields = Entry { mode: Some("100755".into()), ..entry("old") };
        let row = Row { path: path(file), change: Change::Fields(fields), base: Some(entry("old")) };
        push(&store, &[row], &known).await.unwrap();
        for name in ["workflows-evaluated", "workflows-evaluated--w"] {
            assert!(store.text(&format!("_index/{name}.json")).unwrap().contains("100755"), "{name}");
        }
        let known = self::known(&store).await;
        let base = known.index.get(file);
        push(&store, &[Row { base, ..removal(file) }], &known).await.unwrap();
        for name in ["workflows-evaluated", "workflows-evaluated--w"] {
            assert_eq!(store.text(&format!("_index/{name}.json")).unwrap(), shard(&[]), "{name}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_file_that_became_a_directory_elsewhere_is_a_conflict() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        seed(&store, &[("a", &["a/1"])]);
        let known = known(&store).await;
        let rows = [put(&store, "f")];
        store.set("_index/f.json", shard(&["f/g"]));
        store.set("f/g", "x");
        store.set(META_KEY, meta(&["a", "f"], 42));
        let committed = push(&store, &rows, &known).await.unwrap();
        assert_eq!(committed.outcomes, [RowOutcome::Superseded]);
    })
    .await;
}
