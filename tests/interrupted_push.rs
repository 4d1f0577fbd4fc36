//! Promise: what a push of ours left behind, and what others do between two of our steps, never puts other bytes under a
//! name than its entry says.

mod support;

use std::sync::Arc;

use support::bucket::KINDS;
use support::hooked::HookedStore;
use support::host::Host;
use support::machine::{add_foreign, contents, pairs};
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
