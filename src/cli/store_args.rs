//! Which datastore a command is about: SOURCE and the options beside it, or a repository that says so itself.
//!
//! Depends on `config`. Invariant: what the command line and the repository both say, they say alike.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::output;
use crate::config::{
    ConfigError, Environment, RepoConfig, RequestTimeout, Source, StoreConfig, agree, parse_namespace,
    parse_request_timeout,
};

/// What fstab has in the place of a source when the options say it.
const NO_SOURCE: &str = "none";

/// How to reach a store.
#[derive(Args, Debug, Clone, Default)]
pub struct StoreArgs {
    /// Take everything from this swamp repository: its .swamp.yaml, or SWAMP_DATASTORE
    #[arg(long, value_name = "DIR")]
    pub repo: Option<PathBuf>,
    /// Region of the bucket (else as the AWS tools find it)
    #[arg(long)]
    pub region: Option<String>,
    /// Project that requests to gs:// are accounted to (else as the credentials say)
    #[arg(long)]
    pub project: Option<String>,
    /// URL of an S3-compatible service (else as the AWS tools find it), or of an emulator of gs:// (nothing is signed then)
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,
    /// Put the bucket into the path of requests, not into the host name
    #[arg(long)]
    pub force_path_style: bool,
    /// Work below this prefix of the bucket
    #[arg(long)]
    pub prefix: Option<String>,
    /// Work in this namespace of the bucket
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Deadline of one request; SWAMP_S3_REQUEST_TIMEOUT_MS or SWAMP_GCS_… beats it [default: 30]
    #[arg(long, value_name = "SECS", value_parser = parse_request_timeout)]
    pub request_timeout: Option<Duration>,
    /// Say more; twice: everything
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// A datastore, and the repository that named it.
pub struct Chosen {
    pub store: StoreConfig,
    pub repo: Option<RepoConfig>,
}

impl StoreArgs {
    /// Nothing but a repository.
    pub fn of_repo(dir: PathBuf) -> Self {
        Self { repo: Some(dir), ..Self::default() }
    }

    /// The datastore of SOURCE, or of the repository.
    pub fn config(&self, source: &Option<String>, environment: &Environment) -> Result<StoreConfig, ConfigError> {
        Ok(self.choose(source.as_deref(), environment, output::notice)?.store)
    }

    /// The same for commands with a second word after SOURCE, which comes first when a repository stands for SOURCE.
    pub fn choose_with(
        &self,
        source: &Option<String>,
        second: &Option<PathBuf>,
        environment: &Environment,
        notice: impl Fn(&str),
    ) -> Result<(Chosen, Option<PathBuf>), ConfigError> {
        let (source, second) = match (&self.repo, source.as_deref(), second) {
            (Some(_), Some(only), None) => (None, Some(PathBuf::from(only))),
            (Some(_), Some(NO_SOURCE), second) => (None, second.clone()),
            (_, source, second) => (source, second.clone()),
        };
        Ok((self.choose(source, environment, notice)?, second))
    }

    fn choose(
        &self,
        source: Option<&str>,
        environment: &Environment,
        notice: impl Fn(&str),
    ) -> Result<Chosen, ConfigError> {
        let repo = match (&self.repo, source) {
            (None, _) => None,
            (Some(dir), None) => Some(RepoConfig::read(dir, environment)?),
            (Some(dir), Some(source)) => {
                return Err(ConfigError::TwoSources { given: source.to_owned(), repo: dir.clone() });
            }
        };
        for warning in repo.iter().flat_map(|repo| &repo.warnings) {
            notice(warning);
        }
        let source = match (&repo, source) {
            (Some(repo), _) => repo.source_with(self.prefix.as_deref())?,
            (None, Some(source)) => Source::parse(source, self.prefix.as_deref())?,
            (None, None) => return Err(ConfigError::Missing("SOURCE")),
        };
        let said = repo.as_ref().map(|repo| repo.options.clone()).unwrap_or_default();
        let namespace = repo.as_ref().and_then(|repo| repo.namespace.as_ref().map(ToString::to_string));
        let namespace = agree("--namespace", self.namespace.clone(), namespace)?;
        let endpoint = agree("--endpoint-url", self.endpoint_url.clone(), said.endpoint_url)?;
        let path_style = agree("--force-path-style", self.force_path_style.then_some(true), said.force_path_style)?;
        let timeout = agree("--request-timeout", self.request_timeout, said.request_timeout)?;
        let timeout = RequestTimeout::resolve(&source, timeout, environment);
        if let Some(warning) = &timeout.warning {
            notice(warning);
        }
        let store = StoreConfig {
            namespace: namespace.as_deref().map(parse_namespace).transpose()?,
            repo_id: repo.as_ref().and_then(|repo| repo.repo_id.clone()),
            endpoint_url: match source {
                Source::Gcs { .. } => endpoint.or_else(|| environment.storage_emulator()),
                Source::S3 { .. } | Source::Dir { .. } => endpoint,
            },
            region: agree("--region", self.region.clone(), said.region)?,
            project: agree("--project", self.project.clone(), said.project)?,
            force_path_style: path_style.unwrap_or(false),
            request_timeout: timeout.duration,
            source,
        };
        Ok(Chosen { store, repo })
    }
}
