//! Both versions of a conflict exist: ours goes on under another name.
//!
//! Part of the volume. Invariant: moving aside is one transaction; a file is never without a name in between.

use super::delta::Changes;
use super::inner::Inner;
use super::notice::Notice;
use super::{Result, Volume};
use crate::cache::rows::{Attrs, Delta, NodeRow};
use crate::datastore::{RelPath, conflict_name};
use crate::tree::{Ino, NodeData};

/// Rows that give an unpushed file another, new name.
pub(super) fn rows_for_new_name(inner: &mut Inner, ino: Ino, from: &str, to: &str, changes: &mut Changes) {
    let origin = inner.version_of(ino);
    let suspect = matches!(inner.deltas.get(from).map(|r| &r.delta), Some(Delta::Put { suspect: true, .. }));
    let row = inner.put_row(to, origin, suspect);
    let node = inner.tree.get(ino);
    let content = node.and_then(|n| n.content()).and_then(|c| c.id).filter(|id| inner.content_rows.contains_key(id));
    let node_row = node.map(|n| NodeRow { path: to.to_owned(), kind: n.kind(), content, attrs: n.attrs_row() });
    changes.delta(from, None);
    changes.node(from, None);
    changes.delta(to, row);
    changes.node(to, node_row);
}

impl Volume {
    /// A name for our version of `path` that nothing has yet.
    pub fn conflict_path(&self, path: &RelPath) -> RelPath {
        let inner = self.lock();
        let taken = |candidate: &RelPath| {
            let candidate = candidate.as_str();
            inner.tree.find(candidate).is_some()
                || inner.base.index.names(candidate)
                || inner.deltas.contains_key(candidate)
        };
        conflict_name(path, &self.options.host, crate::datastore::now_nanos(), taken)
    }

    /// Puts a file of the base into the tree; a file of ours that is in the way of its directories moves aside.
    pub(super) fn insert_remote(
        &self,
        inner: &mut Inner,
        path: &RelPath,
        data: NodeData,
        attrs: Option<Attrs>,
        notices: &mut Vec<Notice>,
    ) -> Result<()> {
        loop {
            match inner.tree.make_dirs(path.parent().unwrap_or("")) {
                Ok(parent) => {
                    match inner.tree.child(parent, path.name()) {
                        Some(_) => {
                            let reason = "another file or directory on this machine has the same name".to_owned();
                            inner.shadowed.insert(path.to_string(), reason);
                        }
                        None => {
                            let ino = inner.tree.insert(parent, path.name(), data);
                            if let Some(node) = inner.tree.get_mut(ino) {
                                node.set_attrs(attrs);
                            }
                            inner.touch_directory(parent);
                            inner.shadowed.remove(path.as_str());
                        }
                    }
                    return Ok(());
                }
                Err(in_the_way) => self.move_aside(inner, in_the_way, notices)?,
            }
        }
    }

    fn move_aside(&self, inner: &mut Inner, ino: Ino, notices: &mut Vec<Notice>) -> Result<()> {
        let Some(from) = inner.tree.path(ino).and_then(|p| RelPath::parse(&p).ok()) else {
            inner.tree.unlink(ino);
            return Ok(());
        };
        let taken = |name: &RelPath| inner.tree.find(name.as_str()).is_some() || inner.base.index.names(name.as_str());
        let to = conflict_name(&from, &self.options.host, crate::datastore::now_nanos(), taken);
        tracing::warn!(%from, %to, "the bucket has a directory of this name: the local file was renamed");
        let mut changes = Changes::default();
        rows_for_new_name(inner, ino, from.as_str(), to.as_str(), &mut changes);
        inner.commit(changes)?;
        let (Some(parent), Some(node)) = (inner.tree.parent(ino), inner.tree.get(ino)) else { return Ok(()) };
        let name = node.name().to_owned();
        inner.tree.rename(ino, parent, to.name());
        notices.push(Notice::Entry { parent, name });
        notices.push(Notice::Entry { parent, name: to.name().to_owned() });
        Ok(())
    }
}
