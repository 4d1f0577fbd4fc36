//! Building the two clients: credentials from Google's chain, or none for an emulator, and the crate's own retries off.
//!
//! Knows nothing of operations. Invariant: with an endpoint, no credentials are looked for or sent.

use google_cloud_auth::credentials::{Builder as DefaultCredentials, Credentials, anonymous};
use google_cloud_gax::retry_policy::NeverRetry;
use google_cloud_storage::client::{Storage, StorageControl};
use google_cloud_storage::read_resume_policy::NeverResume;

use super::{GcsOptions, errors};
use crate::store::{Result, StoreError};

pub(super) async fn build(options: &GcsOptions) -> Result<(Storage, StorageControl)> {
    if options.bucket.is_empty() {
        return Err(StoreError::other("connect", "", "the name of the bucket is empty; give it as gs://BUCKET/PREFIX"));
    }
    let credentials = credentials(options)?;
    let mut data = Storage::builder()
        .with_credentials(credentials.clone())
        .with_retry_policy(NeverRetry)
        .with_read_resume_policy(NeverResume);
    let mut control = StorageControl::builder().with_credentials(credentials).with_retry_policy(NeverRetry);
    if let Some(endpoint) = &options.endpoint_url {
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            let message = format!("the endpoint {endpoint:?} is not a URL; write it as http://HOST:PORT");
            return Err(StoreError::other("connect", "", message));
        }
        let endpoint = endpoint.trim_end_matches('/');
        data = data.with_endpoint(endpoint);
        control = control.with_endpoint(endpoint);
    }
    let data = data.build().await.map_err(|error| errors::unprepared(&error))?;
    let control = control.build().await.map_err(|error| errors::unprepared(&error))?;
    Ok((data, control))
}

fn credentials(options: &GcsOptions) -> Result<Credentials> {
    if options.endpoint_url.is_some() {
        return Ok(anonymous::Builder::new().build());
    }
    let mut builder = DefaultCredentials::default();
    if let Some(project) = &options.project {
        builder = builder.with_quota_project_id(project);
    }
    builder.build().map_err(|error| errors::no_credentials(&error))
}
