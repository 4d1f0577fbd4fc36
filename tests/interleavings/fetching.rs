//! Promise: in whatever order readers and transfers of a content meet, no reader waits for ever, none is shown a byte that is not
//! there or of another upload, no byte is requested twice at a time, and a failure is met by those who waited for it only.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use shuttle::future::{JoinHandle, block_on, spawn, yield_now};

use crate::bell::Bell;
use crate::cache::RangeSet;
use crate::cache::rows::Version;
use crate::check;
use crate::fetch_state::{Claim, Claimed, FailureCause, Fetch, FetchState, Refused};
use crate::store::Fingerprint;

const MIB: u64 = 1 << 20;
/// One request.
const PART: u64 = 8 * MIB;
/// What arrives at a time.
const CHUNK: u64 = 4 * MIB;

/// What happens to a transfer.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    /// It ends before its first byte.
    Failed,
    /// The same, as nobody waits any more.
    Abandoned,
    /// After its first bytes it waits.
    Slow,
}

/// What the test knows; taken and left without a chance for others to run.
#[derive(Default)]
struct Known {
    /// The upload that the bucket has.
    upload: u64,
    /// Of which upload each chunk in the file is.
    file: BTreeMap<u64, u64>,
    /// Ranges that are being requested.
    requested: Vec<Range<u64>>,
    unpinned: usize,
    /// How the next transfers end; well, where nothing is said.
    fates: VecDeque<Fate>,
    transfers: Vec<JoinHandle<()>>,
    begun: usize,
    /// How often the content was declared complete.
    completed: usize,
    /// The bucket's object was replaced, or will be.
    replaced: bool,
}

/// A content that is not here, and its object.
struct Content {
    fetch: Fetch,
    size: u64,
    /// Lets a slow transfer go on.
    go_on: Bell,
    known: Mutex<Known>,
}

impl Content {
    fn new(size: u64, fates: impl IntoIterator<Item = Fate>) -> Arc<Self> {
        let mut version = Version { key: "file".to_owned(), entry: Default::default(), fingerprint: None };
        version.entry.size = size;
        let state = FetchState::partial(Some(version), RangeSet::default());
        let known = Known { fates: fates.into_iter().collect(), ..Known::default() };
        Arc::new(Self { fetch: Fetch::new(state), size, go_on: Bell::default(), known: Mutex::new(known) })
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As `Engine::ensure_for`.
    async fn read(self: Arc<Self>, range: Range<u64>) -> Result<(), Refused> {
        let waiting = self.fetch.wait_for(range.clone());
        while !self.begin(waiting.claim()?) {
            waiting.woken().await;
        }
        self.assert_is_one_upload(range);
        Ok(())
    }

    /// As `Engine::fetch_ahead`.
    fn read_ahead(self: &Arc<Self>, range: &Range<u64>) {
        let claimed = self.fetch.claim(range).unwrap();
        self.begin(claimed);
    }

    fn begin(self: &Arc<Self>, claimed: Claimed) -> bool {
        let Claimed::Fetch(claims) = claimed else { return true };
        for claim in claims {
            let fate = self.known().fates.pop_front();
            let transfer = spawn(Arc::clone(self).run(claim, fate));
            let mut known = self.known();
            known.begun += 1;
            known.transfers.push(transfer);
        }
        false
    }

    /// As `Engine::run`.
    async fn run(self: Arc<Self>, claim: Claim, fate: Option<Fate>) {
        let result = match self.transfer(&claim, fate).await {
            Ok(()) => {
                if let Some(round) = self.fetch.brought(&claim) {
                    yield_now().await;
                    if self.fetch.compared(round) {
                        self.assert_is_one_upload(0..self.size);
                        self.known().completed += 1;
                    }
                }
                None
            }
            Err(Fate::Abandoned) => None,
            Err(_) => Some(("failed".into(), FailureCause::Other)),
        };
        self.fetch.landed(&claim, result);
    }

    /// As `Engine::fetch_resolving` and `Engine::fetch_once`.
    async fn transfer(&self, claim: &Claim, fate: Option<Fate>) -> Result<(), Fate> {
        loop {
            let version = self.fetch.state().version.clone().unwrap();
            {
                let mut known = self.known();
                let twice = known.requested.iter().any(|r| r.start < claim.range.end && claim.range.start < r.end);
                assert!(!twice, "{:?} is requested twice: {:?}", claim.range, known.requested);
                known.requested.push(claim.range.clone());
                known.unpinned += usize::from(version.fingerprint.is_none());
                assert!(known.replaced || known.unpinned <= 1, "two requests may be answered with two uploads");
            }
            let answered = self.answer(&claim.range, version.fingerprint.as_ref(), fate).await;
            {
                let mut known = self.known();
                known.requested.retain(|r| *r != claim.range);
                known.unpinned -= usize::from(version.fingerprint.is_none() && answered.is_err());
            }
            match answered {
                Ok(true) => return Ok(()),
                // Forgotten by somebody else.
                Ok(false) => {}
                Err(Some(fate)) => return Err(fate),
                Err(None) => {
                    // As `Engine::resolve`.
                    let mut state = self.fetch.state();
                    if state.version.as_ref() != Some(&version) {
                        continue;
                    }
                    if !state.present.is_empty() && !state.shown_whole() {
                        state.version_gone = true;
                        return Err(Fate::Failed);
                    }
                    state.forget();
                }
            }
        }
    }

    /// One request. `false`: what came was forgotten meanwhile; `Err(None)`: the object was replaced.
    async fn answer(
        &self,
        range: &Range<u64>,
        pin: Option<&Fingerprint>,
        fate: Option<Fate>,
    ) -> Result<bool, Option<Fate>> {
        yield_now().await;
        if let Some(fate) = fate.filter(|fate| *fate != Fate::Slow) {
            return Err(Some(fate));
        }
        let upload = self.known().upload;
        let fingerprint = Fingerprint::from_record(&format!("upload {upload}")).unwrap();
        if pin.is_some_and(|pin| *pin != fingerprint) {
            return Err(None);
        }
        let round = self.fetch.answered(Some(fingerprint)).ok_or(None)?;
        self.known().unpinned -= usize::from(pin.is_none());
        let mut at = range.start;
        while at < range.end {
            yield_now().await;
            self.known().file.insert(at, upload);
            if !self.fetch.arrived(at..(at + CHUNK).min(range.end), round) {
                return Ok(false);
            }
            at += CHUNK;
            if fate == Some(Fate::Slow) && at == range.start + CHUNK {
                self.go_on.heard().await;
            }
        }
        Ok(true)
    }

    fn assert_is_one_upload(&self, range: Range<u64>) {
        let known = self.known();
        let chunks = (range.start / CHUNK..range.end.min(self.size).div_ceil(CHUNK)).map(|n| n * CHUNK);
        let uploads: Vec<Option<&u64>> = chunks.map(|at| known.file.get(&at)).collect();
        assert!(uploads.iter().all(|upload| upload.is_some()), "bytes are missing: {:?}", known.file);
        assert!(uploads.windows(2).all(|two| two[0] == two[1]), "bytes of two uploads: {:?}", known.file);
    }

    /// When everybody has gone, nothing is left of them, and a content that has all bytes was declared complete once.
    async fn assert_settled(&self) {
        loop {
            let Some(transfer) = self.known().transfers.pop() else { break };
            transfer.await.unwrap();
        }
        let state = self.fetch.state();
        assert!(state.in_flight.is_empty() && state.pinning.is_none(), "{state:?}");
        assert!(state.waiting.is_empty(), "{state:?}");
        let whole = state.present.contains(&(0..self.size));
        assert_eq!(state.complete, whole, "{state:?}");
        assert_eq!(self.known().completed, usize::from(whole), "{state:?}");
    }
}

/// Readers of one content, side by side.
async fn read_all(content: &Arc<Content>, ranges: &[Range<u64>]) -> Vec<Result<(), Refused>> {
    let readers: Vec<_> = ranges.iter().map(|range| spawn(Arc::clone(content).read(range.clone()))).collect();
    let mut read = Vec::new();
    for reader in readers {
        read.push(reader.await.unwrap());
    }
    read
}

#[test]
fn in_every_order_the_end_of_a_transfer_finds_who_waits_for_it() {
    shuttle::check_dfs(
        || {
            block_on(async {
                let content = Content::new(CHUNK, []);
                let waiting = content.fetch.wait_for(0..CHUNK);
                let Claimed::Fetch(claims) = waiting.claim().unwrap() else { panic!("nothing is here") };
                let ending = Arc::clone(&content);
                spawn(async move { ending.fetch.landed(&claims[0], Some(("failed".into(), FailureCause::Other))) });
                waiting.woken().await;
                assert_eq!(waiting.claim(), Err(Refused::Failed("failed".into(), FailureCause::Other)));
            });
        },
        None,
    );
}

#[test]
fn readers_of_a_small_file_make_one_request() {
    check(
        || {
            block_on(async {
                let content = Content::new(CHUNK, []);
                for read in read_all(&content, &[0..MIB, MIB..2 * MIB, 0..u64::MAX]).await {
                    read.unwrap();
                }
                assert_eq!(content.known().begun, 1);
                content.assert_settled().await;
            });
        },
        3_000,
    );
}

#[test]
fn nobody_waits_for_bytes_that_he_does_not_need() {
    check(
        || {
            block_on(async {
                let content = Content::new(2 * PART, [Fate::Slow]);
                content.read_ahead(&(0..PART));
                // The transfer goes on only after that.
                for read in read_all(&content, &[0..CHUNK, PART..2 * PART]).await {
                    read.unwrap();
                }
                content.go_on.ring();
                content.assert_settled().await;
            });
        },
        3_000,
    );
}

#[test]
fn readers_of_a_large_file_get_their_bytes_by_as_few_requests_as_it_has_parts() {
    check(
        || {
            block_on(async {
                let content = Content::new(2 * PART + CHUNK, []);
                let ranges = [0..PART + CHUNK, PART..2 * PART, CHUNK..u64::MAX];
                for read in read_all(&content, &ranges).await {
                    read.unwrap();
                }
                // One more when the last bytes come in two parts.
                assert!(content.known().begun <= 6, "{} requests", content.known().begun);
                content.assert_settled().await;
            });
        },
        2_000,
    );
}

#[test]
fn transfers_that_nobody_waits_for_complete_a_content_too() {
    check(
        || {
            block_on(async {
                let content = Content::new(2 * PART, []);
                // Pins the version.
                Arc::clone(&content).read(0..CHUNK).await.unwrap();
                content.read_ahead(&(0..2 * PART));
                content.assert_settled().await;
                assert!(content.fetch.state().complete);
            });
        },
        3_000,
    );
}

#[test]
fn a_failure_is_met_by_those_who_waited_for_it_and_by_nobody_who_came_after() {
    check(
        || {
            block_on(async {
                let content = Content::new(2 * PART, [Fate::Failed]);
                let first = spawn(Arc::clone(&content).read(0..u64::MAX));
                let second = {
                    let content = Arc::clone(&content);
                    spawn(async move {
                        let came_after = {
                            let state = content.fetch.state();
                            state.claims > 0 && !state.is_fetched()
                        };
                        let read = Arc::clone(&content).read(0..u64::MAX).await;
                        assert!(!came_after || read.is_ok(), "a failure from before it came");
                    })
                };
                let first = first.await.unwrap();
                second.await.unwrap();
                let begun = content.known().begun;
                assert!(begun > 1 || first.is_err(), "it waited for the only transfer, which failed");
                content.assert_settled().await;
            });
        },
        5_000,
    );
}

#[test]
fn whoever_waits_for_a_transfer_that_is_abandoned_makes_another_one() {
    check(
        || {
            block_on(async {
                let content = Content::new(2 * PART, [Fate::Abandoned]);
                content.read_ahead(&(0..PART));
                for read in read_all(&content, &[0..u64::MAX, 0..PART]).await {
                    read.unwrap();
                }
                content.assert_settled().await;
            });
        },
        3_000,
    );
}

#[test]
fn two_uploads_are_never_stitched_together() {
    check(
        || {
            block_on(async {
                let content = Content::new(3 * PART, []);
                content.known().replaced = true;
                let replacing = {
                    let content = Arc::clone(&content);
                    spawn(async move {
                        yield_now().await;
                        content.known().upload = 1;
                    })
                };
                // They may fail: an upload may be gone whose bytes were shown.
                drop(read_all(&content, &[0..u64::MAX, PART..2 * PART]).await);
                replacing.await.unwrap();
                content.assert_settled().await;
            });
        },
        5_000,
    );
}

#[test]
fn what_is_forgotten_while_it_is_compared_does_not_count_as_complete() {
    check(
        || {
            block_on(async {
                let content = Content::new(CHUNK, []);
                content.known().replaced = true;
                let reader = spawn(Arc::clone(&content).read(0..CHUNK));
                // As somebody does who reads the same bytes past the cache and finds another hash.
                let streaming = {
                    let content = Arc::clone(&content);
                    spawn(async move {
                        yield_now().await;
                        let mut state = content.fetch.state();
                        if !state.complete {
                            state.forget();
                        }
                    })
                };
                reader.await.unwrap().unwrap();
                streaming.await.unwrap();
                content.assert_settled().await;
            });
        },
        3_000,
    );
}
