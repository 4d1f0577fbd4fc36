//! SOURCE as a user writes it: `BUCKET`, `s3://BUCKET[/PREFIX]`, `gs://BUCKET[/PREFIX]` or `file:///DIR`.
//!
//! Depends on `bucket`. Invariants: the prefix has no leading or trailing slash, no empty, `.` or `..` component; the
//! directory is absolute, and canonical if it exists.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{ConfigError, absolute, check_gcs_bucket, check_s3_bucket};

/// What SOURCE may be, for messages.
pub const SUPPORTED_SOURCES: &str = "BUCKET, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX], file:///DIR";

/// The longest prefix: keys have at most 1 024 bytes, and names below it need room.
const LONGEST_PREFIX: usize = 512;

/// Which bucket, and which part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A bucket of S3 or of something that speaks its protocol.
    S3 {
        /// Bucket name.
        bucket: String,
        /// Prefix of every key, or empty.
        prefix: String,
    },
    /// A bucket of Google Cloud Storage.
    Gcs {
        /// Bucket name.
        bucket: String,
        /// Prefix of every key, or empty.
        prefix: String,
    },
    /// A directory that plays the bucket.
    Dir {
        /// The directory (absolute; taken literally from the URL, without percent-decoding, as shells write it).
        path: PathBuf,
        /// Prefix of every key, or empty.
        prefix: String,
    },
}

impl Source {
    /// Parses SOURCE together with `--prefix`.
    pub fn parse(text: &str, prefix: Option<&str>) -> Result<Self, ConfigError> {
        let refuse = |reason: String| Err(ConfigError::Source { text: text.to_owned(), reason });
        let given = prefix.map(check_prefix).transpose()?.unwrap_or_default();
        match text.split_once("://") {
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "s3" => {
                    let (bucket, in_url) = rest.split_once('/').unwrap_or((rest, ""));
                    Self::s3(bucket, &check_prefix(in_url)?, given)
                }
                "gs" => {
                    let (bucket, in_url) = rest.split_once('/').unwrap_or((rest, ""));
                    check_gcs_bucket(bucket)?;
                    let prefix = one_prefix(&check_prefix(in_url)?, given, "gs")?;
                    Ok(Self::Gcs { bucket: bucket.to_owned(), prefix })
                }
                "file" => Self::dir(text, rest, given),
                _ => refuse(format!("the scheme {scheme}:// is not supported; supported are {SUPPORTED_SOURCES}")),
            },
            None if text.is_empty() => refuse(format!("it is empty; supported are {SUPPORTED_SOURCES}")),
            None if text.starts_with(['/', '.', '~']) => {
                let path = absolute(Path::new(text))?;
                refuse(format!("a directory is written as file://{}", path.display()))
            }
            None if text.contains('/') => {
                refuse(format!("a bucket with a prefix is written as s3://{}", text.trim_matches('/')))
            }
            None if text.contains(':') => {
                refuse(format!("this notation is not supported; supported are {SUPPORTED_SOURCES}"))
            }
            None => Self::s3(text, "", given),
        }
    }

    fn s3(bucket: &str, in_url: &str, given: String) -> Result<Self, ConfigError> {
        check_s3_bucket(bucket)?;
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: one_prefix(in_url, given, "s3")? })
    }

    fn dir(text: &str, rest: &str, prefix: String) -> Result<Self, ConfigError> {
        let path = rest.strip_prefix("localhost").unwrap_or(rest);
        if !path.starts_with('/') {
            return Err(ConfigError::Source {
                text: text.to_owned(),
                reason: format!(
                    "a directory is written with three slashes and an absolute path, such as file://{}",
                    absolute(Path::new(if path.is_empty() { "." } else { path }))?.display()
                ),
            });
        }
        if path.contains('\0') {
            return Err(ConfigError::Source { text: text.to_owned(), reason: "it holds a NUL byte".to_owned() });
        }
        let path = absolute(Path::new(path))?;
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        Ok(Self::Dir { path, prefix })
    }

    /// The prefix, or an empty string.
    pub fn prefix(&self) -> &str {
        match self {
            Self::S3 { prefix, .. } | Self::Gcs { prefix, .. } | Self::Dir { prefix, .. } => prefix,
        }
    }

    /// How many bytes of every object key the prefix and its slash take.
    pub fn key_prefix_len(&self) -> usize {
        if self.prefix().is_empty() { 0 } else { self.prefix().len() + 1 }
    }

    /// A short name for directories: bucket or directory name and prefix, reduced to harmless characters.
    pub(super) fn readable_name(&self, namespace: Option<&str>) -> String {
        let name = match self {
            Self::S3 { bucket, .. } | Self::Gcs { bucket, .. } => bucket.clone(),
            Self::Dir { path, .. } => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let full = format!("{name}-{}-{}", self.prefix(), namespace.unwrap_or_default());
        let mut readable = String::new();
        for c in full.chars() {
            let c = if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
            if !(c == '-' && readable.ends_with('-')) {
                readable.push(c);
            }
        }
        let readable = readable.trim_matches(['-', '.']);
        let cut = &readable[..readable.len().min(40)];
        if cut.is_empty() { "source".to_owned() } else { cut.trim_end_matches(['-', '.']).to_owned() }
    }

    /// See [`StoreConfig::identity`](super::StoreConfig::identity). Fields are separated by a character that none holds.
    pub(super) fn identity(&self, endpoint: Option<&str>) -> String {
        match self {
            Self::S3 { bucket, prefix } => format!("s3\n{}\n{bucket}\n{prefix}", endpoint.unwrap_or_default()),
            Self::Gcs { bucket, prefix } => format!("gs\n{}\n{bucket}\n{prefix}", endpoint.unwrap_or_default()),
            Self::Dir { path, prefix } => {
                // Paths need not be UTF-8: escape what is not, so that two of them never look alike.
                let path: String = path.as_os_str().as_bytes().escape_ascii().to_string();
                format!("file\n{path}\n{prefix}")
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Gcs { bucket, prefix } if prefix.is_empty() => write!(f, "gs://{bucket}"),
            Self::Gcs { bucket, prefix } => write!(f, "gs://{bucket}/{prefix}"),
            Self::Dir { path, .. } => write!(f, "file://{}", path.display()),
        }
    }
}

/// The prefix of the URL or that of `--prefix`.
fn one_prefix(in_url: &str, given: String, scheme: &'static str) -> Result<String, ConfigError> {
    match (in_url.is_empty(), given.is_empty()) {
        (false, false) if in_url != given => Err(ConfigError::TwoPrefixes { scheme, in_url: in_url.to_owned(), given }),
        (false, _) => Ok(in_url.to_owned()),
        (true, _) => Ok(given),
    }
}

/// Removes slashes at both ends and checks the rest.
pub(super) fn check_prefix(text: &str) -> Result<String, ConfigError> {
    let prefix = text.trim_matches('/');
    let refuse = |reason| Err(ConfigError::Prefix { prefix: text.to_owned(), reason });
    if prefix.is_empty() {
        return Ok(String::new());
    }
    if prefix.len() > LONGEST_PREFIX {
        return refuse("it has more than 512 bytes");
    }
    if prefix.chars().any(char::is_control) {
        return refuse("it holds a control character");
    }
    if prefix.split('/').any(str::is_empty) {
        return refuse("it has two slashes in a row");
    }
    if prefix.split('/').any(|part| part == "." || part == "..") {
        return refuse("it has a component \".\" or \"..\"");
    }
    Ok(prefix.to_owned())
}

/// One spelling per endpoint: lower-case scheme and host, no default port, no slash at the end.
pub(super) fn canonical_endpoint(text: &str) -> Result<String, ConfigError> {
    let refuse = || ConfigError::Endpoint { text: text.to_owned() };
    let (scheme, rest) = text.trim().split_once("://").ok_or_else(refuse)?;
    let scheme = scheme.to_ascii_lowercase();
    let default_port = match scheme.as_str() {
        "http" => ":80",
        "https" => ":443",
        _ => return Err(refuse()),
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.to_ascii_lowercase();
    let host = host.strip_suffix(default_port).unwrap_or(&host);
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(refuse());
    }
    let path = path.trim_end_matches('/');
    Ok(if path.is_empty() { format!("{scheme}://{host}") } else { format!("{scheme}://{host}/{path}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, prefix: &str) -> Source {
        Source::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() }
    }

    fn gs(bucket: &str, prefix: &str) -> Source {
        Source::Gcs { bucket: bucket.to_owned(), prefix: prefix.to_owned() }
    }

    #[test]
    fn every_supported_notation_is_understood() {
        for (text, prefix, expected, shown) in [
            ("my-bucket", None, s3("my-bucket", ""), "s3://my-bucket"),
            ("my-bucket", Some("a/b/"), s3("my-bucket", "a/b"), "s3://my-bucket/a/b"),
            ("s3://my-bucket", None, s3("my-bucket", ""), "s3://my-bucket"),
            ("s3://my-bucket/", Some("x"), s3("my-bucket", "x"), "s3://my-bucket/x"),
            ("s3://my-bucket/a/b", None, s3("my-bucket", "a/b"), "s3://my-bucket/a/b"),
            ("S3://my-bucket/a", Some("/a/"), s3("my-bucket", "a"), "s3://my-bucket/a"),
            ("s3://status", None, s3("status", ""), "s3://status"),
            ("gs://my_bucket", None, gs("my_bucket", ""), "gs://my_bucket"),
            ("GS://my_bucket/a/b/", Some("a/b"), gs("my_bucket", "a/b"), "gs://my_bucket/a/b"),
        ] {
            let source = Source::parse(text, prefix).expect(text);
            assert_eq!(source, expected, "{text}");
            assert_eq!(source.to_string(), shown, "{text}");
        }
        for (text, path) in [
            ("file:///no/such/dir", "/no/such/dir"),
            ("file:///no/such/dir/", "/no/such/dir"),
            ("file://localhost/no/such", "/no/such"),
            ("file:///no/such/a b%20c", "/no/such/a b%20c"),
        ] {
            let expected = Source::Dir { path: PathBuf::from(path), prefix: "p".to_owned() };
            assert_eq!(Source::parse(text, Some("p")), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_source_is_refused_with_the_right_notation() {
        for (text, prefix, words) in [
            ("", None, SUPPORTED_SOURCES),
            ("az://bucket", None, SUPPORTED_SOURCES),
            ("gs://goog-bucket", None, "goog"),
            ("gs://bucket/a", Some("b"), "gs://BUCKET/PREFIX"),
            ("https://bucket.s3.amazonaws.com", None, SUPPORTED_SOURCES),
            ("s3:bucket/prefix", None, "s3://"),
            ("host:bucket", None, SUPPORTED_SOURCES),
            ("bucket/prefix", None, "s3://bucket/prefix"),
            ("/srv/data", None, "file:///srv/data"),
            ("file://srv/data", None, "three slashes"),
            ("file:data", None, SUPPORTED_SOURCES),
            ("s3://", None, "fewer than 3"),
            ("s3:///prefix", None, "fewer than 3"),
            ("s3://My_Bucket", None, "upper-case"),
            ("s3://bucket/a//b", None, "two slashes"),
            ("s3://bucket/a/../b", None, "\"..\""),
            ("bucket", Some("a/./b"), "\".\""),
            ("bucket", Some("a\nb"), "control character"),
            ("s3://bucket/a", Some("b"), "give it once"),
        ] {
            let error = Source::parse(text, prefix).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn endpoints_have_one_spelling() {
        for (text, canonical) in [
            ("http://127.0.0.1:9000/", "http://127.0.0.1:9000"),
            ("HTTPS://Minio.Example:443", "https://minio.example"),
            ("http://h:80/Path/", "http://h/Path"),
        ] {
            assert_eq!(canonical_endpoint(text).as_deref(), Ok(canonical), "{text}");
        }
        for text in ["localhost:9000", "ftp://h", "http://", "http:///x"] {
            assert!(canonical_endpoint(text).is_err(), "{text}");
        }
    }

    #[test]
    fn readable_names_are_harmless() {
        for (source, name) in [
            (s3("my-bucket", ""), "my-bucket"),
            (s3("b.c", "a b/ü/c"), "b.c-a-b-c"),
            (Source::Dir { path: "/".into(), prefix: String::new() }, "source"),
            (Source::Dir { path: "/x/..hidden dir".into(), prefix: String::new() }, "hidden-dir"),
        ] {
            assert_eq!(source.readable_name(None), name);
        }
    }
}
