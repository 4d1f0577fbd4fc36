//! `swamp-mount migrate-index SOURCE [--dry-run]`.
//!
//! Depends on `sync::migrate`.

use super::arguments::MigrateArgs;
use super::transfer::block_on;
use super::{Ended, output};
use crate::config::Environment;
use crate::datastore::LockOptions;
use crate::mount::{MountError, store};
use crate::sync::migrate::{Migration, migrate_index};

pub fn run(args: &MigrateArgs, environment: &Environment) -> Result<Ended, MountError> {
    let config = args.store.config(&args.source, environment)?;
    let done = block_on(async {
        let datastore = store::open(&config).await?;
        Ok::<_, MountError>(migrate_index(&datastore, &LockOptions::default(), args.dry_run).await?)
    })??;
    output::result(&describe(&done, args.dry_run));
    Ok(Ended::Done)
}

fn describe(done: &Migration, dry_run: bool) -> String {
    let Migration { entries, shards, written, merged, .. } = done;
    if done.already {
        return format!("the index is sharded already: {entries} entries in {shards} shards\n");
    }
    if dry_run {
        return format!("would split {entries} entries into {shards} shards; nothing was changed\n");
    }
    let merged = match merged {
        0 => String::new(),
        n => format!("; {n} changes that another client made meanwhile were merged"),
    };
    format!(
        "split {entries} entries into {shards} shards ({written} written){merged}\n.datastore-index.json stays where it is and counts no more: clients from before sharded indexes must not use this bucket any longer\n"
    )
}
