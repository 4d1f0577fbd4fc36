//! `swamp-mount lock status SOURCE` and `swamp-mount lock release SOURCE --force`.
//!
//! Depends on `datastore::lock`.

use super::arguments::{LockAction, LockArgs};
use super::transfer::block_on;
use super::{Ended, output};
use crate::config::Environment;
use crate::datastore::lock::{ForceReleased, force_release, inspect};
use crate::datastore::lock_body::LockStatus;
use crate::mount::{MountError, store};

pub fn run(args: &LockArgs, environment: &Environment) -> Result<Ended, MountError> {
    match &args.action {
        LockAction::Status { source, store: args } => {
            let config = args.config(source, environment)?;
            let status = block_on(async {
                let store = store::open(&config).await?;
                Ok::<_, MountError>(inspect(&*store).await?)
            })??;
            output::result(&format!("{}\n", status.as_ref().map_or_else(|| "the lock is free".to_owned(), describe)));
            Ok(Ended::Done)
        }
        LockAction::Release { source, force, nonce, store: args } => {
            let config = args.config(source, environment)?;
            let released = block_on(async {
                let store = store::open(&config).await?;
                if *force {
                    return Ok(force_release(&*store, nonce.as_deref()).await?);
                }
                match inspect(&*store).await? {
                    None => Ok(ForceReleased::Absent),
                    Some(status) => Err(MountError::Control(format!(
                        "the lock was not released: {}\nIf that process is gone, or stays stuck, add --force. One that is still at work would lose its push.",
                        describe(&status)
                    ))),
                }
            })??;
            match released {
                ForceReleased::Absent => output::notice("the lock is free; there was nothing to release"),
                ForceReleased::Released(status) => output::notice(&format!("released: {}", describe(&status))),
            }
            Ok(Ended::Done)
        }
    }
}

fn describe(status: &LockStatus) -> String {
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
