//! Between a local copy and the bucket: what to transfer, in which order, and what to do when others were faster.
//!
//! Depends on `datastore` and `store`. The small modules here take plain data and are shared by everything that pushes.

pub mod base;
pub mod conflict;
pub mod hash;
pub mod merge;
pub mod remove_object;
pub mod upload;
