//! The cached files that a check looks at: a reference client's cache directory, or the cache root of a mount.
//!
//! Depends on `cache` and `datastore`; whoever opens a mount's cache root holds its lock. Invariant: only a file that nobody
//! changed since it came from the bucket, by size and time, is said to be a copy of a version.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use crate::cache::rows::{ContentRow, NodeRow};
use crate::cache::{CacheError, ContentId, Contents, StateDb};
use crate::datastore::namespace::Namespace;
use crate::datastore::{CacheDir, Entry, RelPath, format_nanos};
use crate::store::Body;
use crate::sync::hash::{self, Digests};

/// See the module.
#[derive(Debug)]
pub enum Cached {
    /// A reference client's directory.
    Reference(CacheDir),
    /// A mount's cache root.
    Mount(Box<MountCache>),
}

/// What a mount left.
#[derive(Debug)]
pub struct MountCache {
    db: StateDb,
    contents: Contents,
    files: HashMap<String, (NodeRow, ContentId, ContentRow)>,
    /// What it keeps for reference clients.
    pub reference: CacheDir,
}

/// A copy of a version, as far as size and time tell.
#[derive(Debug)]
pub struct Copy {
    file: Arc<File>,
    size: u64,
    /// Its number in a mount's cache.
    pub content: Option<ContentId>,
}

impl Copy {
    /// To upload.
    pub fn body(&self) -> Body {
        Body::File { file: Arc::clone(&self.file), size: self.size }
    }

    /// Its hashes.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn digests(&self) -> std::io::Result<Digests> {
        hash::digest(self.body()).await
    }
}

impl Cached {
    /// Opens a reference client's directory and takes it; `None` when another process has it.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn reference(path: &Path, namespace: Option<&Namespace>) -> Result<Option<Self>, CacheError> {
        let failed = |operation| CacheError::io(operation, path.display().to_string());
        let dir = CacheDir::open(path).and_then(|dir| dir.with_namespace(namespace)).map_err(failed("open"))?;
        Ok(dir.try_lock().map_err(failed("lock"))?.then_some(Self::Reference(dir)))
    }

    /// Opens the cache root of a mount, whose lock the caller holds.
    ///
    /// # Errors
    /// When state.db cannot be read.
    pub fn mount(root: &Path, namespace: Option<&Namespace>) -> Result<Self, CacheError> {
        let db = StateDb::open(root)?;
        let loaded = db.load()?;
        let changed: HashSet<String> = loaded.deltas.into_iter().map(|(path, _)| path).collect();
        let mut contents: HashMap<ContentId, ContentRow> = loaded.contents.into_iter().collect();
        let clean = loaded.nodes.into_iter().filter(|node| !changed.contains(&node.path));
        let files = clean.filter_map(|node| {
            let id = node.content?;
            Some((node.path.clone(), (node, id, contents.remove(&id)?)))
        });
        let files = files.collect();
        let reference = CacheDir::create(&root.join("cache"));
        let reference =
            reference.and_then(|dir| dir.with_namespace(namespace)).map_err(CacheError::io("open", "cache"))?;
        Ok(Self::Mount(Box::new(MountCache { db, contents: Contents::open(root)?, files, reference })))
    }

    /// The directory in the reference clients' layout.
    pub fn directory(&self) -> &CacheDir {
        match self {
            Self::Reference(dir) => dir,
            Self::Mount(mount) => &mount.reference,
        }
    }

    /// The file that claims to be this version of a path, if there is one.
    pub fn copy_of(&self, path: &RelPath, entry: &Entry) -> Option<Copy> {
        let (file, content) = match self {
            Self::Reference(dir) => (Arc::new(dir.open_file(path).ok()?), None),
            Self::Mount(mount) => {
                let (_, id, row) = mount.files.get(path.as_str())?;
                let same = row.version.as_ref().is_some_and(|version| version.entry.same_version(entry));
                if !same || row.present.is_some() {
                    return None;
                }
                (mount.contents.open_existing(*id).ok()?, Some(*id))
            }
        };
        let metadata = file.metadata().ok()?;
        let mtime = metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec();
        let unchanged = match self {
            Self::Reference(_) => format_nanos(mtime) == *entry.local_mtime.as_ref().unwrap_or(&entry.last_modified),
            Self::Mount(mount) => {
                let stamp = mount.files.get(path.as_str())?.2.stamp?;
                stamp.mtime == mtime && stamp.size == metadata.len()
            }
        };
        let unchanged = unchanged && metadata.len() == entry.size;
        unchanged.then(|| Copy { file, size: entry.size, content })
    }

    /// Forgets a copy, so that the next read fetches it.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn drop_copy(&mut self, path: &RelPath) -> Result<(), CacheError> {
        self.directory().remove_file(path).map_err(CacheError::io("remove", path.as_str()))?;
        let Self::Mount(mount) = self else { return Ok(()) };
        let Some((node, id, _)) = mount.files.remove(path.as_str()) else { return Ok(()) };
        let change = mount.db.begin()?;
        if node.attrs.is_empty() {
            change.remove_node(&node.path)?;
        } else {
            change.set_node(&NodeRow { content: None, ..node })?;
        }
        change.remove_content(id)?;
        change.commit()?;
        mount.contents.remove(id)
    }
}
