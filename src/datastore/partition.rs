//! Which shard of an index a path belongs to.
//!
//! Pure functions. Invariant: [`candidates`] covers the rule of every release that writes shards, so that no existing
//! shard which may hold a path is overlooked.

/// Our shard for paths that have no partition.
pub const MOUNT_PARTITION: &str = "_mount";
/// The shard of files at the root.
pub const ROOT_PARTITION: &str = "_root";

/// Partitions with longer names would not fit into an object key beside a long prefix.
const LONGEST: usize = 480;

/// The partition of a path by the newest rule; `None` for paths that it leaves out.
pub fn newest(path: &str) -> Option<String> {
    let mut name = String::new();
    newest_into(path, &mut name).then_some(name)
}

/// Writes the partition of a path by the newest rule; `false` for paths that it leaves out.
fn newest_into(path: &str, name: &mut String) -> bool {
    name.clear();
    let n = path.split('/').count();
    let first = path.split('/').next().unwrap_or(path);
    let kept = match first {
        _ if n == 1 => {
            name.push_str(ROOT_PARTITION);
            return true;
        }
        "data" | "outputs" | "definitions-evaluated" => match n {
            ..4 => return false,
            4 | 5 => n - 1,
            _ => n - 3,
        },
        "workflow-runs" if n < 3 => return false,
        "workflow-runs" => 2,
        _ => 1,
    };
    for (at, segment) in path.split('/').take(kept).enumerate() {
        if at > 0 {
            name.push_str("--");
        }
        name.push_str(segment);
    }
    true
}

/// The partition that we write a path to.
pub fn ours(path: &str) -> String {
    let mut name = String::new();
    ours_into(path, &mut name);
    name
}

/// Writes the partition that we write a path to.
pub fn ours_into(path: &str, name: &mut String) {
    let derived = newest_into(path, name);
    if !derived || name.len() > LONGEST || matches!(name.as_str(), "" | "." | ".." | "_meta") {
        name.clear();
        name.push_str(MOUNT_PARTITION);
    }
}

/// Whether a shard that exists and is not listed is read all the same: ours, that of the root, and those of top-level
/// directories, which older releases cannot derive and therefore drop from the list.
pub fn is_read_unlisted(name: &str) -> bool {
    let scoped = ["data--", "outputs--", "definitions-evaluated--", "workflow-runs--", "workflows-evaluated--"];
    matches!(name, MOUNT_PARTITION | ROOT_PARTITION)
        || !(name.starts_with('_') || scoped.iter().any(|prefix| name.starts_with(prefix)))
}

/// Whether a partition may hold paths below `directory` (a path that is to be a file).
pub fn may_hold_below(name: &str, directory: &str) -> bool {
    let joined = directory.replace('/', "--");
    let is_prefix = |short: &str, long: &str| long.strip_prefix(short).is_some_and(|rest| rest.starts_with("--"));
    name == MOUNT_PARTITION || name == joined || is_prefix(&joined, name) || is_prefix(name, &joined)
}

/// Every partition that some release may have put a path into: the newest rule, those of July (`workflows-evaluated` by
/// run) and August (a part of the newest), and, to be safe, every other prefix of the path.
pub fn candidates(path: &str) -> Vec<String> {
    let mut all = vec![ours(path), MOUNT_PARTITION.to_owned(), ROOT_PARTITION.to_owned()];
    let mut prefix = String::new();
    for directory in path.rsplit_once('/').map(|(parent, _)| parent).into_iter().flat_map(|parent| parent.split('/')) {
        if !prefix.is_empty() {
            prefix.push_str("--");
        }
        prefix.push_str(directory);
        all.push(prefix.clone());
    }
    all.sort_unstable();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[(&str, Option<&str>)] = &[
        ("README.md", Some("_root")),
        ("data/x", None),
        ("data/t/x", None),
        ("data/t/i/x", Some("data--t--i")),
        ("data/t/i/v/x", Some("data--t--i--v")),
        ("data/t/i/r/v/x", Some("data--t--i")),
        ("data/@a/t/i/r/v/x", Some("data--@a--t--i")),
        ("outputs/a/b/c", Some("outputs--a--b")),
        ("definitions-evaluated/a/b/c/d/e/f/g", Some("definitions-evaluated--a--b--c--d")),
        ("workflow-runs/x", None),
        ("workflow-runs/w/x", Some("workflow-runs--w")),
        ("workflow-runs/w/r/s/x", Some("workflow-runs--w")),
        ("workflows-evaluated/w/x", Some("workflows-evaluated")),
        ("audit/2026/x", Some("audit")),
        ("notes/todo.md", Some("notes")),
    ];

    #[test]
    fn the_newest_rule() {
        for (path, partition) in TABLE {
            assert_eq!(newest(path).as_deref(), *partition, "{path}");
        }
    }

    #[test]
    fn paths_that_no_rule_places_are_ours() {
        assert_eq!(ours("data/x"), MOUNT_PARTITION);
        assert_eq!(ours("_meta/x"), MOUNT_PARTITION, "its shard would be _meta.json");
        assert_eq!(ours(&format!("{}/x", "y".repeat(600))), MOUNT_PARTITION, "an object key has an end");
        assert_eq!(ours("notes/todo.md"), "notes");
    }

    #[test]
    fn shards_that_older_releases_unlist_are_read() {
        for (name, read) in [
            ("_mount", true),
            ("_root", true),
            ("notes", true),
            ("logs", true),
            ("a--b", true),
            ("_other", false),
            ("data--t--i", false),
            ("workflow-runs--w", false),
            ("workflows-evaluated--w", false),
        ] {
            assert_eq!(is_read_unlisted(name), read, "{name}");
        }
    }

    #[test]
    fn partitions_below_a_new_file_are_found() {
        for (name, path, may) in [
            ("notes", "notes", true),
            ("data--t--i", "data", true),
            ("data--t--i", "data/t", true),
            ("data--t--i", "data/t/i", true),
            ("data--t--i", "data/t/i/r/v", true),
            ("data--t--j", "data/t/i/v", false),
            ("_mount", "data/t", true),
            ("notes-old", "notes", false),
        ] {
            assert_eq!(may_hold_below(name, path), may, "{name} {path}");
        }
    }

    #[test]
    fn candidates_cover_every_release() {
        for (path, partition) in TABLE {
            let candidates = candidates(path);
            assert!(candidates.contains(&partition.unwrap_or(MOUNT_PARTITION).to_owned()), "{path}");
        }
        assert!(candidates("workflows-evaluated/w/x").contains(&"workflows-evaluated--w".to_owned()), "July");
        assert!(!candidates("notes/todo.md").contains(&"notes--todo.md".to_owned()));
    }
}
