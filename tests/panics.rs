//! Promise: what panics in the background fails for those who asked for it, with words, and holds up nobody after that.

mod support;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use support::bucket::KINDS;
use support::hooked::{HookedStore, Verdict};
use support::host::{Host, Outcome};
use support::machine::add_hashed;

type Act = fn(&Host) -> Outcome<()>;

/// A request that panics, and what makes it.
const CASES: &[(&str, &str, &str, Act)] = &[
    ("a fetch", "get", "file", |host| host.read("file").map(drop)),
    ("an upload", "put", "new", |host| {
        host.write("new", b"new bytes")?;
        host.flush()
    }),
];

#[test]
fn a_task_that_panics_fails_once() {
    for (what, operation, key, act) in CASES {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = runtime.block_on(HookedStore::new(&KINDS[0]));
        add_hashed(&store, "file", "bytes");
        let mut host = Host::new("here", Arc::clone(&store) as _);
        host.start().unwrap();
        store.hook(|_, op, k| {
            assert!((op, k) != (*operation, *key), "a fault of the program, as far as the test goes");
            Verdict::Proceed
        });
        let (host, failed) = in_time(what, host, *act);
        assert!(failed.is_err(), "{what}");
        // The hook went with the panic.
        let (_, again) = in_time(what, host, *act);
        assert_eq!(again, Ok(()), "{what}");
    }
}

/// A test that waits for ever tells nothing.
fn in_time(what: &str, host: Host, act: Act) -> (Host, Outcome<()>) {
    let (sender, done) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = act(&host);
        // Nobody listens any more when it came too late.
        drop(sender.send((host, outcome)));
    });
    done.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| panic!("{what}: nothing came of it"))
}
