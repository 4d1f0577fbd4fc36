//! Where an object lies below the root: under its own name wherever a file system can have one like that.
//!
//! Pure functions. Invariants: a plain path never leaves the root nor enters the private directory; keys that cannot be
//! paths (`a//b`, `../x`, `a/`, components over 255 bytes) have a place of their own among the *odd* objects, and so has an
//! object whose path is taken by a directory or leads through a file (`a` beside `a/b`).

use sha2::{Digest, Sha256};

/// The directory below the root that is ours; never listed.
pub(super) const PRIVATE: &str = ".swamp-dir-store";
/// Objects on their way in.
pub(super) const TEMPORARY: &str = ".swamp-dir-store/tmp";
/// Objects that cannot lie under their own name: `<hash>` the content, `<hash>.key` the key.
pub(super) const ODD: &str = ".swamp-dir-store/odd";
/// User metadata where the file system has no extended attributes.
pub(super) const METADATA: &str = ".swamp-dir-store/meta";
/// Held while a precondition is checked and the object replaced.
pub(super) const LOCK: &str = ".swamp-dir-store/lock";

/// Longest component of a path.
const NAME_MAX: usize = 255;
/// Longest path, with room for the kernel's own limit of 4096.
const PATH_MAX: usize = 4000;

/// The path of a full key, if it can be one.
pub(super) fn plain(key: &str) -> Option<&str> {
    let fits = key.len() <= PATH_MAX
        && key
            .split('/')
            .all(|name| !matches!(name, "" | "." | "..") && name.len() <= NAME_MAX && !name.contains('\0'))
        && key.split('/').next() != Some(PRIVATE);
    fits.then_some(key)
}

/// The path of an odd object's content.
pub(super) fn odd(key: &str) -> String {
    use std::fmt::Write as _;
    let mut path = format!("{ODD}/");
    for byte in Sha256::digest(key.as_bytes()) {
        // Writing to a string cannot fail.
        let _ = write!(path, "{byte:02x}");
    }
    path
}

/// The path of an odd object's key.
pub(super) fn odd_key(content: &str) -> String {
    format!("{content}.key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_are_harmless_paths_are_plain() {
        let long = "x".repeat(256);
        for odd in ["", "/", "/a", "a/", "a//b", ".", "a/../b", "..", "./a", "a\0", ".swamp-dir-store/tmp/x", &long] {
            assert_eq!(plain(odd), None, "{odd:?}");
        }
        for ordinary in ["a", "a/b c", "100%", "é/ü", ".hidden", "...", "a/.swamp-dir-store", "\u{1}\n", "a\\b"] {
            assert_eq!(plain(ordinary), Some(ordinary));
        }
    }
}
