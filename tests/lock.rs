//! The distributed lock: one holder at a time, stale ones are taken over, and a holder that lost it notices.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::bucket::each;
use support::hooked::{HookedStore, Verdict};
use swamp_mount::datastore::*;
use swamp_mount::store::{ObjectStore, StoreErrorKind};
use tokio::time::{Instant, sleep};

fn options(wait_seconds: u64) -> LockOptions {
    LockOptions { ttl: Duration::from_secs(30), wait: Duration::from_secs(wait_seconds), ..LockOptions::default() }
}

fn foreign(ttl: &str) -> String {
    format!(r#"{{"holder":"other@host","hostname":"host","pid":9,"acquiredAt":"x",{ttl}"nonce":"theirs"}}"#)
}

async fn take(store: &Arc<HookedStore>, wait: u64) -> Result<HeldLock, LockError> {
    acquire(store.clone(), &options(wait)).await
}

#[tokio::test(start_paused = true)]
async fn a_second_one_waits_for_the_release() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        let first = take(&store, 1).await.unwrap();
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { take(&store, 60).await }
        });
        sleep(Duration::from_secs(10)).await;
        assert!(!waiting.is_finished());
        assert_eq!(LockBody::parse(store.text(LOCK_KEY).unwrap().as_bytes()).unwrap().nonce, first.nonce());
        first.release().await;
        let second = waiting.await.unwrap().unwrap();
        second.check().unwrap();
        second.release().await;
        assert!(store.text(LOCK_KEY).is_none());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_lock_names_its_holder() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        let _first = take(&store, 1).await.unwrap();
        let start = Instant::now();
        let error = take(&store, 60).await.unwrap_err();
        assert!(matches!(&error, LockError::Busy { holder, .. } if holder.contains(&options(0).holder)), "{error}");
        let waited = start.elapsed().as_secs();
        assert!((59..=62).contains(&waited), "{waited}");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_renewed_lock_never_goes_stale() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        let first = take(&store, 1).await.unwrap();
        sleep(Duration::from_secs(100)).await;
        first.check().unwrap();
        assert!(!inspect(&*store, LOCK_KEY).await.unwrap().unwrap().is_stale());
        assert!(matches!(take(&store, 40).await, Err(LockError::Busy { .. })));
        first.check().unwrap();
        first.release().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_stale_by_the_clock_of_the_store_is_taken_over_at_once() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set(LOCK_KEY, foreign(r#""ttlMs":30000,"#));
        store.age(LOCK_KEY, Duration::from_secs(31));
        let start = Instant::now();
        let tells_time = store.tells_time(LOCK_KEY).await;
        let lock = take(&store, 60).await.unwrap();
        // Without a clock of the store, it must have been watched for its time to live.
        let (least, most) = if tells_time { (0, 1) } else { (30, 40) };
        assert!((least..=most).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        lock.release().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_nobody_renews_is_taken_over_after_its_time_to_live() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set(LOCK_KEY, foreign(r#""ttlMs":5000,"#));
        let start = Instant::now();
        let lock = take(&store, 60).await.unwrap();
        assert!((5..9).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        lock.release().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_cannot_be_read_never_goes_stale() {
    each(async |kind| {
        for body in ["", "garbage", &foreign(""), &foreign(r#""ttlMs":"30000","#)] {
            let store = HookedStore::new(kind).await;
            store.set(LOCK_KEY, body);
            store.age(LOCK_KEY, Duration::from_secs(100_000));
            assert!(matches!(take(&store, 100).await, Err(LockError::Busy { .. })), "{body}");
            assert_eq!(store.text(LOCK_KEY).unwrap(), body);
            assert!(matches!(force_release(&*store, LOCK_KEY, None).await, Ok(ForceReleased::Released(_))));
            assert!(store.text(LOCK_KEY).is_none());
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn of_many_thieves_one_wins() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.set(LOCK_KEY, foreign(r#""ttlMs":1000,"#));
        store.age(LOCK_KEY, Duration::from_secs(2));
        let thieves: Vec<_> = (0..8)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(async move { take(&store, 20).await })
            })
            .collect();
        let mut held = Vec::new();
        for thief in thieves {
            held.extend(thief.await.unwrap().ok());
        }
        assert_eq!(held.len(), 1);
        held[0].check().unwrap();
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_was_robbed_notices_and_leaves_the_thief_alone() {
    each(async |kind| {
        for thief in [None, Some(foreign(r#""ttlMs":30000,"#))] {
            let store = HookedStore::new(kind).await;
            let lock = take(&store, 1).await.unwrap();
            match &thief {
                Some(body) => store.set(LOCK_KEY, body.clone()),
                None => store.remove(LOCK_KEY),
            }
            sleep(Duration::from_secs(11)).await;
            assert!(matches!(lock.check(), Err(LockError::Lost(_))));
            let read = RemoteIndex { index: Index::empty(), fresh: Fresh::new() };
            let writer = Writer { store: &*store, lock: &lock, unconditional: false };
            let written = write_index(writer, read, Index::empty(), &Edits::default()).await;
            assert!(matches!(written, Err(DatastoreError::Lock(LockError::Lost(_)))));
            assert!(store.text(INDEX_KEY).is_none(), "fenced off");
            lock.release().await;
            assert_eq!(store.text(LOCK_KEY), thief);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_no_loss_until_one_time_to_live_has_passed() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        let lock = take(&store, 1).await.unwrap();
        store.hook(|_, _, _| Verdict::Fail(StoreErrorKind::Unreachable));
        sleep(Duration::from_secs(25)).await;
        lock.check().unwrap();
        store.unhook();
        sleep(Duration::from_secs(25)).await;
        lock.check().unwrap();
        store.hook(|_, _, _| Verdict::Fail(StoreErrorKind::Unreachable));
        sleep(Duration::from_secs(45)).await;
        assert!(matches!(lock.check(), Err(LockError::Lost(_))));
        store.unhook();
        lock.release().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_taking_it_is_looked_up() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        store.lose_answer("put", LOCK_KEY);
        let start = Instant::now();
        let lock = take(&store, 60).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(LockBody::parse(store.text(LOCK_KEY).unwrap().as_bytes()).unwrap().nonce, lock.nonce());
        lock.release().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_a_renewal_loses_nothing() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        let lock = take(&store, 1).await.unwrap();
        store.lose_answer("put", LOCK_KEY);
        sleep(Duration::from_secs(60)).await;
        lock.check().unwrap();
        lock.release().await;
        assert!(store.text(LOCK_KEY).is_none());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_release_that_got_no_answer_makes_its_own_process_wait_for_nothing() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        let lock = take(&store, 1).await.unwrap();
        store.lose_answer("delete", LOCK_KEY);
        lock.release().await;
        assert!(store.text(LOCK_KEY).is_none());
        // And one that did not arrive.
        let lock = take(&store, 1).await.unwrap();
        store.hook(|_, _, _| Verdict::Fail(StoreErrorKind::Unreachable));
        lock.release().await;
        store.unhook();
        assert!(store.text(LOCK_KEY).is_some());
        let start = Instant::now();
        let lock = take(&store, 60).await.unwrap();
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(LockBody::parse(store.text(LOCK_KEY).unwrap().as_bytes()).unwrap().nonce, lock.nonce());
        lock.release().await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_forced_release_takes_only_the_expected_lock() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        assert!(matches!(force_release(&*store, LOCK_KEY, None).await, Ok(ForceReleased::Absent)));
        store.set(LOCK_KEY, foreign(r#""ttlMs":30000,"#));
        assert!(matches!(force_release(&*store, LOCK_KEY, Some("mine")).await, Err(LockError::NonceDiffers { .. })));
        store.before("delete", LOCK_KEY, |store| store.set(LOCK_KEY, foreign(r#""ttlMs":30001,"#)));
        assert!(matches!(force_release(&*store, LOCK_KEY, Some("theirs")).await, Err(LockError::ChangedMeanwhile)));
        assert!(matches!(force_release(&*store, LOCK_KEY, Some("theirs")).await, Ok(ForceReleased::Released(_))));
        assert!(store.text(LOCK_KEY).is_none());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_ignores_conditions_is_found_out() {
    each(async |kind| {
        let store = HookedStore::new(kind).await;
        let lock = take(&store, 1).await.unwrap();
        assert!(lock.prove_conditions().await.unwrap());
        store.ignores_conditions.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(!lock.prove_conditions().await.unwrap());
        let dynamic: Arc<dyn ObjectStore> = store.clone();
        assert_eq!(inspect(&*dynamic, LOCK_KEY).await.unwrap().unwrap().body.unwrap().nonce, lock.nonce());
        lock.release().await;
    })
    .await;
}
