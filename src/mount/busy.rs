//! Who keeps a mountpoint busy.
//!
//! Reads /proc only (links and maps, never the files behind them), so a hanging mount cannot block it. Best effort: what
//! other users' processes do is visible to root alone.

use std::fmt;
use std::path::{Path, PathBuf};

/// One reason why a mountpoint cannot be unmounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocker {
    /// A process uses something below it.
    Process {
        /// Process id.
        pid: u32,
        /// Name of the program.
        name: String,
        /// How: `working directory`, `open file …`, …
        how: String,
    },
    /// Something is mounted below it.
    Mount(PathBuf),
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { pid, name, how } => write!(f, "{name} (pid {pid}): {how}"),
            Self::Mount(path) => write!(f, "{} is mounted below it", path.display()),
        }
    }
}

/// Everything found that uses `mountpoint`; one line per process.
pub fn blockers(mountpoint: &Path) -> Vec<Blocker> {
    let mut found = Vec::new();
    match super::mountinfo::below(mountpoint) {
        Ok(below) => found.extend(below.into_iter().map(|mounted| Blocker::Mount(mounted.mountpoint))),
        Err(error) => tracing::warn!("cannot read the list of mounts: {error}"),
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return found };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        if let Some(how) = use_of(&process.path(), mountpoint) {
            let name = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default().trim().to_owned();
            found.push(Blocker::Process { pid, name, how });
        }
    }
    found
}

fn use_of(process: &Path, mountpoint: &Path) -> Option<String> {
    // Processes come and go, and those of others are closed to us: a link that cannot be read is no answer.
    let inside = |link: &Path| std::fs::read_link(link).ok().filter(|target| target.starts_with(mountpoint));
    if let Some(target) = inside(&process.join("cwd")) {
        return Some(format!("working directory {}", target.display()));
    }
    if let Some(target) = inside(&process.join("root")) {
        return Some(format!("root directory {}", target.display()));
    }
    if let Some(target) = inside(&process.join("exe")) {
        return Some(format!("runs {}", target.display()));
    }
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    if let Some(target) = descriptors.filter_map(|fd| inside(&fd.path())).next() {
        return Some(format!("open {}", target.display()));
    }
    let maps = std::fs::read_to_string(process.join("maps")).unwrap_or_default();
    let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])));
    mapped.filter(|path| path.starts_with(mountpoint)).map(|path| format!("maps {}", path.display())).next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_named_with_what_it_uses() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().canonicalize().expect("a path");
        let mut child = Command::new("sleep").arg("60").current_dir(&dir).stdin(Stdio::null()).spawn().expect("sleep");
        let found = blockers(&dir);
        child.kill().expect("kill");
        child.wait().expect("wait");
        let named = |blocker: &Blocker| matches!(blocker, Blocker::Process { pid, how, .. } if *pid == child.id() && how.contains("working directory"));
        assert!(found.iter().any(named), "{found:?}");
    }
}
