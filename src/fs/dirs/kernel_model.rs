//! The kernel's memory of a directory, as Linux 6.18 keeps it (fs/fuse/readdir.c), against the decisions made here: whatever
//! the order of changes, notifications, opens, requests and answers, a directory that is opened when all of it is over shows
//! the names of its last version and no others.

use proptest::prelude::*;

use super::*;

/// Names of a directory, in answers of two.
const NAMES: u64 = 6;
const DIR: Ino = Ino(7);

/// What the kernel keeps: of each name the version that it came from; `None` where the page was dropped.
#[derive(Clone, Debug, Default)]
struct Memory {
    names: Vec<Option<u64>>,
    /// All of them are here.
    complete: bool,
    /// Where what is kept ends.
    end: u64,
    /// Counts how often all was thrown away.
    resets: u64,
    /// Local changes that were seen when it began to be filled.
    began: u64,
}

/// An answer on its way to the kernel.
#[derive(Clone, Debug)]
struct Answer {
    offset: u64,
    version: u64,
    count: u64,
}

struct Handle {
    listing: Listing,
    position: u64,
    resets: u64,
    /// The version of each name that the program got.
    got: Vec<u64>,
    answer: Option<Answer>,
    snapshot: Option<u64>,
    over: bool,
}

#[derive(Default)]
struct World {
    directories: Directories,
    memory: Memory,
    /// The directory's version, and how many of its changes the kernel made itself.
    version: u64,
    local: u64,
    /// A notification is on its way.
    told: bool,
    handles: Vec<Handle>,
}

#[derive(Clone, Debug)]
enum Step {
    ChangeHere,
    ChangeElsewhere,
    Tell,
    Open,
    /// One request or look into the kernel's memory of an open directory, or the arrival of its answer.
    Go(usize),
    Close(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => Just(Step::ChangeHere),
        3 => Just(Step::ChangeElsewhere),
        3 => Just(Step::Tell),
        4 => Just(Step::Open),
        10 => (0usize..2).prop_map(Step::Go),
        3 => (0usize..2).prop_map(Step::Close),
    ];
    proptest::collection::vec(step, 1..60)
}

impl World {
    fn drop_pages(&mut self) {
        self.memory.names.iter_mut().for_each(|name| *name = None);
    }

    fn reset(&mut self) {
        let resets = self.memory.resets + 1;
        self.memory = Memory { resets, ..Memory::default() };
    }

    fn open(&mut self) -> Handle {
        let (listing, flags) = self.directories.open(DIR, self.version, false);
        if !flags.contains(FopenFlags::FOPEN_KEEP_CACHE) {
            self.drop_pages();
        }
        Handle {
            listing,
            position: 0,
            resets: self.memory.resets,
            got: Vec::new(),
            answer: None,
            snapshot: None,
            over: false,
        }
    }

    /// fuse_readdir: from memory if possible, else a request.
    fn read(&mut self, handle: &mut Handle) {
        loop {
            if handle.position == 0 {
                handle.resets = self.memory.resets;
            }
            if !self.memory.complete || (handle.position > 0 && handle.resets != self.memory.resets) {
                if handle.position == 0 && self.memory.end == 0 {
                    self.memory.began = self.local;
                }
                return self.request(handle);
            }
            if handle.position == 0 && self.memory.began != self.local {
                self.reset();
                continue;
            }
            match self.memory.names.get(usize::try_from(handle.position).unwrap()) {
                None => return handle.over = true,
                Some(Some(version)) => {
                    handle.got.push(*version);
                    handle.position += 1;
                    return;
                }
                Some(None) => self.reset(),
            }
        }
    }

    /// The server's side of a request, until the answer leaves.
    fn request(&mut self, handle: &mut Handle) {
        let first = handle.snapshot.is_none();
        if first || (handle.position == 0 && handle.snapshot != Some(self.version)) {
            handle.snapshot = Some(self.version);
            self.directories.sends(DIR, &handle.listing, first, self.version, handle.position);
            handle.listing.lock().snapshot = Some(DirListing::default());
        }
        let (offset, count) = (handle.position, (NAMES - handle.position).min(2));
        handle.answer = Some(Answer { offset, version: handle.snapshot.unwrap(), count });
    }

    /// The kernel takes an answer: for the program, and to keep it.
    fn take(&mut self, handle: &mut Handle, answer: &Answer) {
        for at in answer.offset..answer.offset + answer.count {
            handle.got.push(answer.version);
            if !self.memory.complete && self.memory.end == at {
                // Into a page that is there, or a new one at its beginning: of two names each.
                let page_is_there = at % 2 == 0 || self.memory.names.last().is_some_and(Option::is_some);
                if page_is_there {
                    self.memory.names.push(Some(answer.version));
                    self.memory.end = at + 1;
                }
            }
        }
        handle.position = answer.offset + answer.count;
        if answer.count == 0 {
            handle.over = true;
            self.memory.complete |= self.memory.end == handle.position && self.memory.end > 0;
        }
    }

    fn go(&mut self, mut handle: Handle) -> Handle {
        match handle.answer.take() {
            Some(answer) => self.take(&mut handle, &answer),
            None if !handle.over => self.read(&mut handle),
            None => {}
        }
        handle
    }

    fn close(&mut self, handle: &Handle) {
        if handle.answer.is_none() {
            self.directories.close(DIR, &handle.listing);
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::ChangeHere => {
                self.version += 1;
                self.local += 1;
            }
            Step::ChangeElsewhere => {
                self.version += 1;
                self.told = true;
            }
            Step::Tell if std::mem::take(&mut self.told) => self.drop_pages(),
            Step::Open if self.handles.len() < 2 => {
                let handle = self.open();
                self.handles.push(handle);
            }
            Step::Go(at) if *at < self.handles.len() => {
                let handle = self.handles.remove(*at);
                let handle = self.go(handle);
                self.handles.insert(*at, handle);
            }
            // The kernel lets nobody close a directory that is being read.
            Step::Close(at) if self.handles.get(*at).is_some_and(|handle| handle.answer.is_none()) => {
                let handle = self.handles.remove(*at);
                self.close(&handle);
            }
            _ => {}
        }
    }

    /// The versions of the names that somebody sees who opens the directory now.
    fn list(&mut self) -> Vec<u64> {
        let mut handle = self.open();
        while !handle.over {
            handle = self.go(handle);
        }
        self.close(&handle);
        handle.got
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_the_kernel_keeps_is_never_shown_after_a_change_that_it_was_told_of(steps in steps()) {
        let mut world = World { version: 1, ..World::default() };
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Tell);
        let expected = vec![world.version; usize::try_from(NAMES).unwrap()];
        // Twice: the first may fill the kernel's memory.
        prop_assert_eq!(world.list(), expected.clone());
        prop_assert_eq!(world.list(), expected);
    }
}

#[test]
fn a_directory_that_stays_the_same_is_asked_for_once() {
    let mut world = World { version: 1, ..World::default() };
    world.list();
    assert!(world.memory.complete);
    for _ in 0..3 {
        let mut handle = world.open();
        while !handle.over {
            handle = world.go(handle);
            assert!(handle.answer.is_none(), "from memory");
        }
        world.close(&handle);
    }
}
