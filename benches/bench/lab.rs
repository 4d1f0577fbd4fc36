//! The bucket of a benchmark: the tests' S3 server in this process, filled as a reference client would have pushed.
//!
//! Depends on `tests/support`.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use swamp_mount::store::Body;
use swamp_mount::sync::hash::digest_blocking;

use super::Result;
use super::faults::{Action, Fault};
use super::s3_server::{BUCKET, S3Server};

/// Size of a small file.
pub const SMALL: usize = 4096;

/// A server with its bucket.
pub struct Lab {
    pub server: S3Server,
    entries: Map<String, Value>,
}

/// Bytes that differ from file to file.
pub fn bytes(seed: usize, size: usize) -> Vec<u8> {
    let mut word = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(size + 8);
    while bytes.len() < size {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// The name of a small file; a hundred in each directory.
pub fn small_name(number: usize) -> String {
    format!("small/{:03}/{:02}", number / 100, number % 100)
}

impl Lab {
    pub fn new() -> Result<Self> {
        Ok(Self { server: S3Server::s3_on("127.0.0.1:0", 2)?, entries: Map::new() })
    }

    /// A file in the bucket and its entry; written with [`Lab::index`].
    pub fn file(&mut self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let size = bytes.len();
        let body = Body::Bytes(bytes.clone().into());
        let sha256 = digest_blocking(&body)?.sha256;
        self.server.put_object(path, bytes);
        self.entry(path, size, Some(sha256));
        Ok(())
    }

    /// An entry alone.
    pub fn entry(&mut self, path: &str, size: usize, sha256: Option<String>) {
        let time = "2026-01-02T03:04:05.678Z";
        let mut entry = json!({"key": path, "size": size, "lastModified": time, "localMtime": time});
        if let Some(sha256) = sha256 {
            entry["sha256"] = sha256.into();
        }
        self.entries.insert(path.to_owned(), entry);
    }

    pub fn small_files(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|number| self.file(&small_name(number), bytes(number, SMALL)))
    }

    /// Writes the index of all entries so far.
    pub fn index(&self) {
        let index = json!({"version": 1, "lastPulled": "2026-01-02T03:04:05.678Z", "entries": self.entries});
        self.server.put_object(".datastore-index.json", index.to_string().into_bytes());
    }

    /// From now on every request waits so long.
    pub fn latency(&self, milliseconds: u64) {
        self.server.clear_faults();
        if milliseconds > 0 {
            self.server.inject(Fault::any(Action::Delay(Duration::from_millis(milliseconds))));
        }
    }

    /// Waits until the bucket has all of these objects.
    pub fn wait_for(&self, keys: &[String]) -> Result<()> {
        let began = Instant::now();
        for key in keys {
            while self.server.get_object(key).is_none() {
                if began.elapsed() > Duration::from_secs(600) {
                    return Err(format!("{key} did not reach the bucket").into());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        Ok(())
    }

    pub fn bucket() -> &'static str {
        BUCKET
    }
}
