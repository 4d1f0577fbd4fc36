//! Read-ahead over files: a program that opens small files in the order of their directories finds the next ones here.
//!
//! Depends on `volume` and the engine's fetch. Invariants: nothing is fetched ahead before two files in a row were opened in
//! order; what is fetched and not opened yet is bounded in files and bytes per reader; a reader that stops costs no further
//! request; files fetched ahead never take the last connections from a file that somebody waits for, and none is
//! begun when something would have to be evicted for it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Engine;
use crate::tree::Ino;
use crate::volume::{FileAhead, SMALL};

/// Readers that are followed at a time.
const READERS: usize = 8;
/// Files ahead of a reader: at first, and at most.
const FIRST: usize = 4;
const LAST: usize = 128;
/// Bytes ahead of a reader at most.
const BYTES: u64 = 32 << 20;
/// A reader that opened nothing for so long has gone.
const GONE: Duration = Duration::from_secs(30);

/// One program that reads files in order.
#[derive(Debug)]
struct Reader {
    /// Files that it should open next, those fetched ahead with their bytes.
    next: VecDeque<(Ino, u64)>,
    /// How many it opened in order.
    opened: u32,
    /// How many files are kept ahead.
    window: usize,
    last: Instant,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    readers: Mutex<Vec<Reader>>,
    active: AtomicUsize,
    /// Bytes of the files that are being fetched.
    in_flight: AtomicU64,
    fetched: AtomicU64,
    used: AtomicU64,
}

impl ReadAhead {
    fn readers(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes that were fetched ahead, and those of them that nobody opened yet.
    pub fn bytes(&self) -> (u64, u64) {
        let used = self.used.load(Ordering::Relaxed);
        let fetched = self.fetched.load(Ordering::Relaxed);
        (fetched, fetched.saturating_sub(used))
    }

    /// A file was opened. Returns the files to fetch now.
    fn opened(&self, ino: Ino, after: impl Fn(Ino, usize) -> Vec<FileAhead>) -> Vec<FileAhead> {
        let mut readers = self.readers();
        readers.retain(|reader| reader.last.elapsed() < GONE);
        let known = readers.iter().position(|reader| reader.next.iter().any(|(next, _)| *next == ino));
        let mut start = Vec::new();
        match known {
            None => {
                if readers.len() == READERS {
                    readers.remove(0);
                }
                let next = after(ino, 1).into_iter().map(|file| (file.ino, 0)).collect();
                readers.push(Reader { next, opened: 1, window: FIRST, last: Instant::now() });
            }
            Some(at) => {
                // The one used last is the last to go.
                let mut reader = readers.remove(at);
                while let Some((next, bytes)) = reader.next.pop_front() {
                    if next == ino {
                        self.used.fetch_add(bytes, Ordering::Relaxed);
                        break;
                    }
                }
                reader.opened += 1;
                reader.last = Instant::now();
                if reader.next.len() <= reader.window / 2 {
                    start = extend(&mut reader, ino, after);
                }
                readers.push(reader);
            }
        }
        self.active.store(readers.len(), Ordering::Relaxed);
        start
    }
}

fn extend(reader: &mut Reader, ino: Ino, after: impl Fn(Ino, usize) -> Vec<FileAhead>) -> Vec<FileAhead> {
    let frontier = reader.next.back().map_or(ino, |(last, _)| *last);
    let mut bytes: u64 = reader.next.iter().map(|(_, bytes)| bytes).sum();
    let mut start = Vec::new();
    for file in after(frontier, reader.window.saturating_sub(reader.next.len()).max(1)) {
        // A large file is read ahead by its own reader.
        let missing = file.missing.filter(|size| *size <= SMALL);
        if bytes + missing.unwrap_or(0) > BYTES {
            break;
        }
        bytes += missing.unwrap_or(0);
        reader.next.push_back((file.ino, missing.unwrap_or(0)));
        start.extend(missing.map(|_| file));
    }
    reader.window = (reader.window * 2).min(LAST);
    start
}

impl Engine {
    /// A file was opened for reading; `missing`: it was not here.
    pub fn opened_in_order(self: &Arc<Self>, ino: Ino, missing: bool) {
        if !missing && self.read_ahead.active.load(Ordering::Relaxed) == 0 {
            return;
        }
        for file in self.read_ahead.opened(ino, |from, count| self.volume.files_after(from, count)) {
            let engine = Arc::clone(self);
            tokio::spawn(async move { engine.fetch_file_ahead(file).await });
        }
    }

    async fn fetch_file_ahead(self: Arc<Self>, file: FileAhead) {
        let bytes = file.missing.unwrap_or(0);
        let in_flight = self.read_ahead.in_flight.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match self.volume.content_ahead(file.ino, in_flight) {
            // A failure is noted by the fetch, and met again by whoever opens the file.
            Ok(Some(live)) if self.ensure_ahead(&live).await.is_ok() => {
                self.read_ahead.fetched.fetch_add(bytes, Ordering::Relaxed);
            }
            Ok(Some(_)) => {}
            Ok(None) => tracing::debug!("not fetched ahead: there is no room"),
            Err(error) => tracing::debug!(%error, "not fetched ahead"),
        }
        self.read_ahead.in_flight.fetch_sub(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files 1 to 1000 in order, each of so many bytes.
    fn files(size: u64) -> impl Fn(Ino, usize) -> Vec<FileAhead> {
        move |from, count| {
            let after = from.0 + 1..(from.0 + 1 + count as u64).min(1001);
            after.map(|n| FileAhead { ino: Ino(n), missing: Some(size) }).collect()
        }
    }

    fn read(ahead: &ReadAhead, order: impl IntoIterator<Item = u64>, size: u64) -> Vec<u64> {
        order.into_iter().flat_map(|n| ahead.opened(Ino(n), files(size))).map(|file| file.ino.0).collect()
    }

    #[test]
    fn files_opened_in_order_are_fetched_once_each_ahead_of_the_reader() {
        let ahead = ReadAhead::default();
        let fetched = read(&ahead, 1..=1000, 4096);
        assert_eq!(fetched, (3..=1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_reader_without_order_fetches_nothing_ahead() {
        let ahead = ReadAhead::default();
        assert_eq!(read(&ahead, (1..=500).map(|n| (n * 7919) % 1000), 4096), Vec::<u64>::new());
    }

    #[test]
    fn what_is_ahead_of_a_reader_is_bounded() {
        for (size, most) in [(4096, LAST as u64), (1 << 20, BYTES >> 20), (SMALL + 1, 0)] {
            let ahead = ReadAhead::default();
            for n in 1..=500 {
                let last = read(&ahead, [n], size).into_iter().max().unwrap_or(n);
                assert!(last - n <= most, "{size}: {last} is fetched when {n} is opened");
            }
        }
    }

    #[test]
    fn several_readers_are_followed_at_a_time() {
        let ahead = ReadAhead::default();
        let order = (1..=100).flat_map(|n| [n, n + 400]);
        let mut fetched = read(&ahead, order, 4096);
        fetched.sort_unstable();
        let mut expected: Vec<u64> = fetched.clone();
        expected.dedup();
        assert_eq!(fetched, expected, "no file twice");
        assert!((3..=100).chain(403..=500).all(|n| fetched.contains(&n)));
    }
}
