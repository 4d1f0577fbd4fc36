//! Between a local copy and the bucket: what to transfer, in which order, and what to do when others were faster.
//!
//! Depends on `volume`, `datastore` and `store`. The engine of a mount is `engine`, with `fetch`, `readahead`, `refresh`, `push`, their `pace`,
//! `contact` with the bucket and the `background` tasks; the small modules `base`, `upload`, `merge`, `remove_object` and `hash` take plain data and are
//! shared by everything that pushes, also without a mount (`offline`).

mod background;
pub mod base;
mod contact;
pub mod engine;
pub mod error;
pub mod fetch;
pub mod fsck;
pub mod hash;
pub mod merge;
pub mod migrate;
mod notify;
pub mod offline;
mod pace;
mod push;
mod readahead;
mod refresh;
pub mod remove_object;
pub mod status;
pub mod upload;

pub use crate::datastore::conflict;
pub use engine::{Engine, EngineOptions};
pub use error::{FetchError, FlushError, SyncError};
pub use status::Status;
