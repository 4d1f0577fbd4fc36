//! Writes that nobody tells us of: with FUSE passthrough the kernel writes to the file behind a content by itself.
//!
//! Part of the volume, used by `live`; depends on the file system only. Invariant: while a handle writes unseen, every
//! change of the bytes is found by comparing size, mtime and ctime with the last look, before anything is decided about the
//! content. A mapping can outlive its handle: [`is_held_elsewhere`] tells, and such a handle must not be ended before.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

/// Longest time within which two changes can get the same time stamp, on kernels that stamp by their clock tick.
const TICK: Duration = Duration::from_millis(20);

/// What a change of a file changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Look {
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Look {
    fn at(file: &File) -> std::io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            size: meta.len(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Whether a change that comes now is sure to look different.
    fn is_distinct(&self) -> bool {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(u64::try_from(self.ctime.0).unwrap_or(0), u32::try_from(self.ctime.1).unwrap_or(0));
        has_fine_times() || now.checked_sub(changed).is_some_and(|age| age > TICK)
    }
}

/// Whether a file whose times were looked at gets a new time with its next change: Linux 6.13 and later, on the file systems
/// that [`keeps_times`] names.
fn has_fine_times() -> bool {
    static FINE: OnceLock<bool> = OnceLock::new();
    *FINE.get_or_init(|| {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 13)
    })
}

/// Whether the file system under a file moves mtime and ctime with every write, and with the first store to each page of
/// a mapping since the page was last written back. tmpfs, for one, does not.
pub fn keeps_times(file: &File) -> bool {
    const KNOWN: [u64; 3] = [0xef53, 0x5846_5342, 0x9123_683e]; // ext4, xfs, btrfs
    rustix::fs::fstatfs(file).is_ok_and(|fs| KNOWN.contains(&u64::try_from(fs.f_type).unwrap_or(0)))
}

/// Whether anything but our own descriptor has the file open or mapped, in whatever process.
///
/// Asks for a write lease, which the kernel grants only to the sole user of a file. Somebody who opens it in that moment
/// waits until the lease is given back, and the kernel may send SIGIO: the process must not die of that.
pub fn is_held_elsewhere(file: &File) -> bool {
    let lease = |kind: libc::c_int| {
        // SAFETY: the descriptor is open for as long as `file` is borrowed, and F_SETLEASE takes an integer.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) }
    };
    let granted = lease(libc::F_WRLCK) == 0;
    if granted && lease(libc::F_UNLCK) != 0 {
        tracing::error!(error = %std::io::Error::last_os_error(), "cannot give a lease back");
    }
    !granted
}

/// The unseen writers of one content.
#[derive(Debug, Default)]
pub(super) struct UnseenWrites {
    handles: AtomicU32,
    mappable: AtomicU32,
    /// A push carried the bytes away while memory could be mapped.
    carried: AtomicBool,
    last: Mutex<Option<Look>>,
}

impl UnseenWrites {
    fn last(&self) -> MutexGuard<'_, Option<Look>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anybody writes unseen.
    pub fn any(&self) -> bool {
        self.handles.load(Ordering::SeqCst) > 0
    }

    /// A handle begins to write unseen; `mappable`: also through shared mappings. Before the kernel is told that it may.
    /// `false`: the first change may look like none, so the content has to count as changed.
    pub fn begin(&self, file: &File, mappable: bool) -> std::io::Result<bool> {
        let mut last = self.last();
        let mut sure = true;
        if last.is_none() {
            let look = Look::at(file)?;
            sure = look.is_distinct();
            *last = Some(look);
        }
        self.handles.fetch_add(1, Ordering::SeqCst);
        self.mappable.fetch_add(u32::from(mappable), Ordering::SeqCst);
        Ok(sure)
    }

    /// A handle ends, and nothing that it opened or mapped is left.
    pub fn end(&self, mappable: bool) {
        let mut last = self.last();
        self.mappable.fetch_sub(u32::from(mappable), Ordering::SeqCst);
        if self.handles.fetch_sub(1, Ordering::SeqCst) == 1 {
            *last = None;
        }
    }

    /// A push carried the bytes away. A store that was on its way at that moment may come without another change of times:
    /// the bytes have to be compared once more when the mapping is gone.
    pub fn note_carried(&self) {
        if self.mappable.load(Ordering::SeqCst) > 0 {
            self.carried.store(true, Ordering::SeqCst);
        }
    }

    /// Whether the bytes have to be compared once more.
    pub fn take_carried(&self) -> bool {
        self.carried.swap(false, Ordering::SeqCst)
    }

    /// Runs `count` if the file was changed since the last look.
    pub fn look(&self, file: &File, count: impl FnOnce()) {
        if self.any() {
            Self::compare(&mut self.last(), file, count);
        }
    }

    fn compare(last: &mut Option<Look>, file: &File, count: impl FnOnce()) {
        let Some(known) = *last else { return };
        match Look::at(file) {
            Ok(now) if now == known => {}
            Ok(now) => {
                *last = Some(now);
                count();
            }
            Err(error) => {
                tracing::error!(%error, "cannot see whether a content was changed: it counts as changed");
                count();
            }
        }
    }

    /// Runs a change of ours that is none of the bytes. For the kernel's own requests only: it lets nobody write to the
    /// inode meanwhile, but through a mapping.
    pub fn quietly<T>(&self, file: &File, count: impl FnOnce(), change: impl FnOnce(&File) -> T) -> T {
        let mut last = self.last();
        Self::compare(&mut last, file, count);
        let result = change(file);
        if last.is_some()
            && self.mappable.load(Ordering::SeqCst) == 0
            && let Ok(now) = Look::at(file)
        {
            *last = Some(now);
        }
        result
    }

    /// Waits until whatever wrote has either shown in the file's times or ended. May take as long as writing the file back.
    pub fn wait(&self, file: &File) -> std::io::Result<()> {
        if !has_fine_times() {
            std::thread::sleep(TICK);
        }
        if self.mappable.load(Ordering::SeqCst) > 0 {
            // Clean pages are read-only again: the next store to each is seen as a change.
            file.sync_data()?;
        }
        // Times move before the bytes. Removing an attribute takes the lock that a write holds to its end.
        match rustix::fs::fremovexattr(file, "user.swamp-mount.none") {
            Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn scratch() -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory on a real disk");
        let path = dir.path().join("content");
        std::fs::write(&path, b"before").expect("written");
        let file = File::options().read(true).write(true).open(path).expect("opened");
        (dir, file)
    }

    fn changed(unseen: &UnseenWrites, file: &File) -> bool {
        let mut changed = false;
        unseen.look(file, || changed = true);
        changed
    }

    #[test]
    fn every_kind_of_change_is_found_once() {
        let (dir, file) = scratch();
        let unseen = UnseenWrites::default();
        unseen.begin(&file, false).expect("begun");
        assert!(!changed(&unseen, &file));
        let other = File::options().write(true).open(dir.path().join("content")).expect("opened");
        for (what, change) in [
            ("the same bytes", (|f: &File| f.write_all_at(b"before", 0)) as fn(&File) -> std::io::Result<()>),
            ("the same size", |f| f.write_all_at(b"behind", 0)),
            ("more bytes", |f| f.write_all_at(b"more", 6)),
            ("fewer bytes", |f| f.set_len(2)),
        ] {
            change(&other).expect(what);
            assert!(changed(&unseen, &file), "{what}");
            assert!(!changed(&unseen, &file), "{what}, twice");
        }
        unseen.end(false);
        other.set_len(0).expect("emptied");
        assert!(!changed(&unseen, &file), "nobody writes unseen any more");
    }

    #[test]
    fn our_own_change_of_times_is_none_but_hides_none() {
        let (_dir, file) = scratch();
        let unseen = UnseenWrites::default();
        unseen.begin(&file, false).expect("begun");
        let touch = |file: &File| file.set_modified(SystemTime::UNIX_EPOCH);
        unseen.quietly(&file, || panic!("nothing was written"), touch).expect("touched");
        assert!(!changed(&unseen, &file));
        file.write_all_at(b"x", 0).expect("written");
        let mut found = false;
        unseen.quietly(&file, || found = true, touch).expect("touched");
        assert!(found, "a write before the touch");
    }

    #[test]
    fn an_open_file_and_a_mapping_are_held_elsewhere() {
        let (dir, file) = scratch();
        assert!(!is_held_elsewhere(&file));
        let other = File::options().read(true).write(true).open(dir.path().join("content")).expect("opened");
        assert!(is_held_elsewhere(&file), "open for writing");
        drop(other);
        assert!(!is_held_elsewhere(&file));
        let reader = File::open(dir.path().join("content")).expect("opened");
        assert!(is_held_elsewhere(&file), "open for reading");
        drop(reader);
        assert!(!is_held_elsewhere(&file));
    }
}
