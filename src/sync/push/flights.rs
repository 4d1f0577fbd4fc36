//! Transfers that are under way. One that is slow outlasts the round that began it; a later round takes its result.
//!
//! Depends on `order` only. Invariants: there is one transfer at a time for a path; what it writes or copies from is neither
//! written nor deleted by anything else until its result was taken; a result is there before anybody is told of it.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use tokio::sync::watch;

use super::order::Job;

/// Tells how many transfers have ended so far.
pub(super) type Landings = watch::Receiver<u64>;

/// Transfers with results of type `R`; one whose task panicked has none.
#[derive(Debug)]
pub(super) struct Flights<R> {
    under_way: HashMap<String, Job>,
    landed: Arc<Landed<R>>,
}

/// What ended and was not taken yet.
#[derive(Debug)]
struct Landed<R> {
    results: Mutex<Vec<(String, Option<R>)>>,
    count: watch::Sender<u64>,
}

impl<R> Default for Flights<R> {
    fn default() -> Self {
        let landed = Landed { results: Mutex::default(), count: watch::Sender::default() };
        Self { under_way: HashMap::new(), landed: Arc::new(landed) }
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
        self.under_way.values().flat_map(|job| [&job.writes, &job.copies_from]).flatten().cloned().collect()
    }

    /// Notices every transfer that ends after this call.
    pub fn landings(&self) -> Landings {
        self.landed.count.subscribe()
    }

    /// Begins the transfer of a path that has none. It goes on by itself.
    pub fn begin(&mut self, path: String, job: Job, transfer: impl Future<Output = R> + Send + 'static) {
        debug_assert!(!self.has(&path), "one transfer at a time for {path}");
        self.under_way.insert(path.clone(), job);
        let landed = Arc::clone(&self.landed);
        tokio::spawn(async move {
            let result = AssertUnwindSafe(transfer).catch_unwind().await.ok();
            landed.results.lock().unwrap_or_else(PoisonError::into_inner).push((path, result));
            landed.count.send_modify(|count| *count += 1);
        });
    }

    /// Whether some ended whose results nobody took yet.
    pub fn any_landed(&self) -> bool {
        !self.landed.results.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Takes the results of those that ended.
    pub fn take_landed(&mut self) -> Vec<(String, Option<R>)> {
        let results = std::mem::take(&mut *self.landed.results.lock().unwrap_or_else(PoisonError::into_inner));
        for (path, _) in &results {
            self.under_way.remove(path);
        }
        results
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(writes: &str) -> Job {
        Job { writes: Some(writes.to_owned()), copies_from: Some(format!("{writes}-before")) }
    }

    #[tokio::test]
    async fn a_result_is_never_announced_before_it_can_be_taken() {
        for _ in 0..200 {
            let mut flights: Flights<u32> = Flights::default();
            let mut landings = flights.landings();
            flights.begin("a".to_owned(), job("a"), async { 7 });
            landings.changed().await.unwrap();
            assert_eq!(flights.take_landed(), [("a".to_owned(), Some(7))]);
            assert!(flights.is_empty());
        }
    }

    #[tokio::test]
    async fn keys_are_held_until_the_result_is_taken() {
        let mut flights: Flights<u32> = Flights::default();
        let mut landings = flights.landings();
        flights.begin("a".to_owned(), job("a"), async { 7 });
        landings.changed().await.unwrap();
        assert_eq!(flights.keys(), ["a".to_owned(), "a-before".to_owned()].into());
        assert!(flights.has("a"));
        flights.take_landed();
        assert_eq!((flights.keys().len(), flights.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_transfer_that_panics_ends_too() {
        let mut flights: Flights<u32> = Flights::default();
        let mut landings = flights.landings();
        flights.begin("a".to_owned(), job("a"), async { panic!("on purpose") });
        landings.changed().await.unwrap();
        assert_eq!(flights.take_landed(), [("a".to_owned(), None)]);
    }
}
