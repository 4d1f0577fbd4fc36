//! The promises of `merge.rs`, on a store with generations, as Google has them.

#[path = "merge.rs"]
mod promises;
