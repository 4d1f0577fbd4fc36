//! From a configuration to an open store.
//!
//! Depends on `config` and `store`.

use std::sync::Arc;

use crate::config::{Source, StoreConfig};
use crate::store::dir::DirStore;
use crate::store::s3::{S3Options, S3Store};
use crate::store::{ObjectStore, RequestPolicy, StoreError};

/// Opens the store of a source. For S3 this makes no request yet.
pub async fn open(config: &StoreConfig) -> Result<Arc<dyn ObjectStore>, StoreError> {
    match &config.source {
        Source::Dir { path, prefix } => Ok(Arc::new(DirStore::open(path, prefix)?)),
        Source::S3 { bucket, prefix } => {
            let options = S3Options {
                bucket: bucket.clone(),
                prefix: prefix.clone(),
                region: config.region.clone(),
                endpoint_url: config.endpoint_url.clone(),
                force_path_style: config.force_path_style,
                policy: RequestPolicy { timeout: config.request_timeout, ..RequestPolicy::default() },
            };
            Ok(Arc::new(S3Store::connect(options).await?))
        }
    }
}
