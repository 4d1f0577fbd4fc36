//! Operations on names: lookup, listing, create, mkdir, symlink, unlink, rmdir.
//!
//! Part of the volume; the rules of names (`docs/semantics.md`, "Names") are enforced here and in `rename`.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::delta::Changes;
use super::fetch_state::FetchState;
use super::files::Handle;
use super::inner::Inner;
use super::live::LiveContent;
use super::notice::Notice;
use super::{Result, Stat, Volume, VolumeError};
use crate::cache::rows::{Attrs, ContentRow, Kind, NodeRow};
use crate::datastore::{NameClass, RelPath, classify, now_nanos};
use crate::tree::{Content, Ino, NodeData, ROOT, Remote};

/// Longest name in a directory, in bytes.
pub const NAME_MAX: usize = 255;
/// Cookies below are those of "." and "..", and of the beginning.
pub const FIRST_COOKIE: u64 = 3;
/// Longest object key that S3 takes, in bytes.
pub const KEY_MAX: usize = 1024;

/// The names of a directory at one moment, in the order of their cookies.
#[derive(Clone, Debug, Default)]
pub struct DirListing {
    /// Equal as long as the directory lists the same.
    pub version: u64,
    /// Directories come first.
    pub entries: Vec<DirEntry>,
}

/// One name of a directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// Says where a listing goes on after it. It stays the same as long as the name is there, so that whoever goes on in a
    /// later snapshot meets every name that stayed once.
    pub cookie: u64,
    /// The name.
    pub name: Box<str>,
    /// Its inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
}

impl Volume {
    /// Checks a name from outside.
    ///
    /// # Errors
    /// `NotUtf8`, `NameTooLong`.
    pub fn check_name(name: &std::ffi::OsStr) -> Result<&str> {
        if name.len() > NAME_MAX {
            return Err(VolumeError::NameTooLong(NAME_MAX));
        }
        name.to_str().ok_or(VolumeError::NotUtf8)
    }

    /// Finds a name; the kernel is counted as knowing the inode.
    ///
    /// # Errors
    /// `NotFound`, `NotDir`.
    pub fn lookup(&self, parent: Ino, name: &str) -> Result<Stat> {
        let mut inner = self.lock();
        match inner.tree.get(parent) {
            None => return Err(VolumeError::Stale),
            Some(node) if !node.is_dir() => return Err(VolumeError::NotDir),
            Some(_) => {}
        }
        let ino = inner.tree.child(parent, name).ok_or(VolumeError::NotFound)?;
        inner.tree.remember(ino);
        self.stat_locked(&inner, ino)
    }

    /// The parent of a directory (the root's is the root).
    pub fn parent(&self, ino: Ino) -> Ino {
        self.lock().tree.parent(ino).unwrap_or(ROOT)
    }

    /// The kernel dropped references to an inode. Returns the directory that still has a name for it, when the kernel knows
    /// it no more.
    pub fn forget(&self, ino: Ino, count: u64) -> Option<Ino> {
        let mut inner = self.lock();
        inner.tree.forget(ino, count);
        let node = inner.tree.get(ino)?;
        (node.is_linked() && node.lookups() == 0).then(|| inner.tree.parent(ino)).flatten()
    }

    /// A number that stays the same as long as a directory lists the same.
    ///
    /// # Errors
    /// `Stale`, `NotDir`.
    pub fn dir_version(&self, dir: Ino) -> Result<u64> {
        let inner = self.lock();
        if !inner.tree.get(dir).ok_or(VolumeError::Stale)?.is_dir() {
            return Err(VolumeError::NotDir);
        }
        Ok(inner.tree.changed(dir))
    }

    /// All names of a directory.
    ///
    /// # Errors
    /// `NotDir`, `Stale`.
    pub fn list(&self, dir: Ino) -> Result<DirListing> {
        let inner = self.lock();
        if !inner.tree.get(dir).ok_or(VolumeError::Stale)?.is_dir() {
            return Err(VolumeError::NotDir);
        }
        let mut entries = Vec::with_capacity(inner.tree.child_count(dir));
        entries.extend(inner.tree.numbered_children(dir).map(|(number, ino, node)| {
            let kind = node.kind();
            let after_directories = if kind == Kind::Dir { 0 } else { 1 << 32 };
            let cookie = FIRST_COOKIE + u64::from(number) + after_directories;
            DirEntry { cookie, name: node.name().into(), ino, kind }
        }));
        let version = inner.tree.changed(dir);
        drop(inner);
        entries.sort_unstable_by_key(|entry| entry.cookie);
        Ok(DirListing { version, entries })
    }

    /// Hands attributes of listed names to `each` until it says `false`; the kernel is counted as knowing the others. What is
    /// not there any more is left out.
    pub fn lookup_listed<'a>(
        &self,
        dir: Ino,
        version: u64,
        entries: impl Iterator<Item = &'a DirEntry>,
        mut each: impl FnMut(&DirEntry, &Stat) -> bool,
    ) {
        let mut inner = self.lock();
        let unchanged = inner.tree.changed(dir) == version;
        for entry in entries {
            if !unchanged && inner.tree.child(dir, &entry.name) != Some(entry.ino) {
                continue;
            }
            let Ok(stat) = self.stat_locked(&inner, entry.ino) else { continue };
            if !each(entry, &stat) {
                return;
            }
            inner.tree.remember(entry.ino);
        }
    }

    /// Checks that `name` can be made in `parent` and returns its path.
    pub(super) fn check_new_name(&self, inner: &Inner, parent: Ino, name: &str) -> Result<String> {
        inner.writable()?;
        let node = inner.tree.get(parent).ok_or(VolumeError::Stale)?;
        if !node.is_dir() {
            return Err(VolumeError::NotDir);
        }
        let path = inner.tree.child_path(parent, name).ok_or(VolumeError::NotFound)?;
        if self.options.key_prefix_len + path.len() > KEY_MAX {
            return Err(VolumeError::NameTooLong(KEY_MAX));
        }
        if classify(&path) == NameClass::Reserved {
            return Err(VolumeError::NotPermitted("_index and _control belong to the bucket's own bookkeeping"));
        }
        Ok(path)
    }

    fn check_free(&self, inner: &Inner, parent: Ino, name: &str) -> Result<String> {
        let path = self.check_new_name(inner, parent, name)?;
        match inner.tree.child(parent, name) {
            Some(_) => Err(VolumeError::Exists),
            None => Ok(path),
        }
    }

    fn new_attrs(mode: u32, uid: u32, gid: u32) -> Attrs {
        let now = now_nanos();
        Attrs { mode: Some(mode & 0o7777), uid: Some(uid), gid: Some(gid), ctime: Some(now), ..Attrs::default() }
    }

    /// A new directory with its group inherited where the parent says so.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted`, `NameTooLong`, `ReadOnly`, disk errors.
    pub fn mkdir(&self, parent: Ino, name: &str, mode: u32, uid: u32, gid: u32) -> Result<Stat> {
        let mut inner = self.lock();
        let path = self.check_free(&inner, parent, name)?;
        let (gid, mode) = self.inherit_group(&inner, parent, gid, mode, true);
        let mut attrs = Self::new_attrs(mode, uid, gid);
        attrs.mtime = attrs.ctime;
        let mut changes = Changes::answering(&path);
        changes.node(&path, Some(NodeRow { path: path.clone(), kind: Kind::Dir, content: None, attrs: attrs.clone() }));
        self.with_room(&mut inner, |inner| inner.commit(changes.clone()))?;
        let ino = inner.tree.insert(parent, name, NodeData::Dir);
        if let Some(node) = inner.tree.get_mut(ino) {
            node.explicit = true;
            node.set_attrs(Some(attrs));
        }
        inner.touch_directory(parent);
        inner.tree.remember(ino);
        self.stat_locked(&inner, ino)
    }

    fn inherit_group(&self, inner: &Inner, parent: Ino, gid: u32, mode: u32, dir: bool) -> (u32, u32) {
        match self.stat_locked(inner, parent) {
            Ok(stat) if stat.perm & 0o2000 != 0 => (stat.gid, if dir { mode | 0o2000 } else { mode }),
            _ => (gid, mode),
        }
    }

    /// A new file with local content; `bytes` is what it holds at first (the target of a symlink).
    fn create_with(
        &self,
        inner: &mut Inner,
        parent: Ino,
        name: &str,
        kind: Kind,
        attrs: Attrs,
        bytes: &[u8],
    ) -> Result<(Ino, Arc<LiveContent>)> {
        let path = self.check_free(inner, parent, name)?;
        let (id, file) = self.new_content(inner)?;
        let row = ContentRow::changed();
        let mut changes = Changes::answering(&path);
        let commit = |inner: &mut Inner| -> Result<()> {
            file.write_all_at(bytes, 0).map_err(VolumeError::content("write"))?;
            changes.content(id, Some(row));
            changes.node(&path, Some(NodeRow { path: path.clone(), kind, content: Some(id), attrs: attrs.clone() }));
            let delta = inner.put_row(&path, None, false);
            changes.delta(&path, delta);
            inner.commit(changes)
        };
        if let Err(error) = commit(inner) {
            self.remove_content_now(inner, id);
            return Err(error);
        }
        // The time that a push records: of the file, not of this moment.
        let (size, mtime) = super::attributes::file_stat(&file).map_err(VolumeError::content("stat"))?;
        let remote = Remote { size, mtime, executable: false };
        let content = Content { id: Some(id), remote };
        let data = if kind == Kind::Symlink { NodeData::Symlink(content) } else { NodeData::File(content) };
        let ino = inner.tree.insert(parent, name, data);
        if let Some(node) = inner.tree.get_mut(ino) {
            node.set_attrs(Some(attrs));
        }
        let live = Arc::new(LiveContent::new(id, ino, Arc::new(file), FetchState::complete(None)));
        inner.space.opened(id, ino);
        inner.space.set(id, ino, size);
        inner.touch_directory(parent);
        inner.tree.remember(ino);
        self.changed.ring();
        Ok((ino, live))
    }

    /// A new empty file, open for reading and writing.
    ///
    /// # Errors
    /// `Exists`, `NotPermitted`, `NameTooLong`, `ReadOnly`, disk errors.
    pub fn create(
        &self,
        parent: Ino,
        name: &str,
        mode: u32,
        uid: u32,
        gid: u32,
        writable: bool,
    ) -> Result<(Stat, Handle)> {
        let mut inner = self.lock();
        let (gid, mode) = self.inherit_group(&inner, parent, gid, mode, false);
        let attrs = Self::new_attrs(mode, uid, gid);
        let (ino, live) =
            self.with_room(&mut inner, |inner| self.create_with(inner, parent, name, Kind::File, attrs.clone(), &[]))?;
        inner.live.insert(live.id, Arc::clone(&live));
        let handle = self.handle(&mut inner, ino, live, writable);
        Ok((self.stat_locked(&inner, ino)?, handle))
    }

    /// A new empty file that is not opened (mknod).
    ///
    /// # Errors
    /// As [`Volume::create`].
    pub fn mknod(&self, parent: Ino, name: &str, mode: u32, uid: u32, gid: u32) -> Result<Stat> {
        let mut inner = self.lock();
        let (gid, mode) = self.inherit_group(&inner, parent, gid, mode, false);
        let attrs = Self::new_attrs(mode, uid, gid);
        let (ino, _) =
            self.with_room(&mut inner, |inner| self.create_with(inner, parent, name, Kind::File, attrs.clone(), &[]))?;
        self.stat_locked(&inner, ino)
    }

    /// A new symbolic link.
    ///
    /// # Errors
    /// As [`Volume::create`]; `NotUtf8` for a target that could not be shown again elsewhere.
    pub fn symlink(&self, parent: Ino, name: &str, target: &[u8], uid: u32, gid: u32) -> Result<Stat> {
        let mut inner = self.lock();
        let (gid, _) = self.inherit_group(&inner, parent, gid, 0, false);
        let attrs = Self::new_attrs(0o777, uid, gid);
        let (ino, _) = self.with_room(&mut inner, |inner| {
            self.create_with(inner, parent, name, Kind::Symlink, attrs.clone(), target)
        })?;
        self.stat_locked(&inner, ino)
    }

    /// Removes the name of a file; who has it open keeps it.
    ///
    /// What it hid, another writer's file of that name, comes into view.
    ///
    /// # Errors
    /// `NotFound`, `IsDir`, `ReadOnly`, disk errors.
    pub fn unlink(&self, parent: Ino, name: &str) -> Result<()> {
        let mut inner = self.lock();
        inner.writable()?;
        let ino = inner.child(parent, name)?;
        if inner.tree.kind(ino) == Some(Kind::Dir) {
            return Err(VolumeError::IsDir);
        }
        let path = inner.tree.path(ino).ok_or(VolumeError::NotFound)?;
        self.reference.unlink(&path);
        let mut changes = Changes::answering(&path);
        let row = if Inner::is_synced(&path) { inner.removal_row(&path) } else { None };
        changes.delta(&path, row);
        changes.node(&path, None);
        inner.keep_directory(parent, ino, &mut changes);
        let id = inner.tree.get(ino).and_then(|n| n.content()).and_then(|c| c.id);
        if let Some(id) = id {
            changes.content(id, None);
        }
        inner.commit(changes)?;
        inner.tree.unlink(ino);
        inner.touch_ctime(ino);
        inner.touch_directory(parent);
        if let Some(id) = id {
            self.discard_unless_live(&mut inner, id);
        }
        self.changed.ring();
        // The kernel looks a removed name up again by itself.
        self.reveal(&mut inner, &path).map(drop)
    }

    /// Removes an empty directory. What it hid comes into view: the kernel must be told.
    ///
    /// # Errors
    /// `NotFound`, `NotDir`, `NotEmpty`, `ReadOnly`, disk errors.
    pub fn rmdir(&self, parent: Ino, name: &str) -> Result<Vec<Notice>> {
        let mut inner = self.lock();
        inner.writable()?;
        let ino = inner.child(parent, name)?;
        let node = inner.tree.get(ino).ok_or(VolumeError::NotFound)?;
        match node.is_dir() {
            false => return Err(VolumeError::NotDir),
            true if !node.is_empty() => return Err(VolumeError::NotEmpty),
            true => {}
        }
        let path = inner.tree.path(ino).ok_or(VolumeError::NotFound)?;
        let mut changes = Changes::answering(&path);
        changes.node(&path, None);
        inner.keep_directory(parent, ino, &mut changes);
        inner.commit(changes)?;
        inner.tree.unlink(ino);
        inner.touch_directory(parent);
        self.reveal(&mut inner, &path)
    }

    /// The file of a content without a row goes, unless somebody has it open (then after its last close).
    pub(super) fn discard_unless_live(&self, inner: &mut Inner, id: crate::cache::ContentId) {
        if !inner.live.contains_key(&id) {
            self.doom(inner, id);
        }
    }

    /// Not at once: until the rows that forget it are durable, a power cut would bring them back.
    pub(super) fn doom(&self, inner: &mut Inner, id: crate::cache::ContentId) {
        inner.doom(id);
        inner.space.remove(id);
        self.fetched.ring();
    }

    /// A name became free: an entry that it hid comes into view.
    pub(super) fn reveal(&self, inner: &mut Inner, path: &str) -> Result<Vec<Notice>> {
        let mut notices = Vec::new();
        if inner.tree.find(path).is_some() || inner.deltas.contains_key(path) {
            return Ok(notices);
        }
        if let (Some(entry), Ok(rel)) = (inner.base_entry(path), RelPath::parse(path)) {
            let parent = rel.parent().and_then(|p| inner.tree.find(p)).unwrap_or(ROOT);
            self.insert_remote(inner, &rel, NodeData::of(&entry), None, &mut notices)?;
            notices.push(Notice::Entry { parent, name: rel.name().to_owned() });
        }
        Ok(notices)
    }
}
