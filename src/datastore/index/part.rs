//! One part of an index: a document, where it came from, and which of its entries belong elsewhere.
//!
//! Invariant: the stamp is that of the response that carried the document (or of our own write of it).

use std::sync::Arc;

use super::document::Document;
use crate::datastore::partition;
use crate::store::Fingerprint;

/// Name of a part: that of a shard, or [`MONOLITH`].
pub type PartName = Arc<str>;

/// The name of the only part of an index of version 1.
pub const MONOLITH: &str = "";

/// Which version of its object a part is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartStamp {
    /// The object's fingerprint; `None`: there is no such object yet, or nobody knows.
    pub fingerprint: Option<Fingerprint>,
    /// When it was written, by the store's clock, in seconds since the epoch: objects of its entries are not younger.
    pub written_at: Option<i64>,
}

/// One document of an index.
#[derive(Clone, Debug)]
pub struct Part {
    /// What it says.
    pub document: Arc<Document>,
    /// Which version it is.
    pub stamp: PartStamp,
    /// Whether `_meta.json` names it (always, for a monolith).
    pub listed: bool,
    /// Names that the newest rule puts into another part.
    pub(super) foreign: Arc<[Box<str>]>,
}

impl Part {
    /// A part as it was read.
    pub fn new(name: &str, document: Arc<Document>, stamp: PartStamp, listed: bool) -> Self {
        let (mut path, mut home) = (String::new(), String::new());
        let foreign = match name {
            MONOLITH => Arc::default(),
            _ => document
                .all_names()
                .filter_map(|found| {
                    found.write_into(&mut path);
                    partition::ours_into(&path, &mut home);
                    (home != name).then(|| path.as_str().into())
                })
                .collect(),
        };
        Self { document, stamp, listed, foreign }
    }
}
