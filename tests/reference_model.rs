//! Promise: whatever machines and other writers do, and whatever the network and kills do to them, each machine shows what a
//! plain model shows, and so does the bucket after each push.
//!
//! A failure prints its seed and the shortest sequence of steps that still fails. `SWAMP_TEST_SEED=… cargo test --test
//! reference_model` begins with another seed; `scripts/soak` goes on for as long as it is told to.

mod support;

use std::time::{Duration, Instant};

use support::play::play;
use support::steps::{Plan, Step, Tally, sequence};

/// Leaves out of a failing sequence what it does not need.
fn shrunk(mut steps: Vec<Step>, plan: &Plan) -> (Vec<Step>, String) {
    let mut error = play(&steps, plan).err().unwrap_or_else(|| "it fails only sometimes".to_owned());
    let began = Instant::now();
    let mut size = steps.len() / 2;
    while size > 0 && began.elapsed() < Duration::from_secs(60) {
        let mut at = 0;
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + size).min(steps.len()));
            match play(&fewer, plan) {
                Err(found) => (steps, error) = (fewer, found),
                Ok(_) => at += size,
            }
        }
        size /= 2;
    }
    (steps, error)
}

/// Plays one seed; a failure ends the test.
fn one(seed: u64, plan: &Plan) -> Tally {
    let steps = sequence(seed, plan);
    play(&steps, plan).unwrap_or_else(|error| {
        eprintln!("seed {seed}, {plan:?}: {error}");
        let (short, error) = shrunk(steps, plan);
        let lines: Vec<String> = short.iter().map(|step| format!("  {step:?}")).collect();
        panic!("seed {seed}, {plan:?}: {error}\nthe shortest sequence that fails:\n{}", lines.join("\n"));
    })
}

/// The seed to begin with.
fn first_seed(default: u64) -> u64 {
    std::env::var("SWAMP_TEST_SEED").map_or(default, |text| text.parse().expect("a number"))
}

const ALONE: Plan = Plan { machines: 1, foreign: false, sharded: false, steps: 40 };
const SHARED: Plan = Plan { machines: 2, foreign: true, sharded: false, steps: 50 };

fn bounded(plan: &Plan, seed: u64, cases: u64) {
    let mut tally = Tally::default();
    let first = first_seed(seed);
    for seed in first..first + cases {
        tally.add(&one(seed, plan));
    }
    eprintln!("{plan:?}: {tally:?}");
    assert!(tally.operations > 0 && tally.entries > 0 && tally.crashes > 0 && tally.faults > 0, "nothing happened");
    assert!(tally.strays <= 1 + tally.crashes / 100, "kills leave objects without entries: {tally:?}");
    assert!(tally.returned <= 1 + tally.operations / 500, "removed files come back: {tally:?}");
    assert!(plan.machines == 1 || tally.conflicts > 0, "no two changes met");
}

#[test]
fn one_machine_agrees_with_the_model_under_kills_and_faults() {
    bounded(&ALONE, 1, 20);
    bounded(&Plan { sharded: true, ..ALONE }, 1000, 10);
}

#[test]
fn machines_and_other_writers_agree_with_the_model() {
    bounded(&SHARED, 1, 20);
    bounded(&Plan { sharded: true, ..SHARED }, 1000, 10);
}

/// For scripts/soak: SWAMP_SOAK_SECONDS of fresh seeds from SWAMP_TEST_SEED on; tells what happened as it goes.
#[test]
#[ignore = "scripts/soak runs it"]
fn soak() {
    let seconds = std::env::var("SWAMP_SOAK_SECONDS").map_or(60, |text| text.parse().expect("a number"));
    let (began, mut tally, mut seed, mut told) =
        (Instant::now(), Tally::default(), first_seed(fastrand::u64(..1 << 40)), 0);
    while began.elapsed() < Duration::from_secs(seconds) {
        let plan = if seed % 3 == 0 { ALONE } else { SHARED };
        tally.add(&one(seed, &Plan { sharded: seed % 2 == 1, ..plan }));
        seed += 1;
        if began.elapsed().as_secs() / 30 > told {
            told = began.elapsed().as_secs() / 30;
            eprintln!("{:?} so far: {tally:?}", began.elapsed());
        }
    }
    let Tally { operations, crashes, faults, conflicts, strays, returned, .. } = tally;
    println!(
        "soak: operations={operations} crashes={crashes} faults={faults} conflicts={conflicts} strays={strays} returned={returned} losses=0"
    );
}
