//! What is measured: a directory of this disk, swamp-mount with different options, rclone, s3fs.
//!
//! Invariants: every mount is taken off and its process reaped when it is dropped; all state lies in one temporary directory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::Result;
use super::lab::Lab;

/// How long a mount may take to come or go.
const PATIENCE: Duration = Duration::from_secs(60);

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
}

impl Subject {
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Swamp => "swamp",
            Self::SwampPassthrough => "swamp-passthrough",
            Self::SwampReadOnly => "swamp-ro",
            Self::Rclone => "rclone",
            Self::S3fs => "s3fs",
        }
    }

    /// Whether it can run here.
    pub fn installed(self) -> bool {
        let program = match self {
            Self::Rclone => "rclone",
            Self::S3fs => "s3fs",
            _ => return true,
        };
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
    }

    fn command(self, lab: &Lab, home: &Path, at: &Path) -> Option<Command> {
        let (bucket, cache) = (Lab::bucket(), home.join("cache"));
        let swamp = |options: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_swamp-mount"));
            command.args(["--foreground", "--refresh", "3600", "--flush-after", "3600", "--flush-max-age", "3600"]);
            command.args(options).arg("--cache-dir").arg(&cache).arg(format!("s3://{bucket}")).arg(at);
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
        let home = TempDir::with_prefix("swamp-bench.")?;
        // s3fs checks that the cache exists; swamp-mount makes its own, private.
        let (at, cache) = (home.path().join("mnt"), home.path().join("cache"));
        std::fs::create_dir(&at)?;
        if self == Self::S3fs {
            std::fs::create_dir(&cache)?;
        }
        let mut mounted = Mounted { subject: self, home, at: at.clone(), child: None };
        mounted.start(lab)?;
        Ok(mounted)
    }
}

/// A subject at work.
pub struct Mounted {
    pub subject: Subject,
    home: TempDir,
    pub at: PathBuf,
    child: Option<Child>,
}

impl Mounted {
    fn start(&mut self, lab: &Lab) -> Result<()> {
        let Some(mut command) = self.subject.command(lab, self.home.path(), &self.at) else { return Ok(()) };
        let log = std::fs::File::create(self.home.path().join("log"))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = self.child.insert(command.spawn()?);
        let began = Instant::now();
        while !is_mounted(&self.at)? {
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(self.home.path().join("log"))?;
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_swamp-mount"));
        command.env("XDG_STATE_HOME", self.home.path().join("state"));
        let output = command.arg("flush").arg(&self.at).output()?;
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
    }

    /// The files in which it keeps contents.
    pub fn cache_files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut todo = vec![self.home.path().join("cache")];
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

    /// Resident memory of its process, in bytes.
    pub fn memory(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.as_ref()?.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        // The process may be gone; what matters is that nothing is left.
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        let _ = child.kill();
        let _ = child.wait();
    }
}

fn is_mounted(path: &Path) -> Result<bool> {
    let path = path.canonicalize()?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().any(|line| line.split(' ').nth(4) == path.to_str()))
}
