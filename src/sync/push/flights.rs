//! Transfers that are under way. One that is slow outlasts the round that began it; a later round takes its result.
//!
//! Depends on `order`, `bell` and `primitives` only, so that `tests/interleavings` can run through the orders in which rounds and
//! transfers meet. Invariants: there is one transfer at a time for a path; what it writes or copies from is neither
//! written nor deleted by anything else until its result was taken; a result is there before anybody is told of it.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Weak};

use futures_util::FutureExt;

use super::order::Job;
use crate::bell::Bell;
use crate::primitives::{Mutex, Place, spawn};

/// Tells of every transfer that ends.
#[derive(Debug)]
pub(super) struct Landings(Arc<Bell>);

impl Landings {
    /// Returns when one or more have ended since the last return.
    pub async fn next(&self) {
        self.0.heard().await;
    }
}

/// Transfers with results of type `R`; one whose task panicked has none.
#[derive(Debug)]
pub(super) struct Flights<R> {
    under_way: HashMap<String, Job>,
    landed: Arc<Mutex<Landed<R>>>,
}

/// What ended and was not taken yet.
#[derive(Debug)]
struct Landed<R> {
    results: Vec<(String, Option<R>)>,
    told: Vec<Weak<Bell>>,
}

impl<R> Default for Flights<R> {
    fn default() -> Self {
        let landed = Landed { results: Vec::new(), told: Vec::new() };
        Self { under_way: HashMap::new(), landed: Arc::new(Mutex::new(Place::Leaf, landed)) }
    }
}

impl<R: Send + 'static> Flights<R> {
    /// How many are under way, or ended without anybody having taken the result.
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Whether one is under way for this path.
    pub fn has(&self, path: &str) -> bool {
        self.under_way.contains_key(path)
    }

    /// What they write and copy from.
    pub fn jobs(&self) -> impl Iterator<Item = (&String, &Job)> {
        self.under_way.iter()
    }

    /// Keys that nothing else may write or delete.
    pub fn keys(&self) -> HashSet<String> {
        self.under_way.values().flat_map(|job| job.writes.iter().chain(&job.copies_from)).cloned().collect()
    }

    /// Notices every transfer that ends after this call.
    pub fn landings(&self) -> Landings {
        let bell = Arc::default();
        let mut landed = self.landed.lock();
        landed.told.retain(|told| told.strong_count() > 0);
        landed.told.push(Arc::downgrade(&bell));
        Landings(bell)
    }

    /// Begins the transfer of a path that has none. It goes on by itself.
    pub fn begin(&mut self, path: String, job: Job, transfer: impl Future<Output = R> + Send + 'static) {
        debug_assert!(!self.has(&path), "one transfer at a time for {path}");
        self.under_way.insert(path.clone(), job);
        let landed = Arc::clone(&self.landed);
        spawn(async move {
            let result = AssertUnwindSafe(transfer).catch_unwind().await.ok();
            let told: Vec<_> = {
                let mut landed = landed.lock();
                landed.results.push((path, result));
                landed.told.iter().filter_map(Weak::upgrade).collect()
            };
            told.iter().for_each(|bell| bell.ring());
        });
    }

    /// Whether some ended whose results nobody took yet.
    pub fn any_landed(&self) -> bool {
        !self.landed.lock().results.is_empty()
    }

    /// Takes the results of those that ended.
    pub fn take_landed(&mut self) -> Vec<(String, Option<R>)> {
        let results = std::mem::take(&mut self.landed.lock().results);
        for (path, _) in &results {
            self.under_way.remove(path);
        }
        results
    }
}
