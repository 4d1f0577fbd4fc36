//! What a user asked for, as one typed value: sources, store options, mount options, and where local state lives.
//!
//! Pure data and pure functions of arguments, environment and `.swamp.yaml`: depends on the rules for names of `datastore`
//! and nothing else in the crate, makes no request and keeps no state (the only looks at the disk are to read that file, to
//! make paths canonical, and to see which state directory exists).
//! Invariant: a value that exists has been checked; nothing further down needs to doubt a bucket name or a time-out.

mod bucket;
mod environment;
mod mount_options;
mod repo;
mod size;
mod source;
mod state_dir;
mod timeout;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::datastore::{Namespace, NamespaceProblem};

pub use bucket::{check_gcs_bucket, check_s3_bucket};
pub use environment::Environment;
pub use mount_options::to_arguments as mount_option_arguments;
pub use repo::{DATASTORE_ENV, REPO_FILE, RepoConfig, RepoOptions, RepoProblem, agree};
pub use size::parse_cache_size;
pub use source::{SUPPORTED_SOURCES, Source};
pub(crate) use state_dir::short_hash;
pub use state_dir::{Invocation, default_cache_root, registry_dirs};
pub use timeout::{GCS_REQUEST_TIMEOUT_ENV, RequestTimeout, S3_REQUEST_TIMEOUT_ENV, parse_request_timeout};

/// Options that cannot be honoured. All of them are usage errors (exit code 2).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// SOURCE is neither a bucket nor a supported URL.
    #[error("{text:?} is not a source: {reason}")]
    Source {
        /// As it was given.
        text: String,
        /// Why not, and what to write instead.
        reason: String,
    },
    /// The bucket's name breaks the rules of its store.
    #[error("{name:?} cannot be the name of {store} bucket: {reason}")]
    Bucket {
        /// As it was given.
        name: String,
        /// Whose rules, with an article.
        store: &'static str,
        /// The rule.
        reason: &'static str,
    },
    /// A prefix that no client could have used.
    #[error("{prefix:?} cannot be a prefix: {reason}")]
    Prefix {
        /// As it was given.
        prefix: String,
        /// The rule.
        reason: &'static str,
    },
    /// A namespace that cannot be one.
    #[error("{name:?} cannot be a namespace: {problem}")]
    Namespace {
        /// As it was given.
        name: String,
        /// The rule.
        problem: NamespaceProblem,
    },
    /// Two prefixes.
    #[error(
        "the source says prefix {in_url:?} and --prefix says {given:?}; give it once, as {scheme}://BUCKET/PREFIX or with --prefix"
    )]
    TwoPrefixes {
        /// Of the URL.
        scheme: &'static str,
        /// In the URL.
        in_url: String,
        /// Of `--prefix`.
        given: String,
    },
    /// The command line and the repository disagree.
    #[error("{flag} says {given} and the repository's configuration says {repo}; leave one out, or make them agree")]
    Contradiction {
        /// The option.
        flag: &'static str,
        /// Its value.
        given: String,
        /// The repository's.
        repo: String,
    },
    /// A source and a repository.
    #[error("{given:?} is a source, and --repo {} names one too; give one of them", repo.display())]
    TwoSources {
        /// On the command line.
        given: String,
        /// The repository.
        repo: PathBuf,
    },
    /// A word is missing that nothing else tells.
    #[error(
        "{0} is missing, and nothing else tells it (a repository's repoId tells CACHE_DIR); see swamp-mount --help"
    )]
    Missing(&'static str),
    /// The configuration of a repository.
    #[error(transparent)]
    Repo(#[from] RepoProblem),
    /// A request time-out outside of its range.
    #[error("{text:?} is not a request time-out: {reason}")]
    Timeout {
        /// As it was given.
        text: String,
        /// What is accepted.
        reason: &'static str,
    },
    /// An option of `-o` that is not known.
    #[error("mount option {option:?} (of -o) is not known: {advice}")]
    MountOption {
        /// The option as it was given.
        option: String,
        /// What to do.
        advice: &'static str,
    },
    /// An endpoint that is not a URL.
    #[error("{text:?} is not an endpoint URL: it begins with http:// or https:// and names a host")]
    Endpoint {
        /// As it was given.
        text: String,
    },
    /// There is nowhere to keep state.
    #[error(
        "no place for local state: neither XDG_STATE_HOME nor HOME is set to an absolute path; set one, or give --cache-dir DIR"
    )]
    NoStateDirectory,
    /// A path that cannot be made absolute.
    #[error("cannot make {path:?} absolute: {reason}")]
    Path {
        /// The path.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
}

/// What it takes to talk to a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Which bucket and prefix.
    pub source: Source,
    /// Which namespace of it.
    pub namespace: Option<Namespace>,
    /// The repository that works there, as its `.swamp.yaml` names it.
    pub repo_id: Option<String>,
    /// `--region`; else the AWS chain decides.
    pub region: Option<String>,
    /// `--project`: the project that requests to Google are accounted to; else the credentials decide.
    pub project: Option<String>,
    /// `--endpoint-url`, for `gs://` else `STORAGE_EMULATOR_HOST`; for S3 else the AWS chain decides.
    pub endpoint_url: Option<String>,
    /// Bucket in the path instead of the host name.
    pub force_path_style: bool,
    /// Deadline of one request.
    pub request_timeout: Duration,
}

impl StoreConfig {
    /// A source with nothing else said about it.
    pub fn new(source: Source) -> Self {
        Self {
            source,
            namespace: None,
            repo_id: None,
            region: None,
            project: None,
            endpoint_url: None,
            force_path_style: false,
            request_timeout: timeout::DEFAULT,
        }
    }

    /// What makes two sources the same one: kind, endpoint, bucket or directory, prefix, and namespace. Region,
    /// credentials and path style are ways to reach it and do not count.
    pub fn identity(&self, environment: &Environment) -> Result<String, ConfigError> {
        let endpoint = self.endpoint(environment).map(|url| source::canonical_endpoint(&url)).transpose()?;
        let identity = self.source.identity(endpoint.as_deref());
        Ok(match &self.namespace {
            Some(namespace) => format!("{identity}\nnamespace {namespace}"),
            None => identity,
        })
    }

    /// A short harmless name for directories.
    fn readable_name(&self) -> String {
        self.source.readable_name(self.namespace.as_ref().map(Namespace::as_str))
    }

    /// Bytes before every relative path in an object key.
    pub fn key_prefix_len(&self) -> usize {
        let namespace = self.namespace.as_ref().map_or(0, |namespace| namespace.as_str().len() + 1);
        self.source.key_prefix_len() + namespace
    }

    /// The endpoint that requests will go to, when it is not the usual one.
    pub fn endpoint(&self, environment: &Environment) -> Option<String> {
        let configured = || match &self.source {
            Source::S3 { .. } => environment.s3_endpoint(),
            Source::Gcs { .. } => environment.storage_emulator(),
            Source::Dir { .. } => None,
        };
        self.endpoint_url.clone().or_else(configured)
    }

    /// The options, as words of a command line, with which another command reaches the same source.
    pub fn to_arguments(&self) -> Vec<String> {
        let mut words = vec![self.source.to_string()];
        if let (Source::Dir { .. }, prefix) = (&self.source, self.source.prefix())
            && !prefix.is_empty()
        {
            words.extend(["--prefix".to_owned(), prefix.to_owned()]);
        }
        if let Some(namespace) = &self.namespace {
            words.extend(["--namespace".to_owned(), namespace.to_string()]);
        }
        if let Some(region) = &self.region {
            words.extend(["--region".to_owned(), region.clone()]);
        }
        if let Some(project) = &self.project {
            words.extend(["--project".to_owned(), project.clone()]);
        }
        if let Some(endpoint) = &self.endpoint_url {
            words.extend(["--endpoint-url".to_owned(), endpoint.clone()]);
        }
        if self.force_path_style {
            words.push("--force-path-style".to_owned());
        }
        words
    }
}

impl fmt::Display for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} (namespace {namespace})", self.source),
            None => self.source.fmt(f),
        }
    }
}

/// Everything about one mount.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// The bucket.
    pub store: StoreConfig,
    /// Where local state lives.
    pub cache: CacheConfig,
    /// Where the tree appears (absolute).
    pub mountpoint: PathBuf,
    /// How the engine behaves.
    pub engine: EngineConfig,
    /// Stay in the foreground and log to stderr.
    pub foreground: bool,
    /// Other users may look in.
    pub allow_other: bool,
    /// No program may be executed from the mount.
    pub no_exec: bool,
    /// The kernel may read and write complete files by itself, where it can.
    pub passthrough: bool,
    /// A crash of the process that serves the mount does not end it: another one takes over.
    pub supervise: bool,
    /// Access times are not kept.
    pub no_atime: bool,
    /// Log file; `mount.log` in the cache root otherwise.
    pub log_file: Option<PathBuf>,
    /// Count of `-v`.
    pub verbosity: u8,
}

/// How the engine of a mount or of a flush behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// Nothing can be written.
    pub read_only: bool,
    /// Time between two looks at the index.
    pub refresh: Duration,
    /// Idle time before a background flush.
    pub flush_after: Duration,
    /// Longest time that a file waits although it is written again and again.
    pub flush_max_age: Duration,
    /// Write although the store ignores conditions.
    pub unsafe_no_conditional_writes: bool,
    /// fsync waits for the bucket.
    pub fsync_waits_for_bucket: bool,
    /// Uploads at a time.
    pub upload_concurrency: usize,
    /// Downloads at a time.
    pub download_concurrency: usize,
    /// Owner shown for every file; the mounting user when `None`.
    pub uid: Option<u32>,
    /// Group shown for every file; the mounting user's when `None`.
    pub gid: Option<u32>,
    /// Permission bits taken away from what is shown.
    pub umask: u32,
    /// Most bytes that cached contents may take; `None`: as much as the disk has.
    pub cache_size: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            read_only: false,
            refresh: Duration::from_secs(30),
            flush_after: Duration::from_secs(5),
            flush_max_age: Duration::from_secs(60),
            unsafe_no_conditional_writes: false,
            fsync_waits_for_bucket: false,
            upload_concurrency: 32,
            download_concurrency: 32,
            uid: None,
            gid: None,
            umask: 0o022,
            cache_size: None,
        }
    }
}

/// The directory that holds local state of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// The directory (absolute).
    pub root: PathBuf,
    /// Whether `--cache-dir` named it.
    pub given: bool,
    /// [`StoreConfig::identity`] of the source that it belongs to.
    pub identity: String,
    /// Where lists of known cache roots are kept; the first is written.
    pub registries: Vec<PathBuf>,
}

impl CacheConfig {
    /// The cache root for a source: the given directory as it is, or the default one.
    pub fn resolve(
        store: &StoreConfig,
        given: Option<&Path>,
        invocation: Invocation,
        environment: &Environment,
    ) -> Result<Self, ConfigError> {
        let identity = store.identity(environment)?;
        let root = match given {
            Some(dir) => absolute(dir)?,
            None => default_cache_root(&store.readable_name(), &identity, invocation, environment)?,
        };
        Ok(Self { root, given: given.is_some(), identity, registries: registry_dirs(invocation, environment) })
    }
}

/// Checks the name of a namespace.
pub fn parse_namespace(text: &str) -> Result<Namespace, ConfigError> {
    Namespace::parse(text).map_err(|problem| ConfigError::Namespace { name: text.to_owned(), problem })
}

/// Makes a path absolute and free of `.` and trailing slashes, without touching the disk.
pub fn absolute(path: &Path) -> Result<PathBuf, ConfigError> {
    let absolute =
        std::path::absolute(path).map_err(|e| ConfigError::Path { path: path.to_owned(), reason: e.to_string() })?;
    Ok(absolute.components().collect())
}
