//! From the container's environment to what its program is started with: read the settings, look, fetch, compose.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::future::poll_fn;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::process::{self, LookupError};
use crate::client::{
    Client, ClientError, Credential, Endpoint, Patience, StageValue, Trust, TrustError,
};
use crate::domain::names::VariableName;
use crate::domain::plaintext::Plaintext;
use crate::domain::reference::expansion::{
    ComposeError, Composed, Environment, compose, path_is_settled,
};
use crate::domain::reference::{
    ALLOWANCE_ENTRY, AgentSettings, Allowance, FormError, SETTINGS_ENTRY,
};

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
    /// The container was told to stop before its program began.
    #[error("told to stop (signal {number}) while waiting for the variables")]
    Stopped {
        /// The signal's number.
        number: u8,
    },
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
    let answer = runtime.block_on(unless_stopped(client.pod_values()));
    // A name service that does not answer is not waited for.
    runtime.shutdown_background();
    let answer = answer?.map_err(|error| told(error, &settings))?;

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

/// Waits for `work`, or for a signal that asks the container to stop.
///
/// The kernel keeps such signals from a PID 1 that does not ask for them, so that without this a pod which is deleted while
/// it waits would be killed only at the end of its grace period.
async fn unless_stopped<T>(work: impl Future<Output = T>) -> Result<T, StartError> {
    let mut signals = Vec::new();
    for kind in [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::quit(),
    ] {
        signals.push((kind, signal(kind).map_err(StartError::Runtime)?));
    }
    let mut work = pin!(work);
    poll_fn(|context| {
        for (kind, signal) in &mut signals {
            if signal.poll_recv(context).is_ready() {
                let number = u8::try_from(kind.as_raw_value()).unwrap_or_default();
                return Poll::Ready(Err(StartError::Stopped { number }));
            }
        }
        work.as_mut().poll(context).map(Ok)
    })
    .await
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
fn values(answer: Vec<StageValue>, allowance: &Allowance) -> BTreeMap<VariableName, Plaintext> {
    answer
        .into_iter()
        .filter(|entry| entry.stage == allowance.stage && allowance.covers(&entry.name))
        .map(|entry| (entry.name, entry.value))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::client::test_server::{Reply, Server, error, ok, unused_port};

    /// A container that was prepared for `server`, with a token in `folder`.
    struct Container<'a> {
        server: &'a Server,
        folder: &'a Path,
        settings: serde_json::Value,
        allowance: serde_json::Value,
        entries: BTreeMap<String, String>,
    }

    impl<'a> Container<'a> {
        fn of(server: &'a Server, folder: &'a Path) -> Self {
            let token = folder.join("token");
            std::fs::write(&token, "pod-token\n").unwrap();
            Self {
                server,
                folder,
                settings: json!({
                    "v": 1, "server": "barekey.test", "port": server.port(), "addresses": ["127.0.0.1"],
                    "ca": STANDARD.encode(server.authority()), "token": token, "waitSeconds": 20,
                }),
                allowance: json!({"v": 1, "stage": "stg_1"}),
                entries: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
            }
        }

        fn start(&self, command: &[&str]) -> Result<Composed, StartError> {
            let mut entries = self.entries.clone();
            entries.insert(
                "BAREKEY_AGENT_SETTINGS".to_owned(),
                self.settings.to_string(),
            );
            entries.insert("BAREKEY_ALLOWANCE".to_owned(), self.allowance.to_string());
            let command: Vec<OsString> = command.iter().map(OsString::from).collect();
            start(
                entries
                    .into_iter()
                    .map(|(name, value)| (name.into(), value.into())),
                &command,
            )
        }

        fn refusal(&self, command: &[&str]) -> StartError {
            self.start(command).unwrap_err()
        }
    }

    fn values_of(names: &[(&str, &str, &str)]) -> Reply {
        let values: Vec<_> = names
            .iter()
            .map(|(stage, name, value)| json!({"stage": stage, "name": name, "value": value}))
            .collect();
        ok(&json!({"v": 1, "values": values, "requestId": "req_1"}))
    }

    #[test]
    fn a_container_gets_its_own_stages_values_and_sends_nothing_but_its_token() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|_| {
            values_of(&[
                ("stg_1", "KEY", "k"),
                ("stg_2", "KEY", "other"),
                ("stg_1", "EXTRA", "e"),
            ])
        });
        let mut container = Container::of(&server, folder.path());
        container.allowance["variables"] = json!(["KEY"]);
        container
            .entries
            .insert("A".to_owned(), "$(KEY)".to_owned());
        container.settings["own"] = json!(["A"]);
        container.settings["expand"] = json!(["A"]);
        let composed = container.start(&["sh", "$(KEY)"]).unwrap();
        let text = |value: &Plaintext| value.reveal_text().unwrap().to_owned();
        let environment: Vec<(String, String)> = composed
            .environment
            .iter()
            .map(|(name, value)| (String::from_utf8(name.clone()).unwrap(), text(value)))
            .collect();
        let expected = [("A", "k"), ("KEY", "k"), ("PATH", "/usr/bin:/bin")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(environment, expected);
        assert_eq!(
            composed.command.iter().map(text).collect::<Vec<_>>(),
            ["sh", "k"]
        );
        let requests = server.requests();
        assert_eq!(requests.len(), 1);
        assert!(
            requests[0]
                .head
                .starts_with("POST /v1/pod/values HTTP/1.1\r\n")
        );
        assert_eq!(
            requests[0].header("authorization"),
            Some("Bearer pod-token")
        );
        assert_eq!(requests[0].body, r#"{"v":1}"#);
    }

    #[test]
    fn a_program_that_is_not_there_costs_no_call() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|_| values_of(&[]));
        let container = Container::of(&server, folder.path());
        for (program, exit_code) in [
            ("no-such-program", 127),
            ("/none", 127),
            ("/etc/passwd", 126),
        ] {
            match container.refusal(&[program]) {
                StartError::Lookup(error) => assert_eq!(error.exit_code(), exit_code, "{program}"),
                other => panic!("{program}: {other}"),
            }
        }
        assert_eq!(server.connections(), 0);
    }

    #[test]
    fn every_missing_name_is_in_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|_| values_of(&[("stg_1", "KEY", "k")]));
        let mut container = Container::of(&server, folder.path());
        container.allowance["variables"] = json!(["KEY", "GONE", "AWAY"]);
        let text = container.refusal(&["sh"]).to_string();
        assert!(text.contains("no AWAY, GONE,"), "{text}");
        assert!(!text.contains("KEY"), "{text}");
    }

    #[test]
    fn a_refusal_ends_the_start_at_once_with_the_servers_words() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|_| error(403, "FORBIDDEN", "no access for shop/api"));
        let container = Container::of(&server, folder.path());
        let refused = container.refusal(&["sh"]);
        assert!(matches!(refused, StartError::Refused(_)), "{refused}");
        assert!(
            refused.to_string().contains("no access for shop/api"),
            "{refused}"
        );
        assert_eq!(server.requests().len(), 1);
    }

    #[test]
    fn a_server_that_comes_within_the_budget_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|request| match request.number {
            0 => Reply::Close,
            1 => error(503, "STORAGE_UNAVAILABLE", "away").with_header("Retry-After: 0"),
            _ => values_of(&[("stg_1", "KEY", "k")]),
        });
        let container = Container::of(&server, folder.path());
        assert!(container.start(&["sh"]).is_ok());
        assert_eq!(server.requests().len(), 3);
    }

    #[test]
    fn a_server_that_stays_away_is_waited_for_as_long_as_the_budget_says() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|_| Reply::Close);
        let mut container = Container::of(&server, folder.path());
        container.settings["port"] = json!(unused_port());
        container.settings["waitSeconds"] = json!(1);
        let begin = Instant::now();
        let refused = container.refusal(&["sh"]);
        assert!(
            matches!(
                refused,
                StartError::TimedOut {
                    wait_seconds: 1,
                    ..
                }
            ),
            "{refused}"
        );
        assert!(begin.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn a_server_of_another_authority_or_name_is_not_asked_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|_| values_of(&[]));
        let other = Server::start(|_| values_of(&[]));
        let mut container = Container::of(&server, folder.path());
        container.settings["ca"] = json!(STANDARD.encode(other.authority()));
        assert!(matches!(
            container.refusal(&["sh"]),
            StartError::Distrust(_)
        ));
        let mut container = Container::of(&server, folder.path());
        container.settings["server"] = json!("localhost.other");
        assert!(matches!(
            container.refusal(&["sh"]),
            StartError::Distrust(_)
        ));
        assert_eq!(server.requests().len(), 0);
        assert_eq!(container.server.connections(), 2);
    }

    #[test]
    fn a_token_that_is_renewed_after_a_refusal_is_tried_once() {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        let server = Server::start(move |request| {
            if request.header("authorization") == Some("Bearer renewed") {
                return values_of(&[]);
            }
            std::fs::write(&token, "renewed").unwrap();
            error(401, "UNAUTHORIZED", "the token has ended")
        });
        let container = Container::of(&server, folder.path());
        assert!(container.start(&["sh"]).is_ok());
        assert_eq!(server.requests().len(), 2);
    }

    #[test]
    fn a_token_that_stays_refused_ends_the_start_after_one_more_try() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|_| error(401, "UNAUTHORIZED", "no"));
        let container = Container::of(&server, folder.path());
        assert!(matches!(container.refusal(&["sh"]), StartError::Refused(_)));
        assert_eq!(server.requests().len(), 2);
    }

    #[test]
    fn a_container_that_was_not_prepared_is_told_so() {
        let entries = [("PATH".into(), "/bin".into())];
        let refused = start(entries.into_iter(), &["sh".into()]).unwrap_err();
        assert!(
            refused.to_string().contains("BAREKEY_AGENT_SETTINGS"),
            "{refused}"
        );
    }

    #[test]
    fn a_missing_token_is_named_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let server = Server::start(|_| values_of(&[]));
        let container = Container::of(&server, folder.path());
        std::fs::remove_file(container.folder.join("token")).unwrap();
        let refused = container.refusal(&["sh"]);
        assert!(refused.to_string().contains("/token"), "{refused}");
        assert_eq!(server.requests().len(), 0);
    }

    /// Where the test below tells its child which port to wait on.
    const STOPPED_AT_PORT: &str = "BAREKEY_TEST_STOPPED_AT_PORT";

    #[test]
    fn a_start_that_waits_ends_when_it_is_told_to_stop() {
        // In a process of its own, since a signal reaches all tests of this one.
        if let Ok(port) = std::env::var(STOPPED_AT_PORT) {
            let folder = tempfile::tempdir().unwrap();
            let server = Server::start(|_| Reply::Close);
            let mut container = Container::of(&server, folder.path());
            container.settings["port"] = json!(port.parse::<u16>().unwrap());
            let refused = container.refusal(&["sh"]);
            assert!(
                matches!(refused, StartError::Stopped { number: 15 }),
                "{refused}"
            );
            return;
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let name = "agent::start::tests::a_start_that_waits_ends_when_it_is_told_to_stop";
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(STOPPED_AT_PORT, port.to_string())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        // The child waits for a handshake that never comes.
        let connection = listener.accept().unwrap();
        let begin = Instant::now();
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::TERM,
        )
        .unwrap();
        assert!(child.wait().unwrap().success());
        assert!(begin.elapsed() < Duration::from_secs(3));
        drop(connection);
    }
}
