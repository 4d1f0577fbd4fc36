//! Promise: whatever an index says, the mount shows what can be shown, counts the rest with its reason, creates nothing
//! outside its cache, and never rewrites an index without an entry that it did not understand; a document that is no index
//! is refused, never taken for an empty one.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use serde_json::{Map, Value};
use support::mount::{Lab, Machine, entry, eventually, is_mounted};

const INDEX: &str = ".datastore-index.json";
const META: &str = "_index/_meta.json";

fn plain(size: &str) -> String {
    format!(r#"{{"size":{size},"lastModified":"2026-01-02T03:04:05.678Z"}}"#)
}

/// Names as JSON text, their entries as JSON text, and a part of the reason for which they cannot be shown.
fn hostile() -> Vec<(String, String, &'static str)> {
    let case = |name: &str, entry: &str, reason| (format!("\"{name}\""), entry.to_owned(), reason);
    let five = plain("5");
    let long = "n".repeat(256);
    vec![
        case("../x", &five, ".."),
        case("..", &five, ".."),
        case("a/../../x", &five, ".."),
        case("/abs", &five, "slash"),
        case("/", &five, "slash"),
        case("", &five, "empty"),
        case("a//b", &five, "empty"),
        case(".", &five, "\".\""),
        case("a/./b", &five, "\".\""),
        case("nul\\u0000byte", &five, "NUL"),
        case(&long, &five, "255"),
        case(&format!("dir/{long}/file"), &five, "255"),
        case("marker/", &plain("0"), "slash"),
        case("f", r#"{"key":"f","size":5,"lastModified":"x"}"#, "directory"),
        case("negative", &plain("-1"), "negative"),
        case("fraction", &plain("1.5"), "whole"),
        case("absurd", &plain("1e300"), "absurd"),
        case("beyond-u64", &plain("99999999999999999999"), "absurd"),
        case("beyond-js", &plain("9007199254740993"), "absurd"),
        case("text-size", &plain("\"12\""), "not a number"),
        case("null-size", &plain("null"), "not a number"),
        case("no-size", r#"{"lastModified":"x","mine":[1,{"a":null}]}"#, "no size"),
        case("null-entry", "null", "not an object"),
        case("list-entry", "[1,2,3]", "not an object"),
        case("text-entry", "\"text\"", "not an object"),
        case("number-entry", "7.25", "not an object"),
        case("nothing", "{}", "no size"),
    ]
}

const ZOMBIES: [&str; 6] =
    [".datastore-index.json", ".datastore.lock", "_index/data.json", "_control/x", "d/.lock", "_catalog.db-wal"];

/// Every file below a directory, relative to it; symlinks are not followed.
fn files_below(root: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).expect("listed").flatten() {
            match entry.file_type().expect("known").is_dir() {
                true => todo.push(entry.path()),
                false => drop(found.insert(entry.path().strip_prefix(root).expect("below").display().to_string())),
            }
        }
    }
    found
}

#[test]
fn hostile_entries_are_counted_with_their_reasons_and_survive_a_rewrite() {
    meet_hostile_entries(false);
}

#[test]
fn hostile_entries_that_arrive_while_mounted_fare_no_better() {
    meet_hostile_entries(true);
}

fn meet_hostile_entries(while_mounted: bool) {
    let lab = Lab::s3();
    let deep = format!("{}leaf", "d/".repeat(400));
    let longest = "m".repeat(255);
    let shown = ["good", "f/g", "dup", "odd-types", &deep, &longest];
    let mut parts: Vec<String> = vec![format!("\"dup\":{}", plain("77"))];
    parts.extend(hostile().iter().map(|(name, entry, _)| format!("{name}:{entry}")));
    parts.extend(ZOMBIES.iter().map(|name| format!("\"{name}\":{}", plain("5"))));
    let with_key = |name: &&str| {
        format!(r#""{name}":{{"key":"{name}","size":5,"lastModified":"2026-01-02T03:04:05.678Z","mine":[1]}}"#)
    };
    parts.extend(shown.iter().filter(|n| **n != "odd-types").map(with_key));
    parts.push(
        r#""odd-types":{"size":5,"key":17,"lastModified":[],"localMtime":null,"sha256":{"a":1},"mode":493}"#.into(),
    );
    let index =
        format!(r#"{{"extra":{{"kept":true}},"version":1,"lastPulled":"x","entries":{{{}}}}}"#, parts.join(","));
    shown.iter().for_each(|name| lab.put_object(name, b"bytes"));
    let machine = lab.machine();
    let options = ["--refresh", "1", "--flush-after", "3600", "--flush-max-age", "3600"];
    let mount = if while_mounted {
        let bytes = |path: &str| entry(path, b"bytes");
        lab.write_entries(
            [("good".to_owned(), bytes("good")), ("absurd".to_owned(), bytes("absurd"))].into_iter().collect(),
        );
        lab.put_object("absurd", b"bytes");
        let mount = machine.mount_with(&options);
        assert_eq!((mount.read("good"), mount.read("absurd")), ("bytes".into(), "bytes".into()));
        lab.put_object(INDEX, index.as_bytes());
        eventually("the hostile index", || (mount.status()["hiddenCount"] != 0).then_some(()));
        mount
    } else {
        lab.put_object(INDEX, index.as_bytes());
        machine.mount_with(&options)
    };
    let before: Map<String, Value> = lab.entries();
    let mut listed = shown.map(str::to_owned).to_vec();
    listed.sort();
    assert_eq!(mount.files(), listed);
    for name in shown {
        assert_eq!(mount.read(name), "bytes", "{name}");
    }
    assert!(std::fs::metadata(mount.path("marker")).unwrap().is_dir());
    for hidden in ["absurd", "negative", "null-entry", "..x", "nothing"] {
        assert!(std::fs::metadata(mount.path(hidden)).is_err(), "{hidden}");
    }

    let status = mount.status();
    let hidden = status["hidden"].as_array().unwrap();
    for (name, _, reason) in hostile() {
        let name: String = serde_json::from_str(&name).unwrap();
        let problem = hidden.iter().find(|p| p["name"] == name.as_str());
        let found = problem.map(|p| p["reason"].as_str().unwrap().to_owned());
        assert!(found.as_ref().is_some_and(|found| found.contains(reason)), "{name:?}: {found:?}, not {reason:?}");
    }
    assert!(hidden.iter().any(|p| p["name"] == "dup" && p["reason"].as_str().unwrap().contains("more than once")));
    assert_eq!(status["hiddenCount"], hostile().len() + 1, "{hidden:#?}");
    assert_eq!(status["entries"], shown.len() + 1, "`f` is understood, though not shown");

    mount.write("unrelated", "new");
    mount.flushed();
    let mut after = lab.entries();
    assert_eq!(after.remove("unrelated").unwrap()["size"], 3);
    let mut expected = before;
    ZOMBIES.iter().for_each(|name| drop(expected.remove(*name)));
    for (name, entry) in &expected {
        assert_eq!(after.get(name), Some(entry), "{name:?}");
    }
    assert_eq!(after.len(), expected.len());
    let whole: Value = serde_json::from_slice(&lab.object(INDEX).unwrap()).unwrap();
    assert_eq!(whole["extra"]["kept"], true);

    // The cache of a reference client is filled by these names, too.
    assert_eq!(mount.unmount(), 0);
    let home = machine.mountpoint().parent().unwrap().to_owned();
    let root = machine.cache_root();
    let root = root.strip_prefix(&home).unwrap_or(&root).display().to_string();
    let outside: Vec<_> =
        files_below(&home).into_iter().filter(|path| path != "log" && !path.starts_with(&root)).collect();
    assert!(outside.iter().all(|path| path.starts_with("state/")), "{outside:?}");
    let inside = files_below(&machine.cache_root().join("cache"));
    let allowed =
        |path: &String| shown.contains(&path.as_str()) || path.starts_with(".datastore") || path == "unrelated";
    assert!(inside.iter().all(allowed), "{inside:?}");
    for escaped in ["/abs", "/x"] {
        assert!(!Path::new(escaped).exists(), "{escaped}");
    }
}

fn refused(machine: &Machine<'_>, arguments: &[&str]) -> String {
    let mountpoint = machine.mountpoint();
    let output = machine.run(&[arguments, &[mountpoint.to_str().unwrap()]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(!is_mounted(&mountpoint), "nothing stays mounted: {said}");
    said
}

#[test]
fn a_document_that_is_no_index_is_refused_and_left_alone() {
    let good = br#"{"version":1,"entries":{"a":{"key":"a","size":1,"lastModified":"x"}}}"#;
    let cases: [(&[u8], &str); 12] = [
        (b"", "not readable JSON"),
        (b"<html>503</html>", "not readable JSON"),
        (b"\x00\x01\x02", "not readable JSON"),
        (&good[..good.len() - 1], "not readable JSON"),
        (&good[..20], "not readable JSON"),
        (b"null", "not readable JSON"),
        (b"[]", "not readable JSON"),
        (b"{}", "version"),
        (br#"{"version":1}"#, "entries"),
        (br#"{"version":1,"entries":[]}"#, "entries"),
        (br#"{"version":2,"entries":{}}"#, "version 2"),
        (br#"{"version":"1","entries":{}}"#, "version"),
    ];
    for (bytes, reason) in cases {
        let text = String::from_utf8_lossy(bytes).into_owned();
        // On a machine that never saw the source, and on one that did.
        for seen in [false, true] {
            let lab = Lab::s3();
            let machine = lab.machine();
            if seen {
                lab.put_object(INDEX, good);
                assert_eq!(machine.mount().unmount(), 0);
            }
            lab.put_object(INDEX, bytes);
            lab.put_object("a", b"a");
            let keys = lab.server().keys();
            let said = refused(&machine, &[&lab.source()]);
            assert!(said.contains(reason), "{text:?}: {said}");
            assert_eq!(lab.object(INDEX).as_deref(), Some(bytes), "{text:?}");
            assert_eq!(lab.server().keys(), keys, "{text:?}");
        }
    }
}

#[test]
fn an_unreadable_meta_is_refused() {
    for (meta, reason) in
        [(&b"{\"version\":2}"[..], "no list"), (b"{", "_meta.json"), (b"{\"version\":9}", "_meta.json")]
    {
        let lab = Lab::s3();
        lab.seed(&[("a", b"a")]);
        lab.put_object(META, meta);
        let said = refused(&lab.machine(), &[&lab.source()]);
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn a_bucket_without_an_index_is_discovered() {
    let lab = Lab::s3();
    for key in [
        "data/a b/é.yaml",
        "top",
        "dir/marker/",
        "_control/x",
        "d/.lock",
        ".locks/ns.lock",
        ".auto-definition-create/x",
        "a//b",
    ] {
        lab.put_object(key, b"bytes");
    }
    lab.put_object("ns/.namespace.json", b"{}");
    lab.put_object("ns/hidden", b"of a namespace");
    let machine = lab.machine();
    let mount = machine.mount();
    assert_eq!(mount.files(), ["data/a b/é.yaml", "top"]);
    assert_eq!(mount.read("data/a b/é.yaml"), "bytes");
    assert_eq!(lab.object(INDEX), None, "looking writes nothing");
    assert_eq!(mount.status()["hidden"][0]["name"], "a//b");
    mount.write("new", "new");
    mount.flushed();
    let names: BTreeSet<String> = lab.entries().keys().cloned().collect();
    assert_eq!(names, ["a//b", "data/a b/é.yaml", "new", "top"].map(str::to_owned).into());
    assert_eq!(mount.files(), ["data/a b/é.yaml", "new", "top"]);
}

#[test]
fn a_bucket_that_holds_only_namespaces_names_them() {
    let lab = Lab::s3();
    for namespace in ["alpha", "beta"] {
        lab.put_object(&format!("{namespace}/.namespace.json"), b"{}");
        lab.put_object(&format!("{namespace}/file"), b"x");
    }
    let said = refused(&lab.machine(), &[&lab.source()]);
    assert!(said.contains("alpha") && said.contains("beta") && said.contains("namespace"), "{said}");
}

#[test]
fn an_empty_bucket_is_an_empty_mount() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount();
    assert_eq!(mount.files(), [""; 0]);
    mount.write("first", "first");
    mount.flushed();
    assert_eq!(lab.entries()["first"]["size"], 5);
}

#[test]
fn an_index_of_a_hundred_megabytes_is_mounted_in_sane_time_and_memory() {
    let lab = Lab::s3();
    let hash = "0123456789abcdef".repeat(4);
    let mut index = String::with_capacity(110 << 20);
    index.push_str(r#"{"version":1,"lastPulled":"2026-01-02T03:04:05.678Z","entries":{"#);
    let mut count = 0usize;
    while index.len() < 100 << 20 {
        let path = format!("data/type-{}/model-{}/file-{count}.yaml", count % 50, count / 1000);
        let comma = if count == 0 { "" } else { "," };
        index.push_str(&format!(
            r#"{comma}"{path}":{{"key":"{path}","size":{count},"lastModified":"2026-01-02T03:04:05.678Z","localMtime":"2026-01-02T03:04:05.678Z","sha256":"{hash}"}}"#
        ));
        count += 1;
    }
    index.push_str("}}");
    lab.put_object(INDEX, index.as_bytes());
    drop(index);
    let machine = lab.machine();
    let mountpoint = machine.mountpoint();
    let mountpoint = mountpoint.to_str().unwrap();
    // In the background: the command itself says when it is done, however slow this machine is.
    let began = Instant::now();
    let output = machine.run(&["--refresh", "3600", &lab.source(), mountpoint]);
    let mounted = began.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let last = format!("data/type-{}/model-{}/file-{}.yaml", (count - 1) % 50, (count - 1) / 1000, count - 1);
    let meta = std::fs::metadata(Path::new(mountpoint).join(&last));
    let status = machine.run(&["status", mountpoint, "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    let memory = std::fs::read_to_string(format!("/proc/{}/status", status["worker_pid"]));
    let ended = machine.run(&["unmount", mountpoint]);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));

    assert_eq!(meta.unwrap().len(), count as u64 - 1);
    assert_eq!(status["entries"], count);
    let memory = memory.unwrap();
    let peak = memory.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    eprintln!("{count} entries: mounted after {mounted:?}, at most {} MiB", peak / 1024);
    assert!(peak < 1_500_000, "{peak} kB");
    assert!(mounted.as_secs() < 120, "{mounted:?}");
}
