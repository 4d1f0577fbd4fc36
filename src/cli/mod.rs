//! The command line: arguments, one file per command, output, exit codes.
//!
//! The topmost layer. Exit codes: 0 done, 1 failed, 2 usage, 3 unmounted (or ended) but some data is not in the bucket yet.
//! Invariant: results go to stdout, everything else to stderr, and every failure says what to do next.

mod arguments;
mod command_line;
mod flush;
mod fsck;
mod helper;
mod lock;
mod migrate_index;
mod mount;
mod namespaces;
mod output;
mod pull;
mod push;
mod status;
mod store_args;
mod target;
mod transfer;
mod unmount;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::config::Environment;
use crate::mount::logging::{self, Voice};
use crate::mount::{End, MountError, client};
use arguments::Command;

/// How a command ended, other than by an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    /// Already said why.
    Failed,
    Unpushed,
    /// With this exit code, as the process that did the work.
    As(u8),
}

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    match run(&arguments) {
        Ok(Ended::Done) => ExitCode::SUCCESS,
        Ok(Ended::Failed) => ExitCode::from(1),
        Ok(Ended::Unpushed) => ExitCode::from(3),
        Ok(Ended::As(code)) => ExitCode::from(code),
        Err(error) => {
            output::error(&error);
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}

fn run(arguments: &[OsString]) -> Result<Ended, MountError> {
    let environment = Environment::current();
    let parsed = match command_line::parse(arguments) {
        Ok(parsed) => parsed,
        Err(command_line::ParseError::Clap(error)) => {
            // Help and version are asked for, and go to stdout with code 0.
            error.exit();
        }
        Err(command_line::ParseError::Option(error)) => return Err(error.into()),
    };
    let Some(command) = parsed.cli.command else {
        return mount::run(&parsed, arguments, &environment);
    };
    logging::to_stderr(Voice::Command, command.verbosity());
    match command {
        Command::Status(args) => status::run(&args, &environment),
        Command::Flush(args) => flush::run(&args, &environment),
        Command::Unmount(args) => unmount::run(&args, &environment),
        Command::Pull(args) => pull::run(&args, &environment),
        Command::Push(args) => push::run(&args, &environment),
        Command::Verify(args) => verify::run(&args, &environment),
        Command::Lock(args) => lock::run(&args, &environment),
        Command::MigrateIndex(args) => migrate_index::run(&args, &environment),
        Command::Namespaces(args) => namespaces::run(&args, &environment),
        Command::Fsck(args) => fsck::run(&args, &environment),
    }
}

/// Says what is left, where it is kept and how to push it.
fn report_end(end: &End) -> Ended {
    match end {
        End::Pushed => Ended::Done,
        End::Unpushed(unpushed) => {
            eprintln!(
                "swamp-mount: not everything is in the bucket: {} left ({})",
                client::describe_pending(&unpushed.pending),
                unpushed.reasons.join("; ")
            );
            eprintln!("It is kept in {} and is pushed with:\n  {}", unpushed.kept_in, unpushed.push_with);
            Ended::Unpushed
        }
    }
}
