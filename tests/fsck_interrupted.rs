//! Promise: a repair that stops anywhere, or that other writers race, loses nothing and is completed by repeating it; inside a
//! namespace it touches nothing else.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use support::bucket::each;
use support::hooked::{HookedStore, Verdict};
use support::sound::*;
use swamp_mount::datastore::*;
use swamp_mount::store::StoreErrorKind;
use swamp_mount::sync::fsck::fsck;

/// One entry without an object, one object without an entry, one wrong size.
fn damage(store: &HookedStore) {
    store.remove("notes/todo.md");
    store.set("other/new", "new");
    store.age("other/new", LONG_AGO);
    store.set("README.md", "longer than its entry says");
}

/// What nobody may lose: every object that is a file.
fn files(store: &HookedStore) -> BTreeMap<String, Option<Vec<u8>>> {
    let keys = store.keys().into_iter().filter(|key| !is_internal(key));
    keys.map(|key| (key.clone(), store.bytes(&key))).collect()
}

async fn assert_repaired(store: &Arc<HookedStore>, before: &BTreeMap<String, Option<Vec<u8>>>, case: &str) {
    assert!(run(store, None, false).await.is_clean(), "{case}");
    assert_eq!(files(store), *before, "{case}");
    let index = index(store).await;
    for (name, bytes) in before {
        let size = index.get(name).unwrap_or_else(|| panic!("{case}: {name} has no entry")).size;
        assert_eq!(size, bytes.as_ref().unwrap().len() as u64, "{case}: {name}");
    }
    assert!(index.get("notes/todo.md").is_none(), "{case}");
}

#[tokio::test(start_paused = true)]
async fn a_repair_that_stops_before_or_after_any_write_is_completed_by_the_next() {
    each(async |kind| {
        for layout in LAYOUTS {
            for effect in [false, true] {
                let mut stops = 0;
                loop {
                    let case = format!("{layout:?}, effect {effect}, write {stops}");
                    let store = HookedStore::new(kind).await;
                    sound(&store, *layout).await;
                    damage(&store);
                    let before = files(&store);
                    // From this write on nothing gets through, as if the process or the network were gone.
                    let mut left = stops;
                    store.hook(move |_, operation, key| match (operation, left) {
                        ("put", 0) if key != LOCK_KEY && effect => {
                            left = usize::MAX;
                            Verdict::DoAndFail(StoreErrorKind::Unreachable)
                        }
                        ("put", 0) if key != LOCK_KEY => Verdict::Fail(StoreErrorKind::Unreachable),
                        ("put", usize::MAX) if key != LOCK_KEY => Verdict::Fail(StoreErrorKind::Unreachable),
                        ("put", _) if key != LOCK_KEY => {
                            left -= 1;
                            Verdict::Proceed
                        }
                        _ => Verdict::Proceed,
                    });
                    let datastore = Datastore::new(store.clone());
                    let outcome = fsck(&datastore, None, Some(&LockOptions::default()), &|_, _| {}).await;
                    store.unhook();
                    assert_eq!(files(&store), before, "{case}");
                    run(&store, None, true).await;
                    assert_repaired(&store, &before, &case).await;
                    if outcome.is_ok() {
                        break;
                    }
                    stops += 1;
                }
                assert!(stops > 0, "{layout:?}: no write was stopped");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_another_writer_adds_while_a_repair_writes_is_kept() {
    each(async |kind| {
        for layout in LAYOUTS {
            let store = HookedStore::new(kind).await;
            sound(&store, *layout).await;
            damage(&store);
            let key = holder(*layout);
            store.before("put", key, move |store| {
                store.set("notes/late", "late");
                let added = format!(r#""entries":{{{},"#, entry("notes/late", "late"));
                edit(store, key, r#""entries":{"#, &added);
            });
            run(&store, None, true).await;
            assert_eq!(store.text("notes/late").as_deref(), Some("late"), "{layout:?}: the writer was at work");
            let before = files(&store);
            assert_repaired(&store, &before, &format!("{layout:?}")).await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_rewritten_without_its_index_is_no_finding() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        sound(&store, Layout::Monolith).await;
        let added = format!(r#""entries":{{{},"#, entry(".catalog-export.json", "{}"));
        edit(&store, INDEX_KEY, r#""entries":{"#, &added);
        store.set(".catalog-export.json", "{\"longer\":true}");
        assert_eq!(counting(&run(&store, None, true).await.found), []);
        assert_eq!(store.text(".catalog-export.json").as_deref(), Some("{\"longer\":true}"));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn inside_a_namespace_nothing_else_is_looked_at_or_changed() {
    each(async |kind| {
        for layout in LAYOUTS {
            let (bucket, inside) = (HookedStore::new(kind).await, HookedStore::new(kind).await);
            sound(&bucket, Layout::Monolith).await;
            damage(&bucket);
            sound(&inside, *layout).await;
            damage(&inside);
            inside.set(".namespace.json", r#"{"namespace":"ns","repoId":"r","registeredAt":"t"}"#);
            let others = (bucket.keys(), files(&bucket), bucket.text(INDEX_KEY));
            let mut before = files(&inside);
            before.remove(".namespace.json");
            let name = Namespace::parse("ns").unwrap();
            let datastore = Datastore::in_namespace(bucket.clone(), inside.clone(), name, None);
            let report = fsck(&datastore, None, Some(&LockOptions::default()), &|_, _| {}).await.unwrap();
            assert!(report.is_clean() && !report.found.is_empty(), "{layout:?}: {:?}", report.left);
            assert_repaired(&inside, &before, &format!("{layout:?}")).await;
            assert_eq!((bucket.keys(), files(&bucket), bucket.text(INDEX_KEY)), others, "{layout:?}");
        }
    })
    .await;
}
