//! Rows about what is already here: names, cached contents, local writes. The limit is a directory of the same disk.
//!
//! Depends on `lab`, `subject` and `load`. Invariant: subjects take turns within each repetition.

use std::path::PathBuf;

use super::lab::{Lab, SMALL, bytes, small_name};
use super::report::Report;
use super::subject::{Mounted, Subject};
use super::{Result, Scale, load};

const BIG: &str = "big";

/// walk-first, walk-again, memory of the mount.
pub fn names(scale: &Scale, report: &mut Report) -> Result<()> {
    if !report.wants_any(&["mount-walk", "walk-first", "walk-again"]) {
        return Ok(());
    }
    let count = scale.entries;
    let mut lab = Lab::new()?;
    (0..count).for_each(|number| lab.entry(&small_name(number), SMALL, None));
    lab.index();
    report.row("mount-walk", format!("mount, then list and stat {count} entries"), None);
    report.row("walk-first", format!("list and stat {count} entries, first time"), Some(("native", 1.5)));
    report.row("walk-again", format!("list and stat {count} entries, again"), Some(("native", 1.3)));
    let native = Subject::Native.mount(&lab)?;
    load::make_directories(&native.at, "small", count)?;
    for number in 0..count {
        std::fs::File::create(native.at.join(small_name(number)))?;
    }
    for _ in 0..scale.repeat {
        let mut swamp = None;
        report.time("mount-walk", "swamp", || {
            let mounted = swamp.insert(Subject::Swamp.mount(&lab)?);
            load::walk(&mounted.at, count)
        })?;
        let swamp = Subject::Swamp.mount(&lab)?;
        drop_names();
        for mounted in [&native, &swamp] {
            report.time("walk-first", mounted.name(), || load::walk(&mounted.at, count))?;
        }
        for mounted in [&native, &swamp] {
            report.time("walk-again", mounted.name(), || load::walk(&mounted.at, count))?;
        }
        if let Some(memory) = swamp.memory() {
            eprintln!("    memory of the mount: {} MiB, {} bytes per entry", memory >> 20, memory / count as u64);
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

fn fill(native: &Mounted, scale: &Scale) -> Result<()> {
    load::make_directories(&native.at, "small", scale.files)?;
    for number in 0..scale.files {
        std::fs::write(native.at.join(small_name(number)), bytes(number, SMALL))?;
    }
    Ok(std::fs::write(native.at.join(BIG), bytes(0, scale.big as usize))?)
}

/// Reads of cached files.
pub fn contents(scale: &Scale, report: &mut Report) -> Result<()> {
    let rows = ["seq-read-warm", "seq-read-cold", "random-4k", "open-read-close"];
    if !report.wants_any(&rows) {
        return Ok(());
    }
    let mib = scale.big >> 20;
    report.row(rows[0], format!("read a cached file of {mib} MiB, page cache warm"), Some(("native", 1.11)));
    report.row(rows[1], format!("read a cached file of {mib} MiB, page cache cold"), Some(("native", 1.11)));
    report.row(rows[2], format!("{} random reads of 4 KiB, page cache warm", scale.reads), Some(("native", 1.11)));
    report.row(rows[3], format!("open, read, close of {} cached files of 4 KiB", scale.files), Some(("native", 5.0)));
    let mut lab = Lab::new()?;
    lab.small_files(scale.files)?;
    lab.file(BIG, bytes(0, scale.big as usize))?;
    lab.index();
    let mut mounts = Vec::new();
    for subject in [Subject::Native, Subject::Swamp, Subject::SwampPassthrough, Subject::SwampReadOnly] {
        let mounted = subject.mount(&lab)?;
        if subject == Subject::Native {
            fill(&mounted, scale)?;
        }
        // From here on all is cached.
        load::read_small(&mounted.at, scale.files)?;
        load::read_all(&mounted.at.join(BIG), scale.big)?;
        mounts.push(mounted);
    }
    // The daemons make durable what they fetched; that is not part of any measurement.
    std::thread::sleep(std::time::Duration::from_secs(1));
    for _ in 0..scale.repeat {
        for mounted in &mounts {
            let big = mounted.at.join(BIG);
            load::drop_pages(&behind(mounted, &big))?;
            report.time(rows[1], mounted.name(), || load::read_all(&big, scale.big))?;
            load::read_all(&big, scale.big)?;
            report.time(rows[0], mounted.name(), || load::read_all(&big, scale.big))?;
            report.time(rows[2], mounted.name(), || load::random_reads(&big, scale.big, scale.reads))?;
            report.time(rows[3], mounted.name(), || load::read_small(&mounted.at, scale.files))?;
        }
    }
    Ok(())
}

/// The large file and whatever of the cache is behind it.
fn behind(mounted: &Mounted, big: &std::path::Path) -> Vec<PathBuf> {
    let large = |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.len() > 1 << 20);
    std::iter::once(big.to_owned()).chain(mounted.cache_files().into_iter().filter(large)).collect()
}

/// Local writes.
pub fn writes(scale: &Scale, report: &mut Report) -> Result<()> {
    let rows = ["seq-write", "create-write-close"];
    if !report.wants_any(&rows) {
        return Ok(());
    }
    report.row(rows[0], format!("write {} MiB, then fsync", scale.big >> 20), Some(("native", 1.11)));
    report.row(rows[1], format!("create, write, close of {} files of 4 KiB", scale.files), Some(("native", 6.0)));
    for repetition in 0..scale.repeat {
        for subject in [Subject::Native, Subject::Swamp, Subject::SwampPassthrough] {
            // A new mount each time: this disk creates files slowly soon after many were deleted.
            let lab = Lab::new()?;
            let mounted = subject.mount(&lab)?;
            let prefix = format!("new{repetition}");
            load::make_directories(&mounted.at, &prefix, scale.files)?;
            report.time(rows[1], mounted.name(), || load::create_small(&mounted.at, &prefix, scale.files).map(drop))?;
            report.time(rows[0], mounted.name(), || load::write_big(&mounted.at.join(BIG), scale.big, true))?;
        }
    }
    Ok(())
}
