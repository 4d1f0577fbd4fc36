//! The stories of `lost_files.rs`, on a store with generations, as Google has them.

#[path = "lost_files.rs"]
mod promises;
