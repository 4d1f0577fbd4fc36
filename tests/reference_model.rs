//! Promise: whatever machines and other writers do, and whatever the network and kills do to them, each machine shows what a
//! plain model shows, and so does the bucket after each push.
//!
//! A failure prints its seed and the shortest sequence of steps that still fails. `SWAMP_TEST_SEED=… cargo test --test
//! reference_model` begins with another seed; `scripts/soak` goes on for as long as it is told to.

mod support;

use std::cell::Cell;
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use support::play::play;
use support::steps::{Plan, Tally, sequences};

/// Plays one seed; a failure ends the test.
fn one(seed: u64, plan: &Plan) -> Tally {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let (max_shrink_time, max_shrink_iters) = (180_000, 100_000);
    let config = Config { cases: 1, failure_persistence: None, max_shrink_time, max_shrink_iters, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let (tally, failed) = (Cell::new(Tally::default()), Cell::new(false));
    let played = runner.run(&sequences(plan), |steps| match play(&steps, plan) {
        Ok(of_it) => {
            tally.set(of_it);
            Ok(())
        }
        Err(error) => {
            if !failed.replace(true) {
                eprintln!("seed {seed}, {} steps: {error}", steps.len());
            }
            Err(TestCaseError::fail(error))
        }
    });
    match played {
        Ok(()) => tally.get(),
        Err(TestError::Fail(error, steps)) => {
            let lines: Vec<String> = steps.iter().map(|step| format!("  {step:?}")).collect();
            panic!("seed {seed}, {plan:?}: {error}\nthe shortest sequence that fails:\n{}", lines.join("\n"))
        }
        Err(error) => panic!("seed {seed}, {plan:?}: {error}"),
    }
}

/// The seed to begin with.
fn first_seed(default: u64) -> u64 {
    std::env::var("SWAMP_TEST_SEED").map_or(default, |text| text.parse().expect("a number"))
}

const ALONE: Plan = Plan { machines: 1, foreign: false, sharded: false, mounted: false, steps: 40 };
const SHARED: Plan = Plan { machines: 2, foreign: true, sharded: false, mounted: false, steps: 50 };

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

/// The same with system calls on kernel mounts, whose caches have to hear of whatever a machine has learnt.
#[test]
fn mounts_agree_with_the_model() {
    bounded(&Plan { mounted: true, ..ALONE }, 2000, 5);
    bounded(&Plan { mounted: true, sharded: true, ..SHARED }, 3000, 8);
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
        tally.add(&one(seed, &Plan { sharded: seed % 2 == 1, mounted: seed % 5 < 2, ..plan }));
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
