//! Faults at random, from a seed: what a bucket far away does to requests, for long runs in which no rule names a request.
//!
//! Independent of the protocol, like the rules of `faults`. What happens to a request depends only on the seed, on what it
//! asks for, and on how often that was asked before: a run that is repeated meets the same weather, whatever its threads do.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::faults::Action;

/// How bad it is: of a thousand requests, so many meet each fault.
#[derive(Clone, Copy, Debug)]
pub struct Climate {
    /// Served late, by up to `delay`.
    pub slow: u32,
    pub delay: Duration,
    /// 503 or 429, without an effect.
    pub throttled: u32,
    /// 500, without an effect.
    pub failing: u32,
    /// 500 after the effect.
    pub failing_late: u32,
    /// The effect, and no answer.
    pub lost: u32,
    /// The answer's body breaks off.
    pub cut: u32,
    /// The request's body does not arrive in full.
    pub cut_request: u32,
    /// Never answered.
    pub stalled: u32,
}

impl Climate {
    /// A third of the requests slow, one in seven with another fault; nothing stalls.
    pub fn stormy(delay: Duration) -> Self {
        Self {
            slow: 333,
            delay,
            throttled: 40,
            failing: 20,
            failing_late: 15,
            lost: 30,
            cut: 20,
            cut_request: 10,
            stalled: 0,
        }
    }

    /// Some requests are never answered either.
    pub fn stalling(self, stalled: u32) -> Self {
        Self { stalled, ..self }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Weather {
    seed: u64,
    climate: Climate,
    asked: Mutex<HashMap<(String, String), u64>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

impl Weather {
    pub fn new(seed: u64, climate: Climate) -> Self {
        Self { seed, climate, asked: Mutex::default(), counts: Mutex::default() }
    }

    /// What happens to one request; counts.
    pub fn take(&self, operation: &str, key: &str) -> Vec<Action> {
        let mut hasher = DefaultHasher::new();
        let times = {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            let times = asked.entry((operation.to_owned(), key.to_owned())).or_default();
            *times += 1;
            *times
        };
        (self.seed, operation, key, times).hash(&mut hasher);
        let mut random = fastrand::Rng::with_seed(hasher.finish());
        let c = &self.climate;
        let mut actions = Vec::new();
        let mut named = Vec::new();
        if random.u32(..1000) < c.slow {
            actions.push(Action::Delay(c.delay.mul_f64(random.f64())));
            named.push("slow");
        }
        // At most one of the others.
        let mut left = random.u32(..1000);
        let throttling = if random.bool() { 503 } else { 429 };
        let cut = random.usize(..200);
        for (odds, name, action) in [
            (c.throttled, "throttled", Action::Status(throttling)),
            (c.failing, "failing", Action::Status(500)),
            (c.failing_late, "failing after the effect", Action::StatusAfterEffect(500)),
            (c.lost, "answer lost", Action::LoseAnswer),
            (c.cut, "answer cut", Action::CutBody(cut)),
            (c.cut_request, "request cut", Action::CutRequest(cut)),
            (c.stalled, "stalled", Action::Stall),
        ] {
            if left < odds {
                actions.push(action);
                named.push(name);
                break;
            }
            left -= odds;
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        for name in named.into_iter().chain(["requests"]) {
            *counts.entry(name).or_default() += 1;
        }
        actions
    }

    /// How many requests there were, and how many met each fault.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many faults there were; being late is none.
    pub fn faults(&self) -> u64 {
        self.counts().into_iter().filter(|(name, _)| !["requests", "slow"].contains(name)).map(|(_, count)| count).sum()
    }
}
