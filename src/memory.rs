//! What the allocator holds for later: given back to the system when much of it is not needed any more.
//!
//! Depends on nothing. Reading an index takes several times what it leaves behind.

/// Gives back what is free; takes some milliseconds.
pub fn give_back() {
    // SAFETY: only looks at and shrinks the free lists of the allocator, with its own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
