//! The end of a push: objects that no entry names any more.
//!
//! Invariant: an object is deleted under the lock, after an index without it was written, only in the version that we
//! removed or uploaded, and not while somebody here reads or copies from it, or uploads to it.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt;

use super::super::base::{BaseVersion, head_base};
use super::super::remove_object::remove_object;
use super::super::upload::is_of_change;
use super::{Engine, SyncError};
use crate::cache::rows::PendingDelete;
use crate::datastore::{HeldLock, Index};
use crate::store::{Fingerprint, StoreError};

const CONCURRENCY: usize = 16;

impl Engine {
    /// Deletes what is pending, but for the keys of transfers that are under way. What fails stays pending.
    pub(super) async fn delete_pending(&self, lock: &HeldLock, busy: &HashSet<String>) -> Result<(), SyncError> {
        lock.check()?;
        let index = self.volume.base().index;
        let mut pending = self.volume.deletable();
        pending.retain(|(key, _)| !busy.contains(key));
        let results: Vec<Result<(), SyncError>> = futures_util::stream::iter(pending)
            .map(|(key, row)| {
                let index = Arc::clone(&index);
                async move {
                    self.delete_one(&key, &row, &index).await?;
                    Ok(self.volume.set_pending_delete(&key, None)?)
                }
            })
            .buffer_unordered(CONCURRENCY)
            .collect()
            .await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, key: &str, row: &PendingDelete, index: &Index) -> Result<(), StoreError> {
        if index.names(key) {
            return Ok(());
        }
        for version in self.removable_versions(key, row).await? {
            crate::fail_point!("push.before_delete");
            let removal = remove_object(&*self.store, key, &version, index).await?;
            crate::fail_point!("push.after_delete");
            tracing::debug!(key, ?removal, "deletion");
        }
        Ok(())
    }

    /// The versions that a pending deletion is about, in the order in which we made them.
    pub(super) async fn removable_versions(
        &self,
        key: &str,
        row: &PendingDelete,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        let mut versions = Vec::new();
        if let Some(fingerprint) = row.replaced.as_ref().and_then(|r| r.fingerprint.clone()) {
            versions.push(fingerprint);
        }
        if let Some(mark) = &row.upload {
            match self.store.head(key).await {
                Ok(info) if is_of_change(&info, &mark.id) => versions.extend(info.fingerprint),
                Ok(_) => {}
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(versions)
    }

    /// The version of the object that a removal is about; looked for before the index is read and written.
    pub(super) async fn version_to_remove(&self, row: &super::PlannedRow) -> Result<Option<Fingerprint>, StoreError> {
        let Some(replaced) = &row.replaces else { return Ok(None) };
        if let Some(known) = &replaced.fingerprint {
            return Ok(Some(known.clone()));
        }
        match head_base(
            &*self.store,
            row.path.as_str(),
            &replaced.entry,
            self.volume.index_written_at(row.path.as_str()),
        )
        .await?
        {
            BaseVersion::Found(fingerprint) => Ok(Some(fingerprint)),
            BaseVersion::Missing | BaseVersion::Different(_) => Ok(None),
        }
    }
}
