//! A plain model of the files in a datastore, to compare mounts and buckets with.

use std::collections::BTreeMap;
use std::fs;

use super::mount::{Lab, Machine, Mount};

/// Paths and bytes: what a mount should show.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What others pushed before.
pub const SEED: &[(&str, &str)] =
    &[("remote", "remote bytes"), ("second", "second bytes"), ("dir/x", "x"), ("dir/sub/y", "y"), ("other", "other's")];

/// Puts the seed into the bucket, and gives the model of it.
pub fn seeded(lab: &Lab) -> Files {
    lab.seed(&SEED.iter().map(|(n, t)| (*n, t.as_bytes())).collect::<Vec<_>>());
    SEED.iter().map(|(n, t)| ((*n).to_owned(), t.as_bytes().to_vec())).collect()
}

/// The mount shows the model, no more and no less.
pub fn check_mount(mount: &Mount<'_>, expected: &Files, what: &str) {
    assert_eq!(mount.files(), expected.keys().cloned().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in expected {
        let found = fs::read(mount.path(name)).unwrap_or_else(|e| panic!("{what}: {name}: {e}"));
        assert!(&found == bytes, "{what}: {name}: {:?}", String::from_utf8_lossy(&found));
    }
}

/// Index and objects are the model, no more and no less.
pub fn check_bucket(lab: &Lab, expected: &Files, what: &str) {
    let entries = lab.entries();
    let mut names: Vec<_> = entries.keys().cloned().collect();
    names.sort();
    assert_eq!(names, expected.keys().cloned().collect::<Vec<_>>(), "{what}: the index");
    for (name, bytes) in expected {
        assert!(lab.object(name).as_ref() == Some(bytes), "{what}: object {name}");
        assert_eq!(entries[name]["sha256"], super::mount::entry(name, bytes)["sha256"], "{what}: {name}");
        assert_eq!(entries[name]["size"], bytes.len(), "{what}: {name}");
    }
    for (name, _) in SEED.iter().filter(|(name, _)| !expected.contains_key(*name)) {
        assert_eq!(lab.object(name), None, "{what}: object {name} should be gone");
    }
}

/// The model of a write.
pub fn set(files: &mut Files, name: &str, text: &str) {
    files.insert(name.to_owned(), text.as_bytes().to_vec());
}

/// Starts a flush in the background that a kill will end.
pub fn start_flush(machine: &Machine<'_>) -> std::process::Child {
    let mut command = machine.command();
    command.arg("flush").arg(machine.mountpoint());
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
}
