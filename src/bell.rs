//! A bell: wakes one listener, also one that listens only after it was rung.
//!
//! Depends on `primitives` only, so that `tests/interleavings` can run through the orders in which threads meet. Invariant:
//! of a ring and a listener that listens after whatever he found before it, none is lost; rings that nobody heard count
//! as one.

use std::future::poll_fn;
use std::task::{Poll, Waker};

use crate::primitives::{Mutex, Place};

#[derive(Debug, Default)]
struct State {
    rung: bool,
    listener: Option<Waker>,
}

/// See the module.
#[derive(Debug)]
pub struct Bell(Mutex<State>);

impl Default for Bell {
    fn default() -> Self {
        Self(Mutex::new(Place::Leaf, State::default()))
    }
}

impl Bell {
    /// Wakes the listener, or the next one.
    pub fn ring(&self) {
        let listener = {
            let mut state = self.0.lock();
            state.rung = true;
            state.listener.take()
        };
        // Whatever a waker does, it does without the lock.
        if let Some(listener) = listener {
            listener.wake();
        }
    }

    /// Returns when it was rung since the last return. Of several that listen at a time only the last one hears it.
    pub async fn heard(&self) {
        poll_fn(|context| {
            let mut state = self.0.lock();
            if std::mem::take(&mut state.rung) {
                return Poll::Ready(());
            }
            state.listener = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
