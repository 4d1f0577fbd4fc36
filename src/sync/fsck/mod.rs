//! `fsck`: compares index, objects and a cache, and repairs what can be repaired without deciding for the user.
//!
//! Depends on `datastore`, `cache` and the upload of a push; no mount is needed, and one that is at work does no harm to a
//! check of the bucket. Invariants: a check writes nothing; a repair never deletes the only copy of anything; what could not
//! be read is an error, never a finding.

pub mod cached;
mod check_cache;
mod check_index;
mod check_objects;
pub mod findings;
mod repair;

use futures_util::FutureExt;
use time::OffsetDateTime;

use crate::cache::CacheError;
use crate::datastore::survey::{survey_index, survey_objects};
use crate::datastore::{Datastore, DatastoreError, Flavour, LockOptions};
use crate::store::StoreError;
use cached::Cached;
use findings::{Finding, Kind, Remedy, Severity};

pub use check_objects::GRACE;

/// Why a check or a repair ended early.
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// The index cannot be read or written.
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cache cannot be read or written.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl FsckError {
    fn disk(path: &str) -> impl FnOnce(std::io::Error) -> Self {
        let failed = CacheError::io("read or write", path);
        move |error| Self::Cache(failed(error))
    }
}

/// Where a check is, for people who wait: what is counted, and how many so far.
pub type Progress<'a> = &'a (dyn Fn(&'static str, usize) + Sync);

/// What was found, and what is still so after a repair.
#[derive(Debug, Default)]
pub struct Report {
    /// How many entries the index has.
    pub entries: usize,
    /// How many objects may be files.
    pub objects: usize,
    /// By the first check.
    pub found: Vec<Finding>,
    /// By the check after the repair; the same as `found` without one.
    pub left: Vec<Finding>,
}

impl Report {
    /// Whether all is as it should be.
    pub fn is_clean(&self) -> bool {
        !self.left.iter().any(Finding::counts)
    }
}

/// Checks, and with `repairing` repairs and checks again.
///
/// # Errors
/// When index, objects or cache cannot be read, or a repair fails; what was repaired before stays.
pub async fn fsck(
    datastore: &Datastore,
    mut cached: Option<&mut Cached>,
    repairing: Option<&LockOptions>,
    progress: Progress<'_>,
) -> Result<Report, FsckError> {
    let mut report = check(datastore, cached.as_deref(), progress).boxed_local().await?;
    if let Some(lock) = repairing
        && report.found.iter().any(|finding| finding.remedy != Remedy::Leave)
    {
        repair::repair(datastore, lock, &report.found, cached.as_deref_mut()).boxed_local().await?;
        report.left = check(datastore, cached.as_deref(), progress).boxed_local().await?.found;
    } else {
        report.left.clone_from(&report.found);
    }
    Ok(report)
}

async fn check(datastore: &Datastore, cached: Option<&Cached>, progress: Progress<'_>) -> Result<Report, FsckError> {
    // The index first: an object that it names and the listing lacks is really missing, one that came meanwhile is young.
    let store = &**datastore.store();
    let mut survey = survey_index(store).boxed().await?;
    survey.read.fresh.clear();
    progress("entries", survey.read.index.len());
    let objects =
        survey_objects(store, datastore.namespace().is_some(), |seen| progress("objects", seen)).boxed().await?;
    let now = OffsetDateTime::now_utc();
    let mut found = check_index::check_index(&survey);
    found.extend(check_objects::check_objects(&survey, &objects, now));
    if let Some(cached) = cached {
        let count = |seen| progress("cached files", seen);
        check_cache::check_cache(&survey, cached, Flavour::of(store), &mut found, count)
            .await
            .map_err(FsckError::disk("the cache directory"))?;
    }
    let uploads = match store.unfinished_uploads().await {
        Err(error) if !error.is_transient() => {
            tracing::warn!(%error, "unfinished uploads are not looked for");
            Vec::new()
        }
        listed => listed?,
    };
    for upload in uploads {
        if upload.began.is_some_and(|began| now - began > GRACE) {
            let (name, remedy) = (upload.key.clone(), Remedy::Abort(upload));
            let detail = "an upload in parts was never completed; its parts take space that is paid for";
            found.push(Finding::new(Kind::UnfinishedUpload, Severity::Warning, name, detail, remedy));
        }
    }
    Ok(Report { entries: survey.read.index.len(), objects: objects.len(), found, left: Vec::new() })
}
