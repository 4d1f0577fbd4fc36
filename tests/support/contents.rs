//! What a cache root holds in `data/`, and what its state.db says about that. Only for a root that nobody uses.

use std::collections::BTreeSet;
use std::path::Path;

/// The ids of all files in `data/`.
pub fn files(root: &Path) -> BTreeSet<u64> {
    let names = std::fs::read_dir(root.join("data")).expect("data/");
    names.map(|entry| entry.expect("listed").file_name().to_str().expect("UTF-8").parse().expect("an id")).collect()
}

/// The ids that have a row.
pub fn rows(root: &Path) -> BTreeSet<u64> {
    let db = rusqlite::Connection::open(root.join("state.db")).expect("opens");
    let mut rows = db.prepare("SELECT id FROM content").expect("a table");
    rows.query_map([], |row| row.get::<_, i64>(0)).expect("read").map(|id| id.expect("read").unsigned_abs()).collect()
}

/// Files without a row are leaked space; rows of clean files without a file are only fetched again.
pub fn check_no_leak(root: &Path, what: &str) {
    let leaked: Vec<u64> = files(root).difference(&rows(root)).copied().collect();
    assert_eq!(leaked, Vec::<u64>::new(), "{what}: files in data/ that no row names");
}
