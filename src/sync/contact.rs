//! Whether the bucket answers at all: a reader must learn within seconds that it does not, although a request may take much
//! longer.
//!
//! Depends on the store. Invariants: nothing is taken for an outage while anything arrives from the bucket; those who wait
//! look one at a time; any answer is an answer, a refusal too.

use std::time::{Duration, Instant};

use super::{Engine, FetchError, SyncError};
use crate::datastore::names::INDEX_KEY;
use crate::store::{Heard, StoreError, StoreErrorKind};

/// After so long without a byte from the bucket somebody who waits for one looks whether it answers.
const QUIET: Duration = Duration::from_secs(5);
/// How long that look waits.
const LOOK: Duration = Duration::from_secs(5);

/// See the module.
#[derive(Debug)]
pub(super) struct Contact {
    heard: Heard,
    /// Held while somebody looks; what the last look that got no answer says, and when it ended.
    looking: tokio::sync::Mutex<Option<(Instant, StoreError)>>,
}

impl Contact {
    pub fn new(heard: Heard) -> Self {
        Self { heard, looking: tokio::sync::Mutex::default() }
    }

    fn is_quiet(&self) -> bool {
        self.heard.ago() >= QUIET
    }
}

/// The bucket does not answer.
#[derive(Debug)]
pub(super) struct Silent(StoreError);

impl From<Silent> for SyncError {
    fn from(silent: Silent) -> Self {
        silent.0.into()
    }
}

impl Engine {
    /// Waits for work that needs the bucket, but not for long when nothing answers.
    ///
    /// # Errors
    /// When nothing does.
    pub(super) async fn while_in_contact<T>(&self, work: impl Future<Output = T>) -> Result<T, Silent> {
        let mut work = std::pin::pin!(work);
        loop {
            let look = async {
                tokio::time::sleep(QUIET).await;
                self.look_for_contact().await
            };
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                looked = look => looked?,
            }
        }
    }

    /// The same for a reader: the next one need not find out by itself.
    ///
    /// # Errors
    /// [`FetchError::Unreachable`].
    pub(super) async fn read_in_contact<T>(&self, work: impl Future<Output = T>) -> Result<T, FetchError> {
        self.while_in_contact(work).await.map_err(|silent| {
            let reason = silent.0.to_string();
            if self.cut_off().is_none() {
                self.note_error("read", &silent.into());
            }
            FetchError::Unreachable(self.cut_off().unwrap_or(reason).into())
        })
    }

    /// For somebody who has waited for [`QUIET`]: looks whether the bucket answers, unless it does so to others.
    async fn look_for_contact(&self) -> Result<(), Silent> {
        if !self.contact.is_quiet() {
            return Ok(());
        }
        let came = Instant::now();
        let mut last = self.contact.looking.lock().await;
        if !self.contact.is_quiet() {
            return Ok(());
        }
        if let Some((_, error)) = last.as_ref().filter(|(ended, _)| *ended >= came) {
            return Err(Silent(error.clone()));
        }
        match self.look().await {
            // What came meanwhile, came.
            Err(error) if self.contact.is_quiet() => {
                *last = Some((Instant::now(), error.clone()));
                Err(Silent(error))
            }
            _ => Ok(()),
        }
    }

    /// One short look whether the bucket answers.
    ///
    /// # Errors
    /// When it does not.
    pub(super) async fn look(&self) -> Result<(), StoreError> {
        match tokio::time::timeout(LOOK, self.store.head(INDEX_KEY)).await {
            Ok(Err(error)) if error.kind == StoreErrorKind::Unreachable => Err(error),
            Ok(_) => Ok(()),
            Err(_) => {
                let message = format!("no answer within {LOOK:?}");
                Err(StoreError::new(StoreErrorKind::Unreachable, "look up", INDEX_KEY, message))
            }
        }
    }
}
