//! `cache/`: the part of a cache directory that a reference client understands. Hard links to clean contents under their
//! own names, a copy of the index, and the sidecar.
//!
//! Depends on `datastore` (format.md section 4 has the rules). Invariants: while a mount uses it, the sidecar is the lazy
//! one, made durable before the first file appears; a link goes before its file may change and before a newer index is
//! stored; a clean sidecar is written only from a [`VerifiedComplete`](crate::datastore::sidecar::VerifiedComplete).

use std::fs::File;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{CacheError, Result};
use crate::datastore::cache_dir::CacheDir;
use crate::datastore::sidecar::{Flavour, Sidecar, SidecarRead, Vouched, verify_complete};
use crate::datastore::{Fresh, Index, Namespace, RelPath, index_copy, now_nanos};

/// From so many entries on the copy of the index is written at the end of a mount only.
const LARGE_INDEX: usize = 20_000;

/// What index copy and sidecar looked like when we last wrote them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceStamp {
    /// Size, mtime and inode of the index copy.
    pub index: Option<(u64, i64, u64)>,
    /// The sidecar's text.
    pub sidecar: Option<String>,
}

/// See the module.
#[derive(Debug)]
pub struct ReferenceCache {
    dir: CacheDir,
    flavour: Flavour,
}

fn failed(operation: &'static str) -> impl FnOnce(std::io::Error) -> CacheError {
    CacheError::io(operation, "cache")
}

impl ReferenceCache {
    /// Opens `root/cache`, making it when it is missing; its sidecar has the flavour of the store's reference clients, and
    /// its files lie in the directory of the namespace.
    ///
    /// # Errors
    /// When it cannot be made, or is a symbolic link.
    pub fn open(root: &Path, flavour: Flavour, namespace: Option<&Namespace>) -> Result<Self> {
        super::refuse_link(root, "cache")?;
        let dir = CacheDir::create(&root.join("cache")).and_then(|dir| dir.with_namespace(namespace));
        let dir = dir.map_err(failed("open"))?;
        if !dir.try_lock().map_err(failed("lock"))? {
            let busy =
                std::io::Error::new(std::io::ErrorKind::WouldBlock, "a pull or push works in it; wait for its end");
            return Err(failed("use")(busy));
        }
        Ok(Self { dir, flavour })
    }

    /// The directory.
    pub fn dir(&self) -> &CacheDir {
        &self.dir
    }

    /// What is there now.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn stamp(&self) -> Result<ReferenceStamp> {
        let index = self.dir.index_copy_stat().map_err(failed("stat"))?;
        let sidecar = self.dir.read_sidecar_bytes().map_err(failed("read"))?;
        Ok(ReferenceStamp {
            index: index.map(|s| (s.size, s.mtime_nanos, s.ino)),
            sidecar: sidecar.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        })
    }

    /// Makes sure that nobody takes this cache for complete or reads deletions out of it.
    ///
    /// # Errors
    /// When the sidecar cannot be made durable: no file may appear then.
    pub fn mark_lazy(&self) -> Result<()> {
        let read = Sidecar::read(&self.dir, self.flavour);
        let lazy = Sidecar::lazy(read.sidecar());
        if !matches!(&read, SidecarRead::Present(found) if *found == lazy) {
            lazy.write(&self.dir, self.flavour, true).map_err(failed("write the sidecar of"))?;
            self.dir.sync().map_err(failed("sync"))?;
        }
        Ok(())
    }

    /// Shows a clean, complete content under its name.
    pub fn link(&self, path: &str, content: &File) {
        let Ok(path) = RelPath::parse(path) else { return };
        crate::fail_point!("reference.before_link");
        if let Err(error) = self.dir.link_from_fd(content, &path) {
            tracing::warn!(%path, %error, "cannot show a cached file in cache/; a reference client would fetch it again");
        }
    }

    /// Takes a name away, if it is there.
    pub fn unlink(&self, path: &str) {
        let Ok(path) = RelPath::parse(path) else { return };
        if let Err(error) = self.dir.remove_file(&path) {
            tracing::warn!(%path, %error, "cannot remove a changed file from cache/; do not run a reference client on it");
        }
    }

    /// Stores the copy of the index. Every file whose entry changed must be gone from here.
    ///
    /// While a mount is at work the copy of a large index is left out instead: writing it costs more than the change that it
    /// follows, and to a reference client an absent copy says that it has to ask the bucket.
    ///
    /// # Errors
    /// When the disk fails; the older copy is then still there.
    pub fn store_index(&self, index: &Index, fresh: &Fresh) -> Result<()> {
        if index.len() > LARGE_INDEX {
            return self.dir.remove_index_copy().map_err(failed("remove the index copy of"));
        }
        self.write_copy(index, fresh)
    }

    fn write_copy(&self, index: &Index, fresh: &Fresh) -> Result<()> {
        let copy = index_copy(index, fresh);
        crate::fail_point!("refresh.before_index_copy");
        self.dir.write_index_copy(&copy).map_err(failed("write the index copy of"))
    }

    /// After the last push: a clean sidecar if every file of that index is here, and only then.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn finish(&self, index: &Index) -> Result<bool> {
        let Ok(proof) = verify_complete(&self.dir, index).map_err(failed("verify"))? else { return Ok(false) };
        if self.dir.index_copy_stat().map_err(failed("stat"))?.is_none() {
            self.write_copy(index, &Fresh::new())?;
        }
        let Some(copy) = self.dir.index_copy_stat().map_err(failed("stat"))? else { return Ok(false) };
        let read = Sidecar::read(&self.dir, self.flavour);
        let Some(vouched) = Vouched::of(index, true) else { return Ok(false) };
        let clean = Sidecar::clean(read.sidecar(), &proof, &vouched, now_nanos(), copy.mtime_nanos);
        crate::fail_point!("unmount.before_clean_sidecar");
        clean.write(&self.dir, self.flavour, false).map_err(failed("write the sidecar of"))?;
        Ok(true)
    }
}
