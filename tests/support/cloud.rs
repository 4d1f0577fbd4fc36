//! A real bucket to run promises over: below a prefix of its own, which is empty again afterwards, also when a check fails.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use swamp_mount::config::{Source, StoreConfig};
use swamp_mount::store::{ListRequest, ObjectStore};

/// Opens `s3://BUCKET[/PREFIX]` or `gs://BUCKET[/PREFIX]` with the credentials of the environment, runs the check below a
/// unique prefix, and removes what it left.
pub async fn run(source: &str, check: impl AsyncFn(&str, Arc<dyn ObjectStore>)) {
    let unique = format!("swamp-mount-test-{:016x}", fastrand::u64(..));
    let source = Source::parse(&format!("{}/{unique}", source.trim_end_matches('/')), None).expect("a source");
    let kind = match &source {
        Source::Gcs { .. } => "gcs",
        Source::S3 { .. } => "s3",
        Source::Dir { .. } => panic!("a directory is no cloud; it is among the stores of every run"),
    };
    let named = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let config = StoreConfig {
        source,
        region: None,
        project: named("SWAMP_TEST_CLOUD_PROJECT"),
        endpoint_url: named("SWAMP_TEST_CLOUD_ENDPOINT"),
        force_path_style: false,
        request_timeout: Duration::from_secs(60),
    };
    let store = swamp_mount::mount::store::open(&config).await.unwrap_or_else(|error| panic!("{error}"));
    let name = format!("{kind} in the cloud, {}", store.describe());
    let outcome = AssertUnwindSafe(check(&name, store.clone())).catch_unwind().await;
    clear(&*store).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Deletes everything below the store's prefix.
async fn clear(store: &dyn ObjectStore) {
    loop {
        let page = store.list(ListRequest::default()).await.unwrap_or_else(|error| panic!("cannot clean up: {error}"));
        if page.objects.is_empty() {
            return;
        }
        for object in page.objects {
            let deleted = store.delete(&object.key, None).await;
            deleted.unwrap_or_else(|error| panic!("cannot clean up {:?} of {}: {error}", object.key, store.describe()));
        }
    }
}
