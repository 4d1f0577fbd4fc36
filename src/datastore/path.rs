//! Safe relative paths: the only form in which a name from an index reaches the local disk.
//!
//! Depends on nothing. Invariant: a [`RelPath`] can be joined to any directory without leaving it, and every component is
//! a name that Linux file systems accept.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest name of one component in bytes, as of every common Linux file system.
pub const MAX_COMPONENT: usize = 255;

/// Why a text is not a path of a datastore.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// The empty string.
    #[error("the name is empty")]
    Empty,
    /// It begins with `/`.
    #[error("the name begins with a slash: paths of a datastore are relative")]
    Absolute,
    /// It ends with `/`.
    #[error("the name ends with a slash: that is the directory marker of some other tool, not a file")]
    DirectoryMarker,
    /// Two slashes in a row.
    #[error("the name has an empty component (two slashes in a row)")]
    EmptyComponent,
    /// A component `.` or `..`.
    #[error("the name has a component {0:?}, which would lead elsewhere")]
    DotComponent(String),
    /// A NUL byte.
    #[error("the name contains a NUL byte, which no file name can hold")]
    Nul,
    /// A component is too long for a file system.
    #[error("a component of the name has {0} bytes; file systems take at most 255")]
    ComponentTooLong(usize),
}

/// A relative, `/`-separated path without empty, `.` or `..` components, NUL, or components above 255 bytes.
///
/// Cheap to clone: clones share the text.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelPath(Arc<str>);

impl RelPath {
    /// Checks a text.
    ///
    /// # Errors
    /// Says which rule the text breaks.
    pub fn parse(text: &str) -> Result<Self, PathProblem> {
        check(text)?;
        Ok(Self(text.into()))
    }

    /// A text that was checked before.
    pub(in crate::datastore) fn from_checked(text: &str) -> Self {
        debug_assert!(check(text).is_ok());
        Self(text.into())
    }

    /// The whole path.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of its directory; `None` at the root.
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }

    /// The last component.
    pub fn name(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// The path of `name` in this directory.
    ///
    /// # Errors
    /// When `name` is not a relative path itself.
    pub fn join(&self, name: &str) -> Result<Self, PathProblem> {
        check(name)?;
        Ok(Self(format!("{}/{name}", self.0).into()))
    }

    /// Whether it lies below the directory `dir` (the empty string is the root; nothing is below itself).
    pub fn is_below(&self, dir: &str) -> bool {
        dir.is_empty() || self.0.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Its directories, nearest first.
    pub fn ancestors(&self) -> impl Iterator<Item = &str> {
        self.0.rmatch_indices('/').map(|(at, _)| &self.0[..at])
    }
}

/// Whether a text is such a path.
pub(in crate::datastore) fn check(text: &str) -> Result<(), PathProblem> {
    if text.is_empty() {
        return Err(PathProblem::Empty);
    }
    if text.contains('\0') {
        return Err(PathProblem::Nul);
    }
    if text.starts_with('/') {
        return Err(PathProblem::Absolute);
    }
    let body = text.strip_suffix('/').unwrap_or(text);
    for component in body.split('/') {
        match component {
            "" => return Err(PathProblem::EmptyComponent),
            "." | ".." => return Err(PathProblem::DotComponent(component.to_owned())),
            long if long.len() > MAX_COMPONENT => return Err(PathProblem::ComponentTooLong(long.len())),
            _ => {}
        }
    }
    if body.len() != text.len() { Err(PathProblem::DirectoryMarker) } else { Ok(()) }
}

impl AsRef<str> for RelPath {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for RelPath {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl Serialize for RelPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_stay_below_their_root_parse() {
        for good in ["a", "a/b", "a b/é.yaml", "...", "..a/b..", ".hidden", "\u{1F600}", "a\\b", "42"] {
            assert_eq!(RelPath::parse(good).map(|p| p.to_string()), Ok(good.to_owned()));
        }
        let long = "x".repeat(256);
        for bad in ["", "/", "/a", "a/", "a//b", "..", "../x", "a/..", "a/./b", "./a", "a\0b", "a//", &long] {
            assert!(RelPath::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(RelPath::parse("a/b/"), Err(PathProblem::DirectoryMarker));
    }

    #[test]
    fn parts_of_a_path() {
        let path = RelPath::parse("a/bc/d").unwrap();
        assert_eq!((path.parent(), path.name()), (Some("a/bc"), "d"));
        assert_eq!(path.ancestors().collect::<Vec<_>>(), ["a/bc", "a"]);
        assert!(path.is_below("a") && path.is_below("a/bc") && path.is_below(""));
        assert!(!path.is_below("a/b") && !path.is_below("a/bc/d"));
        assert!(path.join("../x").is_err());
    }

    proptest::proptest! {
        #[test]
        fn a_parsed_path_never_escapes(text in "[a./\\\\\0é]{0,12}") {
            if let Ok(path) = RelPath::parse(&text) {
                let joined = std::path::Path::new("/root").join(path.as_str());
                proptest::prop_assert!(joined.components().all(|c| c != std::path::Component::ParentDir));
                proptest::prop_assert!(joined.starts_with("/root") && joined != std::path::Path::new("/root"));
            }
        }
    }
}
