//! The two locks of a namespace and its registration: what older and newer clients exclude, a holder of both excludes.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::bucket::{Kind, each};
use support::hooked::{HookedStore, Verdict};
use swamp_mount::datastore::*;
use swamp_mount::store::StoreErrorKind;
use tokio::time::{Instant, sleep};

const OUTER: &str = ".locks/ns.lock";
const FILE: &str = ".namespace.json";

/// A namespace: the bucket around it, and what it sees itself.
struct Space {
    bucket: Arc<HookedStore>,
    inside: Arc<HookedStore>,
}

impl Space {
    async fn new(kind: &'static Kind) -> Self {
        Self { bucket: HookedStore::new(kind).await, inside: HookedStore::new(kind).await }
    }

    fn datastore(&self, repo: Option<&str>) -> Datastore {
        let name = Namespace::parse("ns").expect("valid");
        Datastore::in_namespace(self.bucket.clone(), self.inside.clone(), name, repo.map(str::to_owned))
    }

    async fn lock(&self, wait: u64) -> Result<HeldLock, LockError> {
        self.datastore(None).lock(&options(wait)).await
    }

    fn places(&self) -> [(&Arc<HookedStore>, &'static str, &'static str); 2] {
        [(&self.bucket, OUTER, OUTER), (&self.inside, LOCK_KEY, "ns/.datastore.lock")]
    }
}

fn options(wait: u64) -> LockOptions {
    LockOptions { wait: Duration::from_secs(wait), ..LockOptions::default() }
}

fn foreign(ttl_ms: u64) -> String {
    format!(r#"{{"holder":"other@host","hostname":"host","pid":9,"acquiredAt":"x","ttlMs":{ttl_ms},"nonce":"theirs"}}"#)
}

#[tokio::test(start_paused = true)]
async fn both_are_held_with_one_nonce_and_both_are_given_back() {
    each(async |kind| {
        let space = Space::new(kind).await;
        let lock = space.lock(1).await.unwrap();
        for (store, key, _) in space.places() {
            let body = LockBody::parse(store.text(key).expect(key).as_bytes()).unwrap();
            assert_eq!(body.nonce, lock.nonce(), "{key}");
        }
        assert!(lock.prove_conditions().await.unwrap());
        sleep(Duration::from_secs(100)).await;
        lock.check().unwrap();
        for (store, key, _) in space.places() {
            assert!(!inspect(&**store, key).await.unwrap().unwrap().is_stale(), "{key} is renewed");
        }
        lock.release().await;
        assert_eq!((space.bucket.keys(), space.inside.keys()), (vec![], vec![]));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_holder_of_either_keeps_us_out_and_is_named() {
    each(async |kind| {
        for at in 0..2 {
            let space = Space::new(kind).await;
            let (store, key, shown) = space.places()[at];
            let holder = acquire(store.clone(), &LockOptions { key: key.to_owned(), ..options(1) }).await.unwrap();
            let error = space.lock(20).await.unwrap_err();
            assert!(matches!(&error, LockError::Busy { key, .. } if key == shown), "{error}");
            let (other, key, _) = space.places()[1 - at];
            assert_eq!(other.text(key), None, "nothing is held after a failure");
            holder.release().await;
            space.lock(1).await.unwrap().release().await;
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn either_is_taken_over_when_it_is_stale() {
    each(async |kind| {
        for at in 0..2 {
            let space = Space::new(kind).await;
            let (store, key, _) = space.places()[at];
            store.set(key, foreign(5000));
            let start = Instant::now();
            let lock = space.lock(60).await.unwrap();
            assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
            lock.check().unwrap();
            lock.release().await;
            assert_eq!(store.text(key), None);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_loss_of_either_is_noticed_and_the_thief_left_alone() {
    each(async |kind| {
        for at in 0..2 {
            let space = Space::new(kind).await;
            let lock = space.lock(1).await.unwrap();
            let (store, key, _) = space.places()[at];
            store.set(key, foreign(30_000));
            sleep(Duration::from_secs(11)).await;
            assert!(matches!(lock.check(), Err(LockError::Lost(_))), "{key}");
            lock.release().await;
            assert_eq!(store.text(key), Some(foreign(30_000)));
            let (other, key, _) = space.places()[1 - at];
            assert_eq!(other.text(key), None, "the one that was still ours is given back");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_first_writer_of_a_known_repository_registers_the_namespace_once() {
    each(async |kind| {
        let space = Space::new(kind).await;
        space.lock(1).await.unwrap().release().await;
        assert_eq!(space.inside.text(FILE), None, "nobody knows for whom");
        let datastore = space.datastore(Some("repo-1"));
        datastore.lock(&options(1)).await.unwrap().release().await;
        let text = space.inside.text(FILE).expect("registered");
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&value["namespace"], &value["repoId"]), (&"ns".into(), &"repo-1".into()));
        assert!(parse_nanos(value["registeredAt"].as_str().unwrap()).is_some());
        space.inside.take_requests();
        datastore.lock(&options(1)).await.unwrap().release().await;
        assert!(!space.inside.take_requests().iter().any(|request| request.contains(FILE)), "looked at once");

        let other = space.datastore(Some("repo-2"));
        let warning = other.foreign_owner().await.unwrap().expect("a warning");
        assert!(warning.contains("repo-1") && warning.contains("repo-2"), "{warning}");
        assert_eq!(datastore.foreign_owner().await.unwrap(), None);
        other.lock(&options(1)).await.unwrap().release().await;
        assert_eq!(space.inside.text(FILE), Some(text), "a registration is never replaced");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_fails_or_races_stops_no_writer() {
    each(async |kind| {
        let space = Space::new(kind).await;
        space.inside.hook(|_, _, key| match key {
            FILE => Verdict::Fail(StoreErrorKind::Forbidden),
            _ => Verdict::Proceed,
        });
        let datastore = space.datastore(Some("repo-1"));
        datastore.lock(&options(1)).await.unwrap().release().await;
        space.inside.before("put", FILE, |store| store.set(FILE, r#"{"repoId":"faster"}"#));
        datastore.lock(&options(1)).await.unwrap().release().await;
        assert_eq!(space.inside.text(FILE).as_deref(), Some(r#"{"repoId":"faster"}"#));
    })
    .await;
}
