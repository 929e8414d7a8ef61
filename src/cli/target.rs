//! What a command is about: the server, and the organization, project and stage there.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use zeroize::Zeroizing;

use crate::cli::CliError;
use crate::client::{Client, Credential, Endpoint, Patience, Trust};

/// What the command calls itself to the server.
const USER_AGENT: &str = concat!("barekey-cli/", env!("CARGO_PKG_VERSION"));
/// Where the token is looked for, in this order. Both are taken out of the environment of a program that is run.
pub(super) const TOKEN_VARIABLES: [&str; 2] = ["BAREKEY_ACCESS_TOKEN", "BAREKEY_TOKEN"];
/// Long enough for a server that restarts and asks for a moment's patience, short enough for somebody who waits.
const PATIENCE: Patience = Patience {
    total: Duration::from_secs(60),
    tries_max: 4,
};

/// The flags that say what a command is about.
#[derive(Args)]
pub(super) struct Target {
    /// The organization's slug; by default the one that the token belongs to.
    #[arg(
        long,
        global = true,
        env = "BAREKEY_ORG",
        value_name = "SLUG",
        hide_env_values = true
    )]
    org: Option<String>,
    /// The project's slug.
    #[arg(
        long,
        global = true,
        env = "BAREKEY_PROJECT",
        value_name = "SLUG",
        hide_env_values = true
    )]
    project: Option<String>,
    /// The stage's slug.
    #[arg(
        long,
        global = true,
        env = "BAREKEY_STAGE",
        value_name = "SLUG",
        hide_env_values = true
    )]
    stage: Option<String>,
    /// The server: https://HOST[:PORT], or http:// for one on this machine alone.
    #[arg(
        long,
        global = true,
        env = "BAREKEY_API_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    api_url: Option<String>,
    /// A PEM file with the certificate authority of the server; by default this machine's list.
    #[arg(
        long,
        global = true,
        env = "BAREKEY_CA_FILE",
        value_name = "FILE",
        hide_env_values = true
    )]
    ca_file: Option<PathBuf>,
}

impl Target {
    /// The organization, if one is named.
    pub(super) fn organization(&self) -> Option<String> {
        named(self.org.as_ref())
    }

    /// The project.
    pub(super) fn project(&self) -> Result<String, CliError> {
        named(self.project.as_ref()).ok_or(CliError::NoTarget {
            what: "project",
            flag: "--project",
            variable: "BAREKEY_PROJECT",
        })
    }

    /// The stage.
    pub(super) fn stage(&self) -> Result<String, CliError> {
        named(self.stage.as_ref()).ok_or(CliError::NoTarget {
            what: "stage",
            flag: "--stage",
            variable: "BAREKEY_STAGE",
        })
    }

    /// A client of the server.
    pub(super) fn client(&self) -> Result<Client, CliError> {
        let url = named(self.api_url.as_ref()).ok_or(CliError::NoTarget {
            what: "server",
            flag: "--api-url",
            variable: "BAREKEY_API_URL",
        })?;
        let endpoint = Endpoint::parse_url(&url)?;
        let token = token(|name| std::env::var(name).ok()).ok_or(CliError::NoToken)?;
        let trust = match &self.ca_file {
            Some(file) if !file.as_os_str().is_empty() => Trust::File(file.clone()),
            _ => Trust::Machine,
        };
        let credential = Credential::Token(token);
        Ok(Client::new(
            endpoint, &trust, credential, PATIENCE, USER_AGENT,
        )?)
    }
}

/// An empty word, such as that of a variable that is set to nothing, names nothing.
fn named(word: Option<&String>) -> Option<String> {
    word.map(|word| word.trim())
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
}

fn token(variable: impl Fn(&str) -> Option<String>) -> Option<Zeroizing<String>> {
    TOKEN_VARIABLES
        .iter()
        .filter_map(|name| variable(name).map(Zeroizing::new))
        .find(|token| !token.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            org: None,
            project: Some(" ".to_owned()),
            stage: None,
            api_url: None,
            ca_file: None,
        }
    }

    #[test]
    fn what_is_not_named_is_asked_for_by_its_flag_and_its_variable() {
        assert_eq!(
            target().project().unwrap_err().to_string(),
            "no project is named: give --project or set BAREKEY_PROJECT"
        );
        assert_eq!(
            target().stage().unwrap_err().to_string(),
            "no stage is named: give --stage or set BAREKEY_STAGE"
        );
        assert_eq!(target().organization(), None);
        let no_server = target().client().err().unwrap();
        assert_eq!(
            no_server.to_string(),
            "no server is named: give --api-url or set BAREKEY_API_URL"
        );
    }

    #[test]
    fn the_access_token_comes_before_its_alias_and_an_empty_one_is_none() {
        let token_of = |access: &str, alias: &str| {
            let (access, alias) = (access.to_owned(), alias.to_owned());
            token(move |name| {
                Some(if name == "BAREKEY_TOKEN" {
                    alias.clone()
                } else {
                    access.clone()
                })
            })
            .map(|token| token.to_string())
        };
        assert_eq!(token_of("a", "b").as_deref(), Some("a"));
        assert_eq!(token_of(" ", "b").as_deref(), Some("b"));
        assert_eq!(token_of("", ""), None);
    }
}
