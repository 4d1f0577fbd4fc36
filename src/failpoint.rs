//! Fail points: named places where a test lets the process die, to prove what survives. Without the cargo feature
//! `failpoints` they are nothing.
//!
//! Depends on nothing. `SWAMP_FAILPOINT=<name>=kill[:<n>]` ends the process, as `kill -9` would, when it comes to that point
//! for the n-th time (the first, unless said otherwise); `SWAMP_FAILPOINT=<name>=when:<file>` ends it there when that file
//! exists, and takes the file away first; `SWAMP_FAILPOINT=record=<file>` appends the name of every point
//! that is reached to a file. Invariant: a point has no effect but that, so that a build with the feature behaves as one
//! without.

/// A named place where a test can end the process.
#[macro_export]
macro_rules! fail_point {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::reached($name)
    };
}

#[cfg(feature = "failpoints")]
pub use enabled::reached;

#[cfg(feature = "failpoints")]
mod enabled {
    use std::fs::File;
    use std::io::Write;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// What the environment asks for.
    enum Order {
        Kill { name: String, at: u64, reached: AtomicU64 },
        When { name: String, file: String },
        Record(File),
    }

    impl Order {
        fn parse(text: &str) -> Option<Self> {
            let (name, action) = text.split_once('=')?;
            if name == "record" {
                return File::options().create(true).append(true).open(action).ok().map(Self::Record);
            }
            if let Some(file) = action.strip_prefix("when:") {
                return Some(Self::When { name: name.to_owned(), file: file.to_owned() });
            }
            let at = match action.strip_prefix("kill")? {
                "" => 1,
                number => number.strip_prefix(':')?.parse().ok()?,
            };
            Some(Self::Kill { name: name.to_owned(), at, reached: AtomicU64::new(0) })
        }
    }

    /// The order of this process; one that cannot be understood ends it, or a test would prove nothing.
    fn order() -> Option<&'static Order> {
        static ORDER: OnceLock<Option<Order>> = OnceLock::new();
        let read = || {
            let text = std::env::var("SWAMP_FAILPOINT").ok()?;
            let order = Order::parse(&text);
            if order.is_none() {
                tracing::error!(text, "SWAMP_FAILPOINT cannot be understood");
                std::process::exit(2);
            }
            order
        };
        ORDER.get_or_init(read).as_ref()
    }

    /// The process has come to a point.
    pub fn reached(point: &'static str) {
        match order() {
            Some(Order::Kill { name, at, reached })
                if name == point && reached.fetch_add(1, Ordering::SeqCst) + 1 == *at =>
            {
                die()
            }
            Some(Order::When { name, file }) if name == point && std::fs::remove_file(file).is_ok() => die(),
            None | Some(Order::Kill { .. } | Order::When { .. }) => {}
            Some(Order::Record(file)) => {
                // One write per line, appended: lines of several threads do not mix.
                if let Err(error) = (&*file).write_all(format!("{point}\n").as_bytes()) {
                    tracing::error!(%error, point, "a fail point cannot be recorded");
                }
            }
        }
    }

    fn die() -> ! {
        // Not abort(): nothing of this process may run any more, no handler and no destructor.
        if let Err(error) = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL) {
            tracing::error!(%error, "a fail point cannot end this process");
        }
        loop {
            std::thread::park();
        }
    }
}
