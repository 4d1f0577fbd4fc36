//! A plain model of a datastore and of the machines that share it: what a view shows, and what a push may make of the
//! bucket. No I/O; contents are compared as bytes, versions by what their entries say.
//!
//! [`View::pushed`] is the table of conflicts of `docs/semantics.md` in code. Where a promise leaves a choice (a push that
//! ended halfway; a renamed file whose bytes somebody replaced) it takes either, never anything else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A file as an index has it.
#[derive(Clone, PartialEq, Eq)]
pub struct Version {
    pub bytes: Vec<u8>,
    /// What the entry says of it, without attributes.
    pub entry: String,
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}", shown(&self.bytes), self.entry)
    }
}

/// Bytes for a message.
pub fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned()
}

/// What several write at times.
pub const COMMON: &[u8] = b"the same";

/// What an index lists.
pub type Bucket = BTreeMap<String, Version>;
/// Bytes of objects, whatever an index says of them.
pub type Objects = BTreeMap<String, Vec<u8>>;

/// What this machine did to a name.
#[derive(Clone)]
struct Row {
    /// `None`: removed.
    mine: Option<Vec<u8>>,
    replaces: Option<Version>,
    /// The bytes lie in the bucket under this name in this version, and perhaps only there.
    origin: Option<(String, Version)>,
    /// A push that did not end well was about it: its upload may be recorded, or the row may be settled.
    tried: bool,
    /// What such pushes may have uploaded.
    attempted: Vec<Vec<u8>>,
    /// What they put into the index.
    left: Vec<Vec<u8>>,
    /// It was pushed, others took it out of the index, and it came back because its object was there.
    restored: bool,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mine, left) = (self.mine.as_deref().map(shown), self.left.iter().map(|bytes| shown(bytes)));
        let (replaces, origin, tried) = (&self.replaces, &self.origin, self.tried);
        let left: Vec<String> = left.collect();
        write!(f, "ours {mine:?}, replaces {replaces:?}, origin {origin:?}, tried {tried}, left {left:?}")
    }
}

impl Row {
    /// Whether the bucket has what this machine saw there, or left there.
    fn as_seen(&self, current: Option<&Version>) -> bool {
        self.replaces.as_ref() == current || current.is_some_and(|current| self.attempted.contains(&current.bytes))
    }

    /// Whether what looks like an upload of ours may be another writer's with the same bytes: they are bytes that several
    /// write, or no push of ours had put them into the index.
    fn may_be_theirs(&self, current: Option<&Version>) -> bool {
        let theirs = |current: &Version| current.bytes == COMMON || !self.left.contains(&current.bytes);
        self.replaces.as_ref() != current && current.is_some_and(theirs)
    }

    /// Whether it came back for an object that is gone since.
    fn came_for_nothing(&self, object: Option<&Vec<u8>>) -> bool {
        self.restored && object != self.mine.as_ref()
    }

    /// Whether there is nothing to be kept: the bytes that it had, and others changed it; or it was renamed away and back.
    fn is_unchanged(&self, current: Option<&Version>) -> bool {
        let Some(seen) = &self.replaces else { return false };
        let back = self.origin.as_ref().is_some_and(|(_, version)| version == seen);
        self.mine.as_ref() == Some(&seen.bytes) && (back || current.is_some())
    }
}

/// What the bucket was before a push and is after it.
pub struct Step<'a> {
    pub before: &'a Bucket,
    pub objects: &'a Objects,
    pub after: &'a Bucket,
    /// The push said that everything is in the bucket.
    pub done: bool,
}

impl Step<'_> {
    /// The object is not what its entry says: somebody's push is halfway.
    fn is_torn(&self, path: &str) -> bool {
        self.objects.get(path) != self.before.get(path).map(|version| &version.bytes)
    }

    /// Whether the bytes that were under a name are not there any more, nor where a push of these rows left them.
    fn is_lost(&self, (origin, version): &(String, Version), rows: &BTreeMap<String, Row>) -> bool {
        let gone = self.objects.get(origin) != Some(&version.bytes) || self.before.get(origin) != Some(version);
        let is_copy = |(path, row): (&String, &Row)| {
            row.attempted.contains(&version.bytes) && self.objects.get(path) == Some(&version.bytes)
        };
        // What several write may be another writer's.
        gone && (version.bytes == COMMON || !rows.iter().any(is_copy))
    }
}

/// What one machine shows: the index that it knows, under its own changes.
#[derive(Clone, Debug, Default)]
pub struct View {
    base: Bucket,
    rows: BTreeMap<String, Row>,
    /// Bytes that are certainly here, as long as the file still has them.
    local: BTreeMap<String, Vec<u8>>,
    /// What this machine put into the index: it brings back what is dropped from there while the object is still this.
    committed: Objects,
    /// Removals that did not hold, of files that an earlier push had begun to push: they are back.
    pub returned: u64,
}

/// Whether a name is one for our version of `path`.
pub fn is_conflict_of(name: &str, path: &str) -> bool {
    let (stem, extension) = path.split_at(path.rfind('.').unwrap_or(path.len()));
    let middle = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(extension));
    // Not that of a conflict file of this name.
    middle.and_then(|middle| middle.strip_prefix(".conflict-")).is_some_and(|middle| !middle.contains('.'))
}

impl View {
    /// Every name.
    pub fn names(&self) -> Vec<String> {
        let kept = self.base.keys().filter(|path| !self.rows.contains_key(*path));
        let mine = self.rows.iter().filter(|(_, row)| row.mine.is_some()).map(|(path, _)| path);
        let names: BTreeSet<&String> = kept.chain(mine).collect();
        names.into_iter().cloned().collect()
    }

    pub fn get(&self, path: &str) -> Option<&[u8]> {
        match self.rows.get(path) {
            Some(row) => row.mine.as_deref(),
            None => self.base.get(path).map(|version| &*version.bytes),
        }
    }

    /// The name in the bucket that a file has to be fetched from, if it may have to.
    pub fn source(&self, path: &str) -> Option<(String, Version)> {
        match self.rows.get(path) {
            _ if self.is_local(path) => None,
            Some(row) => row.origin.clone(),
            None => Some((path.to_owned(), self.base.get(path)?.clone())),
        }
    }

    fn is_local(&self, path: &str) -> bool {
        // What several write may be another writer's, once it is not this machine's change any more.
        let here = self.local.get(path).filter(|bytes| *bytes != COMMON || self.rows.contains_key(path));
        here.is_some() && here.map(Vec::as_slice) == self.get(path)
    }

    /// Whether the bucket has to be told of something.
    pub fn is_dirty(&self) -> bool {
        !self.rows.is_empty()
    }

    /// Whether nothing under this name waits for a push.
    pub fn is_clean(&self, path: &str) -> bool {
        !self.rows.contains_key(path)
    }

    fn row(&mut self, path: &str) -> &mut Row {
        let replaces = self.base.get(path).cloned();
        let (attempted, left) = (Vec::new(), Vec::new());
        let new = Row { mine: None, replaces, origin: None, tried: false, attempted, left, restored: false };
        self.rows.entry(path.to_owned()).or_insert(new)
    }

    pub fn write(&mut self, path: &str, bytes: Vec<u8>) {
        self.put(path, bytes, None);
    }

    fn put(&mut self, path: &str, bytes: Vec<u8>, origin: Option<(String, Version)>) {
        if origin.is_none() {
            self.local.insert(path.to_owned(), bytes.clone());
        } else {
            self.local.remove(path);
        }
        let row = self.row(path);
        (row.mine, row.origin, row.restored) = (Some(bytes), origin, false);
    }

    pub fn remove(&mut self, path: &str) {
        self.local.remove(path);
        let new = self.rows.get(path).is_some_and(|row| row.replaces.is_none() && !row.tried);
        if new {
            // What it hid comes into view.
            self.rows.remove(path);
        } else {
            let row = self.row(path);
            (row.mine, row.origin) = (None, None);
        }
    }

    pub fn rename(&mut self, from: &str, to: &str) {
        let (bytes, origin) = (self.get(from).expect("a file").to_vec(), self.source(from));
        self.remove(from);
        self.put(to, bytes, origin);
    }

    pub fn exchange(&mut self, a: &str, b: &str) {
        let of = |path: &str| (self.get(path).expect("a file").to_vec(), self.source(path));
        let ((bytes_a, origin_a), (bytes_b, origin_b)) = (of(a), of(b));
        self.put(a, bytes_b, origin_b);
        self.put(b, bytes_a, origin_a);
    }

    /// Whether a push that ended halfway dropped the rename to this name, which shows what the bucket has there.
    pub fn gave_up(&mut self, path: &str, bytes: &[u8]) -> bool {
        let given_up = self.rows.get(path).is_some_and(|row| row.tried && row.origin.is_some())
            && self.base.get(path).is_some_and(|version| version.bytes == bytes);
        if given_up {
            self.rows.remove(path);
        }
        given_up
    }

    /// Looks at the bucket.
    pub fn refresh(&mut self, bucket: &Bucket) {
        let (base, rows) = (&self.base, &self.rows);
        self.local.retain(|path, _| rows.contains_key(path) || base.get(path) == bucket.get(path));
        self.base = bucket.clone();
    }

    /// Takes over what a push made of the bucket, if it is one of the things that it may make of it; tells of each conflict.
    ///
    /// # Errors
    /// What it must not have done.
    pub fn pushed(&mut self, step: &Step<'_>) -> Result<Vec<String>, String> {
        let new = |path: &&String| path.contains(".conflict-") && !step.before.contains_key(*path);
        let mut aside: BTreeSet<String> = step.after.keys().filter(new).cloned().collect();
        // One that this machine had pushed, and that another took out of the index and did not delete, comes back.
        let left = |path: &String| step.objects.get(path).is_some_and(|left| self.committed.get(path) == Some(left));
        // A name from the same second, whose file was renamed since, can be given again.
        let is_free = |path: &String| self.rows.get(path).is_none_or(|row| row.mine.is_none());
        aside.retain(|path| is_free(path) && !left(path));
        let paths: BTreeSet<String> =
            step.before.keys().chain(step.after.keys()).chain(self.rows.keys()).cloned().collect();
        let mut conflicts = Vec::new();
        for path in paths.iter().filter(|path| !aside.contains(*path)).cloned().collect::<Vec<_>>() {
            let (current, now) = (step.before.get(&path), step.after.get(&path));
            let Some(row) = self.rows.get(&path).cloned() else {
                let object = step.objects.get(&path);
                let restored = current.is_none() && object.is_some() && self.committed.get(&path) == object;
                if current != now && !restored {
                    return Err(format!("{path}: was {current:?}, is {now:?}, and this machine never touched it"));
                }
                continue;
            };
            let place = format!("{path} ({row:?}): was {current:?}, is {now:?}");
            let seen = row.as_seen(current);
            let Some(mine) = &row.mine else {
                let held = now.is_none();
                match (held, seen || current.is_none()) {
                    (true, false) => return Err(format!("a version that nobody here saw was removed: {place}")),
                    (false, _) if current != now => return Err(format!("neither ours nor theirs: {place}")),
                    (false, true) if step.done && !step.is_torn(&path) && !row.may_be_theirs(current) => {
                        // What that push made of it may be there under an entry that this machine never saw.
                        if !row.tried {
                            return Err(format!("a removal did not hold: {place}"));
                        }
                        self.returned += 1;
                    }
                    _ => {}
                }
                continue;
            };
            if now.is_some_and(|now| now.bytes == *mine) {
                let same = |current: &Version| {
                    current.bytes == *mine || row.replaces.as_ref().is_some_and(|seen| seen.bytes == current.bytes)
                };
                let known = current.is_none_or(same);
                if !(seen || known) {
                    return Err(format!("a version that nobody here saw was overwritten: {place}"));
                }
                if now == current {
                    // The same bytes, and yet perhaps another version: one of them may lie beside it for nothing.
                    let is_same = |name: &String| is_conflict_of(name, &path) && step.after[name].bytes == *mine;
                    self.committed.extend(aside.extract_if(.., is_same).map(|name| (name, mine.clone())));
                }
                if !step.done {
                    self.rows.get_mut(&path).expect("there").left.push(mine.clone());
                }
                self.committed.insert(path, mine.clone());
                continue;
            }
            let lost = row.origin.as_ref().is_some_and(|origin| step.is_lost(origin, &self.rows));
            // The rename over an upload of ours was dropped: the entry follows the object.
            let followed = lost && now.is_some_and(|now| row.attempted.contains(&now.bytes));
            if now != current && !followed {
                return Err(format!("neither ours nor theirs: {place}"));
            }
            let kept =
                aside.iter().find(|name| is_conflict_of(name, &path) && step.after[*name].bytes == *mine).cloned();
            let settled = row.left.contains(mine) || row.came_for_nothing(step.objects.get(&path));
            if let Some(name) = kept {
                if seen && !row.may_be_theirs(current) && !step.is_torn(&path) {
                    return Err(format!("a conflict where there is none: {name}; {place}"));
                }
                aside.remove(&name);
                conflicts.push(name.clone());
                self.committed.insert(name.clone(), mine.clone());
                if let Some(bytes) = self.local.remove(&path) {
                    self.local.insert(name.clone(), bytes);
                }
                self.rows.remove(&path);
                let (attempted, left) = (vec![mine.clone()], vec![mine.clone()]);
                self.rows.insert(name, Row { replaces: None, attempted, left, ..row.clone() });
            } else if step.done && !(lost || settled || row.is_unchanged(current)) {
                return Err(format!("an acknowledged write is lost: {place}"));
            }
        }
        if let Some(name) = aside.first() {
            return Err(format!("{name} is nobody's version"));
        }
        if step.done {
            self.rows.clear();
        }
        for row in self.rows.values_mut() {
            row.tried = true;
            row.attempted.extend(row.mine.clone());
        }
        self.refresh(step.after);
        Ok(conflicts)
    }

    /// Takes the machine's word for what it has pushed, where the index had it or has it no more, for renames that it dropped,
    /// where the bytes are lost, and for edits to the same bytes that gave way: only the others wait for the next push.
    pub fn settle(&mut self, pending: &[String], bucket: &Bucket, objects: &Objects) {
        let step = Step { before: bucket, objects, after: bucket, done: false };
        let rows = self.rows.clone();
        let waits = |path: &String, row: &Row| {
            let left = row.mine.as_ref().is_some_and(|mine| row.left.contains(mine));
            let lost = row.tried && row.origin.as_ref().is_some_and(|origin| step.is_lost(origin, &rows));
            let removed = row.mine.is_none() && !bucket.contains_key(path);
            let gave_way = row.tried && row.is_unchanged(bucket.get(path));
            pending.contains(path) || !(left || lost || removed || gave_way)
        };
        self.rows.retain(|path, row| waits(path, row));
    }

    /// Holds the names that a machine shows against this view. After a push that ended halfway they tell what became of it.
    ///
    /// # Errors
    /// What is hidden, or from nowhere.
    pub fn agree(&mut self, shown: &[String], bucket: &Bucket, objects: &Objects) -> Result<(), String> {
        let step = Step { before: bucket, objects, after: bucket, done: false };
        let known = self.names();
        for path in known.iter().filter(|path| !shown.contains(path)) {
            let Some(row) = self.rows.get(path).cloned() else {
                return Err(format!("the entry of {path} is hidden; {shown:?} is shown"));
            };
            // Ours went aside for what has no entry yet, or has none any more.
            if row.tried && shown.iter().any(|name| is_conflict_of(name, path) && !known.contains(name)) {
                continue;
            }
            let mine = row.mine.clone().unwrap_or_default();
            let gone =
                row.origin.as_ref().is_some_and(|origin| step.is_lost(origin, &self.rows)) || row.left.contains(&mine);
            if !(row.tried && gone || row.came_for_nothing(objects.get(path))) {
                let (listed, object) = (bucket.get(path), objects.get(path).map(|bytes| self::shown(bytes)));
                return Err(format!(
                    "{path} ({row:?}) is gone; {shown:?} is shown, {listed:?} listed, {object:?} there"
                ));
            }
            self.rows.remove(path);
        }
        let known = self.names();
        for path in shown.iter().filter(|path| !known.contains(path)) {
            if let Some(row) = self.rows.get(path) {
                // A removal that gave way, or needs none.
                let current = self.base.get(path);
                let seen = row.as_seen(current) && row.replaces.is_some() && !row.may_be_theirs(current);
                if !row.tried || seen && !step.is_torn(path) || !self.base.contains_key(path) {
                    return Err(format!("{path} came back: {row:?}"));
                }
                self.rows.remove(path);
                continue;
            }
            // Ours went aside.
            let from =
                self.rows.iter().find(|(from, row)| row.tried && row.mine.is_some() && is_conflict_of(path, from));
            if !self.base.contains_key(path)
                && let Some(bytes) = self.committed.get(path).filter(|bytes| objects.get(path) == Some(bytes)).cloned()
            {
                // The machine that removed it died before it deleted the object: it comes back.
                self.write(path, bytes);
                self.row(path).restored = true;
                continue;
            }
            let Some((from, row)) = from.map(|(from, row)| (from.clone(), row.clone())) else {
                return Err(format!("{path} is from nowhere: {:?}", self.rows));
            };
            self.rows.remove(&from);
            if let Some(bytes) = self.local.remove(&from) {
                self.local.insert(path.clone(), bytes);
            }
            // The same push may have begun with it under its new name.
            let attempted = row.mine.iter().cloned().collect();
            self.rows.insert(path.clone(), Row { replaces: None, attempted, left: Vec::new(), ..row });
        }
        match self.names() == shown {
            true => Ok(()),
            false => Err(format!("{:?} is expected, {shown:?} is shown", self.names())),
        }
    }
}
