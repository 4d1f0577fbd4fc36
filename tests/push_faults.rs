//! Promise: whatever the bucket does during a push, writes to the mount go on, nothing of anybody is lost, and the push
//! heals as soon as the bucket does.

mod support;

use std::fs;
use std::time::Duration;

use serde_json::json;
use support::mount::{Lab, Mount, entry, eventually};
use support::s3_server::{Action, Fault, Gate};

fn in_bucket(lab: &Lab, name: &str, bytes: &[u8]) -> bool {
    lab.object(lab.index_key()).is_some()
        && lab.entries().get(name).is_some_and(|e| e["sha256"] == entry(name, bytes)["sha256"])
        && lab.object(name).as_deref() == Some(bytes)
}

/// A bit of everything that a push does.
fn change(mount: &Mount<'_>) {
    mount.write("new", "new");
    mount.write("old", "changed");
    fs::remove_file(mount.path("gone")).unwrap();
    fs::rename(mount.path("from"), mount.path("to")).unwrap();
}

fn seed(lab: &Lab) {
    lab.seed(&[("old", b"old"), ("gone", b"gone"), ("from", b"moved")]);
}

fn check(lab: &Lab, what: &str) {
    let mut names: Vec<String> = lab.entries().keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["new", "old", "to"], "{what}");
    for (name, bytes) in [("new", "new"), ("old", "changed"), ("to", "moved")] {
        assert!(in_bucket(lab, name, bytes.as_bytes()), "{what}: {name}");
    }
    assert_eq!(lab.data_keys(), ["new", "old", "to"], "{what}: objects");
}

#[test]
fn a_failing_bucket_fails_no_write_and_heals() {
    for lab in Lab::each_server() {
        seed(&lab);
        let machine = lab.machine();
        let mount = machine.mount_with(&["--refresh", "3600", "--flush-after", "1"]);
        lab.server().inject(Fault::any(Action::Status(503)));
        change(&mount);
        let status = eventually("an error in status", || {
            let status = mount.status();
            (!status["lastError"].is_null()).then_some(status)
        });
        assert_eq!(status["pending"]["files"], 3);
        assert_eq!(status["pending"]["removals"], 2);
        assert_eq!(status["pending"]["bytes"], "newchanged".len());
        assert!(status["lastError"]["message"].as_str().unwrap().contains("503"), "{status}");
        mount.write("later", "still writable");
        fs::remove_file(mount.path("later")).unwrap();
        lab.server().clear_faults();
        eventually("the push", || {
            (mount.status()["pending"] == json!({"files":0,"bytes":0,"removals":0,"uploadedBytes":0})).then_some(())
        });
        check(&lab, "healed");
        assert!(mount.status()["lastError"].is_null());
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn an_unmount_that_cannot_push_says_so_and_keeps_the_data() {
    for lab in Lab::each_server() {
        seed(&lab);
        let machine = lab.machine();
        let mount = machine.mount();
        change(&mount);
        lab.server().inject(Fault::any(Action::Status(403)));
        let path = machine.mountpoint();
        let output = machine.run(&["unmount", path.to_str().unwrap(), "--timeout", "20"]);
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("flush") && text.contains("403"), "{text}");
        assert_eq!(mount.wait(), Some(3));
        lab.server().clear_faults();
        assert!(machine.run(&["flush", &lab.source()]).status.success());
        check(&lab, "flushed afterwards");
    }
}

/// Whether a file is in the index with these bytes, within the time that a test waits for anything.
fn arrives(lab: &Lab, name: &str, bytes: &[u8]) {
    eventually(name, || in_bucket(lab, name, bytes).then_some(()));
}

fn is_listed(lab: &Lab, name: &str) -> bool {
    lab.object(lab.index_key()).is_some() && lab.entries().contains_key(name)
}

#[test]
fn one_stuck_upload_holds_up_no_other() {
    for lab in Lab::each_server() {
        let machine = lab.machine();
        let mount = machine.mount();
        let gate = lab.server().hold("PutObject", "stuck");
        for i in 0..40 {
            mount.write(&format!("f{i}"), format!("{i}"));
        }
        mount.write("stuck", "late");
        std::thread::scope(|scope| {
            let flush = scope.spawn(|| mount.flushed());
            gate.arrived_blocking(1);
            // Not only their objects: without an entry nobody sees them.
            for i in 0..40 {
                arrives(&lab, &format!("f{i}"), format!("{i}").as_bytes());
            }
            assert!(!is_listed(&lab, "stuck") && lab.object("stuck").is_none());
            eventually("their settling", || (mount.status()["pending"]["files"] == 1).then_some(()));
            // The mount works on, and what is written meanwhile is not held up either.
            mount.write("meanwhile", "written");
            assert_eq!(mount.read("f7"), "7");
            let second = scope.spawn(|| mount.flushed());
            arrives(&lab, "meanwhile", b"written");
            assert!(!flush.is_finished() && !second.is_finished(), "a flush waits for everything");
            gate.open();
            flush.join().unwrap();
            second.join().unwrap();
        });
        assert!(in_bucket(&lab, "stuck", b"late"));
        assert_eq!(lab.entries().len(), 42);
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn whatever_is_stuck_the_background_flush_goes_on() {
    // An upload, a copy of a renamed file, and the look at an object that is replaced without having been read.
    for (operation, key) in [("PutObject", "new"), ("CopyObject", "to"), ("HeadObject", "old")] {
        std::thread::scope(|scope| {
            for lab in Lab::each_server() {
                scope.spawn(move || goes_on(&lab, operation, key));
            }
        });
    }
}

fn goes_on(lab: &Lab, operation: &str, key: &str) {
    let what = format!("{} {operation} {key}", lab.kind());
    seed(lab);
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "3600", "--flush-after", "0.2"]);
    let gate = lab.server().hold(operation, key);
    change(&mount);
    gate.arrived_blocking(1);
    for (name, bytes) in [("new", "new"), ("old", "changed"), ("to", "moved")] {
        if name != key {
            arrives(lab, name, bytes.as_bytes());
        }
    }
    eventually("the removal", || (!is_listed(lab, "gone") && lab.object("gone").is_none()).then_some(()));
    mount.write("later", "written later");
    arrives(lab, "later", b"written later");
    if key == "to" {
        // Its source stays, also when another file has the name, which waits for it.
        mount.write("from", "another");
        mount.write("last", "last");
        arrives(lab, "last", b"last");
        assert_eq!(lab.object("from").as_deref(), Some(&b"moved"[..]), "{what}");
    } else {
        // Renamed while it is under way: the bytes go on to the new name, and nothing of the old one stays.
        fs::rename(mount.path(key), mount.path("renamed")).unwrap();
        arrives(lab, "renamed", if key == "new" { b"new" } else { b"changed" });
    }
    gate.open();
    mount.flushed();
    let mut names: Vec<String> = lab.entries().keys().cloned().collect();
    names.sort();
    assert_eq!(names, mount.files(), "{what}");
    assert_eq!(lab.data_keys(), names, "{what}: objects");
    for name in &names {
        assert_eq!(lab.object(name), fs::read(mount.path(name)).ok(), "{what}: {name}");
        assert!(in_bucket(lab, name, &lab.object(name).unwrap()), "{what}: {name}");
    }
    assert_eq!(mount.status()["conflicts"], json!([]), "{what}");
    assert_eq!(mount.unmount(), 0, "{what}");
}

#[test]
fn stuck_uploads_leave_room_for_others_however_few_may_run_at_a_time() {
    let lab = Lab::s3();
    lab.seed(&[("old-0", b"never read"), ("old-1", b"never read")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "3600", "--flush-after", "0.2", "--upload-concurrency", "2"]);
    let gates = ["stuck-0", "stuck-1"].map(|name| lab.server().hold("PutObject", name));
    mount.write("stuck-0", "late");
    mount.write("stuck-1", "late");
    gates.iter().for_each(|gate| gate.arrived_blocking(1));
    for n in 0..10 {
        mount.write(&format!("f{n}"), format!("{n}"));
    }
    mount.write("old-0", "changed");
    mount.write("old-1", "changed");
    for n in 0..10 {
        arrives(&lab, &format!("f{n}"), format!("{n}").as_bytes());
    }
    arrives(&lab, "old-0", b"changed");
    arrives(&lab, "old-1", b"changed");
    assert!(!is_listed(&lab, "stuck-0") && !is_listed(&lab, "stuck-1"));
    gates.iter().for_each(Gate::open);
    mount.flushed();
    assert_eq!(lab.entries().len(), 14);
    assert_eq!(mount.status()["conflicts"], json!([]));
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn an_unmount_with_a_dead_network_ends_in_its_time_and_keeps_everything() {
    for lab in Lab::each_server() {
        seed(&lab);
        let machine = lab.machine();
        // Requests may take half a minute, three times.
        let mount = machine.mount();
        change(&mount);
        lab.server().inject(Fault::any(Action::Stall));
        let began = std::time::Instant::now();
        let path = machine.mountpoint();
        let output = machine.run(&["unmount", path.to_str().unwrap(), "--timeout", "3"]);
        assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(mount.wait(), Some(3));
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        lab.server().clear_faults();
        assert!(machine.run(&["flush", &lab.source()]).status.success());
        check(&lab, "flushed afterwards");
    }
}

#[test]
fn a_file_that_fails_does_not_keep_the_others_from_the_bucket() {
    for lab in Lab::each_server() {
        seed(&lab);
        let machine = lab.machine();
        let mount = machine.mount();
        lab.server().inject(Fault::on("PutObject", Action::Status(400)).key("refused"));
        mount.write("refused", "refused");
        change(&mount);
        let output = mount.flush();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("refused"), "{output:?}");
        check(&lab, "all but one");
        assert_eq!(mount.status()["pending"]["files"], 1);
        lab.server().clear_faults();
        mount.flushed();
        assert!(in_bucket(&lab, "refused", b"refused"));
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn answers_that_get_lost_are_no_conflicts() {
    let index = Lab::s3().index_key();
    let points = [
        ("PutObject", "new"),
        ("PutObject", "old"),
        ("PutObject", index),
        ("PutObject", ".datastore.lock"),
        ("CopyObject", "to"),
        ("DeleteObject", "gone"),
        ("DeleteObject", ".datastore.lock"),
        ("GetObject", index),
        ("HeadObject", "old"),
    ];
    for cached in [false, true] {
        for (operation, key) in points {
            for action in [Action::LoseAnswer, Action::StatusAfterEffect(500)] {
                std::thread::scope(|scope| {
                    for lab in Lab::each_server() {
                        let fault = Fault::on(operation, action.clone()).key(key).times(1);
                        let what = format!("{} {operation} {key} {action:?} (cached: {cached})", lab.kind());
                        scope.spawn(move || lose_an_answer(&lab, cached, fault, &what));
                    }
                });
            }
        }
    }
}

fn lose_an_answer(lab: &Lab, cached: bool, fault: Fault, what: &str) {
    seed(lab);
    let machine = lab.machine();
    let mount = machine.mount();
    if cached {
        mount.files().iter().for_each(|name| drop(mount.read(name)));
    }
    change(&mount);
    lab.server().inject(fault);
    let output = mount.flush();
    if !output.status.success() {
        // An error is honest; what counts is that the next one ends it, without the dead lock's time.
        lab.server().set_clock_offset(60);
        mount.flushed();
    }
    lab.server().set_clock_offset(60);
    mount.flushed();
    lab.server().remove(".datastore.lock");
    check(lab, what);
    assert_eq!(mount.status()["conflicts"], json!([]), "{what}");
    assert_eq!(mount.unmount(), 0, "{what}");
}

#[test]
fn a_store_that_ignores_conditions_makes_the_mount_read_only_until_the_user_waives_them() {
    for lab in Lab::each_server() {
        seed(&lab);
        let machine = lab.machine();
        lab.server().inject(Fault::any(Action::IgnoreConditions));
        let mount = machine.mount();
        change(&mount);
        let before = lab.server().keys();
        let output = mount.flush();
        assert_eq!(output.status.code(), Some(1));
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains("--unsafe-no-conditional-writes"), "{message}");
        let status = mount.status();
        assert!(status["readOnlyReason"].as_str().unwrap().contains("condition"), "{status}");
        assert_eq!(fs::write(mount.path("more"), b"x").unwrap_err().raw_os_error(), Some(libc::EROFS));
        assert_eq!(mount.read("old"), "changed");
        assert_eq!(lab.server().keys(), before, "nothing was pushed");
        assert_eq!(mount.unmount(), 3);
        let mount =
            machine.mount_with(&["--unsafe-no-conditional-writes", "--flush-after", "3600", "--refresh", "3600"]);
        assert_eq!(mount.read("to"), "moved");
        mount.write("more", "x");
        fs::remove_file(mount.path("more")).unwrap();
        mount.flushed();
        check(&lab, "waived");
        assert!(machine.log().contains("ignores conditional writes"), "{}", machine.log());
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn another_writer_between_read_and_write_back_loses_nothing() {
    for lab in Lab::each_server() {
        seed(&lab);
        let machine = lab.machine();
        let mount = machine.mount();
        change(&mount);
        let gate = Gate::default();
        lab.server().inject(Fault::on("PutObject", Action::Hold(gate.clone())).key(lab.index_key()).times(1));
        std::thread::scope(|scope| {
            let flush = scope.spawn(|| mount.flushed());
            gate.arrived_blocking(1);
            // A reference client without the lock: another file, and a plain write of its index.
            lab.seed(&[("theirs", b"their bytes")]);
            gate.open();
            flush.join().unwrap();
        });
        assert!(in_bucket(&lab, "theirs", b"their bytes"));
        lab.server().remove("theirs");
        let mut entries = lab.entries();
        entries.remove("theirs");
        lab.write_entries(entries);
        check(&lab, "ours");
        assert_eq!(mount.read("new"), "new");
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn a_slow_copy_of_a_chain_of_renames_is_not_overtaken() {
    // Only the first rename is due for the background flush; the others copy from what it replaces.
    let lab = Lab::s3();
    lab.seed(&[("a", b"a"), ("b", b"b"), ("c", b"c")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "3600", "--flush-after", "2"]);
    fs::rename(mount.path("c"), mount.path("d")).unwrap();
    fs::rename(mount.path("b"), mount.path("c")).unwrap();
    fs::rename(mount.path("a"), mount.path("b")).unwrap();
    // What came last is touched again and again, so that it never idles.
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(5) {
        for (name, mode) in [("c", 0o755), ("c", 0o644), ("d", 0o755), ("d", 0o644)] {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(mount.path(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        std::thread::sleep(Duration::from_millis(700));
    }
    mount.flushed();
    for (name, bytes) in [("b", "a"), ("c", "b"), ("d", "c")] {
        assert!(in_bucket(&lab, name, bytes.as_bytes()), "{name}");
        assert_eq!(mount.read(name), bytes);
    }
    assert_eq!(lab.object("a"), None);
    assert_eq!(mount.status()["conflicts"], json!([]));
    assert_eq!(mount.unmount(), 0);
}
