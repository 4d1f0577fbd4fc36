//! The environment variables that matter, behind a value that tests can fill.
//!
//! Depends on nothing. Invariant: an empty variable counts as unset, as in the AWS tools and the XDG specification.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// Environment variables and the effective user.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: HashMap<String, OsString>,
    /// Effective user id.
    pub uid: u32,
}

impl Environment {
    /// That of this process.
    pub fn current() -> Self {
        let variables =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect();
        Self { variables, uid: rustix::process::geteuid().as_raw() }
    }

    /// One made of these variables, for the given user.
    pub fn of<const N: usize>(uid: u32, variables: [(&str, &str); N]) -> Self {
        let variables = variables.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        Self { variables, uid }
    }

    /// A variable that is set, not empty, and UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.variables.get(name).and_then(|value| value.to_str()).filter(|value| !value.is_empty())
    }

    /// A variable that holds an absolute path.
    pub fn absolute_path(&self, name: &str) -> Option<PathBuf> {
        self.variables.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// The endpoint that the AWS tools take from the environment for S3.
    pub fn s3_endpoint(&self) -> Option<String> {
        if self.text("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS").is_some_and(|text| text.eq_ignore_ascii_case("true")) {
            return None;
        }
        self.text("AWS_ENDPOINT_URL_S3").or_else(|| self.text("AWS_ENDPOINT_URL")).map(str::to_owned)
    }

    /// The emulator of Google Cloud Storage that Google's tools would use; its variable often holds no scheme.
    pub fn storage_emulator(&self) -> Option<String> {
        let host = self.text("STORAGE_EMULATOR_HOST")?;
        Some(if host.contains("://") { host.to_owned() } else { format!("http://{host}") })
    }
}
