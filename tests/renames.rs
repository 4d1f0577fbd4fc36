//! Promise: renames of files and directories, cached or not, reach the bucket as copies within it; only names move.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use support::mount::{Lab, Mount};

const LONG: usize = 5 << 20;

/// Files of the bucket at first: name, content.
fn seed() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> =
        ["a", "b", "c", "dir/x", "dir/y", "dir/sub/z", "other/p", "other/x"].map(|n| (n.into(), n.into())).into();
    files.push(("large".into(), vec![7; LONG]));
    files
}

fn rename_with(mount: &Mount<'_>, from: &str, to: &str, flags: RenameFlags) -> Result<(), rustix::io::Errno> {
    renameat_with(CWD, mount.path(from), CWD, mount.path(to), flags)
}

fn mv(mount: &Mount<'_>, from: &str, to: &str) {
    fs::rename(mount.path(from), mount.path(to)).unwrap_or_else(|e| panic!("{from} → {to}: {e}"));
}

fn swap(mount: &Mount<'_>, a: &str, b: &str) {
    rename_with(mount, a, b, RenameFlags::EXCHANGE).unwrap_or_else(|e| panic!("{a} ↔ {b}: {e}"));
}

type Model = BTreeMap<String, Vec<u8>>;

/// Moves whatever is at or below a name.
fn model_mv(model: &mut Model, from: &str, to: &str) {
    let below = |name: &str, dir: &str| name == dir || name.starts_with(&format!("{dir}/"));
    model.retain(|name, _| !below(name, to));
    let names: Vec<String> = model.keys().filter(|name| below(name, from)).cloned().collect();
    for name in names {
        let bytes = model.remove(&name).unwrap();
        model.insert(format!("{to}{}", &name[from.len()..]), bytes);
    }
}

fn model_swap(model: &mut Model, a: &str, b: &str) {
    model_mv(model, a, "\u{1}");
    model_mv(model, b, a);
    model_mv(model, "\u{1}", b);
}

enum Step {
    Mv(&'static str, &'static str),
    Swap(&'static str, &'static str),
    Write(&'static str, &'static str),
    Append(&'static str, &'static str),
    Remove(&'static str),
    Flush,
}
use Step::*;

/// What is done; whether that takes no data out of a bucket whose files are not cached.
const STORIES: &[(&str, &[Step], bool)] = &[
    ("a file", &[Mv("a", "new")], true),
    ("a large file", &[Mv("large", "dir/large")], true),
    ("over another", &[Mv("a", "b")], true),
    ("a chain", &[Mv("c", "d"), Mv("b", "c"), Mv("a", "b")], true),
    ("the same file twice", &[Mv("a", "q"), Mv("q", "r")], true),
    ("the same file twice, pushed between", &[Mv("a", "q"), Flush, Mv("q", "r")], true),
    ("back", &[Mv("a", "q"), Mv("q", "a")], true),
    ("back after a push", &[Mv("a", "q"), Flush, Mv("q", "a")], true),
    ("and the old name made again", &[Mv("a", "q"), Write("a", "second")], true),
    ("and the old name made again, then that renamed", &[Mv("a", "q"), Write("a", "second"), Mv("a", "r")], true),
    ("through a temporary name", &[Mv("a", "tmp"), Mv("b", "a"), Mv("tmp", "b")], false),
    ("in a circle of three", &[Mv("a", "tmp"), Mv("b", "a"), Mv("c", "b"), Mv("tmp", "c")], false),
    ("exchange of files", &[Swap("a", "b")], false),
    ("exchange twice", &[Swap("a", "b"), Swap("a", "b")], true),
    ("exchange of directories", &[Swap("dir", "other")], false),
    ("exchange of file and directory", &[Swap("a", "dir")], true),
    ("exchange of new and old", &[Write("n", "new"), Swap("n", "a")], true),
    ("a directory", &[Mv("dir", "moved")], true),
    ("a directory into another", &[Mv("dir", "other/dir")], true),
    ("a directory after its child", &[Mv("dir/x", "dir/x2"), Mv("dir", "moved"), Mv("moved/sub", "sub")], true),
    ("a directory and back", &[Mv("dir", "moved"), Mv("moved", "dir")], true),
    ("a directory with changes", &[Append("dir/x", "+"), Write("dir/n", "n"), Remove("dir/y"), Mv("dir", "m")], false),
    ("then written", &[Mv("a", "q"), Append("q", "+")], false),
    ("then removed", &[Mv("a", "q"), Remove("q")], true),
    ("a removed name reused", &[Remove("b"), Mv("a", "b")], true),
    ("editor: write beside and rename over", &[Write("a.tmp", "edited"), Mv("a.tmp", "a")], true),
    ("editor with a backup", &[Mv("a", "a~"), Write("a.tmp", "edited"), Mv("a.tmp", "a")], true),
    ("over a file that was renamed", &[Mv("a", "q"), Mv("b", "a"), Mv("a", "q")], true),
    ("a dirty file over a remote one, then both away", &[Append("a", "+"), Mv("a", "b"), Mv("b", "dir/b")], false),
];

fn tell(model: &mut Model, step: &Step) {
    match step {
        Mv(from, to) => model_mv(model, from, to),
        Swap(a, b) => model_swap(model, a, b),
        Write(name, text) => drop(model.insert((*name).into(), text.as_bytes().into())),
        Append(name, text) => model.get_mut(*name).unwrap().extend_from_slice(text.as_bytes()),
        Remove(name) => drop(model.remove(*name)),
        Flush => {}
    }
}

fn act(mount: &Mount<'_>, step: &Step) {
    match step {
        Mv(from, to) => mv(mount, from, to),
        Swap(a, b) => swap(mount, a, b),
        Write(name, text) => mount.write(name, text),
        Append(name, text) => {
            use std::io::Write;
            fs::OpenOptions::new().append(true).open(mount.path(name)).unwrap().write_all(text.as_bytes()).unwrap();
        }
        Remove(name) => fs::remove_file(mount.path(name)).unwrap(),
        Flush => mount.flushed(),
    }
}

fn check_mount(mount: &Mount<'_>, model: &Model, what: &str) {
    assert_eq!(mount.files(), model.keys().cloned().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in model {
        assert!(&fs::read(mount.path(name)).unwrap() == bytes, "{what}: {name}");
    }
}

/// Every story on its own bucket, with files that are cached or not; checked before the push, in the bucket, after a
/// remount before the push, and on another machine.
fn play(lab: &dyn Fn() -> Lab, cached: bool) {
    let is_s3 = lab().source().starts_with("s3");
    for (what, steps, without_data) in STORIES {
        let what = format!("{what} (cached: {cached}, s3: {is_s3})");
        let lab = lab();
        let files = seed();
        lab.seed(&files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect::<Vec<_>>());
        let mut model: Model = files.into_iter().collect();
        let machine = lab.machine();
        let mount = machine.mount();
        if cached {
            check_mount(&mount, &model, &what);
        }
        if is_s3 {
            lab.server().clear_requests();
        }
        for step in *steps {
            act(&mount, step);
            tell(&mut model, step);
        }
        let expected: Vec<String> = model.keys().cloned().collect();
        assert_eq!(mount.files(), expected, "{what}");
        mount.flushed();
        if is_s3 && !cached && *without_data {
            let requests = lab.server().requests();
            let data: Vec<_> =
                requests.iter().filter(|r| r.operation == "GetObject" && !r.key.starts_with(['.', '_'])).collect();
            assert!(data.is_empty(), "{what}: {data:?}");
        }
        let entries = lab.entries();
        let mut listed: Vec<String> = entries.keys().cloned().collect();
        listed.sort();
        assert_eq!(listed, expected, "{what}: the index");
        for (name, bytes) in &model {
            assert!(lab.object(name).as_ref() == Some(bytes), "{what}: {name} in the bucket");
            assert_eq!(entries[name]["size"], bytes.len(), "{what}: {name}");
            assert_eq!(entries[name]["sha256"], support::mount::entry(name, bytes)["sha256"], "{what}: {name}");
        }
        if is_s3 {
            assert_eq!(lab.data_keys(), expected, "{what}: objects");
        }
        check_mount(&mount, &model, &what);
        assert_eq!(mount.status()["conflicts"], serde_json::json!([]), "{what}");
        assert_eq!(mount.unmount(), 0, "{what}");
        let mount = machine.mount();
        check_mount(&mount, &model, &format!("{what}, remounted"));
        assert_eq!(mount.unmount(), 0, "{what}");
    }
}

#[test]
fn renames_of_files_that_only_the_bucket_has() {
    play(&Lab::s3, false);
}

#[test]
fn renames_of_cached_files() {
    play(&Lab::s3, true);
}

#[test]
fn renames_in_a_directory_that_plays_the_bucket() {
    play(&Lab::dir, false);
}

#[test]
fn renames_before_a_push_survive_the_death_of_the_daemon() {
    for (what, steps, _) in STORIES.iter().filter(|(_, steps, _)| !steps.iter().any(|s| matches!(s, Flush))) {
        let lab = Lab::dir();
        let files = seed();
        lab.seed(&files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect::<Vec<_>>());
        let mut model: Model = files.into_iter().collect();
        let machine = lab.machine();
        let mount = machine.mount();
        for step in *steps {
            act(&mount, step);
            tell(&mut model, step);
        }
        mount.kill();
        let mount = machine.mount();
        check_mount(&mount, &model, what);
        assert_eq!(mount.unmount(), 0, "{what}");
        for (name, bytes) in &model {
            assert!(lab.object(name).as_ref() == Some(bytes), "{what}: {name} in the bucket");
        }
        assert_eq!(lab.entries().len(), model.len(), "{what}");
    }
}

#[test]
fn what_cannot_be_renamed_is_refused_and_nothing_moves() {
    let lab = Lab::dir();
    let files = seed();
    lab.seed(&files.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect::<Vec<_>>());
    let machine = lab.machine();
    let mount = machine.mount();
    mount.write("data/_catalog.db", b"local");
    fs::create_dir(mount.path("empty")).unwrap();
    // The deepest name still fits below "dir", and does not below a longer name.
    let deep = format!("deep/{0}/{0}/{0}/{1}", "d".repeat(250), "e".repeat(200));
    mount.write(&format!("{deep}/f"), b"deep");
    let long = "n".repeat(255);
    let (plain, no_replace) = (RenameFlags::empty(), RenameFlags::NOREPLACE);
    let refused: &[(&str, &str, RenameFlags, i32)] = &[
        ("a", "b", no_replace, libc::EEXIST),
        ("dir", "empty", no_replace, libc::EEXIST),
        ("a", "none", RenameFlags::EXCHANGE, libc::ENOENT),
        ("none", "a", plain, libc::ENOENT),
        ("a", "dir", plain, libc::EISDIR),
        ("dir", "a", plain, libc::ENOTDIR),
        ("other", "dir", plain, libc::ENOTEMPTY),
        ("dir", "dir/sub/dir", plain, libc::EINVAL),
        ("dir/sub", "dir", RenameFlags::EXCHANGE, libc::EINVAL),
        ("a", "dir/.lock", plain, libc::EXDEV),
        ("a", ".datastore.lock", plain, libc::EXDEV),
        ("data/_catalog.db", "data/x", plain, libc::EXDEV),
        ("data/_catalog.db", "a", RenameFlags::EXCHANGE, libc::EXDEV),
        ("a", "_index", plain, libc::EPERM),
        ("dir", "_control", plain, libc::EPERM),
        ("deep", &long, plain, libc::ENAMETOOLONG),
    ];
    let before = mount.files();
    for (from, to, flags, errno) in refused {
        let result = rename_with(&mount, from, to, *flags);
        assert_eq!(result.map_err(|e| e.raw_os_error()), Err(*errno), "{from} → {to}");
    }
    assert_eq!(mount.files(), before);
    // These are no offence.
    rename_with(&mount, "a", "free", no_replace).unwrap();
    rename_with(&mount, "dir", "empty", plain).unwrap();
    mv(&mount, "data/_catalog.db", "data/_catalog.db-old");
    mv(&mount, "b", "b");
    assert!(!Path::new(&mount.path("dir")).exists());
    assert_eq!(mount.read("empty/sub/z"), "dir/sub/z");
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn an_open_file_is_followed_through_renames() {
    use std::os::unix::fs::FileExt;
    let lab = Lab::s3();
    lab.seed(&[("dir/large", &vec![1; LONG]), ("b", b"b")]);
    let machine = lab.machine();
    let mount = machine.mount();
    let reader = fs::File::open(mount.path("dir/large")).unwrap();
    let writer = fs::OpenOptions::new().write(true).open(mount.path("b")).unwrap();
    mv(&mount, "dir", "moved");
    mv(&mount, "b", "moved/b");
    writer.write_all_at(b"written after the rename", 0).unwrap();
    mount.flushed();
    let mut last = [0; 1];
    reader.read_exact_at(&mut last, LONG as u64 - 1).unwrap();
    assert_eq!(last, [1]);
    assert_eq!(lab.object("moved/b").unwrap(), b"written after the rename");
    writer.write_all_at(b"W", 0).unwrap();
    drop(writer);
    mount.flushed();
    assert_eq!(lab.object("moved/b").unwrap(), b"Written after the rename");
    assert_eq!(lab.object("b"), None);
    drop(reader);
    mount.flushed();
    assert_eq!(lab.object("dir/large"), None);
    assert_eq!(mount.unmount(), 0);
}
