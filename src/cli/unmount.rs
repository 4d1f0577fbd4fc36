//! `swamp-mount unmount MOUNTPOINT [--timeout SECS]`, or `--repo DIR` instead of MOUNTPOINT.
//!
//! Depends on `mount`. The mount's own process does it; this one shows progress and says what is left.

use super::arguments::UnmountArgs;
use super::store_args::StoreArgs;
use super::target::{self, Target};
use super::{Ended, output, report_end};
use crate::config::{ConfigError, Environment};
use crate::mount::control::{Request, Response};
use crate::mount::{End, MountError, client, mountinfo, mountpoint, unmount};

pub fn run(args: &UnmountArgs, environment: &Environment) -> Result<Ended, MountError> {
    let target = find(args, environment)?;
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

fn find(args: &UnmountArgs, environment: &Environment) -> Result<Target, MountError> {
    if let Some(mountpoint) = &args.mountpoint {
        return target::find(mountpoint, environment);
    }
    let dir = args.repo.clone().ok_or(ConfigError::Missing("MOUNTPOINT"))?;
    let chosen = StoreArgs::of_repo(dir).choose_with(&None, &None, environment, output::notice)?.0;
    let mut mounts = target::mounts_of(&chosen.store, environment)?;
    match (mounts.len(), &chosen.repo) {
        (1, _) => Ok(mounts.remove(0)),
        // Perhaps a dead mount, where it usually is.
        (0, Some(repo)) => target::find(&repo.mountpoint(), environment),
        _ => {
            let paths: Vec<String> = mounts.iter().map(|mount| mount.path.display().to_string()).collect();
            Err(MountError::Control(format!("{} is mounted at {}: name one", chosen.store, paths.join(", "))))
        }
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
