//! A datastore as those who use it get it: its objects, its locks, and what the first writer of a namespace registers.
//!
//! Depends on `store`, the lock and the namespaces. Invariants: the store sees the objects of this datastore and nothing
//! else; with a namespace both locks are held, the outer one first, and each place where some release looks for a lock is
//! covered; a registration that cannot be read or written stops nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lock::{self, ForceReleased, HeldLock, LockError, LockOptions, acquire, acquire_as};
use super::lock_body::LockStatus;
use super::names::LOCK_KEY;
use super::namespace::{Namespace, register, registration};
use crate::store::{ObjectStore, StoreError};

/// See the module.
#[derive(Clone)]
pub struct Datastore {
    store: Arc<dyn ObjectStore>,
    space: Option<Arc<Space>>,
}

/// What a namespace adds.
struct Space {
    name: Namespace,
    /// The bucket around it, below the same prefix.
    bucket: Arc<dyn ObjectStore>,
    /// The repository that works in it, when that is known.
    repo_id: Option<String>,
    /// Whether the registration was looked at by a writer.
    registered: AtomicBool,
}

/// One lock object of a datastore.
#[derive(Clone, Debug)]
pub struct LockFound {
    /// Its key, relative to the bucket's prefix.
    pub key: String,
    /// What it says; `None` when it is free.
    pub status: Option<LockStatus>,
}

impl Datastore {
    /// The datastore that fills a store, without a namespace.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, space: None }
    }

    /// The datastore of a namespace: `store` sees what lies below `bucket`'s `name/`.
    pub fn in_namespace(
        bucket: Arc<dyn ObjectStore>,
        store: Arc<dyn ObjectStore>,
        name: Namespace,
        repo_id: Option<String>,
    ) -> Self {
        let space = Space { name, bucket, repo_id, registered: AtomicBool::new(false) };
        Self { store, space: Some(Arc::new(space)) }
    }

    /// The objects of this datastore.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The bucket around it (below the prefix): where the namespaces lie.
    pub fn bucket(&self) -> &Arc<dyn ObjectStore> {
        self.space.as_ref().map_or(&self.store, |space| &space.bucket)
    }

    /// Its namespace.
    pub fn namespace(&self) -> Option<&Namespace> {
        self.space.as_ref().map(|space| &space.name)
    }

    /// Takes the datastore's lock: with a namespace first the one beside the namespaces, which older clients take, then the
    /// one inside, which newer ones take; both have the same nonce, and `options.wait` is the patience for each. The first
    /// time, an unregistered namespace is registered.
    ///
    /// # Errors
    /// [`LockError::Busy`] names the holder. Nothing is held then.
    pub async fn lock(&self, options: &LockOptions) -> Result<HeldLock, LockError> {
        let Some(space) = &self.space else { return acquire(Arc::clone(&self.store), options).await };
        let nonce = lock::new_nonce();
        let outer = LockOptions { key: space.name.outer_lock_key(), ..options.clone() };
        let outer = acquire_as(Arc::clone(&space.bucket), &outer, nonce.clone()).await?;
        match acquire_as(Arc::clone(&self.store), options, nonce).await {
            Ok(inner) => {
                let held = inner.inside(outer);
                self.register(space).await;
                Ok(held)
            }
            Err(error) => {
                outer.release().await;
                Err(match error {
                    LockError::Busy { key, holder, waited } => {
                        LockError::Busy { key: format!("{}/{key}", space.name), holder, waited }
                    }
                    other => other,
                })
            }
        }
    }

    async fn register(&self, space: &Space) {
        let Some(repo_id) = &space.repo_id else { return };
        if space.registered.load(Ordering::Relaxed) {
            return;
        }
        match register(&*self.store, &space.name, repo_id).await {
            Ok(found) => {
                space.registered.store(true, Ordering::Relaxed);
                if let Some(warning) = differs(&space.name, repo_id, found.repo_id.as_deref()) {
                    tracing::warn!("{warning}");
                }
            }
            Err(error) => tracing::warn!(%error, namespace = %space.name, "the namespace is not registered yet"),
        }
    }

    /// A warning, when the namespace is registered for another repository than the one at work.
    ///
    /// # Errors
    /// When the registration cannot be read.
    pub async fn foreign_owner(&self) -> Result<Option<String>, StoreError> {
        let Some(space) = &self.space else { return Ok(None) };
        let Some(repo_id) = &space.repo_id else { return Ok(None) };
        let found = registration(&*self.store, &space.name).await?;
        Ok(found.and_then(|found| differs(&space.name, repo_id, found.repo_id.as_deref())))
    }

    /// Where the locks are, in the order in which they are taken.
    fn locks(&self) -> Vec<(&dyn ObjectStore, String, String)> {
        let Some(space) = &self.space else { return vec![(&*self.store, LOCK_KEY.to_owned(), LOCK_KEY.to_owned())] };
        let outer = space.name.outer_lock_key();
        let inner = format!("{}/{LOCK_KEY}", space.name);
        vec![(&*space.bucket, outer.clone(), outer), (&*self.store, LOCK_KEY.to_owned(), inner)]
    }

    /// Looks at every lock.
    ///
    /// # Errors
    /// When one cannot be read.
    pub async fn inspect_locks(&self) -> Result<Vec<LockFound>, LockError> {
        let mut found = Vec::new();
        for (store, key, shown) in self.locks() {
            found.push(LockFound { key: shown, status: lock::inspect(store, &key).await? });
        }
        Ok(found)
    }

    /// Removes every lock whoever holds it; with an expected nonce those that have it. Gives those that were removed.
    ///
    /// # Errors
    /// [`LockError::NonceDiffers`] when there are locks and none has the nonce; nothing was removed then.
    pub async fn force_release_locks(&self, expected_nonce: Option<&str>) -> Result<Vec<LockFound>, LockError> {
        let (mut removed, mut differs) = (Vec::new(), None);
        // In the reverse order, as a release.
        for (store, key, shown) in self.locks().into_iter().rev() {
            match lock::force_release(store, &key, expected_nonce).await {
                Ok(ForceReleased::Absent) => {}
                Ok(ForceReleased::Released(status)) => removed.push(LockFound { key: shown, status: Some(status) }),
                Err(error @ LockError::NonceDiffers { .. }) => differs = Some(error),
                Err(error) => return Err(error),
            }
        }
        match differs {
            Some(error) if removed.is_empty() => Err(error),
            _ => Ok(removed),
        }
    }
}

fn differs(name: &Namespace, ours: &str, theirs: Option<&str>) -> Option<String> {
    let theirs = theirs.filter(|theirs| *theirs != ours)?;
    Some(format!(
        "the namespace {name:?} is registered for another repository ({theirs}), and this one is {ours}: both would write the same files; choose another namespace unless that is meant",
        name = name.as_str()
    ))
}
