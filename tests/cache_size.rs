//! Promise: `--cache-size` bounds what cached files take, as data arrives: least recently opened first, never what is open
//! or unpushed; what does not fit is read all the same, and every byte is right.

mod support;

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;

use support::mount::{Lab, Machine, Mount, eventually};

const MIB: usize = 1 << 20;

fn pattern(seed: usize, size: usize) -> Vec<u8> {
    (0..size).map(|at| ((at / 4096 * 31) ^ (at * 7) ^ (seed * 101)) as u8).collect()
}

fn options(size: &'static str) -> [&'static str; 8] {
    ["--cache-size", size, "--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"]
}

/// Bytes of all files in `data/`, and whether `cache/` shows a file.
fn on_disk(machine: &Machine<'_>) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = fs::read_dir(machine.cache_root().join("data")).expect("listed").flatten();
    files.filter_map(|e| e.metadata().ok()).map(|meta| meta.blocks() * 512).sum()
}

fn shown(machine: &Machine<'_>, name: &str) -> bool {
    machine.cache_root().join("cache").join(name).exists()
}

fn gets(lab: &Lab, name: &str) -> usize {
    lab.server().count("GetObject", name)
}

fn read(mount: &Mount<'_>, name: &str) -> Vec<u8> {
    fs::read(mount.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Ten files of a megabyte each.
fn ten_files() -> Lab {
    let lab = Lab::s3();
    let files: Vec<(String, Vec<u8>)> = (0..10).map(|n| (format!("f{n}"), pattern(n, MIB))).collect();
    lab.seed(&files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect::<Vec<_>>());
    lab
}

#[test]
fn the_least_recently_opened_file_goes_first_also_after_a_remount() {
    let lab = ten_files();
    let machine = lab.machine();
    let mount = machine.mount_with(&options("4M"));
    for n in 0..3 {
        assert!(read(&mount, &format!("f{n}")) == pattern(n, MIB));
    }
    eventually("cache/ to show it", || shown(&machine, "f1").then_some(()));
    assert!(read(&mount, "f0") == pattern(0, MIB), "f1 is the oldest now");
    assert_eq!(mount.unmount(), 0);
    // The order of opens is remembered.
    let mount = machine.mount_with(&options("4M"));
    read(&mount, "f3");
    read(&mount, "f4");
    eventually("the eviction", || (!shown(&machine, "f1")).then_some(()));
    assert!(on_disk(&machine) <= 4 << 20, "{}", on_disk(&machine));
    let before = gets(&lab, "f0");
    assert!(read(&mount, "f0") == pattern(0, MIB));
    assert_eq!(gets(&lab, "f0"), before, "f0 was kept");
    let before = gets(&lab, "f1");
    assert!(read(&mount, "f1") == pattern(1, MIB), "an evicted file is fetched again");
    assert_eq!(gets(&lab, "f1"), before + 1);
    let status = mount.status();
    assert_eq!(status["cacheLimit"], 4 << 20);
    assert!(status["evictedFiles"].as_u64().unwrap() >= 1, "{status}");
    assert!(status["cachedBytes"].as_u64().unwrap() <= 4 << 20, "{status}");
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn the_bound_holds_at_every_moment_while_files_arrive() {
    let lab = ten_files();
    let machine = lab.machine();
    let mount = machine.mount_with(&options("4M"));
    for round in 0..3 {
        for n in 0..10 {
            assert!(read(&mount, &format!("f{n}")) == pattern(n, MIB), "{round}");
            assert!(on_disk(&machine) <= 4 << 20, "{round}: f{n}: {}", on_disk(&machine));
        }
    }
    // Nothing of this is a change.
    assert_eq!(mount.status()["pending"]["files"], 0);
    assert_eq!(mount.unmount(), 0);
    assert_eq!(lab.entries().len(), 10);
}

#[test]
fn what_is_open_or_unpushed_stays_and_what_does_not_fit_beside_it_is_read_past_the_cache() {
    let lab = ten_files();
    let machine = lab.machine();
    let mount = machine.mount_with(&options("3M"));
    let open = fs::File::open(mount.path("f0")).unwrap();
    mount.write("unpushed", pattern(77, 2 * MIB));
    for n in 1..10 {
        assert!(read(&mount, &format!("f{n}")) == pattern(n, MIB), "f{n}");
    }
    let before = gets(&lab, "f0");
    let mut bytes = vec![0; MIB];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == pattern(0, MIB));
    assert_eq!(gets(&lab, "f0"), before, "an open file is not evicted");
    assert!(read(&mount, "unpushed") == pattern(77, 2 * MIB));
    assert_eq!(mount.status()["readErrors"], serde_json::json!([]));
    // Once it is in the bucket it may go.
    mount.flushed();
    drop(open);
    for n in 1..4 {
        read(&mount, &format!("f{n}"));
    }
    assert!(read(&mount, "unpushed") == pattern(77, 2 * MIB));
    eventually("the bound", || (on_disk(&machine) <= 3 << 20).then_some(()));
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_file_larger_than_the_cache_is_read_past_it_and_pushes_nothing_out() {
    let lab = ten_files();
    let large = pattern(5, 13 * MIB + 4321);
    lab.seed(&[("large", &large)]);
    let machine = lab.machine();
    let mount = machine.mount_with(&options("8M"));
    read(&mount, "f0");
    assert!(read(&mount, "large") == large);
    let file = fs::File::open(mount.path("large")).unwrap();
    for at in [12 * MIB, 5, 7 * MIB - 100, large.len() - 10] {
        let mut bytes = vec![0; 200.min(large.len() - at)];
        file.read_exact_at(&mut bytes, at as u64).unwrap();
        assert!(bytes == large[at..at + bytes.len()], "{at}");
    }
    drop(file);
    assert!(on_disk(&machine) <= 2 << 20, "{}", on_disk(&machine));
    let before = gets(&lab, "f0");
    read(&mount, "f0");
    assert_eq!(gets(&lab, "f0"), before, "the others stay");
    // To be changed it must be here, whatever the limit; and goes when it is pushed and closed.
    let file = fs::File::options().read(true).write(true).open(mount.path("large")).unwrap();
    file.write_all_at(b"changed", 9 << 20).unwrap();
    drop(file);
    mount.flushed();
    let mut expected = large;
    expected[9 << 20..(9 << 20) + 7].copy_from_slice(b"changed");
    assert!(lab.object("large").unwrap() == expected);
    eventually("the bound", || (on_disk(&machine) <= 8 << 20).then_some(()));
    let mut bytes = Vec::new();
    fs::File::open(mount.path("large")).unwrap().read_to_end(&mut bytes).unwrap();
    assert!(bytes == expected);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_kill_between_evictions_leaves_every_file_readable() {
    let lab = ten_files();
    let machine = lab.machine();
    for round in 0..4 {
        let mount = machine.mount_with(&options("2M"));
        for n in 0..=round * 2 {
            assert!(read(&mount, &format!("f{n}")) == pattern(n, MIB), "{round}");
        }
        mount.write(&format!("new{round}"), "kept");
        mount.kill();
    }
    let mount = machine.mount_with(&options("2M"));
    for n in 0..10 {
        assert!(read(&mount, &format!("f{n}")) == pattern(n, MIB));
    }
    mount.flushed();
    assert_eq!(lab.entries().len(), 14);
    assert_eq!(mount.unmount(), 0);
}
