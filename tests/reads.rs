//! Promise: what the index lists is listed at once, without a request per file, and opening it yields its bytes; a large
//! file is fetched by the parts that are read, once for all who read it.

mod support;

use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use support::mount::{Lab, entry, eventually};
use support::s3_server::{Action, Fault, Gate};

const MIB: usize = 1 << 20;

/// Bytes that tell where in the file they belong.
fn pattern(size: usize) -> Vec<u8> {
    (0..size.div_ceil(8) as u64).flat_map(|n| (n * 8).to_le_bytes()).take(size).collect()
}

/// The ranges of all GETs of a key that were answered, in order of their start.
fn ranges(lab: &Lab, key: &str, size: u64) -> Vec<(u64, u64)> {
    let parse = |range: Option<&str>| match range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) {
        Some((first, last)) => (first.parse().expect("a number"), last.parse::<u64>().expect("a number") + 1),
        None => (0, size),
    };
    let requests = lab.server().requests();
    let mut found: Vec<_> = requests
        .iter()
        .filter(|r| r.operation == "GetObject" && r.key == key)
        .map(|r| parse(r.range.as_deref()))
        .collect();
    found.sort_unstable();
    found
}

fn read_at(path: &Path, offset: usize, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    File::open(path).expect("opens").read_exact_at(&mut buffer, offset as u64).expect("reads");
    buffer
}

#[test]
fn mounting_and_listing_read_the_index_and_nothing_else() {
    let lab = Lab::s3();
    lab.seed(&[("a/b/one.yaml", b"one"), ("a/two.yaml", b"two"), ("three.txt", b"three")]);
    let machine = lab.machine();
    let mount = machine.mount();
    assert_eq!(mount.files(), ["a/b/one.yaml", "a/two.yaml", "three.txt"]);
    assert_eq!(std::fs::metadata(mount.path("three.txt")).unwrap().len(), 5);
    let data: Vec<_> = lab
        .server()
        .requests()
        .into_iter()
        .filter(|r| !r.key.contains("_meta.json") && !r.key.contains(".datastore-index"))
        .collect();
    assert!(data.is_empty(), "{data:?}");
    assert_eq!(mount.read("a/b/one.yaml"), "one");
    assert_eq!(lab.server().count("GetObject", "a/b/one.yaml"), 1);
    assert_eq!(mount.read("a/b/one.yaml"), "one");
    assert_eq!(lab.server().count("GetObject", "a/b/one.yaml"), 1);
    assert_eq!(mount.unmount(), 0);
    lab.server().clear_requests();
    let mount = machine.mount();
    assert_eq!(mount.read("a/b/one.yaml"), "one");
    assert_eq!(lab.server().count("GetObject", "a/b/one.yaml"), 0, "complete files survive in the cache");
}

#[test]
fn a_large_file_opens_at_once_and_only_what_is_read_of_it_is_fetched() {
    let lab = Lab::s3();
    let big = pattern(64 * MIB);
    lab.seed(&[("big.bin", &big)]);
    let machine = lab.machine();
    let mount = machine.mount();
    let size = big.len() as u64;

    let file = File::open(mount.path("big.bin")).unwrap();
    assert_eq!(lab.server().count("GetObject", "big.bin"), 0, "opening fetches nothing");
    let mut tail = vec![0; 1000];
    file.read_exact_at(&mut tail, size - 1000).unwrap();
    assert!(tail == big[big.len() - 1000..], "the tail is the tail");
    let fetched = ranges(&lab, "big.bin", size);
    assert!(
        fetched.iter().all(|(start, _)| *start >= size - 4 * MIB as u64),
        "the head stays where it is: {fetched:?}"
    );
    drop(file);

    lab.server().clear_requests();
    assert!(read_at(&mount.path("big.bin"), 0, 4096) == big[..4096]);
    let fetched = ranges(&lab, "big.bin", size);
    assert!(fetched.len() <= 3, "few requests until the first bytes: {fetched:?}");
    let total: u64 = fetched.iter().map(|(start, end)| end - start).sum();
    assert!(total <= 8 * MIB as u64, "and no flood of bytes: {fetched:?}");

    // What is here stays here, also over a remount, and is not fetched again.
    eventually("the ranges are recorded", || (mount.status()["cachedBytes"].as_u64()? > 0).then_some(()));
    assert_eq!(mount.unmount(), 0);
    lab.server().clear_requests();
    let mount = machine.mount();
    assert!(read_at(&mount.path("big.bin"), 0, 4096) == big[..4096]);
    assert!(read_at(&mount.path("big.bin"), big.len() - 1000, 1000) == big[big.len() - 1000..]);
    let again = ranges(&lab, "big.bin", size);
    assert!(again.iter().all(|(start, _)| *start > 0 && *start < size - 1000), "recorded ranges came again: {again:?}");

    // The whole file: each byte once at most.
    assert!(std::fs::read(mount.path("big.bin")).unwrap() == big);
    let fetched = ranges(&lab, "big.bin", size);
    assert!(fetched.windows(2).all(|pair| pair[0].1 <= pair[1].0), "a byte was fetched twice: {fetched:?}");
    lab.server().clear_requests();
    assert!(std::fs::read(mount.path("big.bin")).unwrap() == big);
    assert_eq!(mount.unmount(), 0);
    let mount = machine.mount();
    assert!(std::fs::read(mount.path("big.bin")).unwrap() == big);
    assert_eq!(lab.server().count("GetObject", "big.bin"), 0, "a complete file needs no request");
}

#[test]
fn many_readers_of_a_file_share_one_fetch() {
    let lab = Lab::s3();
    let (small, large) = (pattern(300_000), pattern(24 * MIB));
    lab.seed(&[("small", &small), ("large", &large)]);
    let machine = lab.machine();
    let mount = machine.mount();
    for (name, bytes) in [("small", &small), ("large", &large)] {
        let start = std::sync::Barrier::new(8);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    start.wait();
                    assert!(std::fs::read(mount.path(name)).unwrap() == *bytes, "{name}");
                });
            }
        });
        let fetched = ranges(&lab, name, bytes.len() as u64);
        assert!(fetched.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{name}: fetched twice: {fetched:?}");
        assert_eq!(fetched.iter().map(|(start, end)| end - start).sum::<u64>(), bytes.len() as u64, "{name}");
    }
}

#[test]
fn programs_read_a_file_while_it_is_fetched_and_the_rest_of_the_mount_goes_on() {
    let lab = Lab::s3();
    let small = pattern(100_000);
    lab.seed(&[("slow", &small), ("other", b"other")]);
    let machine = lab.machine();
    let mount = machine.mount();
    let gate = lab.server().hold("GetObject", "slow");
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let mut cat = std::process::Command::new("cat");
            cat.arg(mount.path("slow")).stdout(std::process::Stdio::piped()).spawn().unwrap()
        })
        .collect();
    gate.arrived_blocking(1);
    assert_eq!(mount.read("other"), "other", "nobody waits for somebody else's fetch");
    assert_eq!(mount.files(), ["other", "slow"]);
    mount.write("new", "written meanwhile");
    gate.open();
    for reader in readers {
        let output = reader.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == small);
    }
    assert_eq!(lab.server().count("GetObject", "slow"), 1);
}

#[test]
fn the_first_bytes_of_a_large_file_are_there_before_the_rest() {
    let lab = Lab::s3();
    let big = pattern(32 * MIB);
    lab.seed(&[("big", &big)]);
    let machine = lab.machine();
    let mount = machine.mount();
    lab.server().inject(Fault::on("GetObject", Action::StallBody(600_000)).key("big"));
    assert!(read_at(&mount.path("big"), 0, 4096) == big[..4096]);
    lab.server().clear_faults();
}

#[test]
fn a_body_that_breaks_off_is_asked_for_again_from_where_it_broke() {
    let lab = Lab::s3();
    let (small, large) = (pattern(200_000), pattern(12 * MIB));
    lab.seed(&[("small", &small), ("large", &large)]);
    let machine = lab.machine();
    let mount = machine.mount();
    lab.server().inject(Fault::on("GetObject", Action::CutBody(70_000)).times(3));
    assert!(std::fs::read(mount.path("small")).unwrap() == small);
    lab.server().inject(Fault::on("GetObject", Action::CutBody(100_000)).times(3));
    assert!(std::fs::read(mount.path("large")).unwrap() == large);
    assert_eq!(mount.status()["readErrors"].as_array().unwrap().len(), 0);
}

#[test]
fn empty_files_executables_and_symlinks_are_what_their_entries_say() {
    let lab = Lab::s3();
    lab.put_object("bin/run", b"#!/bin/sh\necho it runs\n");
    lab.put_object("links/there", b"../bin/run");
    lab.put_object("links/nowhere", "näher/als du".as_bytes());
    let with_mode = |path: &str, bytes: &[u8], mode: &str| {
        let mut entry = entry(path, bytes);
        entry["mode"] = mode.into();
        (path.to_owned(), entry)
    };
    let entries = [
        with_mode("bin/run", b"#!/bin/sh\necho it runs\n", "100755"),
        with_mode("links/there", b"../bin/run", "120000"),
        with_mode("links/nowhere", "näher/als du".as_bytes(), "120000"),
        with_mode("odd", b"odd", "040000"),
    ];
    lab.write_entries(entries.into_iter().collect());
    lab.seed(&[("empty", b""), ("odd2", b"x")]);
    lab.put_object("odd", b"odd");
    let machine = lab.machine();
    for _ in 0..2 {
        let mount = machine.mount();
        assert_eq!(mount.read("empty"), "");
        assert_eq!(std::fs::metadata(mount.path("empty")).unwrap().len(), 0);
        assert_eq!(mount.read("odd"), "odd", "an unknown mode is a plain file");
        let mode = |name: &str| std::fs::metadata(mount.path(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode("bin/run"), mode("empty"), mode("odd")), (0o755, 0o644, 0o644));
        let ran = std::process::Command::new(mount.path("links/there")).output().unwrap();
        assert_eq!(ran.stdout, b"it runs\n");
        let target = std::fs::read_link(mount.path("links/nowhere")).unwrap();
        assert_eq!(target, Path::new("näher/als du"));
        assert_eq!(std::fs::symlink_metadata(mount.path("links/nowhere")).unwrap().len(), 13);
        assert_eq!(mount.unmount(), 0);
    }
    assert_eq!(lab.server().count("GetObject", "links/nowhere"), 1, "a symlink's target survives in the cache");
}

#[test]
fn the_catalog_export_is_read_fully_whatever_its_entry_says() {
    let cases: [(&[u8], &[u8]); 4] = [
        (b"", b"grown from nothing"),
        (b"short", b"much longer than its entry says"),
        (b"much longer than it is now", b"short"),
        (b"same size A", b"same size B"),
    ];
    for (listed, stored) in cases {
        let lab = Lab::s3();
        lab.seed(&[(".catalog-export.json", listed), ("plain", b"x")]);
        lab.put_object(".catalog-export.json", stored);
        let machine = lab.machine();
        let mount = machine.mount();
        std::fs::metadata(mount.path(".catalog-export.json")).unwrap();
        assert_eq!(mount.read(".catalog-export.json").as_bytes(), stored);
        assert_eq!(std::fs::metadata(mount.path(".catalog-export.json")).unwrap().len(), stored.len() as u64);
        // It is rewritten again, and the index still says nothing.
        for again in [&b"rewritten, once more"[..], b"Rewritten, Once More", b""] {
            lab.put_object(".catalog-export.json", again);
            assert_eq!(mount.read(".catalog-export.json").as_bytes(), again);
        }
        mount.write(".catalog-export.json", "ours");
        assert_eq!(mount.read(".catalog-export.json"), "ours");
    }
}

#[test]
fn what_was_fetched_but_not_compared_before_a_kill_is_compared_when_it_is_read() {
    let lab = Lab::s3();
    let (small, large) = (pattern(10_000), pattern(5 * MIB));
    lab.seed(&[("small", &small), ("large", &large), ("spoilt", &small)]);
    let machine = lab.machine();
    let mount = machine.mount();
    ["small", "large", "spoilt"].iter().for_each(|name| drop(std::fs::read(mount.path(name)).unwrap()));
    assert_eq!(mount.unmount(), 0);
    // As a kill right after the last range was recorded leaves it.
    let db = rusqlite::Connection::open(machine.cache_root().join("state.db")).unwrap();
    let rows: Vec<(i64, String)> = {
        let mut query = db.prepare("SELECT id, body FROM content").unwrap();
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
    };
    assert_eq!(rows.len(), 3);
    for (id, body) in rows {
        let mut body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let size = body["version"]["entry"]["size"].as_u64().unwrap();
        body["present"] = serde_json::json!([[0, size]]);
        body["stamp"] = serde_json::Value::Null;
        if body["version"]["key"] == "spoilt" {
            std::fs::write(machine.cache_root().join(format!("data/{id}")), vec![1; small.len()]).unwrap();
        }
        db.execute("UPDATE content SET body = ? WHERE id = ?", (body.to_string(), id)).unwrap();
    }
    drop(db);
    lab.server().clear_requests();
    let mount = machine.mount();
    assert!(std::fs::read(mount.path("small")).unwrap() == small);
    assert!(std::fs::read(mount.path("large")).unwrap() == large);
    assert_eq!(lab.server().count("GetObject", "small") + lab.server().count("GetObject", "large"), 0);
    // And what does not fit is not shown, but fetched again.
    let read = eventually("the right bytes", || std::fs::read(mount.path("spoilt")).ok());
    assert!(read == small);
}

#[test]
fn what_was_asked_for_ahead_of_a_reader_is_given_up_when_it_leaves() {
    let lab = Lab::s3();
    let big = pattern(64 * MIB);
    lab.seed(&[("big.bin", &big), ("other", b"other")]);
    let gate = Gate::default();
    lab.server().inject(Fault::on("GetObject", Action::Hold(gate.clone())).key("big.bin").skip(1));
    let machine = lab.machine();
    let mount = machine.mount_with(&["--download-concurrency", "1"]);
    {
        let file = File::open(mount.path("big.bin")).unwrap();
        let mut buffer = vec![0; 128 << 10];
        for number in 0..8 {
            file.read_exact_at(&mut buffer, number * (128 << 10)).unwrap();
        }
        // One request for what comes next is under way, and several wait behind it.
        gate.arrived_blocking(1);
    }
    gate.open();
    // Waits for its turn behind all of them.
    assert_eq!(mount.read("other"), "other");
    let asked = lab.server().count("GetObject", "big.bin");
    assert!(asked <= 3, "{asked} requests for a file that nobody reads any more");
    // Whoever comes back gets everything.
    assert!(std::fs::read(mount.path("big.bin")).unwrap() == big);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_strided_reader_of_a_large_file_is_ahead_of_the_latency() {
    let lab = Lab::s3();
    let big = pattern(256 * MIB);
    lab.seed(&[("big.bin", &big)]);
    let machine = lab.machine();
    let mount = machine.mount();
    let file = File::open(mount.path("big.bin")).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut buffer = vec![0; 4096];
    let places: Vec<u64> = (1..60).map(|step| step * 4 * MIB as u64).collect();
    for place in &places[..30] {
        file.read_exact_at(&mut buffer, *place).unwrap();
        assert!(buffer == big[*place as usize..][..4096]);
    }
    // The next reads of the pattern are here or on their way before they come.
    eventually("the next strides", || {
        let asked = ranges(&lab, "big.bin", big.len() as u64);
        let is_asked = |place: &u64| asked.iter().any(|(start, end)| (*start..*end).contains(place));
        places[30..40].iter().all(is_asked).then_some(())
    });
    let asked: u64 = ranges(&lab, "big.bin", big.len() as u64).iter().map(|(start, end)| end - start).sum();
    assert!(asked < 16 * MIB as u64, "and nothing between them: {asked} bytes");
    drop(file);
    assert_eq!(mount.unmount(), 0);
}
