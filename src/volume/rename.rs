//! Rename of files and whole directories, also of files that are not cached: only names change, nothing is fetched.
//!
//! Part of the volume. Invariant: a renamed file that is unchanged keeps its origin, so a push copies it within the
//! bucket and a read finds it under its old key until then.

use super::delta::Changes;
use super::inner::Inner;
use super::notice::Notice;
use super::{Result, Volume, VolumeError};
use crate::cache::rows::{Attrs, Delta, DeltaRow, Kind, NodeRow, Version};
use crate::tree::Ino;

/// What to do when the new name is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// Fail with `Exists`.
    NoReplace,
    /// Make both change places.
    Exchange,
}

/// One file that gets another path: what its rows were under the old one.
struct Moved {
    from: String,
    to: String,
    ino: Ino,
    origin: Option<Version>,
    suspect: bool,
}

impl Volume {
    /// Renames. What the old name hid comes into view: the kernel must be told.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `NotEmpty`, `IsDir`, `NotDir`, `Invalid` (a directory into itself), `CrossesSync`,
    /// `NameTooLong` (also for what lies below), `NotPermitted`, `ReadOnly`, disk errors.
    pub fn rename(
        &self,
        parent: Ino,
        name: &str,
        new_parent: Ino,
        new_name: &str,
        mode: RenameMode,
    ) -> Result<Vec<Notice>> {
        let mut inner = self.lock();
        let to_path = self.check_new_name(&inner, new_parent, new_name)?;
        let ino = inner.child(parent, name)?;
        let from_path = inner.tree.path(ino).ok_or(VolumeError::NotFound)?;
        let target = inner.tree.child(new_parent, new_name);
        if inner.tree.is_within(new_parent, ino) {
            return Err(VolumeError::Invalid("a directory cannot move below itself"));
        }
        let left = match (target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(VolumeError::Exists),
            (None, RenameMode::Exchange) => return Err(VolumeError::NotFound),
            (Some(target), _) if target == ino => return Ok(Vec::new()),
            (Some(target), RenameMode::Exchange) => {
                if inner.tree.is_within(parent, target) {
                    return Err(VolumeError::Invalid("a directory cannot change places with its parent"));
                }
                self.exchange(&mut inner, (ino, &from_path), (target, &to_path))?
            }
            (Some(target), RenameMode::Replace) => {
                self.check_replace(&inner, ino, target)?;
                self.move_to(&mut inner, (ino, &from_path), (new_parent, new_name, &to_path), Some(target))?
            }
            (None, _) => self.move_to(&mut inner, (ino, &from_path), (new_parent, new_name, &to_path), None)?,
        };
        inner.touch_ctime(ino);
        inner.touch_directory(parent);
        inner.touch_directory(new_parent);
        self.changed.ring();
        let mut notices = self.reveal(&mut inner, &from_path)?;
        for path in left.iter().filter(|path| **path != from_path) {
            notices.extend(self.reveal(&mut inner, path)?);
        }
        Ok(notices)
    }

    fn check_replace(&self, inner: &Inner, ino: Ino, target: Ino) -> Result<()> {
        let is_dir = inner.tree.kind(ino) == Some(Kind::Dir);
        let Some(node) = inner.tree.get(target) else { return Err(VolumeError::Stale) };
        match (is_dir, node.is_dir()) {
            (true, false) => Err(VolumeError::NotDir),
            (false, true) => Err(VolumeError::IsDir),
            (true, true) if !node.is_empty() => Err(VolumeError::NotEmpty),
            _ => Ok(()),
        }
    }

    /// Files below `ino` with their new paths, checked.
    fn moved(&self, inner: &Inner, ino: Ino, from: &str, to: &str) -> Result<Vec<Moved>> {
        let mut all = Vec::new();
        for (path, ino) in inner.tree.files_below(ino) {
            let new = format!("{to}{}", &path[from.len()..]);
            if self.options.key_prefix_len + new.len() > super::naming::KEY_MAX {
                return Err(VolumeError::NameTooLong(super::naming::KEY_MAX));
            }
            if Inner::is_synced(&path) != Inner::is_synced(&new) {
                return Err(VolumeError::CrossesSync);
            }
            let suspect =
                matches!(inner.deltas.get(&path), Some(DeltaRow { delta: Delta::Put { suspect: true, .. }, .. }));
            all.push(Moved { origin: inner.version_of(ino), suspect, from: path, to: new, ino });
        }
        Ok(all)
    }

    /// Returns the files' old paths.
    fn move_to(
        &self,
        inner: &mut Inner,
        (ino, from): (Ino, &str),
        (new_parent, new_name, to): (Ino, &str, &str),
        target: Option<Ino>,
    ) -> Result<Vec<String>> {
        let moved = self.moved(inner, ino, from, to)?;
        if target.is_some() {
            // A crash after the rename must not leave the new name with a content that never reached the disk.
            self.sync_unsynced(inner, &moved)?;
        }
        let old_parent = inner.tree.parent(ino).ok_or(VolumeError::Stale)?;
        let mut changes = Changes::answering(to);
        let mut dropped = None;
        if let Some(target) = target {
            dropped = inner.tree.get(target).and_then(|n| n.content()).and_then(|c| c.id);
            if let Some(id) = dropped {
                changes.content(id, None);
            }
            changes.node(to, None);
            self.reference.unlink(to);
        }
        self.move_rows(inner, &moved, &mut changes);
        Self::forget_directory_rows(inner, ino, &mut changes);
        Self::write_directory_rows(inner, ino, from, to, &mut changes);
        inner.keep_directory(old_parent, ino, &mut changes);
        inner.commit_move(changes, &[Some(ino), target])?;
        if let Some(target) = target {
            inner.tree.unlink(target);
        }
        inner.tree.rename(ino, new_parent, new_name);
        if let Some(id) = dropped {
            self.discard_unless_live(inner, id);
        }
        Ok(moved.into_iter().map(|file| file.from).collect())
    }

    fn sync_unsynced(&self, inner: &Inner, moved: &[Moved]) -> Result<()> {
        for file in moved.iter().filter(|f| f.origin.is_none()) {
            let Some(id) = inner.tree.get(file.ino).and_then(|n| n.content()).and_then(|c| c.id) else { continue };
            let open = match inner.live.get(&id) {
                Some(live) => std::sync::Arc::clone(&live.file),
                None => self.contents.open_existing(id)?,
            };
            open.sync_data().map_err(VolumeError::content("sync"))?;
        }
        Ok(())
    }

    /// Removal rows for the old paths, put rows for the new ones, node rows moved.
    fn move_rows(&self, inner: &mut Inner, moved: &[Moved], changes: &mut Changes) {
        let puts: Vec<_> = moved
            .iter()
            .map(|file| {
                let mut row = inner.put_row(&file.to, file.origin.clone(), file.suspect);
                let mark = inner.deltas.get(&file.from).and_then(|row| row.upload.clone());
                if let (Some(row), Some(mark), Some(_)) = (&mut row, mark, &file.origin)
                    && row.upload.is_none()
                {
                    // A copy of the origin may lie under the old name, and be all that is left of it.
                    let key = mark.key.clone().or_else(|| Some(file.from.clone()));
                    row.upload = Some(crate::cache::rows::UploadMark { key, moved: true, ..mark });
                }
                (file, row, self.moved_node_row(inner, file))
            })
            .collect();
        for file in moved {
            self.reference.unlink(&file.from);
            let row = if Inner::is_synced(&file.from) { inner.removal_row(&file.from) } else { None };
            changes.delta(&file.from, row);
            changes.node(&file.from, None);
        }
        // After the removals: an exchange writes both rows for the same path, and the put must win.
        for (file, row, node) in puts {
            changes.delta(&file.to, row);
            changes.node(&file.to, Some(node));
        }
    }

    fn moved_node_row(&self, inner: &Inner, file: &Moved) -> NodeRow {
        let node = inner.tree.get(file.ino);
        let content = node.and_then(|n| n.content()).and_then(|c| c.id);
        NodeRow {
            path: file.to.clone(),
            kind: inner.tree.kind(file.ino).unwrap_or(Kind::File),
            content: content.filter(|id| inner.content_rows.contains_key(id)),
            attrs: node.map_or_else(Attrs::default, |n| n.attrs_row()),
        }
    }

    fn forget_directory_rows(inner: &Inner, ino: Ino, changes: &mut Changes) {
        for (path, _) in inner.tree.walk(ino).into_iter().filter(|(_, dir)| inner.tree.kind(*dir) == Some(Kind::Dir)) {
            changes.node(&path, None);
        }
    }

    fn write_directory_rows(inner: &Inner, ino: Ino, from: &str, to: &str, changes: &mut Changes) {
        for (path, dir) in inner.tree.walk(ino) {
            let Some(node) = inner.tree.get(dir).filter(|n| n.is_dir() && (n.explicit || n.attrs().is_some())) else {
                continue;
            };
            let path = format!("{to}{}", &path[from.len()..]);
            let row = NodeRow { path: path.clone(), kind: Kind::Dir, content: None, attrs: node.attrs_row() };
            changes.node(&path, Some(row));
        }
    }

    /// Returns the files' old paths.
    fn exchange(&self, inner: &mut Inner, a: (Ino, &str), b: (Ino, &str)) -> Result<Vec<String>> {
        let mut moved = self.moved(inner, a.0, a.1, b.1)?;
        moved.extend(self.moved(inner, b.0, b.1, a.1)?);
        self.sync_unsynced(inner, &moved)?;
        let mut changes = Changes::answering(b.1);
        // All old rows go before any new one is written: both sides use the same paths.
        for (ino, _) in [a, b] {
            Self::forget_directory_rows(inner, ino, &mut changes);
        }
        self.move_rows(inner, &moved, &mut changes);
        Self::write_directory_rows(inner, a.0, a.1, b.1, &mut changes);
        Self::write_directory_rows(inner, b.0, b.1, a.1, &mut changes);
        inner.commit_move(changes, &[Some(a.0), Some(b.0)])?;
        inner.tree.exchange(a.0, b.0);
        inner.touch_ctime(b.0);
        Ok(moved.into_iter().map(|file| file.from).collect())
    }
}
