//! Promise: files that get each other's names here while others change or remove them are never lost, hide nothing, and
//! hold up no push.

mod support;

use std::sync::Arc;

use support::bucket::KINDS;
use support::hooked::HookedStore;
use support::host::Host;
use support::machine::{add_foreign, contents, pairs, remove_foreign};
use swamp_mount::datastore::{Entry, INDEX_KEY, Index, RelPath};
use swamp_mount::volume::RenameMode;

/// A machine that has started over a bucket with two files, for each kind of bucket.
fn each(promise: impl Fn(&HookedStore, Host)) {
    for kind in KINDS {
        eprintln!("---- over {}", kind.name);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = runtime.block_on(HookedStore::new(kind));
        add_foreign(&store, "a", "of a");
        add_foreign(&store, "b", "of b");
        let mut host = Host::new("here", Arc::clone(&store) as _);
        host.start().unwrap();
        promise(&store, host);
    }
}

#[test]
fn an_exchange_with_a_file_that_was_removed_elsewhere_holds_up_no_push() {
    for (removed, left) in [("a", "of b"), ("b", "of a")] {
        each(|store, host| {
            host.rename("a", "b", RenameMode::Exchange).unwrap();
            remove_foreign(store, removed);
            host.flush().unwrap();
            assert_eq!(contents(store), pairs(&[("a", left), ("b", left)]));
            assert_eq!([host.read("a").unwrap(), host.read("b").unwrap()], [left.as_bytes(), left.as_bytes()]);
        });
    }
}

#[test]
fn a_file_whose_new_name_is_taken_keeps_its_old_object_until_it_has_another() {
    // The upload over the old name ran in the round in which the copy met the conflict: nothing was left to copy.
    each(|store, host| {
        host.write("b", b"ours").unwrap();
        host.rename("a", "b", RenameMode::Exchange).unwrap();
        add_foreign(store, "b", "theirs");
        host.flush().unwrap();
        let end = contents(store);
        assert_eq!(end.len(), 3, "{end:?}");
        assert_eq!(end[..2], pairs(&[("a", "ours"), ("b", "theirs")]));
        assert!(end[2].0.starts_with("b.conflict-here-") && end[2].1 == "of a", "{end:?}");
    });
}

#[test]
fn what_files_of_a_renamed_directory_hid_comes_into_view() {
    each(|store, host| {
        host.write("dir/x", b"ours").unwrap();
        add_foreign(store, "dir/x", "theirs");
        host.refresh().unwrap();
        assert_eq!(host.read("dir/x").unwrap(), b"ours");
        host.rename("dir", "moved", RenameMode::Replace).unwrap();
        assert_eq!(host.names().unwrap(), ["a", "b", "dir/x", "moved/x"]);
        assert_eq!(host.read("dir/x").unwrap(), b"theirs");
    });
}

#[test]
fn a_rename_that_is_dropped_leaves_nothing_of_a_twin() {
    // Two entries that say the same: the name went on showing the other file's object.
    each(|store, host| {
        let twin = Entry { size: 4, last_modified: "2026-01-02T03:04:05.678Z".to_owned(), ..Entry::default() };
        let mut index = Index::parse(&store.bytes(INDEX_KEY).unwrap()).unwrap();
        for name in ["a", "b"] {
            index.set(&RelPath::parse(name).unwrap(), &twin);
        }
        store.set(INDEX_KEY, index.to_bytes());
        host.refresh().unwrap();
        host.rename("a", "b", RenameMode::Replace).unwrap();
        add_foreign(store, "a", "another");
        host.read("b").unwrap_err();
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("a", "another"), ("b", "of b")]));
        assert_eq!(host.read("b").unwrap(), b"of b");
    });
}
