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

/// Runs the check below a unique prefix of `s3://BUCKET[/PREFIX]` or `gs://BUCKET[/PREFIX]`.
pub async fn run(source: &str, check: impl AsyncFn(&str, Arc<dyn ObjectStore>)) {
    let unique = format!("swamp-mount-test-{:016x}", fastrand::u64(..));
    let (kind, store) = open(&format!("{}/{unique}", source.trim_end_matches('/'))).await;
    let name = format!("{kind} in the cloud, {}", store.describe());
    leave_nothing(store, async |store| check(&name, store).await).await;
}

/// Runs a check and removes what it left, also when it fails.
pub async fn leave_nothing(store: Arc<dyn ObjectStore>, check: impl AsyncFnOnce(Arc<dyn ObjectStore>)) {
    let outcome = AssertUnwindSafe(check(store.clone())).catch_unwind().await;
    clear(&*store).await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Opens a source with the credentials of the environment.
pub async fn open(source: &str) -> (&'static str, Arc<dyn ObjectStore>) {
    let endpoint_url = named("SWAMP_TEST_CLOUD_ENDPOINT");
    // A bucket allows about one write of an object per second, and the promises make many.
    let policy = RequestPolicy { timeout: Duration::from_secs(60), attempts: 8, ..RequestPolicy::default() };
    match &Source::parse(source, None).expect("a source") {
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
    }
}

fn named(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|value| !value.is_empty())
}

/// Deletes everything below the store's prefix.
pub async fn clear(store: &dyn ObjectStore) {
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
