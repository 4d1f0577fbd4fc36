//! Files that are read without being opened: on a mount that is read-only for good the kernel asks for no handles.
//!
//! Depends on `volume`. Invariants: the files that were read last are held open here, so that their bytes stay and are of one
//! version; a file is let go of when others were read since, or when the kernel forgets it; nothing is released with the
//! lock held.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::tree::Ino;
use crate::volume::{Handle, Volume};

/// How many files are held open. Each takes a descriptor, and cannot be evicted.
const HELD: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// See the module.
pub(super) struct Unopened {
    held: Mutex<LruCache<Ino, Arc<Handle>>>,
    volume: Arc<Volume>,
}

impl Unopened {
    pub fn new(volume: &Arc<Volume>) -> Self {
        Self { held: Mutex::new(LruCache::new(HELD)), volume: Arc::clone(volume) }
    }

    fn held(&self) -> MutexGuard<'_, LruCache<Ino, Arc<Handle>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle of a file that was read lately.
    pub fn get(&self, ino: Ino) -> Option<Arc<Handle>> {
        self.held().get(&ino).cloned()
    }

    /// Holds a file open; another reader may have been faster, then its handle counts.
    pub fn hold(&self, handle: Handle) -> Arc<Handle> {
        let handle = Arc::new(handle);
        let (counts, released) = {
            let mut held = self.held();
            match held.get(&handle.ino) {
                Some(known) => (Arc::clone(known), Some(handle)),
                None => (Arc::clone(&handle), held.push(handle.ino, handle).map(|(_, oldest)| oldest)),
            }
        };
        if let Some(released) = released {
            self.volume.release(&released);
        }
        counts
    }

    /// The kernel forgot a file, or it turned out not to be readable.
    pub fn let_go(&self, ino: Ino) {
        let handle = self.held().pop(&ino);
        if let Some(handle) = handle {
            self.volume.release(&handle);
        }
    }
}
