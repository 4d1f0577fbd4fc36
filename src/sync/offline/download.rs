//! Fetches one file into a cache directory.
//!
//! Depends on `datastore` and `store`. Invariant: nothing appears under the file's name before its size and, where the
//! entry has one, its hash are those of the entry.

use std::io::Write;

use futures_util::StreamExt;
use sha2::{Digest, Sha256};

use crate::datastore::cache_dir::{NewFile, set_mtime};
use crate::datastore::names::is_rewritten_in_place;
use crate::datastore::{CacheDir, Entry, EntryKind, RelPath};
use crate::store::{Fetched, GetRequest, ObjectStore};
use crate::sync::hash::hex;

/// What was fetched.
pub(super) struct Download {
    pub size: u64,
    pub sha256: String,
}

/// Fetches a file, or says why not.
pub(super) async fn download(
    store: &dyn ObjectStore,
    cache: &CacheDir,
    path: &RelPath,
    entry: &Entry,
) -> Result<Download, String> {
    let new = cache.new_file(path).map_err(|error| format!("cannot create it in the cache: {error}"))?;
    match fill(store, &new, path, entry).await {
        Ok(done) => {
            cache.place(new, path).map_err(|error| format!("cannot put it into the cache: {error}"))?;
            Ok(done)
        }
        Err(reason) => {
            cache.discard(new);
            Err(reason)
        }
    }
}

async fn fill(store: &dyn ObjectStore, new: &NewFile, path: &RelPath, entry: &Entry) -> Result<Download, String> {
    let loose = is_rewritten_in_place(path.as_str());
    let wrong_size = |size: u64| {
        format!(
            "its object has {size} bytes and its entry says {}; another writer may be at work, try again",
            entry.size
        )
    };
    let (info, mut body) = match store.get(GetRequest::whole(path.as_str())).await {
        Ok(Fetched::Object { info, body, .. }) => (info, body),
        Ok(Fetched::NotModified) => return Err("the store answered that nothing was modified, unasked".into()),
        Err(error) if error.is_not_found() => return Err("its object is missing from the bucket".into()),
        Err(error) => return Err(error.to_string()),
    };
    if info.size != entry.size && !loose {
        return Err(wrong_size(info.size));
    }
    let local = |error: std::io::Error| format!("cannot write it to the cache: {error}");
    let mut file = new.file();
    let (mut size, mut sha256) = (0, Sha256::new());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| error.to_string())?;
        size += chunk.len() as u64;
        sha256.update(&chunk);
        file.write_all(&chunk).map_err(local)?;
    }
    let sha256 = hex(&sha256.finalize());
    if size != info.size {
        return Err(format!("the answer ended after {size} of {} bytes", info.size));
    }
    let expected = entry.sha256.as_deref().filter(|_| !loose);
    if expected.is_some_and(|expected| !expected.eq_ignore_ascii_case(&sha256)) {
        return Err("its content does not have the hash of its entry; another writer may be at work, try again".into());
    }
    if entry.kind() == EntryKind::Executable {
        let mode = rustix::fs::Mode::from_raw_mode(0o755);
        rustix::fs::fchmod(file, mode).map_err(|error| local(error.into()))?;
    }
    if let Some(mtime) = entry.mtime_nanos() {
        set_mtime(file, mtime).map_err(local)?;
    }
    Ok(Download { size, sha256 })
}
