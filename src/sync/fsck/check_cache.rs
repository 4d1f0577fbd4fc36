//! Entries against cached files, and what a sidecar promises against what is there.
//!
//! Depends on `cached` and `datastore`.

use std::collections::HashSet;
use std::io;

use super::cached::Cached;
use super::findings::{Finding, Kind, Remedy, Severity};
use crate::datastore::survey::IndexSurvey;
use crate::datastore::{Flavour, SIDECAR_NAME, Sidecar, Vouched, verify_complete};

/// Compares a cache with the index. Marks missing objects whose bytes the cache has.
///
/// # Errors
/// When the disk fails.
pub async fn check_cache(
    survey: &IndexSurvey,
    cached: &Cached,
    flavour: Flavour,
    found: &mut Vec<Finding>,
    progress: impl Fn(usize),
) -> io::Result<()> {
    found.extend(check_sidecar(survey, cached, flavour)?);
    let mut sound: HashSet<String> = HashSet::new();
    for (at, (path, entry)) in survey.read.index.entries().map(|e| (e.path(), e.to_entry())).enumerate() {
        progress(at);
        let Some(copy) = cached.copy_of(&path, &entry) else { continue };
        let missing = || found.iter().any(|f| f.kind == Kind::MissingObject && f.name == path.as_str());
        let Some(expected) = &entry.sha256 else {
            if missing() {
                sound.insert(path.to_string());
            }
            continue;
        };
        if copy.digests().await?.sha256.eq_ignore_ascii_case(expected) {
            sound.insert(path.to_string());
            continue;
        }
        let name = path.to_string();
        let remedy = match copy.content {
            Some(content) => Remedy::DropContent { path, entry, content },
            None => Remedy::DropCached { path, entry },
        };
        let detail = "the cached bytes are not those of its entry, although size and time are";
        found.push(Finding::new(Kind::CorruptCache, Severity::Error, name, detail, remedy));
    }
    for finding in found {
        if let Remedy::Drop { cached, .. } = &mut finding.remedy {
            *cached = sound.contains(&finding.name);
        }
    }
    Ok(())
}

/// A clean sidecar of the current index, where files are missing, or lie that nobody has pushed.
fn check_sidecar(survey: &IndexSurvey, cached: &Cached, flavour: Flavour) -> io::Result<Option<Finding>> {
    let (dir, index) = (cached.directory(), &survey.read.index);
    let read = Sidecar::read(dir, flavour);
    let Some(sidecar) = read.sidecar() else { return Ok(None) };
    let copied = dir.index_copy_stat()?.map(|stat| stat.mtime_nanos);
    let promised = sidecar.trusted(copied);
    let current = match (promised, Vouched::of(index, false)) {
        (Some(Vouched::Monolith(promised)), Some(Vouched::Monolith(current))) => promised == current,
        (Some(Vouched::Shards { digest, .. }), Some(Vouched::Shards { digest: current, .. })) => digest == current,
        // Nothing is promised, or another index: the next pull finds out.
        _ => false,
    };
    if !current {
        return Ok(None);
    }
    let detail = match verify_complete(dir, index)? {
        Err(missing) => format!("it promises a complete cache; {} files are not as the index says", missing.count),
        Ok(_) => {
            let unpushed = dir.walk()?.files.iter().filter(|(path, _)| index.get(path.as_str()).is_none()).count();
            if unpushed == 0 {
                return Ok(None);
            }
            format!("it promises that all is pushed; {unpushed} files have no entry")
        }
    };
    let name = dir.path().join(SIDECAR_NAME).display().to_string();
    Ok(Some(Finding::new(Kind::FalseSidecar, Severity::Error, name, detail, Remedy::DenySidecar)))
}
