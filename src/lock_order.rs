//! Mutexes that know their place in the lock order (`docs/architecture.md`, "Threads and locks").
//!
//! Depends on nothing. Invariant, in builds with debug assertions, so in every test: a thread that takes a lock holds none
//! of the same place or of a later one; else the process aborts, since a task that panics may fail no test. Such a guard, like the standard one, is not `Send`: no task that is spawned can hold
//! it across an await.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;

/// A place in the lock order, outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The volume lock.
    Volume,
    /// The fetch state of one content.
    Content,
    /// Nothing else is locked while it is held.
    Leaf,
}

/// A mutex with a place. A panic of one holder does not take it away from others.
pub struct Mutex<T> {
    place: Place,
    inner: std::sync::Mutex<T>,
}

/// Access to what a [`Mutex`] protects, until it is dropped.
#[must_use]
pub struct MutexGuard<'a, T> {
    guard: std::sync::MutexGuard<'a, T>,
    _held: held::Held,
}

impl<T> Mutex<T> {
    /// Unlocked.
    pub const fn new(place: Place, value: T) -> Self {
        Self { place, inner: std::sync::Mutex::new(value) }
    }

    /// Waits for the lock. With debug assertions the process aborts when the thread holds one of this place or a later one.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let held = held::Held::new(self.place);
        MutexGuard { guard: self.inner.lock().unwrap_or_else(PoisonError::into_inner), _held: held }
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.guard.fmt(f)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// The places whose locks this thread holds.
#[cfg(debug_assertions)]
mod held {
    use std::cell::Cell;

    use super::Place;

    thread_local! {
        /// One bit for each place.
        static HELD: Cell<u8> = const { Cell::new(0) };
    }

    pub(super) struct Held(Place);

    impl Held {
        pub fn new(place: Place) -> Self {
            if !may_take(place) {
                let at = std::backtrace::Backtrace::force_capture();
                eprintln!("lock order: {place:?} is locked by a thread that holds {:#05b}\n{at}", HELD.get());
                std::process::abort();
            }
            HELD.set(HELD.get() | 1 << place as u8);
            Self(place)
        }
    }

    /// Whether this thread holds nothing of that place or of a later one.
    pub(super) fn may_take(place: Place) -> bool {
        HELD.get() >> place as u8 == 0
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.set(HELD.get() & !(1 << self.0 as u8));
        }
    }
}

/// Costs nothing.
#[cfg(not(debug_assertions))]
mod held {
    pub(super) struct Held;

    impl Held {
        pub fn new(_place: super::Place) -> Self {
            Self
        }
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::held::may_take;
    use super::*;

    const PLACES: [Place; 3] = [Place::Volume, Place::Content, Place::Leaf];

    #[test]
    fn only_what_comes_later_may_be_taken() {
        for outer in PLACES {
            let mutex = Mutex::new(outer, ());
            let guard = mutex.lock();
            for inner in PLACES {
                assert_eq!(may_take(inner), outer < inner, "{outer:?}, {inner:?}");
            }
            drop(guard);
            assert!(PLACES.into_iter().all(may_take), "{outer:?}");
        }
    }

    #[test]
    fn what_was_let_go_does_not_count_in_whatever_order_it_goes() {
        let (volume, content) = (Mutex::new(Place::Volume, 1), Mutex::new(Place::Content, 2));
        let (outer, inner) = (volume.lock(), content.lock());
        drop(outer);
        assert!(!may_take(Place::Volume) && !may_take(Place::Content) && may_take(Place::Leaf));
        assert_eq!(*inner, 2);
        drop(inner);
        assert_eq!(*volume.lock(), 1);
    }
}
