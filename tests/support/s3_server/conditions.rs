//! The conditions of requests as S3 judges them, including its 404 for `If-Match` on an absent object.

use hyper::HeaderMap;

use super::super::server::StoredObject;

/// Why a condition did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    NotModified,
    Failed,
    Absent,
}

/// The conditions of a request on the object it names.
#[derive(Clone, Debug, Default)]
pub struct Conditions {
    pub if_match: Option<String>,
    pub if_none_match: Option<String>,
}

impl Conditions {
    /// From the two headers, whose names begin with `prefix`.
    pub fn from_headers(headers: &HeaderMap, prefix: &str) -> Self {
        let read = |name: &str| {
            let value = headers.get(format!("{prefix}{name}"))?.to_str().ok()?;
            Some(value.trim().trim_matches('"').to_owned())
        };
        Self { if_match: read("if-match"), if_none_match: read("if-none-match") }
    }

    /// For writes and deletes.
    pub fn check_write(&self, current: Option<&StoredObject>) -> Result<(), Unmet> {
        if let Some(wanted) = &self.if_match {
            let current = current.ok_or(Unmet::Absent)?;
            if wanted != "*" && *wanted != current.etag {
                return Err(Unmet::Failed);
            }
        }
        match (&self.if_none_match, current) {
            (Some(known), Some(current)) if known == "*" || *known == current.etag => Err(Unmet::Failed),
            _ => Ok(()),
        }
    }

    /// For reads and sources of copies.
    pub fn check_read(&self, current: &StoredObject) -> Result<(), Unmet> {
        if self.if_match.as_ref().is_some_and(|wanted| wanted != "*" && *wanted != current.etag) {
            return Err(Unmet::Failed);
        }
        if self.if_none_match.as_ref().is_some_and(|known| known == "*" || *known == current.etag) {
            return Err(Unmet::NotModified);
        }
        Ok(())
    }
}
