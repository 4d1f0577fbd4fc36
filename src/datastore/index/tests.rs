use serde_json::{Map, Value};

use super::*;
use crate::datastore::path::RelPath;
use crate::datastore::timestamp;

fn doc(entries: &str) -> String {
    format!(r#"{{"version":1,"lastPulled":"2026-04-28T08:05:37.123Z","entries":{{{entries}}}}}"#)
}

fn ok(name: &str) -> String {
    format!(r#""{name}":{{"key":"{name}","size":1,"lastModified":"2026-01-01T00:00:00.000Z"}}"#)
}

fn parse(text: &str) -> Index {
    Index::parse(text.as_bytes()).unwrap()
}

#[test]
fn the_golden_index_is_reproduced_byte_for_byte() {
    let tree: Value = serde_json::from_slice(include_bytes!("../../../tests/golden/tree.json")).unwrap();
    let mut index = Index::empty();
    let mut clock = timestamp::parse_nanos("2050-01-02T03:04:05.006Z").unwrap();
    for file in tree.as_array().unwrap() {
        let text = |field: &str| file[field].as_str().unwrap();
        let entry = Entry {
            size: text("text").len() as u64,
            last_modified: timestamp::format_nanos(clock),
            local_mtime: Some(timestamp::format_nanos(timestamp::parse_nanos(text("mtime")).unwrap())),
            ..Entry::default()
        };
        index.set_last_pulled(&entry.last_modified);
        index.set(&RelPath::parse(text("path")).unwrap(), &entry);
        clock += 1_000_000_000;
    }
    for golden in [
        &include_bytes!("../../../tests/golden/s3-index.json")[..],
        include_bytes!("../../../tests/golden/gcs-index.json"),
    ] {
        assert_eq!(String::from_utf8(index.to_indented()).unwrap(), String::from_utf8(golden.to_vec()).unwrap());
        assert_eq!(Index::parse(golden).unwrap().to_indented(), golden);
    }
}

#[test]
fn unknown_fields_survive_a_rewrite() {
    let text = r#"{"version":1,"future":{"b":[1,2.5,null]},"lastPulled":"x","entries":{"a":{"key":"a","size":3,"lastModified":"t","localMtime":"m","sha256":"h","mode":"100755","owner":{"z":1,"a":2}},"b":{"key":"elsewhere/b","size":0,"lastModified":"t"}},"tail":true}"#;
    assert_eq!(String::from_utf8(parse(text).to_bytes()).unwrap(), text);
    assert_eq!(parse(text).get("a").unwrap().kind(), EntryKind::Executable);
}

#[test]
fn entries_that_make_no_sense_are_reported_and_kept() {
    let long = "x".repeat(256);
    let bad_names = ["../x", "/abs", "a//b", ".", "nul\\u0000x", "dir/", &long];
    let bad_values = [
        r#"{"key":"v","size":-1,"lastModified":"t","x":1}"#,
        r#"{"key":"v","size":1.5,"lastModified":"t"}"#,
        r#"{"key":"v","size":9007199254740993,"lastModified":"t"}"#,
        r#"{"key":"v","size":1e300,"lastModified":"t"}"#,
        r#"{"key":"v","size":"12","lastModified":"t"}"#,
        r#"{"key":"v","lastModified":"t"}"#,
        "null",
        "5",
        "[1]",
        r#""text""#,
    ];
    let documents = bad_names.iter().map(|name| ok(name)).chain(bad_values.iter().map(|v| format!(r#""v":{v}"#)));
    for bad in documents {
        let text = doc(&format!("{},{bad},{}", ok("first"), ok("last")));
        let mut index = parse(&text);
        assert_eq!((index.len(), index.problems().len()), (2, 1), "{bad}");
        assert!(!index.is_fully_representable());
        index.set(&RelPath::parse("new").unwrap(), &Entry::default());
        index.remove("new");
        let before: Value = serde_json::from_str(&text).unwrap();
        let after: Value = serde_json::from_slice(&index.to_bytes()).unwrap();
        assert_eq!(before, after, "{bad}");
    }
}

#[test]
fn optional_fields_of_a_wrong_type_do_not_hide_the_file() {
    let text = doc(r#""a":{"key":7,"size":12.0,"lastModified":5,"localMtime":null,"sha256":[],"mode":33188}"#);
    let index = parse(&text);
    assert_eq!(index.get("a").unwrap().size, 12);
    let after = String::from_utf8(index.to_bytes()).unwrap();
    assert_eq!(after, text.replace("12.0", "12"));
}

#[test]
fn the_last_of_two_equal_names_counts_and_is_reported() {
    let index =
        parse(&doc(r#""a":{"key":"a","size":1,"lastModified":"t"},"a":{"key":"a","size":2,"lastModified":"t"}"#));
    assert_eq!((index.len(), index.get("a").unwrap().size, index.problems().len()), (1, 2, 1));
}

#[test]
fn a_file_that_is_also_a_directory_is_reported_and_kept() {
    let text = doc(&[ok("f"), ok("f/g"), ok("f/h/i"), ok("f-"), ok("marked/")].join(","));
    let index = parse(&text);
    let shown: Vec<_> = index.entries().map(|entry| entry.path().to_string()).collect();
    assert_eq!(shown, ["f/g", "f/h/i", "f-"]);
    assert!(index.get("f").is_some());
    assert_eq!(index.problems().iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["marked/", "f"]);
    assert_eq!(index.marked_directories().collect::<Vec<_>>(), [RelPath::parse("marked").unwrap()]);
    assert_eq!(String::from_utf8(index.to_bytes()).unwrap(), text);
    let mut index = index;
    index.remove("f/g");
    index.remove("f/h/i");
    assert!(index.entries().any(|entry| entry.path().as_str() == "f"));
}

#[test]
fn internal_names_are_scrubbed_noticeably() {
    let index = parse(&doc(&[ok("_catalog.db"), ok("a"), ok("_index/a.json"), ok("d/.lock")].join(",")));
    assert!(index.was_scrubbed());
    assert_eq!(index.len(), 1);
    assert_eq!(String::from_utf8(index.to_bytes()).unwrap(), doc(&ok("a")));
    assert!(!parse(&doc(&ok("a"))).was_scrubbed());
}

#[test]
fn what_is_no_index_is_an_error_and_never_an_empty_index() {
    let whole = doc(&ok("a"));
    for cut in 0..whole.len() {
        assert!(matches!(Index::parse(&whole.as_bytes()[..cut]), Err(IndexError::Json(_))), "{cut}");
    }
    let table = [
        ("[]", "json"),
        ("null", "json"),
        ("{}", "shape"),
        (r#"{"version":1}"#, "shape"),
        (r#"{"entries":{}}"#, "shape"),
        (r#"{"version":1,"entries":[]}"#, "shape"),
        (r#"{"version":1,"entries":null}"#, "shape"),
        (r#"{"version":1,"entries":{},"entries":{}}"#, "shape"),
        (r#"{"version":2,"partitions":[],"entries":{}}"#, "v2"),
        (r#"{"version":2}"#, "v2"),
        (r#"{"version":3,"entries":{}}"#, "unknown"),
        (r#"{"version":"1","entries":{}}"#, "unknown"),
        (r#"{"version":1,"entries":{}} x"#, "json"),
    ];
    for (text, expected) in table {
        let kind = match Index::parse(text.as_bytes()) {
            Err(IndexError::Json(_)) => "json",
            Err(IndexError::NotAnIndex(_)) => "shape",
            Err(IndexError::Version2) => "v2",
            Err(IndexError::UnknownVersion(_)) => "unknown",
            Ok(_) => "ok",
        };
        assert_eq!(kind, expected, "{text}");
    }
}

#[test]
fn names_come_in_the_order_of_javascript() {
    let names = ["b", "10", "9", "01", "4294967295", "4294967294", "0", "-1", "a"];
    let text = doc(&names.map(ok).join(","));
    let ordered = ["0", "9", "10", "4294967294", "b", "01", "4294967295", "-1", "a"];
    assert_eq!(String::from_utf8(parse(&text).to_bytes()).unwrap(), doc(&ordered.map(ok).join(",")));
}

#[test]
fn removing_many_keeps_the_rest_in_order() {
    let names: Vec<String> = (0..500).map(|i| format!("f{i}")).collect();
    let mut index = parse(&doc(&names.iter().map(|n| ok(n)).collect::<Vec<_>>().join(",")));
    for name in &names[..400] {
        assert!(index.remove(name));
        assert!(!index.remove(name));
    }
    index.set(&RelPath::parse("f3").unwrap(), &Entry::default());
    assert_eq!(index.len(), 101);
    assert!(index.entries().map(|e| e.path().to_string()).filter(|p| *p != "f3").eq(names[400..].iter().cloned()));
}

#[test]
fn a_hundred_megabytes_parse_in_bounded_time() {
    let hash = "0".repeat(64);
    let mut text = String::from(r#"{"version":1,"entries":{"#);
    let mut i = 0;
    while text.len() < 100_000_000 {
        let comma = if i == 0 { "" } else { "," };
        let name = format!("data/type-{}/instance-{}/resource-{i}.yaml", i % 7, i % 5000);
        text.push_str(&format!(r#"{comma}"{name}":{{"key":"{name}","size":{i},"lastModified":"2026-04-28T08:05:37.001Z","localMtime":"2026-04-28T08:05:36.250Z","sha256":"{hash}"}}"#));
        i += 1;
    }
    text.push_str("}}");
    let start = std::time::Instant::now();
    let index = parse(&text);
    assert_eq!(index.len(), i);
    let copy = index.clone();
    assert_eq!(copy.entries().count(), i);
    assert!(start.elapsed() < std::time::Duration::from_secs(60), "{:?}", start.elapsed());
}

mod property {
    use super::*;
    use proptest::prelude::*;

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z\"\\\\é\n]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(2, 12, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-c]{1,2}", inner, 0..3)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    fn entry() -> impl Strategy<Value = Value> {
        let fields = prop_oneof![
            Just("size"),
            Just("lastModified"),
            Just("localMtime"),
            Just("sha256"),
            Just("mode"),
            Just("other"),
            Just("key")
        ];
        prop::collection::btree_map(fields, json(), 0..7)
            .prop_map(|m| Value::Object(m.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()))
    }

    proptest! {
        #[test]
        fn a_rewrite_loses_nothing(entries in prop::collection::btree_map("[a-c./0-9é]{0,5}", prop_oneof![entry(), json()], 0..8)) {
            let entries: Map<String, Value> = entries.into_iter().collect();
            let text = serde_json::json!({"version": 1, "lastPulled": "x", "entries": entries});
            let index = Index::parse(text.to_string().as_bytes()).unwrap();
            let after: Value = serde_json::from_slice(&index.to_bytes()).unwrap();
            for (name, before) in &entries {
                let mut after = after["entries"][name].clone();
                // Writing adds what every entry has.
                if let (Some(after), Some(before)) = (after.as_object_mut(), before.as_object()) {
                    for added in ["key", "lastModified"] {
                        if !before.contains_key(added) {
                            after.remove(added);
                        }
                    }
                }
                prop_assert_eq!(&after, before, "{}", name);
            }
            prop_assert_eq!(after["entries"].as_object().unwrap().len(), entries.len());
        }
    }
}
