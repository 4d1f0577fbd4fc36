//! `swamp-mount push SOURCE CACHE_DIR`.
//!
//! Depends on `sync::offline`; shares its frame with `pull`.

use super::Ended;
use super::arguments::TransferArgs;
use super::pull::transfer;
use crate::config::Environment;
use crate::mount::MountError;
use crate::sync::offline;

pub fn run(args: &TransferArgs, environment: &Environment) -> Result<Ended, MountError> {
    transfer(args, environment, async |store, dir, options| {
        let report = offline::push(store, &dir, &options).await;
        report.map(|report| report.to_string()).map_err(|e| e.to_string())
    })
}
