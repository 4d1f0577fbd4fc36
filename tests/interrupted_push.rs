//! Promise: what a push of ours left behind, and what others do between two of our steps, never puts other bytes under a
//! name than its entry says.

mod support;

use std::sync::Arc;

use support::bucket::{Bucket, KINDS};
use support::hooked::{HookedStore, Verdict};
use support::host::Host;
use support::machine::{add_foreign, add_hashed, contents, list_foreign, pairs, remove_foreign};
use swamp_mount::datastore::INDEX_KEY;
use swamp_mount::store::StoreErrorKind;
use swamp_mount::volume::RenameMode;

/// A machine that is not started yet, in front of each kind of bucket.
fn each(promise: impl Fn(&HookedStore, Host)) {
    for kind in KINDS {
        eprintln!("---- over {}", kind.name);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = runtime.block_on(HookedStore::new(kind));
        promise(&store, Host::new("here", Arc::clone(&store) as _));
    }
}

#[test]
fn a_renamed_file_never_gets_the_bytes_that_replaced_its_own() {
    each(|store, mut host| {
        // Neither hash nor size tells the versions apart, and the index is not older than the object.
        add_foreign(store, "origin", "old bytes");
        host.start().unwrap();
        host.rename("origin", "renamed", RenameMode::Replace).unwrap();
        add_foreign(store, "origin", "NEW BYTES");
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("origin", "NEW BYTES")]));
        assert_eq!(host.names().unwrap(), ["origin"]);
        assert_eq!(host.conflicts().len(), 2, "{:?}", host.conflicts());
    });
}

#[test]
fn a_rename_that_is_dropped_leaves_no_entry_over_an_upload_of_ours() {
    each(|store, mut host| {
        add_foreign(store, "p", "before");
        add_foreign(store, "q", "of q");
        host.start().unwrap();
        host.write("p", b"our write").unwrap();
        flush_without(store, &host, "put", INDEX_KEY);
        assert_eq!(store.text("p").unwrap(), "our write");
        host.rename("p", "q", RenameMode::Exchange).unwrap();
        remove_foreign(store, "q");
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("p", "our write"), ("q", "our write")]));
        for name in ["p", "q"] {
            assert_eq!(host.read(name).unwrap(), b"our write", "{name}");
        }
        // These are entries of ours, which come back when a client with an old view takes them away.
        for (name, old) in [("p", "before"), ("q", "of q")] {
            list_foreign(store, name, old, None);
            host.refresh().unwrap();
            host.flush().unwrap();
            let mut fresh = Host::new("elsewhere", host.store());
            fresh.start().unwrap();
            assert_eq!(fresh.read(name).unwrap(), b"our write", "{name}");
        }
    });
}

/// A push whose requests of one kind are refused.
fn flush_without(store: &HookedStore, host: &Host, operation: &'static str, key: &'static str) {
    store.hook(
        move |_, op, k| {
            if (op, k) == (operation, key) { Verdict::Fail(StoreErrorKind::Forbidden) } else { Verdict::Proceed }
        },
    );
    host.flush().unwrap_err();
    store.unhook();
}

#[test]
fn a_removal_holds_after_pushes_that_ended_halfway() {
    each(|store, mut host| {
        add_foreign(store, "other", "other");
        host.start().unwrap();
        host.write("name", b"first").unwrap();
        // The index is written, and nobody here knows.
        store.hook(|_, operation, key| match (operation, key) {
            ("put", INDEX_KEY) => Verdict::DoAndFail(StoreErrorKind::Forbidden),
            _ => Verdict::Proceed,
        });
        host.flush().unwrap_err();
        store.unhook();
        assert_eq!(contents(store), pairs(&[("name", "first"), ("other", "other")]));
        host.refresh().unwrap();
        host.write("name", b"the second").unwrap();
        flush_without(store, &host, "put", INDEX_KEY);
        host.remove("name").unwrap();
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("other", "other")]));
        assert_eq!(store.text("name"), None);
        assert_eq!(host.names().unwrap(), ["other"]);
    });
}

#[test]
fn a_new_file_under_the_name_of_an_upload_that_waits_for_its_deletion_is_no_conflict() {
    each(|store, mut host| {
        add_foreign(store, "other", "other");
        host.start().unwrap();
        host.write("name", b"first").unwrap();
        flush_without(store, &host, "put", INDEX_KEY);
        host.remove("name").unwrap();
        flush_without(store, &host, "delete", "name");
        assert_eq!(store.text("name").unwrap(), "first", "left to be deleted");
        host.write("name", b"second").unwrap();
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("name", "second"), ("other", "other")]));
        assert_eq!(host.conflicts(), Vec::<String>::new());
    });
}

#[test]
fn an_upload_that_waits_for_its_deletion_goes_also_after_a_second_file_of_its_name() {
    each(|store, mut host| {
        add_foreign(store, "other", "other");
        host.start().unwrap();
        host.write("name", b"first").unwrap();
        flush_without(store, &host, "put", INDEX_KEY);
        host.remove("name").unwrap();
        flush_without(store, &host, "delete", "name");
        host.write("name", b"second").unwrap();
        flush_without(store, &host, "put", "name");
        host.remove("name").unwrap();
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("other", "other")]));
        assert_eq!(store.text("name"), None);
    });
}

#[test]
fn a_renamed_file_takes_a_name_that_was_removed_elsewhere() {
    each(|store, mut host| {
        add_foreign(store, "from", "renamed");
        add_foreign(store, "to", "replaced");
        host.start().unwrap();
        // Its version is known here.
        host.read("to").unwrap();
        host.rename("from", "to", RenameMode::Replace).unwrap();
        remove_foreign(store, "to");
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("to", "renamed")]));
        assert_eq!(host.conflicts(), Vec::<String>::new());
    });
}

#[test]
fn two_machines_that_rename_alike_make_no_conflict() {
    each(|store, mut host| {
        add_foreign(store, "other", "other");
        host.start().unwrap();
        host.write("from", b"renamed").unwrap();
        host.flush().unwrap();
        let mut second = Host::new("there", host.store());
        second.start().unwrap();
        for machine in [&host, &second] {
            machine.read("from").unwrap();
            machine.rename("from", "to", RenameMode::Replace).unwrap();
        }
        host.flush().unwrap();
        second.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("other", "other"), ("to", "renamed")]));
        assert_eq!(second.conflicts(), Vec::<String>::new());
    });
}

#[test]
fn a_rename_back_over_an_upload_of_ours_finds_the_copy_that_was_made_before() {
    // The push copied the one file and uploaded over it, and died. Renamed back, its entry spoke of bytes that were only
    // in the copy, which was deleted.
    for add in [add_foreign, add_hashed] {
        each(|store, host| renamed_back(store, host, add));
    }
}

fn renamed_back(store: &HookedStore, mut host: Host, add: fn(&Bucket, &str, &str)) {
    add(store, "a", "of a");
    add(store, "b", "of b");
    host.start().unwrap();
    host.write("b", b"ours, longer").unwrap();
    host.rename("a", "b", RenameMode::Exchange).unwrap();
    flush_without(store, &host, "put", INDEX_KEY);
    assert_eq!([store.text("a").unwrap(), store.text("b").unwrap()], ["ours, longer", "of a"]);
    host.rename("b", "a", RenameMode::Replace).unwrap();
    host.flush().unwrap();
    assert_eq!(contents(store), pairs(&[("a", "of a")]));
    assert_eq!((host.names().unwrap(), store.text("b")), (vec!["a".to_owned()], None));
    assert_eq!(host.read("a").unwrap(), b"of a");
}

#[test]
fn what_was_exchanged_and_exchanged_back_over_a_push_that_died_is_what_it_was() {
    // Each of the two files was only where the push had copied it, over the other: the push after it took the first for lost,
    // and then it was, when the second went back. Until then neither could be read.
    let here: [&[&str]; 3] = [&[], &["a"], &["b"]];
    for (read, written) in here.into_iter().flat_map(|read| [(read, false), (read, true)]) {
        for meanwhile in [false, true] {
            eprintln!("-- {read:?} here; the index was written: {written}; both are read after that: {meanwhile}");
            each(|store, host| exchanged_back(store, host, read, written, meanwhile));
        }
    }
}

fn exchanged_back(store: &HookedStore, mut host: Host, here: &[&str], written: bool, meanwhile: bool) {
    add_hashed(store, "a", "of a");
    add_hashed(store, "b", "of b, longer");
    host.start().unwrap();
    for name in here {
        host.read(name).unwrap();
    }
    host.rename("a", "b", RenameMode::Exchange).unwrap();
    store.hook(move |_, operation, key| match (operation, key) {
        ("put", INDEX_KEY) if written => Verdict::DoAndFail(StoreErrorKind::Forbidden),
        ("put", INDEX_KEY) => Verdict::Fail(StoreErrorKind::Forbidden),
        _ => Verdict::Proceed,
    });
    host.flush().unwrap_err();
    store.unhook();
    assert_eq!([store.text("a").unwrap(), store.text("b").unwrap()], ["of b, longer", "of a"]);
    host.crash();
    host.start().unwrap();
    for (name, bytes) in [("a", "of b, longer"), ("b", "of a")].into_iter().filter(|_| meanwhile) {
        assert_eq!(host.read(name).unwrap(), bytes.as_bytes(), "{name}");
    }
    host.rename("a", "b", RenameMode::Exchange).unwrap();
    host.flush().unwrap();
    assert_eq!(contents(store), pairs(&[("a", "of a"), ("b", "of b, longer")]));
    for (name, bytes) in [("a", "of a"), ("b", "of b, longer")] {
        assert_eq!(host.read(name).unwrap(), bytes.as_bytes(), "{name}");
    }
    assert_eq!(host.conflicts(), Vec::<String>::new());
}

#[test]
fn a_copy_is_not_overwritten_while_it_is_all_that_is_left_of_a_renamed_file() {
    // The push that died had copied the file to a name that it had then. A new file of that name went up while the copy was
    // looked for under the first name, where another machine had removed it.
    each(|store, mut host| {
        add_hashed(store, "first", "of the renamed file");
        add_hashed(store, "other", "other");
        host.start().unwrap();
        host.rename("first", "second", RenameMode::Replace).unwrap();
        flush_without(store, &host, "put", INDEX_KEY);
        host.rename("second", "third", RenameMode::Replace).unwrap();
        host.write("second", b"a new file").unwrap();
        remove_foreign(store, "first");
        host.flush().unwrap();
        let expected = [("other", "other"), ("second", "a new file"), ("third", "of the renamed file")];
        assert_eq!(contents(store), pairs(&expected));
    });
}

#[test]
fn an_upload_is_known_for_ours_after_a_copy_over_it_that_failed() {
    // The copy of a file without a hash was recorded under an id of its own, and what a push before had uploaded under that
    // name was another writer's from then on: the entry spoke of bytes that were gone, and nobody put that right.
    each(|store, mut host| {
        add_foreign(store, "from", "no hash");
        add_hashed(store, "to", "before");
        host.start().unwrap();
        host.read("from").unwrap();
        host.write("to", b"uploaded, not committed").unwrap();
        flush_without(store, &host, "put", INDEX_KEY);
        host.rename("from", "to", RenameMode::Replace).unwrap();
        add_foreign(store, "from", "others changed it");
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("from", "others changed it"), ("to", "no hash")]));
    });
}

#[test]
fn a_removal_does_not_give_way_to_an_old_entry() {
    // When a file was removed whose object a push of ours had replaced, a client with an old view had just changed the entry:
    // the removal gave way to it, and the entry spoke of bytes that were nowhere.
    each(|store, host| {
        removed_under_an_old_entry(store, host, |store, host| flush_without(store, host, "put", INDEX_KEY))
    });
    each(|store, host| removed_under_an_old_entry(store, host, |_, host| host.flush().unwrap()));
}

fn removed_under_an_old_entry(store: &HookedStore, mut host: Host, push: fn(&HookedStore, &Host)) {
    add_hashed(store, "file", "others wrote it");
    add_foreign(store, "other", "other");
    host.start().unwrap();
    host.write("file", b"ours").unwrap();
    push(store, &host);
    host.remove("file").unwrap();
    store.before("put", INDEX_KEY, |store| list_foreign(store, "file", "an older version", None));
    host.flush().unwrap();
    assert_eq!(contents(store), pairs(&[("other", "other")]));
    assert_eq!(store.text("file"), None);
}

/// Of one size, without a hash: nothing in the index tells them apart.
fn add_twins(store: &HookedStore) {
    add_foreign(store, "one", "bytes of one");
    add_foreign(store, "two", "bytes of two");
}

#[test]
fn a_copy_of_one_file_without_a_hash_is_not_taken_for_one_of_another() {
    // What a push that died had copied to a name had the size of the file that was renamed over it then: it was taken for a
    // copy of that, whose own bytes were deleted.
    each(|store, mut host| {
        add_twins(store);
        host.start().unwrap();
        host.rename("one", "to", RenameMode::Replace).unwrap();
        flush_without(store, &host, "put", INDEX_KEY);
        assert_eq!(store.text("to").unwrap(), "bytes of one");
        host.rename("two", "to", RenameMode::Replace).unwrap();
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("to", "bytes of two")]));
    });
}

#[test]
fn a_file_without_a_hash_is_not_read_from_the_copy_of_another() {
    each(|store, mut host| {
        add_twins(store);
        host.start().unwrap();
        host.rename("one", "here", RenameMode::Replace).unwrap();
        flush_without(store, &host, "put", INDEX_KEY);
        host.rename("two", "there", RenameMode::Replace).unwrap();
        for (name, found) in [("one", Some("bytes of one")), ("two", None)] {
            store.remove(name);
            let read = host.read(if name == "one" { "here" } else { "there" }).ok();
            assert_eq!(read.as_deref(), found.map(str::as_bytes), "{name}");
        }
    });
}

#[test]
fn a_name_that_was_only_passed_through_belongs_to_whoever_has_it() {
    // What a push had begun under the first name went along with the file: another writer's file with the same bytes, under a
    // name that ours had in between, was hidden, and removed with the next push.
    each(|store, mut host| {
        add_hashed(store, "a", "bytes");
        host.start().unwrap();
        host.rename("a", "b", RenameMode::Replace).unwrap();
        flush_without(store, &host, "put", INDEX_KEY);
        host.rename("b", "c", RenameMode::Replace).unwrap();
        add_hashed(store, "c", "bytes");
        host.refresh().unwrap();
        host.rename("c", "d", RenameMode::Replace).unwrap();
        host.refresh().unwrap();
        assert_eq!(host.names().unwrap(), ["c", "d"]);
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("c", "bytes"), ("d", "bytes")]));
        assert_eq!(host.names().unwrap(), ["c", "d"]);
    });
}
