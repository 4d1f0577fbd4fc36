use std::io::Write;

use super::*;

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

fn cache() -> (tempfile::TempDir, CacheDir) {
    let directory = tempfile::tempdir().unwrap();
    let cache = CacheDir::create(&directory.path().join("cache")).unwrap();
    (directory, cache)
}

fn put(cache: &CacheDir, name: &str, text: &str) -> io::Result<()> {
    let new = cache.new_file(&path(name))?;
    new.file().write_all(text.as_bytes())?;
    set_mtime(new.file(), -1_500_000_001)?;
    cache.place(new, &path(name))
}

#[test]
fn a_file_is_placed_whole_stamped_and_replaced() {
    let (_guard, cache) = cache();
    put(&cache, "a/b/c", "one").unwrap();
    put(&cache, "a/b/c", "three").unwrap();
    let stat = cache.stat(&path("a/b/c")).unwrap().unwrap();
    assert_eq!((stat.size, stat.mtime_nanos, stat.kind), (5, -1_500_000_001, FileKind::File));
    assert_eq!(std::fs::read_dir(cache.path().join("a/b")).unwrap().count(), 1);
    assert!(cache.remove_file(&path("a/b/c")).unwrap());
    assert!(!cache.remove_file(&path("a/b/c")).unwrap());
    assert!(!cache.path().join("a").exists(), "empty directories go");
}

#[test]
fn an_unfinished_file_has_no_name_that_counts() {
    let (_guard, cache) = cache();
    let new = cache.new_file(&path("a/b")).unwrap();
    new.file().write_all(b"half").unwrap();
    assert!(cache.walk().unwrap().files.is_empty());
    std::fs::write(cache.path().join("_catalog.db-swamp-mount-1-2-3"), "left by a crash").unwrap();
    assert!(cache.walk().unwrap().files.is_empty());
    assert!(!cache.path().join("_catalog.db-swamp-mount-1-2-3").exists());
}

#[test]
fn no_name_leads_out_of_the_directory() {
    let (guard, cache) = cache();
    std::fs::create_dir(guard.path().join("outside")).unwrap();
    std::fs::write(guard.path().join("outside/secret"), "s").unwrap();
    std::os::unix::fs::symlink("../outside", cache.path().join("link")).unwrap();
    std::os::unix::fs::symlink("../outside/secret", cache.path().join("file")).unwrap();
    assert!(cache.open_file(&path("link/secret")).is_err());
    assert!(cache.open_file(&path("file")).is_err());
    assert_eq!(cache.stat(&path("link/secret")).unwrap(), None);
    assert_eq!(cache.stat(&path("file")).unwrap().unwrap().kind, FileKind::Other);
    assert!(put(&cache, "link/new", "x").is_err());
    assert!(put(&cache, "link/deep/new", "x").is_err());
    assert!(!guard.path().join("outside/new").exists() && !guard.path().join("outside/deep").exists());
    assert!(cache.remove_file(&path("link/secret")).is_err());
    assert!(guard.path().join("outside/secret").exists());
    let walk = cache.walk().unwrap();
    assert_eq!((walk.files.len(), walk.skipped.len()), (0, 2));
    // Placing over a symlink replaces the link, not what it points to.
    put(&cache, "file", "mine").unwrap();
    assert_eq!(std::fs::read_to_string(guard.path().join("outside/secret")).unwrap(), "s");
}

#[test]
fn a_walk_sees_synced_names_only() {
    let (_guard, cache) = cache();
    for name in
        ["a", "d/.lock", "d/x", "_index/p.json", "_control/c", ".datastore.lock", "_catalog.db-wal", ".lock/inner"]
    {
        let target = cache.path().join(name);
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::write(target, name).unwrap();
    }
    let names: Vec<_> = cache.walk().unwrap().files.into_iter().map(|(path, _)| path.to_string()).collect();
    assert_eq!(names, [".lock/inner", "a", "d/x"]);
}

#[test]
fn links_replace_files_and_share_the_content() {
    let (guard, cache) = cache();
    let content = guard.path().join("content");
    std::fs::write(&content, "c").unwrap();
    put(&cache, "d/f", "old").unwrap();
    for _ in 0..2 {
        cache.link_from(&content, &path("d/f")).unwrap();
        assert_eq!(std::fs::read_dir(cache.path().join("d")).unwrap().count(), 1);
    }
    let ino = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&content).unwrap());
    assert_eq!(cache.stat(&path("d/f")).unwrap().unwrap().ino, ino);
}

#[test]
fn a_conflict_never_replaces_a_file() {
    let (_guard, cache) = cache();
    put(&cache, "a", "a").unwrap();
    put(&cache, "b", "b").unwrap();
    assert_eq!(cache.rename_to_free(&path("a"), &path("b")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    cache.rename_to_free(&path("a"), &path("sub/c")).unwrap();
    assert!(cache.stat(&path("a")).unwrap().is_none());
}

#[test]
fn one_process_at_a_time() {
    let (_guard, cache) = cache();
    assert!(cache.try_lock().unwrap());
    let second = CacheDir::open(cache.path()).unwrap();
    assert!(!second.try_lock().unwrap());
    drop(cache);
    assert!(second.try_lock().unwrap());
}
