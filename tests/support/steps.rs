//! Steps of the model test, and how they are drawn from a seed.
//!
//! A step names files by numbers that mean something in any state, so that a sequence without some of its steps is a
//! sequence too: that is what shrinking does.

/// One step. `at` is a machine, `pick` and `other` a file that it shows, `name` any name, `text` what is written.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    Write {
        at: u8,
        name: u8,
        text: u8,
    },
    Append {
        at: u8,
        pick: u8,
    },
    Truncate {
        at: u8,
        pick: u8,
        size: u8,
    },
    Remove {
        at: u8,
        pick: u8,
    },
    Rename {
        at: u8,
        pick: u8,
        name: u8,
    },
    Exchange {
        at: u8,
        pick: u8,
        other: u8,
    },
    MoveDir {
        at: u8,
        from: u8,
        to: u8,
    },
    Read {
        at: u8,
        pick: u8,
        weather: Option<u64>,
    },
    Refresh {
        at: u8,
        weather: Option<u64>,
    },
    Flush {
        at: u8,
        weather: Option<u64>,
    },
    /// Killed when so many requests of its flush have come, or had their effect.
    KilledFlush {
        at: u8,
        after: u8,
        effect: bool,
    },
    Kill {
        at: u8,
    },
    /// Another client, which takes no lock.
    ForeignWrite {
        name: u8,
        text: u8,
        hashed: bool,
    },
    ForeignRemove {
        pick: u8,
    },
}

/// What may happen in a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub machines: u8,
    pub foreign: bool,
    pub sharded: bool,
    pub steps: usize,
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub operations: u64,
    pub pushes: u64,
    pub crashes: u64,
    pub faults: u64,
    pub conflicts: u64,
    pub entries: u64,
    /// Objects that no entry names in the end.
    pub strays: u64,
    /// Removed files that came back.
    pub returned: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.operations += other.operations;
        self.pushes += other.pushes;
        self.crashes += other.crashes;
        self.faults += other.faults;
        self.conflicts += other.conflicts;
        self.entries += other.entries;
        self.strays += other.strays;
        self.returned += other.returned;
    }
}

/// Directories that are renamed.
pub const DIRS: [&str; 3] = ["d", "e", "f"];

/// A name of a file; no directory ever has it.
pub fn name_of(number: u8) -> String {
    let dir = ["", "d/", "d/s/", "e/"][usize::from(number / 4 % 4)];
    format!("{dir}n{}", number % 4)
}

/// A sequence from a seed.
pub fn sequence(seed: u64, plan: &Plan) -> Vec<Step> {
    let random = &mut fastrand::Rng::with_seed(seed);
    (0..plan.steps).map(|_| step(random, plan)).collect()
}

fn step(random: &mut fastrand::Rng, plan: &Plan) -> Step {
    let at = random.u8(..plan.machines);
    // Few names, so that changes meet.
    let (pick, other, name, text) = (random.u8(..), random.u8(..), random.u8(..10), random.u8(..));
    let weather = (random.u8(..3) == 0).then(|| random.u64(..));
    match random.u8(..if plan.foreign { 44 } else { 38 }) {
        0..8 => Step::Write { at, name, text },
        8..10 => Step::Append { at, pick },
        10..12 => Step::Truncate { at, pick, size: other },
        12..15 => Step::Remove { at, pick },
        15..19 => Step::Rename { at, pick, name },
        19..21 => Step::Exchange { at, pick, other },
        21..22 => Step::MoveDir { at, from: pick, to: other },
        22..24 => Step::Read { at, pick, weather },
        24..27 => Step::Refresh { at, weather },
        27..33 => Step::Flush { at, weather },
        33..36 => Step::KilledFlush { at, after: random.u8(..24), effect: random.bool() },
        36..38 => Step::Kill { at },
        38..42 => Step::ForeignWrite { name, text, hashed: random.u8(..3) > 0 },
        _ => Step::ForeignRemove { pick },
    }
}
