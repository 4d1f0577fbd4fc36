//! What this machine committed lately, so that it can be put back: a writer that read the index before our commit and
//! writes it afterwards, without looking again, drops our entries or brings back those that we removed.
//!
//! Part of the volume. Invariants: an entry comes back only while its object still is the version that we uploaded, and only
//! where the index says what it said before our commits; anything else is another writer's doing and stays.

use std::collections::HashMap;

use super::delta::Changes;
use super::rebase::NewBase;
use super::{Result, Volume};
use crate::cache::rows::{CommittedRow, Delta, DeltaRow, Replaced, Version};
use crate::datastore::{Index, RelPath, now_nanos};

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

impl Volume {
    /// Which of our recent commits an index has lost. Forgets those that are old or were followed by others.
    ///
    /// # Errors
    /// Disk errors.
    pub fn undone(&self, index: &Index) -> Result<Vec<Undone>> {
        let mut inner = self.lock();
        let oldest = now_nanos() - KEPT;
        let mut undone = Vec::new();
        let mut changes = Changes::default();
        for (path, row) in &inner.committed {
            let current = index.get(path);
            let holds = match (&current, &row.entry) {
                (Some(current), Some(ours)) => current.same_version(ours),
                (None, None) => true,
                _ => false,
            };
            let as_before = row.earlier.iter().chain([&row.replaced]).any(|before| match (&current, before) {
                (Some(current), Some(before)) => current.same_version(before),
                (None, None) => true,
                _ => false,
            });
            if row.at < oldest || (!holds && !as_before) {
                changes.committed(path, None);
            } else if !holds
                && !inner.deltas.contains_key(path)
                && let Ok(path) = RelPath::parse(path)
            {
                let replaced = current.map(|entry| Replaced { entry, fingerprint: None });
                undone.push(Undone { path, committed: row.clone(), replaced });
            }
        }
        inner.commit(changes)?;
        Ok(if inner.read_only.is_some() { Vec::new() } else { undone })
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

impl Changes {
    /// Remembers what a push made of a path.
    pub(super) fn remember_commit(&mut self, known: &HashMap<String, CommittedRow>, path: &str, mut row: CommittedRow) {
        if let Some(last) = known.get(path).filter(|last| last.at >= row.at - KEPT) {
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
