//! `--repo`: a repository's own configuration stands for SOURCE in every command.
#![cfg(feature = "s3")]

mod support;

use std::path::PathBuf;

use serde_json::{Value, json};
use support::mount::{Lab, Machine, entry, eventually, is_mounted};
use support::s3_server::BUCKET;

const INDEX: &str = ".datastore-index.json";

/// A bucket with one file in the namespace `one`.
fn lab() -> Lab {
    let lab = Lab::s3();
    lab.seed(&[("data/root.yaml", b"root")]);
    lab.put_object("one/data/x.yaml", b"first");
    let index = json!({"version": 1, "entries": {"data/x.yaml": entry("data/x.yaml", b"first")}});
    lab.put_object(&format!("one/{INDEX}"), index.to_string().as_bytes());
    lab
}

fn home(machine: &Machine<'_>) -> PathBuf {
    machine.mountpoint().parent().expect("a home").to_owned()
}

/// Makes a repository `repo` beside the mountpoint.
fn repository(machine: &Machine<'_>, text: &str) -> PathBuf {
    let dir = home(machine).join("repo");
    std::fs::create_dir_all(&dir).expect("made");
    std::fs::write(dir.join(".swamp.yaml"), text).expect("written");
    dir
}

fn of_namespace(more: &str) -> String {
    format!(
        "repoId: repo-1\ndatastore:\n  type: '@swamp/s3-datastore'\n  namespace: one\n  config: {{bucket: {BUCKET}{more}}}\n"
    )
}

fn run(machine: &Machine<'_>, arguments: &[&str]) -> (i32, String, String) {
    let output = machine.run(arguments);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().expect("not killed"), text(&output.stdout), text(&output.stderr))
}

fn ran(machine: &Machine<'_>, arguments: &[&str]) -> String {
    let (code, stdout, stderr) = run(machine, arguments);
    assert_eq!(code, 0, "{arguments:?}: {stderr}");
    stdout
}

/// A mount in the background, which ends with the test.
struct Background<'a>(&'a Machine<'a>, PathBuf);

impl Drop for Background<'_> {
    fn drop(&mut self) {
        if is_mounted(&self.1) {
            // The test has failed already.
            let _ = self.0.run(&["unmount", self.1.to_str().expect("UTF-8"), "--timeout", "5"]);
        }
    }
}

#[test]
fn every_command_takes_the_repository_for_its_source() {
    let lab = lab();
    let machine = lab.machine();
    let repo = repository(&machine, &of_namespace(""));
    let at = repo.join(".data");
    let mounted = Background(&machine, at.clone());
    ran(&machine, &["--repo", "repo", "--flush-after", "3600", "--flush-max-age", "3600"]);
    assert_eq!(std::fs::read(at.join("data/x.yaml")).expect("read"), b"first");
    assert!(!at.join("data/root.yaml").exists());
    let report: Value = serde_json::from_str(&ran(&machine, &["status", "--repo", "repo", "--json"])).expect("JSON");
    assert_eq!(
        (&report["mounts"][0]["namespace"], report["mounts"][0]["mountpoint"].as_str()),
        (&json!("one"), at.to_str())
    );
    std::fs::write(at.join("new.yaml"), "new").expect("written");
    ran(&machine, &["flush", "--repo", "repo"]);
    assert_eq!(lab.object("one/new.yaml").as_deref(), Some(&b"new"[..]));
    let registered: Value =
        serde_json::from_slice(&lab.object("one/.namespace.json").expect("registered by the first push"))
            .expect("JSON");
    assert_eq!((&registered["namespace"], &registered["repoId"]), (&json!("one"), &json!("repo-1")));
    assert!(ran(&machine, &["namespaces", "--repo", "repo"]).starts_with("one  repository repo-1"));
    ran(&machine, &["unmount", "--repo", "repo"]);
    eventually("the end of the mount", || (!is_mounted(&at)).then_some(()));
    drop(mounted);

    assert!(ran(&machine, &["verify", "--repo", "repo"]).contains("(namespace one)"));
    assert!(ran(&machine, &["lock", "status", "--repo", "repo"]).starts_with(".locks/one.lock: the lock is free"));
    ran(&machine, &["flush", "--repo", "repo"]);
    ran(&machine, &["pull", "--repo", "repo", "dir"]);
    std::fs::write(home(&machine).join("dir/one/more.yaml"), "more").expect("written");
    assert!(ran(&machine, &["push", "--repo", "repo", "dir"]).starts_with("pushed 1 files"));
    // Without a directory it is the one where the reference client keeps its cache.
    let output =
        machine.command().env("HOME", home(&machine)).args(["pull", "--repo", "repo"]).output().expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let cached = home(&machine).join(".swamp/repos/repo-1");
    assert_eq!(std::fs::read(cached.join("one/more.yaml")).expect("pulled"), b"more");
    assert!(cached.join(INDEX).exists());
}

#[test]
fn a_mount_by_options_and_one_by_repository_are_the_same() {
    let lab = lab();
    let machine = lab.machine();
    repository(&machine, &of_namespace(""));
    let mount = machine.mount_with(&["--namespace", "one", "--flush-after", "3600", "--flush-max-age", "3600"]);
    let report: Value = serde_json::from_str(&ran(&machine, &["status", "--repo", "repo", "--json"])).expect("JSON");
    assert_eq!(report["mounts"][0]["pid"], mount.pid());
    std::fs::write(mount.path("new.yaml"), "new").expect("written");
    ran(&machine, &["flush", "--repo", "repo"]);
    assert!(lab.object("one/new.yaml").is_some());
    assert_eq!(lab.object("one/.namespace.json"), None, "nobody said for which repository");
    ran(&machine, &["unmount", "--repo", "repo"]);
    assert_eq!(mount.wait(), Some(0));
    let (code, _, stderr) = run(&machine, &["unmount", "--repo", "repo"]);
    assert!(code == 1 && stderr.contains(".data"), "{stderr}");
}

#[test]
fn what_the_options_and_the_repository_say_differently_is_a_usage_error_with_both_values() {
    let lab = lab();
    let machine = lab.machine();
    repository(
        &machine,
        &of_namespace(", prefix: p, region: eu-1, requestTimeoutMs: 5000, pushConcurrency: 4, forcePathStyle: false"),
    );
    for (arguments, values) in [
        (&["verify", "--repo", "repo", "--namespace", "two"][..], ["\"two\"", "\"one\""]),
        (&["verify", "--repo", "repo", "--prefix", "q"], ["\"q\"", "\"p\""]),
        (&["verify", "--repo", "repo", "--region", "us-1"], ["\"us-1\"", "\"eu-1\""]),
        (&["verify", "--repo", "repo", "--request-timeout", "7"], ["7s", "5s"]),
        (&["verify", "--repo", "repo", "--force-path-style"], ["true", "false"]),
        (&["push", "--repo", "repo", "repo", "--upload-concurrency", "5"], ["5", "4"]),
        (&["--repo", "repo", "s3://other", "mnt"], ["s3://other", "--repo repo"]),
        (&["verify", "--repo", "repo", "s3://other"], ["s3://other", "--repo repo"]),
        (&["none", "mnt", "-o", "repo=repo,namespace=two"], ["\"two\"", "\"one\""]),
        (&["verify", "--repo", "elsewhere"], ["elsewhere/.swamp.yaml", "--repo DIR"]),
        (&["verify", &lab.source(), "--namespace", "a/b"], ["\"a/b\"", "slash"]),
    ] {
        let (code, _, stderr) = run(&machine, arguments);
        assert_eq!(code, 2, "{arguments:?}: {stderr}");
        assert!(values.iter().all(|value| stderr.contains(value)), "{arguments:?}: {stderr}");
    }
    let (code, _, stderr) = run(&machine, &["verify", "--repo", "repo", "--namespace", "one", "--prefix", "p/"]);
    assert_eq!(code, 0, "what agrees is fine: {stderr}");
}

#[test]
fn the_variable_beats_the_file_and_a_foreign_namespace_is_a_warning() {
    let lab = lab();
    let machine = lab.machine();
    repository(&machine, "repoId: repo-2\ndatastore: {type: s3, bucket: no-such-bucket, namespace: one}\n");
    lab.put_object(
        "one/.namespace.json",
        br#"{"namespace":"one","repoId":"repo-1","registeredAt":"2026-07-30T00:00:00.000Z"}"#,
    );
    let mut command = machine.command();
    command.env("SWAMP_DATASTORE", format!("@swamp/s3-datastore:{{\"bucket\":\"{BUCKET}\"}}"));
    let output = command.args(["verify", "--repo", "repo"]).output().expect("starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("repo-1") && stderr.contains("repo-2"), "{stderr}");
    assert!(String::from_utf8_lossy(&output.stdout).contains(&format!("s3://{BUCKET} (namespace one)")));
}

#[test]
fn a_sync_that_takes_longer_than_the_repository_allows_says_so() {
    let lab = lab();
    let machine = lab.machine();
    repository(&machine, &format!("datastore: {{type: s3, bucket: {BUCKET}, syncTimeoutMs: 300}}\n"));
    let held = lab.server().hold("GetObject", INDEX);
    let (code, _, stderr) = run(&machine, &["pull", "--repo", "repo", "dir"]);
    held.open();
    assert!(code == 1 && stderr.contains("syncTimeoutMs") && stderr.contains("0.3 s"), "{stderr}");
}
