use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::datastore::path::RelPath;

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn entry(modified: &str) -> Entry {
    Entry { size: 1, last_modified: modified.into(), ..Entry::default() }
}

/// A shard: its name, whether it is listed, and its entries with a time each.
type Shard<'a> = (&'a str, bool, &'a [(&'a str, &'a str)]);

fn index(shards: &[Shard<'_>]) -> Index {
    let mut parts = BTreeMap::new();
    let mut meta = Meta::default();
    for (name, listed, entries) in shards {
        let mut document = Document::empty_shard();
        for (file, modified) in *entries {
            document.set(&path(file), &entry(modified));
        }
        parts.insert(PartName::from(*name), Part::new(name, Arc::new(document), PartStamp::default(), *listed));
        if *listed {
            meta.partitions.insert(PartName::from(*name));
        }
    }
    Index::sharded(meta, parts)
}

/// Paths and times of all entries.
fn listed(index: &Index) -> Vec<(String, String)> {
    let mut all: Vec<_> = index.entries().map(|e| (e.path().to_string(), e.to_entry().last_modified)).collect();
    all.sort_unstable();
    all
}

#[track_caller]
fn assert_listed(index: &Index, expected: &[(&str, &str)], what: impl std::fmt::Debug) {
    let all = listed(index);
    let all: Vec<_> = all.iter().map(|(path, modified)| (path.as_str(), modified.as_str())).collect();
    assert_eq!(all, expected, "{what:?}");
}

#[test]
fn of_several_shards_that_hold_a_path_one_counts() {
    let p = "workflows-evaluated/w/x";
    let (home, july) = ("workflows-evaluated", "workflows-evaluated--w");
    // Shards, which of them counts.
    let table: &[(&[(&str, bool)], &str)] = &[
        (&[(home, true)], home),
        (&[(july, true)], july),
        (&[(home, true), (july, true)], home),
        (&[(home, false), (july, true)], july),
        (&[(home, false), (july, false)], home),
        (&[("_mount", true), (july, true)], july),
        (&[("_mount", true), (july, false)], "_mount"),
        (&[("_mount", true), (home, false)], "_mount"),
    ];
    for (shards, expected) in table {
        let entries: Vec<[(&str, &str); 1]> = shards.iter().map(|(name, _)| [(p, *name)]).collect();
        let shards: Vec<_> =
            shards.iter().zip(&entries).map(|((name, listed), held)| (*name, *listed, &held[..])).collect();
        let index = index(&shards);
        assert_eq!(index.get(p).unwrap().last_modified, *expected, "{shards:?}");
        assert_listed(&index, &[(p, *expected)], &shards);
        assert_eq!(index.len(), 1, "{shards:?}");
        assert_eq!(Index::parse(&index.to_bytes()).unwrap().get(p), index.get(p), "{shards:?}");
    }
}

#[test]
fn a_change_reaches_every_shard_that_holds_the_path() {
    let p = path("workflows-evaluated/w/x");
    let both = index(&[
        ("workflows-evaluated", true, &[(p.as_str(), "a")]),
        ("workflows-evaluated--w", true, &[(p.as_str(), "b")]),
        ("other", true, &[("other/y", "c")]),
    ]);
    let mut changed = both.clone();
    changed.set(&p, &entry("new"));
    for (name, part) in changed.parts() {
        let before = &both.parts()[name].document;
        assert_eq!(Arc::ptr_eq(&part.document, before), &**name == "other", "{name}");
    }
    assert!(
        changed
            .parts()
            .values()
            .filter_map(|part| part.document.get(p.as_str()))
            .all(|e| e.to_entry().last_modified == "new")
    );
    assert_eq!(changed.changed_since(&both), std::slice::from_ref(&p));
    assert!(changed.remove(p.as_str()));
    assert!(changed.get(p.as_str()).is_none() && !changed.names(p.as_str()));
    assert_eq!(changed.changed_since(&both), [p]);
    assert_listed(&changed, &[("other/y", "c")], "all");
}

#[test]
fn a_new_path_goes_where_the_newest_rule_says() {
    let mut index = index(&[]);
    let table = [
        ("README.md", "_root"),
        ("data/t/i/v/x", "data--t--i--v"),
        ("data/x", "_mount"),
        ("notes/todo.md", "notes"),
        ("_meta/x", "_mount"),
    ];
    for (file, shard) in table {
        index.set(&path(file), &entry("t"));
        assert!(index.parts()[shard].document.get(file).is_some(), "{file} {shard}");
    }
    let text = String::from_utf8(index.parts()["_root"].document.to_bytes()).unwrap();
    assert_eq!(
        text, r#"{"version":1,"entries":{"README.md":{"key":"README.md","size":1,"lastModified":"t"}}}"#,
        "compact, in the order of the reference clients"
    );
}

#[test]
fn a_file_whose_name_is_a_directory_in_another_shard_is_reported() {
    let mut index = index(&[("_root", true, &[("f", "a"), ("g", "b")]), ("f", true, &[("f/h/i", "c")])]);
    assert_listed(&index, &[("f/h/i", "c"), ("g", "b")], "all");
    assert_eq!(index.problems().iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["f"]);
    assert!(!index.is_fully_representable() && index.is_directory("f/h") && index.names("f"));
    let before = index.clone();
    index.remove("f/h/i");
    assert_listed(&index, &[("f", "a"), ("g", "b")], "all");
    let mut changed = index.changed_since(&before);
    changed.sort_unstable();
    assert_eq!(changed, [path("f"), path("f/h/i")], "what was hidden appears");
}

#[test]
fn entries_that_are_not_understood_stay_in_their_shard() {
    let text = r#"{"version":1,"entries":{"data/t/i/x":5,"../y":{"size":1,"z":[1]},"dir/":{"size":0}}}"#;
    let document = Document::parse(text.as_bytes()).unwrap();
    let part = Part::new("data--t--i", Arc::new(document), PartStamp::default(), true);
    let mut index = Index::sharded(Meta::default(), BTreeMap::from([(PartName::from("data--t--i"), part)]));
    assert_eq!((index.len(), index.problems().len()), (0, 3));
    assert!(index.names("data/t/i/x") && index.names("../y"), "their objects are not ours to delete");
    assert_eq!(index.marked_directories().collect::<Vec<_>>(), [path("dir")]);
    assert!(!index.remove("data/t/i/x"));
    index.set(&path("data/t/i/new"), &entry("t"));
    let written = String::from_utf8(index.parts()["data--t--i"].document.to_bytes()).unwrap();
    assert!(written.starts_with(&text[..text.len() - 2]), "{written}");
    index.set(&path("data/t/i/x"), &entry("t"));
    assert_eq!(index.len(), 2, "a put of ours heals it");
}

proptest::proptest! {
    /// The layout makes no difference to what an index says: the same changes give the same view, as one document and as
    /// shards.
    #[test]
    fn both_layouts_say_the_same(
        steps in proptest::collection::vec(
            (0_usize..9, proptest::bool::weighted(0.7), 0_u64..3), 1..40)
    ) {
        let files = [
            "a", "a/b", "data/x", "data/t/i/x", "data/t/i/v/x", "data/t/i/r/v/x", "workflow-runs/w/x", "notes/n", "notes/n/o",
        ];
        let (mut one, mut many) = (Index::empty(), index(&[]));
        for (at, put, size) in steps {
            let file = path(files[at]);
            let (one_before, many_before) = (one.clone(), many.clone());
            if put {
                let entry = Entry { size, ..entry("t") };
                one.set(&file, &entry);
                many.set(&file, &entry);
            } else {
                proptest::prop_assert_eq!(one.remove(file.as_str()), many.remove(file.as_str()));
            }
            let sorted = |mut paths: Vec<RelPath>| { paths.sort_unstable(); paths };
            proptest::prop_assert_eq!(
                sorted(one.changed_since(&one_before)), sorted(many.changed_since(&many_before)));
            proptest::prop_assert_eq!(listed(&one), listed(&many));
            proptest::prop_assert_eq!(one.len(), many.len());
            let from_shards = Index::parse(&many.to_bytes()).unwrap();
            proptest::prop_assert_eq!(listed(&one), listed(&from_shards));
        }
    }
}
