//! Promise: a crash of the daemon is no outage. The mount stays, what was acknowledged is there, what was under way is carried
//! out once, and whatever ends the mount afterwards ends it as ever.

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use support::mount::{Lab, Mount, PATIENCE, eventually, is_mounted};
use support::s3_server::{Action, Fault};

const QUIET: &[&str] = &["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];

fn restarted(mount: &Mount<'_>, times: u64) {
    eventually("the next worker", || {
        let status = mount.try_status()?;
        (status["restarts"] == times).then_some(())
    });
}

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
                        match make(mount, &name) {
                            Ok(()) => acknowledged.push(name),
                            // A file that was open at that moment has to be opened again.
                            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{name}: {error}"),
                        }
                    }
                    unreachable!()
                })
            })
            .collect();
        for crash in 1..=3 {
            eventually("some files", || (mount.files().len() > 20 * crash).then_some(()));
            mount.crash();
            restarted(&mount, crash as u64);
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

type Step = (&'static str, fn(&Mount<'_>) -> io::Result<()>, &'static [(&'static str, &'static str)]);

/// One operation each, and what it makes of the files of the bucket.
const STEPS: &[Step] = &[
    (
        "create",
        |m| fs::File::create_new(m.path("dir/new")).map(drop),
        &[("dir/a", "a"), ("dir/b", "b"), ("dir/new", "")],
    ),
    (
        "create, and write to it",
        |m| fs::File::create_new(m.path("dir/new"))?.write_all(b"text"),
        &[("dir/a", "a"), ("dir/b", "b"), ("dir/new", "text")],
    ),
    ("mkdir", |m| fs::create_dir(m.path("dir/sub")), &[("dir/a", "a"), ("dir/b", "b")]),
    ("symlink", |m| symlink("a", m.path("dir/link")), &[("dir/a", "a"), ("dir/b", "b"), ("dir/link", "a")]),
    ("unlink", |m| fs::remove_file(m.path("dir/a")), &[("dir/b", "b")]),
    ("rmdir", |m| fs::remove_dir(m.path("dir/empty")), &[("dir/a", "a"), ("dir/b", "b")]),
    ("rename", |m| fs::rename(m.path("dir/a"), m.path("dir/c")), &[("dir/b", "b"), ("dir/c", "a")]),
    ("rename over", |m| fs::rename(m.path("dir/a"), m.path("dir/b")), &[("dir/b", "a")]),
    ("rename of a directory", |m| fs::rename(m.path("dir"), m.path("moved")), &[("moved/a", "a"), ("moved/b", "b")]),
    (
        "exchange",
        |m| {
            let (from, to) = (m.path("dir/a"), m.path("dir/b"));
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            Ok(rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)?)
        },
        &[("dir/a", "b"), ("dir/b", "a")],
    ),
    (
        "rename to a free name only",
        |m| {
            let (from, to) = (m.path("dir/a"), m.path("dir/c"));
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            Ok(rustix::fs::renameat_with(rustix::fs::CWD, from, rustix::fs::CWD, to, flags)?)
        },
        &[("dir/b", "b"), ("dir/c", "a")],
    ),
    ("truncate", |m| fs::File::create(m.path("dir/a")).map(drop), &[("dir/a", ""), ("dir/b", "b")]),
];

#[test]
#[cfg(feature = "failpoints")]
fn what_was_under_way_is_carried_out_once() {
    for point in ["rows.before_commit", "rows.after_commit"] {
        for (what, act, expected) in STEPS {
            let what = format!("{what}, killed at {point}");
            let lab = Lab::dir();
            lab.seed(&[("dir/a", b"a"), ("dir/b", b"b")]);
            let machine = lab.machine();
            let trigger = tempfile::NamedTempFile::new().unwrap().into_temp_path();
            let now = trigger.to_path_buf();
            fs::remove_file(&now).unwrap();
            let order = format!("{point}=when:{}", now.display());
            let mount = machine.try_mount(QUIET, &[("SWAMP_FAILPOINT", &order)]).unwrap();
            fs::create_dir(mount.path("dir/empty")).unwrap();
            fs::write(&now, "").unwrap();
            let outcome = act(&mount);
            assert!(!now.exists(), "{what}: it did not die");
            outcome.unwrap_or_else(|error| panic!("{what}: {error}\n{}", machine.log()));
            let shown: Vec<(String, String)> = mount.files().into_iter().map(|n| (n.clone(), mount.read(&n))).collect();
            let shown: Vec<(&str, &str)> = shown.iter().map(|(n, b)| (&**n, &**b)).collect();
            assert_eq!(shown, *expected, "{what}");
            assert_eq!(mount.path("dir/sub").is_dir(), what.starts_with("mkdir"), "{what}");
            assert_eq!(mount.path("dir/empty").is_dir(), !what.contains("directory") && !what.starts_with("rmdir"));
            restarted(&mount, 1);
            mount.flushed();
            for (name, bytes) in *expected {
                assert_eq!(lab.object(name).as_deref(), Some(bytes.as_bytes()), "{what}: {name}");
            }
            assert_eq!(lab.data_keys().len(), expected.len(), "{what}: {:?}", lab.data_keys());
            assert_eq!(mount.unmount(), 0, "{what}");
        }
    }
}

#[test]
fn a_file_that_was_open_must_be_opened_again() {
    let lab = Lab::s3();
    lab.seed(&[("old", b"old"), ("dir/x", b"x")]);
    let machine = lab.machine();
    let mount = machine.mount();
    let mut writer = fs::File::create(mount.path("new")).unwrap();
    writer.write_all(b"acknowledged").unwrap();
    let mut reader = fs::File::open(mount.path("old")).unwrap();
    let dir = fs::File::open(mount.path("dir")).unwrap();
    mount.crash();
    restarted(&mount, 1);
    // Not another file's bytes either, although there are new handles.
    let same: Vec<_> = (0..4).map(|_| fs::File::open(mount.path("old")).unwrap()).collect();
    let mut others = fs::File::options().append(true).open(mount.path("old")).unwrap();
    let stale = |error: io::Error| assert_eq!(error.raw_os_error(), Some(libc::ESTALE), "{error}");
    stale(writer.write_all(b" and lost").unwrap_err());
    stale(writer.sync_all().unwrap_err());
    stale(writer.set_len(0).unwrap_err());
    stale(rustix::fs::openat(&dir, "x", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap_err().into());
    // Pages that the kernel still has are those of that version.
    match reader.read_to_string(&mut String::new()) {
        Ok(_) => {}
        Err(error) => stale(error),
    }
    drop((writer, reader, dir));
    others.write_all(b"er").unwrap();
    assert_eq!(mount.read("new"), "acknowledged");
    assert_eq!(mount.read("old"), "older");
    let mut again = fs::File::options().append(true).open(mount.path("new")).unwrap();
    again.write_all(b" again").unwrap();
    assert_eq!(mount.read("new"), "acknowledged again");
    drop((again, others, same));
    mount.flushed();
    assert_eq!(lab.object("new").as_deref(), Some(&b"acknowledged again"[..]));
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
    restarted(&mount, 1);
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
            restarted(&mount, crash);
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
        restarted(&mount, 1);
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
    restarted(&mount, 1);
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
    let status = || -> serde_json::Value {
        serde_json::from_slice(&machine.run(&["status", path, "--json"]).stdout).unwrap_or_default()
    };
    fs::write(mountpoint.join("new"), "unpushed").unwrap();
    let worker = u32::try_from(status()["worker_pid"].as_u64().unwrap()).unwrap();
    send(worker, rustix::process::Signal::KILL);
    assert_eq!(fs::read_to_string(mountpoint.join("new")).unwrap(), "unpushed");
    eventually("the next worker", || (status()["restarts"] == 1).then_some(()));
    let log = fs::read_to_string(machine.cache_root().join("mount.log")).unwrap();
    assert!(log.contains("crashed (signal 9)") && log.contains("answers again"), "{log}");
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
"$0" status "$2/mnt" | grep crashed
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
    assert!(out.contains("unpushed") && out.contains("crashed     1 times"), "{out}{err}");
    let pushed = fs::read_to_string(home.path().join("bucket/new")).unwrap();
    assert_eq!(pushed, "unpushed\nmore\n");
}
