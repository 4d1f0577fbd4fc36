//! Options in the style of mount(8), `-o a,b=c`: what each means as an option of the command line.
//!
//! Depends on nothing. Invariant: an option is either translated, ignored on purpose (it is for mount(8) itself, or
//! already the case), or refused by name; none is dropped because nobody knew it.

use super::ConfigError;

/// Options for mount(8), systemd and the kernel that need nothing from us. `dev` and `suid` are added by `mount.fuse`;
/// neither kind of file exists on a mount, which is always `nodev,nosuid`.
const IGNORED: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "users",
    "nouser",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "atime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "async",
    "iversion",
    "noiversion",
    "silent",
    "loud",
    "mand",
    "nomand",
    "bg",
    "fg",
];

/// Long options that take no value.
const FLAGS: &[&str] = &[
    "read-only",
    "foreground",
    "force-path-style",
    "allow-other",
    "passthrough",
    "no-supervise",
    "unsafe-no-conditional-writes",
];

/// Long options with a value.
const VALUES: &[&str] = &[
    "region",
    "project",
    "endpoint-url",
    "prefix",
    "namespace",
    "repo",
    "cache-dir",
    "cache-size",
    "refresh",
    "flush-after",
    "flush-max-age",
    "sync",
    "uid",
    "gid",
    "umask",
    "request-timeout",
    "upload-concurrency",
    "download-concurrency",
    "log-file",
];

/// Translates one value of `-o` into long options of the command line.
///
/// `_` and `-` in names are the same. A comma in a value is written as `\,`. The last of `ro` and `rw` wins.
pub fn to_arguments(options: &str) -> Result<Vec<String>, ConfigError> {
    let mut arguments = Vec::new();
    for option in split(options) {
        if option.is_empty() {
            continue;
        }
        let refuse = |advice| Err(ConfigError::MountOption { option: option.clone(), advice });
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option.as_str(), None),
        };
        if name.starts_with("x-") || name.starts_with("X-") || name == "comment" {
            continue;
        }
        let long = name.replace('_', "-");
        match (name, value) {
            (name, None) if IGNORED.contains(&name) => {}
            ("ro", None) => arguments.push("--read-only".to_owned()),
            ("rw", None) => arguments.retain(|argument| argument != "--read-only"),
            // mount(8) means that writes reach the storage at once; waiting at fsync is the nearest there is.
            ("sync", None) => arguments.push("--sync=fsync".to_owned()),
            ("noexec", None) => arguments.push("--no-exec".to_owned()),
            ("noatime", None) => arguments.push("--no-atime".to_owned()),
            ("fsname" | "subtype", Some(_)) => {}
            ("remount", None) => return refuse("unmount and mount again instead"),
            ("nonempty", None) => return refuse("choose an empty directory as the mountpoint"),
            (_, None) if FLAGS.contains(&long.as_str()) => arguments.push(format!("--{long}")),
            (_, Some(_)) if FLAGS.contains(&long.as_str()) => return refuse("it takes no value"),
            (_, Some(value)) if VALUES.contains(&long.as_str()) => arguments.push(format!("--{long}={value}")),
            (_, None) if VALUES.contains(&long.as_str()) => return refuse("it needs a value, as in NAME=VALUE"),
            _ => return refuse("see swamp-mount --help for the options; each may be given to -o without its dashes"),
        }
    }
    Ok(arguments)
}

fn split(options: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = options.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, parts.last_mut()) {
            ('\\', Some(part)) if matches!(chars.peek(), Some(',' | '\\')) => part.extend(chars.next()),
            (',', _) => parts.push(String::new()),
            (c, Some(part)) => part.push(c),
            (_, None) => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_options_become_long_ones() {
        for (options, expected) in [
            ("", vec![]),
            ("ro", vec!["--read-only"]),
            ("ro,rw", vec![]),
            ("rw,ro", vec!["--read-only"]),
            ("allow_other,uid=5,gid=6,umask=027", vec!["--allow-other", "--uid=5", "--gid=6", "--umask=027"]),
            ("cache_dir=/a b,region=eu-west-1", vec!["--cache-dir=/a b", "--region=eu-west-1"]),
            ("cache-dir=/a", vec!["--cache-dir=/a"]),
            ("endpoint_url=http://h:1/?a=b", vec!["--endpoint-url=http://h:1/?a=b"]),
            ("prefix=a\\,b\\\\", vec!["--prefix=a,b\\"]),
            ("refresh=5,sync=fsync,foreground", vec!["--refresh=5", "--sync=fsync", "--foreground"]),
            ("sync", vec!["--sync=fsync"]),
            ("force_path_style,request_timeout=3", vec!["--force-path-style", "--request-timeout=3"]),
            ("unsafe_no_conditional_writes,log_file=/l", vec!["--unsafe-no-conditional-writes", "--log-file=/l"]),
            ("flush_after=1,flush_max_age=2", vec!["--flush-after=1", "--flush-max-age=2"]),
            ("upload_concurrency=1,download_concurrency=2", vec!["--upload-concurrency=1", "--download-concurrency=2"]),
            ("noauto,user,nofail,_netdev,defaults,x-systemd.automount,x-gvfs-name=a,comment=b", vec![]),
            ("dev,suid,nodev,nosuid,exec,relatime,fsname=a", vec![]),
            ("noexec,noatime", vec!["--no-exec", "--no-atime"]),
        ] {
            assert_eq!(to_arguments(options).expect(options), expected, "{options}");
        }
    }

    #[test]
    fn unknown_options_are_refused_by_name() {
        for (options, named) in [
            ("ro,big_writes", "big_writes"),
            ("password=secret", "password"),
            ("remount,ro", "remount"),
            ("nonempty", "nonempty"),
            ("region", "region"),
            ("allow_other=1", "allow_other"),
            ("ro=1", "ro=1"),
        ] {
            let error = to_arguments(options).expect_err(options).to_string();
            assert!(error.contains(named), "{options}: {error}");
        }
    }
}
