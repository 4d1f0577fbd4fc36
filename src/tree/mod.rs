//! Names and inodes: the directory tree that the kernel sees, in memory.
//!
//! May depend on `cache` and `datastore` for value types only; makes no I/O. Invariants: every linked node is reachable
//! from the root by its parent and name; an inode number is never used twice within a mount; a node stays until it
//! is unlinked *and* the kernel forgot it *and* nobody has it open. Nodes lie in one table, whose places are used again under
//! another generation.

mod children;
mod lasting;
mod node;

pub use lasting::{Incarnation, OpenFile, WORDS as LASTING_WORDS};
pub use node::{Content, Ino, Node, NodeData, Remote};

use std::collections::HashMap;

use node::Place;

use crate::cache::rows::Kind;

/// The inode number of the root directory.
pub const ROOT: Ino = Ino(1);

/// The place of the root directory.
const ROOT_PLACE: Place = 0;

/// The tree.
#[derive(Debug)]
pub struct Tree {
    /// By place. What is neither linked, nor known to the kernel, nor open is free.
    nodes: Vec<Node>,
    free: Vec<Place>,
    /// The generation of a new place.
    first: u32,
    incarnation: Incarnation,
    /// Numbers that the kernel has from a process before this one, which still stand for these places, and the reverse.
    kept: HashMap<Ino, Place>,
    names: HashMap<Place, Ino>,
    /// Counts changes of names.
    changes: u64,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new(Incarnation::default())
    }
}

impl Tree {
    /// The root of a mount, which keeps its number in every process; all other numbers were never used before.
    pub fn new(incarnation: Incarnation) -> Self {
        let mut root = Node::new(ROOT_PLACE, 0, "", NodeData::Dir);
        root.explicit = true;
        let first = incarnation.first_generation();
        let (kept, names) = (HashMap::new(), HashMap::new());
        Self { nodes: vec![root], free: Vec::new(), first, incarnation, kept, names, changes: 0 }
    }

    fn place(&self, ino: Ino) -> Option<Place> {
        let (place, generation) = ino.place()?;
        let own = self.nodes.get(place as usize).is_some_and(|node| node.generation == generation);
        if own { Some(place) } else { self.kept.get(&ino).copied() }
    }

    fn ino_at(&self, place: Place) -> Ino {
        let own = || Ino::new(place, self.nodes[place as usize].generation);
        if self.names.is_empty() { own() } else { self.names.get(&place).copied().unwrap_or_else(own) }
    }

    fn at(&self, place: Place) -> &Node {
        &self.nodes[place as usize]
    }

    /// The node of an inode number.
    pub fn get(&self, ino: Ino) -> Option<&Node> {
        self.place(ino).map(|place| self.at(place))
    }

    /// The node of an inode number, to change its attributes.
    pub fn get_mut(&mut self, ino: Ino) -> Option<&mut Node> {
        let place = self.place(ino)?;
        self.nodes.get_mut(place as usize)
    }

    /// Changes the content of a file or symlink; `false` when there is no such node.
    pub fn change_content(&mut self, ino: Ino, change: impl FnOnce(&mut Content)) -> bool {
        let Some(node) = self.get_mut(ino) else { return false };
        let Some(mut content) = node.content() else { return false };
        change(&mut content);
        node.set_content(content);
        true
    }

    /// All nodes that have a name, in no order.
    pub fn linked(&self) -> impl Iterator<Item = (Ino, &Node)> {
        let nodes = (0..).zip(&self.nodes).filter(|(_, node)| node.linked);
        nodes.map(|(place, node)| (self.ino_at(place), node))
    }

    /// The child of a directory.
    pub fn child(&self, parent: Ino, name: &str) -> Option<Ino> {
        let extra = self.get(parent)?.extra.as_ref()?;
        Some(self.ino_at(extra.children.find(name, |place| self.at(place).name())?))
    }

    /// The children of a directory in the order of their names; nothing for a file.
    pub fn children(&self, dir: Ino) -> impl DoubleEndedIterator<Item = (Ino, &Node)> {
        let extra = self.get(dir).and_then(|node| node.extra.as_ref());
        let places = extra.into_iter().flat_map(|extra| extra.children.iter());
        places.map(|place| (self.ino_at(place), self.at(place)))
    }

    /// The same, each with a number that no other child has while both are there, and that it keeps under another name.
    pub fn numbered_children(&self, dir: Ino) -> impl Iterator<Item = (u32, Ino, &Node)> {
        let extra = self.get(dir).and_then(|node| node.extra.as_ref());
        let places = extra.into_iter().flat_map(|extra| extra.children.iter());
        places.map(|place| (place, self.ino_at(place), self.at(place)))
    }

    /// Which change of names was the last in a directory: equal as long as it lists the same.
    pub fn changed(&self, dir: Ino) -> u64 {
        self.get(dir).and_then(|node| node.extra.as_ref()).map_or(0, |extra| extra.changed)
    }

    /// Those of them whose names come after `name`, without a look at the others.
    pub fn children_after(&self, dir: Ino, name: &str) -> impl Iterator<Item = Ino> {
        let extra = self.get(dir).and_then(|node| node.extra.as_ref());
        let places = extra.map(|extra| extra.children.after(name, |place| self.at(place).name()));
        places.into_iter().flatten().map(|place| self.ino_at(place))
    }

    /// How many children a directory has.
    pub fn child_count(&self, dir: Ino) -> usize {
        self.get(dir).and_then(|node| node.extra.as_ref()).map_or(0, |extra| extra.children.len())
    }

    /// The directory that holds the name of a linked node, or held it last.
    pub fn parent(&self, ino: Ino) -> Option<Ino> {
        Some(self.ino_at(self.get(ino)?.parent))
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
        let mut at = self.place(ino)?;
        while at != ROOT_PLACE {
            let node = self.at(at);
            if !node.linked {
                return None;
            }
            names.push(node.name());
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
        let parent = self.place(parent).unwrap_or(ROOT_PLACE);
        let place = match self.free.pop() {
            Some(place) => {
                let generation = self.at(place).generation;
                self.nodes[place as usize] = Node::new(parent, generation, name, data);
                place
            }
            None => {
                let place = self.nodes.len() as Place;
                self.nodes.push(Node::new(parent, self.first, name, data));
                place
            }
        };
        self.attach(place);
        self.ino_at(place)
    }

    /// Adds a node under a name of a linked directory, if it is free; `false` when it is not.
    pub fn insert_new(&mut self, parent: Ino, name: &str, data: NodeData) -> bool {
        let is_free = self.child(parent, name).is_none();
        if is_free {
            self.insert(parent, name, data);
        }
        is_free
    }

    /// Makes a node a child of the directory that it names as its parent.
    fn attach(&mut self, place: Place) {
        let (parent, is_dir) = (self.at(place).parent, self.at(place).is_dir());
        self.change_children(parent, |tree, extra| {
            extra.children.insert(tree.at(place).name(), place, |place| tree.at(place).name());
            extra.subdirs += u32::from(is_dir);
        });
    }

    fn detach(&mut self, place: Place) {
        let (parent, is_dir) = (self.at(place).parent, self.at(place).is_dir());
        self.change_children(parent, |tree, extra| {
            if extra.children.remove(tree.at(place).name(), |place| tree.at(place).name()) {
                extra.subdirs -= u32::from(is_dir);
            }
        });
    }

    /// Lends the children of a directory, and the tree for their names.
    fn change_children(&mut self, dir: Place, change: impl FnOnce(&Self, &mut node::Extra)) {
        self.changes += 1;
        if let Some(mut extra) = self.nodes[dir as usize].extra.take() {
            change(self, &mut extra);
            extra.changed = self.changes;
            self.nodes[dir as usize].extra = Some(extra);
        }
    }

    /// Takes a node's name away. The node itself stays while the kernel or an open file needs it.
    pub fn unlink(&mut self, ino: Ino) {
        let Some(place) = self.place(ino).filter(|place| *place != ROOT_PLACE) else { return };
        if self.at(place).linked {
            self.detach(place);
            self.nodes[place as usize].linked = false;
            self.doubt(ino);
        }
        self.collect(place);
    }

    /// Gives a linked node another name; the target name must be free.
    pub fn rename(&mut self, ino: Ino, parent: Ino, name: &str) {
        if let (Some(place), Some(parent)) = (self.place(ino), self.place(parent)) {
            self.detach(place);
            self.name(place, parent, name);
        }
    }

    /// Makes two linked nodes change places.
    pub fn exchange(&mut self, a: Ino, b: Ino) {
        let (Some(a), Some(b)) = (self.place(a), self.place(b)) else { return };
        let name = |tree: &Self, place| (tree.at(place).parent, tree.at(place).name.clone());
        let (of_a, of_b) = (name(self, a), name(self, b));
        self.detach(a);
        self.detach(b);
        self.name(a, of_b.0, &of_b.1);
        self.name(b, of_a.0, &of_a.1);
    }

    fn name(&mut self, place: Place, parent: Place, name: &str) {
        let node = &mut self.nodes[place as usize];
        node.parent = parent;
        node.name = name.into();
        self.attach(place);
        self.assure(self.ino_at(place));
    }

    /// Records the name of a directory that the kernel knows, for the next process.
    fn record(&mut self, place: Place) {
        if place != ROOT_PLACE && self.incarnation.may_be_followed() {
            self.nodes[place as usize].extra_mut().recorded = true;
            let node = self.at(place);
            self.incarnation.name_directory(self.ino_at(place), Some((self.ino_at(node.parent), node.name())));
        }
    }

    fn is_recorded(&self, ino: Ino) -> bool {
        self.get(ino).and_then(|node| node.extra.as_ref()).is_some_and(|extra| extra.recorded)
    }

    /// A directory is about to get another name, or none: until [`Tree::assure`], nobody is to find it by this one.
    pub fn doubt(&self, ino: Ino) {
        if self.is_recorded(ino) {
            self.incarnation.name_directory(ino, None);
        }
    }

    /// The name that a directory has counts again.
    pub fn assure(&mut self, ino: Ino) {
        if let Some(place) = self.place(ino).filter(|place| self.at(*place).linked && self.is_recorded(ino)) {
            self.record(place);
        }
    }

    /// Takes over the numbers of directories and open files that the kernel has from the process before this one. `files` are
    /// open files, by the number of their content.
    pub fn take_over(&mut self, files: &HashMap<u64, Ino>) {
        let directories = self.incarnation.take_directories();
        let mut found = HashMap::from([(ROOT, ROOT)]);
        for ino in directories.keys() {
            self.resolve(*ino, &directories, &mut found);
        }
        let with_content = self.linked().filter_map(|(now, node)| Some((*files.get(&node.content()?.id?.0)?, now)));
        let files: Vec<(Ino, Ino)> = with_content.collect();
        let places: Vec<(Ino, Place)> =
            found.into_iter().chain(files).filter_map(|(ino, now)| Some((ino, self.place(now)?))).collect();
        for (ino, place) in places.into_iter().filter(|(_, place)| *place != ROOT_PLACE) {
            // How often the kernel counts it is not known: it is never let go of.
            self.nodes[place as usize].lookups = u32::MAX;
            self.kept.insert(ino, place);
            self.names.insert(place, ino);
        }
        let directories: Vec<Place> = self.names.keys().copied().filter(|place| self.at(*place).is_dir()).collect();
        for place in directories {
            self.record(place);
        }
    }

    /// The directory that has the name now under which an earlier process knew one.
    fn resolve(
        &self,
        ino: Ino,
        directories: &HashMap<Ino, (Ino, String)>,
        found: &mut HashMap<Ino, Ino>,
    ) -> Option<Ino> {
        // Upwards to one that is known, then down again: a chain is as long as somebody made it.
        let (mut chain, mut at) = (Vec::new(), ino);
        while !found.contains_key(&at) {
            if chain.len() > directories.len() {
                return None;
            }
            chain.push(at);
            at = directories.get(&at)?.0;
        }
        let mut now = *found.get(&at)?;
        for ino in chain.into_iter().rev() {
            let (_, name) = directories.get(&ino)?;
            now = self.child(now, name).filter(|child| self.get(*child).is_some_and(Node::is_dir))?;
            found.insert(ino, now);
        }
        Some(now)
    }

    /// The numbers that were taken over.
    pub fn taken_over(&self) -> impl Iterator<Item = Ino> {
        self.kept.keys().copied()
    }

    /// Whether `ino` is `ancestor` or lies below it.
    pub fn is_within(&self, ino: Ino, ancestor: Ino) -> bool {
        let (Some(mut at), Some(ancestor)) = (self.place(ino), self.place(ancestor)) else { return false };
        while at != ancestor && at != ROOT_PLACE {
            at = self.at(at).parent;
        }
        at == ancestor
    }

    /// The kernel holds one more reference.
    pub fn remember(&mut self, ino: Ino) {
        let Some(place) = self.place(ino) else { return };
        let node = &mut self.nodes[place as usize];
        // A count that is full stays so: the node is never let go of.
        node.lookups = node.lookups.saturating_add(1);
        if node.is_dir() && !node.extra_mut().recorded {
            self.record(place);
        }
    }

    /// The kernel dropped references.
    pub fn forget(&mut self, ino: Ino, count: u64) {
        let Some(place) = self.place(ino) else { return };
        let node = &mut self.nodes[place as usize];
        if node.lookups != u32::MAX {
            node.lookups = node.lookups.saturating_sub(u32::try_from(count).unwrap_or(u32::MAX));
        }
        self.collect(place);
    }

    /// Counts an open file handle in (`+1`) or out (`-1`).
    pub fn count_open(&mut self, ino: Ino, change: i32) {
        let Some(place) = self.place(ino) else { return };
        let node = &mut self.nodes[place as usize];
        let extra = node.extra_mut();
        extra.opens = extra.opens.saturating_add_signed(change);
        node.shrink();
        self.collect(place);
    }

    fn collect(&mut self, place: Place) {
        let node = &mut self.nodes[place as usize];
        if node.linked || node.lookups > 0 || node.opens() > 0 {
            return;
        }
        node.extra = None;
        node.name = Default::default();
        // From now on nobody finds it by its number. A place whose numbers are used up is not used again.
        if let Some(next) = node.generation.checked_add(1) {
            node.generation = next;
            self.incarnation.uses(next);
            self.free.push(place);
        }
    }

    /// All files and symlinks below a node (or the node itself), depth first, with their paths.
    pub fn files_below(&self, ino: Ino) -> Vec<(String, Ino)> {
        self.walk(ino).into_iter().filter(|(_, ino)| self.get(*ino).is_some_and(|n| !n.is_dir())).collect()
    }

    /// The node and everything below it, parents first, with paths.
    pub fn walk(&self, ino: Ino) -> Vec<(String, Ino)> {
        let Some(path) = self.path(ino) else { return Vec::new() };
        let mut found = Vec::new();
        let mut todo = vec![(path, ino)];
        while let Some((path, ino)) = todo.pop() {
            for (child, node) in self.children(ino).rev() {
                let name = node.name();
                let below = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                todo.push((below, child));
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
                Some(child) if self.get(child).is_some_and(Node::is_dir) => child,
                Some(other) => return Err(other),
                None => self.insert(at, name, NodeData::Dir),
            };
        }
        Ok(at)
    }

    /// Number of linked files and directories, for statfs.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    /// Kind of a node.
    pub fn kind(&self, ino: Ino) -> Option<Kind> {
        self.get(ino).map(Node::kind)
    }
}
