//! Rows about what is already here: cached contents, local writes. The limit is a directory of the same disk.
//!
//! Depends on `lab`, `subject` and `load`. Invariant: subjects take turns within each repetition.

use std::path::PathBuf;

use super::lab::{Lab, SMALL, bytes, small_name};
use super::report::{Goal, Report, Row};
use super::subject::{Mounted, Subject};
use super::{Result, Scale, load};

const BIG: &str = "big";

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
    // As root, as an ordinary user, and read-only: what each may take, in multiples of native.
    let goals = [
        (format!("read a cached file of {mib} MiB, page cache warm"), [1.11, 2.22, 2.22]),
        (format!("read a cached file of {mib} MiB, page cache cold"), [1.11, 1.67, 1.67]),
        (format!("{} random reads of 4 KiB, page cache warm", scale.reads), [1.11; 3]),
        (format!("open, read, close of {} cached files of 4 KiB", scale.files), [5.0, 5.0, 2.0]),
    ];
    for (row, (what, [root, user, read_only])) in rows.iter().zip(goals) {
        let row = Row::new(*row, what).limit("native").goal("swamp-passthrough", Goal::Times(root));
        report.row(row.goal("swamp", Goal::Times(user)).goal("swamp-ro", Goal::Times(read_only)));
    }
    let mut lab = Lab::new()?;
    lab.small_files(scale.files, SMALL)?;
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
    let goals = [
        (format!("write {} MiB, then fsync", scale.big >> 20), [1.11, 2.5]),
        (format!("create, write, close of {} files of 4 KiB", scale.files), [6.0, 6.0]),
    ];
    for (row, (what, [root, user])) in rows.iter().zip(goals) {
        let row = Row::new(*row, what).limit("native").goal("swamp-passthrough", Goal::Times(root));
        report.row(row.goal("swamp", Goal::Times(user)));
    }
    for repetition in 0..scale.repeat {
        for subject in [Subject::Native, Subject::Swamp, Subject::SwampPassthrough] {
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
