//! How a file is read: the patterns of the readers of one handle, and what they will want next.
//!
//! Depends on nothing. Invariants: what is wanted ahead grows with a reader that keeps to its pattern, up to a fixed number of
//! bytes, and is nothing for one without a pattern; a few readers of one handle are told apart.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Bytes ahead of a sequential reader: at first, and at most. Also how far a read may be off: the kernel's own read-ahead
/// arrives slightly out of order.
const FIRST_WINDOW: u64 = 1 << 20;
const LAST_WINDOW: u64 = 64 << 20;
/// By what it grows each time: every step costs a reader of a far bucket a round trip.
const GROWTH: u64 = 4;
/// What is fetched at least for a read that is not sequential.
const BLOCK: u64 = 128 << 10;
/// Reads ahead of a strided reader at most.
const STRIDES: u64 = 16;
/// Readers of one handle that are told apart.
const READERS: usize = 4;

#[derive(Clone, Copy, Debug, Default)]
struct Reader {
    /// Its last read.
    start: u64,
    end: u64,
    /// Bytes ahead of it; zero unless it reads sequentially.
    window: u64,
    /// Up to where it was asked for.
    asked: u64,
    /// How far apart its last reads began, and how often that came again.
    stride: i64,
    strides: u64,
    /// The larger, the later it read; zero before its first read.
    used: u64,
}

/// What a read should bring here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// With the read itself, which it contains.
    pub now: Range<u64>,
    /// What the reader is going to want and was not asked for yet, soonest first.
    pub ahead: Vec<Range<u64>>,
}

/// The readers of a handle; none before the first read of a file that is not all here.
#[derive(Debug, Default)]
pub struct Pattern(Mutex<Option<Box<[Reader; READERS]>>>);

impl Pattern {
    /// Notes a read, and says what it should bring here.
    pub fn read(&self, range: &Range<u64>) -> Wanted {
        let mut guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let readers = guard.get_or_insert_default();
        let used = readers.iter().map(|reader| reader.used).max().unwrap_or(0) + 1;
        let (start, end) = (range.start, range.end);
        // A reader that was never used stands at the beginning of the file.
        if let Some(reader) = readers.iter_mut().find(|reader| start.abs_diff(reader.end) <= FIRST_WINDOW) {
            let mut ahead = Vec::new();
            // Not with every read: what is asked for then would be many small requests.
            if end.saturating_add(reader.window / 2) >= reader.asked {
                reader.window = (reader.window * GROWTH).clamp(FIRST_WINDOW, LAST_WINDOW);
                let upto = end.saturating_add(reader.window);
                reader.asked = upto.checked_next_multiple_of(BLOCK).unwrap_or(upto);
                ahead.push(start..reader.asked);
            }
            *reader = Reader { start, end, used, window: reader.window, asked: reader.asked, ..Reader::default() };
            return Wanted { now: blocks(range), ahead };
        }
        let apart = |reader: &Reader| start.wrapping_sub(reader.start).cast_signed();
        let now = blocks(range);
        if let Some(reader) = readers.iter_mut().find(|reader| reader.stride != 0 && apart(reader) == reader.stride) {
            *reader = Reader { start, end, used, strides: reader.strides + 1, ..*reader };
            let (stride, most) = (reader.stride, (reader.strides * 2).min(STRIDES).cast_signed());
            let ahead = (1..=most).map_while(|step| {
                let by = stride.checked_mul(step)?;
                Some(blocks(&(start.checked_add_signed(by)?..end.checked_add_signed(by)?)))
            });
            return Wanted { now, ahead: ahead.collect() };
        }
        // Somebody new, or the second of two reads that tell a stride. Those without a pattern give way first.
        let has_pattern = |reader: &Reader| reader.window > 0 || reader.strides > 0;
        let before = readers.iter().filter(|reader| reader.used > 0 && !has_pattern(reader)).max_by_key(|r| r.used);
        let stride = before.map_or(0, apart);
        if let Some(reader) = readers.iter_mut().min_by_key(|reader| (has_pattern(reader), reader.used)) {
            *reader = Reader { start, end, stride, used, ..Reader::default() };
        }
        Wanted { now, ahead: Vec::new() }
    }
}

/// The whole blocks that a read lies in, up to its own end if that is further.
fn blocks(range: &Range<u64>) -> Range<u64> {
    let start = range.start - range.start % BLOCK;
    start..range.end.max(start.saturating_add(BLOCK))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// The ranges wanted ahead by reads of 4 KiB at these places, one after another.
    fn ahead(pattern: &Pattern, starts: impl IntoIterator<Item = u64>) -> Vec<Vec<Range<u64>>> {
        starts.into_iter().map(|start| pattern.read(&(start..start + 4096)).ahead).collect()
    }

    #[test]
    fn a_sequential_reader_is_read_ahead_of_more_and_more() {
        let pattern = Pattern::default();
        let (mut asked, mut pieces) = (0, Vec::new());
        for number in 0..4000 {
            let start = number * 128 * 1024;
            let wanted = pattern.read(&(start..start + 128 * 1024));
            assert!(wanted.now.start == start && wanted.now.end == start + 128 * 1024, "{wanted:?}");
            for piece in &wanted.ahead {
                assert!(piece.end - start <= LAST_WINDOW + 256 * 1024, "{wanted:?}");
                pieces.push(piece.end - asked);
                asked = piece.end;
            }
            assert!(asked >= start + 512 * 1024, "{number}: {asked}");
        }
        assert!(pieces[..4].is_sorted(), "{pieces:?}");
        assert!(pieces.len() < 32 && *pieces.last().unwrap() >= LAST_WINDOW / 2, "few and large: {pieces:?}");
    }

    #[test]
    fn a_strided_reader_finds_its_next_reads_here_forwards_and_backwards() {
        for stride in [7 * MIB.cast_signed(), -5 * MIB.cast_signed()] {
            let pattern = Pattern::default();
            let first = 1000 * MIB;
            let starts = (0..100).map(|step| first.checked_add_signed(stride * step).unwrap());
            let all = ahead(&pattern, starts.clone());
            assert_eq!(all[..2], [vec![], vec![]], "one stride is none");
            for (step, (start, wanted)) in starts.zip(&all).enumerate().skip(2) {
                let next = start.checked_add_signed(stride).unwrap();
                assert!(wanted[0].contains(&next) && wanted[0].end >= next + 4096, "{step}: {wanted:?}");
                assert!(wanted.len() as u64 <= STRIDES);
            }
            assert_eq!(all[99].len() as u64, STRIDES);
        }
    }

    #[test]
    fn reads_without_a_pattern_bring_their_blocks_and_nothing_else() {
        let pattern = Pattern::default();
        for number in 1..500u64 {
            let start = (number * number * 7919 % 100_003) * 3 * MIB + 2 * MIB + number;
            let wanted = pattern.read(&(start..start + 4096));
            assert_eq!(wanted.ahead, Vec::<Range<u64>>::new(), "{number}");
            assert!(wanted.now.start <= start && wanted.now.end >= start + 4096);
            assert!(wanted.now.end - wanted.now.start <= BLOCK + 4096);
        }
    }

    #[test]
    fn readers_of_one_handle_do_not_disturb_each_other() {
        let pattern = Pattern::default();
        // Three places of a file that are read on in turn.
        let mut asked = [0; 3];
        for number in 0..200 {
            for place in [0, 1 << 30, 2 << 30] {
                let start = place + number * 128 * 1024;
                let wanted = pattern.read(&(start..start + 128 * 1024));
                let frontier = &mut asked[(place >> 30) as usize];
                *frontier = wanted.ahead.iter().map(|piece| piece.end).max().unwrap_or(*frontier);
                assert!(number < 2 || *frontier >= start + 256 * 1024, "{place} {number}: {wanted:?}");
            }
        }
    }

    #[test]
    fn places_at_the_end_of_all_numbers_are_no_matter() {
        let pattern = Pattern::default();
        for start in [u64::MAX - 4096, 0, u64::MAX - 4096, u64::MAX / 2, 1, u64::MAX - 4096] {
            let wanted = pattern.read(&(start..start + 4096));
            assert!(wanted.now.start <= start && wanted.now.end >= start + 4096, "{wanted:?}");
        }
    }
}
