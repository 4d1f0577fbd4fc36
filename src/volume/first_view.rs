//! The first index of a source: all of its entries come into view in one pass, as they do at every start.
//!
//! Part of the volume. Invariant: what is only here keeps its place; an entry that finds none is told of, not dropped.

use std::collections::{BTreeMap, HashSet};

use super::delta::Changes;
use super::inner::{Base, Inner};
use super::notice::Notice;
use super::{Result, Volume};
use crate::cache::rows::DeltaRow;
use crate::datastore::{Index, RelPath};
use crate::tree::{Ino, Node, NodeData, ROOT, Tree};

/// Entries that did not find a place.
#[derive(Debug, Default)]
pub(super) struct Unplaced {
    /// An unpushed file is in the way of their directories.
    pub blocked: Vec<RelPath>,
    /// A directory of this machine has their name; why they are not shown.
    pub shadowed: BTreeMap<String, String>,
}

/// Puts every entry into a tree that has none of them yet, but for those with a change of ours.
pub(super) fn show_all(tree: &mut Tree, index: &Index, deltas: &BTreeMap<String, DeltaRow>) -> Unplaced {
    let mut unplaced = Unplaced::default();
    let mut path = String::new();
    // Entries of a directory mostly follow each other: it is looked for once.
    let mut at: Option<(&str, std::result::Result<Ino, Ino>)> = None;
    for entry in index.entries() {
        let (directory, name) = (entry.name().directory(), entry.name().last());
        if !deltas.is_empty() {
            entry.name().write_into(&mut path);
            if deltas.contains_key(&path) {
                continue;
            }
        }
        let parent = match at {
            Some((known, parent)) if known == directory => parent,
            _ => tree.make_dirs(directory),
        };
        at = Some((directory, parent));
        match parent {
            Err(_) => unplaced.blocked.push(entry.path()),
            Ok(parent) if !tree.insert_new(parent, name, NodeData::listed(&entry)) => {
                let reason = "a directory on this machine has the same name".to_owned();
                unplaced.shadowed.insert(entry.name().to_string(), reason);
            }
            Ok(_) => {}
        }
    }
    for path in index.marked_directories() {
        if let Ok(dir) = tree.make_dirs(path.as_str())
            && let Some(node) = tree.get_mut(dir)
        {
            node.explicit = true;
        }
    }
    unplaced
}

impl Volume {
    /// Shows a base in the place of an empty one. `None` when the kernel knows directories of this machine, which have to be
    /// told of one by one.
    ///
    /// # Errors
    /// Disk errors; nothing changed then.
    pub(super) fn show_first(&self, base: &Base) -> Result<Option<Vec<Notice>>> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let is_known = |(ino, node): (Ino, &Node)| ino != ROOT && node.is_dir() && node.lookups() > 0;
        if inner.tree.linked().any(is_known) {
            return Ok(None);
        }
        let mut changes = Changes::default();
        if let Some(record) = &base.record {
            changes.base(record.clone());
        }
        inner.commit(changes)?;
        inner.base = base.clone();
        let before: HashSet<String> = inner.tree.children(ROOT).map(|(_, node)| node.name().to_owned()).collect();
        let Unplaced { blocked, shadowed } = show_all(&mut inner.tree, &base.index, &inner.deltas);
        inner.shadowed.extend(shadowed);
        let mut notices = Vec::new();
        self.place_blocked(inner, blocked, &mut notices)?;
        let names = inner.tree.children(ROOT).map(|(_, node)| node.name()).filter(|name| !before.contains(*name));
        notices.extend(names.map(|name| Notice::Entry { parent: ROOT, name: name.to_owned() }));
        notices.push(Notice::Inode(ROOT));
        Ok(Some(notices))
    }

    /// Entries whose directory is an unpushed file here: the directory keeps the name, the file moves aside.
    pub(super) fn place_blocked(
        &self,
        inner: &mut Inner,
        blocked: Vec<RelPath>,
        notices: &mut Vec<Notice>,
    ) -> Result<()> {
        for path in blocked {
            let Some(entry) = inner.base_entry(path.as_str()) else { continue };
            self.insert_remote(inner, &path, NodeData::of(&entry), None, notices)?;
        }
        Ok(())
    }
}
