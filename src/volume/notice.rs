//! What the kernel must be told when something changed that it did not do itself.

use crate::tree::Ino;

/// What the kernel must be told; sent without any lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Notice {
    /// A name in a directory means something else now, and the directory's own attributes and listing are others.
    Entry {
        /// The directory.
        parent: Ino,
        /// The name.
        name: String,
    },
    /// The attributes of an inode changed.
    Inode(Ino),
    /// What was read of an inode is not to be trusted.
    Content(Ino),
}

impl Notice {
    /// The directory whose names it is about.
    pub fn parent(&self) -> Option<Ino> {
        match self {
            Self::Entry { parent, .. } => Some(*parent),
            Self::Inode(_) | Self::Content(_) => None,
        }
    }
}
