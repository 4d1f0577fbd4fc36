//! Steps of the model test, and the sequences that proptest makes of them.
//!
//! A step names files by numbers that mean something in any state, so that a sequence without some of its steps is a
//! sequence too: that is what shrinking does.

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;

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
    /// Files are touched through kernel mounts, by system calls.
    pub mounted: bool,
    /// So many on average.
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

/// Sequences of a plan. What is left out of a failing one is what it does not need.
pub fn sequences(plan: &Plan) -> impl Strategy<Value = Vec<Step>> + use<> {
    // Proptest leaves steps out as far as the length allows.
    vec(step(plan), 0..=2 * plan.steps)
}

fn step(plan: &Plan) -> BoxedStrategy<Step> {
    let at = || 0..plan.machines;
    // Few names, so that changes meet.
    let (name, pick, text) = (|| 0u8..10, any::<u8>, any::<u8>);
    // Another seed is other weather, not less of it.
    let weather = || weighted(1.0 / 3.0, any::<u64>().no_shrink());
    let of_machines = prop_oneof![
        8 => (at(), name(), text()).prop_map(|(at, name, text)| Step::Write { at, name, text }),
        2 => (at(), pick()).prop_map(|(at, pick)| Step::Append { at, pick }),
        2 => (at(), pick(), any::<u8>()).prop_map(|(at, pick, size)| Step::Truncate { at, pick, size }),
        3 => (at(), pick()).prop_map(|(at, pick)| Step::Remove { at, pick }),
        4 => (at(), pick(), name()).prop_map(|(at, pick, name)| Step::Rename { at, pick, name }),
        2 => (at(), pick(), pick()).prop_map(|(at, pick, other)| Step::Exchange { at, pick, other }),
        1 => (at(), pick(), pick()).prop_map(|(at, from, to)| Step::MoveDir { at, from, to }),
        2 => (at(), pick(), weather()).prop_map(|(at, pick, weather)| Step::Read { at, pick, weather }),
        3 => (at(), weather()).prop_map(|(at, weather)| Step::Refresh { at, weather }),
        6 => (at(), weather()).prop_map(|(at, weather)| Step::Flush { at, weather }),
        3 => (at(), 0u8..24, any::<bool>()).prop_map(|(at, after, effect)| Step::KilledFlush { at, after, effect }),
        2 => at().prop_map(|at| Step::Kill { at }),
    ];
    if !plan.foreign {
        return of_machines.boxed();
    }
    let hashed = proptest::bool::weighted(2.0 / 3.0);
    prop_oneof![
        38 => of_machines,
        4 => (name(), text(), hashed).prop_map(|(name, text, hashed)| Step::ForeignWrite { name, text, hashed }),
        2 => pick().prop_map(|pick| Step::ForeignRemove { pick }),
    ]
    .boxed()
}
