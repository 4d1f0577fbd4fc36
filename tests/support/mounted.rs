//! A kernel mount of an engine in this process, and its files by system calls. When it goes, the mount goes.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::BackgroundSession;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use swamp_mount::fs::{FsOptions, SwampFs, session_config};
use swamp_mount::sync::Engine;
use swamp_mount::volume::RenameMode;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use super::host::{Outcome, words};

/// See the module.
pub struct Mounted {
    session: BackgroundSession,
    place: TempDir,
}

impl Mounted {
    /// Mounts it.
    pub fn new(engine: &Arc<Engine>, runtime: &Runtime) -> Outcome<Self> {
        let place = tempfile::tempdir().map_err(words)?;
        let _within = runtime.enter();
        // Passthrough asks for leases; the handler stays for the life of the process.
        drop(signal(SignalKind::io()).map_err(words)?);
        let fs = SwampFs::new(Arc::clone(engine), runtime.handle().clone(), true);
        let source_name = "in this process".to_owned();
        let options = session_config(&FsOptions { allow_other: false, read_only: false, source_name });
        let session = fuser::spawn_mount(fs, place.path(), &options).map_err(words)?;
        engine.attach_notifier(session.notifier());
        Ok(Self { session, place })
    }

    /// Takes it off, and returns when nothing of it goes on.
    pub fn end(self) {
        self.session.umount_and_join().expect("unmounted");
    }

    fn path(&self, path: &str) -> PathBuf {
        self.place.path().join(path)
    }

    fn place(&self, path: &str) -> Outcome<PathBuf> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("below the mountpoint")).map_err(words)?;
        Ok(path)
    }

    /// The kernel tells of a closed file later: what is asked after it comes after it.
    fn hears_of_closed_files(&self) -> Outcome<()> {
        rustix::fs::statvfs(self.place.path()).map(drop).map_err(words)
    }

    pub fn write(&self, path: &str, bytes: &[u8]) -> Outcome<()> {
        let mut file = File::create(self.place(path)?).map_err(words)?;
        file.write_all(bytes).map_err(words)?;
        drop(file);
        self.hears_of_closed_files()
    }

    pub fn append(&self, path: &str, bytes: &[u8]) -> Outcome<()> {
        let mut file = File::options().append(true).open(self.path(path)).map_err(words)?;
        file.write_all(bytes).map_err(words)?;
        drop(file);
        self.hears_of_closed_files()
    }

    pub fn truncate(&self, path: &str, size: u64) -> Outcome<()> {
        let file = File::options().write(true).open(self.path(path)).map_err(words)?;
        file.set_len(size).map_err(words)?;
        drop(file);
        self.hears_of_closed_files()
    }

    pub fn remove(&self, path: &str) -> Outcome<()> {
        fs::remove_file(self.path(path)).map_err(words)
    }

    pub fn rename(&self, from: &str, to: &str, mode: RenameMode) -> Outcome<()> {
        let flags = match mode {
            RenameMode::Replace => RenameFlags::empty(),
            RenameMode::NoReplace => RenameFlags::NOREPLACE,
            RenameMode::Exchange => RenameFlags::EXCHANGE,
        };
        renameat_with(CWD, self.path(from), CWD, self.place(to)?, flags).map_err(words)
    }

    pub fn read(&self, path: &str) -> Outcome<Vec<u8>> {
        let bytes = fs::read(self.path(path)).map_err(words);
        self.hears_of_closed_files()?;
        bytes
    }

    /// Every name of a file, sorted.
    pub fn names(&self) -> Outcome<Vec<String>> {
        let (mut found, mut todo) = (Vec::new(), vec![PathBuf::new()]);
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(self.place.path().join(&dir)).map_err(words)? {
                let entry = entry.map_err(words)?;
                let path = dir.join(entry.file_name());
                match entry.file_type().map_err(words)?.is_dir() {
                    true => todo.push(path),
                    false => found.push(shown(&path)),
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

fn shown(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}
