//! How the kernel is asked to mount.

use fuser::{Config, MountOption, SessionACL};

/// What the user chose about the mount itself.
#[derive(Clone, Debug)]
pub struct FsOptions {
    /// Other users may use it.
    pub allow_other: bool,
    /// Mounted read-only.
    pub read_only: bool,
    /// What mount(8) shows as the source.
    pub source_name: String,
}

/// The configuration of a session, of which there are several on one connection; the kernel checks permissions.
pub fn session_config(options: &FsOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.source_name.replace(',', "\\,")),
        MountOption::Subtype("swamp-mount".into()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config
}
