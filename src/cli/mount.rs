//! `swamp-mount SOURCE MOUNTPOINT`.
//!
//! Depends on `mount`. In the background by default: the same arguments are run again by a child, and this process waits
//! for its word. Whichever process mounts divides into a supervisor and a worker first.

use std::ffi::OsString;
use std::path::Path;

use super::command_line::Parsed;
use super::{Ended, output};
use crate::config::{CacheConfig, Environment, MountConfig};
use crate::mount::daemon::{self, Reporter};
use crate::mount::logging::{self, Voice};
use crate::mount::supervisor::{self, Role};
use crate::mount::{End, MountError, session};

pub fn run(parsed: &Parsed, arguments: &[OsString], environment: &Environment) -> Result<Ended, MountError> {
    let args = &parsed.cli.mount;
    if let Some((invocation, mut reporter)) = daemon::in_background()? {
        // The parent has said what there is to say about the options.
        let prepared = args.config(invocation, environment, |_| ()).map_err(MountError::from);
        return serve(prepared, &mut reporter);
    }
    let config = args.config(parsed.invocation, environment, output::notice)?;
    if parsed.rehearsal {
        return Ok(Ended::Done);
    }
    if args.has_default_mountpoint() {
        make_directory(&config.mountpoint)?;
    }
    if config.foreground {
        return serve(Ok(config), &mut Reporter::Foreground);
    }
    logging::to_stderr(Voice::Command, config.verbosity);
    daemon::start(arguments, parsed.invocation, session::log_path(&config), output::notice)?;
    if config.verbosity > 0 {
        let CacheConfig { root, .. } = &config.cache;
        eprintln!("mounted {} at {}; local state in {}", config.store, config.mountpoint.display(), root.display());
    }
    Ok(Ended::Done)
}

/// Makes the mountpoint that nobody named.
fn make_directory(path: &Path) -> Result<(), MountError> {
    match std::fs::create_dir(path) {
        // A dead mount cannot be looked at, and is there all the same.
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(MountError::io("make", path)(error)),
        _ => Ok(()),
    }
}

fn serve(config: Result<MountConfig, MountError>, reporter: &mut Reporter) -> Result<Ended, MountError> {
    match config.and_then(|config| divide(&config, reporter)) {
        Ok(ended) => Ok(ended),
        Err(error) => match reporter.failed(error) {
            Some(error) => Err(error),
            None => Ok(Ended::Failed),
        },
    }
}

/// The supervisor comes back here when its worker has ended, the worker when the mount has.
fn divide(config: &MountConfig, reporter: &mut Reporter) -> Result<Ended, MountError> {
    let link = match config.supervise {
        true => match supervisor::begin(config, reporter)? {
            Role::Worker(link) => Some(link),
            Role::Over(code) => return Ok(Ended::As(code)),
        },
        false => None,
    };
    // The log says what is left, which is stderr in the foreground.
    Ok(match session::run(config, reporter, link)? {
        End::Pushed => Ended::Done,
        End::Unpushed(_) => Ended::Unpushed,
    })
}
