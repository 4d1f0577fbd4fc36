//! Pace: how many transfers of a kind run at a time: as many as the store bears.
//!
//! Depends on the store's count of refusals. Invariants: never fewer than one, never more than was configured; an answer that
//! asks for patience halves the number, once for all transfers that met it together; transfers that met none raise it
//! by one for each round of them. What nobody waits for yet leaves some places to what somebody waits for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::store::Refusals;

/// Refusals within this time of a halving belong to the same crowd of requests.
const SAME_CROWD: Duration = Duration::from_secs(1);
/// Places that are left to what somebody waits for, where there are as many.
const SPARED: usize = 4;

/// For whom a transfer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Somebody waits.
    Awaited,
    /// Somebody may want it soon.
    Ahead,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Pace {
    places: Arc<Semaphore>,
    /// Those of them that transfers ahead may take.
    ahead: Arc<Semaphore>,
    state: Mutex<State>,
    refusals: Refusals,
    most: usize,
}

#[derive(Debug)]
struct State {
    limit: f64,
    /// Places that exist, taken or free.
    existing: usize,
    /// Refusals that were seen so far.
    seen: u64,
    halved: Option<Instant>,
}

/// The right to make one transfer, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    pace: Arc<Pace>,
    taken: Option<OwnedSemaphorePermit>,
    _ahead: Option<OwnedSemaphorePermit>,
}

impl Pace {
    /// At most so many at a time, and as many at first, of a store that counts what it refuses.
    pub fn new(most: usize, refusals: Refusals) -> Arc<Self> {
        let most = most.max(1);
        Arc::new(Self {
            places: Arc::new(Semaphore::new(most)),
            ahead: Arc::new(Semaphore::new(most.saturating_sub(SPARED).max(1))),
            state: Mutex::new(State { limit: most as f64, existing: most, seen: refusals.count(), halved: None }),
            refusals,
            most,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many may run at a time now.
    pub fn limit(&self) -> usize {
        self.state().limit as usize
    }

    /// Waits for a place; `None` when there never will be one, as the process ends.
    pub async fn place(self: &Arc<Self>, urgency: Urgency) -> Option<Place> {
        let ahead = match urgency {
            Urgency::Awaited => None,
            Urgency::Ahead => Some(Arc::clone(&self.ahead).acquire_owned().await.ok()?),
        };
        loop {
            let taken = Arc::clone(&self.places).acquire_owned().await.ok()?;
            // Places that were free when the number was halved go now.
            if !self.gives_up_one() {
                return Some(Place { pace: Arc::clone(self), taken: Some(taken), _ahead: ahead });
            }
            taken.forget();
        }
    }

    fn gives_up_one(&self) -> bool {
        let mut state = self.state();
        let too_many = state.existing > state.limit as usize;
        state.existing -= usize::from(too_many);
        too_many
    }

    /// A transfer ended. Who makes transfers without places tells of each, and makes no more than [`Pace::limit`] at a time.
    pub fn learn(&self) {
        let refusals = self.refusals.count();
        let mut state = self.state();
        if refusals > state.seen {
            state.seen = refusals;
            if state.halved.is_none_or(|at| at.elapsed() >= SAME_CROWD) {
                state.limit = (state.limit / 2.0).max(1.0);
                state.halved = Some(Instant::now());
                tracing::info!(limit = state.limit as usize, "the store asks for patience: fewer transfers at a time");
            }
            return;
        }
        state.limit = (state.limit + 1.0 / state.limit).min(self.most as f64);
        let missing = (state.limit as usize).saturating_sub(state.existing);
        state.existing += missing;
        self.places.add_permits(missing);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pace.learn();
        if self.pace.gives_up_one()
            && let Some(taken) = self.taken.take()
        {
            taken.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs so many transfers one after another.
    async fn transfers(pace: &Arc<Pace>, count: usize) {
        for _ in 0..count {
            drop(pace.place(Urgency::Awaited).await);
        }
    }

    async fn take(pace: &Arc<Pace>, urgency: Urgency, count: usize) -> Vec<Place> {
        let mut taken = Vec::new();
        while taken.len() < count {
            taken.extend(pace.place(urgency).await);
        }
        taken
    }

    async fn is_full(pace: &Arc<Pace>, urgency: Urgency) -> bool {
        tokio::time::timeout(Duration::from_millis(1), pace.place(urgency)).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_halve_it_once_for_a_crowd_and_successes_raise_it_again() {
        let refusals = Refusals::default();
        let pace = Pace::new(32, refusals.clone());
        let crowd = take(&pace, Urgency::Awaited, 32).await;
        refusals.add();
        for place in crowd {
            drop(place);
            refusals.add();
        }
        assert_eq!(pace.limit(), 16);
        let held = take(&pace, Urgency::Awaited, 16).await;
        assert!(is_full(&pace, Urgency::Awaited).await, "the places are gone too");
        drop(held);
        for expected in [8, 4, 2, 1, 1] {
            tokio::time::advance(SAME_CROWD).await;
            refusals.add();
            transfers(&pace, 1).await;
            assert_eq!(pace.limit(), expected);
        }
        transfers(&pace, 32 * 32).await;
        assert_eq!(pace.limit(), 32);
        let held = take(&pace, Urgency::Awaited, 32).await;
        assert!(is_full(&pace, Urgency::Awaited).await, "and never more than were configured");
        drop(held);
    }

    #[tokio::test(start_paused = true)]
    async fn transfers_ahead_leave_places_to_those_that_are_awaited() {
        let pace = Pace::new(32, Refusals::default());
        let ahead = take(&pace, Urgency::Ahead, 32 - SPARED).await;
        assert!(is_full(&pace, Urgency::Ahead).await);
        let awaited = take(&pace, Urgency::Awaited, SPARED).await;
        assert!(is_full(&pace, Urgency::Awaited).await);
        drop((ahead, awaited));
        // With a single place there is one for either.
        let pace = Pace::new(1, Refusals::default());
        drop(take(&pace, Urgency::Ahead, 1).await);
        drop(take(&pace, Urgency::Awaited, 1).await);
    }
}
