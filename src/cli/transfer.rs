//! What pull and push share: the store, the directory, progress, and the words of the report.
//!
//! Depends on `sync::offline` and `mount` (for the lock of a cache root).

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::arguments::TransferArgs;
use super::output;
use crate::config::{Environment, REPO_FILE};
use crate::datastore::Datastore;
use crate::mount::{MountError, client, instance, store};
use crate::sync::offline::{OfflineOptions, Progress};
use crate::sync::status::Pending;

/// Names that are listed of each kind.
const SHOWN: usize = 20;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Pull,
    Push,
}

/// An opened source and the directory to bring in line with it.
pub struct Transfer {
    pub datastore: Datastore,
    pub dir: PathBuf,
    pub options: OfflineOptions,
    pub progress: Bar,
}

/// Opens what the arguments name, sees to it that no mount is at work on the directory, and does `work`.
pub fn run<T, F>(
    args: &TransferArgs,
    direction: Direction,
    environment: &Environment,
    work: impl FnOnce(Transfer) -> F,
) -> Result<T, MountError>
where
    F: Future<Output = Result<T, MountError>>,
{
    let (chosen, dir) = args.choose(environment)?;
    refuse_if_mounted(&dir)?;
    let (uploads, downloads) = args.concurrency(&chosen)?;
    let concurrency = match direction {
        Direction::Pull => downloads,
        Direction::Push => uploads,
    };
    let config = chosen.store;
    let limit = chosen.repo.and_then(|repo| repo.sync_timeout);
    let options = OfflineOptions {
        concurrency,
        unsafe_no_conditional_writes: args.unsafe_no_conditional_writes,
        ..OfflineOptions::default()
    };
    block_on(async {
        let datastore = store::open(&config).await?;
        if let Some(warning) = store::foreign_owner(&datastore).await {
            output::notice(&warning);
        }
        let work = work(Transfer { datastore, dir, options, progress: Bar::default() });
        let Some(limit) = limit else { return work.await };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(too_long(limit)))
    })?
}

fn too_long(limit: Duration) -> MountError {
    MountError::Control(format!(
        "it did not end within {} s (datastore.syncTimeoutMs of {REPO_FILE}); what is done stays done: run it again, or raise that limit",
        limit.as_secs_f64()
    ))
}

/// Runs a command that needs the network.
pub fn block_on<T>(work: impl Future<Output = T>) -> Result<T, MountError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(MountError::system("start the runtime"))?;
    let result = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(1));
    Ok(result)
}

/// Lists names under a heading, on stderr.
pub fn list<'a>(heading: &str, names: impl ExactSizeIterator<Item = &'a str>) {
    let count = names.len();
    if count == 0 {
        return;
    }
    let mut text = format!("{heading} ({count}):");
    for name in names.take(SHOWN) {
        text += &format!("\n  {name}");
    }
    if count > SHOWN {
        text += &format!("\n  and {} more", count - SHOWN);
    }
    output::notice(&text);
}

/// Progress of a transfer, shown as that of a push.
#[derive(Default)]
pub struct Bar {
    files: AtomicU64,
    bytes: AtomicU64,
    done: AtomicU64,
    shown: std::sync::Mutex<output::Progress>,
}

impl Bar {
    fn show(&self) {
        let pending = Pending {
            files: self.files.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            removals: 0,
            uploaded_bytes: self.done.load(Ordering::Relaxed),
        };
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).update(&pending);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner).finish();
    }
}

impl Progress for Bar {
    fn total(&self, files: u64, bytes: u64) {
        self.files.store(files, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.done.store(0, Ordering::Relaxed);
        self.show();
    }

    fn done(&self, _path: &str, bytes: u64) {
        // One file may be reported more often than was announced: saturate.
        let less = |files: u64| Some(files.saturating_sub(1));
        if self.files.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok() {
            self.done.fetch_add(bytes, Ordering::Relaxed);
        }
        self.show();
    }
}

/// The `cache/` of a mount belongs to its process while that runs.
pub fn refuse_if_mounted(dir: &Path) -> Result<(), MountError> {
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
