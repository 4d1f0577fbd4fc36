//! The open files: numbers for the kernel, and how each is served.
//!
//! Depends on `passthrough` and `volume`. Invariant: a handle that the kernel got a number for is released exactly once, after
//! the kernel closed it.

use std::fs::File;
use std::sync::Arc;

use fuser::{BackingId, FileHandle, FopenFlags, OpenAccMode, OpenFlags, ReplyOpen};
use tokio::runtime::Handle as Runtime;

use super::errno::report;
use super::handles::Table;
use super::passthrough::{Passthrough, Way};
use super::remembered::Remembered;
use crate::sync::Engine;
use crate::tree::Ino;
use crate::volume::Handle;

/// See the module.
pub(super) struct OpenFiles {
    handles: Table<Handle>,
    passthrough: Arc<Passthrough>,
    remembered: Remembered,
    engine: Arc<Engine>,
    runtime: Runtime,
}

impl OpenFiles {
    pub fn new(engine: &Arc<Engine>, runtime: &Runtime, first: u64) -> Self {
        let files = Self {
            handles: Table::from(first),
            passthrough: Arc::new(Passthrough::new()),
            remembered: Remembered::new(engine.options().incarnation),
            engine: Arc::clone(engine),
            runtime: runtime.clone(),
        };
        files.open_again();
        files
    }

    /// Opens what programs have open since the process before this one; what cannot be had any more is stale to them.
    fn open_again(&self) {
        for file in self.remembered.take() {
            match self.engine.volume().open_again(&file) {
                Ok(Some(mut handle)) => {
                    let no_backing = |_: &File| Err(std::io::ErrorKind::Unsupported.into());
                    if let Err(error) = self.passthrough.enter(&self.engine, &mut handle, false, no_backing) {
                        report("open again", file.ino.0, &error);
                        self.engine.volume().release(&handle);
                        continue;
                    }
                    self.remembered.opened(FileHandle(file.handle), &handle);
                    self.handles.insert_again(file.handle, handle);
                }
                Ok(None) => tracing::info!(inode = file.ino.0, "an open file is not what it was: it is stale"),
                Err(error) => drop(report("open again", file.ino.0, &error)),
            }
        }
    }

    pub fn allow_passthrough(&self) {
        self.passthrough.allow();
    }

    pub fn get(&self, fh: FileHandle) -> Option<Arc<Handle>> {
        self.handles.get(fh)
    }

    /// The kernel forgot an inode.
    pub fn forget(&self, ino: Ino) {
        self.passthrough.forget(ino);
    }

    /// Gives a handle its number and its way. A handle for which there is none is released.
    pub fn open(
        &self,
        mut handle: Handle,
        flags: OpenFlags,
        register: impl FnOnce(&File) -> std::io::Result<BackingId>,
    ) -> crate::volume::Result<(FileHandle, Way)> {
        let mappable = flags.acc_mode() == OpenAccMode::O_RDWR;
        match self.passthrough.enter(&self.engine, &mut handle, mappable, register) {
            Ok(way) => {
                if handle.unseen.is_some() {
                    self.passthrough.watch(&self.runtime, &self.engine);
                }
                let handle = Arc::new(handle);
                let number = self.handles.insert(Arc::clone(&handle));
                self.remembered.opened(number, &handle);
                Ok((number, way))
            }
            Err(error) => {
                self.engine.volume().release(&handle);
                Err(error)
            }
        }
    }

    /// Answers an open with this handle.
    pub fn answer(&self, handle: Handle, flags: OpenFlags, reply: ReplyOpen) {
        // What a mapping wrote to the page cache has to go out with a flush; a reader has nothing to flush.
        let flush = if handle.writable { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH };
        let ino = handle.ino;
        match self.open(handle, flags, |file| reply.open_backing(file)) {
            Ok((fh, Way::Cached(keep))) => reply.opened(fh, keep | flush),
            Ok((fh, Way::Through(backing))) => reply.opened_passthrough(fh, FopenFlags::FOPEN_NOFLUSH, &backing),
            Err(error) => reply.error(report("open", ino.0, &error)),
        }
    }

    /// The kernel closed a handle.
    pub fn close(&self, fh: FileHandle) {
        self.remembered.closed(fh);
        if let Some(handle) = self.handles.remove(fh).and_then(|handle| self.passthrough.leave(handle)) {
            crate::fail_point!("release.before");
            self.engine.volume().release(&handle);
            crate::fail_point!("release.after");
        }
    }
}
