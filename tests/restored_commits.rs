//! Promise: when an index from before our commits is written after them, they come back, and what this machine does while that
//! is found out is kept.

mod support;

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use support::bucket::KINDS;
use support::hooked::HookedStore;
use support::host::Host;
use support::machine::{add_foreign, contents, pairs};
use swamp_mount::datastore::INDEX_KEY;
use swamp_mount::tree::ROOT;
use swamp_mount::volume::{OpenOutcome, OpenRequest, SetAttributes, Volume};

/// What happens right before the bucket is asked whether the object still is ours, and what is there after the next push.
type Case = (fn(&Arc<Volume>), &'static [(&'static str, &'static str)]);

const CASES: &[Case] = &[(edit, &[("new", "second"), ("other", "other")]), (remove, &[("other", "other")])];

fn edit(volume: &Arc<Volume>) {
    let ino = volume.lookup(ROOT, "new").unwrap().ino;
    let opened = volume.open(ino, OpenRequest { writable: true, truncate: true }).unwrap();
    let OpenOutcome::Ready(handle) = opened else { panic!("its bytes are here") };
    handle.live.modify(|file| file.write_all_at(b"second", 0)).unwrap();
    volume.written(&handle, 6);
    volume.release(&handle);
}

fn remove(volume: &Arc<Volume>) {
    volume.unlink(ROOT, "new").unwrap();
}

/// Runs a promise over every kind of bucket, in which other clients have put these files.
fn each(foreign: &[&str], promise: impl Fn(&Arc<HookedStore>)) {
    for kind in KINDS {
        eprintln!("---- over {}", kind.name);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = runtime.block_on(HookedStore::new(kind));
        for name in foreign {
            add_foreign(&store, name, name);
        }
        promise(&store);
    }
}

/// Two machines on one bucket.
fn two(store: &Arc<HookedStore>) -> [Host; 2] {
    let mut hosts = ["here", "there"].map(|name| Host::new(name, Arc::clone(store) as _));
    for host in &mut hosts {
        host.start().unwrap();
    }
    hosts
}

#[test]
fn a_change_that_meets_the_return_of_a_dropped_commit_is_kept() {
    // The row that brings the commit back took the place of the change's own: an edit was never pushed, a removed file
    // waited for a push for ever.
    for kind in KINDS {
        for (change, end) in CASES {
            eprintln!("---- over {}, {end:?}", kind.name);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let store = runtime.block_on(HookedStore::new(kind));
            add_foreign(&store, "other", "other");
            let mut host = Host::new("here", Arc::clone(&store) as _);
            host.start().unwrap();
            let view = store.bytes(INDEX_KEY).unwrap();
            host.write("new", b"first").unwrap();
            host.flush().unwrap();
            store.set(INDEX_KEY, view);
            let volume = host.volume();
            store.before("head", "new", move |_| change(&volume));
            host.refresh().unwrap();
            host.flush().unwrap();
            assert_eq!(contents(&store), pairs(end));
            assert_eq!(store.text("new").as_deref(), (end.len() > 1).then_some("second"));
            assert_eq!(host.names().unwrap().len(), end.len());
            assert_eq!(host.volume().pending_counts(), (0, 0, 0));
        }
    }
}

#[test]
fn commits_that_followed_each_other_come_back_together() {
    // The index from before the first of them was taken for another writer's change: the file was gone.
    each(&["other", "gone"], |store| {
        let mut host = Host::new("here", Arc::clone(store) as _);
        host.start().unwrap();
        let view = store.bytes(INDEX_KEY).unwrap();
        for text in ["first", "second", "third"] {
            host.write("new", text.as_bytes()).unwrap();
            host.write("other", text.as_bytes()).unwrap();
            host.write("gone", text.as_bytes()).unwrap();
            host.flush().unwrap();
        }
        host.remove("gone").unwrap();
        host.flush().unwrap();
        store.set(INDEX_KEY, view);
        host.refresh().unwrap();
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("new", "third"), ("other", "third")]));
        assert_eq!(host.names().unwrap(), ["new", "other"]);
    });
}

#[test]
fn what_a_push_finds_dropped_comes_back_with_it() {
    // The index that a push had merged and written was the one in view then: no refresh ever looked for what it had lost.
    each(&["other", "gone"], |store| {
        let mut host = Host::new("here", Arc::clone(store) as _);
        host.start().unwrap();
        let view = store.bytes(INDEX_KEY).unwrap();
        host.write("new", b"new").unwrap();
        host.remove("gone").unwrap();
        host.flush().unwrap();
        store.set(INDEX_KEY, view);
        host.write("next", b"next").unwrap();
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("new", "new"), ("next", "next"), ("other", "other")]));
        assert_eq!(host.names().unwrap(), ["new", "next", "other"]);
        assert_eq!(host.volume().pending_counts(), (0, 0, 0));
    });
}

#[test]
fn a_commit_that_another_machine_went_on_from_comes_back() {
    // Neither brought the file back: to the one that had made it the object was not its own, to the one that had changed
    // it an index without the file was not what it had replaced.
    each(&["other"], |store| {
        let mut hosts = two(store);
        let view = store.bytes(INDEX_KEY).unwrap();
        for (host, text) in hosts.iter_mut().zip(["first", "second"]) {
            host.refresh().unwrap();
            host.write("new", text.as_bytes()).unwrap();
            host.flush().unwrap();
        }
        store.set(INDEX_KEY, view);
        for _ in 0..2 {
            for host in &mut hosts {
                host.refresh().unwrap();
                host.flush().unwrap();
            }
        }
        assert_eq!(contents(store), pairs(&[("new", "second"), ("other", "other")]));
        for host in &mut hosts {
            assert_eq!(host.names().unwrap(), ["new", "other"]);
            assert_eq!(host.volume().pending_counts(), (0, 0, 0));
        }
    });
}

#[test]
fn two_machines_do_not_fight_over_a_file_that_both_wrote_alike() {
    // On a store whose versions are hashes both find their own object, and each put its own entry back.
    each(&["other"], |store| {
        let mut hosts = two(store);
        for (host, text) in hosts.iter_mut().zip(["between", "same"]) {
            host.refresh().unwrap();
            host.write("new", b"same").unwrap();
            host.flush().unwrap();
            host.write("other", text.as_bytes()).unwrap();
            host.flush().unwrap();
        }
        let before = store.bytes(INDEX_KEY).unwrap();
        for _ in 0..2 {
            for host in &mut hosts {
                host.refresh().unwrap();
                host.flush().unwrap();
            }
        }
        assert_eq!(store.bytes(INDEX_KEY).unwrap(), before, "nobody has anything to write");
    });
}

#[test]
fn a_commit_that_an_attribute_change_hid_comes_back_into_view() {
    // The attribute change gave way to what seemed to be a removal. Nobody looked again while the index stayed the same, and
    // then the file got a row and no node: it was never pushed, and waited for ever.
    for kind in KINDS {
        for changes_again in [false, true] {
            eprintln!("---- over {}, {changes_again}", kind.name);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let store = runtime.block_on(HookedStore::new(kind));
            add_foreign(&store, "other", "other");
            let mut host = Host::new("here", Arc::clone(&store) as _);
            host.start().unwrap();
            let view = store.bytes(INDEX_KEY).unwrap();
            host.write("new", b"new").unwrap();
            host.flush().unwrap();
            store.set(INDEX_KEY, view);
            let volume = host.volume();
            let ino = volume.lookup(ROOT, "new").unwrap().ino;
            volume.set_attributes(ino, SetAttributes { mode: Some(0o755), ..SetAttributes::default() }).unwrap();
            host.flush().unwrap();
            if changes_again {
                add_foreign(&store, "next", "next");
            }
            host.refresh().unwrap();
            host.flush().unwrap();
            assert!(contents(&store).contains(&("new".to_owned(), "new".to_owned())));
            assert!(host.names().unwrap().contains(&"new".to_owned()));
            assert_eq!(host.files().unwrap()["new"], b"new");
            assert_eq!(host.volume().pending_counts(), (0, 0, 0));
        }
    }
}

#[test]
fn what_is_written_over_a_file_that_came_back_is_an_edit_and_no_conflict() {
    // The object under its name was taken for another writer's: the edit went to a conflict file of its own writer.
    each(&["other"], |store| {
        let mut host = Host::new("here", Arc::clone(store) as _);
        host.start().unwrap();
        let view = store.bytes(INDEX_KEY).unwrap();
        host.write("new", b"first").unwrap();
        host.flush().unwrap();
        store.set(INDEX_KEY, view);
        host.refresh().unwrap();
        host.write("new", b"second").unwrap();
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("new", "second"), ("other", "other")]));
        assert_eq!(store.text("new").as_deref(), Some("second"));
        assert_eq!(host.names().unwrap(), ["new", "other"]);
        assert_eq!(host.conflicts(), Vec::<String>::new());
    });
}
