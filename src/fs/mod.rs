//! The FUSE operations: thin, they translate between the kernel and the engine.
//!
//! Depends on `sync` and `volume`. Invariants: no FUSE thread waits for the network; an operation that must wait takes its
//! reply to the runtime. Entries and attributes live long in the kernel, because every change from elsewhere is told to it.

mod dirs;
pub mod errno;
mod handles;
mod io;
mod open_files;
mod operations;
mod passthrough;
mod remembered;
mod session;
mod unopened;
mod walkers;

pub use session::{FsOptions, session_config};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use tokio::runtime::Handle as Runtime;

use crate::cache::rows::Kind;
use crate::sync::Engine;
use crate::tree::{Incarnation, Ino};
use crate::volume::{Stat, Volume};
use handles::Table;

/// How long the kernel may keep names and attributes: until told otherwise.
const TTL: Duration = Duration::from_secs(24 * 3600);

/// The file system. Clones are the same one, for a session each.
#[derive(Clone)]
pub struct SwampFs {
    engine: Arc<Engine>,
    volume: Arc<Volume>,
    runtime: Runtime,
    files: Arc<open_files::OpenFiles>,
    unopened: Arc<unopened::Unopened>,
    /// The kernel opens files without asking.
    without_open: Arc<AtomicBool>,
    dirs: Arc<Table<dirs::Listing>>,
    directories: Arc<dirs::Directories>,
    walkers: Arc<walkers::Walkers>,
    wants_passthrough: bool,
}

impl SwampFs {
    /// A file system on an engine; what must wait runs on `runtime`. `passthrough`: the kernel may read and write complete
    /// files by itself, where it can; the process must then survive SIGIO.
    pub fn new(engine: Arc<Engine>, runtime: Runtime, passthrough: bool) -> Self {
        let volume = Arc::clone(engine.volume());
        let first = first_handle(engine.options().incarnation);
        let files = Arc::new(open_files::OpenFiles::new(&engine, &runtime, first));
        let unopened = Arc::new(unopened::Unopened::new(&volume));
        let without_open = Arc::default();
        let dirs = Arc::new(Table::from(first));
        Self {
            engine,
            volume,
            runtime,
            files,
            unopened,
            without_open,
            dirs,
            directories: Arc::default(),
            walkers: Arc::default(),
            wants_passthrough: passthrough,
        }
    }

    fn place(&self, dir: Ino, offset: u64) -> dirs::Place<'_> {
        dirs::Place { volume: &self.volume, directories: &self.directories, dir, offset }
    }

    fn without_open(&self) -> bool {
        self.without_open.load(Ordering::Relaxed)
    }
}

/// The first number of this process's handles: programs still have those of the processes before.
fn first_handle(incarnation: Incarnation) -> u64 {
    (u64::from(incarnation.number) << 40) + 1
}

fn ino(number: INodeNo) -> Ino {
    Ino(number.0)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Dir => FileType::Directory,
        Kind::Symlink => FileType::Symlink,
    }
}

fn time(nanos: i64) -> SystemTime {
    match u64::try_from(nanos) {
        Ok(after) => UNIX_EPOCH + Duration::from_nanos(after),
        Err(_) => UNIX_EPOCH - Duration::from_nanos(nanos.unsigned_abs()),
    }
}

fn nanos(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, |n| -n),
    }
}

fn attr(stat: &Stat) -> FileAttr {
    FileAttr {
        ino: INodeNo(stat.ino.0),
        size: stat.size,
        blocks: stat.size.div_ceil(512),
        atime: time(stat.atime),
        mtime: time(stat.mtime),
        ctime: time(stat.ctime),
        crtime: time(stat.ctime),
        kind: file_type(stat.kind),
        perm: (stat.perm & 0o7777) as u16,
        nlink: stat.nlink,
        uid: stat.uid,
        gid: stat.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
