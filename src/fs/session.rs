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

/// The session's configuration: as many threads as cores, each with its own descriptor; the kernel checks permissions.
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
    config.n_threads = Some(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(2, 16)));
    config.clone_fd = true;
    config
}
