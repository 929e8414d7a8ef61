//! `barekey run -- PROGRAM ARGS…`: every variable of a stage, read with an API token, in the environment of a program.
//!
//! This is for machines and jobs outside of injected pods, and it does not look at what the webhook writes into those: there
//! the agent has this name, built without this command.
//!
//! The stage's values win over what the environment has already, and these names are never taken from a stage: `PATH`, `HOME`,
//! `HOSTNAME`, `GLIBC_TUNABLES`, `LD_*`, `KUBERNETES_*`, and the agent's own. The token is taken out of the environment.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use clap::Args;

use crate::agent::process::{self, Hidden};
use crate::cli::output::Output;
use crate::cli::target::{TOKEN_VARIABLES, Target};
use crate::cli::{CliError, wait};
use crate::domain::plaintext::Plaintext;
use crate::domain::reference::expansion::{Composed, Environment};
use crate::domain::reference::{is_reserved_entry, is_set_only_by_name};
use crate::protocol::environment::{PullRequest, PullResponse};

/// Becomes PROGRAM, without a shell, with every variable of the stage in its environment.
///
/// The stage's values win over the environment's, but PATH, HOME, HOSTNAME, GLIBC_TUNABLES, LD_* and KUBERNETES_* are never
/// taken from a stage. The token is taken out of the program's environment.
#[derive(Args)]
pub(super) struct RunCommand {
    /// The program and its arguments, behind `--`.
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

pub(super) fn run(
    command: RunCommand,
    target: &Target,
    output: &Output,
    hidden: Hidden,
) -> Result<(), CliError> {
    let (project_slug, stage_slug) = (target.project()?, target.stage()?);
    let client = target.client()?;
    let program = command.command.first().map(OsString::as_os_str);
    let program = program.unwrap_or_default();
    // Before anything is fetched and recorded as read.
    process::find_program(program, std::env::var_os("PATH").as_deref())?;
    let pulled = wait(client.pull(&PullRequest {
        org_slug: target.organization(),
        project_slug,
        stage_slug,
        seed: None,
        key: None,
    }))?;
    let (composed, left_out) = compose(
        process::environment(std::env::vars_os()),
        &command.command,
        pulled,
    );
    if !left_out.is_empty() {
        output.warn(&format!(
            "not set, since it is never taken from a stage: {}",
            left_out.join(", ")
        ));
    }
    Err(process::become_program(composed, program, hidden).into())
}

/// What the program is started with, and the names that a stage may not set.
fn compose(
    mut environment: Environment,
    command: &[OsString],
    mut pulled: PullResponse,
) -> (Composed, Vec<String>) {
    for name in TOKEN_VARIABLES {
        environment.remove(name.as_bytes());
    }
    let mut left_out = Vec::new();
    for (name, value) in std::mem::take(&mut pulled.variables) {
        if is_set_only_by_name(&name) || is_reserved_entry(&name) {
            left_out.push(name);
        } else {
            let value = Plaintext::new(value.0.as_bytes().to_vec());
            environment.insert(name.into_bytes(), value);
        }
    }
    let words = command
        .iter()
        .map(|word: &OsString| Plaintext::new(OsStr::as_bytes(word).to_vec()));
    let composed = Composed {
        environment,
        command: words.collect(),
    };
    (composed, left_out)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::protocol::environment::Value;

    #[test]
    fn the_stage_wins_but_for_reserved_names_and_the_token_is_gone() {
        let entries = [
            ("PATH", "/bin"),
            ("A", "inherited"),
            ("B", "inherited"),
            ("BAREKEY_ACCESS_TOKEN", "t"),
            ("BAREKEY_TOKEN", "t"),
            ("BAREKEY_ORG", "acme"),
        ];
        let stage = [
            ("A", "stage"),
            ("C", "stage"),
            ("PATH", "/stage"),
            ("BAREKEY_AGENT_X", "x"),
        ];
        let pulled = PullResponse {
            variables: stage
                .map(|(name, value)| (name.to_owned(), Value(value.to_owned())))
                .into(),
            request_id: "req_1".to_owned(),
        };
        let environment = process::environment(
            entries
                .into_iter()
                .map(|(name, value)| (name.into(), value.into())),
        );
        let (composed, left_out) = compose(environment, &["sh".into(), "$(A)".into()], pulled);
        let text = |value: &Plaintext| value.reveal_text().unwrap().to_owned();
        let environment: BTreeMap<String, String> = composed
            .environment
            .iter()
            .map(|(name, value)| (String::from_utf8(name.clone()).unwrap(), text(value)))
            .collect();
        let expected = [
            ("A", "stage"),
            ("B", "inherited"),
            ("BAREKEY_ORG", "acme"),
            ("C", "stage"),
            ("PATH", "/bin"),
        ];
        assert_eq!(
            environment,
            expected
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into()
        );
        assert_eq!(
            composed.command.iter().map(text).collect::<Vec<_>>(),
            ["sh", "$(A)"]
        );
        assert_eq!(left_out, ["BAREKEY_AGENT_X", "PATH"]);
    }
}
