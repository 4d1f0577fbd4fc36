//! The whole program over gs://: a mount, a second machine, the headless commands, and what they leave in cache directories.
#![cfg(feature = "gcs")]

mod support;

use serde_json::Value;
use support::gcs_server::{Action, Fault};
use support::mount::{Lab, Machine};

fn sidecar(dir: &std::path::Path) -> Value {
    let text = std::fs::read(dir.join(".datastore-sync-state.json")).expect("a sidecar");
    serde_json::from_slice(&text).expect("JSON")
}

fn ran(machine: &Machine<'_>, arguments: &[&str]) -> String {
    let output = machine.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_one_machine_writes_through_a_mount_another_reads() {
    let lab = Lab::gcs();
    lab.seed(&[("a/one.yaml", b"one"), ("b/two.yaml", b"two")]);
    let (first, second) = (lab.machine(), lab.machine());
    let mount = first.mount();
    assert_eq!(mount.files(), ["a/one.yaml", "b/two.yaml"]);
    assert_eq!(mount.read("a/one.yaml"), "one");
    mount.write("b/two.yaml", "changed");
    mount.write("c/new.yaml", vec![b'x'; 300_000]);
    std::fs::rename(mount.path("c/new.yaml"), mount.path("c/moved.yaml")).expect("renamed");
    mount.flushed();
    let server = lab.server();
    assert_eq!(server.get_object("b/two.yaml").expect("pushed").bytes, "changed");
    assert_eq!(server.get_object("c/moved.yaml").expect("pushed").bytes.len(), 300_000);
    assert_eq!(mount.unmount(), 0);
    assert!(server.get_object(".datastore.lock").is_none(), "the lock is released");
    let other = second.mount();
    assert_eq!(other.files(), ["a/one.yaml", "b/two.yaml", "c/moved.yaml"]);
    assert_eq!(other.read("b/two.yaml"), "changed");
    assert_eq!(other.unmount(), 0);
    // Every file was read by one of them; the sidecar is that of the reference client for Google.
    let lazy = sidecar(&second.cache_root().join("cache"));
    assert_eq!(lazy["remoteIndexGeneration"], "", "{lazy}");
    assert!(lazy.get("remoteIndexETag").is_none(), "{lazy}");
}

#[test]
fn an_index_that_changed_meanwhile_is_merged_and_not_overwritten() {
    let lab = Lab::gcs();
    lab.seed(&[("a", b"one")]);
    let machine = lab.machine();
    let mount = machine.mount();
    mount.write("ours", "ours");
    lab.seed(&[("theirs", b"theirs")]);
    mount.flushed();
    let names: Vec<_> = lab.entries().keys().cloned().collect();
    assert_eq!(names, ["a", "theirs", "ours"]);
    assert_eq!(mount.unmount(), 0);
}

#[test]
fn pull_and_push_leave_the_sidecar_of_the_reference_client_for_google() {
    let lab = Lab::gcs();
    lab.seed(&[("a/one.yaml", b"one")]);
    let machine = lab.machine();
    let source = lab.source();
    let dir = machine.mountpoint().parent().expect("a home").join("dir");
    std::fs::create_dir(&dir).expect("made");
    // An older reference client worked here: what it cannot read must not be written.
    let left = include_bytes!("golden/gcs-sidecar-fresh-dirty.json");
    std::fs::write(dir.join(".datastore-sync-state.json"), left).expect("written");
    ran(&machine, &["pull", &source, "dir"]);
    let generation = |lab: &Lab| lab.server().get_object(".datastore-index.json").expect("there").generation;
    let text = std::fs::read_to_string(dir.join(".datastore-sync-state.json")).expect("a sidecar");
    let verified = sidecar(&dir)["lastVerifiedAt"].as_str().expect("a time").to_owned();
    // The bytes of the golden, with this generation and this time.
    let golden = include_str!("golden/gcs-sidecar-clean.json")
        .replace("1700000000000014", &generation(&lab).to_string())
        .replace("2050-01-02T03:04:11.006Z", &verified);
    assert_eq!(text, golden);
    std::fs::write(dir.join("new.yaml"), "new").expect("written");
    ran(&machine, &["push", &source, "dir"]);
    assert_eq!(lab.object("new.yaml").expect("pushed"), b"new");
    assert_eq!(sidecar(&dir)["remoteIndexGeneration"], generation(&lab).to_string());
    lab.server().clear_requests();
    ran(&machine, &["pull", &source, "dir"]);
    let reads = lab.server().requests();
    let index = reads.iter().find(|request| request.key == ".datastore-index.json").expect("asked for");
    assert_eq!((index.status, reads.len()), (Some(304), 2), "the generation says that there is nothing to do");
}

#[test]
fn verify_reaches_the_bucket_and_a_refusal_speaks_of_googles_credentials() {
    let lab = Lab::gcs();
    lab.seed(&[("a", b"one")]);
    let machine = lab.machine();
    let shown = ran(&machine, &["verify", &lab.source()]);
    assert!(shown.contains("gs://") && shown.contains("entries      1"), "{shown}");
    assert!(shown.contains(&lab.server().endpoint()), "{shown}");
    lab.server().inject(Fault::any(Action::Status(403)));
    let output = machine.run(&["verify", &lab.source()]);
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && words.contains("application default credentials"), "{words}");
    assert!(!words.contains("AWS"), "{words}");
}

#[test]
fn a_bucket_at_google_wants_credentials_and_says_which() {
    let lab = Lab::gcs();
    let machine = lab.machine();
    let mut command = machine.command();
    command.env_remove("STORAGE_EMULATOR_HOST").env("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/key.json");
    let output = command.args(["verify", "gs://some-bucket"]).output().expect("starts");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("/no/such/key.json") && words.contains("gcloud auth application-default login"), "{words}");
    assert!(lab.server().requests().is_empty());
}

/// A machine that has nothing: no file, no gcloud, no machine's account.
#[test]
fn without_any_credentials_the_error_says_how_to_get_some() {
    let lab = Lab::gcs();
    let machine = lab.machine();
    let home = machine.mountpoint();
    let adc = home.join(".config/gcloud/application_default_credentials.json");
    std::fs::create_dir_all(adc.parent().expect("below")).expect("made");
    for content in [None, Some("garbage"), Some(r#"{"type": "of the future"}"#)] {
        if let Some(content) = content {
            std::fs::write(&adc, content).expect("written");
        }
        let mut command = machine.command();
        for name in ["STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"] {
            command.env_remove(name);
        }
        // Names below .invalid never resolve, also where there is a metadata server.
        command.env("HOME", &home).env("GCE_METADATA_HOST", "metadata.google.internal.invalid");
        let output = command.args(["verify", "gs://some-bucket"]).output().expect("starts");
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{content:?}: {words}");
        assert!(words.contains("gcloud auth application-default login"), "{content:?}: {words}");
        assert!(words.contains("check Google's application default credentials"), "{content:?}: {words}");
    }
}

#[test]
fn an_emulator_is_asked_without_looking_for_credentials() {
    let (lab, metadata) = (Lab::gcs(), Lab::gcs());
    lab.seed(&[("a", b"one")]);
    let machine = lab.machine();
    let endpoint = lab.server().endpoint();
    let runs: [(&[&str], &str); 2] = [(&[], &endpoint), (&["--endpoint-url", &endpoint], "http://127.0.0.1:1")];
    for (options, emulator) in runs {
        let mut command = machine.command();
        // Whoever looks for credentials would find these, or ask there.
        command.env("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/key.json").env("STORAGE_EMULATOR_HOST", emulator);
        command.env("GCE_METADATA_HOST", metadata.server().endpoint().trim_start_matches("http://"));
        let output = command.arg("verify").args(options).arg(lab.source()).output().expect("starts");
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    assert!(lab.server().requests().iter().all(|request| !request.authorized));
    assert!(metadata.server().requests().is_empty());
}
