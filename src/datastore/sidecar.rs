//! The sidecar: a cache directory's promise that it holds every file of an index, and nothing unpushed.
//!
//! Depends on the cache directory and the index. Invariants (section 4 of the format): a clean sidecar is made only from a
//! [`VerifiedComplete`] and the fingerprint of the response that carried that index; an incomplete cache carries
//! [`Sidecar::lazy`] from before its first file on; what is not understood is ignored, never an error.

use std::io;

use serde_json::{Map, Value};

use super::cache_dir::{CacheDir, FileKind};
use super::index::Index;
use super::names::is_rewritten_in_place;
use super::timestamp::{self, NANOS_PER_MS};
use crate::store::{Fingerprint, FingerprintName, ObjectStore};

/// What the reference clients call the number of the last commit.
const COMMIT_SEQ: &str = "commitSeq";
/// Our field for [`Index::digest`].
const DIGEST: &str = "shardsDigest";

/// Whose name the fingerprint field has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// `remoteIndexETag` (S3, and directories that play a bucket).
    S3,
    /// `remoteIndexGeneration`.
    Gcs,
}

impl Flavour {
    /// That of the reference clients for this store.
    pub fn of(store: &dyn ObjectStore) -> Self {
        match store.fingerprint_name() {
            FingerprintName::ETag => Self::S3,
            FingerprintName::Generation => Self::Gcs,
        }
    }

    fn field(self) -> &'static str {
        match self {
            Self::S3 => "remoteIndexETag",
            Self::Gcs => "remoteIndexGeneration",
        }
    }
}

/// The fields that version 2 adds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    /// Files and directories that changed since the last push.
    pub dirty_paths: Vec<String>,
    /// Something changed, nobody knows where.
    pub bulk_invalidated: bool,
    /// The cache is filled on demand: absent files mean nothing.
    pub lazy_pull_active: bool,
    /// There were too many dirty paths to list.
    pub dirty_paths_overflowed: bool,
    /// Fields that we do not know, or do not use (`lastCatalogHash`, …).
    pub extra: Map<String, Value>,
}

/// The sidecar's content.
#[derive(Clone, Debug, PartialEq)]
pub struct Sidecar {
    /// Fingerprint of the index that the cache was verified against; may be empty, which proves nothing.
    pub fingerprint: String,
    /// When, as written.
    pub last_verified_at: String,
    /// Whether something is, or may be, unpushed.
    pub local_dirty: bool,
    /// Present in version 2.
    pub marks: Option<Marks>,
}

/// What lies in the cache directory.
#[derive(Clone, Debug, PartialEq)]
pub enum SidecarRead {
    /// No sidecar.
    Absent,
    /// One that is not understood: as if there were none.
    Ignored(String),
    /// One that is understood.
    Present(Sidecar),
}

impl SidecarRead {
    /// The sidecar, when it is understood.
    pub fn sidecar(&self) -> Option<&Sidecar> {
        match self {
            Self::Present(sidecar) => Some(sidecar),
            _ => None,
        }
    }
}

/// The index that a clean sidecar vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vouched {
    /// Of version 1, by the fingerprint of its object.
    Monolith(Fingerprint),
    /// Of version 2, by the fingerprints of all its shards. `commitSeq` is for the reference clients: theirs is set by a push
    /// only.
    Shards {
        /// [`Index::digest`].
        digest: String,
        /// The number of the last commit, when this is a push.
        commit_seq: Option<u64>,
    },
}

impl Vouched {
    /// What stands for an index; `None` when it cannot be told from others. `pushing`: not a pull.
    pub fn of(index: &Index, pushing: bool) -> Option<Self> {
        match index.meta() {
            None => index.fingerprint().filter(|f| f.is_recordable()).cloned().map(Self::Monolith),
            Some(meta) => {
                Some(Self::Shards { digest: index.digest()?, commit_seq: pushing.then_some(meta.commit_seq) })
            }
        }
    }
}

/// Proof that every entry of one index lies in a cache directory with its size. Made by [`verify_complete`] only.
#[derive(Debug)]
pub struct VerifiedComplete(());

/// What is missing for a cache to be complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Incomplete {
    /// How many entries.
    pub count: usize,
    /// The first of them.
    pub examples: Vec<String>,
}

/// Checks that every entry of an index exists in a cache directory with its size.
///
/// # Errors
/// The outer error is the disk's. Entries that no tree can show count as missing: no cache can hold them.
pub fn verify_complete(cache: &CacheDir, index: &Index) -> io::Result<Result<VerifiedComplete, Incomplete>> {
    let mut missing = Incomplete::default();
    let mut add = |name: &str| {
        missing.count += 1;
        if missing.examples.len() < 3 {
            missing.examples.push(name.to_owned());
        }
    };
    for entry in index.entries() {
        let path = entry.path();
        match cache.stat(&path)? {
            Some(stat)
                if stat.kind == FileKind::File
                    && (stat.size == entry.size() || is_rewritten_in_place(path.as_str())) => {}
            _ => add(path.as_str()),
        }
    }
    if !index.is_fully_representable() {
        index.problems().iter().for_each(|problem| add(&problem.name));
    }
    Ok(if missing.count == 0 { Ok(VerifiedComplete(())) } else { Err(missing) })
}

impl Sidecar {
    /// The sidecar of an incomplete cache (rule 7): nothing that a client does on its word hides or deletes a file. Keeps
    /// the marks and unknown fields of the one that it replaces.
    pub fn lazy(previous: Option<&Self>) -> Self {
        let mut marks = previous.and_then(|p| p.marks.clone()).unwrap_or_default();
        marks.lazy_pull_active = true;
        marks.extra.shift_remove(COMMIT_SEQ);
        Self { fingerprint: String::new(), last_verified_at: String::new(), local_dirty: true, marks: Some(marks) }
    }

    /// A complete cache with nothing unpushed.
    ///
    /// The version stays that of `previous`, but is 2 for shards; `index_copy_mtime` is that of the local index, which the verification time
    /// is made to follow.
    pub fn clean(
        previous: Option<&Self>,
        _proof: &VerifiedComplete,
        vouched: &Vouched,
        now_nanos: i64,
        index_copy_mtime: i64,
    ) -> Self {
        let mut marks = previous.and_then(|p| p.marks.as_ref()).map(|marks| {
            let mut extra = marks.extra.clone();
            // What is not set below is about another index.
            extra.shift_remove(COMMIT_SEQ);
            extra.shift_remove(DIGEST);
            Marks { extra, ..Marks::default() }
        });
        let fingerprint = match vouched {
            Vouched::Monolith(fingerprint) => fingerprint.as_str().to_owned(),
            Vouched::Shards { digest, commit_seq } => {
                let extra = &mut marks.get_or_insert_default().extra;
                if let Some(seq) = commit_seq {
                    extra.insert(COMMIT_SEQ.into(), Value::from(*seq));
                }
                extra.insert(DIGEST.into(), Value::from(digest.as_str()));
                String::new()
            }
        };
        let last_verified_at = verified_after(now_nanos, index_copy_mtime);
        Self { fingerprint, last_verified_at, local_dirty: false, marks }
    }

    /// A cache with unpushed changes and every file of the index: proves nothing, and lets a full push find them.
    pub fn dirty(previous: Option<&Self>) -> Self {
        let marks = previous.and_then(|p| p.marks.clone()).map(|mut marks| {
            marks.lazy_pull_active = false;
            marks.bulk_invalidated = true;
            marks
        });
        Self { fingerprint: String::new(), last_verified_at: String::new(), local_dirty: true, marks }
    }

    /// The same promise, broken by a local change: to be written before its first byte (rule 4).
    pub fn mark_dirty(&self) -> Self {
        let mut dirty = self.clone();
        dirty.local_dirty = true;
        if let Some(marks) = &mut dirty.marks {
            marks.bulk_invalidated = true;
        }
        dirty
    }

    /// Whether the cache was last verified against shards.
    pub fn knows_shards(&self) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.extra.contains_key(DIGEST))
    }

    /// The index that this cache provably holds, with nothing unpushed; `None` when any rule is in doubt.
    pub fn trusted(&self, index_copy_mtime: Option<i64>) -> Option<Vouched> {
        let verified = timestamp::parse_nanos(&self.last_verified_at)?;
        let unmarked = self.marks.as_ref().is_none_or(|marks| {
            marks.dirty_paths.is_empty()
                && !marks.bulk_invalidated
                && !marks.lazy_pull_active
                && !marks.dirty_paths_overflowed
        });
        if self.local_dirty || !unmarked || verified <= index_copy_mtime? {
            return None;
        }
        match Fingerprint::from_record(&self.fingerprint).filter(Fingerprint::is_recordable) {
            Some(fingerprint) => Some(Vouched::Monolith(fingerprint)),
            // The number of the commit alone proves nothing: some writers leave it as it was.
            None if self.fingerprint.is_empty() => {
                let digest = self.marks.as_ref()?.extra.get(DIGEST)?.as_str()?.to_owned();
                Some(Vouched::Shards { digest, commit_seq: None })
            }
            None => None,
        }
    }

    /// Reads the bytes of a sidecar.
    pub fn parse(bytes: &[u8], flavour: Flavour) -> SidecarRead {
        match parse(bytes, flavour) {
            Ok(sidecar) => SidecarRead::Present(sidecar),
            Err(reason) => SidecarRead::Ignored(reason),
        }
    }

    /// The bytes to write.
    pub fn to_bytes(&self, flavour: Flavour) -> Vec<u8> {
        let mut map = Map::new();
        map.insert("version".into(), Value::from(if self.marks.is_some() { 2 } else { 1 }));
        map.insert(flavour.field().into(), Value::from(self.fingerprint.as_str()));
        map.insert("lastVerifiedAt".into(), Value::from(self.last_verified_at.as_str()));
        map.insert("localDirty".into(), Value::from(self.local_dirty));
        if let Some(marks) = &self.marks {
            map.insert("dirtyPaths".into(), Value::from(marks.dirty_paths.clone()));
            map.insert("bulkInvalidated".into(), Value::from(marks.bulk_invalidated));
            map.insert("lazyPullActive".into(), Value::from(marks.lazy_pull_active));
            map.insert("dirtyPathsOverflowed".into(), Value::from(marks.dirty_paths_overflowed));
            map.extend(marks.extra.clone());
        }
        format!("{:#}", Value::Object(map)).into_bytes()
    }

    /// Reads the sidecar of a cache directory. What is wrong with it is logged, and it is ignored.
    pub fn read(cache: &CacheDir, flavour: Flavour) -> SidecarRead {
        let read = match cache.read_sidecar_bytes() {
            Ok(None) => return SidecarRead::Absent,
            Ok(Some(bytes)) => Self::parse(&bytes, flavour),
            Err(error) => SidecarRead::Ignored(error.to_string()),
        };
        if let SidecarRead::Ignored(reason) = &read {
            tracing::warn!(cache = %cache.path().display(), reason, "the sidecar is ignored");
        }
        read
    }

    /// Writes the sidecar of a cache directory, atomically; `durable` before the first change that it announces.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, cache: &CacheDir, flavour: Flavour, durable: bool) -> io::Result<()> {
        cache.write_sidecar_bytes(&self.to_bytes(flavour), durable)
    }
}

/// A time to the millisecond that is strictly later than the copy of the index.
fn verified_after(now_nanos: i64, index_copy_mtime: i64) -> String {
    let floor = |nanos: i64| nanos.div_euclid(NANOS_PER_MS) * NANOS_PER_MS;
    let now = floor(now_nanos);
    let at = if now > index_copy_mtime { now } else { floor(index_copy_mtime) + NANOS_PER_MS };
    timestamp::format_nanos(at)
}

fn parse(bytes: &[u8], flavour: Flavour) -> Result<Sidecar, String> {
    let Value::Object(mut map) = serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?
    else {
        return Err("it is not an object".into());
    };
    let version = map.shift_remove("version").and_then(|v| v.as_f64());
    if version != Some(1.0) && version != Some(2.0) {
        return Err("its version is unknown".into());
    }
    let mut take = |field: &str| map.shift_remove(field).ok_or_else(|| format!("it lacks the field {field}"));
    let text = |value: Value, field: &str| match value {
        Value::String(text) => Ok(text),
        _ => Err(format!("its field {field} is not text")),
    };
    let flag = |value: Value, field: &str| value.as_bool().ok_or_else(|| format!("its field {field} is not a boolean"));
    let fingerprint = text(take(flavour.field())?, flavour.field())?;
    let last_verified_at = text(take("lastVerifiedAt")?, "lastVerifiedAt")?;
    let local_dirty = flag(take("localDirty")?, "localDirty")?;
    if version == Some(1.0) {
        return Ok(Sidecar { fingerprint, last_verified_at, local_dirty, marks: None });
    }
    let Value::Array(paths) = take("dirtyPaths")? else { return Err("its field dirtyPaths is not a list".into()) };
    let dirty_paths = paths.into_iter().map(|path| text(path, "dirtyPaths")).collect::<Result<_, _>>()?;
    let bulk_invalidated = flag(take("bulkInvalidated")?, "bulkInvalidated")?;
    let lazy_pull_active = flag(take("lazyPullActive")?, "lazyPullActive")?;
    let dirty_paths_overflowed = flag(take("dirtyPathsOverflowed")?, "dirtyPathsOverflowed")?;
    let marks = Marks { dirty_paths, bulk_invalidated, lazy_pull_active, dirty_paths_overflowed, extra: map };
    Ok(Sidecar { fingerprint, last_verified_at, local_dirty, marks: Some(marks) })
}

#[cfg(test)]
mod tests;
