//! Promise: what other writers change in the bucket appears in the mount, exactly, although the kernel keeps names,
//! attributes and pages for long; open files are not disturbed, and a view is never lost to a failed refresh.

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use support::mount::{Lab, Mount, entry, eventually};
use support::s3_server::{Action, Fault, Gate};

const INDEX: &str = ".datastore-index.json";
const META: &str = "_index/_meta.json";
const OPTIONS: [&str; 6] = ["--refresh", "1", "--flush-after", "3600", "--flush-max-age", "3600"];

fn exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// Removes entries and objects, as another client would.
fn remove(lab: &Lab, paths: &[&str]) {
    let mut entries = lab.entries();
    paths.iter().for_each(|path| drop(entries.remove(*path)));
    lab.write_entries(entries);
    for path in paths {
        lab.remove_object(path);
    }
}

/// Answers to index reads so far: (with a body, without one).
fn index_reads(lab: &Lab) -> (usize, usize) {
    let requests = lab.server().requests();
    let count = |status| {
        let reads = requests.iter().filter(|r| r.operation == "GetObject" && r.key == INDEX);
        reads.filter(|r| r.status == Some(status)).count()
    };
    (count(200), count(304))
}

/// Returns after a refresh that began after the call.
fn refreshed(lab: &Lab) {
    let began = |lab: &Lab| lab.server().count("GetObject", INDEX);
    let answered = |lab: &Lab| {
        let requests = lab.server().requests();
        requests.iter().filter(|r| r.key == INDEX && r.operation == "GetObject" && r.status.is_some()).count()
    };
    let before = began(lab);
    eventually("two more refreshes", || (answered(lab) >= before + 2).then_some(()));
}

fn last_error(mount: &Mount<'_>) -> String {
    mount.status()["lastError"]["message"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn files_that_others_add_change_and_remove_appear_exactly() {
    for lab in Lab::each() {
        lab.seed(&[
            ("keep", b"keep"),
            ("grow", b"old"),
            ("same-size", b"AAAA"),
            ("dir/gone", b"gone"),
            ("dir/stays", b"stays"),
            ("lonely/deep/file", b"x"),
            ("turns-into-dir", b"file"),
            ("turns-into-file/a", b"dir"),
        ]);
        let machine = lab.machine();
        let mount = machine.mount_with(&OPTIONS);
        // Everything into the kernel's caches: names, attributes, pages, and that names are absent.
        mount.files().iter().for_each(|path| drop(mount.read(path)));
        for absent in ["new", "dir/new", "new-dir", "new-dir/sub/file", "turns-into-dir/inside"] {
            assert!(!exists(&mount.path(absent)), "{absent}");
        }
        let kept = std::fs::metadata(mount.path("keep")).unwrap().ino();

        lab.seed(&[
            ("new", b"new"),
            ("dir/new", b"new in dir"),
            ("new-dir/sub/file", b"deep"),
            ("grow", b"old and new"),
            ("same-size", b"BBBB"),
            ("turns-into-dir/inside", b"inside"),
            ("turns-into-file", b"file now"),
        ]);
        remove(&lab, &["dir/gone", "lonely/deep/file", "turns-into-dir", "turns-into-file/a"]);

        eventually("the last change", || {
            (!exists(&mount.path("lonely")) && exists(&mount.path("turns-into-dir/inside"))).then_some(())
        });
        let expected = [
            ("dir/new", "new in dir"),
            ("dir/stays", "stays"),
            ("grow", "old and new"),
            ("keep", "keep"),
            ("new", "new"),
            ("new-dir/sub/file", "deep"),
            ("same-size", "BBBB"),
            ("turns-into-dir/inside", "inside"),
            ("turns-into-file", "file now"),
        ];
        // By name first, so that no listing refreshes what lookups show.
        for (path, text) in expected {
            let size =
                eventually(path, || std::fs::metadata(mount.path(path)).ok().filter(|m| m.len() == text.len() as u64));
            assert!(size.is_file());
            assert_eq!(mount.read(path), text, "{path}");
        }
        assert!(!exists(&mount.path("dir/gone")));
        assert_eq!(mount.files(), expected.map(|(path, _)| path));
        assert_eq!(std::fs::metadata(mount.path("keep")).unwrap().ino(), kept, "an unchanged file is the same file");
        assert_eq!(mount.status()["hiddenCount"], 0);
    }
}

#[test]
fn a_listing_and_a_missing_name_are_stale_no_longer_than_a_refresh() {
    let lab = Lab::s3();
    lab.seed(&[("d/0", b"0")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    for round in 1..=3 {
        let name = format!("d/{round}");
        assert!(!exists(&mount.path(&name)));
        let listed = std::fs::read_dir(mount.path("d")).unwrap().count();
        lab.seed(&[(&name, b"x")]);
        eventually("the name", || exists(&mount.path(&name)).then_some(()));
        assert_eq!(std::fs::read_dir(mount.path("d")).unwrap().count(), listed + 1);
        remove(&lab, &[&name]);
        eventually("its removal", || (!exists(&mount.path(&name))).then_some(()));
        assert_eq!(std::fs::read_dir(mount.path("d")).unwrap().count(), listed);
    }
}

#[test]
fn open_files_go_on_reading_the_version_that_they_opened() {
    for lab in Lab::each_server() {
        let old: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let new: Vec<u8> = old.iter().map(|byte| !byte).collect();
        lab.seed(&[("changed", &old), ("removed", &old)]);
        let machine = lab.machine();
        let mount = machine.mount_with(&OPTIONS);
        let files = ["changed", "removed"].map(|name| File::open(mount.path(name)).unwrap());
        let read = |file: &File| {
            let mut bytes = vec![0; old.len()];
            file.read_exact_at(&mut bytes, 0).map(|()| bytes)
        };
        assert!(read(&files[0]).unwrap() == old);
        lab.seed(&[("changed", &new)]);
        remove(&lab, &["removed"]);
        eventually("the removal", || (!exists(&mount.path("removed"))).then_some(()));
        eventually("the change", || (std::fs::read(mount.path("changed")).unwrap() == new).then_some(()));
        for file in &files {
            assert!(read(file).unwrap() == old, "the open file is the old one");
            assert_eq!(file.metadata().unwrap().len(), old.len() as u64);
        }
        assert!(std::fs::read(mount.path("changed")).unwrap() == new, "and reading it changes nothing for others");
    }
}

#[test]
fn only_the_date_of_a_file_changed() {
    let lab = Lab::s3();
    lab.seed(&[("file", b"bytes")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    assert_eq!(mount.read("file"), "bytes");
    let mut changed = entry("file", b"bytes");
    changed["localMtime"] = "2027-05-06T07:08:09.250Z".into();
    let mut entries = lab.entries();
    entries.insert("file".into(), changed);
    lab.write_entries(entries);
    eventually("the new date", || {
        let meta = std::fs::metadata(mount.path("file")).unwrap();
        ((meta.mtime(), meta.mtime_nsec()) == (1_809_587_289, 250_000_000)).then_some(())
    });
    assert_eq!(lab.server().count("GetObject", "file"), 1, "the bytes are the same and are not fetched again");
    assert_eq!(mount.read("file"), "bytes");
}

#[test]
fn an_unchanged_index_is_not_transferred_again() {
    for lab in Lab::each_server() {
        lab.seed(&[("a", b"a")]);
        let machine = lab.machine();
        let mount = machine.mount_with(&OPTIONS);
        eventually("three unchanged refreshes", || (index_reads(&lab).1 >= 3).then_some(()));
        assert_eq!(index_reads(&lab).0, 1, "its bytes came once");
        assert_eq!(mount.unmount(), 0);
        lab.server().clear_requests();
        let mount = machine.mount_with(&OPTIONS);
        eventually("an unchanged index at the next mount", || (index_reads(&lab).1 >= 1).then_some(()));
        assert_eq!(index_reads(&lab).0, 0, "nor at the next mount");
        assert_eq!(mount.files(), ["a"]);
    }
}

/// What may happen to the index while it is mounted, how it is undone, and what status says.
struct Trouble {
    name: &'static str,
    cause: fn(&Lab),
    heal: fn(&Lab, Vec<u8>),
    says: &'static str,
}

#[test]
fn an_index_that_cannot_be_read_leaves_the_view_and_stops_pushes_until_it_is_back() {
    fn fail(lab: &Lab, status: u16) {
        lab.server().inject(Fault::on("GetObject", Action::Status(status)).key(INDEX));
    }
    fn unfail(lab: &Lab, _: Vec<u8>) {
        lab.server().clear_faults();
    }
    fn restore(lab: &Lab, bytes: Vec<u8>) {
        lab.put_object(INDEX, &bytes);
    }
    fn remove_meta(lab: &Lab, _: Vec<u8>) {
        lab.server().remove(META);
    }
    let troubles = [
        Trouble {
            name: "it disappears",
            cause: |lab| {
                lab.server().remove(INDEX);
            },
            heal: restore,
            says: "has disappeared",
        },
        Trouble { name: "403", cause: |lab| fail(lab, 403), heal: unfail, says: "credentials" },
        Trouble { name: "500", cause: |lab| fail(lab, 500), heal: unfail, says: "HTTP 500" },
        Trouble {
            name: "it is cut off",
            cause: |lab| lab.put_object(INDEX, br#"{"version":1,"entries":{"a":{"key":"#),
            heal: restore,
            says: "not readable JSON",
        },
        Trouble {
            name: "it is empty",
            cause: |lab| lab.put_object(INDEX, b""),
            heal: restore,
            says: "not readable JSON",
        },
        Trouble {
            name: "it is of another version",
            cause: |lab| lab.put_object(INDEX, br#"{"version":7,"entries":{}}"#),
            heal: restore,
            says: "unknown version 7",
        },
        Trouble {
            name: "the bucket is migrated to shards, and one is missing",
            cause: |lab| lab.put_object(META, br#"{"version":2,"partitions":["audit"],"commitSeq":1}"#),
            heal: remove_meta,
            says: "_index/audit.json",
        },
    ];
    std::thread::scope(|scope| {
        for trouble in troubles {
            scope.spawn(move || Lab::each_server().for_each(|lab| survive(&trouble, &lab)));
        }
    });
}

fn survive(trouble: &Trouble, lab: &Lab) {
    let name = &format!("{} over {}", trouble.name, lab.kind());
    lab.seed(&[("a", b"a"), ("dir/b", b"b")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    assert_eq!(mount.read("a"), "a");
    let index = lab.object(INDEX).unwrap();
    (trouble.cause)(lab);
    let broken = lab.object(INDEX);
    let error = eventually(name, || Some(last_error(&mount)).filter(|error| !error.is_empty()));
    assert!(error.contains(trouble.says), "{name}: {error}");
    refreshed(lab);
    assert_eq!(mount.files(), ["a", "dir/b"], "{name}: the view stays");
    assert_eq!(mount.read("dir/b"), "b", "{name}: and can be read");
    // The view can be written, but nothing is pushed on such a ground.
    mount.write("mine", "mine");
    std::fs::remove_file(mount.path("a")).unwrap();
    let flush = mount.flush();
    assert!(!flush.status.success(), "{name}: a flush fails");
    let said = String::from_utf8_lossy(&flush.stderr).into_owned();
    assert!(said.contains(trouble.says), "{name}: {said}");
    assert_eq!(lab.object(INDEX), broken, "{name}: the index is left alone");
    assert_eq!(lab.object("mine"), None, "{name}: nothing is uploaded");
    assert!(lab.object("a").is_some(), "{name}: nothing is deleted");
    let status = mount.status();
    assert_eq!((&status["pending"]["files"], &status["pending"]["removals"]), (&1.into(), &1.into()), "{name}");

    (trouble.heal)(lab, index);
    mount.flushed();
    eventually("the recovery", || last_error(&mount).is_empty().then_some(()));
    let names: Vec<_> = lab.entries().keys().cloned().collect();
    assert_eq!(names, ["dir/b", "mine"], "{name}: everything is pushed afterwards");
    assert_eq!(lab.object("mine").as_deref(), Some(&b"mine"[..]), "{name}");
    assert_eq!(mount.files(), ["dir/b", "mine"], "{name}");
}

#[test]
fn a_sharded_bucket_without_one_of_its_shards_is_not_mounted() {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    lab.put_object(META, br#"{"version":2,"partitions":["audit"],"commitSeq":1}"#);
    let machine = lab.machine();
    let mountpoint = machine.mountpoint();
    let output = machine.run(&[&lab.source(), mountpoint.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("_index/audit.json") && said.contains("fsck"), "{said}");
    assert!(!support::mount::is_mounted(&mountpoint));
}

#[test]
fn a_refresh_that_hangs_holds_nobody_up() {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    let gate: Gate = lab.server().hold("GetObject", INDEX);
    gate.arrived_blocking(1);
    assert_eq!(mount.read("a"), "a");
    mount.write("b", "b");
    assert_eq!(mount.files(), ["a", "b"]);
    gate.open();
    mount.flushed();
    assert_eq!(lab.object("b").as_deref(), Some(&b"b"[..]));
}

#[test]
fn a_file_beside_a_directory_of_its_name_gives_way_and_comes_back() {
    let lab = Lab::s3();
    lab.seed(&[("f", b"file"), ("other", b"x")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    assert_eq!(mount.read("f"), "file");
    lab.seed(&[("f/g", b"inside")]);
    eventually("the directory", || exists(&mount.path("f/g")).then_some(()));
    assert_eq!(mount.files(), ["f/g", "other"]);
    let status = mount.status();
    assert_eq!((&status["hiddenCount"], &status["hidden"][0]["name"]), (&1.into(), &"f".into()));
    assert_eq!(status["pending"]["files"], 0, "nothing of it is taken for a change of ours");
    let mut entries = lab.entries();
    entries.remove("f/g");
    lab.write_entries(entries);
    eventually("the file", || std::fs::metadata(mount.path("f")).is_ok_and(|m| m.is_file()).then_some(()));
    assert_eq!(mount.read("f"), "file");
    assert_eq!(mount.files(), ["f", "other"]);
}

#[test]
fn a_directory_marker_shows_its_directory() {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    assert!(!exists(&mount.path("marked")));
    let mut entries = lab.entries();
    entries.insert("marked/".into(), entry("marked/", b""));
    lab.write_entries(entries);
    eventually("the directory", || std::fs::metadata(mount.path("marked")).is_ok_and(|m| m.is_dir()).then_some(()));
}

#[test]
fn kinds_modes_and_targets_change_with_their_entries() {
    let lab = Lab::s3();
    let put = |path: &str, bytes: &[u8], mode: Option<&str>| {
        lab.put_object(path, bytes);
        let mut changed = entry(path, bytes);
        if let Some(mode) = mode {
            changed["mode"] = mode.into();
        }
        let mut entries = lab.object(INDEX).map(|_| lab.entries()).unwrap_or_default();
        entries.insert(path.to_owned(), changed);
        lab.write_entries(entries);
    };
    put("link", b"one", Some("120000"));
    put("tool", b"#!/bin/sh\n", None);
    put("kind", b"target", None);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    let target = |name: &str| std::fs::read_link(mount.path(name)).ok();
    let mode = |name: &str| std::fs::metadata(mount.path(name)).unwrap().mode() & 0o7777;
    assert_eq!(target("link").as_deref(), Some(Path::new("one")));
    assert_eq!((mode("tool"), mount.read("tool")), (0o644, "#!/bin/sh\n".into()));
    assert_eq!(mount.read("kind"), "target");
    put("link", b"two", Some("120000"));
    put("tool", b"#!/bin/sh\n", Some("100755"));
    put("kind", b"target", Some("120000"));
    eventually("the other target", || (target("link")? == Path::new("two")).then_some(()));
    eventually("the executable bit", || (mode("tool") == 0o755).then_some(()));
    eventually("a symlink", || (target("kind")? == Path::new("target")).then_some(()));
    put("tool", b"#!/bin/sh\n", None);
    eventually("no executable bit", || (mode("tool") == 0o644).then_some(()));
    assert_eq!(mount.status()["pending"]["files"], 0);
}

#[test]
fn whatever_changes_the_view_is_the_index_by_every_way_of_looking() {
    for lab in Lab::each() {
        lab.write_entries(serde_json::Map::new());
        let machine = lab.machine();
        let mount = machine.mount_with(&OPTIONS);
        let names: Vec<String> =
            ["a", "b", "d/a", "d/b", "d/e/a", "x/y/z/deep", "x/y/b", "x/b"].map(str::to_owned).into();
        let look = |lab: &Lab| -> Option<()> {
            // By name, before any listing: what the kernel remembers of names, attributes and pages.
            let entries = lab.entries();
            for name in &names {
                let wanted = entries.get(name).and_then(|_| lab.object(name));
                let size = std::fs::symlink_metadata(mount.path(name)).ok().map(|meta| meta.len());
                if size != wanted.as_ref().map(|bytes| bytes.len() as u64) {
                    return None;
                }
                if let Some(wanted) = wanted
                    && std::fs::read(mount.path(name)).ok()? != wanted
                {
                    return None;
                }
            }
            let mut listed: Vec<_> = entries.keys().cloned().collect();
            listed.sort();
            (mount.files() == listed).then_some(())
        };
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        for round in 0..10 {
            let mut entries = lab.entries();
            for name in &names {
                match random(4) {
                    0 => drop(entries.remove(name)),
                    // Mostly of the same size.
                    1 | 2 => {
                        let bytes = format!("{name} in round {round} {}", "+".repeat(usize::from(random(4) == 0)));
                        lab.put_object(name, bytes.as_bytes());
                        entries.insert(name.clone(), entry(name, bytes.as_bytes()));
                    }
                    _ => {}
                }
            }
            lab.write_entries(entries);
            eventually(&format!("round {round}"), || look(&lab));
        }
        assert_eq!(mount.status()["pending"]["files"], 0);
    }
}
