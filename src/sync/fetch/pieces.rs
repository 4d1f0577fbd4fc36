//! A body on its way into the file of a content: in large pieces, because every write has its price, and a large one lets
//! the file system take large folios.
//!
//! Depends on contents. Invariants: a range counts as present only after its bytes were written; whoever waits for bytes does
//! not wait for others to come after them.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::failure::Failure;
use crate::volume::LiveContent;

/// Bytes that are written at a time, unless somebody waits for fewer.
const PIECE: u64 = 512 << 10;
/// Chunks that are written at a time; the kernel takes at most 1 024.
const MOST_CHUNKS: usize = 512;
/// How long bytes wait for others in memory.
pub(super) const LINGER: Duration = Duration::from_millis(5);

/// Bytes that have come and are not written yet.
pub(super) struct Piece<'a> {
    live: &'a LiveContent,
    round: u64,
    range: Range<u64>,
    chunks: Vec<Bytes>,
}

impl<'a> Piece<'a> {
    /// Of a body that begins at an offset of the content, and belongs to a round.
    pub fn at(live: &'a LiveContent, start: u64, round: u64) -> Self {
        Self { live, round, range: start..start, chunks: Vec::new() }
    }

    /// Whether nothing waits to be written.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Up to where bytes have come.
    pub fn end(&self) -> u64 {
        self.range.end
    }

    /// The next bytes of the body. `true`: they are to be written now.
    pub fn push(&mut self, chunk: Bytes) -> bool {
        self.range.end += chunk.len() as u64;
        self.chunks.push(chunk);
        self.range.end - self.range.start >= PIECE
            || self.chunks.len() >= MOST_CHUNKS
            || self.live.fetch.ends_a_wait(&self.range)
    }

    /// Writes what has come, and wakes those who have all of theirs. Returns how many bytes that were.
    ///
    /// # Errors
    /// Disk errors, and when the round was forgotten; then none of them count as present.
    pub fn write(&mut self) -> Result<u64, Failure> {
        let bytes = self.range.end - self.range.start;
        if bytes == 0 {
            return Ok(0);
        }
        write_at(&self.live.file, &self.chunks, self.range.start).map_err(|error| {
            let reason = format!("cannot write to the cache: {error}");
            if crate::cache::is_no_space(&error) { Failure::NoRoom(reason) } else { Failure::Failed(reason) }
        })?;
        self.chunks.clear();
        if !self.live.fetch.arrived(self.range.clone(), self.round) {
            return Err(Failure::Forgotten);
        }
        self.range.start = self.range.end;
        Ok(bytes)
    }
}

fn write_at(file: &std::fs::File, chunks: &[Bytes], mut at: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk)).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match rustix::io::pwritev(file, left, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                IoSlice::advance_slices(&mut left, written);
                at += written as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_lie_one_after_another_and_empty_ones_are_no_matter() {
        let file = tempfile::tempfile().unwrap();
        let chunks: Vec<Bytes> =
            ["", "one", "", "two", "three", ""].map(|text| Bytes::from_static(text.as_bytes())).into();
        write_at(&file, &chunks, 4).unwrap();
        let mut found = [0; 15];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0).unwrap();
        assert_eq!(&found, b"\0\0\0\0onetwothree");
        write_at(&file, &[], 0).unwrap();
    }
}
