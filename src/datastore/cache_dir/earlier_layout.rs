//! Cache directories of a namespace as clients before 07.30.2 left them: the files at the root, beside index copy and
//! sidecar.
//!
//! Invariants: a file is moved, never copied, replaced or removed; what the index copy does not lead to stays where it is,
//! because the root may also hold the files of other namespaces.

use std::collections::HashSet;
use std::io;

use super::CacheDir;
use crate::datastore::index::Index;
use crate::datastore::path::RelPath;

impl CacheDir {
    /// The files of this namespace that lie at the root: those below a directory (or with a name) at the root in which
    /// there is a file that the index copy names. Empty without a namespace.
    ///
    /// # Errors
    /// When a directory cannot be read.
    pub fn files_of_earlier_layout(&self, copy: &Index) -> io::Result<Vec<RelPath>> {
        let Some((namespace, _)) = &self.space else { return Ok(Vec::new()) };
        let outside = self.root.walk(Some(namespace.as_str()))?.files;
        let top = |path: &RelPath| path.as_str().split('/').next().map(str::to_owned);
        let ours: HashSet<_> = outside
            .iter()
            .filter(|(path, _)| copy.get(path.as_str()).is_some())
            .filter_map(|(path, _)| top(path))
            .collect();
        Ok(outside
            .into_iter()
            .map(|(path, _)| path)
            .filter(|path| top(path).is_some_and(|top| ours.contains(&top)))
            .collect())
    }

    /// Moves a file from the root to its place in the namespace's directory; `false` when there is one already, and both
    /// stay.
    ///
    /// # Errors
    /// When the disk fails, or a file has the name of a directory.
    pub fn move_from_earlier_layout(&self, path: &RelPath) -> io::Result<bool> {
        match self.root.rename_to_free(path, self.files(), path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => return Err(error),
        }
        self.root.remove_empty(path.ancestors());
        Ok(true)
    }
}
