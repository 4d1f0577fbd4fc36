//! A reference client worked in `cache/` between two mounts: what it changed becomes ours, what it removed is only
//! remote again.
//!
//! Part of the volume. Invariants: nothing that lies in `cache/` is lost; a file that is absent there is never taken for
//! deleted; a file is adopted as clean only when the client's own index copy describes it.

use std::collections::HashMap;
use std::fs::File;

use rustix::fs::{AtFlags, CWD};

use super::delta::Changes;
use super::inner::Inner;
use super::{Result, Volume, VolumeError};
use crate::cache::reference::ReferenceStamp;
use crate::cache::rows::{Attrs, ContentRow, Delta, DeltaRow, FileStamp, Kind, NodeRow, Replaced, Version};
use crate::cache::{CacheError, ContentId};
use crate::datastore::cache_dir::FileStat;
use crate::datastore::{Index, RelPath, conflict_name, format_nanos, now_nanos};
use crate::tree::{Content, NodeData, Remote};

impl Volume {
    /// Looks through `cache/` when its index copy or sidecar is not what we last wrote.
    ///
    /// # Errors
    /// Disk errors.
    pub(super) fn reconcile(&self, recorded: Option<ReferenceStamp>) -> Result<()> {
        let found = self.reference.stamp()?;
        if recorded.as_ref() == Some(&found) {
            return Ok(());
        }
        let dir = self.reference.dir();
        let walk = dir.walk().map_err(CacheError::io("walk", "cache"))?;
        if walk.files.is_empty() {
            return Ok(());
        }
        tracing::info!(files = walk.files.len(), "cache/ was used by another client: looking through it");
        let copy = match dir.read_index_copy() {
            Ok(Some((bytes, _))) => Index::parse(&bytes).unwrap_or_else(|_| Index::empty()),
            Ok(None) => Index::empty(),
            Err(error) => return Err(CacheError::io("read", "cache/.datastore-index.json")(error).into()),
        };
        // A name leaves cache/ only when state.db durably has the file under another.
        let mut leaving: Vec<RelPath> = Vec::new();
        let mut inner = self.lock();
        let ours = self.contents_by_inode(&inner)?;
        for (path, stat) in &walk.files {
            if !Inner::is_synced(path.as_str()) {
                continue;
            }
            match ours.get(&stat.ino) {
                Some(id) => self.check_own(&mut inner, path, stat, *id, &mut leaving)?,
                None => self.adopt(&mut inner, path, stat, &copy, &mut leaving)?,
            }
        }
        inner.db.commit_durable()?;
        leaving.iter().for_each(|path| self.reference.unlink(path.as_str()));
        Ok(())
    }

    /// Inode numbers of the contents that are shown in `cache/` or could be.
    fn contents_by_inode(&self, inner: &Inner) -> Result<HashMap<u64, ContentId>> {
        use std::os::unix::fs::MetadataExt;
        let mut found = HashMap::new();
        for id in inner.content_rows.keys() {
            if let Ok(file) = self.contents.open_existing(*id) {
                found.insert(file.metadata().map_err(VolumeError::content("stat"))?.ino(), *id);
            }
        }
        Ok(found)
    }

    /// One of our links: written in place it has become a change.
    fn check_own(
        &self,
        inner: &mut Inner,
        path: &RelPath,
        stat: &FileStat,
        id: ContentId,
        leaving: &mut Vec<RelPath>,
    ) -> Result<()> {
        let Some(row) = inner.content_rows.get(&id).cloned() else { return Ok(()) };
        let stamp = FileStamp { size: stat.size, mtime: stat.mtime_nanos };
        if row.stamp.is_none_or(|known| known == stamp) {
            return Ok(());
        }
        tracing::info!(%path, "changed in cache/ by another client; it will be pushed");
        let replaces = row.version.map(|v| Replaced { entry: v.entry, fingerprint: v.fingerprint });
        self.record_change(inner, path, id, replaces, stamp)?;
        leaving.push(path.clone());
        Ok(())
    }

    /// A file that another client put there.
    fn adopt(
        &self,
        inner: &mut Inner,
        path: &RelPath,
        stat: &FileStat,
        copy: &Index,
        leaving: &mut Vec<RelPath>,
    ) -> Result<()> {
        let entry = copy.get(path.as_str());
        let clean = entry.as_ref().filter(|e| {
            let recorded = e.local_mtime.as_deref().unwrap_or(&e.last_modified);
            e.size == stat.size && format_nanos(stat.mtime_nanos) == recorded
        });
        let stamp = FileStamp { size: stat.size, mtime: stat.mtime_nanos };
        let busy = inner.deltas.contains_key(path.as_str());
        if let Some(entry) = clean {
            let current = inner.base_entry(path.as_str()).is_some_and(|base| base.same_version(entry));
            if busy || !current {
                // Unchanged since the client fetched it: the bucket has it, or had it.
                leaving.push(path.clone());
                return Ok(());
            }
            let id = self.ingest(inner, path)?;
            let base = inner.base_entry(path.as_str()).unwrap_or_else(|| entry.clone());
            let version = Version { key: path.to_string(), entry: base, fingerprint: None };
            let row = ContentRow { version: Some(version), present: None, stamp: Some(stamp) };
            return self.place_content(inner, path, id, row, None, stamp);
        }
        tracing::info!(%path, "found in cache/, written by another client; it will be pushed");
        let replaces =
            entry.or_else(|| inner.base_entry(path.as_str())).map(|entry| Replaced { entry, fingerprint: None });
        let id = self.ingest(inner, path)?;
        leaving.push(path.clone());
        if !busy {
            return self.record_change(inner, path, id, replaces, stamp);
        }
        let taken = |name: &RelPath| inner.tree.find(name.as_str()).is_some() || inner.base.index.names(name.as_str());
        let aside = conflict_name(path, &self.options.host, now_nanos(), taken);
        tracing::warn!(%path, %aside, "changed here and in cache/: both versions are kept");
        self.record_change(inner, &aside, id, None, stamp)
    }

    /// Makes the file a content of ours, without copying it.
    fn ingest(&self, inner: &mut Inner, path: &RelPath) -> Result<ContentId> {
        let file: File =
            self.reference.dir().open_file(path).map_err(CacheError::io("open", format!("cache/{path}")))?;
        let id = inner.new_content_id()?;
        let source = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        rustix::fs::linkat(CWD, source, self.contents.dir(), id.to_string(), AtFlags::SYMLINK_FOLLOW)
            .map_err(|e| CacheError::io("link", format!("cache/{path}"))(e.into()))?;
        Ok(id)
    }

    fn record_change(
        &self,
        inner: &mut Inner,
        path: &RelPath,
        id: ContentId,
        replaces: Option<Replaced>,
        stamp: FileStamp,
    ) -> Result<()> {
        let generation = inner.new_generation();
        let delta = Delta::Put { origin: None, suspect: false };
        let row = DeltaRow { generation, delta, replaces, upload: None };
        self.place_content(inner, path, id, ContentRow::changed(), Some(row), stamp)
    }

    fn place_content(
        &self,
        inner: &mut Inner,
        path: &RelPath,
        id: ContentId,
        content: ContentRow,
        delta: Option<DeltaRow>,
        stamp: FileStamp,
    ) -> Result<()> {
        let mut changes = Changes::default();
        changes.content(id, Some(content));
        let row = NodeRow { path: path.to_string(), kind: Kind::File, content: Some(id), attrs: Attrs::default() };
        changes.node(path.as_str(), Some(row));
        if delta.is_some() {
            changes.delta(path.as_str(), delta);
        }
        inner.commit(changes)?;
        let executable = inner.base_entry(path.as_str()).is_some_and(|e| Remote::of(&e).executable);
        let remote = Remote { size: stamp.size, mtime: stamp.mtime, executable };
        let content = Content { id: Some(id), remote };
        if let Some(existing) = inner.tree.find(path.as_str()) {
            inner.tree.change_content(existing, |known| *known = content);
            return Ok(());
        }
        self.insert_remote(inner, path, NodeData::File(content), None, &mut Vec::new())
    }
}
