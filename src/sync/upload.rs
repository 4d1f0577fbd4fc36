//! Uploads one content with a precondition, and finds out what happened when the answer was lost.
//!
//! Depends on `store`. Invariant: nothing is reported as stored unless the store confirmed it or the object carries our
//! upload id or our bytes; a version that we did not expect is never overwritten.

use crate::store::{
    Body, Fingerprint, ObjectInfo, ObjectStore, Precondition, PutRequest, StoreError, StoreErrorKind, UserMetadata,
};

use super::base::holds_bytes;
use super::hash::Digests;

/// Metadata that tells our upload from any other.
pub const META_UPLOAD_ID: &str = "swamp-upload-id";
/// Metadata with the content's hash.
pub const META_SHA256: &str = "swamp-sha256";

/// How often an upload whose answer was lost is sent again.
const ATTEMPTS: u32 = 4;

/// What the upload replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// No object: a new name.
    Absent,
    /// This version.
    Version(Fingerprint),
    /// Whatever is there: only where the user waived conditions.
    Anything,
}

/// One upload.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Object key.
    pub key: String,
    /// The content.
    pub body: Body,
    /// Its hashes, computed from the same bytes.
    pub digests: Digests,
    /// Recorded before the upload begins, so that it can be recognised afterwards.
    pub upload_id: String,
    /// What it replaces.
    pub expect: Expect,
}

/// How an upload ended, when it did not fail.
#[derive(Clone, Debug)]
pub enum UploadOutcome {
    /// The object holds our bytes, in this version.
    Stored(Option<Fingerprint>),
    /// The object is another version than expected, with other bytes.
    Conflict(ObjectInfo),
    /// The object that was to be replaced is gone.
    Vanished,
}

/// Metadata of an object of ours.
pub fn metadata(upload_id: &str, sha256: &str) -> UserMetadata {
    [(META_UPLOAD_ID, upload_id), (META_SHA256, sha256)].map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// An id for one more state of a change that has one already. Without a hash nothing else tells the two apart.
pub fn next_state(upload_id: &str) -> String {
    format!("{}.{}", change_of(upload_id), uuid::Uuid::new_v4())
}

/// Whether an object was uploaded for the change of this id, in whatever state.
pub fn is_of_change(info: &ObjectInfo, upload_id: &str) -> bool {
    info.metadata
        .get(META_UPLOAD_ID)
        .is_some_and(|of_it| !upload_id.is_empty() && change_of(of_it) == change_of(upload_id))
}

fn change_of(upload_id: &str) -> &str {
    upload_id.split_once('.').map_or(upload_id, |(change, _)| change)
}

/// Uploads a content. May be repeated with the same upload id after a crash.
///
/// # Errors
/// The store's; [`StoreErrorKind::Undecided`] when even looking does not tell.
pub async fn upload(store: &dyn ObjectStore, upload: &Upload) -> Result<UploadOutcome, StoreError> {
    let mut last = None;
    let mut upload = upload.clone();
    for _ in 0..ATTEMPTS {
        let error = match store.put(request(&upload)).await {
            Ok(stored) => return Ok(UploadOutcome::Stored(stored.fingerprint)),
            Err(error) if error.is_precondition() || error.kind == StoreErrorKind::Undecided => error,
            // With If-Match some stores answer that the object is gone.
            Err(error) if error.is_not_found() && matches!(upload.expect, Expect::Version(_)) => error,
            Err(error) => return Err(error),
        };
        let info = match store.head(&upload.key).await {
            Ok(info) => info,
            Err(missing) if missing.is_not_found() => {
                if matches!(upload.expect, Expect::Version(_)) {
                    return Ok(UploadOutcome::Vanished);
                }
                last = Some(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        if is_of_change(&info, &upload.upload_id) {
            match info.fingerprint {
                // An earlier state of the same file, which arrived late.
                Some(earlier) if info.metadata.get(META_SHA256) != Some(&upload.digests.sha256) => {
                    upload.expect = Expect::Version(earlier);
                    last = Some(error);
                    continue;
                }
                fingerprint => return Ok(UploadOutcome::Stored(fingerprint)),
            }
        }
        let replaceable = match &upload.expect {
            Expect::Absent => false,
            Expect::Version(expected) => info.fingerprint.as_ref() == Some(expected),
            Expect::Anything => true,
        };
        if replaceable {
            // It did not arrive; and if it still does, the next attempt meets our own upload id.
            last = Some(error);
            continue;
        }
        if holds_bytes(store, &upload.key, &info, &upload.digests).await? {
            return Ok(UploadOutcome::Stored(info.fingerprint));
        }
        return Ok(UploadOutcome::Conflict(info));
    }
    Err(last.unwrap_or_else(|| StoreError::other("write", &upload.key, "the upload did not settle")))
}

fn request(upload: &Upload) -> PutRequest {
    PutRequest {
        key: upload.key.clone(),
        body: upload.body.clone(),
        precondition: match &upload.expect {
            Expect::Absent => Precondition::Absent,
            Expect::Version(fingerprint) => Precondition::Match(fingerprint.clone()),
            Expect::Anything => Precondition::None,
        },
        metadata: metadata(&upload.upload_id, &upload.digests.sha256),
        md5: upload.digests.md5,
        single_part: false,
        content_type: None,
    }
}
