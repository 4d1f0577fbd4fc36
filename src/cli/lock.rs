//! `swamp-mount lock status SOURCE` and `swamp-mount lock release SOURCE --force`.
//!
//! Depends on `datastore`. A namespace has two locks, and both are shown and released.

use super::arguments::{LockAction, LockArgs};
use super::transfer::block_on;
use super::{Ended, output};
use crate::config::Environment;
use crate::datastore::{Datastore, LockFound, LockStatus};
use crate::mount::{MountError, store};

pub fn run(args: &LockArgs, environment: &Environment) -> Result<Ended, MountError> {
    match &args.action {
        LockAction::Status { source, store: args } => {
            let config = args.config(source, environment)?;
            let found = block_on(async {
                let datastore = store::open(&config).await?;
                Ok::<_, MountError>(datastore.inspect_locks().await?)
            })??;
            output::result(&format!("{}\n", describe_all(&found)));
        }
        LockAction::Release { source, force, nonce, store: args } => {
            let config = args.config(source, environment)?;
            let released = block_on(async {
                let datastore = store::open(&config).await?;
                if *force {
                    return Ok(datastore.force_release_locks(nonce.as_deref()).await?);
                }
                refuse_if_held(&datastore).await?;
                Ok::<_, MountError>(Vec::new())
            })??;
            if released.is_empty() {
                output::notice("the lock is free; there was nothing to release");
            }
            for lock in &released {
                output::notice(&format!("released {}: {}", lock.key, describe(lock)));
            }
        }
    }
    Ok(Ended::Done)
}

async fn refuse_if_held(datastore: &Datastore) -> Result<(), MountError> {
    let found = datastore.inspect_locks().await?;
    if found.iter().all(|lock| lock.status.is_none()) {
        return Ok(());
    }
    Err(MountError::Control(format!(
        "the lock was not released: {}\nIf that process is gone, or stays stuck, add --force. One that is still at work would lose its push.",
        describe_all(&found)
    )))
}

/// One line per lock; with its key where there are two.
fn describe_all(found: &[LockFound]) -> String {
    match found {
        [only] => describe(only),
        several => {
            several.iter().map(|lock| format!("{}: {}", lock.key, describe(lock))).collect::<Vec<_>>().join("\n")
        }
    }
}

fn describe(lock: &LockFound) -> String {
    lock.status.as_ref().map_or_else(|| "the lock is free".to_owned(), describe_status)
}

fn describe_status(status: &LockStatus) -> String {
    let mut text = format!("the lock is held by {}", status.holder());
    if let Some(age) = status.age() {
        text += &format!(", renewed {} s ago", age.as_secs());
    }
    if status.is_stale() {
        text += "; it is stale, and the next writer takes it over";
    }
    if let Some(body) = &status.body {
        text += &format!("; nonce {}", body.nonce);
    }
    text
}
