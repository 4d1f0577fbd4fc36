//! The swamp datastore format: index, names, paths, timestamps, sidecar, lock, cache directories.
//!
//! Depends on `store` only, and knows nothing of file systems in user space. It says what bytes mean and which order of
//! steps is safe; when and why to take them is the business of `sync`.

pub mod access;
pub mod cache_dir;
pub mod conflict;
mod derived_shards;
pub mod error;
pub mod index;
pub mod lock;
mod lock_abandoned;
pub mod lock_body;
pub mod names;
pub mod namespace;
pub mod partition;
pub mod path;
pub mod remote_index;
mod shards;
pub mod sidecar;
pub mod split_index;
pub mod survey;
pub mod timestamp;
pub mod write_index;

pub use access::{Datastore, LockFound};
pub use cache_dir::CacheDir;
pub use conflict::conflict_name;
pub use error::DatastoreError;
pub use index::{Document, Entry, EntryKind, EntryRef, Index, IndexError, IndexProblem, Layout, PartName};
pub use lock::{ForceReleased, HeldLock, LockError, LockOptions, acquire, force_release, inspect};
pub use lock_body::{LockBody, LockStatus};
pub use names::{INDEX_KEY, LOCK_KEY, META_KEY, NameClass, SIDECAR_NAME, classify, is_internal};
pub use namespace::{Namespace, NamespaceProblem, Registration, list_namespaces};
pub use path::{PathProblem, RelPath};
pub use remote_index::{Fresh, IndexRead, RemoteIndex, Seen, discover, index_copy, read_for_commit, read_index};
pub use shards::current_digest;
pub use sidecar::{Flavour, Sidecar, SidecarRead, VerifiedComplete, Vouched, verify_complete};
pub use timestamp::{format_nanos, now_nanos, parse_nanos};
pub use write_index::{Edits, Writer, write_index};
