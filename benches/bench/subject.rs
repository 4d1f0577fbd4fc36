//! What is measured: a directory of this disk, swamp-mount with different options, rclone, s3fs, mountpoint-s3.
//!
//! Invariants: every mount is taken off and its process reaped when it is dropped; all state lies in temporary directories, which
//! go with [`clear`].

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Result;
use super::lab::Lab;
use super::process::Process;
use super::report::is_peer;

/// How long a mount may take to come or go.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program that is measured.
pub const SWAMP_MOUNT: &str = env!("CARGO_BIN_EXE_swamp-mount");

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A directory on the disk that the caches lie on.
    Native,
    /// As it is by default.
    Swamp,
    /// `--passthrough`.
    SwampPassthrough,
    /// `--read-only`.
    SwampReadOnly,
    Rclone,
    S3fs,
    MountpointS3,
}

impl Subject {
    /// Everybody who plays in the rows with peers.
    pub const SESSIONS: [Self; 6] =
        [Self::Native, Self::Swamp, Self::SwampPassthrough, Self::Rclone, Self::S3fs, Self::MountpointS3];

    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Swamp => "swamp",
            Self::SwampPassthrough => "swamp-passthrough",
            Self::SwampReadOnly => "swamp-ro",
            Self::Rclone => "rclone",
            Self::S3fs => "s3fs",
            Self::MountpointS3 => "mount-s3",
        }
    }

    /// Whether it can run here.
    pub fn installed(self) -> bool {
        let program = self.name();
        if !is_peer(program) {
            return true;
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
    }

    fn command(self, lab: &Lab, home: &Path, at: &Path, options: &[&str]) -> Option<Command> {
        let (bucket, cache) = (Lab::bucket(), home.join("cache"));
        let swamp = |own: &[&str]| {
            let mut command = Command::new(SWAMP_MOUNT);
            command.args(["--foreground", "--flush-after", "3600", "--flush-max-age", "3600"]).args(own).args(options);
            if !options.contains(&"--refresh") {
                command.args(["--refresh", "3600"]);
            }
            command.arg("--cache-dir").arg(&cache).arg(Lab::source()).arg(at);
            command
        };
        let mut command = match self {
            Self::Native => return None,
            Self::Swamp => swamp(&[]),
            Self::SwampPassthrough => swamp(&["--passthrough"]),
            Self::SwampReadOnly => swamp(&["--read-only"]),
            Self::Rclone => {
                // Its own time before it writes back (5 s) stays: it is what a user waits for.
                let mut command = Command::new("rclone");
                command.args(["mount", "--vfs-cache-mode", "full", "--dir-cache-time", "1h", "--config", "/dev/null"]);
                command.args(["--s3-provider", "Other", "--s3-env-auth", "--s3-endpoint", &lab.server.endpoint()]);
                command.arg("--cache-dir").arg(&cache).arg(format!(":s3:{bucket}")).arg(at);
                command
            }
            Self::S3fs => {
                let mut command = Command::new("s3fs");
                command.arg(bucket).arg(at).args(["-f", "-o", &format!("url={}", lab.server.endpoint())]);
                command.args(["-o", "use_path_request_style", "-o", &format!("use_cache={}", cache.display())]);
                command
            }
            Self::MountpointS3 => {
                let mut command = Command::new("mount-s3");
                command.arg(bucket).arg(at).args(["--foreground", "--allow-delete", "--allow-overwrite"]);
                command.args(["--force-path-style", "--region", "us-east-1", "--endpoint-url", &lab.server.endpoint()]);
                command.arg("--cache").arg(&cache);
                command
            }
        };
        // rclone refuses to start with a bundle of certificates from the environment.
        command.env_remove("AWS_CA_BUNDLE").envs(lab.server.env()).env("XDG_STATE_HOME", home.join("state"));
        for (theirs, ours) in [("AWSACCESSKEYID", "AWS_ACCESS_KEY_ID"), ("AWSSECRETACCESSKEY", "AWS_SECRET_ACCESS_KEY")]
        {
            if let Some((_, value)) = lab.server.env().into_iter().find(|(name, _)| *name == ours) {
                command.env(theirs, value);
            }
        }
        Some(command)
    }

    /// Mounts with an empty cache.
    pub fn mount(self, lab: &Lab) -> Result<Mounted> {
        self.mount_with(lab, &[])
    }

    /// The same, with more options for swamp-mount.
    pub fn mount_with(self, lab: &Lab, options: &[&str]) -> Result<Mounted> {
        let directory = TempDir::with_prefix("swamp-bench.")?;
        let home = directory.path().to_owned();
        HOMES.lock().unwrap_or_else(PoisonError::into_inner).push(directory);
        // Peers check that the cache exists; swamp-mount makes its own, private.
        let (at, cache) = (home.join("mnt"), home.join("cache"));
        std::fs::create_dir(&at)?;
        if matches!(self, Self::S3fs | Self::MountpointS3) {
            std::fs::create_dir(&cache)?;
        }
        let mut mounted = Mounted { subject: self, home, at: at.clone(), child: None };
        mounted.start(lab, options)?;
        Ok(mounted)
    }
}

/// A subject at work.
pub struct Mounted {
    pub subject: Subject,
    home: PathBuf,
    pub at: PathBuf,
    child: Option<Child>,
}

impl Mounted {
    fn start(&mut self, lab: &Lab, options: &[&str]) -> Result<()> {
        let Some(mut command) = self.subject.command(lab, &self.home, &self.at, options) else { return Ok(()) };
        let log = std::fs::File::create(self.home.join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = self.child.insert(command.spawn()?);
        let began = Instant::now();
        while !is_mounted(&self.at)? {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(self.home.join("log"))?;
                return Err(format!("{} ended with {status}: {log}", self.subject.name()).into());
            }
            if began.elapsed() > PATIENCE {
                return Err(format!("{} does not mount", self.subject.name()).into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    pub fn name(&self) -> &'static str {
        self.subject.name()
    }

    /// `swamp-mount flush`.
    pub fn flush(&self) -> Result<()> {
        self.ask("flush").map(drop)
    }

    /// `swamp-mount status --json`.
    pub fn status(&self) -> Result<serde_json::Value> {
        let all: serde_json::Value = serde_json::from_slice(&self.ask("status --json")?)?;
        Ok(all)
    }

    fn ask(&self, what: &str) -> Result<Vec<u8>> {
        // A mount can be used a moment before it is on the list of mounts, and says so when it is.
        let began = Instant::now();
        while !std::fs::read_to_string(self.home.join("log"))?.contains(" mounted ") {
            if began.elapsed() > PATIENCE {
                return Err("the mount does not say that it is there".into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let mut command = Command::new(SWAMP_MOUNT);
        command.env("XDG_STATE_HOME", self.home.join("state"));
        let output = command.args(what.split(' ')).arg(&self.at).output()?;
        if output.status.success() { Ok(output.stdout) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
    }

    /// The files in which it keeps contents.
    pub fn cache_files(&self) -> Vec<PathBuf> {
        files_below(self.home.join("cache"))
    }

    /// The process that does its work; a directory of the disk has none.
    pub fn process(&self) -> Result<Process> {
        let pid = self.child.as_ref().ok_or("no process")?.id();
        // A supervisor has forked the one that works.
        let forked = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        Ok(Process(forked.split_whitespace().next().map_or(Ok(pid), str::parse)?))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // The process may be gone; what matters is that nothing is left.
            let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
            let _ = child.kill();
            let _ = child.wait();
        }
        let large = |path: &PathBuf| path.metadata().is_ok_and(|meta| meta.len() > 1 << 20);
        for file in files_below(self.home.clone()).into_iter().filter(large) {
            // It goes with its directory at the latest.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Directories of subjects, until the end: ext4 creates files slowly for minutes after many were removed, because it passes
/// over each inode that was freed lately. Only what is large goes before.
static HOMES: Mutex<Vec<TempDir>> = Mutex::new(Vec::new());

/// Removes what all subjects left.
pub fn clear() {
    HOMES.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn files_below(root: PathBuf) -> Vec<PathBuf> {
    let (mut files, mut todo) = (Vec::new(), vec![root]);
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(entry.path()),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    files
}

fn is_mounted(path: &Path) -> Result<bool> {
    let path = path.canonicalize()?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().any(|line| line.split(' ').nth(4) == path.to_str()))
}
