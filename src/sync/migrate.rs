//! `migrate-index`: an index of version 1 becomes shards.
//!
//! Depends on `datastore` and the merge of a push. Invariants: until the list of shards is there, the monolith counts, so that
//! stopping anywhere loses nothing and repeating it completes the work; the list is written only when the monolith still is
//! the one that was split; what another writer put into the monolith at the last moment is merged into the shards. The
//! monolith stays where it is, stale, as the reference clients leave it.

use std::time::Duration;

use super::merge::{Change, Known, Row, Uploaded, commit};
use crate::datastore::{
    Datastore, DatastoreError, HeldLock, Index, IndexRead, Layout, LockOptions, Seen, Writer, read_index, split_index,
};
use crate::store::ObjectStore;

/// How often the monolith may change while it is split.
const ATTEMPTS: u32 = 8;

/// What a migration did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// The index was sharded before.
    pub already: bool,
    /// Entries.
    pub entries: usize,
    /// Shards that hold them.
    pub shards: usize,
    /// Shard objects that had to be written.
    pub written: usize,
    /// Files that another client put into the monolith meanwhile, and that were merged.
    pub merged: usize,
}

/// Why an index was not migrated.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Reading or writing it failed.
    #[error(transparent)]
    Datastore(#[from] DatastoreError),
    /// There is none.
    #[error("there is no index to migrate: push or mount once, so that the bucket has one")]
    NoIndex,
    /// Shards cannot say all that it says.
    #[error(
        "the index has fields that shards have no place for ({}); nothing was changed. Find out who needs them, and remove them from .datastore-index.json first",
        .0.join(", ")
    )]
    ForeignFields(Vec<String>),
}

/// Splits the index, or with `dry_run` says what that would do.
///
/// # Errors
/// The monolith still counts then, unless the shards already did.
pub async fn migrate_index(
    datastore: &Datastore,
    options: &LockOptions,
    dry_run: bool,
) -> Result<Migration, MigrateError> {
    let store = &**datastore.store();
    if dry_run {
        return Ok(match monolith(store, None).await? {
            Some(index) => described(&index.split()),
            None => already(store).await?,
        });
    }
    let lock = datastore.lock(options).await.map_err(DatastoreError::from)?;
    let migrated = locked(store, &lock).await;
    lock.release().await;
    migrated
}

async fn locked(store: &dyn ObjectStore, lock: &HeldLock) -> Result<Migration, MigrateError> {
    let Some(mut index) = monolith(store, None).await? else { return already(store).await };
    let writer = Writer { store, lock, unconditional: false };
    let mut written = 0;
    for attempt in 0..ATTEMPTS {
        if attempt > 0 {
            tokio::time::sleep(Duration::from_millis(200) * attempt).await;
        }
        let shards = index.split();
        written += split_index::write_shards(writer, &shards).await?;
        if let Some(newer) = changed(store, &index).await? {
            index = newer;
            continue;
        }
        match split_index::write_list(writer, &shards).await {
            Ok(remote) => {
                let mut done = Migration { written, ..described(&shards) };
                if let Some(newer) = changed(store, &index).await? {
                    done.merged = merge_late(writer, &index, &newer, remote.index).await?;
                }
                return Ok(done);
            }
            // Somebody else migrated it at the same time.
            Err(DatastoreError::Changed) => match monolith(store, None).await? {
                Some(newer) => index = newer,
                None => return already(store).await,
            },
            Err(error) => return Err(error.into()),
        }
    }
    Err(DatastoreError::Changed.into())
}

fn described(shards: &Index) -> Migration {
    Migration { entries: shards.len(), shards: shards.parts().len(), ..Migration::default() }
}

async fn already(store: &dyn ObjectStore) -> Result<Migration, MigrateError> {
    match read_index(store, None, Seen::Index(Layout::Shards)).await? {
        IndexRead::Present(read) if read.index.layout() == Layout::Shards => {
            Ok(Migration { already: true, ..described(&read.index) })
        }
        _ => Err(DatastoreError::Changed.into()),
    }
}

/// The index of version 1; `None` when it is sharded.
async fn monolith(store: &dyn ObjectStore, known: Option<&Index>) -> Result<Option<Index>, MigrateError> {
    match read_index(store, known, Seen::Index(Layout::Monolith)).await? {
        IndexRead::Present(read) if read.index.layout() == Layout::Shards => Ok(None),
        IndexRead::Present(read) => {
            let foreign: Vec<String> = read.index.to_document().foreign_fields().map(str::to_owned).collect();
            if foreign.is_empty() { Ok(Some(read.index)) } else { Err(MigrateError::ForeignFields(foreign)) }
        }
        IndexRead::Missing => Err(MigrateError::NoIndex),
        IndexRead::NotModified => Ok(known.cloned()),
    }
}

/// The monolith, when it is not the one that was split any more; also after the list of shards made it stale.
async fn changed(store: &dyn ObjectStore, split: &Index) -> Result<Option<Index>, MigrateError> {
    Ok(split_index::read_stale_monolith(store, split.fingerprint()).await?)
}

/// Brings what somebody wrote into the monolith while the list was written into the shards.
async fn merge_late(writer: Writer<'_>, split: &Index, newer: &Index, shards: Index) -> Result<usize, MigrateError> {
    let row = |path: &crate::datastore::RelPath| {
        let base = split.get(path.as_str());
        let change = newer.get(path.as_str()).map_or(Change::Remove { left: Uploaded::default() }, Change::Fields);
        Row { path: path.clone(), change, base }
    };
    let rows: Vec<Row> = newer.changed_since(split).iter().map(row).collect();
    let known = Known { index: shards, seen: Seen::Index(Layout::Shards) };
    commit(writer, &rows, &[], &known).await?;
    Ok(rows.len())
}
