//! `swamp-mount status [MOUNTPOINT | --repo DIR] [--json]`.
//!
//! Depends on `mount`. Asks every mount of this user; what does not answer is listed too.

use std::fmt::Write;

use serde::Serialize;

use super::arguments::StatusArgs;
use super::store_args::StoreArgs;
use super::{Ended, output, target};
use crate::config::Environment;
use crate::mount::MountError;
use crate::mount::client::{self, describe_pending};
use crate::mount::control::{MountStatus, Phase};
use crate::mount::registry::Known;
use crate::sync::status::{Pending, Status};

/// How many problems of one kind are listed.
const SHOWN: usize = 10;

#[derive(Serialize)]
struct Report {
    mounts: Vec<MountReport>,
    leftovers: Vec<Leftover>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum MountReport {
    Answered(Box<MountStatus>),
    Silent {
        mountpoint: Option<String>,
        source: String,
        cache_root: String,
        pid: u32,
        phase: &'static str,
        error: String,
    },
}

#[derive(Serialize)]
struct Leftover {
    source: String,
    mountpoint: Option<String>,
    cache_root: String,
    /// Unknown after a crash.
    pending: Option<Pending>,
    ended: String,
    push_with: String,
}

pub fn run(args: &StatusArgs, environment: &Environment) -> Result<Ended, MountError> {
    match &args.mountpoint {
        Some(mountpoint) => {
            let target = target::find(mountpoint, environment)?;
            let Some(known) = &target.running else { return Err(target.nobody()) };
            let status = client::status(&known.record.cache_root).map_err(|e| target.no_answer(&e))?;
            output::result(&if args.json { output::json(&status)? } else { describe(&status) });
        }
        None => {
            let known = match &args.repo {
                Some(dir) => {
                    let store = StoreArgs::of_repo(dir.clone()).config(&None, environment)?;
                    target::known_of(&store, environment)?
                }
                None => target::known(environment),
            };
            let report = all(known);
            output::result(&if args.json { output::json(&report)? } else { describe_all(&report) });
        }
    }
    Ok(Ended::Done)
}

fn all(known: Vec<Known>) -> Report {
    let mut report = Report { mounts: Vec::new(), leftovers: Vec::new() };
    for Known { record, holder } in known {
        let Some(holder) = holder else {
            report.leftovers.push(Leftover {
                source: record.source,
                mountpoint: record.mountpoint,
                cache_root: record.cache_root.display().to_string(),
                pending: record.left,
                ended: record.updated,
                push_with: record.flush_command,
            });
            continue;
        };
        report.mounts.push(match client::status(&record.cache_root) {
            Ok(status) => MountReport::Answered(Box::new(status)),
            Err(error) => MountReport::Silent {
                mountpoint: holder.mountpoint,
                source: record.source,
                cache_root: record.cache_root.display().to_string(),
                pid: holder.pid,
                phase: "silent",
                error: error.to_string(),
            },
        });
    }
    report
}

fn describe_all(report: &Report) -> String {
    let mut parts = Vec::new();
    for mount in &report.mounts {
        parts.push(match mount {
            MountReport::Answered(status) => describe(status),
            MountReport::Silent { mountpoint, source, pid, error, .. } => {
                format!(
                    "{source} at {} (process {pid})\n  does not answer: {error}\n",
                    mountpoint.as_deref().unwrap_or("no mountpoint")
                )
            }
        });
    }
    for leftover in &report.leftovers {
        let what = match &leftover.pending {
            Some(pending) => format!("not pushed: {}", describe_pending(pending)),
            None => "ended without closing: there may be changes that are not in the bucket".to_owned(),
        };
        let at = leftover.mountpoint.as_ref().map(|path| format!(", was at {path}")).unwrap_or_default();
        parts.push(format!(
            "{} (not mounted{at})\n  {what}\n  kept in     {}\n  push with   {}\n",
            leftover.source, leftover.cache_root, leftover.push_with
        ));
    }
    if parts.is_empty() { "no mounts\n".to_owned() } else { parts.join("\n") }
}

fn describe_limit(engine: &Status) -> String {
    let mut parts = Vec::new();
    parts.extend(engine.cache_limit.map(|limit| format!("at most {}", indicatif::BinaryBytes(limit))));
    if engine.evicted_files > 0 {
        let bytes = indicatif::BinaryBytes(engine.evicted_bytes);
        parts.push(format!("{} files, {bytes}, evicted since the start", engine.evicted_files));
    }
    if parts.is_empty() { String::new() } else { format!(" ({})", parts.join("; ")) }
}

fn describe(status: &MountStatus) -> String {
    let engine = &status.engine;
    let phase = match status.phase {
        Phase::Mounting => "being mounted",
        Phase::Mounted => "mounted",
        Phase::Unmounting => "flushing, then unmounting",
        Phase::Flushing => "unmounted, pushing the rest",
    };
    let at = status.mountpoint.as_deref().unwrap_or("no mountpoint");
    let namespace = engine.namespace.as_ref().map(|name| format!(" (namespace {name})")).unwrap_or_default();
    let mut text = format!("{}{namespace} at {at} (process {}, since {})\n", engine.source, status.pid, status.started);
    let mut line = |name: &str, value: String| {
        // Writing into a string cannot fail.
        let _always = writeln!(text, "  {name:<11} {value}");
    };
    line("state", phase.to_owned());
    match &engine.read_only_reason {
        Some(reason) => line("read-only", reason.clone()),
        None if status.read_only => line("read-only", "as asked".to_owned()),
        None => {}
    }
    if let Some(last) = &status.last_crash {
        line("restarts", format!("{} (last crash: {last})", status.restarts));
    }
    if let Some(since) = &engine.offline_since {
        line("offline", format!("since {since}"));
    }
    line("entries", engine.entries.to_string());
    let cached = indicatif::BinaryBytes(engine.cached_bytes);
    line("cached", format!("{} files, {cached}{}", engine.cached_files, describe_limit(engine)));
    line("to push", describe_pending(&engine.pending));
    if engine.local_only > 0 {
        line("local only", format!("{} files that are never pushed", engine.local_only));
    }
    if let Some(at) = &engine.last_refresh {
        line("refreshed", at.clone());
    }
    if let Some(at) = &engine.last_flush {
        line("flushed", at.clone());
    }
    if let Some(error) = &engine.last_error {
        line("last error", format!("{} ({})", error.message, error.at));
    }
    if engine.hidden_count > 0 {
        line("not shown", format!("{} entries of the index cannot be shown as files:", engine.hidden_count));
        for problem in engine.hidden.iter().take(SHOWN) {
            line("", format!("{:?}: {}", problem.name, problem.reason));
        }
    }
    for conflict in engine.conflicts.iter().take(SHOWN) {
        line("conflict", conflict.clone());
    }
    for error in engine.read_errors.iter().rev().take(SHOWN) {
        line("read error", format!("{} ({})", error.message, error.at));
    }
    line("local state", status.cache_root.clone());
    text
}
