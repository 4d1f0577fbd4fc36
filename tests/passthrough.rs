//! Promise: whether the kernel reads and writes files by itself or through the daemon, programs see the same, and every
//! write reaches the bucket: also one through a mapping whose file was closed long before.

mod support;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use support::mount::{Lab, Machine, Mount, eventually};

const INDEX: &str = ".datastore-index.json";
/// Larger than what is read through the page cache in any case.
const LARGE: usize = 300_000;

const QUIET: [&str; 6] = ["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];

fn with<'a>(machine: &'a Machine<'a>, passthrough: bool) -> Mount<'a> {
    let options: Vec<&str> = QUIET.into_iter().chain(passthrough.then_some("--passthrough")).collect();
    machine.mount_with(&options)
}

/// A shared, writable mapping of a whole file.
struct Mapping {
    at: *mut u8,
    length: usize,
}

impl Mapping {
    fn of(file: &File) -> Self {
        let length = file.metadata().unwrap().len() as usize;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, file.as_raw_fd(), 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self { at: at.cast(), length }
    }

    fn store(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.length);
        // SAFETY: within the mapping, which lives as long as `self`; nobody holds a reference into it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(at), bytes.len()) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that was made; nothing refers to it any more.
        let failed = unsafe { libc::munmap(self.at.cast(), self.length) };
        assert_eq!(failed, 0);
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// Ways to change a file of `LARGE` bytes, and what they make of it.
type Change = (&'static str, fn(&Path), fn(&mut Vec<u8>));
const CHANGES: [Change; 7] = [
    ("pwrite", |p| open(p).write_all_at(b"pwrite", 1000).unwrap(), |b| b[1000..1006].copy_from_slice(b"pwrite")),
    (
        "append",
        |p| OpenOptions::new().append(true).open(p).unwrap().write_all(b"append").unwrap(),
        |b| b.extend_from_slice(b"append"),
    ),
    ("truncate", |p| open(p).set_len(70_000).unwrap(), |b| b.truncate(70_000)),
    ("rewrite", |p| std::fs::write(p, b"rewritten").unwrap(), |b| *b = b"rewritten".to_vec()),
    ("same size", |p| open(p).write_all_at(&[7; LARGE], 0).unwrap(), |b| *b = vec![7; LARGE]),
    (
        "mapping",
        |p| Mapping::of(&open(p)).store(200_000, b"mapped"),
        |b| b[200_000..200_006].copy_from_slice(b"mapped"),
    ),
    (
        "mapping, with the file closed",
        |p| {
            let mapping = Mapping::of(&open(p));
            mapping.store(299_000, b"late");
        },
        |b| b[299_000..299_004].copy_from_slice(b"late"),
    ),
];

#[test]
fn every_change_reaches_the_bucket_also_after_a_kill() {
    for passthrough in [true, false] {
        for killed in [false, true] {
            let lab = Lab::s3();
            let before = vec![1; LARGE];
            let names: Vec<String> = (0..CHANGES.len()).map(|n| format!("f{n}")).collect();
            lab.seed(&names.iter().map(|name| (name.as_str(), &before[..])).collect::<Vec<_>>());
            let machine = lab.machine();
            let mut mount = with(&machine, passthrough);
            for (name, (_, change, _)) in names.iter().zip(CHANGES) {
                change(&mount.path(name));
            }
            if killed {
                mount.kill();
                mount = with(&machine, passthrough);
            }
            for (name, (what, _, expect)) in names.iter().zip(CHANGES) {
                let mut expected = before.clone();
                expect(&mut expected);
                assert!(std::fs::read(mount.path(name)).unwrap() == expected, "{what}, {passthrough}, {killed}: here");
            }
            mount.flushed();
            for (name, (what, _, expect)) in names.iter().zip(CHANGES) {
                let mut expected = before.clone();
                expect(&mut expected);
                assert!(lab.object(name).unwrap() == expected, "{what}, {passthrough}, {killed}: in the bucket");
            }
            assert_eq!(mount.unmount(), 0);
        }
    }
}

#[test]
fn a_store_to_a_mapping_whose_file_is_closed_and_pushed_is_pushed_too() {
    for passthrough in [true, false] {
        let lab = Lab::s3();
        lab.seed(&[("f", &[1; LARGE])]);
        let machine = lab.machine();
        let mount = with(&machine, passthrough);
        let mapping = Mapping::of(&open(&mount.path("f")));
        for round in 0..3_u8 {
            let at = usize::from(round) * 4096;
            mapping.store(at, b"stored");
            // Without passthrough the kernel keeps the store until it is written back, as on any file system.
            if !passthrough {
                File::open(mount.path("f")).unwrap().sync_all().unwrap();
            }
            mount.flushed();
            assert_eq!(&lab.object("f").unwrap()[at..at + 6], b"stored", "{passthrough}, round {round}");
        }
        mapping.store(100_000, b"last");
        drop(mapping);
        eventually("the last store", || {
            mount.flushed();
            (&lab.object("f").unwrap()[100_000..100_004] == b"last").then_some(())
        });
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn a_file_that_is_opened_for_writing_or_touched_but_not_written_is_not_pushed() {
    for passthrough in [true, false] {
        let lab = Lab::s3();
        lab.seed(&[("opened", &[1; LARGE]), ("touched", &[1; LARGE]), ("mapped", &[1; LARGE])]);
        let machine = lab.machine();
        let mount = with(&machine, passthrough);
        drop(open(&mount.path("opened")));
        drop(Mapping::of(&open(&mount.path("mapped"))));
        let touched = OpenOptions::new().write(true).open(mount.path("touched")).unwrap();
        touched.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        drop(touched);
        mount.flushed();
        for name in ["opened", "touched", "mapped"] {
            assert_eq!(lab.server().count("PutObject", name), 0, "{name}, {passthrough}");
        }
        assert_eq!(lab.entries()["touched"]["localMtime"], "1970-01-01T00:00:00.000Z");
        assert_eq!(mount.unmount(), 0);
    }
}

#[test]
fn readers_and_writers_in_any_order_see_each_other() {
    for passthrough in [true, false] {
        for size in [5000, LARGE] {
            let lab = Lab::s3();
            lab.seed(&[("f", &vec![b'0'; size])]);
            let machine = lab.machine();
            let mount = with(&machine, passthrough);
            let path = mount.path("f");
            let read = |file: &File| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, 10).unwrap();
                byte[0]
            };
            let early = File::open(&path).unwrap();
            assert_eq!(read(&early), b'0');
            let writer = open(&path);
            writer.write_all_at(b"1", 10).unwrap();
            let late = File::open(&path).unwrap();
            assert_eq!((read(&early), read(&late), read(&writer)), (b'1', b'1', b'1'));
            drop(early);
            drop(late);
            writer.write_all_at(b"2", 10).unwrap();
            drop(writer);
            // Pages from before the last write must not come back.
            let again = File::open(&path).unwrap();
            assert_eq!(read(&again), b'2', "{passthrough}, {size}");
            let mut appender = OpenOptions::new().append(true).open(&path).unwrap();
            appender.write_all(b"end").unwrap();
            assert_eq!(path.metadata().unwrap().len(), size as u64 + 3);
            let mut tail = String::new();
            let mut again = again;
            again.seek(SeekFrom::End(-3)).unwrap();
            again.read_to_string(&mut tail).unwrap();
            assert_eq!(tail, "end", "{passthrough}, {size}");
            drop((again, appender));
            mount.flushed();
            assert_eq!(lab.object("f").unwrap().len(), size + 3);
            assert_eq!(mount.unmount(), 0);
        }
    }
}

#[test]
fn what_is_written_to_a_file_that_stays_open_is_flushed_in_the_background() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "3600", "--flush-after", "1"]);
    let file = File::create(mount.path("log")).unwrap();
    for round in 0..2_u8 {
        file.write_all_at(&[round], u64::from(round)).unwrap();
        eventually("the background flush", || {
            let listed = lab.object(INDEX).is_some() && lab.entries().contains_key("log");
            (listed && lab.object("log")?.len() == usize::from(round) + 1).then_some(())
        });
    }
    drop(file);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn the_kernel_reads_and_writes_large_files_by_itself_unless_told_not_to() {
    for passthrough in [true, false] {
        let lab = Lab::dir();
        let machine = lab.machine();
        let mount = with(&machine, passthrough);
        let worker = mount.worker();
        let moved = || {
            let io = std::fs::read_to_string(format!("/proc/{worker}/io")).unwrap();
            let field = |name: &str| io.lines().find_map(|l| l.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap();
            field("rchar:") + field("wchar:")
        };
        let before = moved();
        std::fs::write(mount.path("f"), vec![1; 8 << 20]).unwrap();
        assert_eq!(std::fs::read(mount.path("f")).unwrap().len(), 8 << 20);
        let by_the_daemon = moved() - before;
        if passthrough && can_pass_through(&machine) {
            assert!(by_the_daemon < 1 << 20, "the daemon moved {by_the_daemon} bytes");
        } else {
            assert!(by_the_daemon >= 8 << 20, "the daemon moved {by_the_daemon} bytes only");
        }
        assert_eq!(mount.unmount(), 0);
    }
}

/// Root, Linux 6.9, and a cache on a file system that it is allowed for.
fn can_pass_through(machine: &Machine) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map(|n| n.trim().parse::<u32>().unwrap_or(0));
    let recent = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 9);
    let state = File::open(machine.cache_root().join("state.db")).unwrap();
    recent && rustix::process::geteuid().is_root() && swamp_mount::volume::keeps_times(&state)
}

#[test]
fn what_is_mapped_is_never_evicted_and_what_the_kernel_wrote_counts_for_the_bound() {
    const LIMIT: u64 = 3 << 20;
    let lab = Lab::s3();
    let names: Vec<String> = (0..6).map(|n| format!("f{n}")).collect();
    lab.seed(&names.iter().map(|name| (name.as_str(), &[1; 1 << 20][..])).collect::<Vec<_>>());
    let machine = lab.machine();
    let options: Vec<&str> = QUIET.into_iter().chain(["--passthrough", "--cache-size", "3M"]).collect();
    let mount = machine.mount_with(&options);
    let read = |numbers: std::ops::Range<usize>| {
        for name in &names[numbers] {
            assert!(std::fs::read(mount.path(name)).unwrap() == [1; 1 << 20], "{name}");
        }
    };
    let mapping = Mapping::of(&open(&mount.path("f0")));
    mapping.store(0, b"first");
    mount.flushed();
    // Clean, closed, and opened longest ago: all that keeps it is the mapping.
    read(1..6);
    mapping.store(5000, b"kept");
    mount.flushed();
    assert_eq!(&lab.object("f0").unwrap()[5000..5004], b"kept");
    drop(mapping);
    std::fs::write(mount.path("new"), vec![9; 2 << 20]).unwrap();
    mount.flushed();
    read(1..6);
    eventually("the bound", || {
        use std::os::unix::fs::MetadataExt;
        let files = std::fs::read_dir(machine.cache_root().join("data")).unwrap().flatten();
        let bytes: u64 = files.filter_map(|file| file.metadata().ok()).map(|meta| meta.blocks() * 512).sum();
        (bytes <= LIMIT).then_some(())
    });
    assert!(std::fs::read(mount.path("new")).unwrap() == vec![9; 2 << 20]);
    assert_eq!(mount.unmount(), 0);
}
