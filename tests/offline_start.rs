//! Promise: without a network a source that was mounted before mounts again: it lists everything, reads what is cached,
//! fails quickly on the rest, takes writes, says in `status` since when it is offline, and pushes when the bucket is back.

mod support;

use std::time::{Duration, Instant};

use support::mount::{Lab, Machine, Mount, eventually};
use support::s3_server::{Action, Fault, S3Server};

const OPTIONS: [&str; 8] = ["--refresh", "1", "--flush-after", "0.2", "--flush-max-age", "2", "--request-timeout", "1"];

/// A bucket whose server can go away: connections are refused, or nothing ever answers, or it answers 503.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outage {
    Stalled,
    Unavailable,
    Lost,
}

fn begin(lab: &Lab, outage: Outage) {
    lab.server().inject(Fault::any(match outage {
        Outage::Stalled => Action::Stall,
        Outage::Unavailable => Action::Status(503),
        Outage::Lost => Action::LoseAnswer,
    }));
}

fn seeded() -> Lab {
    let lab = Lab::s3();
    lab.seed(&[("cached", b"cached"), ("dir/remote", b"remote"), ("dir/other", b"other")]);
    lab
}

fn offline_since(mount: &Mount<'_>) -> Option<String> {
    mount.status()["offlineSince"].as_str().map(str::to_owned)
}

/// Mounts once and reads one file, so that there is a base and something cached.
fn mounted_before(machine: &Machine<'_>) {
    let mount = machine.mount_with(&OPTIONS);
    assert_eq!(mount.read("cached"), "cached");
    assert_eq!(offline_since(&mount), None);
    assert_eq!(mount.unmount(), 0);
}

fn works_offline(lab: &Lab, machine: &Machine<'_>, outage: &dyn std::fmt::Debug, mount: &Mount<'_>) {
    assert_eq!(mount.files(), ["cached", "dir/other", "dir/remote"], "{outage:?}: everything is listed");
    assert_eq!(mount.read("cached"), "cached", "{outage:?}");
    let since = offline_since(mount).expect("offline");
    // Not cached: an error at once, and one that says why.
    let error = std::fs::read(mount.path("dir/remote")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{outage:?}");
    let began = Instant::now();
    for name in ["dir/remote", "dir/other", "dir/remote", "dir/other"] {
        let error = std::fs::read(mount.path(name)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "{outage:?}");
    }
    // Time-outs are not waited for again and again when it is known that nothing answers.
    let limit =
        if format!("{outage:?}").contains("navailable") || format!("{outage:?}").contains("mounted") { 20 } else { 2 };
    assert!(began.elapsed() < Duration::from_secs(limit), "{outage:?}: {:?}", began.elapsed());
    let errors = mount.status()["readErrors"].to_string();
    assert!(errors.contains("dir/remote"), "{outage:?}: {errors}");
    // Writes are taken.
    mount.write("dir/new", "written offline");
    mount.write("cached", "changed offline");
    std::fs::remove_file(mount.path("dir/other")).unwrap();
    std::fs::rename(mount.path("dir/remote"), mount.path("moved")).unwrap();
    assert_eq!(mount.files(), ["cached", "dir/new", "moved"], "{outage:?}");
    assert_eq!(mount.read("dir/new"), "written offline", "{outage:?}");
    assert_eq!(offline_since(mount), Some(since), "{outage:?}: it says since when");
    assert_eq!(lab.entries().len(), 3, "{outage:?}: nothing reached the bucket");
    assert!(!machine.log().contains("panicked"));
}

fn arrives(lab: &Lab, outage: &dyn std::fmt::Debug, mount: &Mount<'_>) {
    // By itself: nobody flushes.
    eventually("the push", || (mount.status()["pending"]["files"] == 0 && lab.entries().len() == 3).then_some(()));
    for (key, text) in [("dir/new", "written offline"), ("cached", "changed offline"), ("moved", "remote")] {
        assert_eq!(lab.object(key).as_deref(), Some(text.as_bytes()), "{outage:?}");
        assert_eq!(mount.read(key), text, "{outage:?}");
    }
    eventually("the removals", || {
        (lab.object("dir/other").is_none() && lab.object("dir/remote").is_none()).then_some(())
    });
    eventually("being online", || offline_since(mount).is_none().then_some(()));
    assert_eq!(mount.status()["lastError"], serde_json::Value::Null, "{outage:?}");
}

#[test]
fn a_source_that_was_mounted_before_mounts_without_the_bucket() {
    std::thread::scope(|scope| {
        for outage in [Outage::Stalled, Outage::Unavailable, Outage::Lost] {
            scope.spawn(move || {
                let lab = seeded();
                let machine = lab.machine();
                mounted_before(&machine);
                begin(&lab, outage);
                let mount = machine.mount_with(&OPTIONS);
                works_offline(&lab, &machine, &outage, &mount);
                lab.server().clear_faults();
                arrives(&lab, &outage, &mount);
                assert_eq!(mount.unmount(), 0);
            });
        }
    });
}

#[test]
fn connections_that_are_refused_are_an_outage_too() {
    // A server that can go away and come back, with the bucket of the lab.
    let lab = seeded();
    let start = |address: &str| {
        let server = S3Server::s3_on(address, 2).expect("the port is free");
        for key in lab.server().keys() {
            server.put_object(&key, lab.object(&key).expect("listed"));
        }
        server
    };
    let server = start("127.0.0.1:0");
    let endpoint = server.endpoint();
    let options = [&OPTIONS[..], &["--endpoint-url", &endpoint]].concat();
    let machine = lab.machine();
    let mount = machine.mount_with(&options);
    assert_eq!(mount.read("cached"), "cached");
    assert_eq!(mount.unmount(), 0);
    drop(server);
    let mount = machine.mount_with(&options);
    works_offline(&lab, &machine, &"refused", &mount);
    let pending = mount.status()["pending"].clone();
    assert_eq!((&pending["files"], &pending["removals"]), (&3.into(), &2.into()), "{pending}");
    let server = start(endpoint.trim_start_matches("http://"));
    eventually("the push", || (mount.status()["pending"]["files"] == 0).then_some(()));
    assert_eq!(server.get_object("dir/new").unwrap().bytes, "written offline");
    assert_eq!(server.get_object("moved").unwrap().bytes, "remote");
    eventually("being online", || offline_since(&mount).is_none().then_some(()));
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn what_was_written_offline_survives_a_kill_and_an_unmount_while_still_offline() {
    let lab = seeded();
    let machine = lab.machine();
    mounted_before(&machine);
    begin(&lab, Outage::Lost);
    let mount = machine.mount_with(&OPTIONS);
    mount.write("one", "before the kill");
    mount.kill();
    let mount = machine.mount_with(&OPTIONS);
    assert_eq!(mount.read("one"), "before the kill");
    mount.write("two", "before the unmount");
    // Not everything is in the bucket: the unmount says so by its exit code.
    let mountpoint = machine.mountpoint();
    let output = machine.run(&["unmount", mountpoint.to_str().unwrap(), "--timeout", "1"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    drop(mount);
    lab.server().clear_faults();
    let mount = machine.mount_with(&OPTIONS);
    assert_eq!((mount.read("one"), mount.read("two")), ("before the kill".into(), "before the unmount".into()));
    mount.flushed();
    assert_eq!(lab.object("one").as_deref(), Some(&b"before the kill"[..]));
    assert_eq!(lab.object("two").as_deref(), Some(&b"before the unmount"[..]));
}

#[test]
fn a_bucket_that_goes_away_while_mounted_is_not_an_empty_one() {
    let lab = seeded();
    let machine = lab.machine();
    let mount = machine.mount_with(&OPTIONS);
    assert_eq!(mount.read("cached"), "cached");
    begin(&lab, Outage::Unavailable);
    eventually("being offline", || offline_since(&mount));
    works_offline(&lab, &machine, &"while mounted", &mount);
    lab.server().clear_faults();
    arrives(&lab, &"while mounted", &mount);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn contact_is_found_again_soon_however_rare_refreshes_are() {
    let lab = seeded();
    let machine = lab.machine();
    let rare = ["--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600", "--request-timeout", "1"];
    let mount = machine.mount_with(&rare);
    begin(&lab, Outage::Stalled);
    mount.write("new", "new");
    assert!(!mount.flush().status.success());
    assert!(std::fs::read(mount.path("dir/remote")).is_err());
    lab.server().clear_faults();
    eventually("the bytes", || std::fs::read(mount.path("dir/remote")).ok().filter(|bytes| bytes == b"remote"));
    mount.flushed();
}

#[test]
fn a_bucket_that_falls_silent_fails_readers_and_starts_within_seconds() {
    // With the deadlines as they are by default: each of three attempts waited half a minute.
    let lab = seeded();
    let machine = lab.machine();
    mounted_before(&machine);
    let mount = machine.mount_with(&["--refresh", "3600"]);
    begin(&lab, Outage::Stalled);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for name in ["dir/remote", "dir/other"] {
            let path = mount.path(name);
            scope.spawn(move || {
                assert_eq!(std::fs::read(path).unwrap_err().raw_os_error(), Some(libc::EIO), "{name}");
            });
        }
    });
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(offline_since(&mount).is_some());
    mount.kill();
    let began = Instant::now();
    let mount = machine.mount_with(&["--refresh", "3600"]);
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(mount.read("cached"), "cached");
    assert!(std::fs::read(mount.path("dir/remote")).is_err());
    lab.server().clear_faults();
    eventually("the bytes", || std::fs::read(mount.path("dir/remote")).ok().filter(|bytes| bytes == b"remote"));
}

#[test]
fn a_source_that_was_never_seen_is_not_mounted_without_the_bucket() {
    let lab = seeded();
    let machine = lab.machine();
    begin(&lab, Outage::Unavailable);
    let mountpoint = machine.mountpoint();
    let output = machine.run(&[&lab.source(), mountpoint.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("nothing of this source is cached"), "{said}");
    assert!(!support::mount::is_mounted(&mountpoint));
}
