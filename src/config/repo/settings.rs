//! The fields of a datastore, by its type.
//!
//! Depends on `fields`. Invariant: a field that belongs to another type of datastore counts as unknown.

use std::time::Duration;

use serde_json::Value;

use super::fields::Fields;
use super::{DATASTORE_ENV, RepoProblem};
use crate::config::Environment;
use crate::config::timeout::{LONGEST_MS, SHORTEST_MS};

/// Longest time for a pull or push, in milliseconds: a week.
const LONGEST_SYNC_MS: u64 = 604_800_000;
/// Most transfers at a time.
const MOST_AT_A_TIME: u64 = 1000;
const TYPES: &str = "@swamp/s3-datastore, @swamp/gcs-datastore and filesystem";

/// Where a datastore is.
#[derive(Debug)]
pub(super) enum Place {
    Bucket {
        scheme: &'static str,
        bucket: String,
        prefix: Option<String>,
    },
    /// Relative to the repository, or absolute.
    Directory {
        path: String,
    },
}

/// A datastore's own configuration.
#[derive(Debug)]
pub(super) struct Settings {
    pub place: Place,
    pub options: RepoOptions,
}

/// How a repository wants its bucket to be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RepoOptions {
    /// Region of the bucket.
    pub region: Option<String>,
    /// Project that requests are accounted to.
    pub project: Option<String>,
    /// Endpoint of another service, or of an emulator.
    pub endpoint_url: Option<String>,
    /// Bucket in the path of requests.
    pub force_path_style: Option<bool>,
    /// Deadline of one request.
    pub request_timeout: Option<Duration>,
    /// Downloads at a time.
    pub pull_concurrency: Option<usize>,
    /// Uploads at a time.
    pub push_concurrency: Option<usize>,
}

/// Which service a bucket is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    S3,
    Gcs,
}

impl Settings {
    pub fn directory(path: String) -> Self {
        Self { place: Place::Directory { path }, options: RepoOptions::default() }
    }

    fn bucket(service: Service, fields: &mut Fields<'_>) -> Result<Self, RepoProblem> {
        let bucket = fields.text("bucket")?.ok_or_else(|| fields.problem("bucket", "is missing"))?;
        let prefix = fields.text("prefix")?;
        let at_a_time = |number: Option<u64>| number.and_then(|number| usize::try_from(number).ok());
        let mut options = RepoOptions {
            request_timeout: fields.milliseconds("requestTimeoutMs", SHORTEST_MS, LONGEST_MS)?,
            pull_concurrency: at_a_time(fields.number("pullConcurrency", 1, MOST_AT_A_TIME)?),
            push_concurrency: at_a_time(fields.number("pushConcurrency", 1, MOST_AT_A_TIME)?),
            ..RepoOptions::default()
        };
        let scheme = match service {
            Service::S3 => {
                options.region = fields.text("region")?;
                options.endpoint_url = fields.text("endpoint")?;
                options.force_path_style = fields.flag("forcePathStyle")?;
                "s3"
            }
            Service::Gcs => {
                options.project = fields.text("projectId")?;
                options.endpoint_url = fields.text("apiEndpoint")?;
                "gs"
            }
        };
        Ok(Self { place: Place::Bucket { scheme, bucket, prefix }, options })
    }
}

/// What every type has beside its own configuration.
#[derive(Debug)]
pub(super) struct Shared {
    pub namespace: Option<String>,
    pub sync_timeout: Option<Duration>,
    pub warnings: Vec<String>,
}

impl Shared {
    pub fn take(fields: &mut Fields<'_>) -> Result<Self, RepoProblem> {
        let mut warnings = Vec::new();
        // Both say what of the datastore is kept in step. A mount shows all of it, and fetches what is read.
        fields.ignore(&["directories", "hydrationStrategy"]);
        let exclude = fields.list("exclude")?;
        if !exclude.is_empty() {
            let message = format!(
                "exclude ({}) holds nothing back: all that the index lists is shown, and all that is written is pushed",
                exclude.join(", ")
            );
            warnings.push(message);
        }
        Ok(Self {
            namespace: fields.text("namespace")?,
            sync_timeout: fields.milliseconds("syncTimeoutMs", 1, LONGEST_SYNC_MS)?,
            warnings,
        })
    }
}

/// The datastore that `.swamp.yaml` describes.
pub(super) fn from_file(about: &mut Fields<'_>, warnings: &mut Vec<String>) -> Result<Settings, RepoProblem> {
    let Some(name) = about.text("type")? else { return Err(about.problem("type", "is missing")) };
    let mut config = about.section("config")?;
    let settings = match name.as_str() {
        "@swamp/s3-datastore" => Settings::bucket(Service::S3, &mut config),
        "@swamp/gcs-datastore" => Settings::bucket(Service::Gcs, &mut config),
        // The legacy type had its fields beside it.
        "s3" if config.is_empty() => Settings::bucket(Service::S3, about),
        "s3" => Settings::bucket(Service::S3, &mut config),
        "filesystem" => match (about.text("path")?, config.text("path")?) {
            (Some(path), _) | (None, Some(path)) => Ok(Settings::directory(path)),
            (None, None) => Err(about.problem("path", "is missing")),
        },
        other => Err(about.problem("type", format!("is {other:?}; known are {TYPES}"))),
    }?;
    warnings.extend(config.unknown());
    Ok(settings)
}

/// The datastore that `SWAMP_DATASTORE` describes: `TYPE:{JSON}`, `s3:BUCKET[/PREFIX]` or `filesystem:PATH`.
pub(super) fn from_variable(
    text: &str,
    environment: &Environment,
    warnings: &mut Vec<String>,
) -> Result<Settings, RepoProblem> {
    let refuse = |reason: String| Err(RepoProblem::Variable { text: text.to_owned(), reason });
    let Some((name, value)) = text.split_once(':') else {
        return refuse("it is written as TYPE:CONFIGURATION, such as s3:my-bucket/prefix".to_owned());
    };
    let is_json = value.trim_start().starts_with('{');
    let service = match name {
        "s3" if !is_json => {
            let (bucket, prefix) = value.split_once('/').unwrap_or((value, ""));
            let (bucket, prefix) = (bucket.to_owned(), Some(prefix.to_owned()));
            let place = Place::Bucket { scheme: "s3", bucket, prefix };
            return Ok(Settings { place, options: RepoOptions::default() });
        }
        "@swamp/s3-datastore" | "s3" => Some(Service::S3),
        "@swamp/gcs-datastore" => Some(Service::Gcs),
        "filesystem" if value.is_empty() => return refuse("it names no directory".to_owned()),
        "filesystem" if !is_json => return Ok(Settings::directory(value.to_owned())),
        "filesystem" => None,
        _ => return refuse(format!("known are {TYPES}")),
    };
    let value: Value = match serde_json::from_str(value) {
        Ok(value) => value,
        Err(error) => return refuse(format!("what follows {name}: is not JSON ({error})")),
    };
    let mut fields = Fields::of(DATASTORE_ENV, "", value, environment)?;
    let settings = match service {
        Some(service) => Settings::bucket(service, &mut fields)?,
        None => Settings::directory(fields.text("path")?.ok_or_else(|| fields.problem("path", "is missing"))?),
    };
    warnings.extend(fields.unknown());
    Ok(settings)
}
