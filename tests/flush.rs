//! Promise: what was written reaches the bucket by itself, on request and at every way to unmount: each content before its
//! entry, each entry gone before its object, and nothing that did not change.

mod support;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::mount::{Lab, Machine, Mount, entry, eventually};
use support::s3_server::{Action, Fault, Gate};

/// Whether the index names exactly these bytes for a file, and the object has them.
fn in_bucket(lab: &Lab, name: &str, bytes: &[u8]) -> bool {
    lab.object(lab.index_key()).is_some()
        && lab.entries().get(name).is_some_and(|e| e["sha256"] == entry(name, bytes)["sha256"])
        && lab.object(name).as_deref() == Some(bytes)
}

fn read_write(mount: &Mount<'_>, name: &str) -> fs::File {
    OpenOptions::new().read(true).write(true).open(mount.path(name)).expect("opened")
}

#[test]
fn what_is_left_alone_is_flushed_in_the_background() {
    for lab in Lab::each() {
        lab.seed(&[("old", b"old bytes"), ("gone", b"gone"), ("moved", b"moved")]);
        let machine = lab.machine();
        let mount = machine.mount_with(&["--refresh", "3600", "--flush-after", "1"]);
        mount.write("new", "new bytes");
        eventually("the new file", || in_bucket(&lab, "new", b"new bytes").then_some(()));
        fs::remove_file(mount.path("gone")).unwrap();
        fs::rename(mount.path("moved"), mount.path("moved to")).unwrap();
        eventually("the removal", || (lab.object("gone").is_none() && lab.object("moved").is_none()).then_some(()));
        assert!(in_bucket(&lab, "moved to", b"moved"));
        // A file that was open long before it is written.
        let file = read_write(&mount, "old");
        eventually("quiet", || (mount.status()["pending"]["files"] == 0).then_some(()));
        std::thread::sleep(Duration::from_millis(400));
        file.write_all_at(b"OLD", 0).unwrap();
        eventually("the write", || in_bucket(&lab, "old", b"OLD bytes").then_some(()));
        file.write_all_at(b"again", 4).unwrap();
        eventually("the next write", || in_bucket(&lab, "old", b"OLD again").then_some(()));
        eventually("nothing pending", || (mount.status()["pending"]["files"] == 0).then_some(()));
    }
}

#[test]
fn files_that_never_idle_are_flushed_from_time_to_time() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "2"]);
    let stop = AtomicBool::new(false);
    let stop = &stop;
    std::thread::scope(|scope| {
        let _stop_also_when_this_fails = OnDrop(|| stop.store(true, Ordering::Relaxed));
        scope.spawn(|| {
            let mut log = OpenOptions::new().append(true).create(true).open(mount.path("log")).unwrap();
            while !stop.load(Ordering::Relaxed) {
                log.write_all(b"a line\n").unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let began = Instant::now();
        let size = |lab: &Lab| lab.object("log").map(|b| b.len());
        let first = eventually("the first flush", || size(&lab).filter(|_| lab.object(lab.index_key()).is_some()));
        eventually("a later flush", || size(&lab).filter(|size| *size > first));
        let writes = lab.server().count("PutObject", lab.index_key()) as u64;
        let most = began.elapsed().as_secs() / 2 + 2;
        assert!(writes <= most, "{writes} index writes in {:?}", began.elapsed());
    });
    mount.flushed();
    assert!(in_bucket(&lab, "log", mount.read("log").as_bytes()));
    assert_eq!(mount.unmount(), 0);
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        self.0();
    }
}

type Ending = (&'static str, fn(&Machine<'_>, u32));

const ENDINGS: &[Ending] = &[
    ("umount", |machine, _| run(Command::new("umount").arg(machine.mountpoint()))),
    ("fusermount3 -u", |machine, _| run(Command::new("fusermount3").arg("-u").arg(machine.mountpoint()))),
    ("swamp-mount unmount", |machine, _| run(machine.command().arg("unmount").arg(machine.mountpoint()))),
    ("SIGTERM", |_, pid| signal(pid, libc::SIGTERM)),
    ("SIGINT", |_, pid| signal(pid, libc::SIGINT)),
    ("SIGHUP", |_, pid| signal(pid, libc::SIGHUP)),
];

fn run(command: &mut Command) {
    let output = command.output().expect("starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn signal(pid: u32, number: i32) {
    // SAFETY: plain system call; the process is a child that was not reaped yet.
    assert_eq!(unsafe { libc::kill(pid as i32, number) }, 0);
}

#[test]
fn every_way_to_unmount_brings_everything_to_the_bucket() {
    for (how, end) in ENDINGS {
        for lab in Lab::each() {
            if how.starts_with("fusermount3") && Command::new("fusermount3").arg("-V").output().is_err() {
                eprintln!("not tested, because it is not installed: {how}");
                continue;
            }
            lab.seed(&[("old", b"old"), ("gone", b"gone"), ("dir/x", b"x")]);
            let machine = lab.machine();
            let mount = machine.mount();
            mount.write("new/file", "new");
            mount.write("old", "changed");
            fs::remove_file(mount.path("gone")).unwrap();
            fs::rename(mount.path("dir"), mount.path("moved")).unwrap();
            end(&machine, mount.pid());
            assert_eq!(mount.wait(), Some(0), "{how}\n{}", machine.log());
            let mut names: Vec<String> = lab.entries().keys().cloned().collect();
            names.sort();
            assert_eq!(names, ["moved/x", "new/file", "old"], "{how}");
            for (name, bytes) in [("new/file", "new"), ("old", "changed"), ("moved/x", "x")] {
                assert!(in_bucket(&lab, name, bytes.as_bytes()), "{how}: {name}");
            }
            for name in ["gone", "dir/x", ".datastore.lock"] {
                assert_eq!(lab.object(name), None, "{how}: {name}");
            }
        }
    }
}

/// Positions in the server's record: the operation on the key, answered well.
fn position(lab: &Lab, operation: &str, key: &str) -> usize {
    let requests = lab.server().requests();
    let found = requests.iter().position(|r| r.operation == operation && r.key == key && r.status < Some(300));
    found.unwrap_or_else(|| panic!("{operation} {key} in {requests:?}"))
}

#[test]
fn contents_come_before_entries_and_entries_go_before_objects() {
    for lab in Lab::each_server() {
        lab.seed(&[("old", b"old"), ("gone", b"gone"), ("from", b"moved")]);
        let machine = lab.machine();
        let mount = machine.mount();
        mount.write("new", "new");
        mount.write("old", "changed");
        fs::remove_file(mount.path("gone")).unwrap();
        fs::rename(mount.path("from"), mount.path("to")).unwrap();
        lab.server().clear_requests();
        mount.flushed();
        let index = position(&lab, "PutObject", lab.index_key());
        for (operation, key) in [("PutObject", "new"), ("PutObject", "old"), ("CopyObject", "to")] {
            assert!(position(&lab, operation, key) < index, "{key}");
        }
        for key in ["gone", "from"] {
            assert!(position(&lab, "DeleteObject", key) > index, "{key}");
        }
        assert_eq!(lab.server().count("PutObject", lab.index_key()), 1);
        // All of it under the lock, which is gone afterwards.
        assert!(position(&lab, "PutObject", ".datastore.lock") < index);
        assert_eq!(lab.object(".datastore.lock"), None);
    }
}

/// What it is, what it does, and whether the index changes.
type Step = (&'static str, fn(&Mount<'_>), bool);

#[test]
fn what_did_not_change_is_not_pushed() {
    for lab in Lab::each_server() {
        lab.seed(&[("file", b"bytes"), ("twin", b"twin"), ("script", b"#!"), ("touched", b"t"), ("kept", b"kept")]);
        let machine = lab.machine();
        let mount = machine.mount();
        let changes: &[Step] = &[
            ("open for writing and close", |m| drop(read_write(m, "file")), false),
            ("read", |m| drop(m.read("file")), false),
            ("mkdir", |m| fs::create_dir(m.path("empty")).unwrap(), false),
            (
                "a new file that is removed again",
                |m| {
                    m.write("fleeting", "x");
                    fs::remove_file(m.path("fleeting")).unwrap();
                },
                false,
            ),
            ("chmod that changes no executable bit", |m| mode(m, "file", 0o600), false),
            (
                "there and back",
                |m| {
                    fs::rename(m.path("kept"), m.path("elsewhere")).unwrap();
                    fs::rename(m.path("elsewhere"), m.path("kept")).unwrap();
                },
                false,
            ),
            ("chmod +x of a file that is not here", |m| mode(m, "script", 0o755), true),
            ("the same bytes again", |m| m.write("twin", "twin"), true),
            ("touch", |m| read_write(m, "touched").set_modified(std::time::SystemTime::now()).unwrap(), true),
        ];
        for (what, change, entry_changes) in changes {
            change(&mount);
            lab.server().clear_requests();
            mount.flushed();
            let requests = lab.server().requests();
            let writes = |key: &str| requests.iter().filter(|r| r.operation == "PutObject" && r.key == key).count();
            assert_eq!(writes(lab.index_key()), usize::from(*entry_changes), "{what}");
            let contents: Vec<_> = requests
                .iter()
                .filter(|r| {
                    !matches!(r.operation, "GetObject" | "HeadObject" | "ListObjectsV2")
                        && !r.key.starts_with('.')
                        && !r.key.starts_with("_index/")
                })
                .collect();
            assert!(contents.is_empty(), "{what}: {contents:?}");
            assert_eq!(mount.status()["pending"]["files"], 0, "{what}");
        }
        assert_eq!(lab.server().count("GetObject", "script"), 0);
        assert_eq!(lab.entries()["script"]["mode"], "100755");
        assert_eq!(lab.entries()["script"]["sha256"], entry("script", b"#!")["sha256"]);
        assert_eq!(mount.unmount(), 0);
    }
}

fn mode(mount: &Mount<'_>, name: &str, mode: u32) {
    fs::set_permissions(mount.path(name), fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_file_that_is_written_while_it_is_uploaded_is_uploaded_again_and_no_index_names_torn_bytes() {
    for lab in Lab::each_server() {
        lab.seed(&[("file", b"original")]);
        let machine = lab.machine();
        let mount = machine.mount();
        mount.write("file", "first version");
        let (content, index) = (Gate::default(), Gate::default());
        lab.server().inject(Fault::on("PutObject", Action::Hold(content.clone())).key("file").times(1));
        lab.server().inject(Fault::on("PutObject", Action::HoldAnswer(index.clone())).key(lab.index_key()));
        std::thread::scope(|scope| {
            let flush = scope.spawn(|| mount.flushed());
            content.arrived_blocking(1);
            mount.write("file", "second, longer version");
            content.open();
            index.arrived_blocking(1);
            let bytes = lab.object("file").unwrap();
            assert!(in_bucket(&lab, "file", &bytes), "the first index that was written");
            index.open();
            flush.join().unwrap();
        });
        mount.flushed();
        assert!(in_bucket(&lab, "file", b"second, longer version"));
        // Removed, and renamed, while it is uploaded.
        for (name, to) in [("removed", None), ("renamed", Some("renamed to"))] {
            mount.write(name, "bytes");
            let gate = lab.server().hold("PutObject", name);
            std::thread::scope(|scope| {
                let flush = scope.spawn(|| mount.flushed());
                gate.arrived_blocking(1);
                match to {
                    Some(to) => fs::rename(mount.path(name), mount.path(to)).unwrap(),
                    None => fs::remove_file(mount.path(name)).unwrap(),
                }
                gate.open();
                flush.join().unwrap();
            });
            mount.flushed();
            assert_eq!((lab.object(name), lab.entries().get(name)), (None, None), "{name}");
            if let Some(to) = to {
                assert!(in_bucket(&lab, to, b"bytes"));
            }
        }
        assert_eq!(mount.status()["conflicts"], json!([]));
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn fsync_waits_for_the_bucket_when_asked_to() {
    for lab in Lab::each_server() {
        let machine = lab.machine();
        let mount = machine.mount_with(&["--refresh", "3600", "--flush-after", "3600", "--sync", "fsync"]);
        let mut file = fs::File::create(mount.path("file")).unwrap();
        file.write_all(b"durable").unwrap();
        assert_eq!(lab.object("file"), None);
        file.sync_all().unwrap();
        assert!(in_bucket(&lab, "file", b"durable"));
        file.write_all(b" twice").unwrap();
        file.sync_data().unwrap();
        assert!(in_bucket(&lab, "file", b"durable twice"));
        lab.server().inject(Fault::on("PutObject", Action::Status(403)));
        file.write_all(b"!").unwrap();
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
        lab.server().clear_faults();
        file.sync_all().unwrap();
        assert!(in_bucket(&lab, "file", b"durable twice!"));
    }
}

#[test]
fn two_thousand_small_files_take_one_index_write() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount();
    for i in 0..2000 {
        mount.write(&format!("d{}/f{i}", i % 20), format!("content {i}"));
    }
    mount.write("root", "at the root");
    mount.flushed();
    assert_eq!(lab.entries().len(), 2001);
    assert_eq!(lab.server().count("PutObject", lab.index_key()), 1);
    assert!(in_bucket(&lab, "d7/f1987", b"content 1987"));
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn what_is_not_ours_in_the_index_survives_and_what_never_belonged_there_goes() {
    for lab in Lab::each_server() {
        // This is about the monolith, also where the others are about shards.
        lab.remove_object("_index/_meta.json");
        for name in ["theirs", "ours", "chmod", "x/.lock", "data/t/id/f"] {
            lab.put_object(name, b"12345");
        }
        let with = |name: &str, more: Value| {
            let mut all = entry(name, b"12345");
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        let index = json!({"version": 1, "lastPulled": "2026-01-02T03:04:05.678Z", "futureField": {"a": [1, 2]}, "entries": {
            "theirs": with("theirs", json!({"owner": "somebody", "tags": ["x"]})),
            "chmod": with("chmod", json!({"owner": "me"})),
            "ours": entry("ours", b"12345"),
            "x/.lock": entry("x/.lock", b"12345"),
            "data/t/id/f": entry("data/t/id/f", b"12345"),
            "../odd": {"key": "../odd", "size": 1},
        }});
        lab.put_object(".datastore-index.json", index.to_string().as_bytes());
        let shard = json!({"version": 1, "entries": {"data/t/id/f": entry("data/t/id/f", b"12345")}});
        lab.put_object("_index/data--t--id.json", shard.to_string().as_bytes());
        let machine = lab.machine();
        let mount = machine.mount();
        mount.write("ours", "new bytes");
        mount.write("data/t/id/f", "changed");
        mount.write("data/t/id/g", "added");
        mode(&mount, "chmod", 0o755);
        mount.flushed();
        let written: Value = serde_json::from_slice(&lab.object(".datastore-index.json").unwrap()).unwrap();
        assert_eq!(written["futureField"], json!({"a": [1, 2]}));
        assert_eq!(written["entries"]["theirs"], index["entries"]["theirs"]);
        assert_eq!(written["entries"]["chmod"]["owner"], "me");
        assert_eq!(written["entries"]["../odd"], index["entries"]["../odd"]);
        assert!(written["entries"].get("x/.lock").is_none(), "scrubbed");
        assert_eq!(lab.object("x/.lock").unwrap(), b"12345", "the object is not ours to delete");
        let shard: Value = serde_json::from_slice(&lab.object("_index/data--t--id.json").unwrap()).unwrap();
        assert_eq!(shard["entries"]["data/t/id/f"], written["entries"]["data/t/id/f"]);
        assert_eq!(shard["entries"]["data/t/id/g"], written["entries"]["data/t/id/g"]);
        assert_eq!(lab.server().keys().iter().filter(|k| k.starts_with("_index/")).count(), 1, "none is made");
        assert_eq!(mount.unmount(), 0);
    }
}
