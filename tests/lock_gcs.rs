//! The promises of `lock.rs`, on a store with generations that does not tell its time, as Google's client shows it.

#[path = "lock.rs"]
mod promises;
