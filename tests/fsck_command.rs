//! Promises: `swamp-mount fsck` says what it found, by its exit code too, and heals the cache that a mount left without
//! touching what is only there; nothing that any command writes or says holds a secret.

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;

use serde_json::Value;
use support::mount::{Lab, Machine};

const FILES: [(&str, &[u8]); 2] = [("a/one.yaml", b"one"), ("a/two.yaml", b"two")];

fn fsck(machine: &Machine<'_>, lab: &Lab, more: &[&str]) -> (Option<i32>, Value) {
    let root = machine.cache_root();
    let source = lab.source();
    let mut words = vec!["fsck", &source, "--json", "--cache-dir", root.to_str().unwrap()];
    words.extend(more);
    let Output { status, stdout, stderr } = machine.run(&words);
    let report = serde_json::from_slice(&stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&stderr)));
    (status.code(), report)
}

/// Replaces bytes as a failing disk does: size and time stay.
fn rot(path: &Path, bytes: &[u8]) {
    let before = std::fs::metadata(path).unwrap();
    std::fs::write(path, bytes).unwrap();
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert_eq!(file.metadata().unwrap().size(), before.size());
}

fn content_with(root: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let mut contents = std::fs::read_dir(root.join("data")).unwrap().flatten().map(|entry| entry.path());
    contents.find(|path| std::fs::read(path).unwrap() == bytes).expect("a content with these bytes")
}

#[test]
fn the_cache_of_a_mount_is_checked_and_healed() {
    for lab in Lab::each() {
        lab.seed(&FILES);
        let machine = lab.machine();
        let mount = machine.mount();
        assert_eq!((mount.read("a/one.yaml"), mount.read("a/two.yaml")), ("one".into(), "two".into()));
        assert_eq!(mount.unmount(), 0);
        let (code, report) = fsck(&machine, &lab, &[]);
        assert_eq!((code, &report["clean"]), (Some(0), &Value::Bool(true)), "{report}");
        rot(&content_with(&machine.cache_root(), b"one"), b"ONE");
        let (code, report) = fsck(&machine, &lab, &[]);
        assert_eq!(code, Some(1), "{report}");
        assert_eq!(report["findings"][0]["kind"], "corrupt-cache");
        assert_eq!(report["findings"][0]["name"], "a/one.yaml");
        // Lost in the bucket, whole in the cache; then what rotted can be fetched again.
        lab.remove_object("a/two.yaml");
        let (code, report) = fsck(&machine, &lab, &["--repair"]);
        assert_eq!(code, Some(0), "{report}");
        assert_eq!(lab.object("a/two.yaml").as_deref(), Some(&b"two"[..]));
        let mount = machine.mount();
        assert_eq!((mount.read("a/one.yaml"), mount.read("a/two.yaml")), ("one".into(), "two".into()));
        // A running mount keeps its cache to itself.
        let output = machine.run(&["fsck", &lab.source(), "--cache-dir", machine.cache_root().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("mount"), "{output:?}");
        assert_eq!(mount.unmount(), 0);
    }
}

#[cfg(feature = "s3")]
#[test]
fn no_secret_reaches_what_commands_say_and_write() {
    const SECRET: &[u8] = support::s3_server::SECRET_KEY.as_bytes();
    let holds_secret = |bytes: &[u8]| bytes.windows(SECRET.len()).any(|window| window == SECRET);
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    let mount = machine.mount_with(&["-vv"]);
    assert_eq!(mount.read("a/one.yaml"), "one");
    mount.write("b", "new");
    mount.flushed();
    let (source, root) = (lab.source(), machine.cache_root());
    let other = tempfile::tempdir().unwrap();
    let other = other.path().to_str().unwrap();
    let commands: [&[&str]; 6] = [
        &["status", "--json", "-vv"],
        &["verify", &source, "-vv"],
        &["fsck", &source, "-vv", "--repair"],
        &["pull", &source, other, "-vv"],
        &["push", &source, other, "-vv"],
        &["lock", "status", &source, "-vv"],
    ];
    for command in commands {
        let output = machine.run(command);
        assert!(output.status.success(), "{command:?}: {output:?}");
        assert!(!holds_secret(&output.stdout) && !holds_secret(&output.stderr), "{command:?}");
    }
    assert_eq!(mount.unmount(), 0);
    let mut looked_at = 0;
    let mut todo = vec![root.clone(), root.parent().unwrap().to_owned(), other.into()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(at).unwrap().flatten() {
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                todo.push(entry.path());
            } else if kind.is_file() {
                looked_at += 1;
                assert!(!holds_secret(&std::fs::read(entry.path()).unwrap()), "{:?}", entry.path());
            }
        }
    }
    assert!(looked_at > 5, "state, contents, log and cache");
    assert!(!machine.log().is_empty());
}
