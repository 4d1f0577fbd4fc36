//! Which files are open, for the process that comes after a crash.
//!
//! Depends on `tree` for the memory that outlives this process. Invariant: a file is recorded before the kernel has its
//! number, until after the kernel closed it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fuser::FileHandle;

use crate::tree::{Incarnation, OpenFile};
use crate::volume::Handle;

/// See the module.
pub(super) struct Remembered {
    incarnation: Incarnation,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_handle: HashMap<u64, usize>,
    free: Vec<usize>,
    /// The first that was never taken.
    next: usize,
}

impl Remembered {
    pub fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, slots: Mutex::default() }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file was opened under this number.
    pub fn opened(&self, number: FileHandle, handle: &Handle) {
        if self.incarnation.may_be_followed() {
            let file =
                OpenFile { handle: number.0, ino: handle.ino, content: handle.live.id.0, writable: handle.writable };
            let mut slots = self.slots();
            let slot = slots.free.pop().unwrap_or_else(|| {
                slots.next += 1;
                slots.next - 1
            });
            slots.by_handle.insert(number.0, slot);
            self.incarnation.record(slot, file);
        }
    }

    /// The kernel closed it.
    pub fn closed(&self, number: FileHandle) {
        let mut slots = self.slots();
        if let Some(slot) = slots.by_handle.remove(&number.0) {
            self.incarnation.clear(slot);
            slots.free.push(slot);
        }
    }

    /// The files that a process before this one had open, which are forgotten here.
    pub fn take(&self) -> Vec<OpenFile> {
        let files = self.incarnation.open_files();
        files.iter().for_each(|(slot, _)| self.incarnation.clear(*slot));
        files.into_iter().map(|(_, file)| file).collect()
    }
}
