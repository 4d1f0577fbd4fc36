//! What a repository says beside what the command line says.
//!
//! Pure. Invariant: neither silently beats the other; two that say the same agree.

use std::fmt::Debug;

use crate::config::ConfigError;

/// The value that the command line, the repository, or both name.
///
/// # Errors
/// When they name different ones: the error says both.
pub fn agree<T: PartialEq + Debug>(
    flag: &'static str,
    given: Option<T>,
    repo: Option<T>,
) -> Result<Option<T>, ConfigError> {
    match (given, repo) {
        (Some(given), Some(repo)) if given != repo => {
            Err(ConfigError::Contradiction { flag, given: format!("{given:?}"), repo: format!("{repo:?}") })
        }
        (given, repo) => Ok(given.or(repo)),
    }
}
