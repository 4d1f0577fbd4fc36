//! Repairs what a check found.
//!
//! Depends on `datastore` and the upload of a push. Invariants: every remedy is looked at again before it is taken, against
//! the index as it is then and the object itself; the index is written under the lock, each part in place of the version
//! that was read; an entry goes only when its object was absent twice and no cache has the bytes; cached bytes go only when
//! the bucket has the file.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};

use super::FsckError;
use super::cached::Cached;
use super::findings::{Finding, Remedy};
use crate::datastore::index::{Document, Part, PartStamp};
use crate::datastore::survey::{IndexSurvey, survey_index};
use crate::datastore::{
    Datastore, DatastoreError, Edits, Entry, Flavour, HeldLock, Index, LockOptions, PartName, RelPath, Sidecar, Writer,
    timestamp, write_index,
};
use crate::store::{ObjectInfo, ObjectStore, StoreError, StoreErrorKind};
use crate::sync::upload::{Expect, META_SHA256, Upload, upload};

/// Looks at objects at the same time.
const CONCURRENCY: usize = 32;
/// How often other writers may be faster.
const ATTEMPTS: u32 = 12;
/// Between two looks for an object whose entry is to go.
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// Does what the findings say.
///
/// # Errors
/// Nothing is half done: repeating it is safe.
pub async fn repair(
    datastore: &Datastore,
    lock: &LockOptions,
    findings: &[Finding],
    cached: Option<&mut Cached>,
) -> Result<(), FsckError> {
    let store = &**datastore.store();
    if let Some(cached) = &cached {
        upload_missing(store, findings, cached).await?;
    }
    let touches_index = |finding: &&Finding| {
        let remedy = &finding.remedy;
        matches!(
            remedy,
            Remedy::Adopt { .. }
                | Remedy::Correct { .. }
                | Remedy::Drop { cached: false, .. }
                | Remedy::Rewrite
                | Remedy::Unify { .. }
                | Remedy::Rebuild { .. }
        )
    };
    let of_index: Vec<&Finding> = findings.iter().filter(touches_index).collect();
    if !of_index.is_empty() {
        let objects = look_again(store, &of_index).boxed().await?;
        let held = datastore.lock(lock).await.map_err(DatastoreError::from)?;
        let written = rewrite(store, &held, &of_index, &objects).boxed().await;
        held.release().await;
        written?;
    }
    if let Some(cached) = cached {
        repair_cache(store, findings, cached).await?;
    }
    for finding in findings {
        if let Remedy::Abort(upload) = &finding.remedy {
            store.abort_upload(upload).await?;
        }
    }
    Ok(())
}

/// Uploads files that only the cache has any more. Never over an object that is there by now.
async fn upload_missing(store: &dyn ObjectStore, findings: &[Finding], cached: &Cached) -> Result<(), FsckError> {
    for finding in findings {
        let Remedy::Drop { path, entry, cached: true } = &finding.remedy else { continue };
        let Some(copy) = cached.copy_of(path, entry) else { continue };
        let digests = copy.digests().await.map_err(FsckError::disk(path.as_str()))?;
        if entry.sha256.as_ref().is_some_and(|expected| !digests.sha256.eq_ignore_ascii_case(expected)) {
            continue;
        }
        let upload_id = uuid::Uuid::new_v4().to_string();
        let request = Upload { key: path.to_string(), body: copy.body(), digests, upload_id, expect: Expect::Absent };
        upload(store, &request).await?;
    }
    Ok(())
}

/// What the objects of the findings are now; absent ones are looked for twice.
async fn look_again(store: &dyn ObjectStore, findings: &[&Finding]) -> Result<HashMap<String, ObjectInfo>, StoreError> {
    let keys: Vec<String> = findings.iter().filter_map(|finding| path_of(&finding.remedy)).collect();
    let mut present: HashMap<String, ObjectInfo> = HashMap::new();
    for look in 0..2 {
        let absent: Vec<String> = keys.iter().filter(|key| !present.contains_key(*key)).cloned().collect();
        if absent.is_empty() {
            break;
        }
        if look > 0 {
            tokio::time::sleep(SECOND_LOOK).await;
        }
        let looked: Vec<Option<(String, ObjectInfo)>> = stream::iter(absent)
            .map(|key| async move {
                match store.head(&key).await {
                    Ok(info) => Ok(Some((key, info))),
                    Err(error) if error.is_not_found() => Ok(None),
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(CONCURRENCY)
            .try_collect()
            .boxed()
            .await?;
        present.extend(looked.into_iter().flatten());
    }
    Ok(present)
}

fn path_of(remedy: &Remedy) -> Option<String> {
    match remedy {
        Remedy::Adopt { path, .. } | Remedy::Correct { path, .. } | Remedy::Drop { path, .. } => Some(path.to_string()),
        _ => None,
    }
}

async fn rewrite(
    store: &dyn ObjectStore,
    lock: &HeldLock,
    findings: &[&Finding],
    objects: &HashMap<String, ObjectInfo>,
) -> Result<(), FsckError> {
    for attempt in 0..ATTEMPTS {
        tokio::time::sleep(Duration::from_millis(100) * attempt).await;
        let survey = survey_index(store).boxed().await?;
        let (new, edits) = edited(&survey, findings, objects);
        if !must_write(&survey, &edits, &new) {
            return Ok(());
        }
        let writer = Writer { store, lock, unconditional: false };
        match write_index(writer, survey.read, new, &edits).boxed().await {
            Ok(_) => return Ok(()),
            Err(DatastoreError::Changed) => {}
            Err(DatastoreError::Store(error)) if error.kind == StoreErrorKind::Undecided => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(DatastoreError::Changed.into())
}

fn must_write(survey: &IndexSurvey, edits: &Edits, new: &Index) -> bool {
    let index = &survey.read.index;
    let unlisted = index.parts().values().any(|part| !part.listed);
    let added = new.parts().len() != index.parts().len();
    !edits.changed.is_empty() || index.was_scrubbed() || unlisted || added || survey.list_lost
}

/// The index with every remedy applied that still fits.
fn edited(survey: &IndexSurvey, findings: &[&Finding], objects: &HashMap<String, ObjectInfo>) -> (Index, Edits) {
    let mut index = with_rebuilt_shards(survey);
    let mut edits = Edits::default();
    for finding in findings {
        let (path, entry) = match &finding.remedy {
            Remedy::Adopt { path, object, known } => {
                let info = objects.get(path.as_str());
                let same = info.filter(|info| info.fingerprint == object.fingerprint && info.size == object.size);
                let hides = path.ancestors().any(|directory| index.find(directory).is_some());
                match same {
                    Some(info) if !index.names(path.as_str()) && !hides => {
                        (path, Some(known.clone().unwrap_or_else(|| described(info, None))))
                    }
                    _ => continue,
                }
            }
            Remedy::Correct { path, entry } => match objects.get(path.as_str()) {
                Some(info) if index.get(path.as_str()).as_ref() == Some(entry) && info.size != entry.size => {
                    (path, Some(described(info, Some(entry))))
                }
                _ => continue,
            },
            Remedy::Drop { path, entry, cached: false } => {
                let same = index.get(path.as_str()).as_ref() == Some(entry);
                if !same || objects.contains_key(path.as_str()) {
                    continue;
                }
                (path, None)
            }
            Remedy::Unify { path } => match index.get(path.as_str()) {
                Some(entry) => (path, Some(entry)),
                None => continue,
            },
            _ => continue,
        };
        apply(&mut index, &mut edits, path, entry);
    }
    (index, edits)
}

fn apply(index: &mut Index, edits: &mut Edits, path: &RelPath, entry: Option<Entry>) {
    match &entry {
        Some(entry) => index.set(path, entry),
        None => drop(index.remove(path.as_str())),
    }
    edits.applied.push(path.clone());
    edits.changed.push((path.clone(), entry));
}

/// With an empty part for every shard that is missing, so that it is written.
fn with_rebuilt_shards(survey: &IndexSurvey) -> Index {
    let index = &survey.read.index;
    let (Some(meta), false) = (index.meta(), survey.missing.is_empty()) else { return index.clone() };
    let mut parts = index.parts().clone();
    for name in &survey.missing {
        let part = Part::new(name, Arc::new(Document::empty_shard()), PartStamp::default(), true);
        parts.insert(PartName::clone(name), part);
    }
    Index::sharded(meta.clone(), parts)
}

/// An entry as discovery makes one, with the hash that our uploads carry.
fn described(info: &ObjectInfo, before: Option<&Entry>) -> Entry {
    let modified = info.last_modified.map_or_else(timestamp::now_nanos, timestamp::from_store);
    let before = before.cloned().unwrap_or_default();
    Entry {
        size: info.size,
        last_modified: timestamp::format_nanos(modified),
        // Times and hash were those of other bytes.
        local_mtime: None,
        sha256: info.metadata.get(META_SHA256).cloned(),
        mode: before.mode,
        extra: before.extra,
    }
}

async fn repair_cache(store: &dyn ObjectStore, findings: &[Finding], cached: &mut Cached) -> Result<(), FsckError> {
    let flavour = Flavour::of(store);
    let incomplete = |remedy: &Remedy| {
        matches!(remedy, Remedy::DenySidecar | Remedy::DropCached { .. } | Remedy::DropContent { .. })
    };
    if findings.iter().any(|finding| incomplete(&finding.remedy)) {
        let dir = cached.directory();
        let lazy = Sidecar::lazy(Sidecar::read(dir, flavour).sidecar());
        lazy.write(dir, flavour, true).map_err(FsckError::disk("the sidecar"))?;
    }
    for finding in findings {
        let (Remedy::DropCached { path, entry } | Remedy::DropContent { path, entry, .. }) = &finding.remedy else {
            continue;
        };
        match store.head(path.as_str()).await {
            Ok(info) if info.size == entry.size => cached.drop_copy(path)?,
            Ok(_) => {}
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
