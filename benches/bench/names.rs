//! Rows about names: the time until all are there, walks by the usual programs, memory per entry. The limits are the bare
//! transfer of the index, and a directory of the same disk.
//!
//! Depends on `lab`, `subject`, `sdk` and `load`. Invariant: a mount that makes a request per file fails its row.

use std::path::Path;

use super::lab::{INDEX, Lab, small_name};
use super::report::{Goal, Report, Row, Unit};
use super::sdk::Sdk;
use super::subject::{Mounted, Subject};
use super::{Result, Scale, load};

/// More requests than this for a mount and its listing cannot be about the index alone.
const FEW_REQUESTS: usize = 12;

/// mount-ls-N: mount to first complete `ls -R`.
pub fn mount(scale: &Scale, report: &mut Report) -> Result<()> {
    for (count, allowed) in scale.listings {
        let row = format!("mount-ls-{count}");
        if !report.wants(&row) {
            continue;
        }
        let what = format!("mount to first complete ls -R of {count} entries; limit: bare GET of the index");
        report.row(Row::new(&row, what).limit("sdk").goal("swamp", Goal::Plus(allowed)));
        let mut lab = Lab::new()?;
        lab.small_entries(count, None);
        lab.index();
        lab.clear();
        for _ in 0..scale.repeat {
            let sdk = Sdk::new(&lab)?;
            report.time(&row, "sdk", || sdk.fetch(INDEX).map(drop))?;
            lab.server.clear_requests();
            let mut swamp = None;
            report.time(&row, "swamp", || {
                let mounted = swamp.insert(Subject::Swamp.mount(&lab)?);
                load::list_names(&mounted.at, count)
            })?;
            let requests = lab.server.requests().len();
            if requests > FEW_REQUESTS {
                return Err(format!("{row}: {requests} requests for a listing of {count} entries").into());
            }
        }
    }
    Ok(())
}

/// memory-per-entry: what a mounted index takes.
pub fn memory(scale: &Scale, report: &mut Report) -> Result<()> {
    let row = "memory-per-entry";
    if !report.wants(row) {
        return Ok(());
    }
    let (count, _) = scale.listings[scale.listings.len() - 1];
    let what = format!("resident bytes per entry of {count}, above an empty mount's; before and after ls -R");
    report.row(
        Row::new(row, what)
            .unit(Unit::Bytes)
            .goal("swamp", Goal::AtMost(200.0))
            .goal("swamp-listed", Goal::AtMost(200.0)),
    );
    let mut lab = Lab::new()?;
    lab.index();
    let empty = Subject::Swamp.mount(&lab)?;
    load::list_names(&empty.at, 0)?;
    let least = empty.process()?.resident()?;
    drop(empty);
    lab.small_entries(count, None);
    lab.index();
    lab.clear();
    let swamp = Subject::Swamp.mount(&lab)?;
    // The first look at the root comes after whatever a mount has to do.
    std::fs::read_dir(&swamp.at)?.count();
    let per_entry =
        |swamp: &Mounted| -> Result<f64> { Ok((swamp.process()?.resident()? as f64 - least as f64) / count as f64) };
    report.sample(row, "swamp", per_entry(&swamp)?);
    load::list_names(&swamp.at, count)?;
    report.sample(row, "swamp-listed", per_entry(&swamp)?);
    Ok(())
}

/// find-…, du-…, ls-…: first and again.
pub fn walks(scale: &Scale, report: &mut Report) -> Result<()> {
    type Walk = fn(&Path, usize) -> Result<()>;
    let programs: [(&str, &str, Walk); 3] =
        [("find", "find -type f", load::find), ("du", "du -s", load::disk_usage), ("ls-lR", "ls -lR", load::list_long)];
    let rows = |name: &str| [format!("{name}-first"), format!("{name}-again")];
    if !programs.iter().any(|(name, ..)| rows(name).iter().any(|row| report.wants(row))) {
        return Ok(());
    }
    let count = scale.entries;
    let mut lab = Lab::new()?;
    lab.small_entries(count, None);
    lab.index();
    lab.clear();
    let native = Subject::Native.mount(&lab)?;
    load::make_directories(&native.at, "small", count)?;
    for number in 0..count {
        std::fs::File::create(native.at.join(small_name(number)))?;
    }
    for (name, program, walk) in programs {
        let [first, again] = rows(name);
        if !report.wants_any(&[&first, &again]) {
            continue;
        }
        for (row, when, times) in [(&first, "first time", 1.5), (&again, "again", 1.3)] {
            let what = format!("{program} of {count} entries, {when}");
            report.row(Row::new(row, what).limit("native").goal("swamp", Goal::Times(times)));
        }
        for _ in 0..scale.repeat {
            let swamp = Subject::Swamp.mount(&lab)?;
            drop_names();
            for row in [&first, &again] {
                for mounted in [&native, &swamp] {
                    report.always(row, mounted.name(), || walk(&mounted.at, count))?;
                }
            }
        }
    }
    Ok(())
}

/// The first walk of the native directory is to read it from the disk's cache of blocks, as a fresh mount does its own.
fn drop_names() {
    // Needs root; without it the native first walk is as fast as its second, which makes the goal harder.
    if let Err(error) = std::fs::write("/proc/sys/vm/drop_caches", "2") {
        eprintln!("    names stay in the cache: {error}");
    }
}
