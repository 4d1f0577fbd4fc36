//! Where log lines go, and how they look: UTC time, level, module, message.
//!
//! Depends on tracing. RUST_LOG beats `-v`. A log file is 0600, appended to, and put aside as `.1` when it has grown.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use super::MountError;

/// A log longer than this is put aside when it is opened.
const LONGEST_LOG: u64 = 10 * 1024 * 1024;

struct Utc;

impl FormatTime for Utc {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let now = time::OffsetDateTime::now_utc();
        write!(
            w,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z",
            now.year(),
            u8::from(now.month()),
            now.day(),
            now.hour(),
            now.minute(),
            now.second(),
            now.millisecond()
        )
    }
}

/// Writes one line to stderr in the form of the log: for a process that serves nothing and so has no log of its own.
pub(super) fn line(level: &str, text: &str) {
    let mut line = String::new();
    // Formatting into a string does not fail.
    if Utc.format_time(&mut Writer::new(&mut line)).is_ok() {
        eprintln!("{line} {level:>5} swamp_mount::mount::supervisor: {text}");
    }
}

/// Who speaks: a command tells only what went wrong, a mount also what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    /// A command in a terminal.
    Command,
    /// A mount.
    Mount,
}

/// Sends log lines to stderr.
pub fn to_stderr(voice: Voice, verbosity: u8) {
    install(tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).with_timer(Utc), voice, verbosity);
}

/// Sends log lines to a file.
pub fn to_file(file: File, voice: Voice, verbosity: u8) {
    install(tracing_subscriber::fmt().with_writer(Mutex::new(file)).with_ansi(false).with_timer(Utc), voice, verbosity);
}

/// Opens a log file, putting a long one aside.
pub fn open(path: &Path) -> Result<File, MountError> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() > LONGEST_LOG) {
        let mut aside = path.as_os_str().to_owned();
        aside.push(".1");
        std::fs::rename(path, &aside).map_err(MountError::io("put aside", path))?;
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    file.map_err(MountError::io("write the log file", path))
}

fn filter(voice: Voice, verbosity: u8) -> EnvFilter {
    let default = match (voice, verbosity) {
        (Voice::Command, 0) => "error,swamp_mount=warn",
        (Voice::Mount, 0) | (Voice::Command, 1) => "warn,swamp_mount=info",
        (Voice::Mount, 1) | (Voice::Command, 2) => "info,swamp_mount=debug",
        _ => "debug,swamp_mount=trace",
    };
    match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(text) if !text.is_empty() => EnvFilter::new(text),
        _ => EnvFilter::new(default),
    }
}

fn install<W>(
    builder: tracing_subscriber::fmt::SubscriberBuilder<
        tracing_subscriber::fmt::format::DefaultFields,
        tracing_subscriber::fmt::format::Format<tracing_subscriber::fmt::format::Full, Utc>,
        tracing_subscriber::filter::LevelFilter,
        W,
    >,
    voice: Voice,
    verbosity: u8,
) where
    W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    // A second call in one process (tests) keeps the first: losing a log setting is no reason to fail.
    if builder.with_env_filter(filter(voice, verbosity)).try_init().is_err() {
        tracing::debug!("logging was set up before");
    }
}
