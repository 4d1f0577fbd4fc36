//! Entries against objects.
//!
//! Depends on `datastore`; makes no request. Invariant: an object that may still be on its way, or on its way out, gets no
//! entry: a mount deletes objects after their entries, and uploads them before.

use std::collections::HashMap;
use std::time::Duration;

use time::OffsetDateTime;

use super::findings::{Finding, Kind, Remedy, Severity};
use crate::datastore::RelPath;
use crate::datastore::names::is_rewritten_in_place;
use crate::datastore::survey::{IndexSurvey, SeenObject};

/// Objects without entries that are younger may belong to somebody who is not done.
pub const GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Compares an index with the objects of the bucket.
pub fn check_objects(survey: &IndexSurvey, objects: &HashMap<String, SeenObject>, now: OffsetDateTime) -> Vec<Finding> {
    let index = &survey.read.index;
    let mut found = Vec::new();
    for (path, entry) in index.entries().map(|entry| (entry.path(), entry)) {
        let finding = match objects.get(path.as_str()) {
            None => {
                let entry = entry.to_entry();
                let detail = format!("its object is missing ({} bytes, of {})", entry.size, entry.last_modified);
                let remedy = Remedy::Drop { path: path.clone(), entry, cached: false };
                Finding::new(Kind::MissingObject, Severity::Error, path.as_str(), detail, remedy)
            }
            Some(object) if object.size != entry.size() && !is_rewritten_in_place(path.as_str()) => {
                let remedy = Remedy::Correct { path: path.clone(), entry: entry.to_entry() };
                let detail = format!("its entry says {} bytes, its object has {}", entry.size(), object.size);
                Finding::new(Kind::WrongSize, Severity::Error, path.as_str(), detail, remedy)
            }
            Some(_) => continue,
        };
        found.push(finding);
    }
    if survey.published {
        let mut strays: Vec<_> = objects.iter().filter(|(key, _)| !index.names(key)).collect();
        strays.sort_unstable_by(|a, b| a.0.cmp(b.0));
        found.extend(strays.into_iter().map(|(key, object)| stray(survey, key, object, now)));
    }
    found
}

fn stray(survey: &IndexSurvey, key: &str, object: &SeenObject, now: OffsetDateTime) -> Finding {
    let index = &survey.read.index;
    let left = |detail: String| Finding::new(Kind::NoEntry, Severity::Warning, key, detail, Remedy::Leave);
    let path = match RelPath::parse(key) {
        Ok(path) => path,
        Err(problem) => return left(format!("the object has no entry and cannot be a file: {problem}")),
    };
    if index.is_directory(key) {
        return left("the object has no entry, and its name is that of a directory: copy it to another name".into());
    }
    if let Some(file) = path.ancestors().find(|directory| index.find(directory).is_some()) {
        return left(format!("the object has no entry, and would hide the file {file:?}: copy it to another name"));
    }
    let known = survey.beside.as_ref().and_then(|beside| beside.get(key)).filter(|entry| entry.size == object.size);
    let (known, of_missing) = (known, survey.missing.contains(&index.home(key)));
    let adopt = Remedy::Adopt { path, object: object.clone(), known: known.clone() };
    if of_missing || known.is_some() {
        let detail = "its entry was lost with its shard, or with the list of shards";
        return Finding::new(Kind::LostEntry, Severity::Error, key, detail, adopt);
    }
    match object.last_modified {
        Some(written) if now - written > GRACE => {
            let detail = format!("the object ({} bytes) has no entry: nobody sees it", object.size);
            Finding::new(Kind::NoEntry, Severity::Warning, key, detail, adopt)
        }
        _ => {
            let detail = "the object has no entry and is younger than a day: somebody may be at work on it";
            Finding::new(Kind::NoEntry, Severity::Info, key, detail, Remedy::Leave)
        }
    }
}
