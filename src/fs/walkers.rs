//! Who lists directories, and whether they look at the attributes of what they find: `find -type f` does not, `ls -l` does.
//!
//! Attributes that come with a listing save a request per file and cost the kernel an inode for each. Depends on nothing.
//! Invariant: a guess only; whatever is guessed wrong is asked for.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::tree::Ino;

/// Processes that are followed.
const FOLLOWED: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// A process.
#[derive(Clone, Copy, Debug, Default)]
struct Walker {
    /// It did, or did not, look at the attributes of files.
    looks: Option<bool>,
    /// How many directories it listed.
    listed: u32,
    /// The last of them whose files were listed without attributes.
    bare: Option<Ino>,
}

#[derive(Debug)]
struct State {
    walkers: LruCache<u32, Walker>,
    /// What the last one that was found out about did.
    last: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Walkers(Mutex<State>);

impl Default for Walkers {
    fn default() -> Self {
        Self(Mutex::new(State { walkers: LruCache::new(FOLLOWED), last: false }))
    }
}

impl Walkers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a process will ask for the attributes of every file that it finds. Its first directory is listed as the last
    /// process would have it, the next one tells.
    pub fn looks(&self, process: u32) -> bool {
        let mut state = self.lock();
        let last = state.last;
        let Some(walker) = state.walkers.get(&process) else { return last };
        walker.looks.unwrap_or(walker.listed == 0 && last)
    }

    /// A process opens a directory: in the one before it asked for nothing, if it could have.
    pub fn opens(&self, process: u32) {
        let mut state = self.lock();
        let walker = state.walkers.get_or_insert_mut(process, Walker::default);
        if walker.bare.take().is_some() && walker.looks.is_none() {
            walker.looks = Some(false);
            state.last = false;
        }
    }

    /// A process was sent names from the beginning; `bare`: those of files without attributes.
    pub fn listed(&self, process: u32, dir: Ino, bare: bool) {
        let mut state = self.lock();
        let walker = state.walkers.get_or_insert_mut(process, Walker::default);
        walker.listed = walker.listed.saturating_add(1);
        walker.bare = bare.then_some(dir);
    }

    /// A process asks for a file that is in a directory.
    pub fn asks(&self, process: u32, dir: Ino) {
        let mut state = self.lock();
        if let Some(walker) = state.walkers.peek_mut(&process).filter(|walker| walker.bare == Some(dir)) {
            *walker = Walker { looks: Some(true), bare: None, ..*walker };
            state.last = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists directories one after another, and asks for a file of each; how many came without attributes.
    fn walk(walkers: &Walkers, process: u32, dirs: u64, asks: bool) -> usize {
        let list = |dir: u64| {
            walkers.opens(process);
            let bare = !walkers.looks(process);
            walkers.listed(process, Ino(dir), bare);
            if asks && bare {
                walkers.asks(process, Ino(dir));
            }
            bare
        };
        (1..=dirs).filter(|dir| list(*dir)).count()
    }

    #[test]
    fn whoever_asks_for_attributes_gets_them_with_all_directories_but_one() {
        let walkers = Walkers::default();
        assert_eq!(walk(&walkers, 1, 100, true), 1);
        assert_eq!(walk(&walkers, 2, 100, true), 1, "the second one tells");
        assert_eq!(walk(&walkers, 3, 1, true), 0, "a process that lists one directory is taken for the last one");
    }

    #[test]
    fn whoever_does_not_ask_gets_names_alone() {
        let walkers = Walkers::default();
        walk(&walkers, 1, 3, true);
        assert_eq!(walk(&walkers, 2, 100, false), 99);
        assert_eq!(walk(&walkers, 3, 100, false), 100);
    }
}
