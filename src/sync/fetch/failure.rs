//! How a fetch fails, and what those who wait are told.
//!
//! Invariant: nothing here ever means that a file does not exist.

use crate::cache::rows::Version;
use crate::store::{StoreError, StoreErrorKind};
use crate::sync::FetchError;
use crate::volume::{FailureCause, Refused};

/// Why a range did not come.
#[derive(Debug)]
pub(in crate::sync) enum Failure {
    /// The object is not what the index says; in words.
    Contradiction(String),
    /// The object is another upload than the one that was pinned.
    Replaced(String),
    /// The body ended early, or the connection did.
    Broken(String),
    Unreachable(String),
    /// The bytes cannot be stored here.
    NoRoom(String),
    Failed(String),
    /// It was fetched ahead, and whoever read has gone.
    Abandoned,
    /// The version that was pinned was given up while bytes of it came.
    Forgotten,
}

impl Failure {
    /// Bytes of another version than the pinned one came.
    pub fn replaced(version: &Version) -> Self {
        Self::Replaced(format!("the object {:?} was replaced while it was read", version.key))
    }

    /// In words, and the kind that callers act on.
    pub fn into_reason(self) -> (String, FailureCause) {
        match self {
            Self::Contradiction(reason) | Self::Replaced(reason) | Self::Failed(reason) => {
                (reason, FailureCause::Other)
            }
            Self::Unreachable(reason) | Self::Broken(reason) => (reason, FailureCause::Unreachable),
            Self::NoRoom(reason) => (reason, FailureCause::NoRoom),
            Self::Abandoned => ("nobody reads it any more".to_owned(), FailureCause::Other),
            Self::Forgotten => ("the object was replaced while it was read".to_owned(), FailureCause::Other),
        }
    }
}

impl FetchError {
    /// With its reason in words.
    pub(super) fn new(reason: &str, cause: FailureCause) -> Self {
        match cause {
            FailureCause::Unreachable => Self::Unreachable(reason.into()),
            FailureCause::NoRoom => Self::NoRoom(reason.into()),
            FailureCause::Other => Self::Failed(reason.into()),
        }
    }
}

impl From<Refused> for FetchError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown => Self::Failed("nothing says where the bytes are".into()),
            Refused::Gone => Self::Stale,
            Refused::Failed(reason, cause) => Self::new(&reason, cause),
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error.kind {
            StoreErrorKind::Precondition => Self::Replaced(error.to_string()),
            StoreErrorKind::NotFound | StoreErrorKind::RangeNotSatisfiable => Self::Contradiction(error.to_string()),
            StoreErrorKind::Unreachable => Self::Unreachable(error.to_string()),
            _ => Self::Failed(error.to_string()),
        }
    }
}

impl Failure {
    /// Of a body that had begun.
    pub fn in_body(error: StoreError) -> Self {
        if error.is_transient() { Self::Broken(error.to_string()) } else { error.into() }
    }
}

/// Of a body that ended early.
pub(super) fn broken_off(version: &Version, at: u64, end: u64) -> String {
    format!("the answer for {:?} ended at byte {at} of {end}", version.key)
}
