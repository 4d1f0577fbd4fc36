//! When a content was written: tells bytes that stood still from bytes that did not, without a lock on the way of a write.
//!
//! Depends on `primitives` only, so that `tests/interleavings` can compile it with others and run through the orders in which
//! writers and a push can meet. Invariants: bytes that were read between [`Writes::stable`] and a later
//! [`Writes::unchanged_since`] are those of one moment; a content that is not dirty has the bytes that were last carried away.

use crate::primitives::{AtomicBool, AtomicU64, Ordering};

/// See the module.
#[derive(Debug, Default)]
pub struct Writes {
    begun: AtomicU64,
    ended: AtomicU64,
    dirty: AtomicBool,
}

/// Proof of a moment in which nobody was writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stable(u64);

impl Writes {
    /// Runs a change of the bytes.
    pub fn during<T>(&self, change: impl FnOnce() -> T) -> T {
        self.begun.fetch_add(1, Ordering::SeqCst);
        self.dirty.store(true, Ordering::SeqCst);
        let result = change();
        self.ended.fetch_add(1, Ordering::SeqCst);
        result
    }

    /// Whether there were any.
    pub fn any(&self) -> bool {
        self.begun.load(Ordering::SeqCst) > 0
    }

    /// A point in time without a write under way; `None` while there is one.
    pub fn stable(&self) -> Option<Stable> {
        let ended = self.ended.load(Ordering::SeqCst);
        (self.begun.load(Ordering::SeqCst) == ended).then_some(Stable(ended))
    }

    /// Whether nothing was written since.
    pub fn unchanged_since(&self, stable: Stable) -> bool {
        self.begun.load(Ordering::SeqCst) == stable.0
    }

    /// Whether anything was written that was not carried away.
    pub fn are_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    /// The bytes of `stable` were carried away. Returns whether they still are all there is. `look` counts the writes that
    /// nobody told of.
    pub fn clean_if_unchanged(&self, stable: Stable, look: impl FnOnce()) -> bool {
        let was = self.dirty.swap(false, Ordering::SeqCst);
        // A write that begins after the swap sets the flag again by itself; one that began before is seen here.
        look();
        if self.unchanged_since(stable) {
            return true;
        }
        self.dirty.fetch_or(was, Ordering::SeqCst);
        false
    }
}
