//! Promise: what a push of ours left behind, and what others do between two of our steps, never puts other bytes under a
//! name than its entry says.

mod support;

use std::sync::Arc;

use support::bucket::KINDS;
use support::hooked::{HookedStore, Verdict};
use support::host::Host;
use support::machine::{add_foreign, contents, pairs, remove_foreign};
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
        store.hook(|_, operation, key| match (operation, key) {
            ("put", INDEX_KEY) => Verdict::Fail(StoreErrorKind::Forbidden),
            _ => Verdict::Proceed,
        });
        host.flush().unwrap_err();
        store.unhook();
        assert_eq!(store.text("p").unwrap(), "our write");
        host.rename("p", "q", RenameMode::Exchange).unwrap();
        remove_foreign(store, "q");
        host.flush().unwrap();
        assert_eq!(contents(store), pairs(&[("p", "our write"), ("q", "our write")]));
        for name in ["p", "q"] {
            assert_eq!(host.read(name).unwrap(), b"our write", "{name}");
        }
    });
}
