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

/// What the kernel has of a directory.
#[derive(Clone, Copy, Debug)]
struct Sent {
    /// Of the snapshots that it was sent.
    version: u64,
    /// They were of several versions.
    mixed: bool,
    /// Attributes came with every name, and it has not forgotten any.
    attributes: bool,
    /// Open directories that were sent something.
    senders: u32,
    /// When the last of them first was.
    last: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Directories(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    sent: HashMap<Ino, Sent>,
    /// Counts open directories that were sent something.
    sends: u64,
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
        }
        let fits = |sent: &Sent| !sent.mixed && sent.version == version && (sent.attributes || !attributes);
        let keep = known.sent.get(&dir).is_some_and(fits);
        let listing = Listing { version, keep, sends: known.sends, state: Mutex::default() };
        let flags = if keep { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() };
        (listing, flags | FopenFlags::FOPEN_CACHE_DIR)
    }

    /// A snapshot is about to be sent, from `offset` on.
    fn sends(&self, dir: Ino, listing: &Listing, first: bool, version: u64, offset: u64) {
        let mut known = self.lock();
        known.sends += u64::from(first);
        let new = Sent { version, mixed: false, attributes: false, senders: 0, last: known.sends };
        let sent = known.sent.entry(dir).or_insert(new);
        // What the kernel had before went with the open, unless that kept it; what it got since may be a part of a listing.
        let alone = first
            && offset == 0
            && (sent.senders == 0 && sent.last <= listing.sends || sent.last == new.last)
            && (!listing.keep || listing.version == version);
        if alone {
            *sent = new;
        } else if sent.version != version || (listing.keep && listing.version != version) {
            sent.mixed = true;
        }
        if first {
            sent.senders += 1;
            sent.last = new.last;
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
        if listing.lock().snapshot.is_some()
            && let Some(sent) = self.lock().sent.get_mut(&dir)
        {
            sent.senders = sent.senders.saturating_sub(1);
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
    /// How many had been sent something then.
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
mod tests {
    use super::*;

    const DIR: Ino = Ino(7);

    fn keeps(directories: &Directories, version: u64, attributes: bool) -> bool {
        directories.open(DIR, version, attributes).1.contains(FopenFlags::FOPEN_KEEP_CACHE)
    }

    /// Opens at a version, sends a snapshot of another from an offset on.
    fn send(directories: &Directories, opened: u64, version: u64, offset: u64) -> Listing {
        let (listing, _) = directories.open(DIR, opened, false);
        directories.sends(DIR, &listing, true, version, offset);
        listing.lock().snapshot = Some(DirListing { version, entries: Vec::new() });
        listing
    }

    #[test]
    fn the_kernel_keeps_what_it_was_sent_while_the_directory_is_the_same() {
        let directories = Directories::default();
        assert!(!keeps(&directories, 1, false), "it has nothing yet");
        let listing = send(&directories, 1, 1, 0);
        directories.close(DIR, &listing);
        assert!(keeps(&directories, 1, false));
        assert!(!keeps(&directories, 2, false));
        let listing = send(&directories, 2, 2, 0);
        assert!(keeps(&directories, 2, false), "while it is being sent, too");
        directories.close(DIR, &listing);
        assert!(keeps(&directories, 2, false) && !keeps(&directories, 1, false));
    }

    /// What may have been mixed, whether it was or not: opened and sent versions with offsets, all before the first is closed.
    #[test]
    fn what_may_be_of_several_versions_is_not_kept() {
        let cases: &[&[(u64, u64, u64)]] = &[
            // Two at the same time.
            &[(1, 1, 0), (2, 2, 0)],
            // It changed between open and send, and the kernel had been told to keep what it had.
            &[(2, 2, 0), (2, 3, 0)],
            // Somebody who read from the kernel's memory goes on with a later snapshot.
            &[(2, 2, 0), (2, 3, 900)],
        ];
        for case in cases {
            let directories = Directories::default();
            let open: Vec<Listing> =
                case.iter().map(|(at, of, offset)| send(&directories, *at, *of, *offset)).collect();
            let last = case.last().unwrap().1;
            assert!((1..=last).all(|version| !keeps(&directories, version, false)), "{case:?}");
            open.iter().for_each(|listing| directories.close(DIR, listing));
            assert!((1..=last).all(|version| !keeps(&directories, version, false)), "{case:?}: closed");
            let listing = send(&directories, last, last, 0);
            directories.close(DIR, &listing);
            assert!(keeps(&directories, last, false), "{case:?}: sent anew");
        }
    }

    #[test]
    fn a_listing_that_was_opened_before_another_was_sent_in_part_does_not_count() {
        let directories = Directories::default();
        let (early, _) = directories.open(DIR, 1, false);
        let part = send(&directories, 1, 1, 0);
        directories.close(DIR, &part);
        directories.sends(DIR, &early, true, 2, 0);
        assert!(!keeps(&directories, 2, false));
    }

    #[test]
    fn whoever_looks_at_attributes_is_sent_them_unless_the_kernel_has_all() {
        let directories = Directories::default();
        let listing = send(&directories, 1, 1, 0);
        assert!(keeps(&directories, 1, false) && !keeps(&directories, 1, true));
        directories.sent_attributes(DIR, 1);
        directories.close(DIR, &listing);
        assert!(keeps(&directories, 1, true));
        directories.forgot(DIR);
        assert!(keeps(&directories, 1, false) && !keeps(&directories, 1, true));
    }
}
