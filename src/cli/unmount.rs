//! `swamp-mount unmount MOUNTPOINT [--timeout SECS]`.
//!
//! Depends on `mount`. The mount's own process does it; this one shows progress and says what is left.

use super::arguments::UnmountArgs;
use super::target::{self, Target};
use super::{Ended, output, report_end};
use crate::config::Environment;
use crate::mount::control::{Request, Response};
use crate::mount::{End, MountError, client, mountinfo, mountpoint, unmount};

pub fn run(args: &UnmountArgs, environment: &Environment) -> Result<Ended, MountError> {
    let target = target::find(&args.mountpoint, environment)?;
    let Some(known) = &target.running else { return take_away_dead(&target) };
    let timeout_ms = args.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    let progress = output::Progress::new();
    let request = Request::Unmount { timeout_ms };
    let answer = client::request(&known.record.cache_root, &request, |pending, _| progress.update(&pending));
    progress.finish();
    match answer.map_err(|e| target.no_answer(&e))? {
        Response::Unpushed { unpushed } => Ok(report_end(&End::Unpushed(unpushed))),
        Response::Failed { message } => Err(MountError::Control(message)),
        _ => Ok(Ended::Done),
    }
}

/// A mount whose process is gone can still be taken off the tree.
fn take_away_dead(target: &Target) -> Result<Ended, MountError> {
    let path = &target.path;
    let mounted = mountinfo::at(path).map_err(MountError::system("read the list of mounts"))?;
    let Some(mounted) = mounted.filter(|mounted| mounted.is_ours() && mountpoint::is_dead(path)) else {
        return Err(target.nobody());
    };
    unmount::detach(path, Some(&mounted.device)).map_err(|e| MountError::Control(e.to_string()))?;
    output::notice(&format!(
        "took away the dead mount at {}: its process had ended without unmounting",
        path.display()
    ));
    let Some(known) = &target.leftover else { return Ok(Ended::Done) };
    eprintln!(
        "Changes that are not in the bucket are kept in {} and are pushed with:\n  {}",
        known.record.cache_root.display(),
        known.record.flush_command
    );
    Ok(Ended::Unpushed)
}
