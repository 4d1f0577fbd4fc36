//! The deadline of one request: option, environment, default.
//!
//! Depends on `source`. Invariant: whatever comes out lies within 1 000–600 000 ms.

use std::time::Duration;

use super::{ConfigError, Environment, Source};

/// The variable of the reference client for S3; in milliseconds.
pub const S3_REQUEST_TIMEOUT_ENV: &str = "SWAMP_S3_REQUEST_TIMEOUT_MS";
/// The same of the one for Google Cloud Storage.
pub const GCS_REQUEST_TIMEOUT_ENV: &str = "SWAMP_GCS_REQUEST_TIMEOUT_MS";

pub(super) const SHORTEST_MS: u64 = 1_000;
pub(super) const LONGEST_MS: u64 = 600_000;
pub(super) const DEFAULT: Duration = Duration::from_secs(30);

/// A deadline, and what the user should know about where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestTimeout {
    /// The deadline of one request.
    pub duration: Duration,
    /// Something to tell the user: a value that was ignored or overridden.
    pub warning: Option<String>,
}

impl RequestTimeout {
    /// The environment beats the option, as with the reference clients; a value out of range in the environment is
    /// ignored with a warning.
    pub fn resolve(source: &Source, option: Option<Duration>, environment: &Environment) -> Self {
        let variable = match source {
            Source::Gcs { .. } => GCS_REQUEST_TIMEOUT_ENV,
            Source::S3 { .. } | Source::Dir { .. } => S3_REQUEST_TIMEOUT_ENV,
        };
        let configured = option.unwrap_or(DEFAULT);
        let Some(text) = environment.text(variable) else {
            return Self { duration: configured, warning: None };
        };
        match text.trim().parse::<u64>() {
            Ok(ms) if (SHORTEST_MS..=LONGEST_MS).contains(&ms) => {
                let duration = Duration::from_millis(ms);
                let warning = option
                    .filter(|option| *option != duration)
                    .map(|_| format!("{variable}={ms} overrides the configured request time-out"));
                Self { duration, warning }
            }
            _ => Self {
                duration: configured,
                warning: Some(format!(
                    "{variable}={text:?} is ignored: not a number of milliseconds between {SHORTEST_MS} and {LONGEST_MS}"
                )),
            },
        }
    }
}

/// Parses `--request-timeout`: seconds (`30`, `30s`, `2.5`) or milliseconds (`1500ms`), between 1 s and 600 s.
pub fn parse_request_timeout(text: &str) -> Result<Duration, ConfigError> {
    let refuse = || ConfigError::Timeout {
        text: text.to_owned(),
        reason: "it is a number of seconds between 1 and 600, such as 30, or milliseconds, such as 1500ms",
    };
    let (number, unit_ms) = match text.trim() {
        text if text.ends_with("ms") => (&text[..text.len() - 2], 1.0),
        text if text.ends_with('s') => (&text[..text.len() - 1], 1000.0),
        text => (text, 1000.0),
    };
    let number: f64 = number.parse().map_err(|_| refuse())?;
    let ms = (number * unit_ms).round();
    // NaN and infinities fail the comparison too.
    if !(ms >= SHORTEST_MS as f64 && ms <= LONGEST_MS as f64) {
        return Err(refuse());
    }
    Ok(Duration::from_millis(ms as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_takes_seconds_and_milliseconds_within_the_range() {
        for (text, ms) in
            [("1", 1000), ("30", 30_000), ("30s", 30_000), ("1500ms", 1500), ("2.5", 2500), ("600", 600_000)]
        {
            assert_eq!(parse_request_timeout(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["0", "0.5", "601", "999ms", "-3", "", "s", "ms", "NaN", "inf", "1h", "30000"] {
            assert!(parse_request_timeout(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_environment_beats_the_option_and_is_ignored_with_a_warning_outside_the_range() {
        let option = Some(Duration::from_secs(7));
        let (s3, gcs) = (Source::parse("s3://bucket", None), Source::parse("gs://bucket", None));
        let sources = [(s3.expect("valid"), S3_REQUEST_TIMEOUT_ENV), (gcs.expect("valid"), GCS_REQUEST_TIMEOUT_ENV)];
        for (value, expected_ms, warns) in [
            ("2000", 2000, true),
            ("7000", 7000, false),
            ("1000", 1000, true),
            ("600000", 600_000, true),
            ("999", 7000, true),
            ("600001", 7000, true),
            ("soon", 7000, true),
            ("", 7000, false),
        ] {
            for (source, variable) in &sources {
                let resolved = RequestTimeout::resolve(source, option, &Environment::of(1, [(*variable, value)]));
                assert_eq!(resolved.duration, Duration::from_millis(expected_ms), "{variable} {value}");
                assert_eq!(resolved.warning.is_some(), warns, "{variable} {value}: {:?}", resolved.warning);
            }
        }
        let others = Environment::of(1, [(S3_REQUEST_TIMEOUT_ENV, "2000")]);
        assert_eq!(RequestTimeout::resolve(&sources[1].0, option, &others).duration, Duration::from_secs(7));
        let default = RequestTimeout::resolve(&sources[0].0, None, &Environment::of(1, []));
        assert_eq!(default, RequestTimeout { duration: Duration::from_secs(30), warning: None });
    }
}
