//! From words to parsed arguments, with `-o` unfolded.
//!
//! Depends on `arguments`, `helper` and `config`. Options of `-o` become long options in front of all others, so that both
//! are checked by one parser, and what is written out wins.

use std::ffi::OsString;

use clap::Parser;

use super::arguments::Cli;
use super::helper;
use crate::config::{ConfigError, Invocation, mount_option_arguments};

/// What the words mean.
#[derive(Debug)]
pub struct Parsed {
    pub cli: Cli,
    /// Who asks.
    pub invocation: Invocation,
    /// mount(8) wants a rehearsal.
    pub rehearsal: bool,
}

/// Why they mean nothing.
#[derive(Debug)]
pub enum ParseError {
    /// The parser's own words (or help, or the version).
    Clap(clap::Error),
    /// An option of `-o`.
    Option(ConfigError),
}

pub fn parse(arguments: &[OsString]) -> Result<Parsed, ParseError> {
    let invocation = helper::invocation(arguments);
    let (own, rehearsal) =
        if helper::is_helper_name(arguments) { helper::own_arguments(arguments) } else { (arguments.to_vec(), false) };
    let cli = Cli::try_parse_from(&own).map_err(ParseError::Clap)?;
    let mut unfolded = Vec::new();
    for options in &cli.mount.options {
        unfolded.extend(mount_option_arguments(options).map_err(ParseError::Option)?);
    }
    if unfolded.is_empty() {
        return Ok(Parsed { cli, invocation, rehearsal });
    }
    let (program, rest) = own.split_at(own.len().min(1));
    let words = program.iter().cloned().chain(unfolded.into_iter().map(OsString::from)).chain(rest.iter().cloned());
    let cli = Cli::try_parse_from(words).map_err(ParseError::Clap)?;
    Ok(Parsed { cli, invocation, rehearsal })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn parsed(line: &str) -> Result<Parsed, ParseError> {
        parse(&line.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn mount_options_and_long_options_mean_the_same_and_the_latter_win() {
        let cli = parsed("swamp-mount -o ro,uid=5,refresh=7 s3://b-b /mnt --uid 6 -o allow_other").expect("fine").cli;
        assert!(cli.mount.read_only && cli.mount.allow_other);
        assert_eq!((cli.mount.uid, cli.mount.refresh), (Some(6), Duration::from_secs(7)));
        let cli = parsed("mount.fuse.swamp-mount s3://b-b /mnt -n -o rw,nofail,cache_dir=/c").expect("fine").cli;
        assert_eq!(cli.mount.cache_dir.as_deref(), Some(std::path::Path::new("/c")));
        assert!(matches!(parsed("swamp-mount b-b /mnt -o nonsense"), Err(ParseError::Option(_))));
        assert!(matches!(parsed("swamp-mount b-b /mnt -o uid=me"), Err(ParseError::Clap(_))));
        assert!(parsed("mount.swamp s3://b-b /mnt -f").expect("fine").rehearsal);
    }

    #[test]
    fn a_source_is_the_default_command() {
        let cli = parsed("swamp-mount s3://status /mnt").expect("fine").cli;
        assert_eq!((cli.command.is_none(), cli.mount.source.as_deref()), (true, Some("s3://status")));
        assert!(parsed("swamp-mount status").expect("fine").cli.command.is_some());
        assert!(parsed("swamp-mount lock status s3://b-b").expect("fine").cli.command.is_some());
    }
}
