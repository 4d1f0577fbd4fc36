//! Namespaces in one bucket: each mount, pull and push sees its own datastore and nothing else, holds both locks, and keeps
//! the layout that reference clients expect of a cache directory.

mod support;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use support::mount::{Lab, Machine, entry};

const INDEX: &str = ".datastore-index.json";
const SIDECAR: &str = ".datastore-sync-state.json";

/// Operation and key of the requests so far.
fn requests(lab: &Lab) -> Vec<(String, String)> {
    lab.server().requests().into_iter().map(|r| (r.operation.to_owned(), r.key)).collect()
}

/// Places the files of a namespace with their index.
fn seed(lab: &Lab, namespace: &str, files: &[(&str, &[u8])]) {
    let mut entries = Map::new();
    for (path, bytes) in files {
        lab.put_object(&format!("{namespace}/{path}"), bytes);
        entries.insert((*path).to_owned(), entry(path, bytes));
    }
    let index = json!({"version": 1, "lastPulled": "2026-01-02T03:04:05.678Z", "entries": entries});
    lab.put_object(&format!("{namespace}/{INDEX}"), index.to_string().as_bytes());
}

fn register(lab: &Lab, namespace: &str, repo: &str) {
    let text = json!({"namespace": namespace, "repoId": repo, "registeredAt": "2026-07-30T00:00:00.000Z"});
    lab.put_object(&format!("{namespace}/.namespace.json"), text.to_string().as_bytes());
}

/// Names in an index.
fn listed(lab: &Lab, index: &str) -> Vec<String> {
    let bytes = lab.object(index).expect("an index");
    let index: Value = serde_json::from_slice(&bytes).expect("JSON");
    index["entries"].as_object().expect("entries").keys().cloned().collect()
}

fn two_namespaces_and_a_root(lab: Lab) -> Lab {
    lab.seed(&[("data/root.yaml", b"root")]);
    seed(&lab, "one", &[("data/x.yaml", b"first"), ("data/deep/y.yaml", b"second")]);
    seed(&lab, "two", &[("data/x.yaml", b"of two")]);
    register(&lab, "one", "repo-1");
    register(&lab, "two", "repo-2");
    lab
}

fn ran(machine: &Machine<'_>, arguments: &[&str]) -> String {
    let output = machine.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(machine: &Machine<'_>, arguments: &[&str]) -> String {
    let output = machine.run(arguments);
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Options of a mount that does nothing by itself.
const QUIET: [&str; 6] = ["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];

#[test]
fn each_mount_sees_its_own_datastore_and_touches_nothing_else() {
    for lab in Lab::each_server() {
        let lab = two_namespaces_and_a_root(lab);
        let (first, second, third) = (lab.machine(), lab.machine(), lab.machine());
        let root = first.mount();
        let one = second.mount_with(&[&QUIET[..], &["--namespace", "one"]].concat());
        let two = third.mount_with(&[&QUIET[..], &["--namespace", "two"]].concat());
        assert_eq!(root.files(), ["data/root.yaml"]);
        assert_eq!(one.files(), ["data/deep/y.yaml", "data/x.yaml"]);
        assert_eq!((one.read("data/x.yaml"), two.read("data/x.yaml")), ("first".to_owned(), "of two".to_owned()));
        assert_eq!((&one.status()["namespace"], &root.status()["namespace"]), (&json!("one"), &Value::Null));

        let before = |key: &str| (key.to_owned(), lab.object(key));
        let others = [INDEX, "data/root.yaml", "two/.datastore-index.json", "two/data/x.yaml", "two/.namespace.json"];
        let untouched = others.map(before);
        let seen = requests(&lab).len();
        one.write("data/new.yaml", "new");
        std::fs::remove_file(one.path("data/deep/y.yaml")).expect("removed");
        one.write("data/_catalog.db", "internal at any depth");
        one.flushed();
        let made: Vec<(String, String)> = requests(&lab).split_off(seen);
        let outer = ".locks/one.lock";
        // Of a listing the S3 server records no prefix.
        for (operation, key) in made.iter().filter(|(operation, _)| operation != "ListObjectsV2") {
            assert!(key.starts_with("one/") || key == outer, "{operation} {key} lies outside of the namespace");
        }
        for (key, bytes) in untouched {
            assert_eq!(lab.object(&key), bytes, "{key}");
        }
        assert_eq!(lab.object("one/data/new.yaml").as_deref(), Some(&b"new"[..]));
        assert_eq!(lab.object("one/data/deep/y.yaml"), None);
        assert_eq!(listed(&lab, "one/.datastore-index.json"), ["data/x.yaml", "data/new.yaml"]);
        let keys = lab.keys();
        assert!(!keys.iter().any(|key| key.ends_with("lock") || key.contains("_catalog")), "{keys:?}");

        let at = |wanted: &str| made.iter().position(|(_, key)| key == wanted).expect(wanted);
        let last = |wanted: &str| made.iter().rposition(|(_, key)| key == wanted).expect(wanted);
        let inner = "one/.datastore.lock";
        assert!(at(outer) < at(inner), "the outer lock is taken first");
        assert!(last(outer) > last(inner), "and given back last");
        assert!(at(inner) < at("one/data/new.yaml"), "both are proven before the first write");
        for mount in [root, one, two] {
            assert_eq!(mount.unmount(), 0);
        }
        // The state of one is not the state of another.
        let elsewhere = second.mount_with(&[&QUIET[..], &["--namespace", "two"]].concat());
        assert_eq!(elsewhere.files(), ["data/x.yaml"]);
        assert_eq!(elsewhere.read("data/x.yaml"), "of two");
    }
}

#[test]
fn a_mounts_own_cache_has_the_layout_of_a_namespace() {
    let lab = two_namespaces_and_a_root(Lab::s3());
    let machine = lab.machine();
    let mount = machine.mount_with(&[&QUIET[..], &["--namespace", "one"]].concat());
    assert_eq!((mount.read("data/x.yaml"), mount.read("data/deep/y.yaml")), ("first".to_owned(), "second".to_owned()));
    assert_eq!(mount.unmount(), 0);
    let cache = machine.cache_root().join("cache");
    assert_eq!(tree(&cache), [INDEX, SIDECAR, "one/data/deep/y.yaml", "one/data/x.yaml"]);
    // A reference client works in it between two mounts.
    std::fs::write(cache.join("one/data/theirs.yaml"), "theirs").expect("written");
    let sidecar = std::fs::read_to_string(cache.join(SIDECAR)).expect("a sidecar");
    std::fs::write(cache.join(SIDECAR), sidecar.replace("\"localDirty\": false", "\"localDirty\": true"))
        .expect("written");
    let mount = machine.mount_with(&[&QUIET[..], &["--namespace", "one"]].concat());
    assert_eq!(mount.read("data/theirs.yaml"), "theirs");
    mount.flushed();
    assert_eq!(lab.object("one/data/theirs.yaml").as_deref(), Some(&b"theirs"[..]));
}

/// All files below a directory.
fn tree(dir: &Path) -> Vec<String> {
    let (mut found, mut todo) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(next) = todo.pop() {
        for item in std::fs::read_dir(next).expect("listed").flatten() {
            match item.file_type().expect("known").is_dir() {
                true => todo.push(item.path()),
                false => {
                    found.push(item.path().strip_prefix(dir).expect("below").to_str().expect("UTF-8").to_owned());
                }
            }
        }
    }
    found.sort();
    found
}

fn cache_of(machine: &Machine<'_>) -> PathBuf {
    machine.mountpoint().parent().expect("a home").join("dir")
}

#[test]
fn pull_and_push_keep_the_layout_of_a_namespaced_cache() {
    for lab in Lab::each_server() {
        let lab = two_namespaces_and_a_root(lab);
        let machine = lab.machine();
        let (source, dir) = (lab.source(), cache_of(&machine));
        let said = ran(&machine, &["pull", &source, "dir", "--namespace", "one"]);
        assert!(said.starts_with("pulled 2 files"), "{said}");
        assert_eq!(tree(&dir), [INDEX, SIDECAR, "one/data/deep/y.yaml", "one/data/x.yaml"]);
        assert_eq!(std::fs::read(dir.join(INDEX)).ok(), lab.object("one/.datastore-index.json"), "byte for byte");
        assert_eq!(std::fs::read(dir.join("one/data/x.yaml")).expect("pulled"), b"first");
        assert_eq!(ran(&machine, &["pull", &source, "dir", "--namespace", "one"]), "up to date\n");

        std::fs::write(dir.join("one/data/new.yaml"), "new").expect("written");
        std::fs::create_dir(dir.join("two")).expect("made");
        std::fs::write(dir.join("two/foreign.yaml"), "another namespace's").expect("written");
        let said = ran(&machine, &["push", &source, "dir", "--namespace", "one"]);
        assert!(said.starts_with("pushed 1 files"), "{said}");
        assert_eq!(lab.object("one/data/new.yaml").as_deref(), Some(&b"new"[..]));
        let keys = lab.keys();
        assert!(!keys.iter().any(|key| key.contains("foreign") || key.starts_with("one/one")), "{keys:?}");
        assert!(!keys.iter().any(|key| key.ends_with("lock")), "{keys:?}");

        // A mark removes what it names inside the namespace, and nothing when it names something outside.
        for (mark, remains) in [("data/x.yaml", true), ("two/data/x.yaml", true), ("one/data/x.yaml", false)] {
            std::fs::remove_file(dir.join("one/data/x.yaml")).expect("removed");
            let field = if source.starts_with("gs") { "remoteIndexGeneration" } else { "remoteIndexETag" };
            let sidecar = json!({
                "version": 2, (field): "", "lastVerifiedAt": "2026-01-01T00:00:00.000Z", "localDirty": true,
                "dirtyPaths": [mark], "bulkInvalidated": false, "lazyPullActive": false, "dirtyPathsOverflowed": false,
            });
            std::fs::write(dir.join(SIDECAR), sidecar.to_string()).expect("written");
            ran(&machine, &["push", &source, "dir", "--namespace", "one"]);
            assert_eq!(lab.object("one/data/x.yaml").is_some(), remains, "{mark}");
            ran(&machine, &["pull", &source, "dir", "--namespace", "one"]);
            assert_eq!(dir.join("one/data/x.yaml").exists(), remains, "{mark}");
        }
        assert_eq!(lab.object("two/data/x.yaml").as_deref(), Some(&b"of two"[..]));
        assert_eq!(lab.object("data/root.yaml").as_deref(), Some(&b"root"[..]));
    }
}

#[test]
fn a_cache_of_the_earlier_layout_is_taken_over_without_a_transfer() {
    let lab = two_namespaces_and_a_root(Lab::s3());
    let machine = lab.machine();
    let (source, dir) = (lab.source(), cache_of(&machine));
    ran(&machine, &["pull", &source, "dir", "--namespace", "one"]);
    for (change, first) in [("kept", "pull"), ("edited", "push")] {
        // As a client before 07.30.2 left it: the files at the root.
        for name in std::fs::read_dir(dir.join("one")).expect("listed").flatten() {
            std::fs::rename(name.path(), dir.join(name.file_name())).expect("moved");
        }
        std::fs::remove_dir(dir.join("one")).expect("empty");
        std::fs::write(dir.join(format!("data/unpushed-{change}.yaml")), change).expect("written");
        std::fs::create_dir_all(dir.join("two/data")).expect("made");
        std::fs::write(dir.join("two/data/foreign.yaml"), "not ours").expect("written");
        let said = ran(&machine, &[first, &source, "dir", "--namespace", "one"]);
        let expected = if first == "pull" { "pulled 0 files (0 B), removed 0\n" } else { "pushed 2 files" };
        assert!(said.starts_with(expected), "{first}: {said}");
        assert_eq!(std::fs::read(dir.join("one/data/x.yaml")).expect("moved"), b"first");
        assert!(!dir.join("data").exists() && dir.join("two/data/foreign.yaml").exists());
    }
    assert_eq!(
        listed(&lab, "one/.datastore-index.json"),
        ["data/x.yaml", "data/deep/y.yaml", "data/unpushed-edited.yaml", "data/unpushed-kept.yaml"]
    );
    assert_eq!(lab.object("one/data/unpushed-kept.yaml").as_deref(), Some(&b"kept"[..]));
    assert_eq!(ran(&machine, &["pull", &source, "dir", "--namespace", "one"]), "up to date\n");
}

#[test]
fn registered_namespaces_are_listed_and_nothing_that_only_looks_like_one() {
    for lab in Lab::each_server() {
        let lab = two_namespaces_and_a_root(lab);
        lab.put_object("looks/like/one.yaml", b"x");
        lab.put_object("two/nested/.namespace.json", b"{}");
        lab.put_object("odd/.namespace.json", b"not JSON");
        lab.put_object("_index/.namespace.json", b"{}");
        let machine = lab.machine();
        let report: Value =
            serde_json::from_str(&ran(&machine, &["namespaces", &lab.source(), "--json"])).expect("JSON");
        let registered = "2026-07-30T00:00:00.000Z";
        let expected = json!({"namespaces": [
            {"namespace": "odd", "repoId": null, "registeredAt": null},
            {"namespace": "one", "repoId": "repo-1", "registeredAt": registered},
            {"namespace": "two", "repoId": "repo-2", "registeredAt": registered},
        ]});
        assert_eq!(report, expected);
        let text = ran(&machine, &["namespaces", &lab.source()]);
        assert!(text.contains("one  repository repo-1") && text.lines().count() == 3, "{text}");
    }
}

#[test]
fn a_bucket_of_namespaces_alone_asks_for_one() {
    let lab = Lab::dir();
    seed(&lab, "one", &[("data/x.yaml", b"first")]);
    register(&lab, "one", "repo-1");
    let machine = lab.machine();
    let words = refused(&machine, &["verify", &lab.source()]);
    assert!(words.contains("(one)") && words.contains("--namespace"), "{words}");
    let said = ran(&machine, &["verify", &lab.source(), "--namespace", "one"]);
    assert!(said.contains("(namespace one)") && said.contains("entries      1"), "{said}");
}

#[test]
fn both_locks_are_shown_and_released() {
    let lab = two_namespaces_and_a_root(Lab::s3());
    let machine = lab.machine();
    let source = lab.source();
    let status = || ran(&machine, &["lock", "status", &source, "--namespace", "one"]);
    assert_eq!(status(), ".locks/one.lock: the lock is free\none/.datastore.lock: the lock is free\n");
    let body = |nonce: &str| {
        let body = json!({"holder": "them@there", "hostname": "there", "pid": 9, "acquiredAt": "x", "ttlMs": 30000, "nonce": nonce});
        body.to_string().into_bytes()
    };
    lab.put_object(".locks/one.lock", &body("n-1"));
    lab.put_object("one/.datastore.lock", &body("n-2"));
    lab.put_object(".datastore.lock", &body("n-3"));
    let shown = status();
    assert!(shown.contains("nonce n-1\none/.datastore.lock: the lock is held by them@there"), "{shown}");
    refused(&machine, &["lock", "release", &source, "--namespace", "one"]);
    refused(&machine, &["lock", "release", &source, "--namespace", "one", "--force", "--nonce", "n-3"]);
    ran(&machine, &["lock", "release", &source, "--namespace", "one", "--force", "--nonce", "n-2"]);
    assert!(lab.object(".locks/one.lock").is_some() && lab.object("one/.datastore.lock").is_none());
    ran(&machine, &["lock", "release", &source, "--namespace", "one", "--force"]);
    assert!(lab.object(".locks/one.lock").is_none());
    assert!(lab.object(".datastore.lock").is_some(), "the root's lock is another datastore's");
}
