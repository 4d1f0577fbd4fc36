//! Promise: a start after a crash costs more than a clean start only in proportion to the files that were being changed, not
//! to what is cached; and no file in `data/` is forgotten for it.
//!
//! Counted, not timed: the program records every content that it looks at (src/failpoint.rs).

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use support::contents::{check_no_leak, files};
use support::mount::{Lab, Machine, eventually};

const OPTIONS: &[&str] = &["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];
/// No content ever gets this number. Only a walk over `data/` would find it.
const PLANTED: u64 = 987_654_321;

/// How often a start comes to each point that touches a content; the mount is killed right after it.
fn cost_of_a_start(machine: &Machine<'_>) -> BTreeMap<String, usize> {
    let record = tempfile::NamedTempFile::new().unwrap();
    let failpoint = format!("record={}", record.path().display());
    machine.try_mount(OPTIONS, &[("SWAMP_FAILPOINT", &failpoint)]).unwrap().kill();
    let mut counts = BTreeMap::new();
    for point in fs::read_to_string(record.path()).unwrap().lines().filter(|point| point.starts_with("content.")) {
        *counts.entry(point.to_owned()).or_default() += 1;
    }
    counts
}

/// A machine with so many cached files and so many that were being changed, and a start after its daemon was killed.
fn after_a_crash(cached: usize, dirty: usize) -> BTreeMap<String, usize> {
    let lab = Lab::s3();
    let names: Vec<String> = (0..cached).map(|n| format!("cached/{n}")).collect();
    let seeds: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    lab.seed(&seeds);
    let machine = lab.machine();
    let mount = machine.mount_with(OPTIONS);
    names.iter().for_each(|name| assert_eq!(mount.read(name), *name));
    eventually("the records", || (mount.status()["cachedFiles"] == cached).then_some(()));
    let open: Vec<File> = (0..dirty)
        .map(|n| {
            let file = File::create(mount.path(&format!("dirty-{n}"))).unwrap();
            file.write_all_at(b"dirty", 0).unwrap();
            file
        })
        .collect();
    mount.kill();
    drop(open);
    let planted = machine.cache_root().join(format!("data/{PLANTED}"));
    fs::write(&planted, "").unwrap();
    let cost = cost_of_a_start(&machine);
    assert!(planted.exists(), "data/ was walked");
    fs::remove_file(planted).unwrap();
    let mount = machine.mount_with(OPTIONS);
    for n in 0..dirty {
        assert_eq!(mount.read(&format!("dirty-{n}")), "dirty");
    }
    mount.flushed();
    assert_eq!(mount.unmount(), 0);
    check_no_leak(&machine.cache_root(), "afterwards");
    cost
}

#[test]
fn a_start_after_a_crash_looks_at_what_was_being_changed_only() {
    let opened = |counts: &BTreeMap<String, usize>| counts.get("content.before_open").copied().unwrap_or_default();
    let (few, many) = (after_a_crash(5, 3), after_a_crash(400, 3));
    assert_eq!(opened(&few), opened(&many), "{few:?} {many:?}");
    assert!(opened(&few) <= 3, "{few:?}");
    // Files without a row are looked for among the ids that were used last.
    for counts in [few, many] {
        assert!(counts.get("content.before_remove").is_none_or(|count| *count <= 1024), "{counts:?}");
    }
    let more = after_a_crash(5, 9);
    assert!(opened(&more) <= 9, "{more:?}");
}

#[test]
fn a_clean_start_looks_at_no_content() {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a"), ("b", b"b")]);
    let machine = lab.machine();
    let mount = machine.mount_with(OPTIONS);
    assert_eq!(mount.read("a"), "a");
    fs::remove_file(mount.path("b")).unwrap();
    assert_eq!(mount.unmount(), 0);
    assert_eq!(cost_of_a_start(&machine), BTreeMap::new());
}

#[test]
fn a_crash_leaks_no_content_whatever_its_number() {
    let lab = Lab::s3();
    let large = vec![5; 6 << 20];
    lab.seed(&[("large", &large), ("small", b"small")]);
    let machine = lab.machine();
    let mount = machine.mount_with(OPTIONS);
    // Removed while they are open, and fetched in part: no row names them, and their numbers are from long ago.
    let removed = File::create(mount.path("removed")).unwrap();
    fs::remove_file(mount.path("removed")).unwrap();
    let partly = OpenOptions::new().read(true).open(mount.path("large")).unwrap();
    partly.read_exact_at(&mut [0; 10], 0).unwrap();
    fs::remove_file(mount.path("large")).unwrap();
    for n in 0..1500 {
        drop(File::create(mount.path(&format!("new-{n}"))).unwrap());
    }
    for n in 0..1500 {
        if n % 3 != 0 {
            fs::remove_file(mount.path(&format!("new-{n}"))).unwrap();
        }
    }
    mount.kill();
    drop((removed, partly));
    assert!(files(&machine.cache_root()).len() > 502, "there is something to collect");
    let mount = machine.mount_with(OPTIONS);
    assert_eq!(mount.files().len(), 501);
    assert_eq!(mount.unmount(), 0);
    check_no_leak(&machine.cache_root(), "after a crash");
}

#[test]
fn a_cache_of_an_earlier_release_is_walked_once() {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    let machine = lab.machine();
    let mount = machine.mount_with(OPTIONS);
    assert_eq!(mount.read("a"), "a");
    assert_eq!(mount.unmount(), 0);
    let root = machine.cache_root();
    let db = rusqlite::Connection::open(root.join("state.db")).unwrap();
    db.execute_batch("DROP TABLE unclaimed; DELETE FROM meta WHERE name = 'content_ids'").unwrap();
    drop(db);
    fs::write(root.join("data/5000"), "left by a crash").unwrap();
    let mount = machine.mount_with(OPTIONS);
    mount.write("b", "b");
    assert_eq!(mount.unmount(), 0);
    check_no_leak(&root, "taken over");
    // Never a number that was used before.
    assert!(files(&root).iter().any(|id| *id > 5000), "{:?}", files(&root));
}
