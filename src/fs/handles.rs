//! File handles: numbers that the kernel holds for open files and directories.
//!
//! Invariant: a number is never used twice.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use fuser::{Errno, FileHandle};

/// Said of a handle that nobody here gave out: a process did that crashed since. The file must be opened again.
pub(super) const UNKNOWN_HANDLE: Errno = Errno::ESTALE;

/// Open handles by number.
pub(super) struct Table<T> {
    open: RwLock<HashMap<u64, Arc<T>>>,
    next: AtomicU64,
}

impl<T> Table<T> {
    /// A table whose numbers begin with this one.
    pub fn from(first: u64) -> Self {
        Self { open: RwLock::default(), next: AtomicU64::new(first) }
    }

    pub fn insert(&self, value: Arc<T>) -> FileHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, value);
        FileHandle(number)
    }

    /// Under a number that a process before this one gave out.
    pub fn insert_again(&self, number: u64, value: T) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(value));
    }

    pub fn get(&self, handle: FileHandle) -> Option<Arc<T>> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&handle.0).cloned()
    }

    pub fn remove(&self, handle: FileHandle) -> Option<Arc<T>> {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0)
    }
}
