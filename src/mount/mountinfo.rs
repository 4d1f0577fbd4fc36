//! What is mounted where, as the kernel tells it in /proc/self/mountinfo.
//!
//! Depends on nothing. Never touches a mountpoint itself: a dead or hanging file system cannot block it.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The type under which our mounts appear.
pub const OUR_TYPE: &str = "fuse.swamp-mount";

/// Its parts: the file system of the kernel, and whose it is.
pub const FUSE: &str = "fuse";
/// The second part.
pub const OUR_SUBTYPE: &str = "swamp-mount";

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Unique id of the mount while it exists or is open; used again after that.
    pub id: u64,
    /// `major:minor`: which file system.
    pub device: String,
    /// Where.
    pub mountpoint: PathBuf,
    /// File system type, such as `ext4` or `fuse.swamp-mount`.
    pub fs_type: String,
    /// What is mounted.
    pub source: String,
}

impl Mounted {
    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.fs_type == OUR_TYPE
    }

    /// Whether it is a FUSE mount of any program.
    pub fn is_fuse(&self) -> bool {
        self.fs_type == FUSE || self.fs_type.starts_with("fuse.")
    }
}

/// All mounts this process can see, in the order in which they were made.
pub fn read() -> std::io::Result<Vec<Mounted>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
}

/// The mount that is visible at exactly this path.
pub fn at(path: &Path) -> std::io::Result<Option<Mounted>> {
    Ok(read()?.into_iter().rfind(|mounted| mounted.mountpoint == path))
}

/// The id of the mount on which this file lies.
pub fn id_of(file: &OwnedFd) -> std::io::Result<u64> {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| std::io::Error::other("the kernel does not say on which mount a file lies"))
}

/// Mounts that lie below this path.
pub fn below(path: &Path) -> std::io::Result<Vec<Mounted>> {
    Ok(read()?
        .into_iter()
        .filter(|mounted| mounted.mountpoint != path && mounted.mountpoint.starts_with(path))
        .collect())
}

fn parse_line(line: &[u8]) -> Option<Mounted> {
    // 36 35 98:0 /root /mnt rw,noatime shared:1 - ext3 /dev/root rw
    let mut fields = line.split(|b| *b == b' ');
    let id = text(fields.next()?).parse().ok()?;
    let device = text(fields.nth(1)?);
    let mountpoint = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fs_type = text(rest.next()?);
    let source = String::from_utf8_lossy(&unescape(rest.next()?)).into_owned();
    Some(Mounted { id, device, mountpoint, fs_type, source })
}

fn text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut at = 0;
    while let Some(&byte) = field.get(at) {
        let octal = (byte == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                out.push(value);
                at += 4;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel_are_understood() {
        let line = br"36 35 0:98 / /mnt/a\040b\134c rw,noatime shared:1 master:2 - fuse.swamp-mount s3://b\040x rw";
        let mounted = parse_line(line).expect("a mount");
        assert_eq!(
            mounted,
            Mounted {
                id: 36,
                device: "0:98".into(),
                mountpoint: "/mnt/a b\\c".into(),
                fs_type: OUR_TYPE.into(),
                source: "s3://b x".into()
            }
        );
        assert_eq!(parse_line(b"36 35 0:9 / /m rw - tmpfs none rw").expect("no optional field").fs_type, "tmpfs");
        for broken in [&b""[..], b"36", b"x 35 0:9 / /m rw - t s", b"36 35 0:9 / /m rw"] {
            assert_eq!(parse_line(broken), None);
        }
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(at(Path::new("/")).expect("readable").is_some());
    }
}
