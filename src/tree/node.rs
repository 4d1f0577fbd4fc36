//! One node of the tree: a name in a directory and what is behind it.
//!
//! Plain data, small: an index of a million entries has as many nodes, and most of them are files that nobody touched.
//! What only few nodes have lies beside them, in [`Extra`]. Invariant: a file without local content has a remote version to
//! be read from.

use compact_str::CompactString;

use super::children::Children;
use crate::cache::ContentId;
use crate::cache::rows::{Attrs, Kind};
use crate::datastore::{Entry, EntryKind, EntryRef};

/// An inode number: the lower half says where the node lies, the upper half how often that place was used before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// Where a node lies in the tree's table.
pub(super) type Place = u32;

impl Ino {
    pub(super) fn new(place: Place, generation: u32) -> Self {
        // Zero is no inode number.
        Self((u64::from(generation) << 32) | (u64::from(place) + 1))
    }

    /// Where its node lies, if it is of that generation.
    pub(super) fn place(self) -> Option<(Place, u32)> {
        let place = (self.0 as u32).checked_sub(1)?;
        Some((place, (self.0 >> 32) as u32))
    }
}

/// What the index says of a file, as far as attributes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remote {
    /// Bytes.
    pub size: u64,
    /// ns since the epoch.
    pub mtime: i64,
    /// Whether the index records it as executable.
    pub executable: bool,
}

impl Remote {
    /// The attributes in an entry.
    pub fn of(entry: &Entry) -> Self {
        Self {
            size: entry.size,
            mtime: entry.mtime_nanos().unwrap_or(0),
            executable: entry.kind() == EntryKind::Executable,
        }
    }
}

/// Where a file's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    /// The local content, complete or partial.
    pub id: Option<ContentId>,
    /// Attributes: of the remote version, or of the local content when it was last looked at.
    pub remote: Remote,
}

/// What a node is to be.
#[derive(Clone, Copy, Debug)]
pub enum NodeData {
    /// A directory, empty.
    Dir,
    /// A regular file.
    File(Content),
    /// A symbolic link.
    Symlink(Content),
}

impl NodeData {
    fn remote(kind: EntryKind, remote: Remote) -> Self {
        let content = Content { id: None, remote };
        if kind == EntryKind::Symlink { Self::Symlink(content) } else { Self::File(content) }
    }

    /// The file that an entry describes, not fetched.
    pub fn of(entry: &Entry) -> Self {
        Self::remote(entry.kind(), Remote::of(entry))
    }

    /// The file that an entry of an index describes, not fetched.
    pub fn listed(entry: &EntryRef<'_>) -> Self {
        let kind = entry.kind();
        let mtime = entry.mtime_nanos().unwrap_or(0);
        Self::remote(kind, Remote { size: entry.size(), mtime, executable: kind == EntryKind::Executable })
    }
}

/// What a node has that most nodes do not have.
#[derive(Clone, Debug, Default)]
pub(super) struct Extra {
    pub attrs: Option<Box<Attrs>>,
    pub opens: u32,
    pub children: Children,
    pub subdirs: u32,
    /// Directories: its name is recorded for the next process.
    pub recorded: bool,
    /// Directories: which change of names was the last in it.
    pub changed: u64,
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) name: CompactString,
    size: u64,
    mtime: i64,
    /// Zero: none.
    content: u64,
    pub(super) extra: Option<Box<Extra>>,
    pub(super) parent: Place,
    pub(super) lookups: u32,
    pub(super) generation: u32,
    kind: Kind,
    executable: bool,
    /// Directories: stays although nothing in the index needs it.
    pub explicit: bool,
    pub(super) linked: bool,
}

impl Node {
    pub(super) fn new(parent: Place, generation: u32, name: &str, data: NodeData) -> Self {
        let (kind, content) = match data {
            NodeData::Dir => (Kind::Dir, None),
            NodeData::File(content) => (Kind::File, Some(content)),
            NodeData::Symlink(content) => (Kind::Symlink, Some(content)),
        };
        let mut node = Self {
            name: name.into(),
            size: 0,
            mtime: 0,
            content: 0,
            extra: (kind == Kind::Dir).then(Box::default),
            parent,
            lookups: 0,
            generation,
            kind,
            executable: false,
            explicit: false,
            linked: true,
        };
        if let Some(content) = content {
            node.set_content(content);
        }
        node
    }

    /// Last path component.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether it has a name.
    pub fn is_linked(&self) -> bool {
        self.linked
    }

    /// References that the kernel holds.
    pub fn lookups(&self) -> u32 {
        self.lookups
    }

    /// Open file handles.
    pub fn opens(&self) -> u32 {
        self.extra.as_ref().map_or(0, |extra| extra.opens)
    }

    /// Directories: how many children are directories.
    pub fn subdirs(&self) -> u32 {
        self.extra.as_ref().map_or(0, |extra| extra.subdirs)
    }

    /// Directories: whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.extra.as_ref().is_none_or(|extra| extra.children.is_empty())
    }

    /// Content of a file or symlink.
    pub fn content(&self) -> Option<Content> {
        let remote = Remote { size: self.size, mtime: self.mtime, executable: self.executable };
        (!self.is_dir()).then(|| Content { id: (self.content != 0).then_some(ContentId(self.content)), remote })
    }

    /// Replaces the content of a file or symlink.
    pub(super) fn set_content(&mut self, content: Content) {
        self.content = content.id.map_or(0, |id| id.0);
        Remote { size: self.size, mtime: self.mtime, executable: self.executable } = content.remote;
    }

    /// Attributes set on this machine.
    pub fn attrs(&self) -> Option<&Attrs> {
        self.extra.as_ref()?.attrs.as_deref()
    }

    /// Local attributes, if there are any, to change them.
    pub fn attrs_if_any(&mut self) -> Option<&mut Attrs> {
        self.extra.as_mut()?.attrs.as_deref_mut()
    }

    /// Local attributes, made when there are none.
    pub fn attrs_mut(&mut self) -> &mut Attrs {
        self.extra_mut().attrs.get_or_insert_default()
    }

    /// Replaces the local attributes.
    pub fn set_attrs(&mut self, attrs: Option<Attrs>) {
        if attrs.is_some() || self.extra.is_some() {
            self.extra_mut().attrs = attrs.map(Box::new);
            self.shrink();
        }
    }

    /// A copy of the local attributes.
    pub fn attrs_row(&self) -> Attrs {
        self.attrs().cloned().unwrap_or_default()
    }

    pub(super) fn extra_mut(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Lets go of what holds nothing.
    pub(super) fn shrink(&mut self) {
        let holds = |extra: &Extra| extra.attrs.is_some() || extra.opens > 0;
        if !self.is_dir() && !self.extra.as_deref().is_some_and(holds) {
            self.extra = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The budget of a mounted entry is 200 bytes, and the index itself needs its share of them.
    #[test]
    fn a_node_is_small() {
        assert!(size_of::<Node>() <= 72, "{}", size_of::<Node>());
    }
}
