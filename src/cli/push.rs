//! `swamp-mount push SOURCE CACHE_DIR`.
//!
//! Depends on `sync::offline`. A file that cannot be pushed makes the command fail after all others are in the bucket.

use super::arguments::TransferArgs;
use super::{Ended, output, transfer};
use crate::config::Environment;
use crate::mount::MountError;
use crate::sync::offline::push;

pub fn run(args: &TransferArgs, environment: &Environment) -> Result<Ended, MountError> {
    let report = transfer::run(args, transfer::Direction::Push, environment, async |t: transfer::Transfer| {
        let report = push(&t.datastore, &t.dir, &t.options, &t.progress).await;
        t.progress.finish();
        Ok(report?)
    })?;
    let size = indicatif::BinaryBytes(report.bytes);
    output::result(&format!("pushed {} files ({size}), removed {}\n", report.uploaded, report.removed));
    transfer::list("changed here and there; your version was pushed as", report.conflicts.iter().map(String::as_str));
    transfer::list("older than what is in the bucket, and not pushed", report.outdated.iter().map(String::as_str));
    let skipped: Vec<String> = report.skipped.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
    transfer::list("cannot be pushed", skipped.iter().map(String::as_str));
    Ok(if report.skipped.is_empty() { Ended::Done } else { Ended::Failed })
}
