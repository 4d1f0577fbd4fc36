//! Which cache roots this user has, so that `status` finds all mounts and what ended ones left behind.
//!
//! Depends on `instance`. One small file per cache root. It is a list of places to look at, not the truth: an entry whose
//! cache root is gone or serves another source is dropped when the list is read.

use std::fs::DirBuilder;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::instance::{self, Holder};
use crate::config::{CacheConfig, StoreConfig};
use crate::sync::status::Pending;

/// One cache root that was used.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The cache root.
    pub cache_root: PathBuf,
    /// Its source, as users write it.
    pub source: String,
    /// What tells the source apart.
    pub identity: String,
    /// Where it was mounted last.
    pub mountpoint: Option<String>,
    /// When it was used last (UTC).
    pub updated: String,
    /// What was left when it ended; `None` while it runs, and after an end without a word (a crash).
    pub left: Option<Pending>,
    /// The command that pushes what is left.
    pub flush_command: String,
}

/// A record, and who holds its cache root now.
#[derive(Clone, Debug)]
pub struct Known {
    /// The record.
    pub record: Record,
    /// The process on it; none when the mount has ended.
    pub holder: Option<Holder>,
}

/// The record of one cache root, which a running mount keeps up to date.
#[derive(Clone, Debug)]
pub struct Registration {
    path: Option<PathBuf>,
    record: Record,
}

impl Registration {
    /// Records a cache root. Failing to do so is logged and does no harm but to `status`.
    pub fn new(root: &Path, cache: &CacheConfig, store: &StoreConfig, mountpoint: Option<&Path>) -> Self {
        let paths: Vec<PathBuf> = cache.registries.iter().map(|dir| dir.join(file_name(root))).collect();
        let before = paths.iter().find_map(|path| read(path));
        let mountpoint = match mountpoint {
            Some(path) => Some(path.display().to_string()),
            None => before.and_then(|known| known.record.mountpoint),
        };
        let record = Record {
            cache_root: root.to_owned(),
            source: store.to_string(),
            identity: cache.identity.clone(),
            mountpoint,
            updated: super::utc_now(),
            left: None,
            flush_command: super::flush_command(store, cache),
        };
        let mut paths = paths.into_iter();
        let registration = Self { path: paths.next(), record };
        for elsewhere in paths.filter(|path| path.exists()) {
            if let Err(error) = std::fs::remove_file(&elsewhere) {
                tracing::warn!("cannot remove {}: {error}", elsewhere.display());
            }
        }
        registration.write();
        registration
    }

    /// The command that pushes what is left.
    pub fn flush_command(&self) -> &str {
        &self.record.flush_command
    }

    /// Says how it ended. Nothing left: the record goes.
    pub fn ended(mut self, left: Pending) {
        if left != Pending::default() {
            self.record.left = Some(left);
            self.record.updated = super::utc_now();
            self.write();
        } else if let Some(path) = &self.path
            && let Err(error) = std::fs::remove_file(path)
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }

    fn write(&self) {
        let Some(path) = &self.path else { return };
        let write = || {
            if let Some(dir) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            }
            super::write_atomically(path, &serde_json::to_vec_pretty(&self.record)?)
        };
        if let Err(error) = write() {
            tracing::warn!("cannot record the mount in {} (status will not list it): {error}", path.display());
        }
    }
}

/// All known cache roots that still exist. Records that lead nowhere are removed.
pub fn list(registries: &[PathBuf]) -> Vec<Known> {
    let mut known: Vec<Known> = Vec::new();
    for dir in registries {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Some(found) if known.iter().all(|other| other.record.cache_root != found.record.cache_root) => {
                    known.push(found);
                }
                Some(_) => {}
                None => {
                    if let Err(error) = std::fs::remove_file(&path) {
                        tracing::warn!("cannot remove {}: {error}", path.display());
                    }
                }
            }
        }
    }
    known.sort_by(|a, b| a.record.mountpoint.cmp(&b.record.mountpoint).then(a.record.source.cmp(&b.record.source)));
    known
}

fn read(path: &Path) -> Option<Known> {
    let record: Record = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let (_, identity) = instance::recorded_source(&record.cache_root)?;
    if identity != record.identity {
        return None;
    }
    let holder = instance::holder(&record.cache_root).ok()?;
    Some(Known { record, holder })
}

fn file_name(root: &Path) -> String {
    format!("{}.json", crate::config::short_hash(root.as_os_str().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Source;
    use crate::mount::instance::Instance;

    #[test]
    fn running_mounts_and_leftovers_are_listed_and_stale_records_dropped() {
        let dir = tempfile::tempdir().expect("a directory");
        let registries = vec![dir.path().join("registry")];
        let store = StoreConfig::new(Source::parse("bucket", None).expect("a bucket"));
        let start = |name: &str| {
            let cache = CacheConfig {
                root: dir.path().join(name),
                given: true,
                identity: name.to_owned(),
                registries: registries.clone(),
            };
            let instance = Instance::acquire(&cache, "s3://bucket", None).expect("free");
            let registration = Registration::new(instance.root(), &cache, &store, Some(Path::new(name)));
            (instance, registration)
        };
        let left = Pending { files: 2, ..Pending::default() };
        let (running, _registration) = start("running");
        let (ended, registration) = start("clean");
        drop(ended);
        registration.ended(Pending::default());
        let (ended, registration) = start("left");
        drop(ended);
        registration.ended(left);
        let (ended, _crashed) = start("crashed");
        drop(ended);
        let (ended, _removed) = start("removed");
        drop(ended);
        std::fs::remove_dir_all(dir.path().join("removed")).expect("removed");

        let summary = || -> Vec<(String, bool, Option<Pending>)> {
            let known = list(&registries).into_iter();
            known.map(|k| (k.record.mountpoint.unwrap_or_default(), k.holder.is_some(), k.record.left)).collect()
        };
        let expected = vec![
            ("crashed".to_owned(), false, None),
            ("left".to_owned(), false, Some(left)),
            ("running".to_owned(), true, None),
        ];
        assert_eq!(summary(), expected);
        assert_eq!(std::fs::read_dir(&registries[0]).expect("there").count(), 3, "the stale record is gone");
        drop(running);
        let flush = &list(&registries)[0].record.flush_command;
        assert!(flush.starts_with("swamp-mount flush s3://bucket --cache-dir /"), "{flush}");
    }
}
