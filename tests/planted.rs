//! Promise: what somebody planted where the mount works is refused: symlinks in the cache directory, a cache directory of
//! another user, a mountpoint that was replaced after it was checked. Nothing outside is read, written or mounted on.

mod support;

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use support::mount::{Lab, Machine, eventually, is_mounted};

const SECRET: &[u8] = b"not for the bucket";

/// A machine with an unpushed file, not mounted.
fn with_unpushed<'a>(lab: &'a Lab) -> Machine<'a> {
    lab.seed(&[("a", b"a")]);
    let machine = lab.machine();
    let mount = machine.mount();
    assert_eq!(mount.read("a"), "a");
    mount.write("unpushed", "unpushed");
    mount.kill();
    machine
}

fn refused(machine: &Machine<'_>, options: &[&str], says: &str) {
    let mountpoint = machine.mountpoint();
    let mut command = machine.command();
    let output = command.args(options).arg(machine.source()).arg(&mountpoint).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(says), "no {says:?} in {said}");
    assert!(!is_mounted(&mountpoint), "{said}");
}

#[test]
fn a_part_of_the_cache_directory_that_is_a_symlink_is_refused() {
    for part in ["data", "cache", "state.db"] {
        let lab = Lab::s3();
        let machine = with_unpushed(&lab);
        let root = machine.cache_root();
        let outside = tempfile::tempdir().unwrap();
        let (place, moved) = (root.join(part), outside.path().join("moved"));
        fs::rename(&place, &moved).unwrap();
        symlink(&moved, &place).unwrap();
        refused(&machine, &[], part);
        // And whoever takes it away again has lost nothing.
        fs::remove_file(&place).unwrap();
        let back = std::process::Command::new("cp").arg("-a").arg(&moved).arg(&place).status().unwrap();
        assert!(back.success());
        let mount = machine.mount();
        assert_eq!(mount.read("unpushed"), "unpushed", "{part}");
        mount.flushed();
        assert_eq!(mount.unmount(), 0, "{part}");
    }
}

#[test]
fn a_content_that_is_a_symlink_is_neither_read_nor_pushed() {
    let lab = Lab::s3();
    let machine = with_unpushed(&lab);
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), SECRET).unwrap();
    for content in fs::read_dir(machine.cache_root().join("data")).unwrap() {
        let content = content.unwrap().path();
        fs::remove_file(&content).unwrap();
        symlink(secret.path(), &content).unwrap();
    }
    let mount = machine.mount();
    let error = fs::read(mount.path("unpushed")).unwrap_err();
    assert_ne!(error.raw_os_error(), Some(libc::ENOENT), "its bytes were only here, but it is not gone");
    assert!(fs::read(mount.path("a")).is_ok_and(|bytes| bytes == b"a") || fs::read(mount.path("a")).is_err());
    assert!(!mount.flush().status.success(), "it says what is left");
    for name in ["a", "unpushed"] {
        // Whether or not it is taken, it does not go there.
        let _ = fs::OpenOptions::new().append(true).open(mount.path(name)).and_then(|file| (&file).write_all(b"more"));
    }
    assert!(lab.keys().iter().all(|key| lab.object(key).unwrap() != SECRET));
    assert_eq!(fs::read(secret.path()).unwrap(), SECRET);
}

#[test]
fn a_symlink_in_the_reference_cache_is_neither_followed_nor_pushed() {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    let machine = lab.machine();
    let mount = machine.mount();
    assert_eq!(mount.read("a"), "a");
    assert_eq!(mount.unmount(), 0);
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), SECRET).unwrap();
    let cache = machine.cache_root().join("cache");
    symlink(outside.path().join("secret"), cache.join("file")).unwrap();
    symlink(outside.path(), cache.join("directory")).unwrap();
    fs::remove_file(cache.join("a")).unwrap();
    symlink(outside.path().join("secret"), cache.join("a")).unwrap();
    // As if another client had worked there: the start looks through it.
    fs::remove_file(cache.join(".datastore-index.json")).unwrap();
    let mount = machine.mount();
    assert_eq!(mount.files(), ["a"]);
    assert_eq!(mount.read("a"), "a");
    mount.write("directory/new", "ours");
    mount.write("file", "ours");
    mount.flushed();
    assert_eq!(mount.unmount(), 0);
    assert_eq!(lab.data_keys(), ["a", "directory/new", "file"]);
    assert!(lab.keys().iter().all(|key| lab.object(key).unwrap() != SECRET));
    let names: Vec<_> = fs::read_dir(outside.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["secret"]);
    assert_eq!(fs::read(outside.path().join("secret")).unwrap(), SECRET);
}

#[test]
fn a_cache_directory_of_another_user_is_refused() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give a directory away");
        return;
    }
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    let machine = lab.machine();
    let cache = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(cache.path(), Some(12345), Some(12345)).unwrap();
    refused(&machine, &["--cache-dir", cache.path().to_str().unwrap()], "belongs to user 12345");
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0, "nothing was put there");
}

/// Replaces the mountpoint while the mount waits for its first answer of the bucket.
fn swapped(replace: impl FnOnce(&Path, &Path)) {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    let machine = lab.machine();
    let victim = tempfile::tempdir().unwrap();
    let victim = victim.path().canonicalize().unwrap();
    let place = machine.mountpoint();
    let gate = lab.server().hold("GetObject", lab.index_key());
    let mut command = machine.command();
    command.arg("--foreground").arg(machine.source()).arg(&place);
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    gate.arrived_blocking(1);
    replace(&place, &victim);
    gate.open();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("replaced while"), "{said}");
    for path in [&place, &victim, &place.with_extension("moved")] {
        assert!(!is_mounted(path), "{}", path.display());
    }
    // With its directory back it mounts.
    if place.symlink_metadata().unwrap().is_symlink() {
        fs::remove_file(&place).unwrap();
    } else {
        fs::remove_dir(&place).unwrap();
    }
    fs::rename(place.with_extension("moved"), &place).unwrap();
    let mount = machine.mount();
    assert_eq!(mount.read("a"), "a");
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_mountpoint_that_becomes_a_symlink_is_not_mounted_on() {
    swapped(|place, victim| {
        fs::rename(place, place.with_extension("moved")).unwrap();
        symlink(victim, place).unwrap();
    });
}

#[test]
fn a_mountpoint_that_becomes_another_directory_is_not_mounted_on() {
    swapped(|place, _| {
        fs::rename(place, place.with_extension("moved")).unwrap();
        fs::create_dir(place).unwrap();
    });
}

#[test]
fn what_was_mounted_over_it_is_not_unmounted() {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    let machine = lab.machine();
    let mount = machine.mount();
    let place = machine.mountpoint();
    let options = rustix::mount::MountFlags::empty();
    if rustix::mount::mount("tmpfs", &place, "tmpfs", options, Some(c"size=1m")).is_err() {
        eprintln!("skipped: this user must not mount a tmpfs");
        return;
    }
    fs::write(place.join("theirs"), "theirs").unwrap();
    let output = machine.run(&["unmount", place.to_str().unwrap()]);
    assert_ne!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(fs::read(place.join("theirs")).unwrap(), b"theirs");
    rustix::mount::unmount(&place, rustix::mount::UnmountFlags::empty()).unwrap();
    eventually("the mount below it", || fs::read(place.join("a")).ok());
    assert_eq!(mount.unmount(), 0);
}
