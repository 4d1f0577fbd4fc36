//! What is written: results to stdout; errors, notices and progress to stderr.
//!
//! Depends on `sync::status` for what progress is made of. A bar on a terminal; elsewhere a plain line now and then, and
//! none at all for what takes less than a second.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::mount::MountError;
use crate::mount::client::describe_pending;
use crate::sync::status::Pending;

/// What takes less is not worth a word.
const SILENT_FOR: Duration = Duration::from_secs(1);
/// Time between two plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows an error.
pub fn error(error: &dyn Display) {
    eprintln!("swamp-mount: {error}");
}

/// Shows something that the user should know.
pub fn notice(text: &str) {
    eprintln!("swamp-mount: {text}");
}

/// Writes a result to stdout. A reader that went away (`| head`) is no error.
pub fn result(text: &str) {
    let mut stdout = std::io::stdout();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    if let Err(error) = written {
        tracing::debug!("cannot write to stdout: {error}");
    }
}

/// A result as JSON, for machines.
pub fn json(value: &impl Serialize) -> Result<String, MountError> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n").map_err(|e| MountError::Control(format!("cannot write the result as JSON: {e}")))
}

/// Progress of a transfer.
pub struct Progress {
    started: Instant,
    bar: Option<ProgressBar>,
    /// The most that was seen to be left, in bytes, and when a line was last written.
    seen: RefCell<(u64, Option<Instant>)>,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {msg}");
            ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self { started: Instant::now(), bar, seen: RefCell::new((0, None)) }
    }

    /// Shows what is left.
    pub fn update(&self, pending: &Pending) {
        if self.started.elapsed() < SILENT_FOR || *pending == Pending::default() {
            return;
        }
        let mut seen = self.seen.borrow_mut();
        let left = pending.bytes.saturating_sub(pending.uploaded_bytes);
        seen.0 = seen.0.max(pending.bytes).max(left);
        match &self.bar {
            Some(bar) => {
                bar.set_length(seen.0);
                bar.set_position(seen.0 - left);
                bar.set_message(format!("{} to go", describe_pending(pending)));
            }
            None if seen.1.is_none_or(|last| last.elapsed() >= LINE_EVERY) => {
                seen.1 = Some(Instant::now());
                let done = indicatif::BinaryBytes(pending.uploaded_bytes);
                eprintln!("{} to go, {done} done", describe_pending(pending));
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
