//! `swamp-mount pull SOURCE CACHE_DIR`.
//!
//! Depends on `sync::offline` and `mount` (for the lock of a cache root). What pull and push share is here.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Ended;
use super::arguments::TransferArgs;
use crate::config::{Environment, absolute};
use crate::mount::{MountError, client, instance, store};
use crate::store::ObjectStore;
use crate::sync::offline::{self, OfflineOptions};

pub fn run(args: &TransferArgs, environment: &Environment) -> Result<Ended, MountError> {
    transfer(args, environment, async |store, dir, options| {
        let report = offline::pull(store, &dir, &options).await;
        report.map(|report| report.to_string()).map_err(|e| e.to_string())
    })
}

/// Opens the store, sees to it that no mount is at work on the directory, and runs `work` until it ends or a signal comes.
pub(super) fn transfer<F, W>(args: &TransferArgs, environment: &Environment, work: W) -> Result<Ended, MountError>
where
    F: Future<Output = Result<String, String>>,
    W: FnOnce(Arc<dyn ObjectStore>, PathBuf, OfflineOptions) -> F,
{
    let config = args.store.config(&args.source, environment)?;
    let dir = absolute(&args.cache_dir)?;
    refuse_if_mounted(&dir)?;
    let options = OfflineOptions {
        upload_concurrency: args.upload_concurrency,
        download_concurrency: args.download_concurrency,
        unsafe_no_conditional_writes: args.unsafe_no_conditional_writes,
    };
    let result = block_on(async {
        let store = store::open(&config).await?;
        work(store, dir, options).await.map_err(MountError::Control)
    })??;
    eprintln!("swamp-mount: {result}");
    Ok(Ended::Done)
}

/// Runs a command that needs the network.
pub(super) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, MountError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(MountError::system("start the runtime"))?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(result)
}

/// The `cache/` of a mount belongs to its process while that runs.
fn refuse_if_mounted(dir: &Path) -> Result<(), MountError> {
    let dir = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    if dir.file_name().is_none_or(|name| name != "cache") {
        return Ok(());
    }
    let Some(root) = dir.parent().filter(|root| root.join(instance::SOURCE_NAME).exists()) else { return Ok(()) };
    let holder = instance::holder(root).map_err(MountError::io("look at the lock in", root))?;
    match holder {
        None => Ok(()),
        Some(holder) => Err(MountError::Held(client::describe_holder(root, Some(&holder)))),
    }
}
