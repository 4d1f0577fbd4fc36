//! Building the SDK client: credentials and region from the AWS chain, everything that repeats or checks switched off
//! where the request policy or Content-MD5 does it.
//!
//! Knows nothing of operations. Invariant: explicit options win over the environment.

use std::net::IpAddr;
use std::time::Duration;

use aws_config::BehaviorVersion;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};

use super::S3Options;
use crate::store::{Result, StoreError};

/// What stores that know no regions call theirs.
const DEFAULT_REGION: &str = "us-east-1";
/// Longest time for making a connection; part of the request's own deadline.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn build(options: &S3Options, credentials: Option<Credentials>) -> Result<Client> {
    if options.bucket.is_empty() {
        return Err(StoreError::other("connect", "", "the name of the bucket is empty; give it as s3://BUCKET/PREFIX"));
    }
    let timeouts = TimeoutConfig::builder().connect_timeout(CONNECT_TIMEOUT.min(options.policy.timeout)).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    // The service-specific variable is the one that the SDK prefers.
    let named = || ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].iter().find_map(|name| std::env::var(name).ok());
    let endpoint = options.endpoint_url.clone().or_else(named);
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    } else if endpoint.is_some() {
        // Not the default chain: that one would end by asking for instance metadata, which takes seconds off AWS.
        let chain = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new());
        let chain = chain.or_else(ProfileFileRegionProvider::new()).or_else(Region::from_static(DEFAULT_REGION));
        loader = loader.region(chain);
    }
    if let Some(endpoint) = &options.endpoint_url {
        check_endpoint(endpoint)?;
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials);
    }
    let shared = loader.load().await;
    let mut builder = aws_sdk_s3::config::Builder::from(&shared)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
    let endpoint = endpoint.or_else(|| shared.endpoint_url().map(str::to_owned));
    if shared.region().is_none() && endpoint.is_some() {
        builder = builder.region(Region::from_static(DEFAULT_REGION));
    }
    if options.force_path_style || endpoint.as_deref().is_some_and(is_local) {
        builder = builder.force_path_style(true);
    }
    Ok(Client::from_conf(builder.build()))
}

fn check_endpoint(endpoint: &str) -> Result<()> {
    if endpoint.starts_with("http://") || endpoint.starts_with("https://") {
        return Ok(());
    }
    let message = format!("the endpoint {endpoint:?} is not a URL; write it as https://HOST or http://HOST:PORT");
    Err(StoreError::other("connect", "", message))
}

/// Whether the endpoint's host cannot carry the bucket as a subdomain.
fn is_local(endpoint: &str) -> bool {
    let rest = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_without_subdomains_are_local() {
        let cases = [
            ("http://127.0.0.1:9000", true),
            ("http://localhost:9000/", true),
            ("https://[::1]:9000/x", true),
            ("http://10.0.0.1", true),
            ("https://s3.eu-central-1.amazonaws.com", false),
            ("https://minio.example.org:9000", false),
        ];
        for (endpoint, local) in cases {
            assert_eq!(is_local(endpoint), local, "{endpoint}");
        }
    }
}
