//! `fsck` finds every kind of damage in either layout on every kind of bucket, and its repair loses no byte: what could be
//! read before can be read afterwards, and a second check finds nothing.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use support::bucket::each;
use support::hooked::HookedStore;
use support::sound::*;
use swamp_mount::datastore::*;
use swamp_mount::sync::fsck::cached::Cached;
use swamp_mount::sync::fsck::findings::Kind;
use swamp_mount::sync::fsck::fsck;

struct Damage {
    name: &'static str,
    layouts: &'static [Layout],
    act: fn(&HookedStore, Layout),
    found: &'static [(Kind, &'static str)],
    /// Names that are in the index afterwards, besides those that had an object before.
    gone: &'static [&'static str],
}

const SHARDS: &[Layout] = &[Layout::Shards];

const DAMAGES: &[Damage] = &[
    Damage { name: "none", layouts: LAYOUTS, act: |_, _| {}, found: &[], gone: &[] },
    Damage {
        name: "an object is missing",
        layouts: LAYOUTS,
        act: |store, _| store.remove("notes/todo.md"),
        found: &[(Kind::MissingObject, "notes/todo.md")],
        gone: &["notes/todo.md"],
    },
    Damage {
        name: "an object has another size",
        layouts: LAYOUTS,
        act: |store, _| store.set("notes/todo.md", "longer than before"),
        found: &[(Kind::WrongSize, "notes/todo.md")],
        gone: &[],
    },
    Damage {
        name: "an old object has no entry",
        layouts: LAYOUTS,
        act: |store, _| {
            store.set("other/new", "new");
            store.age("other/new", LONG_AGO);
        },
        found: &[(Kind::NoEntry, "other/new")],
        gone: &[],
    },
    Damage {
        name: "an internal name has an entry",
        layouts: LAYOUTS,
        act: |store, layout| {
            edit(store, holder(layout), r#""entries":{"#, r#""entries":{"notes/_catalog.db":{"size":1},"#);
        },
        found: &[(Kind::Zombie, "")],
        gone: &[],
    },
    Damage {
        name: "the list of shards is lost",
        layouts: SHARDS,
        act: |store, _| store.remove(META_KEY),
        found: &[(Kind::LostList, META_KEY)],
        gone: &[],
    },
    Damage {
        name: "a shard is lost",
        layouts: SHARDS,
        act: |store, _| store.remove("_index/notes.json"),
        found: &[
            (Kind::MissingShard, "_index/notes.json"),
            (Kind::LostEntry, "notes/done.md"),
            (Kind::LostEntry, "notes/todo.md"),
        ],
        gone: &[],
    },
    Damage {
        name: "a shard is lost, and its objects are",
        layouts: SHARDS,
        act: |store, _| {
            store.remove("_index/notes.json");
            store.remove("notes/todo.md");
            store.remove("notes/done.md");
        },
        found: &[(Kind::MissingShard, "_index/notes.json")],
        gone: &["notes/todo.md", "notes/done.md"],
    },
    Damage {
        name: "a shard is not listed",
        layouts: SHARDS,
        act: |store, _| edit(store, META_KEY, r#""notes""#, r#""_root""#),
        found: &[(Kind::UnlistedShard, "_index/notes.json")],
        gone: &[],
    },
    Damage {
        name: "shards disagree",
        layouts: SHARDS,
        act: |store, _| {
            let stale = entry("notes/todo.md", "an old version");
            store.set("_index/_mount.json", format!(r#"{{"version":1,"entries":{{{stale}}}}}"#));
            edit(store, META_KEY, r#""_root""#, r#""_mount","_root""#);
        },
        found: &[(Kind::Disagreement, "notes/todo.md")],
        gone: &[],
    },
    Damage {
        name: "the list is lost beside a stale monolith",
        layouts: SHARDS,
        act: |store, _| {
            store.remove(META_KEY);
            store.set(INDEX_KEY, format!(r#"{{"version":1,"lastPulled":"{TIME}","entries":{{}}}}"#));
            store.age(INDEX_KEY, LONG_AGO);
        },
        found: &[
            (Kind::LostEntry, "README.md"),
            (Kind::LostEntry, "data/t/i/v/x"),
            (Kind::LostEntry, "notes/done.md"),
            (Kind::LostEntry, "notes/todo.md"),
        ],
        gone: &[],
    },
];

#[tokio::test(start_paused = true)]
async fn a_repair_loses_no_byte_and_leaves_nothing_to_find() {
    each(async |kind| {
        for damage in DAMAGES {
            for layout in damage.layouts {
                let case = format!("{}, {layout:?}", damage.name);
                let store = HookedStore::new(kind).await;
                sound(&store, *layout).await;
                (damage.act)(&store, *layout);
                let is_data = |key: &String| !is_internal(key);
                let objects = || -> BTreeMap<String, Option<Vec<u8>>> {
                    store.keys().into_iter().filter(is_data).map(|key| (key.clone(), store.bytes(&key))).collect()
                };
                let (before, keys) = (objects(), store.keys());
                let dry = run(&store, None, false).await;
                let expected: Vec<(Kind, String)> = {
                    let name = |name: &str| if name.is_empty() { holder(*layout).to_owned() } else { name.to_owned() };
                    damage.found.iter().map(|(kind, of)| (*kind, name(of))).collect()
                };
                let found = counting(&dry.found);
                if damage.found.iter().any(|(kind, _)| *kind == Kind::LostEntry) {
                    assert!(expected.iter().all(|e| found.contains(e)), "{case}: {found:?}");
                } else {
                    assert_eq!(found, expected, "{case}");
                }
                assert_eq!((objects(), store.keys()), (before.clone(), keys), "{case}: a dry run writes nothing");
                let repaired = run(&store, None, true).await;
                assert!(repaired.is_clean(), "{case}: {:?}", repaired.left);
                assert!(run(&store, None, false).await.is_clean(), "{case}");
                assert_eq!(objects(), before, "{case}");
                let index = index(&store).await;
                for (key, bytes) in &before {
                    let size = index.get(key).unwrap_or_else(|| panic!("{case}: {key} has no entry")).size;
                    assert_eq!(size, bytes.as_ref().unwrap().len() as u64, "{case}: {key}");
                }
                assert!(damage.gone.iter().all(|name| index.get(name).is_none()), "{case}");
                assert!(!store.keys().contains(&LOCK_KEY.to_owned()), "{case}");
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_somebody_may_be_at_work_on_is_left_alone() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        sound(&store, Layout::Monolith).await;
        store.set("notes/young", "on its way, or on its way out");
        let index_before = store.text(INDEX_KEY);
        let report = run(&store, None, true).await;
        assert!(report.is_clean() && report.found.iter().any(|f| f.name == "notes/young"), "{:?}", report.found);
        assert_eq!(store.text(INDEX_KEY), index_before);
        // An object that would hide a file, and one with the name of a directory.
        for key in ["README.md/below", "notes"] {
            if kind.name != "dir" {
                store.set(key, "x");
                store.age(key, LONG_AGO);
                let report = run(&store, None, true).await;
                assert_eq!(counting(&report.left), [(Kind::NoEntry, key.to_owned())]);
                assert_eq!(store.text(INDEX_KEY), index_before);
                store.remove(key);
            }
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_comes_back_before_the_repair_keeps_its_entry() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        sound(&store, Layout::Shards).await;
        store.remove("notes/todo.md");
        store.before("put", LOCK_KEY, |_| {});
        let mut looks = 0;
        store.hook(move |store, op, key| {
            if op == "head" && key == "notes/todo.md" {
                looks += 1;
                if looks == 2 {
                    store.set("notes/todo.md", "to do");
                }
            }
            support::hooked::Verdict::Proceed
        });
        let report = run(&store, None, true).await;
        store.unhook();
        assert!(report.is_clean(), "{:?}", report.left);
        assert!(index(&store).await.get("notes/todo.md").is_some());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_index_that_cannot_be_read_is_an_error_and_stays() {
    each(async |kind| {
        for layout in LAYOUTS {
            let store = HookedStore::new(kind).await;
            sound(&store, *layout).await;
            store.set(holder(*layout), "{ broken");
            let keys = store.keys();
            let ended = fsck(&Datastore::new(store.clone()), None, Some(&LockOptions::default()), &|_, _| {}).await;
            assert!(ended.is_err());
            assert_eq!((store.keys(), store.text(holder(*layout)).as_deref()), (keys, Some("{ broken")));
        }
    })
    .await;
}

fn fill(dir: &Path) {
    let cache = CacheDir::open(dir).unwrap();
    for (name, content) in FILES {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        cache.set_mtime(&RelPath::parse(name).unwrap(), parse_nanos(TIME).unwrap()).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_gives_back_what_the_bucket_lost_and_gives_up_what_rotted() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        sound(&store, Layout::Monolith).await;
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        let open = || Cached::reference(dir.path(), None).unwrap().unwrap();
        assert!(run(&store, Some(&mut open()), false).await.is_clean());
        // The bucket lost one, one rotted here, and a third is both.
        store.remove("notes/todo.md");
        store.remove("notes/done.md");
        for (rotten, content) in [("README.md", "READ ME"), ("notes/done.md", "DONE")] {
            std::fs::write(dir.path().join(rotten), content).unwrap();
            let cache = CacheDir::open(dir.path()).unwrap();
            cache.set_mtime(&RelPath::parse(rotten).unwrap(), parse_nanos(TIME).unwrap()).unwrap();
        }
        let dry = run(&store, Some(&mut open()), false).await;
        assert_eq!(
            counting(&dry.found),
            [
                (Kind::MissingObject, "notes/done.md".into()),
                (Kind::MissingObject, "notes/todo.md".into()),
                (Kind::CorruptCache, "README.md".into()),
                (Kind::CorruptCache, "notes/done.md".into()),
            ]
        );
        run(&store, Some(&mut open()), true).await;
        assert_eq!(store.text("notes/todo.md").as_deref(), Some("to do"));
        assert!(!dir.path().join("README.md").exists(), "the bucket has it");
        assert_eq!(std::fs::read_to_string(dir.path().join("notes/done.md")).unwrap(), "DONE", "the only copy");
        let sidecar = Sidecar::read(&CacheDir::open(dir.path()).unwrap(), Flavour::of(&*store));
        let marks = sidecar.sidecar().and_then(|sidecar| sidecar.marks.clone()).expect("a lazy sidecar");
        assert!(marks.lazy_pull_active, "what is absent means nothing");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_promises_what_is_not_there_is_taken_back() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        sound(&store, Layout::Monolith).await;
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        let cache = CacheDir::open(dir.path()).unwrap();
        cache.write_index_copy(store.text(INDEX_KEY).unwrap().as_bytes()).unwrap();
        let (field, fingerprint) = (store.fingerprint_field(), store.fingerprint(INDEX_KEY).unwrap());
        let text = format!(
            r#"{{"version":1,"{field}":"{fingerprint}","lastVerifiedAt":"2099-01-01T00:00:00.000Z","localDirty":false}}"#
        );
        cache.write_sidecar_bytes(text.as_bytes(), false).unwrap();
        drop(cache);
        let open = || Cached::reference(dir.path(), None).unwrap().unwrap();
        assert!(run(&store, Some(&mut open()), false).await.is_clean());
        std::fs::write(dir.path().join("unpushed"), "x").unwrap();
        let found = counting(&run(&store, Some(&mut open()), false).await.found);
        assert_eq!(found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [Kind::FalseSidecar]);
        std::fs::remove_file(dir.path().join("unpushed")).unwrap();
        std::fs::remove_file(dir.path().join("README.md")).unwrap();
        let found = counting(&run(&store, Some(&mut open()), false).await.found);
        assert_eq!(found.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [Kind::FalseSidecar]);
        assert!(run(&store, Some(&mut open()), true).await.is_clean());
        assert!(dir.path().join("notes/todo.md").exists());
    })
    .await;
}

#[cfg(feature = "s3")]
#[tokio::test(start_paused = true)]
async fn uploads_that_nobody_completed_are_ended_when_they_are_old() {
    let store = HookedStore::new(support::bucket::kind("s3")).await;
    sound(&store, Layout::Monolith).await;
    for (key, age) in [("old one/ä", LONG_AGO), ("old two", LONG_AGO), ("young", Duration::from_secs(60))] {
        store.server().leave_upload(key, age);
    }
    let expected = [(Kind::UnfinishedUpload, "old one/ä".to_owned()), (Kind::UnfinishedUpload, "old two".to_owned())];
    assert_eq!(counting(&run(&store, None, false).await.found), expected);
    assert_eq!(store.server().open_uploads().len(), 3, "a dry run ends nothing");
    assert!(run(&store, None, true).await.is_clean());
    assert_eq!(store.server().open_uploads(), ["young"]);
}
