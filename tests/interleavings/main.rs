//! Promise: in whatever order threads and tasks meet, a push carries bytes of one moment, a fetch loses no reader and no failure,
//! and a flush covers what was changed before it. The files of the program that decide so are compiled here with
//! primitives which run through the orders, all of them or many by chance; a wait without an end is found as a deadlock.

#![allow(dead_code)]

mod fetching;
mod pushing;
mod writing;

#[path = "../../src/bell.rs"]
mod bell;
#[path = "../../src/volume/fetch_state.rs"]
mod fetch_state;
#[path = "../../src/sync/push/flights.rs"]
mod flights;
#[path = "../../src/sync/push/left.rs"]
mod left;
#[path = "../../src/sync/push/order.rs"]
mod order;
#[path = "../../src/volume/writes.rs"]
mod writes;

use swamp_mount::{cache, store};

/// In place of `src/primitives.rs`.
mod primitives {
    use std::sync::PoisonError;

    pub use shuttle::future::spawn;
    pub use shuttle::sync::MutexGuard;
    pub use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// The order of locks is checked in the program itself.
    pub enum Place {
        Content,
        Leaf,
    }

    #[derive(Debug)]
    pub struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub const fn new(_place: Place, value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}

/// Runs through so many orders by chance, and through as many with few preemptions, which find what needs a rare one.
fn check(scenario: impl Fn() + Send + Sync + Copy + 'static, iterations: usize) {
    shuttle::check_random(scenario, iterations);
    shuttle::check_pct(scenario, iterations, 3);
}
