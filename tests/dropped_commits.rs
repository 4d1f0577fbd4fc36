//! Promise: what this machine pushed comes back when another client, which read the index before that and wrote it after,
//! dropped it; what others really replaced or removed stays as they left it.

mod support;

use serde_json::json;
use support::mount::{Lab, Mount, entry, eventually};

const OPTIONS: [&str; 4] = ["--refresh", "1", "--flush-after", "1"];

fn listed(lab: &Lab) -> Vec<String> {
    let mut names: Vec<String> = lab.entries().keys().cloned().collect();
    names.sort_unstable();
    names
}

fn describes(lab: &Lab, name: &str, bytes: &str) -> bool {
    lab.entries().get(name).is_some_and(|found| found["sha256"] == entry(name, bytes.as_bytes())["sha256"])
}

/// Waits until the mount has looked at the index a few times more.
fn refreshed(mount: &Mount<'_>) {
    for _ in 0..3 {
        let before = mount.status()["lastRefresh"].clone();
        eventually("a refresh", || (mount.status()["lastRefresh"] != before).then_some(()));
    }
}

#[test]
fn what_a_writer_with_an_old_view_dropped_comes_back() {
    for lab in Lab::each_server() {
        lab.seed(&[("old", b"old"), ("gone", b"gone"), ("dir/kept", b"kept")]);
        let machine = lab.machine();
        let mount = machine.mount_with(&OPTIONS);
        // A slow writer reads the index now.
        let mut view = lab.entries();
        mount.write("new", "new");
        mount.write("old", "changed");
        std::fs::remove_file(mount.path("gone")).unwrap();
        mount.flushed();
        assert_eq!(listed(&lab), ["dir/kept", "new", "old"]);
        // And writes it back with a file of its own.
        lab.put_object("theirs", b"theirs");
        view.insert("theirs".into(), entry("theirs", b"theirs"));
        lab.write_entries(view);
        let expected = ["dir/kept", "new", "old", "theirs"];
        eventually("our changes in the index", || {
            (listed(&lab) == expected && describes(&lab, "old", "changed")).then_some(())
        });
        eventually("their file", || (mount.files() == expected).then_some(()));
        assert_eq!((mount.read("new"), mount.read("old")), ("new".into(), "changed".into()), "{}", lab.kind());
        assert_eq!(mount.status()["conflicts"], json!([]));
        assert_eq!(mount.unmount(), 0);
        let second = lab.machine();
        let mount = second.mount();
        assert_eq!((mount.files(), mount.read("old")), (expected.map(str::to_owned).into(), "changed".into()));
    }
}

#[test]
fn what_others_replaced_or_removed_later_stays_as_they_left_it() {
    for lab in Lab::each_server() {
        lab.seed(&[("old", b"old"), ("gone", b"gone")]);
        let (first, second) = (lab.machine(), lab.machine());
        let ours = first.mount_with(&OPTIONS);
        ours.write("new", "new");
        ours.write("old", "changed");
        std::fs::remove_file(ours.path("gone")).unwrap();
        ours.flushed();
        let theirs = second.mount();
        theirs.write("old", "changed again");
        std::fs::remove_file(theirs.path("new")).unwrap();
        theirs.write("gone", "made again");
        theirs.flushed();
        eventually("their changes", || (ours.files() == ["gone", "old"]).then_some(()));
        refreshed(&ours);
        assert_eq!(listed(&lab), ["gone", "old"], "{}", lab.kind());
        assert_eq!((ours.read("old"), ours.read("gone")), ("changed again".into(), "made again".into()));
        assert_eq!(ours.status()["pending"]["files"], 0);
        assert_eq!((ours.unmount(), theirs.unmount()), (0, 0));
    }
}
