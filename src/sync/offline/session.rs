//! One run on one cache directory: what is in it at the start, and what its sidecar says at the end.
//!
//! Depends on `datastore`. Invariant: the clean sidecar is written here and nowhere else, from the fingerprint of the index
//! that was verified.

use std::path::Path;

use bytes::Bytes;

use super::{OfflineError, OfflineOptions, disk};
use crate::datastore::{
    CacheDir, DatastoreError, Flavour, Index, IndexRead, Sidecar, discover, read_index, timestamp, verify_complete,
};
use crate::store::{Fingerprint, ObjectStore};

/// The index that a run works towards.
pub(super) struct Remote {
    pub index: Index,
    /// As they are in the bucket; `None` for a bucket without an index.
    pub bytes: Option<Bytes>,
    pub fingerprint: Option<Fingerprint>,
    /// When it was written, by the store's clock, in seconds since the epoch.
    pub written_at: Option<i64>,
}

/// A cache directory, taken for this process.
pub(super) struct Session<'a> {
    pub cache: CacheDir,
    /// The sidecar as it was found.
    pub sidecar: Option<Sidecar>,
    /// The copy of the index as it was found: where the files here came from.
    pub old: Option<Index>,
    pub options: &'a OfflineOptions,
    flavour: Flavour,
    trusted: Option<Fingerprint>,
}

impl<'a> Session<'a> {
    /// Opens (for a pull: makes) the directory and takes it.
    pub fn open(
        store: &dyn ObjectStore,
        path: &Path,
        create: bool,
        options: &'a OfflineOptions,
    ) -> Result<Self, OfflineError> {
        let flavour = Flavour::of(store);
        let cache = if create { CacheDir::create(path) } else { CacheDir::open(path) };
        let cache = disk(cache, "open the cache directory", path)?;
        if !disk(cache.try_lock(), "lock the cache directory", path)? {
            return Err(OfflineError::Busy(path.to_owned()));
        }
        let mut old = None;
        let mut written = None;
        if let Some((bytes, stat)) = disk(cache.read_index_copy(), "read the index copy in", path)? {
            match Index::parse(&bytes) {
                Ok(index) => (old, written) = (Some(index), Some(stat.mtime_nanos)),
                Err(error) => tracing::warn!(cache = %path.display(), %error, "the local copy of the index is ignored"),
            }
        }
        let sidecar = Sidecar::read(&cache, flavour).sidecar().cloned();
        let trusted = sidecar.as_ref().and_then(|sidecar| sidecar.trusted_fingerprint(written));
        Ok(Self { cache, sidecar, old, options, flavour, trusted })
    }

    /// Whether the sidecar promises a complete cache with nothing unpushed.
    pub fn is_trusted(&self) -> bool {
        self.trusted.is_some()
    }

    /// Reads the index; `None` when it is the one that the sidecar vouches for.
    pub async fn read_remote(&self, store: &dyn ObjectStore) -> Result<Option<Remote>, OfflineError> {
        match read_index(store, self.trusted.as_ref()).await? {
            IndexRead::NotModified => Ok(None),
            IndexRead::Present(read) => {
                let written_at = read.written_at.map(|at| at.unix_timestamp());
                Ok(Some(Remote {
                    index: read.index,
                    bytes: Some(read.bytes),
                    fingerprint: read.fingerprint,
                    written_at,
                }))
            }
            IndexRead::Missing if self.old.is_some() => Err(DatastoreError::IndexVanished.into()),
            IndexRead::Missing => {
                Ok(Some(Remote { index: discover(store).await?, bytes: None, fingerprint: None, written_at: None }))
            }
        }
    }

    /// The index that the sidecar vouches for, from the local copy.
    pub fn trusted_remote(&self) -> Option<Remote> {
        let bytes = Some(Bytes::from(self.old.as_ref()?.to_bytes()));
        Some(Remote { index: self.old.clone()?, bytes, fingerprint: Some(self.trusted.clone()?), written_at: None })
    }

    /// Announces that the cache is about to be incomplete. Must succeed before the first change.
    pub fn mark_lazy(&self) -> Result<(), OfflineError> {
        let lazy = Sidecar::lazy(self.sidecar.as_ref());
        disk(lazy.write(&self.cache, self.flavour, true), "write the sidecar in", self.cache.path())
    }

    /// Announces unpushed changes, when the sidecar denies them.
    pub fn mark_dirty(&self) -> Result<(), OfflineError> {
        match &self.sidecar {
            Some(sidecar) if !sidecar.local_dirty => {
                let dirty = sidecar.mark_dirty();
                disk(dirty.write(&self.cache, self.flavour, true), "write the sidecar in", self.cache.path())
            }
            _ => Ok(()),
        }
    }

    /// Stores the copy of the index, without what was scrubbed from it. One that was only discovered is not stored: nobody
    /// has published it, and its absence would later look like a loss.
    pub fn store_copy(&self, remote: &Remote) -> Result<(), OfflineError> {
        let Some(bytes) = &remote.bytes else { return Ok(()) };
        let scrubbed;
        let bytes: &[u8] = if remote.index.was_scrubbed() {
            scrubbed = remote.index.to_bytes();
            &scrubbed
        } else {
            bytes
        };
        disk(self.cache.write_index_copy(bytes), "write the index copy in", self.cache.path())
    }

    /// Writes the sidecar that the cache deserves: clean only when every entry of `remote` is here and nothing is unpushed.
    /// `true` when it is clean. A sidecar that cannot be written fails nothing.
    pub fn settle(&self, remote: &Remote, unpushed: bool) -> Result<bool, OfflineError> {
        let path = self.cache.path();
        let previous = self.sidecar.as_ref();
        let proof = disk(verify_complete(&self.cache, &remote.index), "look through", path)?;
        let copied = disk(self.cache.index_copy_stat(), "look at the index copy in", path)?;
        let now = timestamp::now_nanos();
        let clean = match (&proof, &remote.fingerprint, copied) {
            (Ok(proof), Some(fingerprint), Some(copied)) if !unpushed => {
                Sidecar::clean(previous, proof, fingerprint, now, copied.mtime_nanos)
            }
            _ => None,
        };
        let is_clean = clean.is_some();
        let sidecar = match (clean, &proof) {
            (Some(clean), _) => {
                // The promise must not outlive the files in a power loss.
                disk(self.cache.sync_all(), "write to disk", path)?;
                clean
            }
            (None, Ok(_)) => Sidecar::dirty(previous),
            (None, Err(missing)) => {
                tracing::info!(missing = missing.count, examples = ?missing.examples, "the cache is not complete");
                Sidecar::lazy(previous)
            }
        };
        if let Err(error) = sidecar.write(&self.cache, self.flavour, false) {
            tracing::warn!(cache = %path.display(), %error, "cannot write the sidecar");
            return Ok(false);
        }
        Ok(is_clean)
    }
}
