//! Names that never cross the sync boundary.
//!
//! Depends on nothing; works on raw text, because an index may name anything. Invariant: a name that is not
//! [`NameClass::Synced`] is neither uploaded, nor listed, nor deleted in a bucket, whatever an index says.

/// Object name of the index (and of its copy in a cache directory).
pub const INDEX_KEY: &str = ".datastore-index.json";
/// Object name of the distributed lock.
pub const LOCK_KEY: &str = ".datastore.lock";
/// Object that says whether the index is sharded.
pub const META_KEY: &str = "_index/_meta.json";
/// Directory of the shards.
pub const SHARD_PREFIX: &str = "_index/";
/// File name of the sidecar in a cache directory.
pub const SIDECAR_NAME: &str = ".datastore-sync-state.json";
/// Object name that marks a directory as a namespace.
pub const NAMESPACE_FILE: &str = ".namespace.json";
/// A file whose object is rewritten without an index update: the object is the truth about it.
const CATALOG_EXPORT: &str = ".catalog-export.json";

/// How a name relates to the bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameClass {
    /// An ordinary file.
    Synced,
    /// An internal name that programs may create; it stays on this machine.
    LocalOnly,
    /// At or under `_index` or `_control`: belongs to the format, cannot be created.
    Reserved,
}

/// Sorts a bucket-relative path into its class.
pub fn classify(path: &str) -> NameClass {
    let (first, last) = (path.split('/').next().unwrap_or(path), path.rsplit('/').next().unwrap_or(path));
    if matches!(first, "_index" | "_control") {
        return NameClass::Reserved;
    }
    let at_root = matches!(path, INDEX_KEY | ".push-queue.json" | LOCK_KEY | SIDECAR_NAME);
    let anywhere = matches!(last, ".lock" | NAMESPACE_FILE | "_catalog.db") || last.starts_with("_catalog.db-");
    if at_root || anywhere { NameClass::LocalOnly } else { NameClass::Synced }
}

/// Whether a file of this name (its last component) can be internal anywhere.
pub fn may_be_internal(name: &str) -> bool {
    is_internal(name)
}

/// Whether a name must not cross the sync boundary.
pub fn is_internal(path: &str) -> bool {
    classify(path) != NameClass::Synced
}

/// Whether a file is rewritten in the bucket without an update of its entry, so that its size may differ from the entry's.
pub fn is_rewritten_in_place(path: &str) -> bool {
    path == CATALOG_EXPORT
}

/// Whether discovery leaves a listed object out (besides namespaces): internal names, other tools' directories and
/// directory markers.
pub fn is_ignored_by_discovery(key: &str) -> bool {
    is_internal(key) || key.ends_with('/') || key.starts_with(".locks/") || key.starts_with(".auto-definition-create/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_names_are_recognised_at_their_depth() {
        let table = [
            (".datastore-index.json", NameClass::LocalOnly),
            (".push-queue.json", NameClass::LocalOnly),
            (".datastore.lock", NameClass::LocalOnly),
            (".datastore-sync-state.json", NameClass::LocalOnly),
            ("data/t/i/.lock", NameClass::LocalOnly),
            (".lock", NameClass::LocalOnly),
            ("a/.namespace.json", NameClass::LocalOnly),
            ("a/_catalog.db", NameClass::LocalOnly),
            ("_catalog.db-wal", NameClass::LocalOnly),
            ("_index", NameClass::Reserved),
            ("_index/_meta.json", NameClass::Reserved),
            ("_control/x/y", NameClass::Reserved),
            ("a/.datastore-index.json", NameClass::Synced),
            ("a/_index/x", NameClass::Synced),
            ("_indexes", NameClass::Synced),
            (".lock/x", NameClass::Synced),
            ("_catalog.database", NameClass::Synced),
            (".catalog-export.json", NameClass::Synced),
            ("a.lock", NameClass::Synced),
        ];
        for (name, class) in table {
            assert_eq!(classify(name), class, "{name}");
        }
    }

    #[test]
    fn discovery_leaves_out_what_is_no_data() {
        for name in [".locks/ns.lock", ".auto-definition-create/x", "dir/", "_index/a.json", "x/.lock"] {
            assert!(is_ignored_by_discovery(name), "{name}");
        }
        assert!(!is_ignored_by_discovery("data/x/.locks/y"));
    }
}
