//! The `barekey` command for people and for jobs.
//!
//! Every command is one call of the API. What it prints goes through [`output`]; what it asks for comes from flags, from the
//! environment and, for values, from standard input or a file. Errors end it with code 1; `run` gives 127 when the program is
//! not there, 126 when it cannot be executed, and else whatever the program gives.

mod environment;
mod management;
mod output;
mod run;
mod target;

use std::ffi::OsString;
use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::agent::process::{self, BecomeError, Hidden, LookupError};
use crate::client::{ClientError, EndpointError, TrustError};
use output::Output;
use target::Target;

/// Reads and writes the variables of a Barekey vault, and runs programs with them.
#[derive(Parser)]
#[command(name = "barekey", version, after_help = AFTER_HELP)]
struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Print the API's answer as JSON; warnings and the error, on standard error, as JSON too, one object a line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
The credential is an API token in BAREKEY_ACCESS_TOKEN (or BAREKEY_TOKEN). There is no flag for it, since arguments are seen \
by everyone on a machine.";

#[derive(Subcommand)]
enum Command {
    /// Read and write variables of a stage.
    #[command(subcommand)]
    Env(environment::EnvCommand),
    /// List and make projects.
    #[command(subcommand)]
    Project(management::ProjectCommand),
    /// List and make stages of a project.
    #[command(subcommand)]
    Stage(management::StageCommand),
    /// Run a program with every variable of a stage in its environment.
    Run(run::RunCommand),
    /// Say whose token this is.
    Whoami,
}

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("no {what} is named: give {flag} or set {variable}")]
    NoTarget {
        what: &'static str,
        flag: &'static str,
        variable: &'static str,
    },
    #[error("there is no token: set BAREKEY_ACCESS_TOKEN (or BAREKEY_TOKEN) to an API token")]
    NoToken,
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Call(#[from] ClientError),
    #[error("cannot read the value from {from}")]
    ReadValue { from: String, source: io::Error },
    #[error(
        "the value in {from} is not UTF-8, and only text can be stored: encode it, for example as base64"
    )]
    NotText { from: String },
    #[error("the value in {from} is longer than {bytes_max} bytes, which no server takes")]
    TooLong { from: String, bytes_max: usize },
    #[error(
        "the value in {from} is empty, and nothing was written: give --allow-empty if it is meant to be"
    )]
    Empty { from: String },
    #[error(transparent)]
    Become(#[from] BecomeError),
    #[error("cannot wait for the network")]
    Runtime(#[source] io::Error),
    #[error("cannot hide this process's memory from others")]
    Hide(#[source] io::Error),
    #[error("cannot print")]
    Print(#[source] io::Error),
}

impl From<LookupError> for CliError {
    fn from(error: LookupError) -> Self {
        Self::Become(error.into())
    }
}

impl CliError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Become(error) => error.exit_code(),
            _ => 1,
        }
    }

    /// What to do about it, where the message itself does not say.
    fn advice(&self) -> Option<&'static str> {
        let Self::Call(error) = self else { return None };
        if error.is_distrust() {
            return Some(
                "name the certificate authority of the server with --ca-file or BAREKEY_CA_FILE, and the server by a name that \
                 its certificate has",
            );
        }
        match error {
            ClientError::Unreachable { .. } => {
                Some("check --api-url or BAREKEY_API_URL, and that the server runs")
            }
            ClientError::Refused { status: 401, .. } => {
                Some("set BAREKEY_ACCESS_TOKEN to a token of this server that has not ended")
            }
            _ => None,
        }
    }
}

/// The command's program.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(usage) => return output::usage(&usage, asks_for_json(std::env::args_os())),
    };
    let output = Output {
        json: arguments.json,
    };
    let done = process::hide()
        .map_err(CliError::Hide)
        .and_then(|hidden| dispatch(arguments, &output, hidden));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever reads the output has seen enough.
        Err(CliError::Print(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            output.error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Whether arguments that could not be read ask for JSON; what is behind `--` is another program's.
fn asks_for_json(arguments: impl Iterator<Item = OsString>) -> bool {
    arguments
        .take_while(|word| word != "--")
        .any(|word| word == "--json")
}

fn dispatch(arguments: Arguments, output: &Output, hidden: Hidden) -> Result<(), CliError> {
    let target = &arguments.target;
    match arguments.command {
        Command::Env(command) => environment::run(command, target, output),
        Command::Project(command) => management::run_project(command, target, output),
        Command::Stage(command) => management::run_stage(command, target, output),
        Command::Run(command) => run::run(command, target, output, hidden),
        Command::Whoami => management::whoami(target, output),
    }
}

/// Waits for one call.
fn wait<T>(call: impl Future<Output = Result<T, ClientError>>) -> Result<T, CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(CliError::Runtime)?;
    let answer = runtime.block_on(call);
    // A name service that does not answer is not waited for.
    runtime.shutdown_background();
    Ok(answer?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_tree_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_commands_are_read_with_their_flags_in_any_place() {
        for words in [
            "barekey env set NAME",
            "barekey env set NAME VALUE",
            "barekey env set NAME -- -VALUE",
            "barekey env set NAME --allow-empty",
            "barekey env set NAME --value-file f --type int64 --visibility public",
            "barekey --json env get NAME --project p --stage s",
            "barekey env list --org o --project p --stage s --json",
            "barekey project list",
            "barekey project create Shop --slug shop",
            "barekey stage list --project p",
            "barekey stage create Preview --project p --slug preview",
            "barekey run --project p --stage s -- program --flag -x",
            "barekey whoami --api-url https://h --ca-file f",
        ] {
            let parsed = Arguments::try_parse_from(words.split(' '));
            assert!(parsed.is_ok(), "{words}");
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for words in [
            "barekey",
            "barekey env",
            "barekey env set",
            "barekey env set NAME VALUE --value-file f",
            "barekey env set NAME --type text",
            "barekey env set NAME --visibility secret",
            "barekey run",
            "barekey run --",
            "barekey whoami --token t",
        ] {
            let parsed = Arguments::try_parse_from(words.split(' '));
            assert!(parsed.is_err(), "{words}");
        }
    }
}
