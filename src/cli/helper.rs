//! Being run by mount(8): for `mount -t fuse.swamp-mount` directly or through mount.fuse, and as mount.swamp.
//!
//! Depends on `config`. mount(8) calls a helper as `mount.TYPE SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS]
//! [-t TYPE]`; of these, those that are not ours are dropped here.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::config::Invocation;

/// Who started this program: mount(8) when it goes by a helper's name, or is started by one.
pub fn invocation(arguments: &[OsString]) -> Invocation {
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()).unwrap_or_default();
    let parent = std::fs::read_to_string(format!("/proc/{parent}/comm")).unwrap_or_default();
    let by_mount = parent.trim() == "mount" || parent.starts_with("mount.fuse");
    if by_mount || is_helper_name(arguments) { Invocation::MountHelper } else { Invocation::User }
}

/// Whether the program goes by a name such as `mount.fuse.swamp-mount` or `mount.swamp`.
pub fn is_helper_name(arguments: &[OsString]) -> bool {
    let name = arguments.first().and_then(|name| Path::new(name).file_name());
    name.is_some_and(|name| name.as_bytes().starts_with(b"mount."))
}

/// The arguments that are ours, and whether nothing is to be done (`-f`: a rehearsal).
pub fn own_arguments(arguments: &[OsString]) -> (Vec<OsString>, bool) {
    let mut own = Vec::new();
    let mut rehearsal = false;
    let mut rest = arguments.iter();
    own.extend(rest.next().cloned());
    while let Some(argument) = rest.next() {
        match argument.as_bytes() {
            b"-f" => rehearsal = true,
            // The value belongs to it.
            b"-t" | b"-N" => {
                rest.next();
            }
            b"-o" => {
                own.push(argument.clone());
                own.extend(rest.next().cloned());
            }
            flags if flags.len() > 1 && flags[0] == b'-' && flags[1..].iter().all(|flag| b"snv".contains(flag)) => {
                own.extend(flags.contains(&b'v').then(|| OsString::from("-v")));
            }
            _ => own.push(argument.clone()),
        }
    }
    (own, rehearsal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_mount_are_dropped_and_the_rest_kept() {
        for (given, kept, rehearsal) in [
            ("mount.swamp s3://b /mnt -o ro", "mount.swamp s3://b /mnt -o ro", false),
            ("mount.swamp s3://b /mnt -sn -v -o rw -t fuse.x -N 5", "mount.swamp s3://b /mnt -v -o rw", false),
            ("mount.swamp s3://b /mnt -f -n", "mount.swamp s3://b /mnt", true),
            ("mount.swamp s3://b /mnt -o -f", "mount.swamp s3://b /mnt -o -f", false),
        ] {
            let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
            assert_eq!(own_arguments(&words(given)), (words(kept), rehearsal), "{given}");
        }
        let named = |name: &str| is_helper_name(&[OsString::from(name)]);
        assert!(named("/sbin/mount.fuse.swamp-mount") && named("mount.swamp") && !named("/mount.d/swamp-mount"));
    }
}
