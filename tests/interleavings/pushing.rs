//! Promise: in whatever order flushes, changes and transfers meet, a flush covers what was changed before it was asked for, there
//! is one transfer of a path at a time, a result is there before anybody is told of it, and nobody waits for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use shuttle::future::batch_semaphore::{BatchSemaphore, Fairness};
use shuttle::future::{block_on, spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};

use crate::bell::Bell;
use crate::check;
use crate::flights::Flights;
use crate::left::{Left, Then};
use crate::order::Job;

/// Transfers at a time; as twice `--upload-concurrency`.
const MOST: usize = 2;

type Path = &'static str;

/// What became of a transfer: the change that it carried away; `None`: the file was written meanwhile.
type Flown = Result<Option<u64>, ()>;

/// What the test knows; taken and left without a chance for others to run.
#[derive(Default)]
struct Known {
    /// The last change of each file.
    files: BTreeMap<Path, u64>,
    /// Those that no push settled.
    rows: BTreeMap<Path, u64>,
    bucket: BTreeMap<Path, u64>,
    transferred: BTreeSet<Path>,
    fails: Option<Path>,
}

/// A mount, as far as pushes see it.
struct Mount {
    /// As `Engine::push_gate`, with what it protects.
    gate: BatchSemaphore,
    flights: Mutex<Flights<Flown>>,
    known: Mutex<Known>,
    changed: Bell,
}

fn job(path: &str) -> Job {
    Job { writes: Some(path.to_owned()), copies_from: Vec::new() }
}

impl Mount {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            gate: BatchSemaphore::new(1, Fairness::StrictlyFair),
            flights: Mutex::default(),
            known: Mutex::default(),
            changed: Bell::default(),
        })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, path: Path) {
        {
            let mut known = self.known();
            let change = *known.files.entry(path).and_modify(|change| *change += 1).or_insert(1);
            known.rows.insert(path, change);
        }
        self.changed.ring();
    }

    /// As `Engine::flush`; asserts that it covers what was changed before.
    async fn flush(self: Arc<Self>) -> Result<(), ()> {
        let before = self.known().files.clone();
        let pushed = self.push_everything().await;
        let known = self.known();
        let failed = known.fails.filter(|_| pushed.is_err());
        for (path, change) in before.iter().filter(|(path, _)| failed != Some(**path)) {
            let there = known.bucket.get(path);
            assert!(there >= Some(change), "change {change} of {path} is not in the bucket: {there:?}");
        }
        pushed
    }

    /// As `Engine::push_everything`.
    async fn push_everything(self: &Arc<Self>) -> Result<(), ()> {
        loop {
            let mut left = self.round(true).await;
            match left.then() {
                Then::Fail => {
                    while let Some(landings) = &left.under_way {
                        landings.next().await;
                        left.under_way = self.round(false).await.under_way;
                    }
                    return Err(());
                }
                Then::Again | Then::Round => {}
                Then::Wait(landings) => landings.next().await,
                Then::Done => return Ok(()),
            }
        }
    }

    /// As `Engine::round`.
    async fn round(self: &Arc<Self>, everything: bool) -> Left {
        self.gate.acquire(1).await.unwrap();
        let mut flights = std::mem::take(&mut *self.flights.lock().unwrap());
        let left = self.round_with(&mut flights, everything).await;
        *self.flights.lock().unwrap() = flights;
        self.gate.release(1);
        left
    }

    async fn round_with(self: &Arc<Self>, flights: &mut Flights<Flown>, everything: bool) -> Left {
        let landings = flights.landings();
        if flights.len() >= MOST && !flights.any_landed() {
            return Left { under_way: Some(landings), ..Left::default() };
        }
        let mut rows = if everything { self.known().rows.clone() } else { BTreeMap::new() };
        let waiting: Vec<Path> = rows.extract_if(.., |path, _| flights.has(path)).map(|(path, _)| path).collect();
        if rows.is_empty() && !flights.any_landed() {
            return Left { under_way: (!flights.is_empty()).then_some(landings), ..Left::default() };
        }
        let mut left = Left::default();
        self.transfer(flights, rows, &mut left).await;
        left.under_way = (!flights.is_empty()).then_some(landings);
        left.held_back = waiting.iter().any(|path| !flights.has(path));
        left
    }

    /// As `Engine::transfer`, with a patience that may end at any time.
    async fn transfer(self: &Arc<Self>, flights: &mut Flights<Flown>, rows: BTreeMap<Path, u64>, left: &mut Left) {
        let landings = flights.landings();
        self.settle(flights, left);
        let mut queue = rows.into_iter();
        loop {
            while flights.len() < MOST {
                let Some((path, change)) = queue.next() else { break };
                flights.begin(path.to_owned(), job(path), Arc::clone(self).upload(path, change));
            }
            if flights.is_empty() || thread_rng().gen_bool(0.5) {
                return;
            }
            landings.next().await;
            self.settle(flights, left);
        }
    }

    async fn upload(self: Arc<Self>, path: Path, planned: u64) -> Flown {
        assert!(self.known().transferred.insert(path), "two transfers of {path}");
        yield_now().await;
        let mut known = self.known();
        known.transferred.remove(path);
        if known.fails == Some(path) {
            return Err(());
        }
        Ok((known.files[path] == planned).then_some(planned))
    }

    fn settle(&self, flights: &mut Flights<Flown>, left: &mut Left) {
        for (path, result) in flights.take_landed() {
            let mut known = self.known();
            let (path, _) = known.files.get_key_value(path.as_str()).map(|(path, change)| (*path, *change)).unwrap();
            match result.expect("an assertion failed in a transfer") {
                Ok(Some(change)) => {
                    known.bucket.insert(path, change);
                    if known.rows.get(path) == Some(&change) {
                        known.rows.remove(path);
                    }
                }
                Ok(None) => left.again += 1,
                Err(()) => left.reasons.push(path.to_owned()),
            }
        }
    }
}

#[test]
fn a_result_is_there_before_anybody_is_told_of_it() {
    shuttle::check_dfs(
        || {
            block_on(async {
                let mut flights: Flights<u32> = Flights::default();
                let landings = flights.landings();
                flights.begin("a".to_owned(), job("a"), async { 7 });
                landings.next().await;
                assert_eq!(flights.take_landed(), [("a".to_owned(), Some(7))]);
                assert!(flights.is_empty());
            });
        },
        None,
    );
}

#[test]
fn everybody_who_listens_is_told_of_every_transfer() {
    check(
        || {
            block_on(async {
                let mut flights: Flights<u32> = Flights::default();
                let (landings, others) = (flights.landings(), flights.landings());
                flights.begin("a".to_owned(), job("a"), async { 1 });
                flights.begin("b".to_owned(), job("b"), async { 2 });
                let other = spawn(async move { others.next().await });
                let mut taken = Vec::new();
                while !flights.is_empty() {
                    landings.next().await;
                    taken.extend(flights.take_landed());
                }
                assert_eq!(taken.len(), 2);
                other.await.unwrap();
            });
        },
        3_000,
    );
}

#[test]
fn a_flush_covers_what_was_changed_before_it() {
    check(
        || {
            block_on(async {
                let mount = Mount::new();
                mount.change("a");
                mount.change("b");
                let background = {
                    let mount = Arc::clone(&mount);
                    spawn(async move { drop(mount.round(true).await) })
                };
                let first = spawn(Arc::clone(&mount).flush());
                mount.change("b");
                mount.change("c");
                let unmount = spawn(Arc::clone(&mount).flush());
                background.await.unwrap();
                first.await.unwrap().unwrap();
                unmount.await.unwrap().unwrap();
                assert_eq!(mount.known().rows, BTreeMap::new());
                assert!(mount.flights.lock().unwrap().is_empty());
            });
        },
        3_000,
    );
}

#[test]
fn a_flush_of_which_one_file_fails_covers_the_others() {
    check(
        || {
            block_on(async {
                let mount = Mount::new();
                mount.known().fails = Some("b");
                ["a", "b", "c"].into_iter().for_each(|path| mount.change(path));
                let background = {
                    let mount = Arc::clone(&mount);
                    spawn(async move { drop(mount.round(true).await) })
                };
                assert!(Arc::clone(&mount).flush().await.is_err());
                background.await.unwrap();
            });
        },
        3_000,
    );
}

#[test]
fn no_change_is_lost_on_the_background_flush() {
    shuttle::check_dfs(
        || {
            block_on(async {
                let mount = Mount::new();
                let writer = {
                    let mount = Arc::clone(&mount);
                    spawn(async move { ["a", "b"].into_iter().for_each(|path| mount.change(path)) })
                };
                // As `background::flush`.
                let mut pushed = 0;
                while pushed < 2 {
                    if mount.known().rows.is_empty() {
                        mount.changed.heard().await;
                    }
                    pushed += std::mem::take(&mut mount.known().rows).len();
                }
                writer.await.unwrap();
            });
        },
        None,
    );
}
