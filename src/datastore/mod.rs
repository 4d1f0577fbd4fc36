//! The swamp datastore format: index, names, paths, timestamps, sidecar, lock, cache directories.
//!
//! Depends on `store` only, and knows nothing of file systems in user space. It says what bytes mean and which order of
//! steps is safe; when and why to take them is the business of `sync`.

pub mod cache_dir;
pub mod index;
pub mod names;
pub mod path;
pub mod sidecar;
pub mod timestamp;

pub use cache_dir::CacheDir;
pub use index::{Entry, EntryKind, Index, IndexError, IndexProblem};
pub use names::{INDEX_KEY, LOCK_KEY, META_KEY, NameClass, SIDECAR_NAME, classify, is_internal};
pub use path::{PathProblem, RelPath};
pub use sidecar::{Flavour, Sidecar, SidecarRead, VerifiedComplete, verify_complete};
