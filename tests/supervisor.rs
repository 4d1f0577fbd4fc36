//! Promise: a crash of the daemon is no outage. The mount stays, what was acknowledged is there, what was under way is carried
//! out once, and whatever ends the mount afterwards ends it as ever.

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use support::mount::{Lab, Mount, PATIENCE, eventually, is_mounted};
use support::s3_server::{Action, Fault};

const QUIET: &[&str] = &["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];

#[test]
fn nobody_notices_a_crash_and_nothing_is_lost() {
    for lab in Lab::each() {
        lab.seed(&[("remote", b"from the bucket"), ("dir/file", b"below")]);
        let machine = lab.machine();
        let mount = machine.mount();
        mount.write("new", "unpushed");
        mount.write("dir/new", "unpushed too");
        fs::rename(mount.path("dir/file"), mount.path("dir/renamed")).unwrap();
        let before = mount.status();
        let began = Instant::now();
        mount.crash();
        // The first look waits for the next worker, and is answered.
        assert_eq!(mount.read("dir/new"), "unpushed too");
        eprintln!("{}: answered {:?} after the crash", lab.kind(), began.elapsed());
        assert_eq!(mount.files(), ["dir/new", "dir/renamed", "new", "remote"]);
        for (name, bytes) in [("new", "unpushed"), ("remote", "from the bucket"), ("dir/renamed", "below")] {
            assert_eq!(mount.read(name), bytes);
        }
        let status = mount.status();
        assert_eq!(status["restarts"], 1);
        assert!(status["last_crash"].as_str().unwrap().starts_with("signal 9"), "{status}");
        assert_eq!(status["pid"], before["pid"]);
        assert_ne!(status["worker_pid"], before["worker_pid"]);
        mount.write("new", "changed after the crash");
        mount.flushed();
        for (name, bytes) in [("new", "changed after the crash"), ("dir/new", "unpushed too"), ("dir/renamed", "below")]
        {
            assert_eq!(lab.object(name).as_deref(), Some(bytes.as_bytes()), "{name}");
        }
        assert_eq!(mount.unmount(), 0);
        assert!(!is_mounted(&machine.mountpoint()));
    }
}

#[test]
fn whoever_works_on_while_it_crashes_sees_no_dead_mount() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount();
    let stop = AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (mount, stop) = (&mount, &stop);
                scope.spawn(move || {
                    let mut acknowledged = Vec::new();
                    for round in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return acknowledged;
                        }
                        let name = format!("by-{writer}/{round}");
                        make(mount, &name).unwrap_or_else(|error| panic!("{name}: {error}"));
                        acknowledged.push(name);
                    }
                    unreachable!()
                })
            })
            .collect();
        for crash in 1..=3 {
            eventually("some files", || (mount.files().len() > 20 * crash).then_some(()));
            mount.crash();
            mount.restarted(crash as u64);
        }
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(written.len() > 60);
    for name in &written {
        assert_eq!(mount.read(name), *name);
    }
    mount.flushed();
    for name in &written {
        assert_eq!(lab.object(name).as_deref(), Some(name.as_bytes()));
    }
    assert_eq!(mount.unmount(), 0);
}

/// A file that holds its own name.
fn make(mount: &Mount<'_>, name: &str) -> io::Result<()> {
    let path = mount.path(name);
    match fs::create_dir(path.parent().unwrap()) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    fs::File::create_new(path)?.write_all(name.as_bytes())
}

#[test]
fn open_files_and_directories_go_on() {
    let lab = Lab::s3();
    let large: Vec<u8> = (0..6_000_000u32).map(|n| (n >> 8) as u8).collect();
    lab.seed(&[("old", b"old"), ("other", b"other"), ("dir/sub/x", b"x"), ("large", &large)]);
    let machine = lab.machine();
    let mount = machine.mount();
    let open = |name: &str| fs::File::options().read(true).append(true).open(mount.path(name));
    let mut writer = fs::File::create_new(mount.path("new")).unwrap();
    writer.write_all(b"one").unwrap();
    let mut moved = open("other").unwrap();
    fs::rename(mount.path("other"), mount.path("dir/moved")).unwrap();
    let mut reader = fs::File::open(mount.path("large")).unwrap();
    let mut start = vec![0; 1 << 20];
    reader.read_exact(&mut start).unwrap();
    assert!(start == large[..1 << 20]);
    let dir = fs::File::open(mount.path("dir/sub")).unwrap();
    // All of it was fetched and is recorded by then, or the reader would have to open it again.
    assert!(fs::read(mount.path("large")).unwrap() == large);
    eventually("the cache", || machine.cache_root().join("cache/large").exists().then_some(()));
    fs::rename(mount.path("dir"), mount.path("renamed")).unwrap();
    rustix::fs::flock(&writer, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-ec", "read go; pwd -P; cat x; mkdir by-shell; cd by-shell; pwd -P"]).stdin(Stdio::piped());
    let mut shell = shell.stdout(Stdio::piped()).current_dir(mount.path("renamed/sub")).spawn().unwrap();
    for crash in 1..=2 {
        mount.crash();
        mount.restarted(crash);
        writer.write_all(b", more").unwrap();
        writer.sync_all().unwrap();
        moved.write_all(b", more").unwrap();
        let below = rustix::fs::openat(&dir, "x", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        assert_eq!(io::read_to_string(fs::File::from(below)).unwrap(), "x");
        rustix::fs::mkdirat(&dir, format!("made-{crash}"), rustix::fs::Mode::RWXU).unwrap();
        assert!(mount.path(&format!("renamed/sub/made-{crash}")).is_dir());
        let contender = fs::File::open(mount.path("new")).unwrap();
        let locked = rustix::fs::flock(&contender, rustix::fs::FlockOperation::NonBlockingLockExclusive);
        assert_eq!(locked.unwrap_err(), rustix::io::Errno::WOULDBLOCK, "the lock is still held");
        // Whoever opens it by its name sees the same file.
        use std::os::unix::fs::MetadataExt;
        assert_eq!(contender.metadata().unwrap().ino(), writer.metadata().unwrap().ino());
        assert_eq!(mount.read("new").len(), "one".len() + 6 * crash as usize);
    }
    shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let output = shell.wait_with_output().unwrap();
    let here = mount.path("renamed/sub").display().to_string();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{here}\nx{here}/by-shell\n"));
    assert!(output.status.success());
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    assert!(rest == large[1 << 20..]);
    drop((writer, moved, reader, dir));
    mount.flushed();
    for (name, bytes) in [("new", "one, more, more"), ("renamed/moved", "other, more, more")] {
        assert_eq!(mount.read(name), bytes);
        assert_eq!(lab.object(name).as_deref(), Some(bytes.as_bytes()), "{name}");
    }
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn what_is_not_the_same_any_more_is_stale() {
    let lab = Lab::s3();
    lab.seed(&[("removed", b"removed"), ("replaced", b"replaced"), ("gone/x", b"x")]);
    let machine = lab.machine();
    let mount = machine.mount();
    let open = |name: &str| fs::File::options().read(true).append(true).open(mount.path(name)).unwrap();
    let (removed, replaced) = (open("removed"), open("replaced"));
    let gone = fs::File::open(mount.path("gone")).unwrap();
    fs::remove_file(mount.path("removed")).unwrap();
    fs::write(mount.path("new"), "new").unwrap();
    fs::rename(mount.path("new"), mount.path("replaced")).unwrap();
    fs::remove_dir_all(mount.path("gone")).unwrap();
    fs::write(mount.path("gone"), "a file now").unwrap();
    mount.crash();
    mount.restarted(1);
    // There are new handles too, and none of them is taken for an old one.
    let same: Vec<_> = (0..4).map(|_| open("replaced")).collect();
    let stale = |error: io::Error, what: &str| assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{what}: {error}");
    for (mut file, what) in [(removed, "removed"), (replaced, "replaced")] {
        stale(file.write_all(b"more").unwrap_err(), what);
        stale(file.sync_all().unwrap_err(), what);
    }
    let below = rustix::fs::openat(&gone, "x", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
    let errno = below.unwrap_err();
    assert!([rustix::io::Errno::STALE, rustix::io::Errno::NOENT].contains(&errno), "{errno}");
    drop((same, gone));
    for (name, bytes) in [("replaced", "new"), ("gone", "a file now")] {
        assert_eq!(mount.read(name), bytes);
    }
    assert_eq!(mount.files(), ["gone", "replaced"]);
    mount.flushed();
    assert_eq!(lab.object("replaced").as_deref(), Some(&b"new"[..]));
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn what_others_changed_is_shown_after_a_crash() {
    let lab = Lab::s3();
    lab.seed(&[("same", b"same"), ("changed", b"before"), ("gone", b"gone")]);
    let machine = lab.machine();
    let mount = machine.mount_with(&["--refresh", "1", "--flush-after", "3600"]);
    assert_eq!(mount.read("changed"), "before");
    assert_eq!(mount.files(), ["changed", "gone", "same"]);
    mount.crash();
    let mut entries = lab.entries();
    entries.remove("gone");
    lab.write_entries(entries);
    lab.seed(&[("changed", b"after that"), ("new", b"new")]);
    eventually("the view of now", || (mount.files() == ["changed", "new", "same"]).then_some(()));
    eventually("the bytes of now", || (mount.read("changed") == "after that").then_some(()));
    mount.restarted(1);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_restart_needs_no_bucket() {
    let lab = Lab::s3();
    lab.seed(&[("cached", b"cached")]);
    let machine = lab.machine();
    let mount = machine.mount();
    assert_eq!(mount.read("cached"), "cached");
    mount.write("new", "unpushed");
    eventually("the cache", || machine.cache_root().join("cache/cached").exists().then_some(()));
    lab.server().inject(Fault::any(Action::Stall));
    let began = Instant::now();
    mount.crash();
    assert_eq!(mount.read("new"), "unpushed");
    assert_eq!(mount.read("cached"), "cached");
    assert!(began.elapsed() < PATIENCE / 3, "{:?}", began.elapsed());
    lab.server().clear_faults();
    mount.flushed();
    assert_eq!(lab.object("new").as_deref(), Some(&b"unpushed"[..]));
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_crash_loop_ends_with_a_reason_and_no_dead_mount() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount();
    mount.write("new", "unpushed");
    for crash in 1..=5 {
        mount.crash();
        if crash < 5 {
            assert_eq!(mount.read("new"), "unpushed");
            mount.restarted(crash);
        }
    }
    assert_eq!(mount.wait(), Some(1));
    assert!(!is_mounted(&machine.mountpoint()));
    assert_eq!(fs::read_dir(machine.mountpoint()).unwrap().count(), 0);
    let log = machine.log();
    for words in ["5th crash within 60 seconds", "swamp-mount flush", "is kept in"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    let report = String::from_utf8(machine.run(&["status"]).stdout).unwrap();
    assert!(report.contains("ended without closing"), "{report}");
    let mount = machine.mount();
    assert_eq!(mount.read("new"), "unpushed");
    assert_eq!(mount.unmount(), 0);
    assert_eq!(lab.object("new").as_deref(), Some(&b"unpushed"[..]));
}

#[test]
fn after_a_crash_every_way_to_end_it_ends_it_as_before() {
    type Way = (&'static str, fn(&Mount<'_>));
    let ways: &[Way] = &[
        ("umount", |mount| {
            assert!(Command::new("umount").arg(mount.path("")).status().unwrap().success());
        }),
        ("SIGTERM", |mount| send(mount.pid(), rustix::process::Signal::TERM)),
        ("SIGINT", |mount| send(mount.pid(), rustix::process::Signal::INT)),
        ("SIGHUP", |mount| send(mount.pid(), rustix::process::Signal::HUP)),
        ("SIGTERM to both, as systemd does", |mount| {
            // The worker is not to hear it twice.
            let worker = mount.status()["worker_pid"].as_u64().unwrap();
            send(u32::try_from(worker).unwrap(), rustix::process::Signal::TERM);
            send(mount.pid(), rustix::process::Signal::TERM);
        }),
    ];
    for (how, end) in ways {
        let lab = Lab::s3();
        let machine = lab.machine();
        let mount = machine.mount();
        mount.write("new", "unpushed");
        mount.crash();
        mount.restarted(1);
        end(&mount);
        assert_eq!(mount.wait(), Some(0), "{how}\n{}", machine.log());
        assert!(!is_mounted(&machine.mountpoint()), "{how}");
        assert_eq!(lab.object("new").as_deref(), Some(&b"unpushed"[..]), "{how}");
    }
    // What cannot be pushed is exit code 3, also from another worker than the first.
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount();
    mount.write("new", "unpushed");
    mount.crash();
    mount.restarted(1);
    lab.server().inject(Fault::any(Action::Status(403)));
    send(mount.pid(), rustix::process::Signal::TERM);
    assert_eq!(mount.wait(), Some(3), "{}", machine.log());
    assert!(!is_mounted(&machine.mountpoint()));
}

fn send(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn a_crash_while_it_ends_is_made_good() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount();
    mount.write("new", "unpushed");
    let gate = lab.server().hold("PutObject", "new");
    send(mount.pid(), rustix::process::Signal::TERM);
    gate.arrived_blocking(1);
    mount.crash();
    gate.open();
    // A lock of the dead worker, if it has one, is stale.
    lab.server().set_clock_offset(40);
    // The next worker hears of the signal too.
    assert_eq!(mount.wait(), Some(0), "{}", machine.log());
    assert!(!is_mounted(&machine.mountpoint()));
    assert_eq!(lab.object("new").as_deref(), Some(&b"unpushed"[..]));
}

#[test]
fn in_the_background_too() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mountpoint = machine.mountpoint();
    let path = mountpoint.to_str().unwrap();
    let output = machine.run(&[QUIET, &[&lab.source(), path]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // At once: whoever sees the mount may ask.
    assert_eq!(machine.run(&["status", path]).status.code(), Some(0));
    let status = || -> serde_json::Value {
        serde_json::from_slice(&machine.run(&["status", path, "--json"]).stdout).unwrap_or_default()
    };
    fs::write(mountpoint.join("new"), "unpushed").unwrap();
    let worker = u32::try_from(status()["worker_pid"].as_u64().unwrap()).unwrap();
    send(worker, rustix::process::Signal::KILL);
    assert_eq!(fs::read_to_string(mountpoint.join("new")).unwrap(), "unpushed");
    eventually("the next worker", || (status()["restarts"] == 1).then_some(()));
    // The supervisor hears it a moment later than whoever asks the worker.
    eventually("both in the log", || {
        let log = fs::read_to_string(machine.cache_root().join("mount.log")).ok()?;
        (log.contains("crashed (signal 9)") && log.contains("answers again")).then_some(())
    });
    let output = machine.run(&["unmount", path]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!is_mounted(&mountpoint));
    assert_eq!(lab.object("new").as_deref(), Some(&b"unpushed"[..]));
}

#[test]
fn the_supervisor_takes_its_worker_along() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount();
    mount.write("new", "unpushed");
    let worker = mount.status()["worker_pid"].as_u64().unwrap();
    // Waits for the end of the worker as well.
    mount.kill();
    let stat = fs::read_to_string(format!("/proc/{worker}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z ") || !stat.contains("(swamp-mount)"), "{stat}");
    let mount = machine.mount();
    assert_eq!(mount.read("new"), "unpushed");
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn without_a_supervisor_a_crash_is_the_end() {
    let lab = Lab::s3();
    let machine = lab.machine();
    let mount = machine.mount_with(&[QUIET, &["--no-supervise"]].concat());
    let status = mount.status();
    assert_eq!(status["pid"], status["worker_pid"]);
    mount.crash();
    assert_eq!(mount.wait(), None, "a signal");
    assert!(is_mounted(&machine.mountpoint()));
    assert_eq!(fs::read_dir(machine.mountpoint()).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
}

/// In a mount namespace of its own, where `/dev/fuse` is open to all, as it is on an ordinary machine.
const AS_USER: &str = r#"
set -e
mount -t tmpfs none /mnt
mknod /mnt/fuse c 10 229
chmod 666 /mnt/fuse
mount --bind /mnt/fuse /dev/fuse
exec setpriv --reuid=65534 --regid=65534 --clear-groups sh -ec '
"$0" --refresh 3600 --flush-after 3600 "$1" "$2/mnt"
echo unpushed >"$2/mnt/new"
worker=$("$0" status "$2/mnt" --json | grep -o "\"worker_pid\": *[0-9]*" | grep -o "[0-9]*$")
kill -9 $worker
cat "$2/mnt/new"
"$0" status "$2/mnt" | grep restarts
echo more >>"$2/mnt/new"
"$0" unmount "$2/mnt"
' "$@"
"#;

#[test]
fn an_ordinary_user_has_a_supervisor_too() {
    let here = |program: &str| Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !rustix::process::geteuid().is_root() || !["fusermount3", "unshare", "setpriv"].into_iter().all(here) {
        eprintln!("not tested: it takes root, fusermount3, unshare and setpriv");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    for name in ["", "mnt", "bucket", "state"] {
        let path = home.path().join(name);
        fs::create_dir_all(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
    }
    // The program itself may lie where only root can go.
    let program = home.path().join("swamp-mount");
    fs::copy(env!("CARGO_BIN_EXE_swamp-mount"), &program).unwrap();
    let source = format!("file://{}", home.path().join("bucket").display());
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", AS_USER, "sh"]).arg(&program).arg(&source).arg(home.path());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("XDG_STATE_HOME", home.path().join("state"));
    let output = command.current_dir("/").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{out}{err}");
    assert!(out.contains("unpushed") && out.contains("restarts    1 (last crash: signal 9"), "{out}{err}");
    let pushed = fs::read_to_string(home.path().join("bucket/new")).unwrap();
    assert_eq!(pushed, "unpushed\nmore\n");
}
