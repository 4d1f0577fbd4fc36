//! `swamp-mount SOURCE MOUNTPOINT`.
//!
//! Depends on `mount`. In the background by default: the same arguments are run again by a child, and this process waits
//! for its word.

use std::ffi::OsString;
use std::path::Path;

use super::command_line::Parsed;
use super::{Ended, output};
use crate::config::{CacheConfig, Environment, MountConfig};
use crate::mount::daemon::{self, Reporter};
use crate::mount::logging::{self, Voice};
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
    match config.and_then(|config| session::run(&config, reporter)) {
        // The log says what is left, which is stderr in the foreground.
        Ok(End::Pushed) => Ok(Ended::Done),
        Ok(End::Unpushed(_)) => Ok(Ended::Unpushed),
        Err(error) => match reporter.failed(error) {
            Some(error) => Err(error),
            None => Ok(Ended::Failed),
        },
    }
}
