//! Promise: ordinary programs can write through the mount, and what they wrote is what the bucket, a remount and another
//! machine show.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use support::mount::{Lab, Machine, Mount, is_mounted};

fn labs() -> [Lab; 2] {
    [Lab::s3(), Lab::dir()]
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("must be refused").raw_os_error().expect("an errno")
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).expect("opened")
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// What a write does to a file, and to a model of it.
type Edit = (&'static str, fn(&Path), fn(&mut Vec<u8>));

const EDITS: &[Edit] = &[
    (
        "append",
        |p| drop(OpenOptions::new().append(true).open(p).unwrap().write_all(b"++")),
        |b| {
            b.extend_from_slice(b"++");
        },
    ),
    (
        "overwrite in the middle",
        |p| read_write(p).write_all_at(b"XYZ", 3).unwrap(),
        |b| {
            b[3..6].copy_from_slice(b"XYZ");
        },
    ),
    (
        "write past the end",
        |p| read_write(p).write_all_at(b"far", 300_000).unwrap(),
        |b| {
            b.resize(300_000, 0);
            b.extend_from_slice(b"far");
        },
    ),
    ("shrink", |p| read_write(p).set_len(5).unwrap(), |b| b.truncate(5)),
    ("grow", |p| read_write(p).set_len(70_000).unwrap(), |b| b.resize(70_000, 0)),
    ("shrink by name", |p| rustix_truncate(p, 4), |b| b.truncate(4)),
    ("grow by name", |p| rustix_truncate(p, 9_000), |b| b.resize(9_000, 0)),
    ("replace all", |p| fs::write(p, b"all new").unwrap(), |b| *b = b"all new".to_vec()),
    ("empty", |p| drop(File::create(p).unwrap()), |b| b.clear()),
    (
        "map and sync",
        |p| {
            let map = Map::of(&read_write(p));
            map.set(1, b"mapped");
            map.sync();
        },
        |b| b[1..7].copy_from_slice(b"mapped"),
    ),
    (
        "map without sync",
        |p| Map::of(&read_write(p)).set(2, b"quietly"),
        |b| {
            b[2..9].copy_from_slice(b"quietly");
        },
    ),
    (
        "allocate",
        |p| {
            let file = read_write(p);
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 50_000).unwrap();
        },
        |b| b.resize(b.len().max(50_000), 0),
    ),
    (
        "punch a hole",
        |p| {
            use rustix::fs::FallocateFlags as F;
            rustix::fs::fallocate(read_write(p), F::PUNCH_HOLE | F::KEEP_SIZE, 2, 4).unwrap();
        },
        |b| b[2..6].fill(0),
    ),
    (
        "write, seek, write, read back",
        |p| {
            let mut file = read_write(p);
            file.write_all(b"head").unwrap();
            file.seek(SeekFrom::Start(7)).unwrap();
            file.write_all(b"tail").unwrap();
            file.rewind().unwrap();
            let mut begin = [0; 4];
            file.read_exact(&mut begin).unwrap();
            assert_eq!(&begin, b"head");
            file.sync_all().unwrap();
        },
        |b| {
            b[..4].copy_from_slice(b"head");
            b[7..11].copy_from_slice(b"tail");
        },
    ),
];

fn rustix_truncate(path: &Path, size: i64) {
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: `name` is a C string that lives across the call.
    assert_eq!(unsafe { libc::truncate(name.as_ptr(), size) }, 0);
}

/// A shared, writable mapping of a whole file; the file itself may be closed.
struct Map {
    at: *mut libc::c_void,
    length: usize,
}

impl Map {
    fn of(file: &File) -> Self {
        let length = file.metadata().unwrap().len() as usize;
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping of an open file, at an address that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, access, flags, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { at, length }
    }

    fn set(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length);
        // SAFETY: within the mapping, which lives as long as `self`.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.cast::<u8>().add(offset), bytes.len()) }
    }

    fn sync(&self) {
        // SAFETY: exactly the mapping.
        assert_eq!(unsafe { libc::msync(self.at, self.length, libc::MS_SYNC) }, 0);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping; nothing refers to it afterwards.
        unsafe { libc::munmap(self.at, self.length) };
    }
}

#[test]
fn every_way_to_write_gives_the_same_bytes_here_in_the_bucket_after_a_remount_and_elsewhere() {
    for lab in labs() {
        let remote: Vec<(String, Vec<u8>)> =
            (0..EDITS.len()).map(|i| (format!("remote/{i}.bin"), pattern(20_000 + i, i as u8))).collect();
        lab.seed(&remote.iter().map(|(n, b)| (n.as_str(), b.as_slice())).collect::<Vec<_>>());
        let machine = lab.machine();
        let mount = machine.mount();
        let mut expected: Vec<(String, Vec<u8>)> = Vec::new();
        for (i, (what, edit, model)) in EDITS.iter().enumerate() {
            // On a file that only the bucket has, on a new one, and on one that was pushed and is cached.
            for place in ["remote", "new", "pushed"] {
                let name = format!("{place}/{i}.bin");
                let mut bytes = pattern(20_000 + i, i as u8);
                if place != "remote" {
                    mount.write(&name, &bytes);
                }
                if place == "pushed" {
                    mount.flushed();
                }
                edit(&mount.path(&name));
                model(&mut bytes);
                assert!(fs::read(mount.path(&name)).unwrap() == bytes, "{what} of a {place} file, read back");
                assert_eq!(fs::metadata(mount.path(&name)).unwrap().len(), bytes.len() as u64, "{what} ({place})");
                expected.push((name, bytes));
            }
        }
        mount.flushed();
        let entries = lab.entries();
        for (name, bytes) in &expected {
            assert!(lab.object(name).as_ref() == Some(bytes), "{name} in the bucket");
            assert_eq!(entries[name]["size"], bytes.len(), "{name}");
            assert_eq!(entries[name]["sha256"], support::mount::entry(name, bytes)["sha256"], "{name}");
        }
        assert_eq!(mount.unmount(), 0);
        let elsewhere = lab.machine();
        for machine in [&machine, &elsewhere] {
            let mount = machine.mount();
            for (name, bytes) in &expected {
                assert!(&fs::read(mount.path(name)).unwrap() == bytes, "{name}");
            }
            assert_eq!(mount.files().len(), expected.len());
            assert_eq!(mount.unmount(), 0);
        }
    }
}

#[test]
fn emptying_a_remote_file_fetches_nothing_and_any_other_open_for_writing_fetches_all_of_it() {
    let lab = Lab::s3();
    let large = pattern(9 << 20, 7);
    lab.seed(&[("empty-me", &large), ("truncate-me", b"abc"), ("append-to-me", &large)]);
    let machine = lab.machine();
    let mount = machine.mount();
    fs::write(mount.path("empty-me"), b"new").unwrap();
    rustix_truncate(&mount.path("truncate-me"), 0);
    for name in ["empty-me", "truncate-me"] {
        assert_eq!(lab.server().count("GetObject", name), 0, "{name}");
    }
    OpenOptions::new().append(true).open(mount.path("append-to-me")).unwrap().write_all(b"!").unwrap();
    assert!(lab.server().count("GetObject", "append-to-me") > 0);
    mount.flushed();
    assert_eq!(lab.object("empty-me").unwrap(), b"new");
    assert_eq!(lab.object("truncate-me").unwrap(), b"");
    assert_eq!(lab.object("append-to-me").unwrap(), [large.as_slice(), b"!"].concat());
    assert_eq!(mount.status()["conflicts"], serde_json::json!([]));
}

#[test]
fn an_unlinked_file_that_is_open_goes_on_and_leaves_nothing_behind() {
    let lab = Lab::s3();
    lab.seed(&[("remote", b"remote bytes")]);
    let machine = lab.machine();
    let mount = machine.mount();
    mount.write("local", b"local bytes");
    for (name, content) in [("remote", "remote bytes"), ("local", "local bytes")] {
        let mut file = read_write(&mount.path(name));
        fs::remove_file(mount.path(name)).unwrap();
        assert_eq!(errno(fs::metadata(mount.path(name))), libc::ENOENT);
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, content);
        file.write_all(b" and more").unwrap();
        file.set_len(3).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 3);
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        file.sync_all().unwrap();
        // The name is free again while the old file is open.
        fs::write(mount.path(name), b"second").unwrap();
        assert_eq!(mount.read(name), "second");
        let mut begin = [0; 3];
        file.read_exact_at(&mut begin, 0).unwrap();
        assert_eq!(&begin, &content.as_bytes()[..3]);
        fs::remove_file(mount.path(name)).unwrap();
    }
    mount.flushed();
    assert!(lab.entries().is_empty());
    assert_eq!(lab.object("remote"), None);
    assert_eq!(lab.object("local"), None);
}

#[test]
fn directories_are_made_and_removed_and_an_empty_one_stays_across_a_remount() {
    let lab = Lab::dir();
    lab.seed(&[("full/file", b"x"), ("emptied/file", b"y")]);
    let machine = lab.machine();
    let mount = machine.mount();
    fs::create_dir(mount.path("new")).unwrap();
    fs::create_dir_all(mount.path("deep/er")).unwrap();
    assert_eq!(errno(fs::create_dir(mount.path("new"))), libc::EEXIST);
    assert_eq!(errno(fs::remove_dir(mount.path("full"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(mount.path("full/file"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_file(mount.path("full"))), libc::EISDIR);
    assert_eq!(errno(fs::remove_dir(mount.path("none"))), libc::ENOENT);
    fs::remove_file(mount.path("emptied/file")).unwrap();
    fs::set_permissions(mount.path("new"), fs::Permissions::from_mode(0o710)).unwrap();
    assert_eq!(mount.unmount(), 0);
    let mount = machine.mount();
    for name in ["new", "deep/er", "emptied", "full"] {
        assert!(fs::metadata(mount.path(name)).unwrap().is_dir(), "{name}");
    }
    assert_eq!(fs::metadata(mount.path("new")).unwrap().permissions().mode() & 0o7777, 0o710);
    for name in ["new", "deep/er", "deep", "emptied"] {
        fs::remove_dir(mount.path(name)).unwrap();
    }
    assert_eq!(mount.unmount(), 0);
    let mount = machine.mount();
    let names: Vec<_> = fs::read_dir(mount.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["full"]);
}

#[test]
fn attributes_travel_as_far_as_the_format_carries_them() {
    for lab in labs() {
        lab.seed(&[("script", b"#!/bin/sh\n"), ("target", b"t")]);
        let machine = lab.machine();
        let mount = machine.mount();
        let moment = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        fs::set_permissions(mount.path("script"), fs::Permissions::from_mode(0o750)).unwrap();
        mount.write("dir/plain", b"p");
        mount.write("dir/tool", b"#!/bin/sh\n");
        fs::set_permissions(mount.path("dir/tool"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("../target", mount.path("dir/link")).unwrap();
        read_write(&mount.path("dir/plain")).set_modified(moment).unwrap();
        std::os::unix::fs::chown(mount.path("dir/plain"), Some(1234), Some(4321)).unwrap();
        rustix::fs::setxattr(mount.path("dir/plain"), "user.note", b"kept", rustix::fs::XattrFlags::empty()).unwrap();
        assert_eq!(fs::metadata(mount.path("dir/plain")).unwrap().modified().unwrap(), moment);

        let local = |mount: &Mount<'_>, when: &str| {
            let meta = fs::metadata(mount.path("dir/plain")).unwrap();
            assert_eq!(meta.modified().unwrap(), moment, "{when}: to the nanosecond");
            assert_eq!((meta.uid(), meta.gid()), (1234, 4321), "{when}");
            let mut value = [0; 16];
            let length = rustix::fs::getxattr(mount.path("dir/plain"), "user.note", &mut value).unwrap();
            assert_eq!(&value[..length], b"kept", "{when}");
            assert_eq!(fs::metadata(mount.path("script")).unwrap().mode() & 0o7777, 0o750, "{when}");
        };
        let everywhere = |mount: &Mount<'_>, when: &str| {
            assert_eq!(fs::read_link(mount.path("dir/link")).unwrap(), Path::new("../target"), "{when}");
            assert_eq!(mount.read("dir/link"), "t", "{when}");
            for (name, executable) in [("script", true), ("dir/tool", true), ("dir/plain", false), ("target", false)] {
                let mode = fs::metadata(mount.path(name)).unwrap().mode();
                assert_eq!(mode & 0o100 != 0, executable, "{when}: {name}");
            }
            let modified = fs::metadata(mount.path("dir/plain")).unwrap().modified().unwrap();
            let since = moment.duration_since(modified).expect("truncated, not rounded");
            assert!(since < Duration::from_millis(1), "{when}: {since:?}");
        };
        local(&mount, "before the push");
        mount.flushed();
        local(&mount, "after the push");
        everywhere(&mount, "after the push");
        let entries = lab.entries();
        assert_eq!(entries["dir/plain"]["localMtime"], "2023-11-14T22:13:20.123Z");
        assert_eq!(entries["script"]["mode"], "100755");
        assert_eq!(entries["dir/tool"]["mode"], "100755");
        assert_eq!(entries["dir/link"]["mode"], "120000");
        assert!(entries["dir/plain"].get("mode").is_none());
        assert_eq!(lab.object("dir/link").unwrap(), b"../target");
        assert_eq!(mount.unmount(), 0);
        let mount = machine.mount();
        local(&mount, "after a remount");
        everywhere(&mount, "after a remount");
        assert_eq!(mount.unmount(), 0);
        let elsewhere = lab.machine();
        let mount = elsewhere.mount();
        everywhere(&mount, "on another machine, not fetched");
        assert_eq!(mount.read("dir/plain"), "p");
        everywhere(&mount, "on another machine, fetched");
        let before = lab.object(".datastore-index.json");
        mount.flushed();
        assert!(lab.object(".datastore-index.json") == before, "looking changes nothing");
    }
}

#[test]
fn system_calls_around_files_work() {
    let lab = Lab::dir();
    let machine = lab.machine();
    let mount = machine.mount();
    mount.write("dir/file", b"bytes");
    let file = read_write(&mount.path("dir/file"));
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    File::open(mount.path("dir")).unwrap().sync_all().unwrap();
    let fs_stat = rustix::fs::statvfs(mount.path("")).unwrap();
    assert!(fs_stat.f_blocks > 0 && fs_stat.f_bavail > 0 && fs_stat.f_namemax == 255);
    let stat = file.metadata().unwrap();
    assert_eq!((stat.nlink(), stat.len()), (1, 5));
    assert_eq!(fs::metadata(mount.path("")).unwrap().nlink(), 3);
    // Exclusive creation, and directories opened as files.
    let again = OpenOptions::new().write(true).create_new(true).open(mount.path("dir/file"));
    assert_eq!(errno(again), libc::EEXIST);
    assert_eq!(errno(OpenOptions::new().write(true).open(mount.path("dir"))), libc::EISDIR);
    // A file without permissions can still be written through the descriptor that made it.
    let mut sealed =
        OpenOptions::new().write(true).create_new(true).mode(0o000).open(mount.path("dir/sealed")).unwrap();
    sealed.write_all(b"once").unwrap();
    drop(sealed);
    // Hard links, devices and pipes cannot be in a bucket.
    assert_eq!(errno(fs::hard_link(mount.path("dir/file"), mount.path("dir/second"))), libc::EPERM);
    for kind in [rustix::fs::FileType::CharacterDevice, rustix::fs::FileType::Fifo, rustix::fs::FileType::Socket] {
        let made = rustix::fs::mknodat(rustix::fs::CWD, mount.path("dir/node"), kind, rustix::fs::Mode::RWXU, 0x0103);
        assert_eq!(made.unwrap_err(), rustix::io::Errno::PERM, "{kind:?}");
    }
    rustix::fs::mknodat(rustix::fs::CWD, mount.path("dir/plain"), rustix::fs::FileType::RegularFile, 0o644.into(), 0)
        .unwrap();
    let trusted = rustix::fs::setxattr(mount.path("dir/file"), "trusted.x", b"1", rustix::fs::XattrFlags::empty());
    assert_eq!(trusted.unwrap_err(), rustix::io::Errno::OPNOTSUPP);
    mount.flushed();
    assert_eq!(lab.entries().len(), 3);
    assert_eq!(lab.object("dir/sealed").unwrap(), b"once");
}

#[test]
fn locks_work_between_the_programs_of_one_mount() {
    let lab = Lab::dir();
    let machine = lab.machine();
    let mount = machine.mount();
    mount.write("file", b"0123456789");
    let (one, two) = (read_write(&mount.path("file")), read_write(&mount.path("file")));
    one.lock().unwrap();
    assert!(matches!(two.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
    one.unlock().unwrap();
    two.try_lock().unwrap();
    drop(two);
    // Open file description locks: what fcntl gives between descriptors of one process.
    let two = read_write(&mount.path("file"));
    let range = |file: &File, kind: i32, start: i64, length: i64| {
        let lock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: start, l_len: length, l_pid: 0 };
        // SAFETY: the kernel reads a lock description that lives across the call.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &lock) }
    };
    assert_eq!(range(&one, libc::F_WRLCK, 0, 5), 0);
    assert_eq!(range(&two, libc::F_WRLCK, 4, 2), -1);
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::EAGAIN));
    assert_eq!(range(&two, libc::F_WRLCK, 5, 5), 0);
    assert_eq!(range(&one, libc::F_UNLCK, 0, 0), 0);
    assert_eq!(range(&two, libc::F_WRLCK, 0, 0), 0);
}

#[test]
fn two_descriptors_see_each_others_writes_and_appends_do_not_overlap() {
    let lab = Lab::dir();
    let machine: Machine<'_> = lab.machine();
    let mount = machine.mount();
    assert!(is_mounted(&machine.mountpoint()));
    let path = mount.path("log");
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
                (0..100).for_each(|i| file.write_all(format!("{writer}:{i:03}\n").as_bytes()).unwrap());
            });
        }
    });
    let text = mount.read("log");
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    let wanted: Vec<String> = (0..4).flat_map(|w| (0..100).map(move |i| format!("{w}:{i:03}"))).collect();
    assert_eq!(lines, wanted);
}
