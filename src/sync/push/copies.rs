//! One copy of a push: a renamed file gets its object without its bytes passing through this machine.
//!
//! Invariant: the copy is of the version that was renamed, under an upload id that was recorded before.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::Engine;
use super::super::base::{BaseVersion, head_base};
use super::super::merge::{Change, Uploaded};
use super::super::upload::{Expect, metadata};
use super::transfer::{Failed, Transferred, Verdict};
use super::uploads::new_entry;
use crate::cache::rows::{UploadMark, Version};
use crate::store::{CopySource, Fingerprint, Precondition, StoreError, StoreErrorKind};
use crate::volume::PlannedPut;

impl Engine {
    pub(super) async fn copy_row(
        self: &Arc<Self>,
        mut done: Transferred,
        origin: Version,
        put: &PlannedPut,
        looked: Option<BaseVersion>,
    ) -> Result<Transferred, Failed> {
        // An interrupted push may have made the copy, and replaced the origin after it.
        let (size, sha256) = (origin.entry.size, origin.entry.sha256.clone());
        if let Some(mark) = done.row.upload.clone()
            && let Some(left) = self.own_copy(done.row.path.as_str(), &mark, &origin).await?
        {
            let there =
                Uploaded { fingerprint: Some(left.clone()), upload_id: mark.id, confirmed: Some(Instant::now()) };
            done.verdict = Verdict::Commit(Change::Put(new_entry(put, size, sha256), there), Some(left));
            done.copied = Some(origin);
            return Ok(done);
        }
        let source = match &origin.fingerprint {
            Some(known) => Some(known.clone()),
            None => self.version_to_copy(&origin).await?,
        };
        let copied = match source {
            Some(source) => self.copy(&mut done, &origin, source, put, looked.clone()).await?,
            None => false,
        };
        if copied {
            return Ok(done);
        }
        // The origin is gone; the bytes may be here.
        if self.volume.has_local_content(put.ino) {
            return self.upload_row(done, &PlannedPut { origin: None, suspect: false, ..put.clone() }, looked).await;
        }
        // Or an interrupted push copied them to the name that the file had then.
        if let Some((mark, key)) = done.row.upload.clone().and_then(|mark| mark.key.clone().map(|key| (mark, key)))
            && let Some(left) = self.own_copy(&key, &mark, &origin).await?
        {
            let made = Version { key, entry: origin.entry.clone(), fingerprint: Some(left.clone()) };
            if self.copy(&mut done, &made, left, put, looked).await? {
                done.copied = Some(origin);
                return Ok(done);
            }
        }
        done.verdict = match done.row.upload.clone() {
            Some(mark) => self.describe_left(&mut done, put, &mark).await?,
            None => Verdict::OriginLost,
        };
        Ok(done)
    }

    /// The renamed file is lost to another writer's change, and under its name may lie what an earlier push of ours
    /// uploaded and could not commit. The entry from before would speak of bytes that are gone: it follows the object.
    async fn describe_left(
        &self,
        done: &mut Transferred,
        put: &PlannedPut,
        mark: &UploadMark,
    ) -> Result<Verdict, StoreError> {
        let Some(left) = self.own_upload(done.row.path.as_str(), mark).await? else { return Ok(Verdict::OriginLost) };
        done.origin_lost = true;
        let (fingerprint, upload_id) = (Some(left.fingerprint), mark.id.clone());
        let there = Uploaded { fingerprint: fingerprint.clone(), upload_id, confirmed: Some(Instant::now()) };
        Ok(Verdict::Commit(Change::Put(new_entry(put, left.size, left.sha256), there), fingerprint))
    }

    /// The version of an origin that nobody here ever saw: the one that we removed, or what a HEAD finds if the index, read
    /// after it, still shows the entry.
    async fn version_to_copy(&self, origin: &Version) -> Result<Option<Fingerprint>, Failed> {
        if let Some(removed) = self.volume.pending_delete_of(&origin.key).filter(|left| left.entry == origin.entry) {
            return Ok(removed.fingerprint);
        }
        let written_at = self.volume.index_written_at(&origin.key);
        match head_base(&*self.store, &origin.key, &origin.entry, written_at).await? {
            BaseVersion::Found(fingerprint) => {
                self.refresh().await.map_err(|error| Failed::Row(error.to_string()))?;
                let index = self.volume.base().index;
                let shown = index.get(&origin.key).is_some_and(|entry| entry.same_version(&origin.entry));
                Ok(shown.then_some(fingerprint))
            }
            BaseVersion::Missing | BaseVersion::Different(_) => Ok(None),
        }
    }

    /// A copy of these bytes that an earlier push of ours made: its version.
    async fn own_copy(
        &self,
        key: &str,
        mark: &UploadMark,
        origin: &Version,
    ) -> Result<Option<Fingerprint>, StoreError> {
        let made = self.own_upload(key, mark).await?.filter(|made| {
            made.sha256 == origin.entry.sha256
                && (mark.size, mark.sha256.as_str())
                    == (origin.entry.size, origin.entry.sha256.as_deref().unwrap_or_default())
        });
        Ok(made.map(|made| made.fingerprint))
    }

    /// `false`: the origin is not there any more.
    async fn copy(
        &self,
        done: &mut Transferred,
        origin: &Version,
        source: Fingerprint,
        put: &PlannedPut,
        looked: Option<BaseVersion>,
    ) -> Result<bool, Failed> {
        let key = done.row.path.as_str();
        let Some(expect) = self.expect(&done.row, looked).await? else {
            done.verdict = Verdict::Conflict;
            return Ok(true);
        };
        let sha256 = origin.entry.sha256.clone().unwrap_or_default();
        // One id until the row is settled, as for uploads; without a hash two states could not be told apart.
        let before = done.row.upload.as_ref();
        let kept = before.filter(|mark| mark.key.is_none() && !sha256.is_empty()).map(|mark| mark.id.clone());
        let id = kept.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let before = before.and_then(|mark| mark.key.clone());
        let mark = UploadMark { id, sha256: sha256.clone(), size: origin.entry.size, key: before };
        if !self.volume.mark_upload(&done.row.path, done.row.generation, &mark)? {
            return Ok(true);
        }
        done.row.upload = Some(mark.clone());
        crate::fail_point!("push.before_copy");
        let precondition = match expect {
            Expect::Absent => Precondition::Absent,
            Expect::Version(fingerprint) => Precondition::Match(fingerprint),
            Expect::Anything => Precondition::None,
        };
        let mut labels = metadata(&mark.id, &sha256);
        labels.retain(|_, value| !value.is_empty());
        let from = CopySource { key: origin.key.clone(), size: origin.entry.size, if_match: Some(source.clone()) };
        let fingerprint = match self.store.copy(from, key, precondition, labels).await {
            Ok(stored) => stored.fingerprint,
            Err(error)
                if matches!(
                    error.kind,
                    StoreErrorKind::Precondition | StoreErrorKind::NotFound | StoreErrorKind::Undecided
                ) =>
            {
                match self.own_copy(key, &mark, origin).await? {
                    Some(fingerprint) => Some(fingerprint),
                    None => {
                        // Which of the two conditions failed?
                        return match self.store.head(&origin.key).await {
                            Ok(info) if info.fingerprint.as_ref() == Some(&source) => {
                                if error.kind == StoreErrorKind::Undecided {
                                    return Err(error.into());
                                }
                                done.verdict = Verdict::Conflict;
                                Ok(true)
                            }
                            Ok(_) => Ok(false),
                            Err(missing) if missing.is_not_found() => Ok(false),
                            Err(error) => Err(error.into()),
                        };
                    }
                }
            }
            Err(error) => return Err(error.into()),
        };
        crate::fail_point!("push.after_copy");
        let entry = new_entry(put, origin.entry.size, origin.entry.sha256.clone());
        let uploaded =
            Uploaded { fingerprint: fingerprint.clone(), upload_id: mark.id, confirmed: Some(Instant::now()) };
        done.verdict = Verdict::Commit(Change::Put(entry, uploaded), fingerprint);
        done.copied = Some(origin.clone());
        Ok(true)
    }
}
