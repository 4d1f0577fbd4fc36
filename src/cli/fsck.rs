//! `swamp-mount fsck SOURCE [--cache-dir DIR] [--repair] [--json]`.
//!
//! Depends on `sync::fsck`, and on `mount` for the lock of a cache root. Exit code 0: all is as it should be; 1: something is
//! not, or could not be read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::arguments::FsckArgs;
use super::transfer::{block_on, refuse_if_mounted};
use super::{Ended, output};
use crate::config::{CacheConfig, Environment, Invocation, StoreConfig, absolute};
use crate::datastore::LockOptions;
use crate::mount::instance::{Instance, SOURCE_NAME};
use crate::mount::{MountError, headless, store};
use crate::sync::fsck::cached::Cached;
use crate::sync::fsck::findings::{Finding, Kind, Severity};
use crate::sync::fsck::{FsckError, Report, fsck};

/// Findings of one kind that are listed for people.
const SHOWN: usize = 20;
/// Time between two lines of progress.
const LINE_EVERY: Duration = Duration::from_secs(5);

pub fn run(args: &FsckArgs, environment: &Environment) -> Result<Ended, MountError> {
    let config = args.store.config(&args.source, environment)?;
    let mut held = None;
    let mut cached = match &args.cache_dir {
        Some(dir) => Some(open(&absolute(dir)?, &config, environment, &mut held)?),
        None => None,
    };
    let lock = LockOptions::default();
    let told = Mutex::new(Instant::now());
    let progress = |what: &'static str, count: usize| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.elapsed() >= LINE_EVERY {
            *told = Instant::now();
            output::notice(&format!("{count} {what} looked at"));
        }
    };
    let report = block_on(async {
        let datastore = store::open(&config).await?;
        let report = fsck(&datastore, cached.as_mut(), args.repair.then_some(&lock), &progress).await?;
        Ok::<_, MountError>(report)
    })??;
    output::result(&if args.json {
        format!("{:#}\n", to_json(&report, &config.to_string()))
    } else {
        describe(&report, args.repair)
    });
    Ok(if report.is_clean() { Ended::Done } else { Ended::Failed })
}

/// Opens a cache, whichever kind it is, for this process alone.
fn open(
    dir: &Path,
    config: &StoreConfig,
    environment: &Environment,
    held: &mut Option<Instance>,
) -> Result<Cached, MountError> {
    if dir.join(SOURCE_NAME).exists() {
        let cache = CacheConfig::resolve(config, Some(dir), Invocation::User, environment)?;
        *held = Some(headless::acquire(config, &cache)?);
        return Ok(Cached::mount(dir, config.namespace.as_ref()).map_err(FsckError::from)?);
    }
    refuse_if_mounted(dir)?;
    match Cached::reference(dir, config.namespace.as_ref()).map_err(FsckError::from)? {
        Some(cached) => Ok(cached),
        None => Err(MountError::Held(format!("{} is in use by a pull or push; wait for its end", dir.display()))),
    }
}

/// What of the first check is not in the last one.
fn is_repaired(finding: &Finding, report: &Report) -> bool {
    !report.left.iter().any(|left| left.kind == finding.kind && left.name == finding.name)
}

fn to_json(report: &Report, source: &str) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "kind": finding.kind, "severity": finding.severity, "name": finding.name, "detail": finding.detail,
            "repair": finding.remedy.describe(), "repaired": is_repaired(finding, report),
        })
    };
    let new =
        report.left.iter().filter(|left| !report.found.iter().any(|f| f.kind == left.kind && f.name == left.name));
    let findings: Vec<Value> = report.found.iter().chain(new).map(finding).collect();
    json!({
        "source": source, "clean": report.is_clean(), "entries": report.entries, "objects": report.objects,
        "findings": findings,
    })
}

fn describe(report: &Report, repaired: bool) -> String {
    let mut text = format!("{} entries, {} objects\n", report.entries, report.objects);
    let mut kinds: BTreeMap<Kind, Vec<&Finding>> = BTreeMap::new();
    for finding in &report.found {
        kinds.entry(finding.kind).or_default().push(finding);
    }
    for findings in kinds.values() {
        for finding in findings.iter().take(SHOWN) {
            let severity = match finding.severity {
                Severity::Info => "info   ",
                Severity::Warning => "warning",
                Severity::Error => "ERROR  ",
            };
            let outcome = match (repaired, is_repaired(finding, report)) {
                (true, true) => format!("repaired: {}", finding.remedy.describe()),
                (true, false) => "left as it is".to_owned(),
                (false, _) => format!("--repair: {}", finding.remedy.describe()),
            };
            text += &format!("{severity} {:?}: {} [{outcome}]\n", finding.name, finding.detail);
        }
        if findings.len() > SHOWN {
            text += &format!("        and {} more of this kind (--json lists all)\n", findings.len() - SHOWN);
        }
    }
    let left = report.left.iter().filter(|finding| finding.counts()).count();
    text + &match left {
        0 => "clean\n".to_owned(),
        n if repaired => format!("{n} findings are left\n"),
        n => format!("{n} findings; nothing was changed\n"),
    }
}
