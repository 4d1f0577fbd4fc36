//! One run on one cache directory: what is in it at the start, and what its sidecar says at the end.
//!
//! Depends on `datastore`. Invariant: the clean sidecar is written here and nowhere else, from the fingerprint of the index
//! that was verified.

use std::path::Path;

use super::{OfflineError, OfflineOptions, disk};
use crate::datastore::{
    CacheDir, Datastore, DatastoreError, Flavour, Fresh, Index, IndexRead, Layout, RemoteIndex, Seen, Sidecar, Vouched,
    current_digest, discover, index_copy, read_index, timestamp, verify_complete,
};
use crate::sync::merge::Known;

/// The index that a run works towards.
pub(super) struct Remote {
    pub index: Index,
    /// The documents that came with it.
    pub fresh: Fresh,
    /// Whether the bucket has it; otherwise it was made from a listing.
    pub published: bool,
}

impl Remote {
    /// What a commit may take for granted.
    pub fn known(&self) -> Known {
        let seen = if self.published { Seen::Index(self.index.layout()) } else { Seen::Never };
        Known { index: self.index.clone(), seen }
    }
}

impl From<RemoteIndex> for Remote {
    fn from(read: RemoteIndex) -> Self {
        Self { index: read.index, fresh: read.fresh, published: true }
    }
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
    trusted: Option<Vouched>,
    /// A push; otherwise a pull.
    pushing: bool,
}

impl<'a> Session<'a> {
    /// Opens (for a pull: makes) the directory and takes it.
    pub fn open(
        datastore: &Datastore,
        path: &Path,
        create: bool,
        options: &'a OfflineOptions,
    ) -> Result<Self, OfflineError> {
        let flavour = Flavour::of(&**datastore.store());
        let cache = if create { CacheDir::create(path) } else { CacheDir::open(path) };
        let cache = cache.and_then(|cache| cache.with_namespace(datastore.namespace()));
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
        let trusted = sidecar.as_ref().and_then(|sidecar| sidecar.trusted(written));
        let mut session = Self { cache, sidecar, old, options, flavour, trusted, pushing: !create };
        session.take_over_earlier_layout()?;
        Ok(session)
    }

    /// Moves the files of a namespace that an earlier client left at the root to where they belong now.
    fn take_over_earlier_layout(&mut self) -> Result<(), OfflineError> {
        let Some(old) = &self.old else { return Ok(()) };
        let path = self.cache.path();
        let files = disk(self.cache.files_of_earlier_layout(old), "look through", path)?;
        if files.is_empty() {
            return Ok(());
        }
        tracing::info!(files = files.len(), "moving files from the cache's root into the directory of the namespace");
        // Whoever looks at one of the two places meanwhile must not find files deleted.
        self.mark_lazy()?;
        self.trusted = None;
        for file in files {
            let full = path.join(file.as_str());
            if !disk(self.cache.move_from_earlier_layout(&file), "move", &full)? {
                tracing::warn!(file = %full.display(), "left at the cache's root: the namespace has another file of that name");
            }
        }
        Ok(())
    }

    /// Whether the sidecar promises a complete cache with nothing unpushed.
    pub fn is_trusted(&self) -> bool {
        self.trusted.is_some()
    }

    /// Reads the index; `None` when it is the one that the sidecar vouches for.
    pub async fn read_remote(&self, datastore: &Datastore) -> Result<Option<Remote>, OfflineError> {
        let store = &**datastore.store();
        let seen = match (&self.old, &self.sidecar) {
            (None, _) => Seen::Never,
            (Some(_), Some(sidecar)) if sidecar.knows_shards() => Seen::Index(Layout::Shards),
            (Some(_), _) => Seen::Index(Layout::Monolith),
        };
        let read = match &self.trusted {
            Some(Vouched::Shards { digest, .. }) if current_digest(store).await?.as_ref() == Some(digest) => {
                return Ok(None);
            }
            Some(Vouched::Monolith(_)) => {
                let known = self.trusted_remote().map(|remote| remote.index);
                read_index(store, known.as_ref(), seen).await?
            }
            _ => read_index(store, None, seen).await?,
        };
        match read {
            IndexRead::NotModified => Ok(None),
            IndexRead::Present(read) => Ok(Some(read.into())),
            IndexRead::Missing if self.old.is_some() => Err(DatastoreError::IndexVanished.into()),
            IndexRead::Missing => Ok(Some(Remote {
                index: discover(store, datastore.namespace().is_some()).await?,
                fresh: Fresh::new(),
                published: false,
            })),
        }
    }

    /// The index that the sidecar vouches for, from the local copy.
    pub fn trusted_remote(&self) -> Option<Remote> {
        let mut index = self.old.clone()?;
        if let Vouched::Monolith(fingerprint) = self.trusted.as_ref()? {
            index = index.with_fingerprint(fingerprint.clone());
        }
        Some(Remote { index, fresh: Fresh::new(), published: true })
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
        if !remote.published {
            return Ok(());
        }
        let copy = index_copy(&remote.index, &remote.fresh);
        disk(self.cache.write_index_copy(&copy), "write the index copy in", self.cache.path())
    }

    /// Writes the sidecar that the cache deserves: clean only when every entry of `remote` is here and nothing is unpushed.
    /// `true` when it is clean. A sidecar that cannot be written fails nothing.
    pub fn settle(&self, remote: &Remote, unpushed: bool) -> Result<bool, OfflineError> {
        let path = self.cache.path();
        let previous = self.sidecar.as_ref();
        let proof = disk(verify_complete(&self.cache, &remote.index), "look through", path)?;
        let copied = disk(self.cache.index_copy_stat(), "look at the index copy in", path)?;
        let now = timestamp::now_nanos();
        let vouched = Vouched::of(&remote.index, self.pushing).filter(|_| remote.published);
        let clean = match (&proof, &vouched, copied) {
            (Ok(proof), Some(vouched), Some(copied)) if !unpushed => {
                Some(Sidecar::clean(previous, proof, vouched, now, copied.mtime_nanos))
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
