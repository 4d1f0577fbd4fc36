//! Promise: when two machines change the same name, both versions exist in the bucket afterwards, and both machines see both.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use support::mount::{Lab, Mount, entry, eventually};

/// Mounts that look at the bucket when they flush, or within a second.
const OPTIONS: &[&str] = &["--refresh", "1", "--flush-after", "3600", "--flush-max-age", "3600"];
const SLEEPY: &[&str] = &["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];

/// Files and contents of the bucket by its index, checked against the objects; conflict names end at `.conflict`.
fn bucket(lab: &Lab) -> Vec<(String, String)> {
    let mut found = BTreeMap::new();
    for (name, listed) in lab.entries() {
        let bytes = lab.object(&name).unwrap_or_else(|| panic!("{name} has no object"));
        assert_eq!(listed["sha256"], entry(&name, &bytes)["sha256"], "{name}");
        assert_eq!(listed["size"], bytes.len(), "{name}");
        found.insert(name, String::from_utf8(bytes).expect("text"));
    }
    found.into_iter().map(|(name, text)| (plain(&name), text)).collect()
}

/// `a.conflict-host-time.ext` as `a.conflict.ext`.
fn plain(name: &str) -> String {
    match name.split_once(".conflict-") {
        Some((stem, rest)) => {
            let ext = rest.split_once('.').map(|(_, ext)| format!(".{ext}")).unwrap_or_default();
            format!("{stem}.conflict{ext}")
        }
        None => name.to_owned(),
    }
}

fn shown(mount: &Mount<'_>) -> Vec<(String, String)> {
    mount.files().into_iter().map(|name| (plain(&name), mount.read(&name))).collect()
}

type Act = fn(&Mount<'_>);

/// A conflict: what A does and pushes, what B does at the same time and pushes later; what the bucket holds in the end.
struct Case {
    what: &'static str,
    a: Act,
    b: Act,
    end: &'static [(&'static str, &'static str)],
    /// Whether B's `status` tells of a conflict, where that does not depend on who looks first.
    told: Option<bool>,
}

fn write(mount: &Mount<'_>, name: &str, text: &str) {
    mount.write(name, text);
}

fn remove(mount: &Mount<'_>, name: &str) {
    fs::remove_file(mount.path(name)).expect("removed");
}

fn mv(mount: &Mount<'_>, from: &str, to: &str) {
    fs::rename(mount.path(from), mount.path(to)).expect("renamed");
}

const CASES: &[Case] = &[
    Case {
        what: "both edit",
        a: |m| write(m, "f.txt", "of A"),
        b: |m| write(m, "f.txt", "of B, longer"),
        end: &[("f.conflict.txt", "of B, longer"), ("f.txt", "of A"), ("g", "g")],
        told: Some(true),
    },
    Case {
        what: "both edit to the same size",
        a: |m| write(m, "f.txt", "AAAA"),
        b: |m| write(m, "f.txt", "BBBB"),
        end: &[("f.conflict.txt", "BBBB"), ("f.txt", "AAAA"), ("g", "g")],
        told: Some(true),
    },
    Case {
        what: "both make the same change",
        a: |m| write(m, "f.txt", "same"),
        b: |m| write(m, "f.txt", "same"),
        end: &[("f.txt", "same"), ("g", "g")],
        told: Some(false),
    },
    Case {
        what: "edit against delete",
        a: |m| write(m, "f.txt", "edited"),
        b: |m| remove(m, "f.txt"),
        end: &[("f.txt", "edited"), ("g", "g")],
        told: Some(true),
    },
    Case {
        what: "delete against edit",
        a: |m| remove(m, "f.txt"),
        b: |m| write(m, "f.txt", "edited"),
        end: &[("f.txt", "edited"), ("g", "g")],
        told: Some(false),
    },
    Case {
        what: "delete against the same bytes written again",
        a: |m| remove(m, "f.txt"),
        b: |m| write(m, "f.txt", "f"),
        end: &[("f.txt", "f"), ("g", "g")],
        told: Some(false),
    },
    Case {
        what: "delete against a change of attributes only",
        a: |m| remove(m, "f.txt"),
        b: |m| fs::set_permissions(m.path("f.txt"), fs::Permissions::from_mode(0o755)).expect("changed"),
        end: &[("g", "g")],
        told: Some(true),
    },
    Case {
        what: "edit against the same bytes written again",
        a: |m| write(m, "f.txt", "edited"),
        b: |m| write(m, "f.txt", "f"),
        end: &[("f.txt", "edited"), ("g", "g")],
        told: None,
    },
    Case {
        what: "edit against a change of attributes only",
        a: |m| write(m, "f.txt", "edited"),
        b: |m| fs::set_permissions(m.path("f.txt"), fs::Permissions::from_mode(0o755)).expect("changed"),
        end: &[("f.txt", "edited"), ("g", "g")],
        told: Some(true),
    },
    Case {
        what: "both delete",
        a: |m| remove(m, "f.txt"),
        b: |m| remove(m, "f.txt"),
        end: &[("g", "g")],
        told: Some(false),
    },
    Case {
        what: "both create",
        a: |m| write(m, "dir/new", "of A"),
        b: |m| write(m, "dir/new", "of B"),
        end: &[("dir/new", "of A"), ("dir/new.conflict", "of B"), ("f.txt", "f"), ("g", "g")],
        told: Some(true),
    },
    Case {
        what: "both create the same",
        a: |m| write(m, "new", "same"),
        b: |m| write(m, "new", "same"),
        end: &[("f.txt", "f"), ("g", "g"), ("new", "same")],
        told: Some(false),
    },
    Case {
        what: "rename against edit",
        a: |m| mv(m, "f.txt", "renamed"),
        b: |m| write(m, "f.txt", "edited"),
        end: &[("f.txt", "edited"), ("g", "g"), ("renamed", "f")],
        told: Some(false),
    },
    Case {
        what: "both rename to the same name",
        a: |m| mv(m, "f.txt", "renamed"),
        b: |m| mv(m, "g", "renamed"),
        end: &[("renamed", "f"), ("renamed.conflict", "g")],
        told: Some(true),
    },
    Case {
        what: "rename over what the other edited",
        a: |m| write(m, "g", "edited"),
        b: |m| mv(m, "f.txt", "g"),
        end: &[("g", "edited"), ("g.conflict", "f")],
        told: Some(true),
    },
    Case {
        what: "a remote directory where we have a file",
        a: |m| write(m, "name/below", "of A"),
        b: |m| write(m, "name", "of B"),
        end: &[("f.txt", "f"), ("g", "g"), ("name.conflict", "of B"), ("name/below", "of A")],
        told: None,
    },
];

/// B reads everything before (its cache knows the versions), or nothing; it looks at the bucket again before its push, or
/// only with it.
fn play(lab: fn() -> Lab, cached: bool, refreshes: bool) {
    for case in CASES {
        let lab = lab();
        let what = format!("{} (cached {cached}, refreshes {refreshes}, {})", case.what, &lab.source()[..4]);
        lab.seed(&[("f.txt", b"f"), ("g", b"g")]);
        let (one, two) = (lab.machine(), lab.machine());
        let a = one.mount_with(SLEEPY);
        let b = two.mount_with(if refreshes { OPTIONS } else { SLEEPY });
        if cached {
            shown(&b);
        }
        (case.b)(&b);
        (case.a)(&a);
        a.flushed();
        if refreshes {
            let index = a.status()["lastFlush"].as_str().unwrap().to_owned();
            eventually("the refresh", || (b.status()["lastRefresh"].as_str().unwrap() > &*index).then_some(()));
        }
        b.flushed();
        let end: Vec<(String, String)> = case.end.iter().map(|(n, t)| ((*n).to_owned(), (*t).to_owned())).collect();
        assert_eq!(bucket(&lab), end, "{what}");
        assert_eq!(shown(&b), end, "{what}: B");
        let conflicts = b.status()["conflicts"].as_array().unwrap().len();
        assert!(case.told.is_none_or(|told| told == (conflicts > 0)), "{what}: {}", b.status());
        if lab.source().starts_with("s3") {
            assert_eq!(lab.data_keys().len(), end.len(), "{what}: {:?}", lab.server().keys());
        }
        assert_eq!(b.unmount(), 0, "{what}");
        let b = two.mount();
        assert_eq!(shown(&b), end, "{what}: B, remounted");
        assert_eq!(a.unmount(), 0, "{what}");
        let a = one.mount();
        assert_eq!(shown(&a), end, "{what}: A, remounted");
        assert_eq!((a.unmount(), b.unmount()), (0, 0), "{what}");
        assert_eq!(bucket(&lab), end, "{what}: nothing is pushed twice");
    }
}

#[test]
fn both_versions_exist_when_the_second_never_read_the_files() {
    play(Lab::s3, false, false);
}

#[test]
fn both_versions_exist_when_the_second_knows_what_it_replaces() {
    play(Lab::s3, true, false);
}

#[test]
fn both_versions_exist_when_the_second_sees_the_other_change_before_its_push() {
    play(Lab::s3, true, true);
}

#[test]
fn both_versions_exist_in_a_directory_that_plays_the_bucket() {
    play(Lab::dir, false, false);
}

#[test]
fn both_rename_the_same_file_and_its_bytes_survive() {
    for cached in [false, true] {
        let lab = Lab::s3();
        lab.seed(&[("f", b"bytes")]);
        let (one, two) = (lab.machine(), lab.machine());
        let (a, b) = (one.mount_with(SLEEPY), two.mount_with(SLEEPY));
        if cached {
            shown(&b);
        }
        mv(&a, "f", "by A");
        mv(&b, "f", "by B");
        a.flushed();
        b.flushed();
        let names: Vec<String> = bucket(&lab).into_iter().map(|(n, _)| n).collect();
        assert!(names.contains(&"by A".to_owned()) && !names.contains(&"f".to_owned()), "{names:?}");
        assert_eq!(shown(&b), bucket(&lab));
        if cached {
            // B has the bytes itself.
            assert_eq!(names, ["by A", "by B"]);
        }
        assert_eq!((a.unmount(), b.unmount()), (0, 0));
    }
}

#[test]
fn a_file_that_one_edits_and_the_other_renames_keeps_its_edit() {
    for cached in [false, true] {
        let lab = Lab::s3();
        lab.seed(&[("f", b"bytes")]);
        let (one, two) = (lab.machine(), lab.machine());
        let (a, b) = (one.mount_with(SLEEPY), two.mount_with(SLEEPY));
        if cached {
            shown(&b);
        }
        write(&a, "f", "edited");
        mv(&b, "f", "renamed");
        a.flushed();
        b.flushed();
        let mut end = vec![("f".to_owned(), "edited".to_owned())];
        if cached {
            // B has the bytes that A replaced, so its rename is a second file.
            end.push(("renamed".to_owned(), "bytes".to_owned()));
        }
        assert_eq!(bucket(&lab), end);
        assert_eq!(shown(&b), end);
        assert!(!b.status()["conflicts"].as_array().unwrap().is_empty());
        assert_eq!((a.unmount(), b.unmount()), (0, 0));
    }
}

#[test]
fn a_remote_file_where_we_have_a_directory_is_reported_and_kept() {
    let lab = Lab::s3();
    lab.seed(&[("f", b"f")]);
    let (one, two) = (lab.machine(), lab.machine());
    let (a, b) = (one.mount_with(SLEEPY), two.mount_with(SLEEPY));
    write(&b, "name/below", "of B");
    write(&a, "name", "of A");
    a.flushed();
    b.flushed();
    assert_eq!(lab.object("name").unwrap(), b"of A");
    assert_eq!(lab.object("name/below").unwrap(), b"of B");
    assert!(lab.entries().contains_key("name") && lab.entries().contains_key("name/below"));
    assert_eq!(b.read("name/below"), "of B");
    assert_eq!(b.status()["hiddenCount"], 1, "{}", b.status());
    assert_eq!((a.unmount(), b.unmount()), (0, 0));
    for machine in [&one, &two] {
        let mount = machine.mount();
        assert_eq!(mount.files(), ["f", "name/below"]);
        assert_eq!(mount.status()["hiddenCount"], 1);
        assert_eq!(mount.unmount(), 0);
    }
    assert_eq!(lab.object("name").unwrap(), b"of A");
}

#[test]
fn unpushed_files_and_remote_names_that_clash_survive_a_kill_between() {
    // The clash arrives while nobody is mounted: the remount has to find room for both.
    let cases = [("name", "name/below"), ("name/below", "name")];
    for (ours, theirs) in cases {
        for refreshed in [false, true] {
            let lab = Lab::s3();
            lab.seed(&[("f", b"f")]);
            let machine = lab.machine();
            let mount = machine.mount_with(if refreshed { OPTIONS } else { SLEEPY });
            write(&mount, ours, "ours");
            lab.seed(&[(theirs, b"theirs")]);
            if refreshed {
                let hidden_or_shown = || mount.status()["entries"] == 2;
                eventually("the refresh", || hidden_or_shown().then_some(()));
            }
            mount.kill();
            for _ in 0..2 {
                // The second time the base in state.db holds the clash already.
                let mount = machine.mount();
                let texts: Vec<String> = shown(&mount).into_iter().map(|(_, text)| text).collect();
                assert!(texts.contains(&"ours".to_owned()), "{ours}: {:?}", mount.files());
                mount.kill();
            }
            let mount = machine.mount();
            mount.flushed();
            let texts: Vec<String> = bucket(&lab).into_iter().map(|(_, text)| text).collect();
            assert!(texts.contains(&"ours".to_owned()) && texts.contains(&"theirs".to_owned()), "{ours}: {texts:?}");
            assert_eq!(mount.unmount(), 0);
        }
    }
}

#[test]
fn what_a_removed_file_of_ours_hid_comes_into_view() {
    let lab = Lab::s3();
    lab.seed(&[("f", b"f")]);
    let machine = lab.machine();
    let mount = machine.mount_with(OPTIONS);
    write(&mount, "name", "ours");
    lab.seed(&[("name", b"theirs")]);
    eventually("the refresh", || (mount.status()["entries"] == 2).then_some(()));
    assert_eq!(mount.read("name"), "ours");
    remove(&mount, "name");
    assert_eq!(mount.read("name"), "theirs");
    assert_eq!(mount.files(), ["f", "name"]);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_reference_client_that_overwrites_us_wins_and_we_see_it() {
    let lab = Lab::s3();
    lab.seed(&[("f", b"first")]);
    let machine = lab.machine();
    let mount = machine.mount_with(OPTIONS);
    write(&mount, "f", "ours");
    mount.flushed();
    lab.seed(&[("f", b"reference")]);
    eventually("theirs", || (mount.read("f") == "reference").then_some(()));
    // And the other way round: pushed by it before us, seen by us only with our push.
    write(&mount, "g", "of ours");
    lab.seed(&[("g", b"of the reference")]);
    mount.flushed();
    let end = bucket(&lab);
    let wanted = [("f", "reference"), ("g", "of the reference"), ("g.conflict", "of ours")];
    assert_eq!(end, wanted.map(|(n, t)| (n.to_owned(), t.to_owned())));
    assert!(Path::new(&mount.path("g")).exists());
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_file_that_is_open_for_writing_goes_on_under_its_conflict_name() {
    use std::io::Write;
    let lab = Lab::s3();
    lab.seed(&[("f", b"first")]);
    let machine = lab.machine();
    let mount = machine.mount_with(SLEEPY);
    let mut file = fs::OpenOptions::new().append(true).open(mount.path("f")).unwrap();
    file.write_all(b" and ours").unwrap();
    lab.seed(&[("f", b"theirs instead")]);
    mount.flushed();
    file.write_all(b", written after the conflict").unwrap();
    drop(file);
    mount.flushed();
    let end = [("f", "theirs instead"), ("f.conflict", "first and ours, written after the conflict")];
    assert_eq!(bucket(&lab), end.map(|(n, t)| (n.to_owned(), t.to_owned())));
    assert_eq!(shown(&mount), bucket(&lab));
    assert_eq!(mount.unmount(), 0);
}
