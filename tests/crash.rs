//! Promise: after `kill -9` of the daemon at any moment, mounting again shows every acknowledged change, and the next flush
//! brings exactly that to the bucket; nothing of others is lost.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use support::model::{Files, check_bucket, check_mount, seeded, set, start_flush};
use support::mount::{Lab, Mount, is_mounted};
use support::s3_server::{Action, Fault, Gate};

fn open_append(mount: &Mount<'_>, name: &str) -> fs::File {
    OpenOptions::new().append(true).create(true).open(mount.path(name)).unwrap()
}

/// A change: what it does on the mount (what it returns stays open until the kill), and to a model.
type Change = (&'static str, fn(&Mount<'_>) -> Vec<fs::File>, fn(&mut Files));

const CHANGES: &[Change] = &[
    ("create", |m| vec![fs::File::create(m.path("new")).unwrap()], |f| set(f, "new", "")),
    (
        "create and write",
        |m| {
            m.write("new", "content");
            vec![]
        },
        |f| set(f, "new", "content"),
    ),
    (
        "write, still open",
        |m| {
            let mut file = open_append(m, "new");
            file.write_all(b"unsynced").unwrap();
            vec![file]
        },
        |f| set(f, "new", "unsynced"),
    ),
    (
        "overwrite a remote file in place, still open",
        |m| {
            let file = OpenOptions::new().write(true).open(m.path("remote")).unwrap();
            file.write_all_at(b"REMOTE", 0).unwrap();
            vec![file]
        },
        |f| set(f, "remote", "REMOTE bytes"),
    ),
    (
        "append to a remote file and close",
        |m| {
            open_append(m, "remote").write_all(b"+").unwrap();
            vec![]
        },
        |f| set(f, "remote", "remote bytes+"),
    ),
    (
        "replace a remote file that was never read",
        |m| {
            m.write("remote", "all new");
            vec![]
        },
        |f| set(f, "remote", "all new"),
    ),
    (
        "truncate by name",
        |m| {
            OpenOptions::new().write(true).open(m.path("remote")).unwrap().set_len(6).unwrap();
            vec![]
        },
        |f| set(f, "remote", "remote"),
    ),
    (
        "truncate to nothing, still open",
        |m| vec![fs::File::create(m.path("remote")).unwrap()],
        |f| set(f, "remote", ""),
    ),
    (
        "rename",
        |m| {
            fs::rename(m.path("remote"), m.path("renamed")).unwrap();
            vec![]
        },
        |f| {
            let bytes = f.remove("remote").unwrap();
            f.insert("renamed".into(), bytes);
        },
    ),
    (
        "rename over",
        |m| {
            fs::rename(m.path("remote"), m.path("second")).unwrap();
            vec![]
        },
        |f| {
            let bytes = f.remove("remote").unwrap();
            f.insert("second".into(), bytes);
        },
    ),
    (
        "write beside and rename over",
        |m| {
            m.write("tmp", "edited");
            fs::rename(m.path("tmp"), m.path("remote")).unwrap();
            vec![]
        },
        |f| set(f, "remote", "edited"),
    ),
    (
        "rename a directory",
        |m| {
            fs::rename(m.path("dir"), m.path("moved")).unwrap();
            vec![]
        },
        |f| {
            for name in ["dir/x", "dir/sub/y"] {
                let bytes = f.remove(name).unwrap();
                f.insert(name.replacen("dir", "moved", 1), bytes);
            }
        },
    ),
    (
        "unlink",
        |m| {
            fs::remove_file(m.path("remote")).unwrap();
            vec![]
        },
        |f| drop(f.remove("remote")),
    ),
    (
        "unlink while open",
        |m| {
            let mut file = open_append(m, "remote");
            fs::remove_file(m.path("remote")).unwrap();
            file.write_all(b"into nowhere").unwrap();
            vec![file]
        },
        |f| drop(f.remove("remote")),
    ),
    (
        "remove a directory",
        |m| {
            fs::remove_dir_all(m.path("dir")).unwrap();
            vec![]
        },
        |f| f.retain(|name, _| !name.starts_with("dir/")),
    ),
    (
        "open for writing and write nothing",
        |m| vec![open_append(m, "remote"), OpenOptions::new().write(true).open(m.path("second")).unwrap()],
        |_| {},
    ),
    (
        "write, then set the old mtime",
        |m| {
            let file = OpenOptions::new().write(true).open(m.path("remote")).unwrap();
            let before = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(b"same size!!!", 0).unwrap();
            file.set_modified(before).unwrap();
            vec![file]
        },
        |f| set(f, "remote", "same size!!!"),
    ),
    (
        "rename of a file that is being written",
        |m| {
            let mut file = open_append(m, "remote");
            file.write_all(b"1").unwrap();
            fs::rename(m.path("remote"), m.path("renamed")).unwrap();
            file.write_all(b"2").unwrap();
            vec![file]
        },
        |f| {
            f.remove("remote");
            set(f, "renamed", "remote bytes12");
        },
    ),
];

#[test]
fn every_acknowledged_change_is_there_after_a_kill_and_reaches_the_bucket() {
    for lab in [Lab::s3 as fn() -> Lab, Lab::dir] {
        for cached in [false, true] {
            for (what, change, model) in CHANGES {
                let lab = lab();
                let what = format!("{what} (cached: {cached}, {})", &lab.source()[..4]);
                let mut expected = seeded(&lab);
                let machine = lab.machine();
                let mount = machine.mount();
                if cached {
                    check_mount(&mount, &expected, &what);
                }
                let open = change(&mount);
                model(&mut expected);
                mount.kill();
                drop(open);
                assert!(is_mounted(&machine.mountpoint()), "{what}: the dead mount is what mounting finds");
                let mount = machine.mount();
                check_mount(&mount, &expected, &what);
                // Opened again before the push: what was written before the crash still counts as a change.
                let again = OpenOptions::new().read(true).write(true).open(mount.path("second"));
                mount.flushed();
                check_bucket(&lab, &expected, &what);
                drop(again);
                assert_eq!(mount.status()["conflicts"], serde_json::json!([]), "{what}");
                assert_eq!(mount.unmount(), 0, "{what}");
                let elsewhere = lab.machine();
                check_mount(&elsewhere.mount(), &expected, &what);
            }
        }
    }
}

#[test]
fn what_was_written_before_a_kill_is_pushed_although_the_file_is_opened_again_first() {
    for writing_again in [false, true] {
        let lab = Lab::s3();
        let mut expected = seeded(&lab);
        let machine = lab.machine();
        let mount = machine.mount();
        let file = OpenOptions::new().write(true).open(mount.path("remote")).unwrap();
        file.write_all_at(b"BEFORE", 0).unwrap();
        mount.kill();
        drop(file);
        set(&mut expected, "remote", "BEFORE bytes");
        let mount = machine.mount();
        let open = OpenOptions::new().read(true).write(writing_again).open(mount.path("remote")).unwrap();
        mount.flushed();
        check_bucket(&lab, &expected, "while it is open");
        drop(open);
        // Opened and closed without a change, it is as clean as any other.
        drop(OpenOptions::new().write(true).open(mount.path("remote")).unwrap());
        assert_eq!(mount.unmount(), 0);
        check_bucket(&lab, &expected, "after the unmount");
    }
}

#[test]
fn names_modes_links_and_directories_survive_a_kill() {
    let lab = Lab::dir();
    seeded(&lab);
    let machine = lab.machine();
    let mount = machine.mount();
    fs::set_permissions(mount.path("remote"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir_all(mount.path("made/deep")).unwrap();
    symlink("remote", mount.path("link")).unwrap();
    mount.write("dir/.lock", "local");
    rustix::fs::setxattr(mount.path("remote"), "user.k", b"v", rustix::fs::XattrFlags::empty()).unwrap();
    mount.kill();
    let mount = machine.mount();
    assert_eq!(fs::metadata(mount.path("remote")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(fs::metadata(mount.path("made/deep")).unwrap().is_dir());
    assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new("remote"));
    assert_eq!(mount.read("dir/.lock"), "local");
    let mut value = [0; 4];
    assert_eq!(rustix::fs::getxattr(mount.path("remote"), "user.k", &mut value).unwrap(), 1);
    assert_eq!(mount.unmount(), 0);
    assert_eq!(lab.entries()["remote"]["mode"], "100755");
    assert_eq!(lab.entries()["link"]["mode"], "120000");
}

/// Where a push is killed.
type Point = (&'static str, fn(Gate) -> Fault);

fn index_fault(action: Action) -> Fault {
    Fault::on("PutObject", action).key(Lab::s3().index_key())
}

#[test]
fn a_kill_at_any_point_of_a_push_loses_nothing_and_makes_no_conflict() {
    let points: &[Point] = &[
        ("before a content arrives", |g| Fault::on("PutObject", Action::Hold(g)).key("remote")),
        ("after a content arrived", |g| Fault::on("PutObject", Action::HoldAnswer(g)).key("remote")),
        ("after a new content arrived", |g| Fault::on("PutObject", Action::HoldAnswer(g)).key("new")),
        ("before a copy", |g| Fault::on("CopyObject", Action::Hold(g)).key("renamed")),
        ("after a copy", |g| Fault::on("CopyObject", Action::HoldAnswer(g)).key("renamed")),
        ("before the index arrives", |g| index_fault(Action::Hold(g))),
        ("after the index arrived", |g| index_fault(Action::HoldAnswer(g))),
        ("before an object is deleted", |g| Fault::on("DeleteObject", Action::Hold(g)).key("second")),
        ("after an object was deleted", |g| Fault::on("DeleteObject", Action::HoldAnswer(g)).key("second")),
        ("while taking the lock", |g| Fault::on("PutObject", Action::HoldAnswer(g)).key(".datastore.lock")),
    ];
    for cached in [false, true] {
        for (what, fault) in points {
            let what = format!("{what} (cached: {cached})");
            let lab = Lab::s3();
            let mut expected = seeded(&lab);
            let machine = lab.machine();
            let mount = machine.mount();
            if cached {
                check_mount(&mount, &expected, &what);
            }
            mount.write("remote", "replaced");
            mount.write("new", "new");
            fs::rename(mount.path("dir/x"), mount.path("renamed")).unwrap();
            fs::remove_file(mount.path("second")).unwrap();
            set(&mut expected, "remote", "replaced");
            set(&mut expected, "new", "new");
            let x = expected.remove("dir/x").unwrap();
            expected.insert("renamed".into(), x);
            expected.remove("second");
            let gate = Gate::default();
            lab.server().inject(fault(gate.clone()));
            let mut flush = start_flush(&machine);
            gate.arrived_blocking(1);
            mount.kill();
            lab.server().clear_faults();
            gate.open();
            flush.wait().unwrap();
            // Another machine adds an entry in the meantime, with a plain write as the reference clients do.
            let theirs = "their new file";
            lab.seed(&[("theirs", theirs.as_bytes())]);
            set(&mut expected, "theirs", theirs);
            // The lock of the dead process is stale.
            lab.server().set_clock_offset(40);
            assert!(lab.object(lab.index_key()).is_some());
            let mount = machine.mount();
            check_mount(&mount, &expected, &what);
            mount.flushed();
            check_bucket(&lab, &expected, &what);
            assert_eq!(lab.object("dir/x"), None, "{what}");
            assert_eq!(lab.object("second"), None, "{what}");
            assert_eq!(mount.status()["conflicts"], serde_json::json!([]), "{what}");
            assert_eq!(mount.unmount(), 0, "{what}");
        }
    }
}

#[test]
fn a_copy_that_was_made_before_a_kill_is_found_again_although_its_origin_was_replaced() {
    for key in [Lab::s3().index_key(), "remote"] {
        let lab = Lab::s3();
        let mut expected = seeded(&lab);
        let machine = lab.machine();
        let mount = machine.mount();
        fs::rename(mount.path("remote"), mount.path("kept")).unwrap();
        mount.write("remote", "made again");
        let gate = Gate::default();
        lab.server().inject(Fault::on("PutObject", Action::HoldAnswer(gate.clone())).key(key));
        let mut flush = start_flush(&machine);
        gate.arrived_blocking(1);
        mount.kill();
        lab.server().clear_faults();
        gate.open();
        flush.wait().unwrap();
        lab.server().set_clock_offset(40);
        let bytes = expected.remove("remote").unwrap();
        expected.insert("kept".into(), bytes);
        set(&mut expected, "remote", "made again");
        let mount = machine.mount();
        mount.flushed();
        check_bucket(&lab, &expected, key);
        check_mount(&mount, &expected, key);
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn a_kill_during_a_fetch_leaves_no_wrong_bytes() {
    let lab = Lab::s3();
    let large: Vec<u8> = (0..(9u32 << 20)).map(|i| (i >> 8) as u8).collect();
    lab.seed(&[("large", &large), ("small", b"small")]);
    let machine = lab.machine();
    for name in ["large", "small"] {
        let mount = machine.mount();
        let gate = Gate::default();
        let skip = usize::from(name == "large");
        lab.server().inject(Fault::on("GetObject", Action::Hold(gate.clone())).key(name).skip(skip));
        let path = mount.path(name);
        let reader = std::thread::spawn(move || fs::read(path));
        gate.arrived_blocking(1);
        mount.kill();
        assert!(reader.join().unwrap().is_err(), "{name}");
        lab.server().clear_faults();
        gate.open();
        let mount = machine.mount();
        assert!(fs::read(mount.path(name)).unwrap() == if name == "large" { &large[..] } else { b"small" }, "{name}");
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn leftovers_are_listed_and_pushed_without_a_mount() {
    for lab in [Lab::s3(), Lab::dir()] {
        let mut expected = seeded(&lab);
        let machine = lab.machine();
        let mount = machine.mount();
        mount.write("new", "left behind");
        fs::remove_file(mount.path("second")).unwrap();
        set(&mut expected, "new", "left behind");
        expected.remove("second");
        mount.kill();
        let listed = machine.run(&["status", "--json"]);
        let report: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
        let leftovers = report["leftovers"].as_array().unwrap();
        assert_eq!(leftovers.len(), 1, "{report}");
        assert!(leftovers[0]["push_with"].as_str().unwrap().contains("flush"), "{report}");
        let flushed = machine.run(&["flush", &lab.source()]);
        assert!(flushed.status.success(), "{}", String::from_utf8_lossy(&flushed.stderr));
        check_bucket(&lab, &expected, "flush SOURCE");
        let report: serde_json::Value = serde_json::from_slice(&machine.run(&["status", "--json"]).stdout).unwrap();
        assert_eq!(report["leftovers"].as_array().unwrap().len(), 0, "{report}");
        let mount = machine.mount();
        check_mount(&mount, &expected, "mounted again");
        assert_eq!(mount.unmount(), 0);
    }
}
