//! Promise: a file whose bytes cannot be had gives an I/O error with the reason in the log and in `status`, never "no such
//! file" and never wrong bytes, and is read as soon as the cause is gone; what the index says now decides.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use support::mount::{Lab, Mount, entry, eventually};
use support::s3_server::{Action, Fault, S3Server};

const MIB: usize = 1 << 20;

/// Bytes that tell where in the file they belong, and of which version they are.
fn pattern(version: u8, size: usize) -> Vec<u8> {
    (0..size.div_ceil(8) as u64).flat_map(|n| (n * 8 + u64::from(version)).to_le_bytes()).take(size).collect()
}

fn errno(result: std::io::Result<Vec<u8>>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().expect("an errno"))
}

fn read_errors(mount: &Mount<'_>) -> Vec<String> {
    let status = mount.status();
    let errors = status["readErrors"].as_array().expect("a list");
    errors.iter().map(|e| e["message"].as_str().expect("a message").to_owned()).collect()
}

const OPTIONS: [&str; 8] =
    ["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600", "--request-timeout", "1"];

/// How a file is spoilt, and what the reason says.
struct Case {
    name: &'static str,
    spoil: fn(&S3Server, &str, &[u8]),
    reason: &'static str,
}

fn cases() -> Vec<Case> {
    fn fault(server: &S3Server, key: &str, action: Action) {
        server.inject(Fault::on("GetObject", action).key(key));
    }
    vec![
        Case {
            name: "missing",
            spoil: |s, k, _| {
                s.remove(k);
            },
            reason: "although the index still lists it",
        },
        Case {
            name: "too-short",
            spoil: |s, k, b| {
                s.put_object(k, b[..b.len() / 2].to_vec());
            },
            reason: "its index entry says",
        },
        Case {
            name: "too-long",
            spoil: |s, k, b| {
                s.put_object(k, [b, b"more"].concat());
            },
            reason: "its index entry says",
        },
        Case {
            name: "other-bytes",
            spoil: |s, k, b| {
                s.put_object(k, pattern(3, b.len()));
            },
            reason: "another sha256",
        },
        Case { name: "forbidden", spoil: |s, k, _| fault(s, k, Action::Status(403)), reason: "credentials" },
        Case { name: "unavailable", spoil: |s, k, _| fault(s, k, Action::Status(503)), reason: "HTTP 503" },
        Case { name: "stalled", spoil: |s, k, _| fault(s, k, Action::Stall), reason: "no answer within 1s" },
        Case { name: "stalls-in-the-body", spoil: |s, k, _| fault(s, k, Action::StallBody(0)), reason: "stalled" },
        Case { name: "breaks-off", spoil: |s, k, _| fault(s, k, Action::CutBody(0)), reason: "broke off" },
        Case { name: "lost", spoil: |s, k, _| fault(s, k, Action::LoseAnswer), reason: "network" },
    ]
}

#[test]
fn a_small_file_that_cannot_be_had_is_an_io_error_with_its_reason_and_heals() {
    spoil_and_heal(10_000);
}

#[test]
fn a_large_file_that_cannot_be_had_is_an_io_error_with_its_reason_and_heals() {
    spoil_and_heal(5 * MIB);
}

fn spoil_and_heal(size: usize) {
    let lab = Lab::s3();
    let bytes = pattern(0, size);
    let cases = cases();
    let names: Vec<_> = cases.iter().map(|case| format!("dir/{}", case.name)).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &bytes[..])).collect();
    lab.seed(&files);
    for (case, name) in cases.iter().zip(&names) {
        (case.spoil)(lab.server(), name, &bytes);
    }
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    std::thread::scope(|scope| {
        for name in &names {
            let mount = &mount;
            scope.spawn(move || {
                let failed = errno(std::fs::read(mount.path(name)));
                assert_eq!(failed, Some(libc::EIO), "{name} of {size} bytes");
                let again = errno(std::fs::read(mount.path(name)));
                assert_eq!(again, Some(libc::EIO), "{name} of {size} bytes, read again");
                assert_eq!(std::fs::metadata(mount.path(name)).unwrap().len(), size as u64);
            });
        }
    });
    assert_eq!(mount.files().len(), names.len(), "all are still listed");
    let (errors, log) = (read_errors(&mount), machine.log());
    for (case, name) in cases.iter().zip(&names) {
        let found = |text: &str| text.contains(name.as_str()) && text.contains(case.reason);
        assert!(errors.iter().any(|e| found(e)), "{name}: no {:?} in {errors:#?}", case.reason);
        assert!(log.lines().any(found), "{name}: no {:?} in the log", case.reason);
    }
    lab.server().clear_faults();
    files.iter().for_each(|(name, bytes)| lab.put_object(name, bytes));
    for name in &names {
        let read = std::fs::read(mount.path(name)).unwrap_or_else(|e| panic!("{name}: {e}\n{}", machine.log()));
        assert!(read == bytes, "{name} is whole again");
    }
}

#[test]
fn two_versions_of_an_object_are_never_stitched_together() {
    let lab = Lab::s3();
    let (old, new) = (pattern(0, 16 * MIB), pattern(5, 16 * MIB));
    lab.seed(&[("big", &old), ("unhashed", &old)]);
    let mut entries = lab.entries();
    entries["unhashed"].as_object_mut().unwrap().remove("sha256");
    lab.write_entries(entries);
    let machine = lab.machine();
    let mount = machine.mount();
    for name in ["big", "unhashed"] {
        let file = File::open(mount.path(name)).unwrap();
        let mut head = vec![0; 4096];
        file.read_exact_at(&mut head, 0).unwrap();
        assert!(head == old[..4096]);
        // Another writer uploads before it writes the index: the name still has the old entry.
        lab.put_object(name, &new);
        let mut rest = vec![0; 4096];
        let failed = file.read_exact_at(&mut rest, 10 << 20).unwrap_err().raw_os_error();
        assert!(matches!(failed, Some(libc::EIO | libc::ESTALE)), "{name}: {failed:?}");
        file.read_exact_at(&mut head, 0).unwrap();
        assert!(head == old[..4096], "what is here of the old version can be read");
        match std::fs::read(mount.path(name)) {
            Ok(bytes) => assert!(name == "unhashed" && bytes == new, "{name} was stitched together"),
            Err(error) => assert_eq!((name, error.raw_os_error()), ("big", Some(libc::EIO))),
        }
        drop(file);
    }
    // The index follows.
    let mut entries = lab.entries();
    entries.insert("big".into(), entry("big", &new));
    lab.write_entries(entries);
    lab.put_object("big", &new);
    eventually("the new version", || (std::fs::read(mount.path("big")).ok()? == new).then_some(()));
}

#[test]
fn a_file_that_changed_since_the_last_refresh_is_opened_as_it_is_now() {
    let lab = Lab::s3();
    lab.seed(&[("small", b"one"), ("same-size", b"old"), ("renamed-away", b"was here")]);
    let big = pattern(0, 6 * MIB);
    lab.seed(&[("big", &big)]);
    let machine = lab.machine();
    let mount = machine.mount();
    assert_eq!(mount.files().len(), 4);
    assert_eq!(std::fs::metadata(mount.path("small")).unwrap().len(), 3);
    let bigger = pattern(1, 7 * MIB);
    lab.seed(&[("small", b"two and more"), ("same-size", b"new"), ("big", &bigger)]);
    assert_eq!(mount.read("small"), "two and more");
    assert_eq!(mount.read("same-size"), "new");
    assert_eq!(std::fs::metadata(mount.path("small")).unwrap().len(), 12);
    let read = eventually("the new version of the large file", || std::fs::read(mount.path("big")).ok());
    assert!(read == bigger);

    // Its entry is gone, too: it was removed.
    let mut entries = lab.entries();
    entries.remove("renamed-away");
    lab.write_entries(entries);
    lab.server().remove("renamed-away");
    assert_eq!(errno(std::fs::read(mount.path("renamed-away"))), Some(libc::ENOENT));
    assert_eq!(mount.files(), ["big", "same-size", "small"]);
    assert_eq!(read_errors(&mount), [""; 0]);
}

#[test]
fn a_wrong_hash_is_not_believed_from_the_page_cache_either() {
    let lab = Lab::s3();
    let (right, wrong) = (pattern(0, 6 * MIB), pattern(1, 6 * MIB));
    lab.seed(&[("big", &right)]);
    lab.put_object("big", &wrong);
    let machine = lab.machine();
    let mount = machine.mount();
    assert_eq!(errno(std::fs::read(mount.path("big"))), Some(libc::EIO), "the program learns of it");
    assert_eq!(errno(std::fs::read(mount.path("big"))), Some(libc::EIO));
    lab.put_object("big", &right);
    assert!(std::fs::read(mount.path("big")).unwrap() == right);
}

#[test]
fn a_stalled_read_can_be_left_alone_and_the_mount_goes_on() {
    let lab = Lab::s3();
    lab.seed(&[("stalled", b"never"), ("fine", b"fine")]);
    lab.server().inject(Fault::on("GetObject", Action::Stall).key("stalled"));
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    let mut cat = std::process::Command::new("cat");
    let mut reader = cat.arg(mount.path("stalled")).stderr(std::process::Stdio::null()).spawn().unwrap();
    eventually("the request", || (lab.server().count("GetObject", "stalled") > 0).then_some(()));
    let began = Instant::now();
    assert_eq!(mount.read("fine"), "fine");
    assert!(began.elapsed() < Duration::from_secs(3));
    assert!(!reader.wait().unwrap().success());
}
