//! The life of a mount: background start, supervisor, checks, the lock on the cache root, control socket, signals, and its end.
//!
//! May depend on everything but `cli`. Invariants: one process holds a cache root, from before its engine starts until
//! after it closed; a failed start leaves nothing mounted; whatever ends a mount, data that is not in the bucket is
//! pushed before the process ends, or the user is told where it is kept and how to push it.

pub mod busy;
pub mod client;
pub mod control;
pub mod daemon;
mod device;
mod error;
mod finish;
pub mod headless;
pub mod instance;
mod kernel;
mod link;
pub mod logging;
pub mod mountinfo;
pub mod mountpoint;
pub mod registry;
pub mod session;
mod signals;
pub mod store;
pub mod supervisor;
pub mod unmount;

pub use error::MountError;

use crate::config::{CacheConfig, StoreConfig};

/// How a mount or a flush of what it left behind ended.
#[derive(Clone, Debug)]
pub enum End {
    /// Everything is in the bucket.
    Pushed,
    /// Some data is only on this machine.
    Unpushed(control::Unpushed),
}

/// The command that pushes what a cache root holds, as a user would type it.
pub fn flush_command(store: &StoreConfig, cache: &CacheConfig) -> String {
    let mut words = vec!["swamp-mount".to_owned(), "flush".to_owned()];
    words.extend(store.to_arguments());
    if cache.given {
        words.extend(["--cache-dir".to_owned(), cache.root.display().to_string()]);
    }
    words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ")
}

/// A word as a shell takes it.
fn quote(word: &str) -> String {
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !word.is_empty() && word.chars().all(harmless) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Now, as ISO-8601 in UTC with whole seconds.
pub(crate) fn utc_now() -> String {
    let now = time::OffsetDateTime::now_utc();
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        now.year(),
        u8::from(now.month()),
        now.day(),
        now.hour(),
        now.minute(),
        now.second()
    )
}

/// Writes a small file so that readers see the old or the new content and nothing between, also after a power cut.
pub(crate) fn write_atomically(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let mut file = options.open(&temporary)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err()
        && let Err(error) = std::fs::remove_file(&temporary)
    {
        tracing::warn!("cannot remove {}: {error}", temporary.display());
    }
    written?;
    path.parent().map_or(Ok(()), |dir| std::fs::File::open(dir)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_a_shell() {
        for (word, quoted) in
            [("s3://b/p", "s3://b/p"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("", "''"), ("$HOME", "'$HOME'")]
        {
            assert_eq!(quote(word), quoted);
        }
    }
}
