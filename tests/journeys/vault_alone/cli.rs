//! The `barekey` command against a running vault. Values go in by standard input or a file.

mod env;
mod every_command;
mod project;
mod run;
mod whoami;

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::server::{STAGING, Server};
use crate::harness::Journey;

/// Every journey of the command.
pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::alone(
            "cli::a_value_goes_in_by_stdin_or_a_file_and_comes_out_bare",
            env::a_value_goes_in_by_stdin_or_a_file_and_comes_out_bare,
        ),
        Journey::alone(
            "cli::a_value_in_an_argument_is_written_with_a_warning",
            env::a_value_in_an_argument_is_written_with_a_warning,
        ),
        Journey::alone(
            "cli::variables_are_listed_without_their_values",
            env::variables_are_listed_without_their_values,
        ),
        Journey::alone(
            "cli::projects_and_stages_are_made_and_listed",
            project::projects_and_stages_are_made_and_listed,
        ),
        Journey::alone(
            "cli::whoami_tells_whose_token_it_is",
            whoami::whoami_tells_whose_token_it_is,
        ),
        Journey::alone(
            "cli::a_program_runs_with_the_stages_values",
            run::a_program_runs_with_the_stages_values,
        ),
        Journey::alone(
            "cli::a_program_that_cannot_run_costs_no_read",
            run::a_program_that_cannot_run_costs_no_read,
        ),
        Journey::alone(
            "cli::while_it_waits_its_memory_is_not_for_others_of_its_user",
            every_command::while_it_waits_its_memory_is_not_for_others_of_its_user,
        )
        .by_root(),
        Journey::alone(
            "cli::a_program_gets_its_limit_for_core_dumps_back",
            run::a_program_gets_its_limit_for_core_dumps_back,
        ),
        Journey::alone(
            "cli::every_command_says_what_it_was_not_told",
            every_command::every_command_says_what_it_was_not_told,
        ),
        Journey::alone(
            "cli::every_command_passes_on_the_servers_refusal_and_changes_nothing",
            every_command::every_command_passes_on_the_servers_refusal_and_changes_nothing,
        ),
        Journey::alone(
            "cli::a_server_is_trusted_by_its_authority_and_its_name",
            every_command::a_server_is_trusted_by_its_authority_and_its_name,
        ),
    ]
}

/// What a command did.
struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    /// What it printed; it must have succeeded without a word on standard error.
    #[track_caller]
    fn printed(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "it failed");
        self.stdout
    }

    /// What it printed, as JSON.
    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.printed()).expect("JSON")
    }

    /// Why it failed; it must have printed nothing and ended with code 1.
    #[track_caller]
    fn refusal(self) -> String {
        assert_eq!(
            (self.code, self.stdout.as_str()),
            (1, ""),
            "{}",
            self.stderr
        );
        self.stderr
    }
}

/// A person at a terminal: the command's environment.
struct Person {
    environment: Vec<(&'static str, String)>,
}

impl Person {
    /// One with a token, whose target is the staging stage of the shop.
    fn with(server: &Server, token: &str) -> Self {
        Self {
            environment: vec![
                ("PATH", "/usr/bin:/bin".to_owned()),
                ("BAREKEY_API_URL", format!("http://{}", server.api)),
                ("BAREKEY_ACCESS_TOKEN", token.to_owned()),
                ("BAREKEY_PROJECT", STAGING.0.to_owned()),
                ("BAREKEY_STAGE", STAGING.1.to_owned()),
            ],
        }
    }

    /// The same with another variable.
    fn and(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// The same without a variable.
    fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(kept, _)| *kept != name);
        self
    }

    fn does(&self, arguments: &[&str]) -> Done {
        self.types(arguments, b"")
    }

    /// Runs the command with `input` on its standard input.
    fn types(&self, arguments: &[&str], input: &[u8]) -> Done {
        let mut child = Command::new(env!("CARGO_BIN_EXE_barekey"))
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        // One that refuses early does not read.
        drop(child.stdin.take().expect("a pipe").write_all(input));
        let output = child.wait_with_output().expect("the command ends");
        Done {
            code: output.status.code().expect("an exit code"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}
