//! The cache root and its lock: one process per cache root, one source per cache root.
//!
//! Depends on `config`. Invariants: whoever has an [`Instance`] is the only process on that directory, also after a crash
//! of another (the kernel drops the lock with its process); the directory is ours and closed to others (0700); a cache
//! root that belongs to one source is never used for another.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::CacheConfig;

/// File with the lock and who holds it.
pub const LOCK_NAME: &str = "lock";
/// File that says which source a cache root belongs to.
pub const SOURCE_NAME: &str = "source.json";

/// What may lie in a cache root; a directory with other things in it is somebody's, not a cache root.
const OWN_NAMES: &[&str] = &[
    LOCK_NAME,
    SOURCE_NAME,
    "data",
    "cache",
    "state.db",
    "state.db-wal",
    "state.db-shm",
    "control.sock",
    "mount.log",
    "mount.log.1",
];

/// The process that holds a cache root.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its source, as users write it.
    pub source: String,
    /// Where it is mounted; none while only flushing.
    pub mountpoint: Option<String>,
    /// When it started (UTC).
    pub started: String,
}

#[derive(Serialize, Deserialize)]
struct SourceRecord {
    version: u32,
    source: String,
    identity: String,
}

/// Why a cache root cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Another process holds it.
    #[error("{} is in use{}", root.display(), holder.as_ref().map(|h| format!(" by process {}", h.pid)).unwrap_or_default())]
    Held {
        /// The cache root.
        root: PathBuf,
        /// Which, when it could be read.
        holder: Option<Holder>,
    },
    /// It belongs to another source.
    #[error("{} holds the state of {recorded}, not of {wanted}; choose another --cache-dir", root.display())]
    OtherSource {
        /// The cache root.
        root: PathBuf,
        /// Recorded source.
        recorded: String,
        /// Wanted source.
        wanted: String,
    },
    /// It cannot be trusted with our data, or is not a cache root.
    #[error("{} cannot be used as the cache directory: {reason}", root.display())]
    Unfit {
        /// The cache root.
        root: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {what} {}: {source}{}", path.display(), advice(source))]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
}

fn advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem => "; local changes need a writable place, choose another --cache-dir",
        std::io::ErrorKind::PermissionDenied => "; choose another --cache-dir, or make it writable for you",
        std::io::ErrorKind::StorageFull => "; free some space there, or choose another --cache-dir",
        _ => "",
    }
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> InstanceError + 'a {
    move |source| InstanceError::Io { what, path: path.to_owned(), source }
}

/// The right to use a cache root. Dropping it gives the right back.
#[derive(Debug)]
pub struct Instance {
    root: PathBuf,
    lock: File,
}

impl Instance {
    /// Takes the cache root, creating it when it is missing.
    pub fn acquire(cache: &CacheConfig, source: &str, mountpoint: Option<&Path>) -> Result<Self, InstanceError> {
        prepare_directory(&cache.root)?;
        let root = std::fs::canonicalize(&cache.root).map_err(io_error("open", &cache.root))?;
        let path = root.join(LOCK_NAME);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .map_err(io_error("open", &path))?;
        if !lock_patiently(&lock).map_err(io_error("lock", &path))? {
            return Err(InstanceError::Held { holder: read_holder(&mut lock), root });
        }
        let holder = Holder {
            pid: super::supervisor::visible_pid(),
            source: source.to_owned(),
            mountpoint: mountpoint.map(|path| path.display().to_string()),
            started: super::utc_now(),
        };
        let text = serde_json::to_vec(&holder).map_err(std::io::Error::other).map_err(io_error("write", &path))?;
        let write = |lock: &mut File| {
            lock.set_len(0)?;
            lock.rewind()?;
            lock.write_all(&text)
        };
        write(&mut lock).map_err(io_error("write", &path))?;
        let instance = Self { root, lock };
        instance.claim_for(source, &cache.identity)?;
        Ok(instance)
    }

    /// The cache root, canonical.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn claim_for(&self, source: &str, identity: &str) -> Result<(), InstanceError> {
        let path = self.root.join(SOURCE_NAME);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let record: SourceRecord = serde_json::from_slice(&bytes).map_err(|e| InstanceError::Unfit {
                    root: self.root.clone(),
                    reason: format!("its {SOURCE_NAME} cannot be read ({e}), so it is not known whose state it holds"),
                })?;
                if record.identity != identity {
                    return Err(InstanceError::OtherSource {
                        root: self.root.clone(),
                        recorded: describe(&record.source, &record.identity),
                        wanted: describe(source, identity),
                    });
                }
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let record = SourceRecord { version: 1, source: source.to_owned(), identity: identity.to_owned() };
                let text = serde_json::to_vec_pretty(&record).map_err(std::io::Error::other);
                text.and_then(|text| super::write_atomically(&path, &text)).map_err(io_error("write", &path))
            }
            Err(error) => Err(io_error("read", &path)(error)),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The holder's text goes first: it would outlive us and mislead. Closing the file drops the lock.
        if let Err(error) = self.lock.set_len(0) {
            tracing::warn!("cannot clear {}: {error}", self.root.join(LOCK_NAME).display());
        }
    }
}

/// A source with what else tells it apart: the same bucket name exists behind many endpoints.
fn describe(source: &str, identity: &str) -> String {
    let fields: Vec<&str> = identity.split('\n').collect();
    match fields.as_slice() {
        ["s3", endpoint, ..] if !endpoint.is_empty() => format!("{source} at {endpoint}"),
        ["file", _, prefix, ..] if !prefix.is_empty() => format!("{source} with prefix {prefix}"),
        _ => source.to_owned(),
    }
}

/// The process that holds this cache root now, if any does.
pub fn holder(root: &Path) -> std::io::Result<Option<Holder>> {
    let mut lock = match File::open(root.join(LOCK_NAME)) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // A shared lock, for a moment: those who take the exclusive one are patient enough for that.
    match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => Ok(None),
        Err(Errno::WOULDBLOCK) => Ok(Some(read_holder(&mut lock).unwrap_or_else(|| Holder {
            pid: 0,
            source: String::new(),
            mountpoint: None,
            started: String::new(),
        }))),
        Err(error) => Err(error.into()),
    }
}

/// The source that a cache root belongs to: as users write it, and its identity.
pub fn recorded_source(root: &Path) -> Option<(String, String)> {
    let bytes = std::fs::read(root.join(SOURCE_NAME)).ok()?;
    let record: SourceRecord = serde_json::from_slice(&bytes).ok()?;
    Some((record.source, record.identity))
}

fn read_holder(lock: &mut File) -> Option<Holder> {
    let mut text = String::new();
    lock.rewind().and_then(|()| lock.read_to_string(&mut text)).ok()?;
    serde_json::from_str(&text).ok()
}

/// Tries for as long as somebody who only looks may hold it.
fn lock_patiently(lock: &File) -> std::io::Result<bool> {
    for _ in 0..10 {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(20)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn prepare_directory(root: &Path) -> Result<(), InstanceError> {
    let unfit = |reason: String| Err(InstanceError::Unfit { root: root.to_owned(), reason });
    if let Some(parent) = root.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(io_error("create", parent))?;
    }
    match DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error("create", root)(error)),
    }
    let metadata = std::fs::symlink_metadata(root).map_err(io_error("read", root))?;
    if metadata.is_symlink() {
        return unfit("it is a symbolic link; give the directory itself".to_owned());
    }
    if !metadata.is_dir() {
        return unfit("it is not a directory".to_owned());
    }
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        return unfit(format!(
            "it belongs to user {}, and you are user {me}; use a directory of your own",
            metadata.uid()
        ));
    }
    if !root.join(SOURCE_NAME).exists() {
        for entry in std::fs::read_dir(root).map_err(io_error("read", root))? {
            let name = entry.map_err(io_error("read", root))?.file_name();
            if !OWN_NAMES.iter().any(|own| name == *own) {
                return unfit(format!("it holds {name:?}, which is not ours; use an empty or a new directory"));
            }
        }
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(root, PermissionsExt::from_mode(0o700)).map_err(io_error("close to others", root))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(root: &Path, identity: &str) -> CacheConfig {
        CacheConfig { root: root.to_owned(), given: true, identity: identity.to_owned(), registries: Vec::new() }
    }

    #[test]
    fn a_cache_root_is_held_by_one_process_at_a_time_and_tells_by_whom() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("new/root");
        let first = Instance::acquire(&cache(&root, "a"), "s3://bucket", Some(Path::new("/mnt"))).expect("free");
        assert_eq!(std::fs::metadata(&root).expect("made").permissions().mode() & 0o777, 0o700);
        let holding = holder(&root).expect("readable").expect("held");
        assert_eq!((holding.pid, holding.mountpoint.as_deref()), (std::process::id(), Some("/mnt")));
        match Instance::acquire(&cache(&root, "a"), "s3://bucket", None) {
            Err(InstanceError::Held { holder: Some(holder), .. }) => assert_eq!(holder.pid, std::process::id()),
            other => panic!("{other:?}"),
        }
        drop(first);
        assert!(holder(&root).expect("readable").is_none());
        Instance::acquire(&cache(&root, "a"), "s3://bucket", None).expect("free again");
    }

    #[test]
    fn a_cache_root_serves_one_source() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(Instance::acquire(&cache(dir.path(), "s3\nhttp://one\nb\n"), "s3://b", None).expect("free"));
        let error = Instance::acquire(&cache(dir.path(), "s3\n\nb\n"), "s3://b", None).expect_err("another source");
        assert!(error.to_string().contains("s3://b at http://one, not of s3://b;"), "{error}");
    }

    #[test]
    fn directories_that_are_not_cache_roots_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let documents = dir.path().join("documents");
        std::fs::create_dir(&documents).expect("made");
        std::fs::write(documents.join("letter.txt"), "").expect("made");
        let link = dir.path().join("link");
        std::fs::create_dir(dir.path().join("target")).expect("made");
        std::os::unix::fs::symlink("target", &link).expect("made");
        let file = dir.path().join("file");
        std::fs::write(&file, "").expect("made");
        for (root, words) in [(documents, "letter.txt"), (link, "symbolic link"), (file, "not a directory")] {
            let error = Instance::acquire(&cache(&root, "a"), "s3://b", None).expect_err("unfit").to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_directory_open_to_others_is_closed() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
        let _instance = Instance::acquire(&cache(dir.path(), "a"), "s3://b", None).expect("free");
        assert_eq!(std::fs::metadata(dir.path()).expect("there").permissions().mode() & 0o777, 0o700);
    }
}
