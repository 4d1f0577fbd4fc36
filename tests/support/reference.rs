//! What `cache/` under a cache directory tells a reference client, and whether that is true.

use std::path::Path;

use serde_json::Value;

use super::mount::entry;

const INDEX: &str = ".datastore-index.json";
const SIDECAR: &str = ".datastore-sync-state.json";

fn json(path: &Path) -> Option<Value> {
    let text = std::fs::read(path).ok()?;
    Some(serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// The sidecar, if there is one.
pub fn sidecar(cache: &Path) -> Option<Value> {
    json(&cache.join(SIDECAR))
}

/// Every file but index copy and sidecar, sorted.
pub fn files(cache: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![cache.to_owned()];
    while let Some(at) = todo.pop() {
        for entry in std::fs::read_dir(at).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                todo.push(entry.path());
            } else if !entry.file_name().to_str().unwrap().starts_with(".datastore") {
                found.push(entry.path().strip_prefix(cache).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// The promise of format.md section 4, also of a cache whose daemon is dead: every file there is what the index copy
/// describes, and the sidecar either says that all are there, and they are, or that nothing may be concluded.
pub fn check_truth(cache: &Path, what: &str) {
    let index = json(&cache.join(INDEX));
    let entries = index.as_ref().and_then(|index| index["entries"].as_object().cloned()).unwrap_or_default();
    let files = files(cache);
    for name in &files {
        let bytes = std::fs::read(cache.join(name)).unwrap();
        let listed = entries.get(name).unwrap_or_else(|| panic!("{what}: cache/{name} would be pushed as new"));
        assert_eq!(listed["size"], bytes.len(), "{what}: cache/{name}");
        assert_eq!(listed["sha256"], entry(name, &bytes)["sha256"], "{what}: cache/{name}");
    }
    let Some(sidecar) = sidecar(cache) else {
        assert_eq!(files, Vec::<String>::new(), "{what}: files without a sidecar");
        return;
    };
    if sidecar["localDirty"] == false {
        let mut names: Vec<_> = entries.keys().cloned().collect();
        names.sort();
        assert_eq!(files, names, "{what}: a clean sidecar on an incomplete cache");
    } else {
        assert_eq!(sidecar["lazyPullActive"], true, "{what}: {sidecar}");
        assert_eq!(sidecar["version"], 2, "{what}: {sidecar}");
        for fingerprint in ["remoteIndexETag", "remoteIndexGeneration"] {
            assert!(sidecar.get(fingerprint).is_none_or(|text| text == ""), "{what}: {sidecar}");
        }
    }
}
