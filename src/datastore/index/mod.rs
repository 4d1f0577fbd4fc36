//! The index: every file of a datastore by name, whichever of the two layouts the bucket has.
//!
//! Depends on names, paths, partitions and timestamps of the format; does no I/O. An [`Index`] is a view over one document
//! (version 1) or over one document per shard (version 2); nothing above this module needs to know which. Invariants: an
//! entry in any part is found, whichever shard some release put it into; a change of one file touches only the parts that
//! hold it; clones share their parts, and parts share their entries.

mod document;
mod entry;
mod error;
mod meta;
mod parse;
mod part;
mod record;
#[cfg(test)]
mod shard_tests;
mod slots;
#[cfg(test)]
mod tests;
mod view;
mod write;

pub use document::Document;
pub use entry::{Entry, EntryKind, MAX_SIZE};
pub use error::{IndexError, IndexProblem};
pub use meta::{Meta, MetaRead};
pub use part::{MONOLITH, Part, PartName, PartStamp};
pub use slots::{EntryRef, NameRef};
pub use view::{Index, Layout, digest_of};
