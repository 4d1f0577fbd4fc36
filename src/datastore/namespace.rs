//! Namespaces: several datastores in one bucket, each below a directory of its own.
//!
//! Depends on `store` and the internal names. Invariants: a [`Namespace`] is one path component that can be no internal
//! name; the registration of a namespace is only ever created, never replaced, and no answer but "no such object" counts
//! as "not registered".

use std::fmt;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};

use super::error::DatastoreError;
use super::names::{NAMESPACE_FILE, is_ignored_by_discovery, is_internal};
use super::path::MAX_COMPONENT;
use super::timestamp;
use crate::store::{GetRequest, ListRequest, ObjectStore, Precondition, PutRequest, StoreError, get_bytes};

/// Directory of the namespaces' locks, beside the namespaces.
const LOCKS: &str = ".locks";
/// Largest registration that is read, in bytes.
const MAX_REGISTRATION: u64 = 1 << 20;
/// Registrations read at a time.
const CONCURRENCY: usize = 16;

/// The name of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(String);

/// Why a text cannot be the name of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NamespaceProblem {
    /// Nothing.
    #[error("it is empty")]
    Empty,
    /// Two directories.
    #[error("it holds a slash; a namespace is one directory of the bucket, and --prefix says what lies above it")]
    Slash,
    /// `.` or `..`.
    #[error("\".\" and \"..\" are no names")]
    Dots,
    /// More than a file system takes.
    #[error("it has more than 255 bytes")]
    TooLong,
    /// A line break or the like.
    #[error("it holds a control character")]
    Control,
    /// The bucket's own bookkeeping lies there.
    #[error("the datastore's own objects have that name")]
    Internal,
}

impl Namespace {
    /// Checks a name.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: &str) -> Result<Self, NamespaceProblem> {
        if text.is_empty() {
            return Err(NamespaceProblem::Empty);
        }
        if text.contains('/') {
            return Err(NamespaceProblem::Slash);
        }
        if text == "." || text == ".." {
            return Err(NamespaceProblem::Dots);
        }
        if text.len() > MAX_COMPONENT {
            return Err(NamespaceProblem::TooLong);
        }
        if text.chars().any(char::is_control) {
            return Err(NamespaceProblem::Control);
        }
        if is_internal(text) || is_ignored_by_discovery(&format!("{text}/x")) {
            return Err(NamespaceProblem::Internal);
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The lock beside the namespaces, which clients up to August take.
    pub fn outer_lock_key(&self) -> String {
        format!("{LOCKS}/{}.lock", self.0)
    }

    /// A path relative to this namespace, from one relative to the bucket's prefix (or to the root of a cache directory);
    /// `None` for what lies outside.
    pub fn strip<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(&self.0)?.strip_prefix('/')
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What `.namespace.json` says. Fields that are missing, or no text, are `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// The directory that holds it.
    pub namespace: String,
    /// The repository that registered it.
    pub repo_id: Option<String>,
    /// When (ISO-8601).
    pub registered_at: Option<String>,
}

impl Registration {
    fn parse(namespace: &str, bytes: &[u8]) -> Self {
        let value: Value = serde_json::from_slice(bytes).unwrap_or_else(|error| {
            tracing::warn!(namespace, %error, "{NAMESPACE_FILE} is not JSON; the namespace counts as registered");
            Value::Null
        });
        let text = |field: &str| value.get(field).and_then(Value::as_str).map(str::to_owned);
        Self { namespace: namespace.to_owned(), repo_id: text("repoId"), registered_at: text("registeredAt") }
    }
}

/// Reads the registration of a namespace from its own store.
///
/// # Errors
/// Every failure but "no such object", which is `None`.
pub async fn registration(store: &dyn ObjectStore, namespace: &Namespace) -> Result<Option<Registration>, StoreError> {
    read(store, NAMESPACE_FILE, namespace.as_str()).await
}

async fn read(store: &dyn ObjectStore, key: &str, namespace: &str) -> Result<Option<Registration>, StoreError> {
    match get_bytes(store, GetRequest::whole(key), MAX_REGISTRATION).await {
        Ok(Some((_, bytes))) => Ok(Some(Registration::parse(namespace, &bytes))),
        Ok(None) => Ok(None),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Registers a namespace for a repository, unless it is registered; gives the registration that is there afterwards.
///
/// # Errors
/// When that stays open.
pub async fn register(
    store: &dyn ObjectStore,
    namespace: &Namespace,
    repo_id: &str,
) -> Result<Registration, StoreError> {
    // Looks first: not every store honours the condition.
    if let Some(known) = registration(store, namespace).await? {
        return Ok(known);
    }
    let registered_at = timestamp::format_nanos(timestamp::now_nanos());
    let body = json!({"namespace": namespace.as_str(), "repoId": repo_id, "registeredAt": registered_at});
    let body = Bytes::from(format!("{body:#}"));
    match store.put(PutRequest::json(NAMESPACE_FILE, body.clone(), Precondition::Absent)).await {
        Ok(_) => {
            tracing::info!(%namespace, repo_id, "registered the namespace");
            Ok(Registration::parse(namespace.as_str(), &body))
        }
        Err(error) => registration(store, namespace).await?.ok_or(error),
    }
}

/// The registered namespaces of a bucket (below its prefix), by name. A directory without a registration is none.
///
/// # Errors
/// When a listing or a registration cannot be read.
pub async fn list_namespaces(bucket: &dyn ObjectStore) -> Result<Vec<Registration>, DatastoreError> {
    let mut directories = Vec::new();
    let mut request = ListRequest { delimiter: Some('/'), ..ListRequest::default() };
    loop {
        let page = bucket.list(request.clone()).await?;
        directories.extend(page.prefixes);
        match page.continuation {
            Some(more) => request.continuation = Some(more),
            None => break,
        }
    }
    let names = directories.iter().filter_map(|directory| Namespace::parse(directory.trim_end_matches('/')).ok());
    let mut found: Vec<Registration> = stream::iter(names)
        .map(|name| async move { read(bucket, &format!("{name}/{NAMESPACE_FILE}"), name.as_str()).await })
        .buffer_unordered(CONCURRENCY)
        .try_filter_map(|found| async { Ok(found) })
        .try_collect()
        .await?;
    found.sort_unstable_by(|a, b| a.namespace.cmp(&b.namespace));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_one_directory_that_is_not_the_datastores_own() {
        for name in ["infra", "team-a", "a b", "é", "v1.2", "data", ".hidden"] {
            assert_eq!(Namespace::parse(name).expect(name).as_str(), name);
        }
        let long = "x".repeat(256);
        for (name, problem) in [
            ("", NamespaceProblem::Empty),
            ("a/b", NamespaceProblem::Slash),
            ("/", NamespaceProblem::Slash),
            (".", NamespaceProblem::Dots),
            ("..", NamespaceProblem::Dots),
            (long.as_str(), NamespaceProblem::TooLong),
            ("a\nb", NamespaceProblem::Control),
            ("_index", NamespaceProblem::Internal),
            ("_control", NamespaceProblem::Internal),
            (".locks", NamespaceProblem::Internal),
            (".lock", NamespaceProblem::Internal),
            (".datastore.lock", NamespaceProblem::Internal),
            (".datastore-index.json", NamespaceProblem::Internal),
            (".namespace.json", NamespaceProblem::Internal),
            ("_catalog.db-wal", NamespaceProblem::Internal),
            (".auto-definition-create", NamespaceProblem::Internal),
        ] {
            assert_eq!(Namespace::parse(name), Err(problem), "{name:?}");
        }
    }

    #[test]
    fn only_what_lies_below_the_namespace_is_stripped() {
        let namespace = Namespace::parse("ns").expect("valid");
        for (path, stripped) in
            [("ns/a/b", Some("a/b")), ("ns", None), ("nsx/a", None), ("a/ns/b", None), ("ns/", Some(""))]
        {
            assert_eq!(namespace.strip(path), stripped, "{path}");
        }
    }

    #[test]
    fn a_registration_is_read_as_far_as_it_can_be_understood() {
        let whole = Registration::parse("ns", br#"{"namespace":"ns","repoId":"r","registeredAt":"t"}"#);
        assert_eq!((whole.repo_id.as_deref(), whole.registered_at.as_deref()), (Some("r"), Some("t")));
        for bytes in [&b"{}"[..], b"", b"[1]", br#"{"repoId":7}"#] {
            assert_eq!(Registration::parse("ns", bytes).repo_id, None);
        }
    }
}
