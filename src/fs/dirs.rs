//! Directory listings: a snapshot per open directory, and which of them the kernel may answer from its own memory.
//!
//! The kernel keeps the names that it was sent of a directory as long as we say so at each open. Invariant: it is told to
//! keep them only when all of them came from snapshots of one version, which the directory still has. A snapshot that is
//! taken while another one of the same directory is being sent may be mixed with it there.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuser::FopenFlags;

use crate::tree::Ino;
use crate::volume::{DirEntry, DirListing, Result, Volume};

/// Directories that are followed at least; those that nobody has open are forgotten beyond.
const FOLLOWED: usize = 1 << 16;
/// No directory has this version.
const NONE: u64 = u64::MAX;

/// What the kernel has of a directory.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// That of all that it has; if there may be something of another version, one that the directory does not have again.
    version: u64,
    /// Attributes came with every name, and it has not forgotten any.
    attributes: bool,
    /// Open directories that were sent something.
    senders: u32,
    /// When the last of them first was, or was closed.
    last: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Directories(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    sent: HashMap<Ino, Sent>,
    /// Counts open directories that were sent something, and their ends.
    sends: u64,
    /// That count when directories were last forgotten.
    forgotten: u64,
}

impl Directories {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory is opened; `attributes`: by somebody who will ask for those of every name.
    pub fn open(&self, dir: Ino, version: u64, attributes: bool) -> (Listing, FopenFlags) {
        let mut known = self.lock();
        if known.sent.len() > FOLLOWED {
            known.sent.retain(|_, sent| sent.senders > 0);
            known.forgotten = known.sends;
        }
        let fits = |sent: &Sent| sent.version == version && (sent.attributes || !attributes);
        let keep = known.sent.get(&dir).is_some_and(fits);
        let listing = Listing { version, keep, sends: known.sends, state: Mutex::default() };
        let flags = if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
        (listing, flags | FopenFlags::FOPEN_CACHE_DIR)
    }

    /// A snapshot is about to be sent, from `offset` on.
    pub(super) fn sends(&self, dir: Ino, listing: &Listing, first: bool, version: u64, offset: u64) {
        let mut known = self.lock();
        known.sends += u64::from(first);
        let (now, forgotten) = (known.sends, known.forgotten);
        let unknown = Sent { version: NONE, attributes: false, senders: 0, last: forgotten };
        let sent = known.sent.entry(dir).or_insert(unknown);
        // What the kernel had before went with the open, unless that kept it; what it got since may be a part of a listing.
        let alone = first
            && offset == 0
            && sent.senders == 0
            && sent.last <= listing.sends
            && (!listing.keep || listing.version == version);
        if alone {
            *sent = Sent { version, ..unknown };
        }
        if first {
            sent.senders += 1;
            sent.last = now;
        }
    }

    /// Attributes were sent with all names of a version.
    fn sent_attributes(&self, dir: Ino, version: u64) {
        if let Some(sent) = self.lock().sent.get_mut(&dir).filter(|sent| sent.version == version) {
            sent.attributes = true;
        }
    }

    /// The kernel forgot a name of a directory.
    pub fn forgot(&self, dir: Ino) {
        if let Some(sent) = self.lock().sent.get_mut(&dir) {
            sent.attributes = false;
        }
    }

    /// An open directory is closed.
    pub fn close(&self, dir: Ino, listing: &Listing) {
        if listing.lock().snapshot.is_some() {
            let mut known = self.lock();
            known.sends += 1;
            let now = known.sends;
            if let Some(sent) = known.sent.get_mut(&dir) {
                sent.senders = sent.senders.saturating_sub(1);
                // Its last answer came at some time before.
                sent.last = now;
            }
        }
    }
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Listing {
    /// The directory's version when it was opened.
    version: u64,
    /// The kernel was told to keep what it had.
    keep: bool,
    /// That count then.
    sends: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    snapshot: Option<DirListing>,
    /// Up to where attributes were sent with every name.
    attributes_upto: u64,
}

impl Listing {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the snapshot, anew at offset 0 (rewinddir), unless it is of now.
    fn look(&self, state: &mut State, at: &Place<'_>) -> Result<()> {
        let old = state.snapshot.as_ref().map(|snapshot| snapshot.version);
        if old.is_none() || (at.offset == 0 && old != Some(at.volume.dir_version(at.dir)?)) {
            let snapshot = at.volume.list(at.dir)?;
            at.directories.sends(at.dir, self, old.is_none(), snapshot.version, at.offset);
            *state = State { snapshot: Some(snapshot), attributes_upto: 0 };
        }
        Ok(())
    }

    /// Calls `each` with the cookie of each name after an offset until it says `false` (full).
    pub fn names(&self, at: &Place<'_>, mut each: impl FnMut(&DirEntry) -> bool) -> Result<()> {
        let mut state = self.lock();
        self.look(&mut state, at)?;
        for entry in at.dots().iter().chain(state.after(at.offset)) {
            if !each(entry) {
                break;
            }
        }
        Ok(())
    }

    /// The same with attributes, which the kernel then knows. `all`: of files too, and not of directories alone.
    pub fn with_attributes(
        &self,
        at: &Place<'_>,
        all: bool,
        mut each: impl FnMut(&DirEntry, &crate::volume::Stat) -> bool,
    ) -> Result<()> {
        let mut state = self.lock();
        self.look(&mut state, at)?;
        for dot in at.dots() {
            if !each(&dot, &at.volume.stat(dot.ino)?) {
                return Ok(());
            }
        }
        let version = state.snapshot.as_ref().map_or(0, |snapshot| snapshot.version);
        let mut last = at.offset;
        let wanted = |entry: &&DirEntry| all || entry.kind == crate::cache::rows::Kind::Dir;
        let entries = state.after(at.offset).iter().take_while(wanted);
        at.volume.lookup_listed(at.dir, version, entries, |entry, stat| {
            let taken = each(entry, stat);
            last = if taken { entry.cookie } else { last };
            taken
        });
        if at.offset <= state.attributes_upto || at.offset == 0 {
            state.attributes_upto = last;
            if state.after(last).is_empty() {
                at.directories.sent_attributes(at.dir, version);
            }
        }
        Ok(())
    }
}

impl State {
    fn after(&self, offset: u64) -> &[DirEntry] {
        let entries = self.snapshot.as_ref().map_or(&[][..], |snapshot| &snapshot.entries);
        &entries[entries.partition_point(|entry| entry.cookie <= offset)..]
    }
}

/// Where a listing goes on.
pub(super) struct Place<'a> {
    pub volume: &'a Volume,
    pub directories: &'a Directories,
    pub dir: Ino,
    /// The cookie of the last name that the kernel has.
    pub offset: u64,
}

impl Place<'_> {
    /// "." and "..", as far as they come after the offset.
    fn dots(&self) -> Vec<DirEntry> {
        if self.offset >= 2 {
            return Vec::new();
        }
        let kind = crate::cache::rows::Kind::Dir;
        let dots = [
            DirEntry { cookie: 1, name: ".".into(), ino: self.dir, kind },
            DirEntry { cookie: 2, name: "..".into(), ino: self.volume.parent(self.dir), kind },
        ];
        dots.into_iter().filter(|dot| dot.cookie > self.offset).collect()
    }
}

#[cfg(test)]
mod kernel_model;
#[cfg(test)]
mod tests;
