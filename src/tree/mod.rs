//! Names and inodes: the directory tree that the kernel sees, in memory.
//!
//! May depend on `cache` and `datastore` for value types only; makes no I/O. Invariants: every linked node is reachable
//! from the root by its `parent` and `name`; an inode number is never used twice within a mount; a node stays until it
//! is unlinked *and* the kernel forgot it *and* nobody has it open.

mod node;

pub use node::{Children, Content, Ino, Node, NodeData, Remote};

use std::collections::HashMap;

use crate::cache::rows::Kind;

/// The inode number of the root directory.
pub const ROOT: Ino = Ino(1);

/// The tree.
#[derive(Debug)]
pub struct Tree {
    nodes: HashMap<Ino, Node>,
    next: u64,
}

impl Default for Tree {
    fn default() -> Self {
        let mut root = Node::new(ROOT, "", NodeData::Dir(Children::default()));
        root.explicit = true;
        Self { nodes: HashMap::from([(ROOT, root)]), next: 2 }
    }
}

impl Tree {
    /// The node of an inode number.
    pub fn get(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// The node of an inode number, to change its attributes.
    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Node> {
        self.nodes.get_mut(&ino)
    }

    /// All nodes, in no order.
    pub fn nodes(&self) -> impl Iterator<Item = (Ino, &Node)> {
        self.nodes.iter().map(|(ino, node)| (*ino, node))
    }

    /// The child of a directory.
    pub fn child(&self, parent: Ino, name: &str) -> Option<Ino> {
        self.nodes.get(&parent)?.children()?.get(name).copied()
    }

    /// Finds a path from the root; the empty path is the root.
    pub fn find(&self, path: &str) -> Option<Ino> {
        if path.is_empty() {
            return Some(ROOT);
        }
        path.split('/').try_fold(ROOT, |ino, name| self.child(ino, name))
    }

    /// The relative path of a linked node (the root: empty); `None` for an unlinked one.
    pub fn path(&self, ino: Ino) -> Option<String> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != ROOT {
            let node = self.nodes.get(&at)?;
            if !node.linked {
                return None;
            }
            names.push(&*node.name);
            at = node.parent;
        }
        names.reverse();
        Some(names.join("/"))
    }

    /// The path that a name in a directory has or would have.
    pub fn child_path(&self, parent: Ino, name: &str) -> Option<String> {
        let mut path = self.path(parent)?;
        if !path.is_empty() {
            path.push('/');
        }
        path.push_str(name);
        Some(path)
    }

    /// Adds a node under a free name of a linked directory.
    pub fn insert(&mut self, parent: Ino, name: &str, data: NodeData) -> Ino {
        let ino = Ino(self.next);
        self.next += 1;
        let is_dir = matches!(data, NodeData::Dir(_));
        self.nodes.insert(ino, Node::new(parent, name, data));
        self.attach(parent, name, ino, is_dir);
        ino
    }

    fn attach(&mut self, parent: Ino, name: &str, ino: Ino, is_dir: bool) {
        if let Some(node) = self.nodes.get_mut(&parent)
            && let NodeData::Dir(children) = &mut node.data
        {
            children.insert(name.into(), ino);
            node.subdirs += u32::from(is_dir);
        }
    }

    fn detach(&mut self, ino: Ino) {
        let Some((parent, name, is_dir)) = self.nodes.get(&ino).map(|n| (n.parent, n.name.clone(), n.is_dir())) else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(&parent)
            && let NodeData::Dir(children) = &mut node.data
            && children.remove(&*name).is_some()
        {
            node.subdirs -= u32::from(is_dir);
        }
    }

    /// Takes a node's name away. The node itself stays while the kernel or an open file needs it.
    pub fn unlink(&mut self, ino: Ino) {
        self.detach(ino);
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.linked = false;
        }
        self.collect(ino);
    }

    /// Gives a linked node another name; the target name must be free.
    pub fn rename(&mut self, ino: Ino, parent: Ino, name: &str) {
        self.detach(ino);
        let Some(node) = self.nodes.get_mut(&ino) else { return };
        node.parent = parent;
        node.name = name.into();
        let is_dir = node.is_dir();
        self.attach(parent, name, ino, is_dir);
    }

    /// Makes two linked nodes change places.
    pub fn exchange(&mut self, a: Ino, b: Ino) {
        let place = |tree: &Self, ino| tree.nodes.get(&ino).map(|n| (n.parent, n.name.clone()));
        let (Some((parent_a, name_a)), Some((parent_b, name_b))) = (place(self, a), place(self, b)) else { return };
        self.detach(a);
        self.detach(b);
        for (ino, parent, name) in [(a, parent_b, name_b), (b, parent_a, name_a)] {
            let Some(node) = self.nodes.get_mut(&ino) else { continue };
            node.parent = parent;
            node.name = name.clone();
            let is_dir = node.is_dir();
            self.attach(parent, &name, ino, is_dir);
        }
    }

    /// Whether `ino` is `ancestor` or lies below it.
    pub fn is_within(&self, ino: Ino, ancestor: Ino) -> bool {
        let mut at = ino;
        loop {
            if at == ancestor {
                return true;
            }
            match self.nodes.get(&at) {
                Some(node) if at != ROOT => at = node.parent,
                _ => return false,
            }
        }
    }

    /// The kernel holds one more reference.
    pub fn remember(&mut self, ino: Ino) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups += 1;
        }
    }

    /// The kernel dropped references.
    pub fn forget(&mut self, ino: Ino, count: u64) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(count);
        }
        self.collect(ino);
    }

    /// Counts an open file handle in (`+1`) or out (`-1`).
    pub fn count_open(&mut self, ino: Ino, change: i32) {
        if let Some(node) = self.nodes.get_mut(&ino) {
            node.opens = node.opens.saturating_add_signed(change);
        }
        self.collect(ino);
    }

    fn collect(&mut self, ino: Ino) {
        if self.nodes.get(&ino).is_some_and(|n| !n.linked && n.lookups == 0 && n.opens == 0) {
            self.nodes.remove(&ino);
        }
    }

    /// All files and symlinks below a node (or the node itself), depth first, with their paths.
    pub fn files_below(&self, ino: Ino) -> Vec<(String, Ino)> {
        self.walk(ino).into_iter().filter(|(_, ino)| self.nodes.get(ino).is_some_and(|n| !n.is_dir())).collect()
    }

    /// The node and everything below it, parents first, with paths.
    pub fn walk(&self, ino: Ino) -> Vec<(String, Ino)> {
        let Some(path) = self.path(ino) else { return Vec::new() };
        let mut found = Vec::new();
        let mut todo = vec![(path, ino)];
        while let Some((path, ino)) = todo.pop() {
            if let Some(children) = self.nodes.get(&ino).and_then(Node::children) {
                for (name, child) in children.iter().rev() {
                    let below = if path.is_empty() { name.to_string() } else { format!("{path}/{name}") };
                    todo.push((below, *child));
                }
            }
            found.push((path, ino));
        }
        found
    }

    /// Makes the directories of a path that are missing; returns the last one, or the first component that is no
    /// directory.
    ///
    /// # Errors
    /// The inode that is in the way.
    pub fn make_dirs(&mut self, path: &str) -> Result<Ino, Ino> {
        let mut at = ROOT;
        if path.is_empty() {
            return Ok(at);
        }
        for name in path.split('/') {
            at = match self.child(at, name) {
                Some(child) if self.nodes.get(&child).is_some_and(Node::is_dir) => child,
                Some(other) => return Err(other),
                None => self.insert(at, name, NodeData::Dir(Children::default())),
            };
        }
        Ok(at)
    }

    /// Number of linked files and directories, for statfs.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.nodes.len() == 1
    }

    /// Kind of a node.
    pub fn kind(&self, ino: Ino) -> Option<Kind> {
        self.nodes.get(&ino).map(Node::kind)
    }
}
