//! What this machine committed lately, so that it can be put back: a writer that read the index before our commit and
//! writes it afterwards, without looking again, drops our entries or brings back those that we removed.
//!
//! Part of the volume. Invariants: a commit is forgotten only when it is old or its object is not the version that we left,
//! never for what an index says: that may come from a view of any age. An entry comes back only while its object still is
//! what we uploaded, and what others made of its attributes stays.

use std::collections::HashMap;

use super::delta::Changes;
use super::rebase::NewBase;
use super::{Result, Volume};
use crate::cache::rows::{CommittedRow, Delta, DeltaRow, Replaced, Version};
use crate::datastore::{Entry, Index, RelPath, now_nanos};
use crate::store::Fingerprint;

/// How long a writer may take from reading the index to writing it, in ns.
const KEPT: i64 = 15 * 60 * 1_000_000_000;
/// How many states from before earlier commits are remembered of a path.
const EARLIER: usize = 16;
/// Commits of more files than that are not remembered whole.
const MOST: usize = 20_000;

/// An entry that a newer index lost, or has again, against our commit.
#[derive(Clone, Debug)]
pub struct Undone {
    /// Whose.
    pub path: RelPath,
    /// What we had committed.
    pub committed: CommittedRow,
    /// What the index says instead: what it said before.
    pub replaced: Option<Replaced>,
}

impl Undone {
    /// Whether the index says what it said before commits of ours.
    pub fn is_as_before(&self) -> bool {
        self.committed.is_before(self.replaced.as_ref().map(|replaced| &replaced.entry))
    }
}

impl Volume {
    /// Which of our recent commits an index does not show, and whether there are more of which that cannot be said now. Whether
    /// it lost them, or others went on from them, is for their objects to say.
    ///
    /// # Errors
    /// Disk errors.
    pub fn undone(&self, index: &Index) -> Result<(Vec<Undone>, bool)> {
        let mut inner = self.lock();
        let now = now_nanos();
        let (mut undone, mut more) = (Vec::new(), false);
        let mut changes = Changes::default();
        for (path, row) in &inner.committed {
            let current = index.get(path);
            // A clock that was set back must not keep it for ever.
            if now.abs_diff(row.at) > KEPT.unsigned_abs() {
                changes.committed(path, None);
            } else if !row.holds(current.as_ref()) {
                if inner.deltas.contains_key(path) {
                    // What is done here now goes first, and may come to nothing.
                    more = true;
                } else if let Ok(path) = RelPath::parse(path) {
                    let replaced = current.map(|entry| Replaced { entry, fingerprint: None });
                    undone.push(Undone { path, committed: row.clone(), replaced });
                }
            }
        }
        inner.commit(changes)?;
        Ok(if inner.read_only.is_some() { (Vec::new(), false) } else { (undone, more) })
    }

    /// The version of the object that this machine left under a path lately.
    pub fn committed_version(&self, path: &str) -> Option<Fingerprint> {
        self.lock().committed.get(path)?.fingerprint.clone()
    }

    /// These were replaced or removed by others after all.
    ///
    /// # Errors
    /// Disk errors.
    pub fn forget_committed(&self, paths: &[RelPath]) -> Result<()> {
        let mut changes = Changes::default();
        for path in paths {
            changes.committed(path.as_str(), None);
        }
        self.lock().commit(changes)
    }
}

impl CommittedRow {
    /// What a push made of a path now (`None`: it removed it), and what was there before.
    pub(super) fn new(version: Option<&Version>, before: Option<&Entry>) -> Self {
        Self {
            entry: version.map(|version| version.entry.clone()),
            fingerprint: version.and_then(|version| version.fingerprint.clone()),
            replaced: before.cloned(),
            earlier: Vec::new(),
            at: now_nanos(),
        }
    }

    /// Whether an index says what we committed, or at least that of the same bytes.
    fn holds(&self, current: Option<&Entry>) -> bool {
        let (current, ours) = match (current, &self.entry) {
            (Some(current), Some(ours)) => (current, ours),
            (current, ours) => return current.is_none() && ours.is_none(),
        };
        // Of the same bytes: attributes that others gave it, unless they are those that ours replaced.
        current.same_version(ours) || (current.same_bytes(ours) && !self.is_before(Some(current)))
    }

    /// Whether the index said so before commits of ours.
    fn is_before(&self, current: Option<&Entry>) -> bool {
        self.earlier.iter().chain([&self.replaced]).any(|before| match (current, before) {
            (Some(current), Some(before)) => current.same_version(before),
            (None, None) => true,
            _ => false,
        })
    }
}

impl Changes {
    /// Remembers what a push made of a path.
    pub(super) fn remember_commit(&mut self, known: &HashMap<String, CommittedRow>, path: &str, mut row: CommittedRow) {
        if let Some(last) = known.get(path).filter(|last| last.at.abs_diff(row.at) <= KEPT.unsigned_abs()) {
            // A writer may have read the index before several commits of ours.
            row.earlier.extend(last.earlier.iter().chain([&last.replaced, &last.entry]).cloned());
            row.earlier.dedup();
            row.earlier.drain(..row.earlier.len().saturating_sub(EARLIER));
        }
        if known.len() < MOST {
            self.committed(path, Some(row));
        } else {
            self.committed(path, None);
        }
    }
}

/// The unpushed changes that bring undone commits back with the next push. In view nothing changes meanwhile.
pub(super) fn rows_of(new: &NewBase, mut generation: impl FnMut() -> u64) -> Vec<(String, DeltaRow)> {
    let row = |undone: &Undone| {
        let delta = match &undone.committed.entry {
            Some(entry) => {
                let fingerprint = undone.committed.fingerprint.clone();
                let origin = Version { key: undone.path.to_string(), entry: entry.clone(), fingerprint };
                Delta::Put { origin: Some(origin), suspect: false }
            }
            None => Delta::Remove,
        };
        let replaces = undone.replaced.clone();
        (undone.path.to_string(), DeltaRow { generation: generation(), delta, replaces, upload: None })
    };
    new.undone.iter().map(row).collect()
}
