//! What the bucket had before a push: the versions that its rows replace or remove.
//!
//! Invariant: a fingerprint found by HEAD counts only if the index, read after it, still shows the entry.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::timeout;

use super::super::base::{BaseVersion, head_base};
use super::super::{Engine, SyncError};
use super::transfer::Failed;
use crate::cache::rows::Replaced;
use crate::datastore::{Entry, Index};
use crate::store::StoreError;
use crate::volume::PlannedRow;

/// What is known of the version that a row replaces.
#[derive(Clone, Debug)]
pub(super) enum Look {
    /// Nobody had to look, or what was found is not what the row replaces.
    Nothing,
    /// A HEAD found this.
    Found(BaseVersion),
    /// The others did not wait for the answer: the transfer begins with a look of its own.
    Late,
    /// It failed. Without a look nothing can be said about a conflict: such a row waits for the next push.
    Failed,
}

/// What was found for rows whose transfer could not begin in their round, by path: nobody has to look again.
pub(super) type Looks = HashMap<String, (Replaced, BaseVersion)>;

/// A version that nobody here ever saw.
fn unknown(row: &PlannedRow) -> Option<&Replaced> {
    row.replaces.as_ref().filter(|replaced| replaced.fingerprint.is_none())
}

/// What a HEAD says about the version that `replaced` speaks of, once the index was read after it.
fn judge(index: &Index, key: &str, replaced: &Replaced, found: BaseVersion) -> Option<BaseVersion> {
    let shown = index.get(key);
    let same = shown.as_ref().is_some_and(|entry| replaced.entry.same_version(entry));
    match found {
        BaseVersion::Found(_) if !same && shown.is_some() => None,
        other => Some(other),
    }
}

impl Engine {
    /// One HEAD for each object that is replaced or removed and whose version nobody here ever saw; then one look at the
    /// index, which must still show the same entries. Answers that come `patience` after all others are not waited for.
    pub(super) async fn versions_before(
        self: &Arc<Self>,
        rows: &[PlannedRow],
        patience: Duration,
        kept: &mut Looks,
        reasons: &mut Vec<String>,
    ) -> Result<Vec<Look>, SyncError> {
        let mut kept = std::mem::take(kept);
        let mut looks: Vec<Look> = vec![Look::Nothing; rows.len()];
        let unknown: Vec<(usize, &Replaced)> =
            rows.iter().enumerate().filter_map(|(at, row)| Some((at, unknown(row)?))).collect();
        if unknown.is_empty() {
            return Ok(looks);
        }
        let mut found: HashMap<usize, BaseVersion> = HashMap::new();
        for (at, replaced) in &unknown {
            looks[*at] = Look::Late;
            if let Some((known, version)) = kept.remove(rows[*at].path.as_str())
                && known == **replaced
            {
                found.insert(*at, version);
            }
        }
        {
            let questions: Vec<(usize, String, Entry)> = unknown
                .iter()
                .filter(|(at, _)| !found.contains_key(at))
                .map(|(at, known)| (*at, rows[*at].path.to_string(), known.entry.clone()))
                .collect();
            let mut answers = futures_util::stream::iter(questions)
                .map(|(at, key, entry)| async move { (at, self.head(&key, &entry).await) })
                .buffer_unordered(self.options.upload_concurrency.max(1));
            while let Ok(Some((at, answer))) = timeout(patience, answers.next()).await {
                match answer {
                    Ok(version) => drop(found.insert(at, version)),
                    Err(error) => {
                        looks[at] = Look::Failed;
                        reasons.push(format!("{}: {error}", rows[at].path));
                    }
                }
            }
        }
        self.refresh().await?;
        let index = self.volume.base().index;
        for (at, replaced) in unknown {
            if let Some(version) = found.remove(&at) {
                let judged = judge(&index, rows[at].path.as_str(), replaced, version);
                looks[at] = judged.map_or(Look::Nothing, Look::Found);
            }
        }
        Ok(looks)
    }

    /// Looks that the next round need not repeat.
    pub(super) fn keep_looks<'a>(rows: impl Iterator<Item = (&'a PlannedRow, &'a Look)>, kept: &mut Looks) {
        for (row, look) in rows {
            if let (Some(replaced), Look::Found(version)) = (unknown(row), look) {
                kept.insert(row.path.to_string(), (replaced.clone(), version.clone()));
            }
        }
    }

    /// The same for one row by itself.
    pub(super) async fn version_before(&self, row: &PlannedRow) -> Result<Option<BaseVersion>, Failed> {
        let Some(replaced) = unknown(row) else { return Ok(None) };
        let found = self.head(row.path.as_str(), &replaced.entry).await?;
        self.refresh().await.map_err(|error| Failed::Row(error.to_string()))?;
        Ok(judge(&self.volume.base().index, row.path.as_str(), replaced, found))
    }

    async fn head(&self, key: &str, entry: &Entry) -> Result<BaseVersion, StoreError> {
        head_base(&*self.store, key, entry, self.volume.index_written_at(key)).await
    }

    /// The row's entry in the index as this machine last saw it: what it replaced, or what pushes of ours left there before
    /// it could be settled. Whoever replaces an entry replaces its object first: while that is ours, so is the entry.
    pub(super) async fn seen_entry(&self, row: &PlannedRow) -> Result<Option<Entry>, StoreError> {
        let replaced = row.replaces.as_ref().map(|replaced| replaced.entry.clone());
        let shown = self.volume.base().index.get(row.path.as_str());
        let (Some(mark), Some(shown)) = (&row.upload, shown) else { return Ok(replaced) };
        if replaced.as_ref().is_some_and(|replaced| replaced.same_version(&shown)) {
            return Ok(replaced);
        }
        // To put the same bytes again takes nothing away; a removal must be of our own upload.
        let harmless = row.put.is_some() && !mark.moved;
        let is_latest = shown.sha256.as_deref() == Some(&mark.sha256) && shown.size == mark.size;
        let ours = (harmless && is_latest) || self.own_upload(row.path.as_str(), mark).await?.is_some();
        Ok(if ours { Some(shown) } else { replaced })
    }
}
