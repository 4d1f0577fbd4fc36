//! Promise: names follow the rules of the format: what cannot be a key is refused at once, what is internal stays local.

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;

use support::mount::Lab;

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.expect_err("must be refused").raw_os_error().expect("an errno")
}

#[test]
fn names_that_cannot_be_keys_are_refused_by_every_operation_that_makes_one() {
    let lab = Lab::dir();
    lab.seed(&[("file", b"x")]);
    let machine = lab.machine();
    let mount = machine.mount();
    let root = mount.path("");
    let long = "n".repeat(256);
    let fits = "n".repeat(255);
    // 4 × 255 and separators: 1 023 bytes, and one name of a single byte does not fit below it.
    let deep = [fits.as_str(); 4].join("/");
    fs::create_dir_all(root.join(&deep[..767])).unwrap();
    let cases: Vec<(Vec<u8>, i32)> = vec![
        (long.into_bytes(), libc::ENAMETOOLONG),
        (b"not-\xff-utf8".to_vec(), libc::EILSEQ),
        (b"_index".to_vec(), libc::EPERM),
        (b"_control".to_vec(), libc::EPERM),
        (format!("{deep}/x/y").into_bytes(), libc::ENAMETOOLONG),
    ];
    fs::create_dir(root.join(&deep)).unwrap();
    for (name, wanted) in cases {
        let path = root.join(OsStr::from_bytes(&name));
        let shown = String::from_utf8_lossy(&name[..name.len().min(20)]).into_owned();
        // The directory in front of the last name can be made where only the whole key is too long.
        if wanted == libc::ENAMETOOLONG && name.contains(&b'/') {
            assert_eq!(errno(fs::create_dir(path.parent().unwrap())), wanted, "{shown}");
            continue;
        }
        assert_eq!(errno(fs::write(&path, b"x")), wanted, "create {shown}");
        assert_eq!(errno(fs::create_dir(&path)), wanted, "mkdir {shown}");
        assert_eq!(errno(std::os::unix::fs::symlink("target", &path)), wanted, "symlink {shown}");
        assert_eq!(errno(fs::rename(root.join("file"), &path)), wanted, "rename {shown}");
    }
    let fits = "m".repeat(255);
    fs::write(root.join(&fits), b"longest").unwrap();
    for name in ["ünïcödé", "with space", "a\nnewline", "-dash", "100%", "back\\slash", "q?mark", "#hash", "a+b&c=d"]
    {
        mount.write(&format!("odd/{name}"), name);
    }
    mount.flushed();
    for name in ["ünïcödé", "with space", "a\nnewline", "-dash", "100%", "back\\slash", "q?mark", "#hash", "a+b&c=d"]
    {
        assert_eq!(lab.object(&format!("odd/{name}")).unwrap(), name.as_bytes());
    }
    assert_eq!(lab.object(&fits).unwrap(), b"longest");
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn odd_names_reach_an_s3_bucket_and_come_back() {
    let lab = Lab::s3();
    let names = ["ünïcödé", "with space", "a\nb", "100%", "%2F", "back\\slash", "q?m", "#h", "a+b&c=d", "...", "日本"];
    let machine = lab.machine();
    let mount = machine.mount();
    for name in names {
        mount.write(&format!("odd/{name}/{name}"), name);
    }
    fs::rename(mount.path("odd"), mount.path("odder ü+")).unwrap();
    mount.flushed();
    // Uploaded under one name, copied to another.
    fs::rename(mount.path("odder ü+"), mount.path("odd?")).unwrap();
    assert_eq!(mount.unmount(), 0);
    let elsewhere = lab.machine();
    let mount = elsewhere.mount();
    for name in names {
        let path = format!("odd?/{name}/{name}");
        assert_eq!(mount.read(&path), name);
        assert_eq!(lab.object(&path).unwrap(), name.as_bytes());
    }
    assert_eq!(lab.entries().len(), names.len());
    assert_eq!(lab.data_keys().len(), names.len());
}

#[test]
fn internal_names_work_stay_here_survive_a_remount_and_never_reach_the_bucket() {
    let internal = [
        "dir/.lock",
        "data/t/id/.lock",
        "data/_catalog.db",
        "data/_catalog.db-wal",
        "data/_catalog.db-shm",
        ".datastore.lock",
        ".push-queue.json",
        ".datastore-sync-state.json",
        "ns/.namespace.json",
    ];
    for lab in [Lab::s3(), Lab::dir()] {
        lab.seed(&[("dir/synced", b"s")]);
        let machine = lab.machine();
        let mount = machine.mount();
        for name in internal {
            mount.write(name, name);
        }
        mount.write("dir/_catalog.database", b"not internal");
        fs::rename(mount.path("data/_catalog.db"), mount.path("dir/_catalog.db")).unwrap();
        fs::rename(mount.path("dir/_catalog.db"), mount.path("data/_catalog.db")).unwrap();
        // A directory with internal names in it moves with them.
        fs::rename(mount.path("ns"), mount.path("moved")).unwrap();
        fs::rename(mount.path("moved"), mount.path("ns")).unwrap();
        mount.flushed();
        assert_eq!(mount.status()["localOnly"], internal.len());
        assert_eq!(lab.entries().keys().collect::<Vec<_>>(), ["dir/synced", "dir/_catalog.database"]);
        assert_eq!(mount.unmount(), 0);
        let mount = machine.mount();
        for name in internal {
            assert_eq!(mount.read(name), name);
            // Rewritten in place and removed like any other file.
            fs::OpenOptions::new()
                .append(true)
                .open(mount.path(name))
                .and_then(|mut f| {
                    use std::io::Write;
                    f.write_all(b"+")
                })
                .unwrap();
        }
        fs::remove_file(mount.path("dir/.lock")).unwrap();
        mount.flushed();
        mount.kill();
        let mount = machine.mount();
        for name in &internal[1..] {
            assert_eq!(mount.read(name), format!("{name}+"));
        }
        assert!(!mount.path("dir/.lock").exists());
        assert_eq!(mount.unmount(), 0);
        for name in internal {
            assert_eq!(lab.object(name), None, "{name}");
        }
    }
}

#[test]
fn a_prefix_counts_towards_the_length_of_a_key() {
    let lab = Lab::s3();
    let prefix = "p".repeat(200);
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "3600", "--flush-after", "3600", "--prefix", &prefix]);
    let name = |length: usize| {
        let dir = ["d".repeat(200), "e".repeat(200), "f".repeat(200)].join("/");
        format!("{dir}/{}", "g".repeat(length - dir.len() - 1))
    };
    // prefix, a slash, and 823 bytes make 1 024.
    mount.write(&name(823), b"fits");
    assert_eq!(errno(fs::write(mount.path(&name(824)), b"too long")), libc::ENAMETOOLONG);
    mount.flushed();
    assert_eq!(lab.object(&format!("{prefix}/{}", name(823))).unwrap(), b"fits");
    // One byte more in front of it, for a file far below.
    assert_eq!(errno(fs::rename(mount.path(&"d".repeat(200)), mount.path(&"d".repeat(201)))), libc::ENAMETOOLONG);
    assert_eq!(mount.unmount(), 0);
}
