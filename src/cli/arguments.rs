//! What may be written on the command line, and its translation into the typed configuration.
//!
//! Depends on `config`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::store_args::{Chosen, StoreArgs};
use crate::config::{
    CacheConfig, ConfigError, EngineConfig, Environment, Invocation, MountConfig, absolute, agree, parse_cache_size,
};

const AFTER_HELP: &str = "\
SOURCE is BUCKET or s3://BUCKET[/PREFIX] for S3, gs://BUCKET[/PREFIX] for Google Cloud Storage, or file:///DIR for a
directory that plays the bucket. A bucket that is named like a command is written with its scheme, as in s3://status.
With --repo DIR the repository's .swamp.yaml (or SWAMP_DATASTORE) says what SOURCE is, here and in every command.

Exit codes: 0 done, 1 failed, 2 usage, 3 unmounted but some data is not in the bucket yet.";

/// Shows the datastore in a bucket as a directory tree, at once; files are fetched when they are read, and written back in
/// the background.
#[derive(Parser, Debug)]
#[command(name = "swamp-mount", version, after_help = AFTER_HELP, args_override_self = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, disable_help_subcommand = true)]
#[command(
    override_usage = "swamp-mount [OPTIONS] SOURCE MOUNTPOINT\n       swamp-mount [OPTIONS] --repo DIR [MOUNTPOINT]\n       swamp-mount <COMMAND>"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub mount: MountArgs,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show all mounts of this user and what ended ones left behind, or one mount.
    Status(StatusArgs),
    /// Return when everything written before is in the bucket; also pushes what an ended mount left behind.
    Flush(FlushArgs),
    /// Flush, then unmount.
    Unmount(UnmountArgs),
    /// Bring a cache directory up to date without a mount.
    Pull(TransferArgs),
    /// Push what changed in a cache directory without a mount.
    Push(TransferArgs),
    /// Check that a source can be reached and read, and say what to do when not.
    Verify(VerifyArgs),
    /// Look at the datastore's lock, or remove it.
    Lock(LockArgs),
    /// Turn an index of version 1 into shards (version 2), which large buckets need.
    MigrateIndex(MigrateArgs),
    /// List the namespaces of a bucket.
    Namespaces(NamespacesArgs),
    /// Compare index, objects and a cache, and repair what can be repaired.
    Fsck(FsckArgs),
}

impl Command {
    pub fn verbosity(&self) -> u8 {
        match self {
            Self::Status(args) => args.verbose,
            Self::Flush(args) => args.store.verbose,
            Self::Unmount(args) => args.verbose,
            Self::Pull(args) | Self::Push(args) => args.store.verbose,
            Self::Verify(args) => args.store.verbose,
            Self::MigrateIndex(args) => args.store.verbose,
            Self::Namespaces(args) => args.store.verbose,
            Self::Fsck(args) => args.store.verbose,
            Self::Lock(args) => match &args.action {
                LockAction::Status { store, .. } | LockAction::Release { store, .. } => store.verbose,
            },
        }
    }
}

/// What fsync waits for.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// fsync makes data durable on this machine
    Flush,
    /// fsync waits until data is in the bucket
    Fsync,
}

#[derive(Args, Debug)]
pub struct MountArgs {
    /// BUCKET, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or file:///DIR
    #[arg(required_unless_present = "repo")]
    pub source: Option<String>,
    /// An empty directory [default with --repo: DIR/.data, made if it is missing]
    #[arg(required_unless_present = "repo")]
    mountpoint: Option<PathBuf>,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Where local state lives [default: a directory per source under $XDG_STATE_HOME/swamp-mount]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Most bytes that cached files may take, such as 10G; the least recently opened go first [default: the disk, less 5 %
    /// or 1 GiB that stay free]
    #[arg(long, value_name = "SIZE", value_parser = parse_cache_size)]
    pub cache_size: Option<u64>,
    /// Allow no changes
    #[arg(long)]
    pub read_only: bool,
    /// Stay in the foreground and log to stderr
    #[arg(long, short)]
    pub foreground: bool,
    /// Time between two looks at the index
    #[arg(long, value_name = "SECS", default_value = "30", value_parser = seconds_from_one)]
    pub refresh: Duration,
    /// Idle time before a background flush
    #[arg(long, value_name = "SECS", default_value = "5", value_parser = seconds)]
    pub flush_after: Duration,
    /// Longest time that a file waits although it is written again and again
    #[arg(long, value_name = "SECS", default_value = "60", value_parser = seconds)]
    pub flush_max_age: Duration,
    /// Write although the store ignores conditions: a change of another writer at the same moment can get lost
    #[arg(long)]
    pub unsafe_no_conditional_writes: bool,
    /// What fsync waits for
    #[arg(long, value_enum, default_value = "flush")]
    pub sync: Sync,
    /// Let other users look in
    #[arg(long)]
    pub allow_other: bool,
    /// Owner shown for all files [default: you]
    #[arg(long)]
    pub uid: Option<u32>,
    /// Group shown for all files [default: yours]
    #[arg(long)]
    pub gid: Option<u32>,
    /// Permission bits to take away (octal)
    #[arg(long, default_value = "022", value_parser = octal)]
    pub umask: u32,
    /// Uploads at a time [default: 32]
    #[arg(long, value_name = "N", value_parser = concurrency)]
    pub upload_concurrency: Option<usize>,
    /// Downloads at a time [default: 32]
    #[arg(long, value_name = "N", value_parser = concurrency)]
    pub download_concurrency: Option<usize>,
    /// Log to this file [default: mount.log in the cache directory]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Let the kernel read and write complete files by itself, as root on Linux 6.9 or later; what a program writes to an
    /// open file after this process was killed may then go unnoticed
    #[arg(long)]
    pub passthrough: bool,
    /// Let a crash of this program end the mount; so it is with --passthrough too
    #[arg(long)]
    pub no_supervise: bool,
    #[arg(long, hide = true)]
    pub no_exec: bool,
    #[arg(long, hide = true)]
    pub no_atime: bool,
    /// Options in the style of mount(8), such as ro,uid=1000,cache_dir=/var/cache/x
    #[arg(short = 'o', value_name = "OPTIONS", action = clap::ArgAction::Append)]
    pub options: Vec<String>,
}

impl MountArgs {
    /// Whether the mountpoint is the default one of a repository.
    pub fn has_default_mountpoint(&self) -> bool {
        self.store.repo.is_some() && self.source.is_none() && self.mountpoint.is_none()
    }

    pub fn config(
        &self,
        invocation: Invocation,
        environment: &Environment,
        notice: impl Fn(&str),
    ) -> Result<MountConfig, ConfigError> {
        let (chosen, mountpoint) = self.store.choose_with(&self.source, &self.mountpoint, environment, notice)?;
        let mountpoint = match (mountpoint, &chosen.repo) {
            (Some(given), _) => absolute(&given)?,
            (None, Some(repo)) => repo.mountpoint(),
            (None, None) => return Err(ConfigError::Missing("MOUNTPOINT")),
        };
        let (uploads, downloads) = concurrency_of(&chosen, self.upload_concurrency, self.download_concurrency)?;
        let store = chosen.store;
        let cache = CacheConfig::resolve(&store, self.cache_dir.as_deref(), invocation, environment)?;
        Ok(MountConfig {
            store,
            cache,
            mountpoint,
            engine: EngineConfig {
                read_only: self.read_only,
                refresh: self.refresh,
                flush_after: self.flush_after,
                flush_max_age: self.flush_max_age,
                unsafe_no_conditional_writes: self.unsafe_no_conditional_writes,
                fsync_waits_for_bucket: self.sync == Sync::Fsync,
                upload_concurrency: uploads,
                download_concurrency: downloads,
                uid: self.uid,
                gid: self.gid,
                umask: self.umask,
                cache_size: self.cache_size,
            },
            foreground: self.foreground,
            allow_other: self.allow_other,
            no_exec: self.no_exec,
            passthrough: self.passthrough,
            // What the kernel writes by itself is watched by the process that opened the file.
            supervise: !self.no_supervise && !self.passthrough,
            no_atime: self.no_atime,
            log_file: self.log_file.as_deref().map(absolute).transpose()?,
            verbosity: self.store.verbose,
        })
    }
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Only this mount
    pub mountpoint: Option<PathBuf>,
    /// Only what belongs to the datastore of this repository
    #[arg(long, value_name = "DIR", conflicts_with = "mountpoint")]
    pub repo: Option<PathBuf>,
    /// Write JSON: one object for a MOUNTPOINT, else {"mounts":[…],"leftovers":[…]}
    #[arg(long)]
    pub json: bool,
    /// Say more
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Args, Debug)]
pub struct FlushArgs {
    /// A mountpoint, or the source of an ended mount
    #[arg(value_name = "MOUNTPOINT|SOURCE", required_unless_present = "repo", conflicts_with = "repo")]
    pub target: Option<PathBuf>,
    /// The cache directory of the ended mount, if it was given
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Uploads at a time [default: 32]
    #[arg(long, value_name = "N", value_parser = concurrency)]
    pub upload_concurrency: Option<usize>,
    /// Write although the store ignores conditions
    #[arg(long)]
    pub unsafe_no_conditional_writes: bool,
}

#[derive(Args, Debug)]
pub struct UnmountArgs {
    /// The mountpoint
    #[arg(required_unless_present = "repo")]
    pub mountpoint: Option<PathBuf>,
    /// Where the datastore of this repository is mounted
    #[arg(long, value_name = "DIR", conflicts_with = "mountpoint")]
    pub repo: Option<PathBuf>,
    /// Unmount after so many seconds although not all is pushed (exit code 3)
    #[arg(long, value_name = "SECS", value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// Say more
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Args, Debug)]
pub struct TransferArgs {
    /// BUCKET, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or file:///DIR
    #[arg(required_unless_present = "repo")]
    source: Option<String>,
    /// A cache directory with the reference client's layout [default with --repo: ~/.swamp/repos/REPO_ID]
    #[arg(required_unless_present = "repo")]
    cache_dir: Option<PathBuf>,
    #[command(flatten)]
    pub store: StoreArgs,
    /// Uploads at a time [default: 32]
    #[arg(long, value_name = "N", value_parser = concurrency)]
    pub upload_concurrency: Option<usize>,
    /// Downloads at a time [default: 32]
    #[arg(long, value_name = "N", value_parser = concurrency)]
    pub download_concurrency: Option<usize>,
    /// Write although the store ignores conditions
    #[arg(long)]
    pub unsafe_no_conditional_writes: bool,
}

impl TransferArgs {
    /// What to transfer, and between which directory and it.
    pub fn choose(&self, environment: &Environment) -> Result<(Chosen, PathBuf), ConfigError> {
        let notice = super::output::notice;
        let (chosen, dir) = self.store.choose_with(&self.source, &self.cache_dir, environment, notice)?;
        let usual = || chosen.repo.as_ref()?.usual_cache_dir(environment);
        match dir.or_else(usual) {
            Some(dir) => Ok((chosen, absolute(&dir)?)),
            None => Err(ConfigError::Missing("CACHE_DIR")),
        }
    }

    /// Uploads and downloads at a time.
    pub fn concurrency(&self, chosen: &Chosen) -> Result<(usize, usize), ConfigError> {
        concurrency_of(chosen, self.upload_concurrency, self.download_concurrency)
    }
}

#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// BUCKET, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or file:///DIR
    #[arg(required_unless_present = "repo")]
    pub source: Option<String>,
    #[command(flatten)]
    pub store: StoreArgs,
}

#[derive(Args, Debug)]
pub struct MigrateArgs {
    /// BUCKET, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or file:///DIR
    #[arg(required_unless_present = "repo")]
    pub source: Option<String>,
    /// Say what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub store: StoreArgs,
}

#[derive(Args, Debug)]
pub struct NamespacesArgs {
    /// BUCKET, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or file:///DIR
    #[arg(required_unless_present = "repo")]
    pub source: Option<String>,
    /// Write JSON: {"namespaces":[{"namespace","repoId","registeredAt"},…]}
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub store: StoreArgs,
}

#[derive(Args, Debug)]
pub struct FsckArgs {
    /// BUCKET, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or file:///DIR
    #[arg(required_unless_present = "repo")]
    pub source: Option<String>,
    /// Also check this cache: a reference client's directory, or the cache directory of a mount that has ended
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Repair; else nothing is changed
    #[arg(long)]
    pub repair: bool,
    /// Write JSON: {"clean":…,"findings":[…]}
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub store: StoreArgs,
}

#[derive(Args, Debug)]
pub struct LockArgs {
    #[command(subcommand)]
    pub action: LockAction,
}

#[derive(Subcommand, Debug)]
pub enum LockAction {
    /// Say who holds the lock.
    Status {
        /// BUCKET, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or file:///DIR
        #[arg(required_unless_present = "repo")]
        source: Option<String>,
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Remove the lock of a process that is gone.
    Release {
        /// BUCKET, s3://BUCKET[/PREFIX], gs://BUCKET[/PREFIX] or file:///DIR
        #[arg(required_unless_present = "repo")]
        source: Option<String>,
        /// Yes: whoever holds it must no longer be at work
        #[arg(long)]
        force: bool,
        /// Only if the lock has this nonce (which `lock status` shows)
        #[arg(long)]
        nonce: Option<String>,
        #[command(flatten)]
        store: StoreArgs,
    },
}

/// Uploads and downloads at a time.
pub fn concurrency_of(
    chosen: &Chosen,
    uploads: Option<usize>,
    downloads: Option<usize>,
) -> Result<(usize, usize), ConfigError> {
    let default = EngineConfig::default();
    let said = chosen.repo.as_ref().map(|repo| repo.options.clone()).unwrap_or_default();
    let uploads = agree("--upload-concurrency", uploads, said.push_concurrency)?;
    let downloads = agree("--download-concurrency", downloads, said.pull_concurrency)?;
    Ok((uploads.unwrap_or(default.upload_concurrency), downloads.unwrap_or(default.download_concurrency)))
}

/// Seconds, perhaps with a fraction, up to a year.
fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "it is not a number of seconds".to_owned())?;
    // NaN fails the comparison too.
    if !(0.0..=31_536_000.0).contains(&number) {
        return Err("it must be between 0 and 31536000 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(number))
}

/// The same, but no hammering of the bucket.
fn seconds_from_one(text: &str) -> Result<Duration, String> {
    let duration = seconds(text)?;
    if duration < Duration::from_secs(1) { Err("it must be at least 1 second".to_owned()) } else { Ok(duration) }
}

fn octal(text: &str) -> Result<u32, String> {
    let bits = u32::from_str_radix(text, 8).map_err(|_| "it is not an octal number, such as 022".to_owned())?;
    if bits > 0o777 { Err("it must be between 0 and 777".to_owned()) } else { Ok(bits) }
}

fn concurrency(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..=1000) => Ok(number),
        _ => Err("it must be a number between 1 and 1000".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
