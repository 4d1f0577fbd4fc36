//! Promise: a mount with `--read-only` shows and reads what any mount does, although the kernel opens its files without
//! asking, and refuses every change.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use support::mount::{Lab, entry, eventually};
use support::s3_server::{Action, Fault};

const MIB: usize = 1 << 20;
const OPTIONS: [&str; 3] = ["--read-only", "--refresh", "1"];

fn name(number: usize) -> String {
    format!("dir{}/{:03}", number / 100, number % 100)
}

#[test]
fn many_files_are_read_again_and_again_and_fetched_once() {
    let lab = Lab::s3();
    let names: Vec<String> = (0..250).map(name).collect();
    lab.seed(&names.iter().map(|name| (name.as_str(), name.as_bytes())).collect::<Vec<_>>());
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    // More than are held open, in order and against it.
    for number in (0..250).chain((0..250).rev()) {
        assert_eq!(mount.read(&name(number)), name(number));
    }
    let fetched: usize = names.iter().map(|name| lab.server().count("GetObject", name)).sum();
    assert_eq!(fetched, 250);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_large_file_is_read_by_its_parts() {
    let lab = Lab::s3();
    let big: Vec<u8> = (0..4 * MIB as u64).flat_map(u64::to_le_bytes).collect();
    lab.seed(&[("big", &big)]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    let file = File::open(mount.path("big")).unwrap();
    let mut tail = [0; 1000];
    file.read_exact_at(&mut tail, big.len() as u64 - 1000).unwrap();
    assert!(tail[..] == big[big.len() - 1000..]);
    assert!(mount.status()["cachedBytes"].as_u64().unwrap() < 8 * MIB as u64);
    drop(file);
    assert!(fs::read(mount.path("big")).unwrap() == big);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn what_others_change_is_read_after_a_refresh() {
    let lab = Lab::s3();
    lab.seed(&[("same-size", b"AAAA"), ("grows", b"old"), ("goes", b"gone")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    mount.files().iter().for_each(|path| drop(mount.read(path)));
    lab.seed(&[("same-size", b"BBBB"), ("grows", b"new and longer"), ("new", b"new")]);
    let mut entries = lab.entries();
    entries.remove("goes");
    lab.write_entries(entries);
    lab.remove_object("goes");
    eventually("the new view", || (mount.files() == ["grows", "new", "same-size"]).then_some(()));
    for (path, text) in [("same-size", "BBBB"), ("grows", "new and longer"), ("new", "new")] {
        assert_eq!(mount.read(path), text);
    }
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_file_that_is_rewritten_without_its_index_is_looked_at_with_every_read() {
    let lab = Lab::s3();
    lab.seed(&[(".catalog-export.json", b"{\"first\":1}")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    assert_eq!(mount.read(".catalog-export.json"), "{\"first\":1}");
    lab.put_object(".catalog-export.json", b"{\"then\":22}");
    // The first look finds the other upload; whoever opens the file afterwards reads that.
    eventually("the other upload", || {
        let read = fs::read_to_string(mount.path(".catalog-export.json")).ok()?;
        (read == "{\"then\":22}").then_some(())
    });
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_file_that_cannot_be_had_is_an_error_of_the_read_with_its_reason() {
    let lab = Lab::s3();
    lab.seed(&[("here", b"here"), ("refused", b"later")]);
    let mut entries = lab.entries();
    entries.insert("lost".to_owned(), entry("lost", b"no object"));
    lab.write_entries(entries);
    lab.server().inject(Fault::on("GetObject", Action::Status(403)).key("refused"));
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    for path in ["lost", "refused"] {
        let error = fs::read(mount.path(path)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{path}");
        let status = mount.status();
        assert!(status["readErrors"].to_string().contains(path), "{status}");
    }
    assert_eq!(mount.files(), ["here", "lost", "refused"], "it is listed all the same");
    lab.server().clear_faults();
    assert_eq!(mount.read("refused"), "later");
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn every_change_is_refused() {
    let lab = Lab::s3();
    lab.seed(&[("f", b"f"), ("dir/g", b"g")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    let at = |path: &str| mount.path(path);
    let refused = [
        ("write", errno(File::options().append(true).open(at("f")).map(drop))),
        ("truncate", errno(File::create(at("f")).map(drop))),
        ("create", errno(File::create(at("new")).map(drop))),
        ("mkdir", errno(fs::create_dir(at("new")))),
        ("rename", errno(fs::rename(at("f"), at("h")))),
        ("unlink", errno(fs::remove_file(at("f")))),
        ("symlink", errno(std::os::unix::fs::symlink("f", at("link")))),
    ];
    for (operation, errno) in refused {
        assert_eq!(errno, Some(libc::EROFS), "{operation}");
    }
    assert_eq!(mount.read("f"), "f");
    assert_eq!(mount.unmount(), 0);
}
