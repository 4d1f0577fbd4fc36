//! The tasks behind a mount: refresh, record what was fetched and opened, evict, flush what is idle.
//!
//! Each is a loop that nothing but `Engine::close` ends; failures are noted and retried, later and later.

use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use crate::volume::PushSelection;

const RECORD_TICK: Duration = Duration::from_millis(25);
const RECORD_TICKS: u32 = 20;
/// The order of opens may be older by so much after a crash.
const OPENS_TICK: Duration = Duration::from_secs(10);
const RECORD_AT_ONCE: usize = 256;
/// Readers fail at once until a refresh finds the bucket again.
const OFFLINE_REFRESH: Duration = Duration::from_secs(5);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// Every `--refresh` seconds one look at the index.
pub(super) async fn refresh(engine: Arc<Engine>) {
    loop {
        let soon = engine.options.refresh.min(OFFLINE_REFRESH);
        if engine.cut_off().is_some() {
            tokio::time::sleep(soon).await;
            // A request that was sent while nothing answers may wait for its deadline long after that is over.
            if let Err(error) = engine.look().await {
                tracing::debug!(%error, "still no answer");
                continue;
            }
        } else {
            tokio::select! {
                () = tokio::time::sleep(engine.options.refresh) => {}
                // A push or a reader found that nothing answers.
                () = engine.lost_contact.notified() => tokio::time::sleep(soon).await,
            }
        }
        // Noted by the refresh itself; the next one tries again.
        if let Err(error) = engine.refresh().await {
            tracing::debug!(%error, "refresh");
        }
    }
}

/// Records fetched contents once their bytes are durable.
pub(super) async fn record(engine: Arc<Engine>) {
    loop {
        engine.volume.wait_for_fetch().await;
        for _ in 0..RECORD_TICKS {
            tokio::time::sleep(RECORD_TICK).await;
            if engine.volume.unrecorded() > RECORD_AT_ONCE {
                break;
            }
        }
        let volume = Arc::clone(&engine.volume);
        match tokio::task::spawn_blocking(move || volume.record_fetched().and_then(|()| volume.remove_doomed())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot record what was fetched or removed; the next try or start does")
            }
            Err(error) => tracing::error!(%error, "recording failed"),
        }
    }
}

/// Records in batches which contents were opened.
pub(super) async fn remember_opens(engine: Arc<Engine>) {
    loop {
        engine.volume.wait_for_open().await;
        tokio::time::sleep(OPENS_TICK).await;
        let volume = Arc::clone(&engine.volume);
        match tokio::task::spawn_blocking(move || volume.record_opened()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "the order of opens is not recorded"),
            Err(error) => tracing::error!(%error, "recording failed"),
        }
    }
}

/// Evicts what is too much, and tells the kernel of what was evicted.
pub(super) async fn keep_room(engine: Arc<Engine>) {
    loop {
        engine.volume.wait_for_pressure().await;
        let volume = Arc::clone(&engine.volume);
        if let Err(error) = tokio::task::spawn_blocking(move || volume.trim()).await {
            tracing::error!(%error, "evicting failed");
        }
        engine.tell_kernel(engine.volume.take_eviction_notices());
    }
}

/// Flushes what was left alone for `--flush-after`, or waits since `--flush-max-age`.
pub(super) async fn flush(engine: Arc<Engine>) {
    if engine.options.read_only {
        return;
    }
    let selection = PushSelection::Idle { quiet: engine.options.flush_after, max_age: engine.options.flush_max_age };
    let poll = (engine.options.flush_after / 4).clamp(Duration::from_millis(50), Duration::from_secs(1));
    let mut retry = FIRST_RETRY;
    loop {
        if engine.pending().is_empty() {
            engine.volume.wait_for_change().await;
        }
        tokio::time::sleep(poll).await;
        if engine.volume.plan_push(selection).is_empty() {
            continue;
        }
        match engine.push(selection).await {
            Ok(index_write) => {
                retry = FIRST_RETRY;
                // Index writes are expensive for everybody who shares the bucket.
                tokio::time::sleep(index_write * 5).await;
            }
            Err(reasons) => {
                tracing::warn!(?reasons, retry_in = ?retry, "the background flush failed");
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
    }
}
