//! The agent in pods: `barekey run -- PROGRAM ARGS…` fetches the container's variables and becomes the program.
//!
//! It is started by the container in place of its own command, as PID 1, from a read-only mount, under any user and beside any
//! image or none. It starts no process and no shell, and no thread but the one that looks a name up: what it finds wrong it says in one line, on standard error and in
//! the container's termination message, and ends with a code other than 0.
//!
//! | exit code | meaning |
//! |---|---|
//! | 127 | the program is not there |
//! | 126 | the program may not be executed, or is none |
//! | 128 + n | it was told to stop, by signal n, while it waited |
//! | 1 | anything else, such as a server that does not answer in time or a refusal |
//!
//! `barekey install DEST` copies the agent itself to `DEST`, for the init container that carries it into a pod.

mod install;
pub mod process;
mod start;

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

use process::BecomeError;
pub use start::{StartError, start};

use crate::domain::causes::with_causes;

/// Where the kubelet looks for a container's last words.
const TERMINATION_LOG: &str = "/dev/termination-log";
/// The longest reason, in bytes; the kubelet keeps 4096.
const REASON_BYTES_MAX: usize = 2048;

/// Everything that ends the agent before it became the program.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error(
        "usage: barekey run -- PROGRAM [ARGUMENT…] | barekey install DESTINATION | barekey version"
    )]
    Usage,
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Become(#[from] BecomeError),
    #[error("cannot hide this process's memory from others")]
    Hide(#[source] std::io::Error),
    #[error(transparent)]
    Install(#[from] install::InstallError),
    #[error("cannot print")]
    Print(#[source] std::io::Error),
}

impl AgentError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Start(StartError::Lookup(error)) => error.exit_code(),
            Self::Start(StartError::Stopped { number }) => number.saturating_add(128),
            Self::Become(error) => error.exit_code(),
            _ => 1,
        }
    }
}

/// The agent's program. Returns only when it did not become another one.
pub fn main() -> ExitCode {
    match dispatch(std::env::args_os().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(mut arguments: Vec<OsString>) -> Result<(), AgentError> {
    let word = |at: usize| arguments.get(at).and_then(|word| word.to_str());
    match (word(0), word(1), arguments.len()) {
        (Some("run"), Some("--"), 3..) => {
            let command = arguments.split_off(2);
            let hidden = process::hide().map_err(AgentError::Hide)?;
            let composed = start(std::env::vars_os(), &command)?;
            let written = command.first().map(OsString::as_os_str).unwrap_or_default();
            Err(process::become_program(composed, written, hidden).into())
        }
        (Some("install"), Some(_), 2) => {
            let destination = arguments.pop().unwrap_or_default();
            Ok(install::install(destination.as_ref())?)
        }
        (Some("version" | "--version"), None, 1) => {
            writeln!(
                std::io::stdout(),
                "barekey {} (agent)",
                env!("CARGO_PKG_VERSION")
            )
            .map_err(AgentError::Print)?;
            Ok(())
        }
        _ => Err(AgentError::Usage),
    }
}

/// Says why the agent ends: one line on standard error and in the container's termination message.
///
/// Neither has to be there, and there is nowhere left to say that it is not.
fn report(error: &dyn Error) {
    let mut line = reason(error);
    line.push('\n');
    let to_stderr = std::io::stderr().write_all(line.as_bytes());
    let to_kubelet = OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(OsStr::new(TERMINATION_LOG))
        .and_then(|mut file| file.write_all(line.as_bytes()));
    drop((to_stderr, to_kubelet));
}

/// An error with all its causes, as one line of at most [`REASON_BYTES_MAX`] bytes.
fn reason(error: &dyn Error) -> String {
    let mut line: String = format!("barekey: {}", with_causes(error))
        .chars()
        .map(|character| {
            if character.is_control() {
                ' '
            } else {
                character
            }
        })
        .collect();
    if line.len() > REASON_BYTES_MAX {
        let mut end = REASON_BYTES_MAX;
        while !line.is_char_boundary(end) {
            end -= 1;
        }
        line.truncate(end);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Inner(String);

    #[test]
    fn a_reason_is_one_bounded_line_with_all_causes() {
        assert_eq!(
            reason(&Outer(Inner("a\nb".to_owned()))),
            "barekey: outer: a b"
        );
        let long = reason(&Outer(Inner("ü".repeat(5000))));
        assert!(long.len() <= REASON_BYTES_MAX && long.ends_with('ü'));
    }

    #[test]
    fn a_command_that_is_none_is_refused() {
        let dispatched = |words: &[&str]| dispatch(words.iter().map(OsString::from).collect());
        for words in [
            &[][..],
            &["run"],
            &["run", "--"],
            &["run", "sh"],
            &["run", "sh", "--"],
            &["install"],
            &["install", "a", "b"],
            &["env", "get", "A"],
        ] {
            let refused = dispatched(words).unwrap_err();
            assert!(matches!(refused, AgentError::Usage), "{words:?}");
            assert_eq!(refused.exit_code(), 1);
        }
    }
}
