//! Where local state lives when `--cache-dir` does not say so.
//!
//! Depends on `environment`. Acknowledged writes lie there, so it is never a cache directory that cleaners may empty.
//! Invariant: the same source finds the same directory again, however it was mounted.
//!
//! The state directory is, in this order: `$XDG_STATE_HOME/swamp-mount`; for a system mount (run by mount(8) as root, or
//! as root without a HOME) `/var/lib/swamp-mount`; `$HOME/.local/state/swamp-mount`. Root, who mounts by hand and through
//! fstab, uses the directory of a source that already exists in either of the last two. Below it each source has
//! `<readable name>-<hash of its identity>`, and `registry/` lists the known ones.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{ConfigError, Environment};

const SYSTEM_STATE: &str = "/var/lib/swamp-mount";

/// Who started this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invocation {
    /// A user, in a shell or a unit of their own.
    User,
    /// mount(8), for fstab or by hand.
    MountHelper,
}

/// The default cache root of a source.
pub fn default_cache_root(
    readable_name: &str,
    identity: &str,
    invocation: Invocation,
    environment: &Environment,
) -> Result<PathBuf, ConfigError> {
    let name = format!("{readable_name}-{}", short_hash(identity.as_bytes()));
    let candidates = state_dirs(invocation, environment);
    let existing = candidates.iter().map(|dir| dir.join(&name)).find(|dir| dir.is_dir());
    existing.or_else(|| candidates.first().map(|dir| dir.join(&name))).ok_or(ConfigError::NoStateDirectory)
}

/// Where known cache roots are recorded: in the first, and read from all.
pub fn registry_dirs(invocation: Invocation, environment: &Environment) -> Vec<PathBuf> {
    state_dirs(invocation, environment).iter().map(|dir| dir.join("registry")).collect()
}

/// 16 hexadecimal digits that tell apart whatever differs.
pub(crate) fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn state_dirs(invocation: Invocation, environment: &Environment) -> Vec<PathBuf> {
    if let Some(dir) = environment.absolute_path("XDG_STATE_HOME") {
        return vec![dir.join("swamp-mount")];
    }
    let of_user = environment.absolute_path("HOME").map(|home| home.join(".local/state/swamp-mount"));
    let of_system = (environment.uid == 0).then(|| Path::new(SYSTEM_STATE).to_owned());
    match invocation {
        Invocation::User => [of_user, of_system].into_iter().flatten().collect(),
        Invocation::MountHelper => [of_system, of_user].into_iter().flatten().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_directory_follows_the_documented_order() {
        use Invocation::{MountHelper, User};
        let both = [("XDG_STATE_HOME", "/x"), ("HOME", "/h")];
        for (uid, variables, invocation, expected) in [
            (1000, both, User, Some("/x/swamp-mount")),
            (0, both, MountHelper, Some("/x/swamp-mount")),
            (1000, [("HOME", "/h"), ("A", "")], User, Some("/h/.local/state/swamp-mount")),
            (1000, [("HOME", "/h"), ("XDG_STATE_HOME", "")], User, Some("/h/.local/state/swamp-mount")),
            (1000, [("HOME", "/h"), ("XDG_STATE_HOME", "relative")], User, Some("/h/.local/state/swamp-mount")),
            (1000, [("HOME", "/h"), ("A", "")], MountHelper, Some("/h/.local/state/swamp-mount")),
            (0, [("HOME", "/h"), ("A", "")], User, Some("/h/.local/state/swamp-mount")),
            (0, [("HOME", "/h"), ("A", "")], MountHelper, Some(SYSTEM_STATE)),
            (0, [("HOME", ""), ("A", "")], User, Some(SYSTEM_STATE)),
            (1000, [("HOME", ""), ("A", "")], User, None),
        ] {
            let root = default_cache_root("name", "no such identity", invocation, &Environment::of(uid, variables));
            let parent = root.ok().and_then(|root| root.parent().map(Path::to_owned));
            assert_eq!(parent, expected.map(PathBuf::from), "{uid} {variables:?} {invocation:?}");
        }
    }

    #[test]
    fn different_identities_have_different_directories_and_equal_ones_the_same() {
        let environment = Environment::of(1000, [("HOME", "/h")]);
        let root = |identity| default_cache_root("b", identity, Invocation::User, &environment).expect("a directory");
        assert_eq!(root("one"), root("one"));
        assert_ne!(root("one"), root("two"));
    }
}
