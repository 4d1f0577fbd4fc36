//! What was fetched or pushed becomes a row of state.db and a link in `cache/`.
//!
//! Part of the volume. Invariants: a row claims bytes only after they are durable; a row that became newer meanwhile is never
//! overwritten; a link appears only for a complete, unchanged file that is what the index copy says.

use std::sync::Arc;

use super::delta::Changes;
use super::inner::Inner;
use super::live::LiveContent;
use super::{Result, Volume, VolumeError};
use crate::cache::rows::{ContentRow, FileStamp, Kind, NodeRow, Version};
use crate::datastore::RelPath;

/// Up to so many fetched contents are synced one by one; more, by one sync of their file system.
const SYNC_EACH: usize = 16;

/// Size and mtime of a complete content.
pub(super) fn complete_stamp(live: &LiveContent, complete: bool) -> Result<Option<FileStamp>> {
    if !complete {
        return Ok(None);
    }
    let (size, mtime) = super::attributes::file_stat(&live.file).map_err(VolumeError::content("stat"))?;
    Ok(Some(FileStamp { size, mtime }))
}

impl Volume {
    /// Shows a file in `cache/` when it is complete, unchanged, and what the index says.
    fn show_in_reference(&self, inner: &mut Inner, path: &str, live: &LiveContent) {
        let fits = {
            let state = live.state();
            state.complete && state.version.as_ref().is_some_and(|v| Some(&v.entry) == inner.base_entry(path).as_ref())
        };
        let plain = inner.tree.kind(live.ino) == Some(Kind::File);
        if fits && plain && live.writers() == 0 && !inner.deltas.contains_key(path) {
            self.reference.link(path, &live.file);
        }
    }

    /// Shows a file in `cache/` that was pushed.
    pub(super) fn show_pushed(&self, path: &str) {
        let mut inner = self.lock();
        let Some(ino) = inner.tree.find(path).filter(|ino| inner.local_content(*ino).is_some()) else { return };
        match self.live_for(&mut inner, ino) {
            Ok(live) => {
                self.show_in_reference(&mut inner, path, &live);
                if live.handles() == 0 {
                    self.retire(&mut inner, ino, &live);
                }
            }
            Err(error) => tracing::warn!(path, %error, "cannot show a pushed file in cache/"),
        }
        self.relieve(&mut inner);
    }

    /// Records what was fetched since the last call, once its bytes are durable, and shows complete files in `cache/`.
    ///
    /// # Errors
    /// Disk errors; nothing is recorded then.
    pub fn record_fetched(&self) -> Result<()> {
        let fetched = self.snapshot_fetched();
        if fetched.is_empty() {
            return Ok(());
        }
        // The snapshot came first: what arrives after it is not covered by the sync.
        if fetched.len() > SYNC_EACH {
            self.contents.sync_all()?;
        } else {
            for one in &fetched {
                one.live.file.sync_data().map_err(VolumeError::content("sync"))?;
            }
        }
        crate::fail_point!("record.after_sync");
        let mut inner = self.lock();
        let mut changes = Changes::default();
        let mut written = Vec::new();
        for one in fetched {
            let live = &one.live;
            // Opened for writing, pushed or rebased meanwhile: the row is newer than this snapshot.
            let newer = inner.content_rows.get(&live.id) != one.before.as_ref() || live.state().version != one.version;
            let Some(path) = inner.live_path(live).filter(|_| !newer) else { continue };
            let stamp = complete_stamp(live, one.present.is_none())?;
            let row = ContentRow { version: one.version.clone(), present: one.present.clone(), stamp };
            let node = inner.tree.get(live.ino).ok_or(VolumeError::Stale)?;
            let node =
                NodeRow { path: path.clone(), kind: node.kind(), content: Some(live.id), attrs: node.attrs_row() };
            changes.content(live.id, Some(row));
            changes.node(&path, Some(node));
            written.push((path, one));
        }
        inner.commit(changes)?;
        for (path, one) in written {
            let mut state = one.live.state();
            state.recorded = one.present.as_ref().map_or(state.complete, |p| !state.complete && state.present == *p);
            drop(state);
            self.show_in_reference(&mut inner, &path, &one.live);
            if one.live.handles() == 0 {
                self.retire(&mut inner, one.live.ino, &one.live);
            }
        }
        Ok(())
    }

    /// Makes the bytes of uploaded files durable. Once their rows are settled they count as clean, and what a power cut left
    /// of bytes that nobody synced would be taken for the file.
    ///
    /// # Errors
    /// Disk errors.
    pub fn sync_uploaded(&self, paths: &[RelPath]) -> Result<()> {
        if paths.len() > SYNC_EACH {
            return Ok(self.contents.sync_all()?);
        }
        for path in paths {
            let file = {
                let inner = self.lock();
                let Some(id) = inner.tree.find(path.as_str()).and_then(|ino| inner.local_content(ino)) else {
                    continue;
                };
                match inner.live.get(&id) {
                    Some(live) => Arc::clone(&live.file),
                    None => self.contents.open_existing(id)?,
                }
            };
            file.sync_data().map_err(VolumeError::content("sync"))?;
        }
        Ok(())
    }

    /// Resolves when something was opened since [`Volume::record_opened`] was last called.
    pub async fn wait_for_open(&self) {
        self.opened.heard().await;
    }

    /// Records which contents were opened since the last call, in their order.
    ///
    /// # Errors
    /// Disk errors; the order of these opens is lost then.
    pub fn record_opened(&self) -> Result<()> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let opened = inner.space.take_opened();
        let recorded: Vec<_> = opened.into_iter().filter(|id| inner.content_rows.contains_key(id)).collect();
        if recorded.is_empty() {
            return Ok(());
        }
        let tx = inner.db.begin()?;
        tx.set_opened(recorded)?;
        Ok(tx.commit()?)
    }

    fn snapshot_fetched(&self) -> Vec<Fetched> {
        let inner = self.lock();
        let mut fetched: Vec<Fetched> = Vec::new();
        for live in inner.live.values() {
            let state = live.state();
            if !state.recorded {
                let present = (!state.complete).then(|| state.present.clone());
                let before = inner.content_rows.get(&live.id).cloned();
                fetched.push(Fetched { live: Arc::clone(live), version: state.version.clone(), present, before });
            }
        }
        fetched.sort_by_key(|one| one.live.id);
        fetched
    }
}

/// A content as it was when its recording began.
struct Fetched {
    live: Arc<LiveContent>,
    version: Option<Version>,
    present: Option<crate::cache::RangeSet>,
    before: Option<ContentRow>,
}
