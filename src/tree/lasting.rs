//! What the next process on a mount needs to know of the numbers that the kernel has from this one.
//!
//! Plain memory that outlives the process, as words that are each written at once: which directories the kernel knows, as a
//! log, and which files are open, as a table. Costs no disk and a few instructions. Invariants: a record counts from the
//! moment its last word is written; what does not fit is not recorded, and is stale for the next process; a record that may
//! have become false is taken back before it does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Ino;

/// The words before the table: the highest generation, and the length of the log.
const GENERATION: usize = 0;
const LENGTH: usize = 1;
const HEADER: usize = 8;

/// Words of an open file: its handle, its inode, its content and whether it is writable.
const FILE: usize = 3;
/// Open files that are recorded at most.
const FILES: usize = 1 << 16;

/// Directories fill the rest. A length that says that there were too many.
const LOST: u64 = u64::MAX;

/// Words of memory that a mount needs; what is never written takes no memory.
pub const WORDS: usize = HEADER + FILE * FILES + (1 << 23);

/// Which process of a mount this is. One may follow another on the same mount, and no inode number means two things there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Incarnation {
    /// How many came before.
    pub number: u32,
    /// What outlives the process: at least [`WORDS`], at first zero. None: no other process follows.
    pub memory: Option<&'static [AtomicU64]>,
}

/// A file that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// The number that the kernel has for it.
    pub handle: u64,
    /// The inode.
    pub ino: Ino,
    /// The content, which has no other inode as long as it exists.
    pub content: u64,
    /// Opened for writing.
    pub writable: bool,
}

impl Incarnation {
    /// Whether another process may follow.
    pub fn may_be_followed(self) -> bool {
        self.memory.is_some()
    }

    /// The first generation that no process before this one used.
    pub(super) fn first_generation(self) -> u32 {
        let Some(memory) = self.memory.filter(|_| self.number > 0) else { return 0 };
        let first = memory[GENERATION].load(Ordering::Relaxed).saturating_add(1);
        memory[GENERATION].store(first, Ordering::Relaxed);
        u32::try_from(first).unwrap_or(u32::MAX)
    }

    /// A generation is in use.
    pub(super) fn uses(self, generation: u32) {
        if let Some(memory) = self.memory {
            memory[GENERATION].fetch_max(u64::from(generation), Ordering::Relaxed);
        }
    }

    /// Records an open file in a slot that is free, if that is one.
    pub fn record(self, slot: usize, file: OpenFile) {
        if let Some(words) = self.slot(slot) {
            words[1].store(file.ino.0, Ordering::Relaxed);
            words[2].store(file.content << 1 | u64::from(file.writable), Ordering::Relaxed);
            words[0].store(file.handle, Ordering::Release);
        }
    }

    /// Frees a slot.
    pub fn clear(self, slot: usize) {
        if let Some(words) = self.slot(slot) {
            words[0].store(0, Ordering::Release);
        }
    }

    fn slot(self, slot: usize) -> Option<&'static [AtomicU64]> {
        let at = HEADER + FILE * slot;
        self.memory.filter(|_| slot < FILES).map(|memory| &memory[at..at + FILE])
    }

    /// The open files of the processes before this one, with their slots.
    pub fn open_files(self) -> Vec<(usize, OpenFile)> {
        let read = |slot| {
            let words = self.slot(slot)?;
            let handle = words[0].load(Ordering::Acquire);
            let content = words[2].load(Ordering::Relaxed);
            let ino = Ino(words[1].load(Ordering::Relaxed));
            (handle != 0).then_some((slot, OpenFile { handle, ino, content: content >> 1, writable: content & 1 == 1 }))
        };
        // Slots are taken from below, but any may have become free.
        if self.number == 0 { Vec::new() } else { (0..FILES).filter_map(read).collect() }
    }

    /// Records the name of a directory that the kernel knows; without one, that it has none which counts.
    pub(super) fn name_directory(self, ino: Ino, name: Option<(Ino, &str)>) {
        let Some((length, log)) = self.log() else { return };
        let at = length.load(Ordering::Relaxed);
        let (parent, name) = name.map_or((0, ""), |(parent, name)| (parent.0, name));
        let words = 3 + name.len().div_ceil(8);
        let free = usize::try_from(at).ok().and_then(|at| log.get(at..at.checked_add(words)?));
        let Some(record) = free else {
            // Those that are recorded may move, and must not be found at their old places then.
            return length.store(LOST, Ordering::Release);
        };
        record[0].store(ino.0, Ordering::Relaxed);
        record[1].store(parent, Ordering::Relaxed);
        record[2].store(name.len() as u64, Ordering::Relaxed);
        for (word, part) in record[3..].iter().zip(name.as_bytes().chunks(8)) {
            let mut bytes = [0; 8];
            bytes[..part.len()].copy_from_slice(part);
            word.store(u64::from_ne_bytes(bytes), Ordering::Relaxed);
        }
        length.store(at + words as u64, Ordering::Release);
    }

    /// The length of the log, and the log.
    fn log(self) -> Option<(&'static AtomicU64, &'static [AtomicU64])> {
        let memory = self.memory?;
        Some((&memory[LENGTH], &memory[HEADER + FILE * FILES..]))
    }

    /// The directories that the kernel knows, each with its parent and name; the log begins anew.
    pub(super) fn take_directories(self) -> HashMap<Ino, (Ino, String)> {
        let mut found = HashMap::new();
        let Some((length, log)) = self.log() else { return found };
        let end = length.swap(0, Ordering::Acquire);
        let mut rest = usize::try_from(end).ok().and_then(|end| log.get(..end)).unwrap_or_default();
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        while let [ino, parent, size, after @ ..] = rest {
            let size = usize::try_from(load(size)).unwrap_or(usize::MAX);
            let Some((words, next)) = after.split_at_checked(size.div_ceil(8)) else { break };
            let mut name: Vec<u8> = words.iter().flat_map(|word| load(word).to_ne_bytes()).collect();
            name.truncate(size);
            match (load(parent), String::from_utf8(name)) {
                (1.., Ok(name)) => found.insert(Ino(load(ino)), (Ino(load(parent)), name)),
                _ => found.remove(&Ino(load(ino))),
            };
            rest = next;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::ROOT;

    fn memory() -> &'static [AtomicU64] {
        Box::leak((0..WORDS).map(|_| AtomicU64::new(0)).collect())
    }

    #[test]
    fn what_one_process_records_the_next_one_finds() {
        let memory = Some(memory());
        let (first, next) = (Incarnation { number: 0, memory }, Incarnation { number: 1, memory });
        let name = |n: usize| "ä".repeat(n);
        for n in 0..20usize {
            first.name_directory(Ino(100 + n as u64), Some((ROOT, &name(n))));
        }
        first.name_directory(Ino(103), Some((Ino(104), "moved")));
        first.name_directory(Ino(105), None);
        let found = next.take_directories();
        assert_eq!(found.len(), 19);
        assert_eq!(found[&Ino(103)], (Ino(104), "moved".to_owned()));
        assert_eq!(found[&Ino(119)], (ROOT, name(19)));
        assert!(!found.contains_key(&Ino(105)));
        assert!(next.take_directories().is_empty(), "it began anew");

        let file = |handle, writable| OpenFile { handle, ino: Ino(handle * 7), content: handle * 9, writable };
        first.record(0, file(1, false));
        first.record(3, file(2, true));
        first.record(5, file(3, true));
        first.clear(0);
        first.record(FILES, file(4, false));
        assert_eq!(next.open_files(), [(3, file(2, true)), (5, file(3, true))]);
        assert!(first.open_files().is_empty(), "they are its own");
    }

    #[test]
    fn what_does_not_fit_is_lost_and_never_wrong() {
        let memory = Some(memory());
        let (first, next) = (Incarnation { number: 0, memory }, Incarnation { number: 1, memory });
        let name = "x".repeat(255);
        for n in 1..=(1 << 23) / 35 + 1 {
            first.name_directory(Ino(n), Some((ROOT, &name)));
        }
        first.name_directory(Ino(1), None);
        assert!(next.take_directories().is_empty());
    }
}
