//! The SHA-256 of a content while it arrives: of all bytes from its beginning on that are here.
//!
//! Depends on nothing. Invariants: a byte is hashed once and in order; what was forgotten and comes anew is hashed anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// Bytes read at a time.
const BLOCK: u64 = 256 << 10;

#[derive(Debug, Default)]
struct Prefix {
    hasher: Sha256,
    upto: u64,
    /// Which fetching of the content the bytes belong to.
    round: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct HashedPrefix(Mutex<Prefix>);

impl HashedPrefix {
    /// Hashes on up to a byte, unless somebody is at it (blocking). `round`: counts how often all bytes were forgotten.
    ///
    /// # Errors
    /// When the file cannot be read that far.
    pub fn advance(&self, file: &File, upto: u64, round: u64) -> io::Result<()> {
        match self.0.try_lock() {
            Ok(mut prefix) => prefix.advance(file, upto, round),
            Err(_) => Ok(()),
        }
    }

    /// The hash of all `size` bytes (blocking).
    ///
    /// # Errors
    /// When the file cannot be read that far.
    pub fn finish(&self, file: &File, size: u64, round: u64) -> io::Result<[u8; 32]> {
        let mut prefix = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if prefix.upto > size {
            *prefix = Prefix { round, ..Prefix::default() };
        }
        prefix.advance(file, size, round)?;
        Ok(std::mem::take(&mut *prefix).hasher.finalize().into())
    }
}

impl Prefix {
    fn advance(&mut self, file: &File, upto: u64, round: u64) -> io::Result<()> {
        if self.round != round {
            *self = Self { round, ..Self::default() };
        }
        let mut block = vec![0; usize::try_from(BLOCK.min(upto.saturating_sub(self.upto))).unwrap_or(0)];
        while self.upto < upto {
            let length = usize::try_from(BLOCK.min(upto - self.upto)).unwrap_or(block.len());
            file.read_exact_at(&mut block[..length], self.upto)?;
            self.hasher.update(&block[..length]);
            self.upto += length as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_whatever_steps_the_hash_is_that_of_all_bytes() {
        let bytes: Vec<u8> = (0..300_000u64).flat_map(u64::to_le_bytes).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        let size = bytes.len() as u64;
        let expected: [u8; 32] = Sha256::digest(&bytes).into();
        for steps in [vec![], vec![0, 1, BLOCK, BLOCK + 1], vec![size / 2, 3, size], vec![size]] {
            let hashed = HashedPrefix::default();
            for upto in &steps {
                hashed.advance(&file, *upto, 0).unwrap();
            }
            assert_eq!(hashed.finish(&file, size, 0).unwrap(), expected, "{steps:?}");
        }
    }

    #[test]
    fn bytes_that_were_forgotten_do_not_count() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"wrong bytes", 0).unwrap();
        let hashed = HashedPrefix::default();
        hashed.advance(&file, 11, 0).unwrap();
        file.write_all_at(b"right bytes", 0).unwrap();
        let expected: [u8; 32] = Sha256::digest(b"right bytes").into();
        assert_eq!(hashed.finish(&file, 11, 1).unwrap(), expected);
        // Shorter than what was hashed.
        hashed.advance(&file, 11, 1).unwrap();
        let expected: [u8; 32] = Sha256::digest(b"right").into();
        assert_eq!(hashed.finish(&file, 5, 1).unwrap(), expected);
        assert!(hashed.finish(&file, 12, 1).is_err(), "there are not so many bytes");
    }
}
