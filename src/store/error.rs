//! The one error of the store layer: what was asked for, how it ended, and whether asking again makes sense.
//!
//! Depends on nothing. Invariant: only [`StoreErrorKind::NotFound`] means that an object does not exist.

use std::fmt;

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreErrorKind {
    /// No object has that key.
    NotFound,
    /// The bucket itself does not exist: never to be taken for an empty one.
    NoSuchBucket,
    /// A condition on the object did not hold (HTTP 412).
    Precondition,
    /// The range lies beyond the end of the object (HTTP 416).
    RangeNotSatisfiable,
    /// 401 or 403.
    Forbidden,
    /// 429 or 503: the store asks for patience.
    Throttled,
    /// No answer: connection failed, broke, or the deadline passed.
    Unreachable,
    /// A conditional write was sent and its answer was lost: it may or may not have happened.
    Undecided,
    /// The answer made no sense, or the store failed (5xx).
    Server,
    /// This machine: disk, memory, a file that changed while it was sent.
    Local,
    /// Anything else.
    Other,
}

/// What to check depends on whose store it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Service {
    /// A directory, or not known.
    #[default]
    Any,
    /// S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Google,
}

impl Service {
    /// What to check after such a failure; may be empty.
    fn advice(self, kind: StoreErrorKind) -> &'static str {
        match (kind, self) {
            (StoreErrorKind::Forbidden, Self::S3) => {
                "check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID, …), their permissions on the bucket, the endpoint and region, and the clock of this machine"
            }
            (StoreErrorKind::Forbidden, Self::Google) => {
                "check Google's application default credentials (GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`, or the machine's service account) and their permissions on the bucket"
            }
            (StoreErrorKind::Forbidden, Self::Any) => "check the permissions",
            (StoreErrorKind::NoSuchBucket, Self::S3) => "check the bucket's name, the region and the endpoint",
            (StoreErrorKind::NoSuchBucket, Self::Google) => "check the bucket's name",
            (StoreErrorKind::NoSuchBucket, Self::Any) => "check the directory's name",
            (StoreErrorKind::Unreachable, _) => "check the network and the endpoint",
            (StoreErrorKind::Throttled, _) => "the store asks for fewer requests, try again later",
            _ => "",
        }
    }
}

/// A failed request.
#[derive(Clone, Debug, thiserror::Error)]
pub struct StoreError {
    /// How it failed.
    pub kind: StoreErrorKind,
    /// Operation, such as `read` or `write`.
    pub operation: &'static str,
    /// Object key (relative), or empty for the bucket.
    pub key: String,
    /// HTTP status, where there was an answer.
    pub status: Option<u16>,
    /// The service's own error code, such as `SlowDown`.
    pub code: Option<String>,
    /// Request id, for the operator of the store.
    pub request_id: Option<String>,
    /// Cause in words; at most 256 bytes of a body that did not parse.
    pub message: String,
    /// Whose advice to give.
    pub service: Service,
}

impl StoreError {
    /// An error of the given kind without an HTTP answer.
    pub fn new(kind: StoreErrorKind, operation: &'static str, key: &str, message: impl Into<String>) -> Self {
        Self {
            kind,
            operation,
            key: key.to_owned(),
            status: None,
            code: None,
            request_id: None,
            message: message.into(),
            service: Service::default(),
        }
    }

    /// Shorthand for [`StoreErrorKind::Other`].
    pub fn other(operation: &'static str, key: &str, message: impl Into<String>) -> Self {
        Self::new(StoreErrorKind::Other, operation, key, message)
    }

    /// What to check; may be empty.
    fn advice(&self) -> &'static str {
        match self.code.as_deref() {
            // S3 takes no signature that is a quarter of an hour off.
            Some("RequestTimeTooSkewed") => "check the clock of this machine",
            _ => self.service.advice(self.kind),
        }
    }

    /// Whether the object is known not to exist.
    pub fn is_not_found(&self) -> bool {
        self.kind == StoreErrorKind::NotFound
    }

    /// Whether a condition failed.
    pub fn is_precondition(&self) -> bool {
        self.kind == StoreErrorKind::Precondition
    }

    /// Whether the same request may succeed later.
    pub fn is_transient(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Throttled | StoreErrorKind::Unreachable | StoreErrorKind::Server)
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.operation)?;
        if !self.key.is_empty() {
            write!(f, " {:?}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(status) = self.status {
            write!(f, " (HTTP {status}")?;
            if let Some(code) = &self.code {
                write!(f, " {code}")?;
            }
            if let Some(id) = &self.request_id {
                write!(f, ", request {id}")?;
            }
            write!(f, ")")?;
        }
        match self.advice() {
            "" => Ok(()),
            advice => write!(f, "; {advice}"),
        }
    }
}
