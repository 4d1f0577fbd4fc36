//! The datastore that a swamp repository is configured to use: its `.swamp.yaml`, and `SWAMP_DATASTORE`, which beats it.
//!
//! Depends on `source`, `environment` and the rules for names. Invariants: an unset variable, a field that does not parse
//! and a contradiction are errors that name the field; a field that nobody knows is a warning that names it; credentials are
//! never read from here.

mod fields;
mod merge;
mod settings;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::source::check_prefix;
use super::{ConfigError, Environment, Source, absolute, parse_namespace};
use crate::datastore::Namespace;
use fields::Fields;
use settings::{Place, Settings};

pub use merge::agree;
pub use settings::RepoOptions;

/// The file at the root of a repository.
pub const REPO_FILE: &str = ".swamp.yaml";
/// The variable that says another datastore than the file.
pub const DATASTORE_ENV: &str = "SWAMP_DATASTORE";
/// Where a repository's datastore is mounted when nothing else is said, below the repository.
const MOUNTPOINT: &str = ".data";
/// Where a repository without a word about its datastore keeps it.
const DEFAULT_PATH: &str = ".swamp";

/// What a repository says about its datastore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoConfig {
    /// The repository (absolute).
    pub dir: PathBuf,
    /// How it is called among those that share a bucket.
    pub repo_id: Option<String>,
    /// Its bucket or directory.
    pub source: Source,
    /// Its namespace there.
    pub namespace: Option<Namespace>,
    /// How to reach it.
    pub options: RepoOptions,
    /// Deadline of a whole pull or push without a mount.
    pub sync_timeout: Option<Duration>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why a repository's configuration cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RepoProblem {
    /// The file cannot be read.
    #[error("cannot read {}: {reason}; --repo DIR names the root of a swamp repository", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The file is no YAML.
    #[error("{} is not YAML: {reason}", path.display())]
    Yaml {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// One field cannot be used.
    #[error("{origin}: {field} {reason}")]
    Field {
        /// The file or the variable.
        origin: String,
        /// The field, with dots.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The variable has no form that is known.
    #[error("SWAMP_DATASTORE={text:?} is not understood: {reason}")]
    Variable {
        /// Its value.
        text: String,
        /// What is accepted.
        reason: String,
    },
}

impl RepoConfig {
    /// Reads the configuration of the repository in `dir`.
    ///
    /// # Errors
    /// When there is none, or it cannot be honoured.
    pub fn read(dir: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        let dir = absolute(dir)?;
        let path = dir.join(REPO_FILE);
        let text = std::fs::read_to_string(&path)
            .map_err(|error| RepoProblem::Unreadable { path: path.clone(), reason: error.to_string() })?;
        Self::parse(&dir, &text, environment)
    }

    /// The same from the text of the file.
    ///
    /// # Errors
    /// When it cannot be honoured.
    pub fn parse(dir: &Path, text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        let path = dir.join(REPO_FILE);
        let document: Value = match text.trim() {
            "" => Value::Null,
            text => serde_saphyr::from_str(text)
                .map_err(|error| RepoProblem::Yaml { path: path.clone(), reason: error.to_string() })?,
        };
        let origin = path.display().to_string();
        let mut warnings = Vec::new();
        // What else the file configures is none of our business.
        let mut file = Fields::of(&origin, "", document, environment)?;
        let repo_id = file.text("repoId")?;
        let mut about = file.section("datastore")?;
        let shared = settings::Shared::take(&mut about)?;
        let settings = match environment.text(DATASTORE_ENV) {
            Some(text) => {
                about.ignore(&["type", "config", "path", "bucket", "prefix", "region"]);
                settings::from_variable(text, environment, &mut warnings)?
            }
            None if about.is_empty() => Settings::directory(DEFAULT_PATH.to_owned()),
            None => settings::from_file(&mut about, &mut warnings)?,
        };
        warnings.extend(about.unknown());
        warnings.extend(shared.warnings);
        if let Place::Directory { path } = &settings.place {
            warnings.push(format!(
                "the datastore of this repository is the directory {path:?}: what swamp writes there by itself has no index entry, and is not seen"
            ));
        }
        let namespace = shared.namespace.as_deref().map(parse_namespace).transpose()?;
        let source = source_of(dir, &settings.place)?;
        Ok(Self {
            dir: dir.to_owned(),
            repo_id,
            source,
            namespace,
            options: settings.options,
            sync_timeout: shared.sync_timeout,
            warnings,
        })
    }

    /// Its bucket or directory; `--prefix` may say the same prefix again.
    ///
    /// # Errors
    /// When `--prefix` says another one.
    pub fn source_with(&self, prefix: Option<&str>) -> Result<Source, ConfigError> {
        let given = prefix.map(check_prefix).transpose()?;
        agree("--prefix", given, Some(self.source.prefix().to_owned()))?;
        Ok(self.source.clone())
    }

    /// Where its datastore is mounted when nothing else is said.
    pub fn mountpoint(&self) -> PathBuf {
        self.dir.join(MOUNTPOINT)
    }

    /// Where the reference client keeps its cache of this repository's datastore.
    pub fn usual_cache_dir(&self, environment: &Environment) -> Option<PathBuf> {
        // An id from outside must not lead elsewhere.
        let id = self.repo_id.as_deref().filter(|id| !id.contains('/') && *id != "." && *id != "..")?;
        Some(environment.absolute_path("HOME")?.join(".swamp/repos").join(id))
    }
}

fn source_of(dir: &Path, place: &Place) -> Result<Source, ConfigError> {
    match place {
        Place::Bucket { scheme, bucket, prefix } => Source::parse(&format!("{scheme}://{bucket}"), prefix.as_deref()),
        Place::Directory { path } => {
            let path = absolute(&dir.join(path))?;
            let path = std::fs::canonicalize(&path).unwrap_or(path);
            Ok(Source::Dir { path, prefix: String::new() })
        }
    }
}
