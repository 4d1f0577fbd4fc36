//! `swamp-mount pull SOURCE CACHE_DIR`.
//!
//! Depends on `sync::offline`.

use super::arguments::TransferArgs;
use super::{Ended, output, transfer};
use crate::config::Environment;
use crate::mount::MountError;
use crate::sync::offline::pull;

pub fn run(args: &TransferArgs, environment: &Environment) -> Result<Ended, MountError> {
    let report = transfer::run(args, transfer::Direction::Pull, environment, async |t: transfer::Transfer| {
        let report = pull(&t.datastore, &t.dir, &t.options, &t.progress).await;
        t.progress.finish();
        Ok(report?)
    })?;
    output::result(&if report.up_to_date {
        "up to date\n".to_owned()
    } else {
        let size = indicatif::BinaryBytes(report.bytes);
        format!("pulled {} files ({size}), removed {}\n", report.downloaded, report.removed)
    });
    transfer::list("changed here and there; your version is kept as", report.conflicts.iter().map(String::as_str));
    transfer::list("changed here, to be pushed", report.unpushed.iter().map(String::as_str));
    let problems: Vec<String> = report.problems.iter().map(|p| format!("{:?}: {}", p.name, p.reason)).collect();
    transfer::list("entries of the index that cannot be files", problems.iter().map(String::as_str));
    Ok(Ended::Done)
}
