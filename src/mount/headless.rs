//! Pushing what an ended mount left behind, without mounting.
//!
//! Depends on `finish`. The same lock, engine and control socket as a mount, so that others see who is at work.

use std::sync::Arc;
use std::time::Duration;

use super::finish::{Patience, Running};
use super::instance::{Instance, InstanceError};
use super::link::History;
use super::registry::Registration;
use super::signals::Signals;
use super::{End, MountError, client, store};
use crate::config::{CacheConfig, EngineConfig, StoreConfig};
use crate::sync::engine::Engine;
use crate::sync::status::Pending;
use crate::tree::Incarnation;

/// Pushes everything that the cache root holds; `progress` is called with what is left.
pub fn flush(
    store_config: &StoreConfig,
    cache: &CacheConfig,
    engine_config: &EngineConfig,
    progress: impl Fn(Pending),
) -> Result<End, MountError> {
    let runtime = super::session::runtime()?;
    let end = runtime.block_on(async {
        let mut signals = Signals::listen().map_err(MountError::system("listen to signals"))?;
        let instance = acquire(store_config, cache)?;
        let starting = async {
            let datastore = store::open(store_config).await?;
            let options =
                super::session::engine_options(instance.root(), store_config, engine_config, Incarnation::default());
            Ok::<_, MountError>(Engine::start(options, datastore).await?)
        };
        let engine = tokio::select! {
            engine = starting => engine?,
            signal = signals.next() => return Err(MountError::Background(format!("interrupted by {}", signal.name()))),
        };
        let registration = Registration::new(instance.root(), cache, store_config, None);
        let mut running = Running::new(Arc::clone(&engine), instance, signals, None, false, &History::default())?;
        let watching = async {
            loop {
                progress(engine.pending());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        let pushed = tokio::select! {
            pushed = running.push(None, Patience::OneAttempt) => pushed,
            () = watching => Ok(()),
        };
        Ok(running.end(pushed, registration).await)
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    end
}

/// Takes the cache root, or says who has it.
pub fn acquire(store_config: &StoreConfig, cache: &CacheConfig) -> Result<Instance, MountError> {
    held_in_words(Instance::acquire(cache, &store_config.to_string(), None))
}

/// Makes "in use" say by whom and what for.
pub(super) fn held_in_words(acquired: Result<Instance, InstanceError>) -> Result<Instance, MountError> {
    acquired.map_err(|error| match error {
        InstanceError::Held { root, holder } => MountError::Held(client::describe_holder(&root, holder.as_ref())),
        other => other.into(),
    })
}
