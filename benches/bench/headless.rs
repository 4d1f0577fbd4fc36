//! Rows about `pull` and `push` without a mount. The limit is what the reference client took on a machine of this kind.
//!
//! Depends on `lab` and `subject`. Invariant: our start-up counts, theirs does not.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::lab::{Lab, bytes, small_name};
use super::report::{Goal, Report, Row};
use super::subject::SWAMP_MOUNT;
use super::{Result, Scale, load};

/// Bytes of each file.
const SIZE: usize = 5 << 10;

/// Name, what it is, seconds of the reference client for 1000 files (measured apart; it is not run here), and which part of
/// them we may take.
const ROWS: [(&str, &str, f64, f64); 5] = [
    ("headless-push", "push of all files into an empty bucket", 1.46, 0.25),
    ("headless-pull", "pull of all files into an empty directory", 1.10, 0.25),
    ("headless-push-noop", "push with nothing to do", 0.04, 0.5),
    ("headless-pull-noop", "pull with nothing to do", 0.04, 0.5),
    ("headless-pull-noop-slow", "pull with nothing to do and no sidecar", 0.14, 0.5),
];

/// headless-…
pub fn transfers(scale: &Scale, report: &mut Report) -> Result<()> {
    if !report.wants_any(&ROWS.map(|(name, ..)| name)) {
        return Ok(());
    }
    let count = scale.headless;
    for (name, what, seconds, part) in ROWS {
        let what = format!("{what} ({count} files of 5 KiB; the reference client's 1000 are a constant)");
        report.row(Row::new(name, what).limit("reference").goal("swamp", Goal::Times(part)));
        report.sample(name, "reference", seconds);
    }
    for _ in 0..scale.repeat {
        let lab = Lab::new()?;
        let [from, to] = [TempDir::with_prefix("swamp-bench.")?, TempDir::with_prefix("swamp-bench.")?];
        load::make_directories(from.path(), "small", count)?;
        for number in 0..count {
            std::fs::write(from.path().join(small_name(number)), bytes(number, SIZE))?;
        }
        // In this order each is what its row says; so none is left out, wanted or not.
        report.always("headless-push", "swamp", || run("push", &lab, from.path()))?;
        if lab.server.keys().len() <= count {
            return Err("a push left files behind".into());
        }
        report.always("headless-push-noop", "swamp", || run("push", &lab, from.path()))?;
        report.always("headless-pull", "swamp", || run("pull", &lab, to.path()))?;
        load::find(to.path(), count)?;
        report.always("headless-pull-noop", "swamp", || run("pull", &lab, to.path()))?;
        std::fs::remove_file(to.path().join(".datastore-sync-state.json"))?;
        report.always("headless-pull-noop-slow", "swamp", || run("pull", &lab, to.path()))?;
    }
    Ok(())
}

fn run(command: &str, lab: &Lab, directory: &Path) -> Result<()> {
    let mut swamp = Command::new(SWAMP_MOUNT);
    swamp.arg(command).arg(Lab::source()).arg(directory).envs(lab.server.env());
    let output = swamp.output()?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
}
