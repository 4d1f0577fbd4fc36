//! Promise: a wrong bucket, missing permissions, bad credentials, no network, a full disk or a read-only cache are clear
//! errors that say what to do: nothing stays mounted, and no acknowledged byte is lost.

mod support;

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use support::mount::{Lab, Machine, eventually, is_mounted};
use support::s3_server::{Action, Fault, S3Server};

fn mount_command(machine: &Machine<'_>, source: &str) -> Command {
    let mut command = machine.command();
    command.args(["--request-timeout", "1", source]).arg(machine.mountpoint());
    command
}

fn assert_refused(what: &str, machine: &Machine<'_>, output: &Output, says: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{what}: {said}");
    assert!(!is_mounted(&machine.mountpoint()), "{what}: nothing stays mounted: {said}");
    for part in says {
        assert!(said.contains(part), "{what}: no {part:?} in {said}");
    }
    assert!(!said.contains("panicked"), "{what}: {said}");
}

/// A port that nothing listens on.
fn closed_port() -> String {
    let server = S3Server::s3();
    server.endpoint()
}

#[test]
fn a_bucket_that_cannot_be_used_is_a_clear_error() {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    let machine = lab.machine();
    let source = lab.source();

    let output = mount_command(&machine, "s3://no-such-bucket").output().unwrap();
    assert_refused("wrong bucket", &machine, &output, &["bucket's name", "NoSuchBucket"]);

    let output = mount_command(&machine, &source).env("AWS_SECRET_ACCESS_KEY", "wrong").output().unwrap();
    assert_refused("wrong secret", &machine, &output, &["check the credentials", "403"]);
    let output = mount_command(&machine, &source).env("AWS_ACCESS_KEY_ID", "nobody").output().unwrap();
    assert_refused("wrong access key", &machine, &output, &["check the credentials", "403"]);
    let without = |name: &str| {
        let mut command = mount_command(&machine, &source);
        command.env_remove(name);
        command.output().unwrap()
    };
    let output = without("AWS_ACCESS_KEY_ID");
    assert_refused("no credentials", &machine, &output, &["credentials"]);

    let output = mount_command(&machine, &source).env("AWS_ENDPOINT_URL", closed_port()).output().unwrap();
    assert_refused("no network", &machine, &output, &["check the network", "nothing of this source is cached"]);

    lab.server().inject(Fault::any(Action::Status(403)));
    let output = mount_command(&machine, &source).output().unwrap();
    assert_refused("no permission", &machine, &output, &["check the credentials", "403"]);
    lab.server().clear_faults();
    lab.server().inject(Fault::any(Action::Stall));
    let output = mount_command(&machine, &source).output().unwrap();
    assert_refused("no answer", &machine, &output, &["no answer within 1s", "check the network"]);
    lab.server().clear_faults();
    lab.server().inject(Fault::any(Action::Answer(200, "<html>Please log in to the hotel network</html>".into())));
    let output = mount_command(&machine, &source).output().unwrap();
    assert_refused("a captive portal", &machine, &output, &[]);
    lab.server().clear_faults();

    let output = mount_command(&machine, "file:///no/such/dir").output().unwrap();
    assert_refused("wrong directory", &machine, &output, &["/no/such/dir"]);

    // And none of it left something behind that keeps a good mount from working.
    let mount = machine.mount();
    assert_eq!(mount.read("a"), "a");
    assert_eq!(mount.unmount(), 0);
}

/// A tmpfs, unmounted at the end; `None` where this user must not mount one.
struct Tmpfs(PathBuf, tempfile::TempDir);

impl Tmpfs {
    fn new(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().canonicalize().expect("there");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&path).output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(path, dir)),
            _ => {
                eprintln!("skipped: this user must not mount a tmpfs");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let mut command = Command::new("mount");
        let output = command.args(["-o", &format!("remount,{options}")]).arg(&self.0).output().expect("starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn text(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // The daemon may still be closing its files.
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
        let _ = &self.1;
    }
}

#[test]
fn a_read_only_cache_directory_is_a_clear_error() {
    let lab = Lab::s3();
    lab.seed(&[("a", b"a")]);
    let Some(disk) = Tmpfs::new("size=8m") else { return };
    // Both when it is new and when it was used before.
    let machine = lab.machine();
    disk.remount("ro");
    let mut command = mount_command(&machine, &lab.source());
    let output = command.args(["--cache-dir", disk.text()]).output().unwrap();
    assert_refused("new", &machine, &output, &[disk.text(), "ead-only"]);
    disk.remount("rw");
    let options = ["--cache-dir", disk.text(), "--refresh", "3600"];
    assert_eq!(machine.mount_with(&options).unmount(), 0);
    disk.remount("ro");
    let mut command = mount_command(&machine, &lab.source());
    let output = command.args(["--cache-dir", disk.text()]).output().unwrap();
    assert_refused("used", &machine, &output, &[disk.text(), "ead-only"]);
    disk.remount("rw");
    let mount = machine.mount_with(&options);
    assert_eq!(mount.read("a"), "a");
}

/// Writes until an error; what was acknowledged, and the error.
fn fill(path: &Path, chunk: &[u8]) -> (Vec<u8>, Option<i32>) {
    let mut written = Vec::new();
    let mut file = match std::fs::File::create(path) {
        Ok(file) => file,
        Err(error) => return (written, error.raw_os_error()),
    };
    loop {
        match file.write(chunk) {
            Ok(n) => written.extend_from_slice(&chunk[..n]),
            Err(error) => return (written, error.raw_os_error()),
        }
        assert!(written.len() < 1 << 24, "the disk does not fill up");
    }
}

#[test]
fn a_full_disk_is_enospc_to_the_writer_and_loses_nothing() {
    let lab = Lab::s3();
    let large = vec![7; 3 << 20];
    lab.seed(&[("small", b"small"), ("too-large-for-the-disk", &large)]);
    let Some(disk) = Tmpfs::new("size=2m") else { return };
    let machine = lab.machine();
    let options = ["--cache-dir", disk.text(), "--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];
    let mount = machine.mount_with(&options);
    mount.write("before", "written before");
    let chunk: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
    let (kept, error) = fill(&mount.path("filler"), &chunk);
    assert_eq!(error, Some(libc::ENOSPC), "{}", machine.log());
    assert!(kept.len() > 100_000);
    for n in 0..200 {
        let (_, error) = fill(&mount.path(&format!("more-{n}")), &chunk[..100]);
        assert_eq!(error, Some(libc::ENOSPC), "more-{n}");
    }
    // What was acknowledged is there, and what does not fit can be read all the same.
    assert!(std::fs::read(mount.path("filler")).unwrap()[..kept.len()] == kept);
    assert_eq!(mount.read("before"), "written before");
    assert!(std::fs::read(mount.path("too-large-for-the-disk")).unwrap() == large, "reads go past the full cache");
    assert_eq!(mount.status()["readErrors"], serde_json::json!([]));
    // To be written it would have to be here.
    let error = std::fs::File::options().append(true).open(mount.path("too-large-for-the-disk")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
    let errors = mount.status()["readErrors"].to_string();
    assert!(errors.contains("No space left on device"), "{errors}");

    // Deleting heals.
    std::fs::remove_file(mount.path("filler")).unwrap_or_else(|e| panic!("{e}\n{}", machine.log()));
    for n in 0..200 {
        match std::fs::remove_file(mount.path(&format!("more-{n}"))) {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}"),
        }
    }
    eventually("room", || std::fs::write(mount.path("after"), &chunk).ok());
    assert!(std::fs::read(mount.path("after")).unwrap() == chunk);
    assert_eq!(mount.read("small"), "small");
    mount.flushed();
    let names: BTreeSet<_> = lab.entries().keys().cloned().collect();
    assert_eq!(names, ["after", "before", "small", "too-large-for-the-disk"].map(str::to_owned).into());
    assert_eq!(lab.object("after").as_deref(), Some(&chunk[..]));
    assert_eq!(lab.object("before").as_deref(), Some(&b"written before"[..]));
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn a_disk_that_is_full_when_the_daemon_is_killed_keeps_what_was_acknowledged() {
    let lab = Lab::s3();
    lab.seed(&[("small", b"small")]);
    let Some(disk) = Tmpfs::new("size=2m") else { return };
    let machine = lab.machine();
    let options = ["--cache-dir", disk.text(), "--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"];
    let mount = machine.mount_with(&options);
    mount.write("before", "written before");
    let chunk: Vec<u8> = (0..10_000u32).flat_map(u32::to_le_bytes).collect();
    let (kept, error) = fill(&mount.path("filler"), &chunk);
    assert_eq!(error, Some(libc::ENOSPC));
    mount.kill();
    disk.remount("size=4m");
    let mount = machine.mount_with(&options);
    assert_eq!(mount.read("before"), "written before");
    assert!(std::fs::read(mount.path("filler")).unwrap() == kept);
    mount.flushed();
    assert!(lab.object("filler").unwrap() == kept);
}
