//! What is known of an object beside its bytes: its fingerprint and its user metadata.
//!
//! Depends on `root` for files below the private directory. Invariants: a fingerprint is derived from the file's identity
//! (inode, size, modification and change time), so that files placed or edited by hand have one too; every write makes
//! a new inode whose modification time has random digits below the millisecond, so that it never repeats.

use std::fs::File;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use md5::{Digest, Md5};
use rustix::fs::{Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use time::OffsetDateTime;

use super::names::METADATA;
use super::root::Root;
use crate::store::{Fingerprint, ObjectInfo, UserMetadata};

/// Extended attribute that holds user metadata as JSON.
const ATTRIBUTE: &str = "user.swamp.metadata";
/// More than S3 allows (2 KiB) by far.
const LONGEST: usize = 64 << 10;

/// The version of the file that `stat` describes.
pub(super) fn fingerprint(stat: &Stat) -> Option<Fingerprint> {
    use std::fmt::Write as _;
    let identity = format!(
        "{} {} {}.{} {}.{}",
        stat.st_ino, stat.st_size, stat.st_mtime, stat.st_mtime_nsec, stat.st_ctime, stat.st_ctime_nsec
    );
    let mut text = String::with_capacity(32);
    for byte in Md5::digest(identity.as_bytes()) {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Fingerprint::from_response(&text)
}

/// Size in bytes.
pub(super) fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or_default()
}

/// Last modification.
pub(super) fn last_modified(stat: &Stat) -> Option<OffsetDateTime> {
    let nanos = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
}

/// All that is known of an open object.
pub(super) fn info(root: &Root, file: &File) -> io::Result<ObjectInfo> {
    let stat = rustix::fs::fstat(file)?;
    Ok(ObjectInfo {
        size: size(&stat),
        fingerprint: fingerprint(&stat),
        last_modified: last_modified(&stat),
        server_date: Some(OffsetDateTime::now_utc()),
        metadata: read(root, file, &stat)?,
    })
}

/// Gives a new file a modification time that no other version has.
pub(super) fn stamp(file: &File) -> io::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
    let nanos = now.subsec_millis() * 1_000_000 + fastrand::u32(0..1_000_000);
    let time = Timespec { tv_sec: i64::try_from(now.as_secs()).map_err(io::Error::other)?, tv_nsec: i64::from(nanos) };
    rustix::fs::futimens(file, &Timestamps { last_access: time, last_modification: time })?;
    Ok(())
}

/// Attaches metadata to a new file that is not visible yet and has its stamp.
pub(super) fn write(root: &Root, file: &File, metadata: &UserMetadata) -> io::Result<()> {
    if metadata.is_empty() {
        return Ok(());
    }
    let json = serde_json::to_vec(metadata).map_err(io::Error::other)?;
    match rustix::fs::fsetxattr(file, ATTRIBUTE, &json, XattrFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::PERM | Errno::RANGE | Errno::TOOBIG) => {
            root.write_small(&companion(&rustix::fs::fstat(file)?), &json)
        }
        Err(error) => Err(error.into()),
    }
}

fn read(root: &Root, file: &File, stat: &Stat) -> io::Result<UserMetadata> {
    let mut buffer = vec![0u8; 4096];
    let json = loop {
        match rustix::fs::fgetxattr(file, ATTRIBUTE, buffer.as_mut_slice()) {
            Ok(length) => break Some(buffer[..length].to_vec()),
            Err(Errno::RANGE) if buffer.len() < LONGEST => buffer = vec![0; LONGEST],
            Err(Errno::NODATA | Errno::OPNOTSUPP) => break root.read_small(&companion(stat))?,
            Err(error) => return Err(error.into()),
        }
    };
    let Some(json) = json else { return Ok(UserMetadata::new()) };
    serde_json::from_slice(&json).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Removes what [`write()`] may have left beside a file that is gone.
pub(super) fn forget(root: &Root, stat: &Stat) {
    if let Err(error) = root.remove_small(&companion(stat)) {
        tracing::warn!(%error, "metadata of a replaced object is left in {METADATA}");
    }
}

/// Where metadata lies without extended attributes. Inode and modification time do not change by a rename.
fn companion(stat: &Stat) -> String {
    format!("{METADATA}/{}-{}.{:09}", stat.st_ino, stat.st_mtime, stat.st_mtime_nsec)
}
