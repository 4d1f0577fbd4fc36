//! Attributes: what stat shows, and chmod, chown, utimens, xattrs.
//!
//! Part of the volume. Executable bit and mtime of a file travel through the index; everything else stays local.

use std::fs::{File, FileTimes};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use super::delta::Changes;
use super::inner::Inner;
use super::live::LiveContent;
use super::{Result, Volume, VolumeError};
use crate::cache::ContentId;
use crate::cache::rows::{ContentRow, DeltaRow, FileStamp, Kind, NodeRow};
use crate::datastore::{Entry, EntryKind, format_nanos, now_nanos};

/// The extended attributes that are kept.
const XATTR_NAMESPACE: &str = "user.";
use crate::tree::Ino;

/// What stat shows.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Inode number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Permission bits (07777).
    pub perm: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// ns since the epoch.
    pub mtime: i64,
    /// ns since the epoch.
    pub atime: i64,
    /// ns since the epoch.
    pub ctime: i64,
    /// Number of names (directories: 2 + subdirectories).
    pub nlink: u32,
}

/// Attributes to set; `None` leaves one alone. Times in ns since the epoch.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<i64>,
    /// Modification time.
    pub mtime: Option<i64>,
}

impl SetAttributes {
    /// Whether nothing is to be set.
    pub fn is_empty(&self) -> bool {
        self.mode.is_none() && self.uid.is_none() && self.gid.is_none() && self.atime.is_none() && self.mtime.is_none()
    }
}

/// Size in bytes and mtime in ns since the epoch of an open file.
pub(super) fn file_stat(file: &File) -> std::io::Result<(u64, i64)> {
    let meta = file.metadata()?;
    Ok((meta.len(), meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec())))
}

fn system_time(nanos: i64) -> SystemTime {
    match u64::try_from(nanos) {
        Ok(after) => SystemTime::UNIX_EPOCH + Duration::from_nanos(after),
        Err(_) => SystemTime::UNIX_EPOCH - Duration::from_nanos(nanos.unsigned_abs()),
    }
}

pub(super) fn set_mtime(file: &File, nanos: i64) -> std::io::Result<()> {
    file.set_times(FileTimes::new().set_modified(system_time(nanos)))
}

impl Volume {
    /// Attributes of an inode.
    ///
    /// # Errors
    /// `Stale` when the inode is unknown.
    pub fn stat(&self, ino: Ino) -> Result<Stat> {
        let mut inner = self.lock();
        let id = inner.tree.get(ino).and_then(|n| n.content()).and_then(|c| c.id);
        if let Some(live) = id.and_then(|id| inner.live.get(&id)).filter(|live| live.take_untold()).cloned() {
            self.note_unseen(&mut inner, ino, &live);
        }
        self.stat_locked(&inner, ino)
    }

    pub(super) fn stat_locked(&self, inner: &Inner, ino: Ino) -> Result<Stat> {
        let node = inner.tree.get(ino).ok_or(VolumeError::Stale)?;
        let attrs = node.attrs();
        let (mut size, mut mtime, mut executable) = (4096, self.options.started_at, true);
        if let Some(content) = node.content() {
            (size, mtime, executable) = (content.remote.size, content.remote.mtime, content.remote.executable);
            let live = content.id.and_then(|id| inner.live.get(&id)).filter(|live| live.is_complete());
            if let Some(live) = live {
                (size, mtime) = file_stat(&live.file).map_err(VolumeError::content("stat"))?;
            } else if let Some(set) = attrs.and_then(|a| a.mtime) {
                mtime = set;
            }
        } else if let Some(set) = attrs.and_then(|a| a.mtime) {
            mtime = set;
        }
        let default_mode = match node.kind() {
            Kind::Symlink => 0o777,
            Kind::Dir => 0o777 & !self.options.umask,
            Kind::File if executable => 0o777 & !self.options.umask,
            Kind::File => 0o666 & !self.options.umask,
        };
        Ok(Stat {
            ino,
            kind: node.kind(),
            size,
            perm: attrs.and_then(|a| a.mode).unwrap_or(default_mode),
            uid: attrs.and_then(|a| a.uid).unwrap_or(self.options.uid),
            gid: attrs.and_then(|a| a.gid).unwrap_or(self.options.gid),
            mtime,
            atime: attrs.and_then(|a| a.atime).unwrap_or(mtime),
            ctime: attrs.and_then(|a| a.ctime).map_or(mtime, |c| c.max(mtime.min(now_nanos()))),
            nlink: if node.is_dir() { 2 + node.subdirs() } else { u32::from(node.is_linked()) },
        })
    }

    /// Sets attributes. Executable bit and mtime of a synced file become an unpushed change.
    ///
    /// # Errors
    /// `Stale`, `ReadOnly`, disk errors.
    pub fn set_attributes(&self, ino: Ino, set: SetAttributes) -> Result<()> {
        let mut inner = self.lock();
        inner.writable()?;
        let path = inner.tree.path(ino);
        let before = self.stat_locked(&inner, ino)?;
        let node = inner.tree.get(ino).ok_or(VolumeError::Stale)?;
        let old = node.attrs().cloned();
        let is_file = !node.is_dir();
        let mut attrs = node.attrs_row();
        attrs.mode = set.mode.map(|m| m & 0o7777).or(attrs.mode);
        attrs.uid = set.uid.or(attrs.uid);
        attrs.gid = set.gid.or(attrs.gid);
        attrs.atime = set.atime.or(attrs.atime);
        // A complete local content carries its mtime itself.
        let local = inner.local_content(ino);
        attrs.mtime = if local.is_some() && is_file { None } else { set.mtime.or(attrs.mtime) };
        attrs.ctime = Some(now_nanos());
        if let Some(node) = inner.tree.get_mut(ino) {
            node.set_attrs(Some(attrs.clone()));
        }
        let Some(path) = path else {
            return self.set_local_mtime(&mut inner, ino, set.mtime);
        };
        let exec_changed = set.mode.is_some_and(|m| (m ^ before.perm) & 0o100 != 0) && before.kind == Kind::File;
        let travels = is_file && (exec_changed || set.mtime.is_some_and(|m| m != before.mtime));
        let mut changes = Changes::default();
        if travels && Inner::is_synced(&path) {
            self.reference.unlink(&path);
            let row = match inner.deltas.get(&path).cloned() {
                Some(row) => Some(DeltaRow { generation: inner.new_generation(), ..row }),
                None => {
                    let origin = inner.version_of(ino);
                    inner.put_row(&path, origin, false)
                }
            };
            changes.delta(&path, row);
        }
        let content = inner.tree.get(ino).and_then(|n| n.content()).and_then(|c| c.id);
        let content = content.filter(|id| inner.content_rows.contains_key(id));
        changes.node(&path, Some(NodeRow { path: path.clone(), kind: before.kind, content, attrs }));
        if let (Some(mtime), Some(id)) = (set.mtime, local)
            && let Some(row) = inner.content_rows.get(&id)
            && let Some(stamp) = row.stamp
        {
            changes.content(id, Some(ContentRow { stamp: Some(FileStamp { mtime, ..stamp }), ..row.clone() }));
        }
        if let Err(error) = inner.commit(changes) {
            if let Some(node) = inner.tree.get_mut(ino) {
                node.set_attrs(old);
            }
            return Err(error);
        }
        self.set_local_mtime(&mut inner, ino, set.mtime)?;
        if travels {
            self.changed.ring();
        }
        Ok(())
    }

    fn set_local_mtime(&self, inner: &mut Inner, ino: Ino, mtime: Option<i64>) -> Result<()> {
        let (Some(mtime), Some(id)) = (mtime, inner.local_content(ino)) else { return Ok(()) };
        match inner.live.get(&id) {
            Some(live) => live.set_mtime(mtime).map_err(VolumeError::content("set the mtime of"))?,
            None => self.restamp(inner, id, mtime)?,
        }
        inner.tree.change_content(ino, |content| content.remote.mtime = mtime);
        Ok(())
    }

    /// Gives a local content another mtime, as a newer entry for the same bytes says.
    pub(super) fn restamp(&self, inner: &Inner, id: ContentId, mtime: i64) -> Result<()> {
        let set = |file: &File| set_mtime(file, mtime).map_err(VolumeError::content("set the mtime of"));
        match inner.live.get(&id) {
            Some(live) => set(&live.file),
            None => set(&*self.contents.open_existing(id)?),
        }
    }

    /// A fetch is complete: the file gets the mtime that stat showed all along.
    pub(super) fn stamp_mtime(&self, inner: &mut Inner, ino: Ino, live: &LiveContent) {
        let Some(node) = inner.tree.get(ino) else { return };
        let shown = node.attrs().and_then(|a| a.mtime).or(node.content().map(|c| c.remote.mtime));
        if let Some(mtime) = shown
            && let Err(error) = set_mtime(&live.file, mtime)
        {
            tracing::warn!(%error, "cannot set the mtime of a fetched content");
        }
        if let Some(mtime) = shown
            && inner.tree.change_content(ino, |content| content.remote.mtime = mtime)
            && let Some(attrs) = inner.tree.get_mut(ino).and_then(|node| node.attrs_if_any())
        {
            attrs.mtime = None;
        }
    }

    /// Whether executable bit or mtime of a file differ from what an entry records.
    pub(super) fn attributes_differ(&self, inner: &Inner, ino: Ino, entry: Option<&Entry>) -> bool {
        let (Some(entry), Ok(stat)) = (entry, self.stat_locked(inner, ino)) else { return true };
        let recorded = entry.local_mtime.as_deref().unwrap_or(&entry.last_modified);
        let executable = stat.kind == Kind::File && stat.perm & 0o100 != 0;
        executable != (entry.kind() == EntryKind::Executable) || format_nanos(stat.mtime) != recorded
    }

    /// Names of the extended attributes.
    ///
    /// # Errors
    /// `Stale`.
    pub fn list_xattrs(&self, ino: Ino) -> Result<Vec<String>> {
        let inner = self.lock();
        let node = inner.tree.get(ino).ok_or(VolumeError::Stale)?;
        Ok(node.attrs().map(|a| a.xattrs.keys().cloned().collect()).unwrap_or_default())
    }

    /// One extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `Stale`.
    pub fn get_xattr(&self, ino: Ino, name: &str) -> Result<Vec<u8>> {
        if !name.starts_with(XATTR_NAMESPACE) {
            // Said in this way, `ls -l` asks once for all files; "this file has none" makes it ask for each.
            return Err(VolumeError::AttributeNamespace);
        }
        let inner = self.lock();
        let node = inner.tree.get(ino).ok_or(VolumeError::Stale)?;
        node.attrs().and_then(|a| a.xattrs.get(name).cloned()).ok_or(VolumeError::NoAttribute)
    }

    /// Sets (`Some`) or removes (`None`) an extended attribute of the user namespace; kept on this machine.
    ///
    /// # Errors
    /// `AttributeNamespace`, `NoAttribute`, `Exists`, `ReadOnly`, disk errors.
    pub fn set_xattr(&self, ino: Ino, name: &str, value: Option<&[u8]>, flags: i32) -> Result<()> {
        if !name.starts_with(XATTR_NAMESPACE) {
            return Err(VolumeError::AttributeNamespace);
        }
        let mut inner = self.lock();
        inner.writable()?;
        let path = inner.tree.path(ino);
        let content = inner.tree.get(ino).and_then(|n| n.content()).and_then(|c| c.id);
        let content: Option<ContentId> = content.filter(|id| inner.content_rows.contains_key(id));
        let node = inner.tree.get(ino).ok_or(VolumeError::Stale)?;
        let kind = node.kind();
        let mut attrs = node.attrs_row();
        let exists = attrs.xattrs.contains_key(name);
        match value {
            Some(_) if exists && flags & libc::XATTR_CREATE != 0 => return Err(VolumeError::Exists),
            Some(_) if !exists && flags & libc::XATTR_REPLACE != 0 => return Err(VolumeError::NoAttribute),
            None if !exists => return Err(VolumeError::NoAttribute),
            Some(value) => {
                attrs.xattrs.insert(name.to_owned(), value.to_vec());
            }
            None => {
                attrs.xattrs.remove(name);
            }
        }
        attrs.ctime = Some(now_nanos());
        if let Some(path) = path {
            let mut changes = Changes::answering(&path);
            changes.node(&path, Some(NodeRow { path: path.clone(), kind, content, attrs: attrs.clone() }));
            inner.commit(changes)?;
        }
        if let Some(node) = inner.tree.get_mut(ino) {
            node.set_attrs(Some(attrs));
        }
        Ok(())
    }
}
