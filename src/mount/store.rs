//! From a configuration to an open datastore.
//!
//! Depends on `config`, `datastore` and `store`. A build without a kind of store says so.

use std::sync::Arc;

use crate::config::{Source, StoreConfig};
use crate::datastore::Datastore;
use crate::store::dir::DirStore;
use crate::store::{ObjectStore, StoreError};

/// Opens the datastore of a source. For buckets this makes no request yet.
pub async fn open(config: &StoreConfig) -> Result<Datastore, StoreError> {
    match &config.source {
        Source::Dir { path, prefix } => Ok(datastore(config, DirStore::open(path, prefix)?, DirStore::below)),
        Source::S3 { bucket, prefix } => s3(config, bucket, prefix).await,
        Source::Gcs { bucket, prefix } => gcs(config, bucket, prefix).await,
    }
}

/// A warning when the namespace belongs to another repository; one whose registration cannot be read gives none.
pub async fn foreign_owner(datastore: &Datastore) -> Option<String> {
    match datastore.foreign_owner().await {
        Ok(warning) => warning,
        Err(error) => {
            tracing::info!(%error, "cannot see for whom the namespace is registered");
            None
        }
    }
}

/// The whole of a store, or its namespace.
fn datastore<S: ObjectStore>(config: &StoreConfig, bucket: S, below: impl FnOnce(&S, &str) -> S) -> Datastore {
    let Some(namespace) = &config.namespace else { return Datastore::new(Arc::new(bucket)) };
    let inside = below(&bucket, namespace.as_str());
    Datastore::in_namespace(Arc::new(bucket), Arc::new(inside), namespace.clone(), config.repo_id.clone())
}

#[cfg(any(feature = "s3", feature = "gcs"))]
fn policy(config: &StoreConfig) -> crate::store::RequestPolicy {
    crate::store::RequestPolicy { timeout: config.request_timeout, ..Default::default() }
}

#[cfg(feature = "s3")]
async fn s3(config: &StoreConfig, bucket: &str, prefix: &str) -> Result<Datastore, StoreError> {
    let options = crate::store::S3Options {
        region: config.region.clone(),
        endpoint_url: config.endpoint_url.clone(),
        force_path_style: config.force_path_style,
        policy: policy(config),
        ..crate::store::S3Options::new(bucket, prefix)
    };
    Ok(datastore(config, crate::store::S3Store::connect(options).await?, crate::store::S3Store::below))
}

#[cfg(feature = "gcs")]
async fn gcs(config: &StoreConfig, bucket: &str, prefix: &str) -> Result<Datastore, StoreError> {
    let options = crate::store::GcsOptions {
        project: config.project.clone(),
        endpoint_url: config.endpoint_url.clone(),
        policy: policy(config),
        ..crate::store::GcsOptions::new(bucket, prefix)
    };
    Ok(datastore(config, crate::store::GcsStore::connect(options).await?, crate::store::GcsStore::below))
}

#[cfg(not(feature = "s3"))]
async fn s3(config: &StoreConfig, _: &str, _: &str) -> Result<Datastore, StoreError> {
    Err(left_out(config, "s3"))
}

#[cfg(not(feature = "gcs"))]
async fn gcs(config: &StoreConfig, _: &str, _: &str) -> Result<Datastore, StoreError> {
    Err(left_out(config, "gcs"))
}

#[cfg(not(all(feature = "s3", feature = "gcs")))]
fn left_out(config: &StoreConfig, feature: &str) -> StoreError {
    let message = format!("{} needs a build with the feature {feature:?}; this one was made without", config.source);
    StoreError::other("connect", "", message)
}
