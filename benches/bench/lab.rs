//! The bucket of a benchmark: the tests' S3 server in this process, filled as a reference client would have pushed.
//!
//! Depends on `tests/support`. Invariant: entries have all the fields that a current client writes, so that an index is as
//! long as a real one of the same names.

use std::fmt::Write;
use std::time::{Duration, Instant};

use swamp_mount::store::Body;
use swamp_mount::sync::hash::digest_blocking;

use super::Result;
use super::faults::{Action, Fault};
use super::s3_server::{BUCKET, S3Server};

/// Size of a small file.
pub const SMALL: usize = 4096;

/// Name of the index.
pub const INDEX: &str = ".datastore-index.json";

/// A server with its bucket.
pub struct Lab {
    pub server: S3Server,
    /// The members of the index's map, as JSON.
    entries: String,
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
        Ok(Self { server: S3Server::s3_on("127.0.0.1:0", 2)?, entries: String::new() })
    }

    /// A file in the bucket and its entry; written with [`Lab::index`].
    pub fn file(&mut self, path: &str, bytes: Vec<u8>) -> Result<()> {
        let size = bytes.len();
        let body = Body::Bytes(bytes.clone().into());
        let sha256 = digest_blocking(&body)?.sha256;
        self.server.put_object(path, bytes);
        self.entry(path, size as u64, &sha256);
        Ok(())
    }

    fn entry(&mut self, path: &str, size: u64, sha256: &str) {
        let comma = if self.entries.is_empty() { "" } else { "," };
        let time = "2026-01-02T03:04:05.678Z";
        // Writing to a string cannot fail.
        let _ = write!(
            self.entries,
            r#"{comma}"{path}":{{"key":"{path}","size":{size},"lastModified":"{time}","localMtime":"{time}","sha256":"{sha256}"}}"#
        );
    }

    pub fn small_files(&mut self, count: usize, size: usize) -> Result<()> {
        (0..count).try_for_each(|number| self.file(&small_name(number), bytes(number, size)))
    }

    /// Entries of small files that are not in the bucket; every `edited`th has another size and hash.
    pub fn small_entries(&mut self, count: usize, edited: Option<usize>) {
        for number in 0..count {
            let edit = usize::from(edited.is_some_and(|edited| number % edited == 0));
            self.entry(&small_name(number), (SMALL + edit) as u64, &format!("{edit}{number:063x}"));
        }
    }

    /// A file of zeros that takes no memory here.
    pub fn zeros(&mut self, path: &str, size: u64) {
        self.server.put_zeros(path, size as usize);
        self.entry(path, size, "");
        // Nobody has hashed it: an entry without a hash.
        self.entries = self.entries.replace(r#","sha256":"""#, "");
    }

    /// Forgets the entries so far; the index stays.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    /// Writes the index of all entries so far.
    pub fn index(&self) {
        let (entries, time) = (&self.entries, "2026-01-02T03:04:05.678Z");
        let index = format!(r#"{{"version":1,"lastPulled":"{time}","entries":{{{entries}}}}}"#);
        self.server.put_object(INDEX, index.into_bytes());
    }

    /// From now on every request waits so long.
    pub fn latency(&self, milliseconds: u64) {
        self.server.clear_faults();
        if milliseconds > 0 {
            self.server.inject(Fault::any(Action::Delay(Duration::from_millis(milliseconds))));
        }
    }

    /// Waits until the bucket has all of these objects, in these sizes: some peers upload an empty object first.
    pub fn wait_for(&self, written: &[(String, u64)]) -> Result<()> {
        let began = Instant::now();
        for (key, size) in written {
            while self.server.get_object(key).is_none_or(|object| object.bytes.len() as u64 != *size) {
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

    pub fn source() -> String {
        format!("s3://{BUCKET}")
    }
}
