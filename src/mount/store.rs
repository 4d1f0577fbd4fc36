//! From a configuration to an open store.
//!
//! Depends on `config` and `store`. A build without a kind of store says so.

use std::sync::Arc;

use crate::config::{Source, StoreConfig};
use crate::store::dir::DirStore;
use crate::store::{ObjectStore, StoreError};

/// Opens the store of a source. For buckets this makes no request yet.
pub async fn open(config: &StoreConfig) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match &config.source {
        Source::Dir { path, prefix } => Ok(Arc::new(DirStore::open(path, prefix)?)),
        Source::S3 { bucket, prefix } => s3(config, bucket, prefix).await,
        Source::Gcs { bucket, prefix } => gcs(config, bucket, prefix).await,
    }
}

#[cfg(any(feature = "s3", feature = "gcs"))]
fn policy(config: &StoreConfig) -> crate::store::RequestPolicy {
    crate::store::RequestPolicy { timeout: config.request_timeout, ..Default::default() }
}

#[cfg(feature = "s3")]
async fn s3(config: &StoreConfig, bucket: &str, prefix: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let options = crate::store::S3Options {
        region: config.region.clone(),
        endpoint_url: config.endpoint_url.clone(),
        force_path_style: config.force_path_style,
        policy: policy(config),
        ..crate::store::S3Options::new(bucket, prefix)
    };
    Ok(Arc::new(crate::store::S3Store::connect(options).await?))
}

#[cfg(feature = "gcs")]
async fn gcs(config: &StoreConfig, bucket: &str, prefix: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    let options = crate::store::GcsOptions {
        project: config.project.clone(),
        endpoint_url: config.endpoint_url.clone(),
        policy: policy(config),
        ..crate::store::GcsOptions::new(bucket, prefix)
    };
    Ok(Arc::new(crate::store::GcsStore::connect(options).await?))
}

#[cfg(not(feature = "s3"))]
async fn s3(config: &StoreConfig, _: &str, _: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Err(left_out(config, "s3"))
}

#[cfg(not(feature = "gcs"))]
async fn gcs(config: &StoreConfig, _: &str, _: &str) -> Result<Arc<dyn ObjectStore>, StoreError> {
    Err(left_out(config, "gcs"))
}

#[cfg(not(all(feature = "s3", feature = "gcs")))]
fn left_out(config: &StoreConfig, feature: &str) -> StoreError {
    let message = format!("{} needs a build with the feature {feature:?}; this one was made without", config.source);
    StoreError::other("connect", "", message)
}
