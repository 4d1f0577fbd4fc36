//! Directory listings: a snapshot per open directory, so that offsets stay valid while names change.

use std::sync::{Mutex, PoisonError};

use crate::tree::Ino;
use crate::volume::{DirEntry, Result, Volume};

/// An open directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    entries: Mutex<Option<Vec<DirEntry>>>,
}

impl Listing {
    /// Calls `each` with the offset that follows and the name, from `offset` on, until it returns `true` (full). The
    /// snapshot is taken anew at offset 0 (rewinddir). "." and ".." are at 0 and 1.
    pub fn for_each(
        &self,
        volume: &Volume,
        dir: Ino,
        offset: u64,
        mut each: impl FnMut(u64, &DirEntry) -> bool,
    ) -> Result<()> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 || entries.is_none() {
            *entries = Some(volume.list(dir)?);
        }
        let kind = crate::cache::rows::Kind::Dir;
        let dots = [
            DirEntry { name: ".".into(), ino: dir, kind },
            DirEntry { name: "..".into(), ino: volume.parent(dir), kind },
        ];
        let listed = entries.iter().flatten();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, entry) in dots.iter().chain(listed).enumerate().skip(start) {
            if each(at as u64 + 1, entry) {
                break;
            }
        }
        Ok(())
    }
}
