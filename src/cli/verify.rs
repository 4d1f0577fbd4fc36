//! `swamp-mount verify SOURCE`.
//!
//! Depends on `datastore` and `store`. Reads, and never writes: whether conditional writes are honoured is proven by the
//! first write of a mount.

use std::time::{Duration, Instant};

use super::arguments::VerifyArgs;
use super::transfer::block_on;
use super::{Ended, output};
use crate::config::Environment;
use crate::datastore::{INDEX_KEY, Index, IndexRead, Seen, discover, read_index};
use crate::mount::{MountError, store};
use crate::store::{ObjectStore, StoreError, StoreErrorKind};

/// Requests from which latency is told.
const REQUESTS: usize = 5;
/// Problems of the index that are listed.
const SHOWN: usize = 10;

pub fn run(args: &VerifyArgs, environment: &Environment) -> Result<Ended, MountError> {
    let config = args.store.config(&args.source, environment)?;
    output::result(&format!("source       {config}\n"));
    if let Some(endpoint) = config.endpoint(environment) {
        output::result(&format!("endpoint     {endpoint}\n"));
    }
    block_on(async {
        let datastore = store::open(&config).await?;
        if let Some(warning) = store::foreign_owner(&datastore).await {
            output::notice(&warning);
        }
        let store = datastore.store();
        let latencies = reach(&**store).await?;
        output::result("reachable    yes, with these credentials\n");
        output::result(&format!("latency      {}\n", describe(&latencies)));
        let (index, found) = match read_index(&**store, None, Seen::Never).await? {
            IndexRead::Present(remote) => (remote.index, "readable"),
            IndexRead::Missing | IndexRead::NotModified => (
                discover(&**store, datastore.namespace().is_some()).await?,
                "missing; made from a listing, as a first mount does",
            ),
        };
        output::result(&format!("index        {found}\n"));
        report_entries(&index);
        output::result(
            "conditions   checked at the first write: a store that ignores them makes the mount read-only\n",
        );
        Ok(Ended::Done)
    })?
}

fn report_entries(index: &Index) {
    output::result(&format!("entries      {}\n", index.len()));
    let problems = index.problems();
    if problems.is_empty() {
        return;
    }
    output::result(&format!(
        "problems     {} entries cannot be shown as files (they stay in the index):\n",
        problems.len()
    ));
    for problem in problems.iter().take(SHOWN) {
        output::result(&format!("             {:?}: {}\n", problem.name, problem.reason));
    }
    if problems.len() > SHOWN {
        output::result(&format!("             and {} more\n", problems.len() - SHOWN));
    }
}

/// A few small requests, one after another. An absent object is an answer too.
async fn reach(store: &dyn ObjectStore) -> Result<Vec<Duration>, StoreError> {
    let mut latencies = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let start = Instant::now();
        match store.head(INDEX_KEY).await {
            Ok(_) => {}
            Err(error) if error.kind == StoreErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        latencies.push(start.elapsed());
    }
    latencies.sort();
    Ok(latencies)
}

fn describe(sorted: &[Duration]) -> String {
    let ms = |at: usize| sorted.get(at).map(|latency| latency.as_secs_f64() * 1000.0).unwrap_or_default();
    format!("{:.1} ms (fastest {:.1}, slowest {:.1})", ms(sorted.len() / 2), ms(0), ms(sorted.len().saturating_sub(1)))
}
