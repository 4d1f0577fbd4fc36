//! Background start: the command re-executes itself and waits until the child says that the mount is ready.
//!
//! Depends on `signals`. The child's stdout is a pipe to the parent, on which it sends lines of JSON: notices, then
//! `ready` or `failed`. Until then it shares the parent's stderr, so that even a panic is seen; afterwards stdout is
//! /dev/null and stderr the log file. Invariants: the parent ends with success only after `ready`; a child whose parent was
//! interrupted ends too, and takes its mount away.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;

use super::MountError;
use super::signals::Signals;
use crate::config::Invocation;

/// Set for the child; its value says who started the parent.
const CHILD_ENV: &str = "SWAMP_MOUNT_BACKGROUND";

/// How long an interrupted child may take to clean up.
const CLEANUP_PATIENCE: Duration = Duration::from_secs(15);

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    Notice(String),
    Ready,
    Failed(String),
}

/// How a mount tells whoever started it how the start goes.
#[derive(Debug)]
pub enum Reporter {
    /// To stderr and the log; the process stays where it is.
    Foreground,
    /// To the waiting parent.
    Background(File),
}

impl Reporter {
    /// Something the user should know.
    pub fn notice(&mut self, text: &str) {
        match self {
            Self::Foreground => tracing::warn!("{text}"),
            Self::Background(_) => self.send(&Message::Notice(text.to_owned())),
        }
    }

    /// The mount answers. In the background, this is where the process lets go of the terminal.
    pub fn ready(&mut self, log: &Path) -> Result<(), MountError> {
        if matches!(self, Self::Background(_)) {
            let log = super::logging::open(log)?;
            rustix::stdio::dup2_stderr(&log).map_err(|e| MountError::system("redirect stderr")(e.into()))?;
            self.send(&Message::Ready);
            *self = Self::Foreground;
        }
        Ok(())
    }

    /// The mount could not be made. Returns the error for the caller to show, if nobody else does.
    pub fn failed(&mut self, error: MountError) -> Option<MountError> {
        match self {
            Self::Foreground => Some(error),
            Self::Background(_) => {
                tracing::error!("{error}");
                self.send(&Message::Failed(error.to_string()));
                None
            }
        }
    }

    fn send(&mut self, message: &Message) {
        let Self::Background(pipe) = self else { return };
        let sent = serde_json::to_vec(message).map_err(std::io::Error::other).and_then(|mut line| {
            line.push(b'\n');
            pipe.write_all(&line)
        });
        if let Err(error) = sent {
            tracing::warn!("the process that started this one no longer listens: {error}");
        }
    }
}

/// In the child: who started the parent, and the way to report to it. Leaves the terminal's session.
pub fn in_background() -> Result<Option<(Invocation, Reporter)>, MountError> {
    let Some(value) = std::env::var_os(CHILD_ENV) else { return Ok(None) };
    let invocation = if value == "mount-helper" { Invocation::MountHelper } else { Invocation::User };
    let failed = |what| move |e: rustix::io::Errno| MountError::system(what)(e.into());
    let pipe: OwnedFd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3).map_err(failed("take the pipe"))?;
    let null = File::options().write(true).open("/dev/null").map_err(MountError::io("open", "/dev/null"))?;
    rustix::stdio::dup2_stdout(&null).map_err(failed("redirect stdout"))?;
    // Leading a session already (started by hand with the variable set) is as good.
    if let Err(error) = rustix::process::setsid() {
        tracing::debug!("no session of its own: {error}");
    }
    Ok(Some((invocation, Reporter::Background(File::from(pipe)))))
}

/// In the parent: starts the child with the same arguments and waits for its word. `notice` gets what the user should know;
/// `log` is where to look when the child dies without a word.
pub fn start(
    arguments: &[OsString],
    invocation: Invocation,
    log: PathBuf,
    notice: impl Fn(&str),
) -> Result<(), MountError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(MountError::system("start a runtime"))?;
    runtime.block_on(async {
        let mut signals = Signals::listen().map_err(MountError::system("listen to signals"))?;
        let (mut child, pipe) = spawn(arguments, invocation)?;
        let pipe = pipe::Receiver::from_owned_fd(pipe).map_err(MountError::system("read from the background process"))?;
        let mut lines = BufReader::new(pipe).lines();
        loop {
            let line = tokio::select! {
                biased;
                line = lines.next_line() => line.map_err(MountError::system("read from the background process"))?,
                signal = signals.next() => {
                    end(&mut child).await?;
                    return Err(MountError::Background(format!("interrupted by {}; nothing is mounted", signal.name())));
                }
            };
            match line.as_deref().map(serde_json::from_str) {
                Some(Ok(Message::Notice(text))) => notice(&text),
                Some(Ok(Message::Ready)) => return Ok(()),
                Some(Ok(Message::Failed(text))) => {
                    wait(&mut child).await?;
                    return Err(MountError::Background(text));
                }
                Some(Err(error)) => tracing::warn!("the background process said something strange: {error}"),
                None => {
                    let status = wait(&mut child).await?;
                    return Err(MountError::Background(format!(
                        "the background process ended without a word ({status}); see its log {} or try again with --foreground -v",
                        log.display()
                    )));
                }
            }
        }
    })
}

fn spawn(arguments: &[OsString], invocation: Invocation) -> Result<(Child, OwnedFd), MountError> {
    let (reader, writer) = std::io::pipe().map_err(MountError::system("make a pipe"))?;
    let program = std::env::current_exe().map_err(MountError::system("find the path of this program"))?;
    let mut command = Command::new(&program);
    if let Some((name, rest)) = arguments.split_first() {
        command.arg0(name).args(rest);
    }
    let value = if invocation == Invocation::MountHelper { "mount-helper" } else { "user" };
    command.env(CHILD_ENV, value).stdin(Stdio::null()).stdout(writer).stderr(Stdio::inherit());
    // The command keeps the writing end open until it is dropped, at the end of this function.
    let child = command.spawn().map_err(MountError::io("start", program))?;
    Ok((child, reader.into()))
}

/// Asks the child to end, and makes it when it does not.
async fn end(child: &mut Child) -> Result<(), MountError> {
    for (signal, patience) in [(Signal::TERM, CLEANUP_PATIENCE), (Signal::KILL, CLEANUP_PATIENCE)] {
        match kill_process(Pid::from_child(child), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => tracing::warn!("cannot signal the background process: {error}"),
        }
        if let Ok(status) = tokio::time::timeout(patience, wait(child)).await {
            return status.map(drop);
        }
    }
    Err(MountError::Background(format!("the background process {} does not end", child.id())))
}

async fn wait(child: &mut Child) -> Result<ExitStatus, MountError> {
    loop {
        // Short and rare: not worth a handler of SIGCHLD.
        match child.try_wait().map_err(MountError::system("wait for the background process"))? {
            Some(status) => return Ok(status),
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
