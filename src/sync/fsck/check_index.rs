//! What an index says that cannot be right, seen by itself.
//!
//! Depends on `datastore`; makes no request.

use std::collections::BTreeSet;

use super::findings::{Finding, Kind, Remedy, Severity};
use crate::datastore::survey::{IndexSurvey, unlisted};
use crate::datastore::{INDEX_KEY, META_KEY, RelPath};

/// Checks an index.
pub fn check_index(survey: &IndexSurvey) -> Vec<Finding> {
    let mut found = Vec::new();
    let index = &survey.read.index;
    if !survey.published {
        let detail = "the bucket has no index; the first mount or push makes one from its objects";
        found.push(Finding::new(Kind::NoIndex, Severity::Info, INDEX_KEY, detail, Remedy::Leave));
    }
    if survey.list_lost {
        let detail = "the list of shards is gone; every shard that exists is taken for listed";
        found.push(Finding::new(Kind::LostList, Severity::Error, META_KEY, detail, Remedy::Rewrite));
    }
    for name in &survey.missing {
        let remedy = Remedy::Rebuild { shard: name.to_string() };
        let detail = "it is listed and does not exist; no client reads this index";
        found.push(Finding::new(Kind::MissingShard, Severity::Error, shown(name), detail, remedy));
    }
    for name in unlisted(index) {
        let detail = "it has entries and is not listed: clients that trust the list do not see them";
        found.push(Finding::new(Kind::UnlistedShard, Severity::Warning, shown(name), detail, Remedy::Rewrite));
    }
    if survey.stale_monolith {
        let detail = "shards count; clients from before sharded indexes would trust this one and must not be used";
        found.push(Finding::new(Kind::StaleMonolith, Severity::Info, INDEX_KEY, detail, Remedy::Leave));
    }
    for (name, _) in index.parts().iter().filter(|(_, part)| part.document.was_scrubbed()) {
        let detail = "it has entries of internal names, or of objects that do not exist";
        found.push(Finding::new(Kind::Zombie, Severity::Warning, shown(name), detail, Remedy::Rewrite));
    }
    for problem in index.problems() {
        let (kind, severity) = (Kind::Impossible, Severity::Warning);
        found.push(Finding::new(kind, severity, problem.name, problem.reason, Remedy::Leave));
    }
    found.extend(disagreements(survey));
    found
}

fn shown(part: &str) -> String {
    if part.is_empty() { INDEX_KEY.to_owned() } else { format!("_index/{part}.json") }
}

/// Files that several shards describe differently. The entry that counts goes into all of them.
fn disagreements(survey: &IndexSurvey) -> Vec<Finding> {
    let index = &survey.read.index;
    let mut suspects: BTreeSet<String> = BTreeSet::new();
    for (name, part) in index.parts() {
        let names = part.document.all_names().map(|path| path.to_string());
        suspects.extend(names.filter(|path| index.home(path) != *name));
    }
    let mut found = Vec::new();
    for path in &suspects {
        let holders = index.touched_by(path);
        let entries = holders.iter().filter_map(|name| Some(index.parts().get(name)?.document.get(path)?.to_entry()));
        let counts = index.get(path);
        let differing = entries.filter(|entry| Some(entry) != counts.as_ref()).count();
        if let (true, Ok(parsed)) = (differing > 0, RelPath::parse(path)) {
            let detail = format!("{} shards have it, and {differing} say something else than the one that counts", {
                holders.iter().filter(|name| index.parts().get(*name).is_some_and(|p| p.document.names(path))).count()
            });
            let remedy = Remedy::Unify { path: parsed };
            found.push(Finding::new(Kind::Disagreement, Severity::Warning, path, detail, remedy));
        }
    }
    found
}
