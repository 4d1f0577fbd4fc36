//! Which mount a MOUNTPOINT or a repository on the command line means.
//!
//! Depends on `mount`. The registry leads to the cache root, whose socket is spoken to.

use std::path::{Path, PathBuf};

use crate::config::{Environment, Invocation, StoreConfig, absolute, registry_dirs};
use crate::mount::registry::{self, Known};
use crate::mount::{MountError, client, control::Phase, mountinfo, mountpoint};

/// A mountpoint, and what is known about it.
pub struct Target {
    /// Canonical as far as possible.
    pub path: PathBuf,
    /// The running mount there, or the one that still pushes what was written there.
    pub running: Option<Known>,
    /// A mount that was there and ended without pushing everything.
    pub leftover: Option<Known>,
}

/// All cache roots that this user has.
pub fn known(environment: &Environment) -> Vec<Known> {
    registry::list(&registry_dirs(Invocation::User, environment))
}

/// Looks a mountpoint up.
pub fn find(given: &Path, environment: &Environment) -> Result<Target, MountError> {
    let given = absolute(given)?;
    // A mountpoint that was removed meanwhile may still have a process that pushes.
    let path = mountpoint::canonical(&given).unwrap_or(given);
    let shown = path.display().to_string();
    let here = known(environment).into_iter().filter(|known| known.record.mountpoint.as_ref() == Some(&shown));
    let (mut running, leftovers): (Vec<_>, Vec<_>) = here.partition(|known| known.holder.is_some());
    if running.len() > 1 {
        let is_mounted = |known: &Known| {
            client::status(&known.record.cache_root).is_ok_and(|status| status.phase != Phase::Flushing)
        };
        running.sort_by_key(|known| !is_mounted(known));
    }
    Ok(Target { path, running: running.into_iter().next(), leftover: leftovers.into_iter().next() })
}

/// The running mounts of a datastore.
pub fn mounts_of(store: &StoreConfig, environment: &Environment) -> Result<Vec<Target>, MountError> {
    let of_it = known_of(store, environment)?.into_iter().filter(|known| known.holder.is_some());
    let at = |known: Known| {
        let path = PathBuf::from(known.record.mountpoint.clone()?);
        Some(Target { path, running: Some(known), leftover: None })
    };
    Ok(of_it.filter_map(at).collect())
}

/// All cache roots of a datastore.
pub fn known_of(store: &StoreConfig, environment: &Environment) -> Result<Vec<Known>, MountError> {
    let identity = store.identity(environment)?;
    Ok(known(environment).into_iter().filter(|known| known.record.identity == identity).collect())
}

impl Target {
    /// Why there is nobody to speak to.
    pub fn nobody(&self) -> MountError {
        let path = self.path.display();
        let mounted = mountinfo::at(&self.path).ok().flatten().filter(mountinfo::Mounted::is_ours);
        MountError::Control(match (mounted, &self.leftover) {
            (Some(_), _) => format!(
                "the mount at {path} is not one of yours (another user's, or made with another XDG_STATE_HOME or HOME); `umount {path}` ends it, and its process goes on pushing"
            ),
            (None, Some(known)) => format!(
                "nothing is mounted at {path}; what its last mount left is pushed with:\n  {}",
                known.record.flush_command
            ),
            (None, None) => {
                format!("nothing of swamp-mount is mounted at {path}; `swamp-mount status` lists all mounts")
            }
        })
    }

    /// An error of the control socket, in words.
    pub fn no_answer(&self, error: &std::io::Error) -> MountError {
        let pid = self.running.as_ref().and_then(|known| known.holder.as_ref()).map(|holder| holder.pid);
        let pid = pid.map(|pid| format!(" (process {pid})")).unwrap_or_default();
        MountError::Control(format!("the mount at {}{pid} does not answer: {error}", self.path.display()))
    }
}
