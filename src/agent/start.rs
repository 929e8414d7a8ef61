//! From the container's environment to what its program is started with: read the settings, look, fetch, compose.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroize;

use crate::agent::process::{self, LookupError};
use crate::client::{Client, ClientError, Credential, Endpoint, Patience, Trust, TrustError};
use crate::domain::names::VariableName;
use crate::domain::plaintext::Plaintext;
use crate::domain::reference::expansion::{
    ComposeError, Composed, Environment, compose, path_is_settled,
};
use crate::domain::reference::{
    ALLOWANCE_ENTRY, AgentSettings, Allowance, FORM_VERSION, FormError, SETTINGS_ENTRY,
};
use crate::protocol::pod::{PodValuesRequest, PodValuesResponse};

/// What the agent calls itself to the server.
const USER_AGENT: &str = concat!("barekey-agent/", env!("CARGO_PKG_VERSION"));

/// Why there is nothing to start a program with.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The entry that the webhook writes is not there.
    #[error(
        "{entry} is not set: the agent runs only in a container that the Barekey webhook prepared"
    )]
    NotInjected {
        /// The entry.
        entry: &'static str,
    },
    /// The entry is none that this agent knows.
    #[error(transparent)]
    Form(#[from] FormError),
    /// The settings hold something that is not what its place asks for.
    #[error("{SETTINGS_ENTRY} holds {what} that is none")]
    Settings {
        /// What it should be.
        what: &'static str,
    },
    /// The program is not there, or may not be executed.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The certificate authority cannot be used.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// Nothing can be waited for.
    #[error("cannot wait for the network")]
    Runtime(#[source] std::io::Error),
    /// The server showed a certificate of another authority or another name.
    #[error(
        "the server is not the one that this pod was told to trust; if the server was installed anew, delete the pod so that it is prepared again"
    )]
    Distrust(#[source] ClientError),
    /// The values did not come.
    #[error("no variables within {wait_seconds} s")]
    TimedOut {
        /// How long it was waited at most.
        wait_seconds: u32,
        /// What the last try came to.
        source: ClientError,
    },
    /// The server refused.
    #[error(transparent)]
    Refused(ClientError),
    /// An answer in a form of another release.
    #[error(
        "the server answers in version {v}, and this agent knows version {FORM_VERSION}: delete the pod so that it gets the present agent"
    )]
    AnswerVersion {
        /// The version.
        v: u32,
    },
    /// The values are not what the container needs.
    #[error(transparent)]
    Compose(#[from] ComposeError),
}

/// Works out what `command` is started with, in a container whose environment is `environment`.
///
/// The program is looked for before anything is fetched, so that one that is not there costs no wait.
///
/// # Errors
/// [`StartError`].
pub fn start(
    environment: impl Iterator<Item = (OsString, OsString)>,
    command: &[OsString],
) -> Result<Composed, StartError> {
    let environment = process::environment(environment);
    let settings = AgentSettings::parse(entry(&environment, SETTINGS_ENTRY)?)?;
    let allowance = Allowance::parse(entry(&environment, ALLOWANCE_ENTRY)?)?;
    look_for_program(&environment, command, &allowance, &settings)?;

    let client = client(&settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(StartError::Runtime)?;
    let answer = runtime.block_on(client.pod_values(&PodValuesRequest { v: FORM_VERSION }));
    // A name service that does not answer is not waited for.
    runtime.shutdown_background();
    let answer = answer.map_err(|error| told(error, &settings))?;
    if answer.v != FORM_VERSION {
        return Err(StartError::AnswerVersion { v: answer.v });
    }

    let command: Vec<Vec<u8>> = command
        .iter()
        .map(|word| word.as_bytes().to_vec())
        .collect();
    let values = values(answer, &allowance);
    Ok(compose(
        environment,
        &command,
        &allowance,
        &settings,
        &values,
    )?)
}

fn entry<'a>(environment: &'a Environment, entry: &'static str) -> Result<&'a str, StartError> {
    environment
        .get(entry.as_bytes())
        .and_then(Plaintext::reveal_text)
        .ok_or(StartError::NotInjected { entry })
}

/// Looks for the program, unless a value decides what or where it is.
fn look_for_program(
    environment: &Environment,
    command: &[OsString],
    allowance: &Allowance,
    settings: &AgentSettings,
) -> Result<(), LookupError> {
    let program = command.first().map(OsString::as_os_str).unwrap_or_default();
    let is_path = program.as_bytes().contains(&b'/');
    let is_settled = !program.as_bytes().contains(&b'$')
        && (is_path || path_is_settled(environment, allowance, settings));
    if !is_settled {
        return Ok(());
    }
    let path = environment
        .get(b"PATH".as_slice())
        .map(|path| OsStr::from_bytes(path.reveal()));
    process::find_program(program, path).map(drop)
}

fn client(settings: &AgentSettings) -> Result<Client, StartError> {
    let authority = STANDARD
        .decode(&settings.ca)
        .map_err(|_| StartError::Settings {
            what: "a certificate authority",
        })?;
    let addresses: Vec<IpAddr> = settings
        .addresses
        .iter()
        .map(|address| address.parse())
        .collect::<Result<_, _>>()
        .map_err(|_| StartError::Settings { what: "an address" })?;
    Ok(Client::new(
        Endpoint::of_service(&settings.server, settings.port, addresses),
        &Trust::Authority(authority),
        Credential::File(PathBuf::from(&settings.token)),
        Patience {
            total: Duration::from_secs(settings.wait_seconds.into()),
            tries_max: u32::MAX,
        },
        USER_AGENT,
    )?)
}

/// Tells a refusal, which waiting does not change, from a server that was waited for in vain.
fn told(error: ClientError, settings: &AgentSettings) -> StartError {
    if error.is_distrust() {
        StartError::Distrust(error)
    } else if error.is_passing_for_reads() {
        StartError::TimedOut {
            wait_seconds: settings.wait_seconds,
            source: error,
        }
    } else {
        StartError::Refused(error)
    }
}

/// Of the pod's values those that this container's allowance covers.
fn values(answer: PodValuesResponse, allowance: &Allowance) -> BTreeMap<VariableName, Plaintext> {
    answer
        .values
        .into_iter()
        .filter(|value| value.stage == allowance.stage.as_str())
        .filter_map(|mut value| {
            let name: VariableName = value.name.parse().ok()?;
            if allowance.covers(&name) {
                Some((name, Plaintext::from(std::mem::take(&mut value.value.0))))
            } else {
                value.value.zeroize();
                None
            }
        })
        .collect()
}
