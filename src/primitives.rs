//! What meets threads in the files that `tests/interleavings` compiles with other primitives, which run through the orders in
//! which threads can meet: `bell`, `volume::writes`, `volume::fetch_state`, `sync::push::flights`, `sync::push::left`.
//!
//! Those files name no other primitive of the standard library or of tokio than these, `Arc` and `Waker` apart.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use tokio::spawn;

pub(crate) use crate::lock_order::{Mutex, MutexGuard, Place};
