//! One node of the tree: a name in a directory and what is behind it.
//!
//! Plain data. Invariant: a file without local content has a remote version to be read from.

use std::collections::BTreeMap;

use crate::cache::ContentId;
use crate::cache::rows::{Attrs, Kind};
use crate::datastore::{Entry, EntryKind};

/// An inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ino(pub u64);

/// Names in a directory, in bytewise order.
pub type Children = BTreeMap<Box<str>, Ino>;

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

/// What a node is.
#[derive(Clone, Debug)]
pub enum NodeData {
    /// A directory.
    Dir(Children),
    /// A regular file.
    File(Content),
    /// A symbolic link.
    Symlink(Content),
}

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Directory that holds the name.
    pub parent: super::Ino,
    /// Last path component.
    pub name: Box<str>,
    /// What it is.
    pub data: NodeData,
    /// Attributes set on this machine.
    pub attrs: Option<Box<Attrs>>,
    /// Directories: stays although nothing in the index needs it.
    pub explicit: bool,
    /// Directories: how many children are directories.
    pub subdirs: u32,
    /// Whether it has a name.
    pub linked: bool,
    /// References that the kernel holds.
    pub lookups: u64,
    /// Open file handles.
    pub opens: u32,
}

impl Node {
    pub(super) fn new(parent: Ino, name: &str, data: NodeData) -> Self {
        Self {
            parent,
            name: name.into(),
            data,
            attrs: None,
            explicit: false,
            subdirs: 0,
            linked: true,
            lookups: 0,
            opens: 0,
        }
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        matches!(self.data, NodeData::Dir(_))
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        match self.data {
            NodeData::Dir(_) => Kind::Dir,
            NodeData::File(_) => Kind::File,
            NodeData::Symlink(_) => Kind::Symlink,
        }
    }

    /// Children of a directory.
    pub fn children(&self) -> Option<&Children> {
        match &self.data {
            NodeData::Dir(children) => Some(children),
            _ => None,
        }
    }

    /// Content of a file or symlink.
    pub fn content(&self) -> Option<&Content> {
        match &self.data {
            NodeData::Dir(_) => None,
            NodeData::File(content) | NodeData::Symlink(content) => Some(content),
        }
    }

    /// Content of a file or symlink, to change it.
    pub fn content_mut(&mut self) -> Option<&mut Content> {
        match &mut self.data {
            NodeData::Dir(_) => None,
            NodeData::File(content) | NodeData::Symlink(content) => Some(content),
        }
    }

    /// Local attributes, made when there are none.
    pub fn attrs_mut(&mut self) -> &mut Attrs {
        self.attrs.get_or_insert_default()
    }

    /// A copy of the local attributes.
    pub fn attrs_row(&self) -> Attrs {
        self.attrs.as_deref().cloned().unwrap_or_default()
    }
}
