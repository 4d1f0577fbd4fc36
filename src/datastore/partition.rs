//! Which shard of an index a path belongs to.
//!
//! Pure functions. Invariant: [`candidates`] covers the rule of every release that writes shards, so that no existing
//! shard which may hold a path is overlooked.

/// Our shard for paths that have no partition.
pub const MOUNT_PARTITION: &str = "_mount";
/// The shard of files at the root.
pub const ROOT_PARTITION: &str = "_root";

/// The partition of a path by the newest rule; `None` for paths that it leaves out.
pub fn newest(path: &str) -> Option<String> {
    let segments: Vec<&str> = path.split('/').collect();
    let n = segments.len();
    if n == 1 {
        return Some(ROOT_PARTITION.to_owned());
    }
    match segments[0] {
        "data" | "outputs" | "definitions-evaluated" => match n {
            ..4 => None,
            4 | 5 => Some(segments[..n - 1].join("--")),
            _ => Some(segments[..n - 3].join("--")),
        },
        "workflow-runs" if n < 3 => None,
        "workflow-runs" => Some(format!("workflow-runs--{}", segments[1])),
        first => Some(first.to_owned()),
    }
}

/// The partition that we write a path to.
pub fn ours(path: &str) -> String {
    newest(path).unwrap_or_else(|| MOUNT_PARTITION.to_owned())
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
    fn candidates_cover_every_release() {
        for (path, partition) in TABLE {
            let candidates = candidates(path);
            assert!(candidates.contains(&partition.unwrap_or(MOUNT_PARTITION).to_owned()), "{path}");
        }
        assert!(candidates("workflows-evaluated/w/x").contains(&"workflows-evaluated--w".to_owned()), "July");
        assert!(!candidates("notes/todo.md").contains(&"notes--todo.md".to_owned()));
    }
}
