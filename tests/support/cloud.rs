//! A real bucket to run promises over: below a prefix of its own, which is empty again afterwards, also when a check fails.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use swamp_mount::config::Source;
#[cfg(feature = "gcs")]
use swamp_mount::store::{GcsOptions, GcsStore};
use swamp_mount::store::{ListRequest, ObjectStore, RequestPolicy};
#[cfg(feature = "s3")]
use swamp_mount::store::{S3Options, S3Store};

/// Opens `s3://BUCKET[/PREFIX]` or `gs://BUCKET[/PREFIX]` with the credentials of the environment, runs the check below a
/// unique prefix, and removes what it left.
pub async fn run(source: &str, check: impl AsyncFn(&str, Arc<dyn ObjectStore>)) {
    let unique = format!("swamp-mount-test-{:016x}", fastrand::u64(..));
    let source = Source::parse(&format!("{}/{unique}", source.trim_end_matches('/')), None).expect("a source");
    let endpoint_url = named("SWAMP_TEST_CLOUD_ENDPOINT");
    // A bucket allows about one write of an object per second, and the promises make many.
    let policy =
        RequestPolicy { timeout: Duration::from_secs(60), attempts: 8, first_backoff: Duration::from_millis(500) };
    let (kind, store): (_, Arc<dyn ObjectStore>) = match &source {
        #[cfg(feature = "gcs")]
        Source::Gcs { bucket, prefix } => {
            let project = named("SWAMP_TEST_CLOUD_PROJECT");
            let options = GcsOptions { project, endpoint_url, policy, ..GcsOptions::new(bucket, prefix) };
            ("gcs", Arc::new(GcsStore::connect(options).await.unwrap_or_else(|error| panic!("{error}"))))
        }
        #[cfg(feature = "s3")]
        Source::S3 { bucket, prefix } => {
            let options = S3Options { endpoint_url, policy, ..S3Options::new(bucket, prefix) };
            ("s3", Arc::new(S3Store::connect(options).await.unwrap_or_else(|error| panic!("{error}"))))
        }
        other => panic!("{other} is no bucket, or of a kind that this build lacks"),
    };
    let name = format!("{kind} in the cloud, {}", store.describe());
    let outcome = AssertUnwindSafe(check(&name, store.clone())).catch_unwind().await;
    clear(&*store).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn named(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
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
