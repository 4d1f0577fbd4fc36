//! Promise: `cache/` under a cache directory tells a reference client the truth, and what such a client does there between
//! two mounts is neither lost nor taken for deletions.

mod support;

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::mount::{Lab, Machine};
use support::reference::{self, files};

const FILES: [(&str, &[u8]); 3] = [("a/one.yaml", b"one"), ("a/two.yaml", b"two"), ("b/three.yaml", b"three")];

fn cache(machine: &Machine<'_>) -> PathBuf {
    machine.cache_root().join("cache")
}

fn sidecar(cache: &Path) -> Value {
    reference::sidecar(cache).expect("a sidecar")
}

/// A cache that was filled lazily: one of three files was read.
fn lazily_filled(machine: &Machine<'_>) -> PathBuf {
    let mount = machine.mount();
    assert_eq!(mount.read("a/one.yaml"), "one");
    assert_eq!(mount.unmount(), 0);
    cache(machine)
}

#[test]
fn a_lazily_filled_cache_never_looks_complete() {
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    let cache = lazily_filled(&machine);
    assert_eq!(files(&cache), ["a/one.yaml"]);
    let sidecar = sidecar(&cache);
    assert_eq!(sidecar["version"], 2);
    assert_eq!(sidecar["lazyPullActive"], true);
    assert_eq!(sidecar["localDirty"], true);
    assert_eq!(sidecar["remoteIndexETag"], "");
    let copy = std::fs::read(cache.join(".datastore-index.json")).unwrap();
    assert_eq!(Some(copy), lab.object(".datastore-index.json"));
}

#[test]
fn a_file_in_the_cache_carries_the_time_of_its_entry() {
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    let cache = lazily_filled(&machine);
    let mtime = std::fs::metadata(cache.join("a/one.yaml")).unwrap().modified().unwrap();
    let since = mtime.duration_since(std::time::UNIX_EPOCH).unwrap();
    let recorded = swamp_mount::datastore::parse_nanos("2026-01-01T00:00:00.123Z").unwrap();
    assert_eq!(i64::try_from(since.as_nanos()).unwrap(), recorded, "else a reference client uploads it all again");
}

/// July's clients read deletions out of a directory mark: every entry below it that was missing locally was removed.
#[test]
fn a_directory_in_dirty_paths_deletes_nothing_from_a_lazily_filled_cache() {
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    let cache = lazily_filled(&machine);
    let mut marked = sidecar(&cache);
    marked["dirtyPaths"] = json!(["a", "b"]);
    std::fs::write(cache.join(".datastore-sync-state.json"), marked.to_string()).unwrap();
    let output = machine.run(&["push", &lab.source(), cache.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lab.entries().len(), 3);
    for (path, bytes) in FILES {
        assert_eq!(lab.object(path).as_deref(), Some(bytes));
    }
}

#[test]
fn an_old_file_in_a_lazily_filled_cache_is_never_pushed_over_a_newer_one() {
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    let cache = lazily_filled(&machine);
    lab.seed(&[("a/one.yaml", b"ONE, newer")]);
    let output = machine.run(&["push", &lab.source(), cache.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(lab.object("a/one.yaml").unwrap(), b"ONE, newer");
}

#[test]
fn pull_completes_a_lazily_filled_cache_and_the_next_mount_uses_it() {
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    let cache = lazily_filled(&machine);
    let output = machine.run(&["pull", &lab.source(), cache.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(files(&cache), ["a/one.yaml", "a/two.yaml", "b/three.yaml"]);
    assert_eq!(sidecar(&cache)["localDirty"], false);
    lab.server().clear_requests();
    let mount = machine.mount();
    assert_eq!(sidecar(&cache)["lazyPullActive"], true, "a running mount makes no promise");
    for (path, bytes) in FILES {
        assert_eq!(mount.read(path).as_bytes(), bytes);
        assert_eq!(lab.server().count("GetObject", path), 0, "{path} was here");
    }
    assert_eq!(mount.status()["pending"]["files"], 0);
}

#[test]
fn a_complete_cache_gets_a_clean_sidecar_when_the_mount_ends() {
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    let mount = machine.mount();
    FILES.iter().for_each(|(path, _)| drop(mount.read(path)));
    mount.write("new.txt", "new");
    assert_eq!(mount.unmount(), 0);
    let cache = cache(&machine);
    let sidecar = sidecar(&cache);
    assert_eq!(sidecar["localDirty"], false, "{sidecar}");
    let etag = lab.server().get_object(".datastore-index.json").unwrap().etag;
    assert_eq!(sidecar["remoteIndexETag"], etag.trim_matches('"'));
    assert_eq!(files(&cache).len(), 4);
    // And a mount breaks the promise before anything can change.
    let mount = machine.mount();
    assert_eq!(self::sidecar(&cache)["localDirty"], true);
    drop(mount);
}

#[test]
fn what_a_reference_client_did_between_two_mounts_is_taken_over() {
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    let mount = machine.mount();
    FILES.iter().for_each(|(path, _)| drop(mount.read(path)));
    assert_eq!(mount.unmount(), 0);
    let cache = cache(&machine);
    // In place, replaced, new, removed; and the mark that a client leaves.
    std::fs::write(cache.join("a/one.yaml"), "one, edited in place").unwrap();
    std::fs::write(cache.join("tmp"), "two, replaced").unwrap();
    std::fs::rename(cache.join("tmp"), cache.join("a/two.yaml")).unwrap();
    std::fs::write(cache.join("fresh.txt"), "fresh").unwrap();
    std::fs::remove_file(cache.join("b/three.yaml")).unwrap();
    let mut marked = sidecar(&cache);
    marked["localDirty"] = json!(true);
    std::fs::write(cache.join(".datastore-sync-state.json"), marked.to_string()).unwrap();

    let mount = machine.mount();
    assert_eq!(mount.files(), ["a/one.yaml", "a/two.yaml", "b/three.yaml", "fresh.txt"]);
    assert_eq!(mount.read("a/one.yaml"), "one, edited in place");
    assert_eq!(mount.read("a/two.yaml"), "two, replaced");
    assert_eq!(mount.read("b/three.yaml"), "three", "absent is remote, never removed");
    assert_eq!(mount.unmount(), 0);
    assert_eq!(lab.object("a/one.yaml").unwrap(), b"one, edited in place");
    assert_eq!(lab.object("a/two.yaml").unwrap(), b"two, replaced");
    assert_eq!(lab.object("b/three.yaml").unwrap(), b"three");
    assert_eq!(lab.object("fresh.txt").unwrap(), b"fresh");
    assert_eq!(lab.entries().len(), 4);
}

#[test]
fn a_file_that_changed_remotely_leaves_the_cache_before_the_newer_index_arrives() {
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    lazily_filled(&machine);
    lab.seed(&[("a/one.yaml", b"1ne")]);
    let mount = machine.mount();
    let cache = cache(&machine);
    assert_eq!(files(&cache), Vec::<String>::new());
    assert_eq!(std::fs::read(cache.join(".datastore-index.json")).ok(), lab.object(".datastore-index.json"));
    assert_eq!(mount.read("a/one.yaml"), "1ne");
}

#[test]
fn a_file_that_is_open_for_writing_is_not_in_the_cache() {
    let lab = Lab::s3();
    lab.seed(&FILES);
    let machine = lab.machine();
    lazily_filled(&machine);
    let mount = machine.mount();
    let file = std::fs::File::options().append(true).open(mount.path("a/one.yaml")).unwrap();
    assert_eq!(files(&cache(&machine)), Vec::<String>::new());
    drop(file);
}
