//! swamp-mount: the datastore of a swamp repository as a file system.
//!
//! Dependencies point downwards only: `fs → sync → {tree, cache, datastore} → store`; `cli` and `mount` put the parts
//! together. `docs/architecture.md` is the map.

#![deny(clippy::undocumented_unsafe_blocks)]
#![warn(missing_docs)]

pub mod bell;
pub mod cache;
pub mod cli;
pub mod config;
pub mod datastore;
pub mod failpoint;
pub mod fs;
pub mod lock_order;
pub mod memory;
pub mod mount;
mod primitives;
pub mod store;
pub mod sync;
pub mod tree;
pub mod volume;
