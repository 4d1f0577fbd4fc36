//! One copy of a push: a renamed file gets its object without its bytes passing through this machine.
//!
//! Invariant: the copy is of the version that was renamed, under an upload id that was recorded before.

use std::sync::Arc;

use tokio::time::Instant;

use super::super::Engine;
use super::super::base::{BaseVersion, head_base};
use super::super::merge::{Change, Uploaded};
use super::super::upload::{Expect, META_SHA256, metadata, next_state};
use super::transfer::{Failed, Transferred, Verdict};
use super::uploads::new_entry;
use crate::cache::rows::{UploadMark, Version};
use crate::store::{CopySource, Fingerprint, Precondition, StoreError, StoreErrorKind};
use crate::volume::{PlannedPut, PlannedRow};

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
        // Or an interrupted push copied them to a name that the file had then.
        let moved = done.row.upload.clone().and_then(|mark| mark.key.clone().map(|key| (key, mark)));
        let mut made = self.volume.copies_made(&origin);
        made.retain(|(key, _)| key != done.row.path.as_str());
        for (key, mark) in moved.into_iter().chain(made) {
            let Some(left) = self.own_copy(&key, &mark, &origin).await? else { continue };
            let made = Version { key, entry: origin.entry.clone(), fingerprint: Some(left.clone()) };
            if self.copy(&mut done, &made, left, put, looked.clone()).await? {
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
        let (fingerprint, upload_id) = (Some(left.fingerprint), left.upload_id);
        let there = Uploaded { fingerprint: fingerprint.clone(), upload_id, confirmed: Some(Instant::now()) };
        Ok(Verdict::Commit(Change::Put(new_entry(put, left.size, left.sha256), there), fingerprint))
    }

    /// The version of an origin that nobody here ever saw: the one that we removed, or what a HEAD finds if the index, read
    /// after it, still shows the entry.
    async fn version_to_copy(&self, origin: &Version) -> Result<Option<Fingerprint>, Failed> {
        let removed = self.volume.pending_delete_of(&origin.key).and_then(|left| left.replaced);
        if let Some(removed) = removed.filter(|removed| removed.entry == origin.entry) {
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

    /// Whether an earlier push of ours put other bytes over the entry that a file of this name has (again).
    pub(super) async fn is_overwritten(&self, row: &PlannedRow, origin: &Version) -> Result<bool, StoreError> {
        let Some(mark) = &row.upload else { return Ok(false) };
        let Some(left) = self.own_upload(row.path.as_str(), mark).await? else { return Ok(false) };
        Ok(match &origin.entry.sha256 {
            Some(_) => left.sha256 != origin.entry.sha256,
            None => left.upload_id != mark.id || !mark.is_about(origin),
        })
    }

    /// Whether another writer certainly replaced or removed what a row would be copied from.
    pub(super) async fn lost_origin(&self, row: &PlannedRow) -> bool {
        let Some(origin) = row.put.as_ref().and_then(|put| put.origin.as_ref()) else { return false };
        let gone = match &origin.fingerprint {
            Some(known) => matches!(self.is_version(&origin.key, known).await, Ok(false)),
            None => matches!(self.version_to_copy(origin).await, Ok(None)),
        };
        gone && matches!(self.copy_made_of(origin).await, Ok(None))
    }

    /// Where a push of ours left the bytes of a version that it may have replaced, or removed, after that.
    pub(in crate::sync) async fn copy_made_of(&self, version: &Version) -> Result<Option<Version>, StoreError> {
        for (key, mark) in self.volume.copies_made(version) {
            if let Some(left) = self.own_copy(&key, &mark, version).await? {
                return Ok(Some(Version { key, entry: version.entry.clone(), fingerprint: Some(left) }));
            }
        }
        Ok(None)
    }

    /// A copy of these bytes that an earlier push of ours made: its version.
    async fn own_copy(
        &self,
        key: &str,
        mark: &UploadMark,
        origin: &Version,
    ) -> Result<Option<Fingerprint>, StoreError> {
        let made = self
            .own_upload(key, mark)
            .await?
            .filter(|made| made.upload_id == mark.id && made.sha256 == origin.entry.sha256 && mark.is_about(origin));
        Ok(made.map(|made| made.fingerprint))
    }

    /// What another writer made of the name of a copy: a conflict, unless the same bytes are there. `None`: nothing is.
    async fn taken(&self, key: &str, put: &PlannedPut, origin: &Version) -> Result<Option<Verdict>, StoreError> {
        let info = match self.store.head(key).await {
            Ok(info) => info,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let (size, sha256) = (origin.entry.size, origin.entry.sha256.clone());
        if info.size != size || sha256.is_none() || info.metadata.get(META_SHA256) != sha256.as_ref() {
            return Ok(Some(Verdict::Conflict));
        }
        let fingerprint = info.fingerprint;
        let there =
            Uploaded { fingerprint: fingerprint.clone(), upload_id: String::new(), confirmed: Some(Instant::now()) };
        Ok(Some(Verdict::Commit(Change::Put(new_entry(put, size, sha256), there), fingerprint)))
    }

    /// Whether an object is in this version.
    pub(super) async fn is_version(&self, key: &str, version: &Fingerprint) -> Result<bool, StoreError> {
        match self.store.head(key).await {
            Ok(info) => Ok(info.fingerprint.as_ref() == Some(version)),
            Err(missing) if missing.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
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
        let mut expect = match self.expect(&done.row, looked).await? {
            Some(expect) => expect,
            None => match self.taken(key, put, origin).await? {
                Some(verdict) => {
                    done.verdict = verdict;
                    return Ok(true);
                }
                None => Expect::Absent,
            },
        };
        let sha256 = origin.entry.sha256.clone().unwrap_or_default();
        // As for uploads, or the object of an upload before would not be known for ours any more.
        let id = match &done.row.upload {
            // It was begun under another name, whose row remembers it.
            Some(UploadMark { key: Some(_), .. }) => uuid::Uuid::new_v4().to_string(),
            _ if sha256.is_empty() => next_state(&self.upload_id(&done.row)),
            _ => self.upload_id(&done.row),
        };
        // The copy may come from another copy of it.
        let of = put.origin.as_ref().unwrap_or(origin);
        let copy_of = sha256.is_empty().then(|| (of.key.clone(), of.entry.last_modified.clone()));
        let size = origin.entry.size;
        let mark = UploadMark { id, sha256: sha256.clone(), size, key: None, moved: false, copy_of };
        if !self.volume.mark_upload(&done.row.path, done.row.generation, &mark)? {
            return Ok(true);
        }
        done.row.upload = Some(mark.clone());
        crate::fail_point!("push.before_copy");
        let mut labels = metadata(&mark.id, &sha256);
        labels.retain(|_, value| !value.is_empty());
        let from = CopySource { key: origin.key.clone(), size, if_match: Some(source.clone()) };
        let fingerprint = loop {
            let precondition = match &expect {
                Expect::Absent => Precondition::Absent,
                Expect::Version(fingerprint) => Precondition::Match(fingerprint.clone()),
                Expect::Anything => Precondition::None,
            };
            let error = match self.store.copy(from.clone(), key, precondition, labels.clone()).await {
                Ok(stored) => break stored.fingerprint,
                Err(error) => error,
            };
            if !(error.is_precondition() || error.is_not_found() || error.kind == StoreErrorKind::Undecided) {
                return Err(error.into());
            }
            if let Some(fingerprint) = self.own_copy(key, &mark, of).await? {
                break Some(fingerprint);
            }
            // Which of the two conditions failed?
            if !self.is_version(&origin.key, &source).await? {
                return Ok(false);
            }
            if error.kind == StoreErrorKind::Undecided {
                return Err(error.into());
            }
            match (self.taken(key, put, origin).await?, &expect) {
                (Some(verdict), _) => {
                    done.verdict = verdict;
                    return Ok(true);
                }
                // What is put against a removal is kept.
                (None, Expect::Version(_)) => expect = Expect::Absent,
                (None, _) => return Ok(true),
            }
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
