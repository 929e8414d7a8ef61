//! The HTTP API as Rust calls: address, trust, credential, retries, time limits. One client for the agent and the command.
//!
//! # Guarantees
//!
//! - A server is spoken to only after its certificate was checked against the given trust and the name that was asked for,
//!   whatever address was connected to. Plain HTTP is spoken only where the URL says `http://`.
//! - A call that changes something is sent again only when the server cannot have done it: no connection came about, or it
//!   answered 429 or 503.
//! - Bodies are held in memory that is wiped; answers are bounded by [`ANSWER_BYTES_MAX`].

mod connection;
mod retry;
#[cfg(test)]
pub(crate) mod test_server;
mod trust;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::HeaderValue;
use hyper::{Method, Uri};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::domain::names::{StageId, VariableName};
use crate::domain::plaintext::Plaintext;
use crate::domain::reference::FORM_VERSION;
use crate::protocol::environment::{
    EvaluateBatchRequest, EvaluateBatchResponse, EvaluateRequest, EvaluateResponse, ListRequest,
    ListResponse, PullRequest, PullResponse, WriteRequest, WriteResponse,
};
use crate::protocol::error::ErrorBody;
use crate::protocol::management::{
    ProjectCreateRequest, ProjectCreateResponse, ProjectListRequest, ProjectListResponse,
    StageCreateRequest, StageCreateResponse, StageListRequest, StageListResponse,
};
use crate::protocol::pod::{PodValuesRequest, PodValuesResponse};
use crate::protocol::session::SessionResponse;

pub use connection::ConnectError;
use retry::Retry;
pub use trust::{Trust, TrustError};

/// The longest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Why a text is not the address of a server.
#[derive(Debug, thiserror::Error)]
#[error(
    "{url:?} is not the address of a server: use https://HOST[:PORT], or http:// for one on this machine"
)]
pub struct EndpointError {
    /// The text.
    pub url: String,
}

/// Where the server is.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The name (or address) that the certificate must have.
    host: String,
    port: u16,
    /// Tried before the name is looked up.
    addresses: Vec<IpAddr>,
    /// Whether the connection is not encrypted.
    plain: bool,
    /// What comes before `/v1`, without a slash at its end.
    base: String,
}

impl Endpoint {
    /// The server of a URL: `https://HOST[:PORT][/BASE]`, or `http://…` for a connection that is not encrypted.
    ///
    /// # Errors
    /// [`EndpointError`] for anything else.
    pub fn parse_url(url: &str) -> Result<Self, EndpointError> {
        let bad = || EndpointError {
            url: url.chars().take(256).collect(),
        };
        let uri: Uri = url.trim().parse().map_err(|_| bad())?;
        let plain = match uri.scheme_str() {
            Some("https") => false,
            Some("http") => true,
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(bad());
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']');
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(if plain { 80 } else { 443 }),
            addresses: Vec::new(),
            plain,
            base: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// A Service: its addresses are tried first, then its name is looked up.
    pub fn of_service(name: &str, port: u16, addresses: Vec<IpAddr>) -> Self {
        Self {
            host: name.to_owned(),
            port,
            addresses,
            plain: false,
            base: String::new(),
        }
    }

    /// Whether values would travel in the clear to another machine.
    pub fn exposes_values(&self) -> bool {
        let loopback = self.host == "localhost"
            || self
                .host
                .parse()
                .is_ok_and(|address: IpAddr| address.is_loopback());
        self.plain && !loopback
    }

    /// `HOST:PORT`, as it stands in messages and in the `Host` header.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// What proves who asks.
pub enum Credential {
    /// A token that does not change.
    Token(Zeroizing<String>),
    /// A file with a token that something else renews. Read for each try; a refusal of the token is tried once more.
    File(PathBuf),
}

/// How long a client goes on trying.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// No try begins, and none goes on, after so long.
    pub total: Duration,
    /// No more tries than this.
    pub tries_max: u32,
}

/// One value of a stage.
#[derive(Debug)]
pub struct StageValue {
    /// The stage.
    pub stage: StageId,
    /// The name that it has there.
    pub name: VariableName,
    /// The value.
    pub value: Plaintext,
}

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file of the credential cannot be read, or is empty.
    #[error("cannot read the token in {}", path.display())]
    Credential {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The credential holds a character that no header can carry.
    #[error("the token is not one: it holds a line break or another character that no token has")]
    MalformedCredential,
    /// No connection came about; the server has not seen the call.
    #[error("cannot {what}: no connection to {authority}")]
    Unreachable {
        /// What was asked.
        what: String,
        /// The server.
        authority: String,
        /// Why.
        source: Box<ConnectError>,
    },
    /// The connection broke, or time ran out, after the call was sent.
    #[error("cannot {what}: {authority} did not answer{}", if *changes { ", and may or may not have done it" } else { "" })]
    Unanswered {
        /// What was asked.
        what: String,
        /// The server.
        authority: String,
        /// Whether the call changes something.
        changes: bool,
        /// Why.
        source: Box<ConnectError>,
    },
    /// The server refused.
    #[error("cannot {what}: {message} ({code}, request {request_id})")]
    Refused {
        /// What was asked.
        what: String,
        /// The status.
        status: u16,
        /// The API's code.
        code: String,
        /// The server's words.
        message: String,
        /// The id of the request.
        request_id: String,
    },
    /// The answer is in a form of another release.
    #[error("the server answers in version {v}, and this program knows version {FORM_VERSION}")]
    UnknownVersion {
        /// The version.
        v: u32,
    },
    /// The answer is not one of this API.
    #[error(
        "cannot {what}: {authority} answered {status} with something that is not of the Barekey API; is this its address?"
    )]
    Foreign {
        /// What was asked.
        what: String,
        /// The server.
        authority: String,
        /// The status.
        status: u16,
    },
}

impl ClientError {
    /// Whether the same call may pass a little later.
    fn is_passing(&self, changes: bool) -> bool {
        match self {
            Self::Unreachable { source, .. } => source.is_passing(),
            Self::Unanswered { source, .. } => !changes && source.is_passing(),
            Self::Refused { status, .. } | Self::Foreign { status, .. } => {
                matches!(status, 429 | 503)
            }
            Self::Credential { .. } | Self::MalformedCredential | Self::UnknownVersion { .. } => {
                false
            }
        }
    }

    /// Whether the server's certificate does not pass.
    pub fn is_distrust(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.is_distrust())
    }

    /// Whether a call that only reads may pass a little later.
    pub fn is_passing_for_reads(&self) -> bool {
        self.is_passing(false)
    }

    /// Whether the server did not take the credential.
    fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }
}

/// Whether a call changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Reads,
    Changes,
}

/// A server and how it is spoken to. A call is one connection.
pub struct Client {
    endpoint: Endpoint,
    connector: connection::Connector,
    credential: Credential,
    patience: Patience,
    agent: &'static str,
}

impl Client {
    /// A client of `endpoint`. `agent` is sent as `User-Agent`.
    ///
    /// # Errors
    /// [`TrustError`] when `trust` is no certificate, or there is none on this machine.
    pub fn new(
        endpoint: Endpoint,
        trust: &Trust,
        credential: Credential,
        patience: Patience,
        agent: &'static str,
    ) -> Result<Self, TrustError> {
        let connector = connection::Connector::new(&endpoint, trust)?;
        Ok(Self {
            endpoint,
            connector,
            credential,
            patience,
            agent,
        })
    }

    /// `POST /v1/env/evaluate`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn evaluate(&self, body: &EvaluateRequest) -> Result<EvaluateResponse, ClientError> {
        let what = format!(
            "read {} of {}/{}",
            body.name, body.project_slug, body.stage_slug
        );
        self.post(what, "/v1/env/evaluate", Effect::Reads, body)
            .await
    }

    /// `POST /v1/env/evaluate-batch`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn evaluate_batch(
        &self,
        body: &EvaluateBatchRequest,
    ) -> Result<EvaluateBatchResponse, ClientError> {
        let what = format!(
            "read variables of {}/{}",
            body.project_slug, body.stage_slug
        );
        self.post(what, "/v1/env/evaluate-batch", Effect::Reads, body)
            .await
    }

    /// `POST /v1/env/pull`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pull(&self, body: &PullRequest) -> Result<PullResponse, ClientError> {
        let what = format!("read {}/{}", body.project_slug, body.stage_slug);
        self.post(what, "/v1/env/pull", Effect::Reads, body).await
    }

    /// `POST /v1/env/list`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self, body: &ListRequest) -> Result<ListResponse, ClientError> {
        let what = format!(
            "list the variables of {}/{}",
            body.project_slug, body.stage_slug
        );
        self.post(what, "/v1/env/list", Effect::Reads, body).await
    }

    /// `POST /v1/env/write`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn write(&self, body: &WriteRequest) -> Result<WriteResponse, ClientError> {
        let what = format!("write to {}/{}", body.project_slug, body.stage_slug);
        self.post(what, "/v1/env/write", Effect::Changes, body)
            .await
    }

    /// `POST /v1/cli/projects/list`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_projects(
        &self,
        body: &ProjectListRequest,
    ) -> Result<ProjectListResponse, ClientError> {
        let what = "list the projects".to_owned();
        self.post(what, "/v1/cli/projects/list", Effect::Reads, body)
            .await
    }

    /// `POST /v1/cli/projects/create`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_project(
        &self,
        body: &ProjectCreateRequest,
    ) -> Result<ProjectCreateResponse, ClientError> {
        let what = format!("make the project {:?}", body.name);
        self.post(what, "/v1/cli/projects/create", Effect::Changes, body)
            .await
    }

    /// `POST /v1/cli/stages/list`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_stages(
        &self,
        body: &StageListRequest,
    ) -> Result<StageListResponse, ClientError> {
        let what = format!("list the stages of {}", body.project_slug);
        self.post(what, "/v1/cli/stages/list", Effect::Reads, body)
            .await
    }

    /// `POST /v1/cli/stages/create`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_stage(
        &self,
        body: &StageCreateRequest,
    ) -> Result<StageCreateResponse, ClientError> {
        let what = format!("make the stage {:?} in {}", body.name, body.project_slug);
        self.post(what, "/v1/cli/stages/create", Effect::Changes, body)
            .await
    }

    /// `GET /v1/cli/session`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn session(&self) -> Result<SessionResponse, ClientError> {
        let call = Call {
            what: "ask who this is".to_owned(),
            method: Method::GET,
            path: "/v1/cli/session",
            effect: Effect::Reads,
            body: Bytes::new(),
        };
        self.call(&call).await
    }

    /// `POST /v1/pod/values`: what the allowances of the calling pod give it, of all its containers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pod_values(&self) -> Result<Vec<StageValue>, ClientError> {
        let what = "read this pod's variables".to_owned();
        let body = PodValuesRequest { v: FORM_VERSION };
        let answer: PodValuesResponse = self
            .post(what, "/v1/pod/values", Effect::Reads, &body)
            .await?;
        if answer.v != FORM_VERSION {
            return Err(ClientError::UnknownVersion { v: answer.v });
        }
        // A name that is none of ours comes from a newer server; no allowance of this pod can ask for it.
        let known = answer.values.into_iter().filter_map(|mut entry| {
            Some(StageValue {
                stage: entry.stage.parse().ok()?,
                name: entry.name.parse().ok()?,
                value: std::mem::take(&mut entry.value.0).into(),
            })
        });
        Ok(known.collect())
    }

    async fn post<B: Serialize, A: DeserializeOwned>(
        &self,
        what: String,
        path: &'static str,
        effect: Effect,
        body: &B,
    ) -> Result<A, ClientError> {
        // Our own bodies are maps with text keys, which always serialise.
        let body = Zeroizing::new(serde_json::to_vec(body).unwrap_or_default());
        let body = Bytes::from_owner(body);
        let call = Call {
            what,
            method: Method::POST,
            path,
            effect,
            body,
        };
        self.call(&call).await
    }

    /// Makes a call, again and again while that can help and patience lasts.
    async fn call<A: DeserializeOwned>(&self, call: &Call) -> Result<A, ClientError> {
        let changes = call.effect == Effect::Changes;
        let mut retry = Retry::new(self.patience);
        let mut token_refused = false;
        loop {
            let (error, retry_after) = match self.attempt(call, retry.deadline()).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let renewable = matches!(self.credential, Credential::File(_));
            let again = if error.is_unauthorized() && renewable && !token_refused {
                // The token may have been renewed under us, or the keys behind it.
                token_refused = true;
                true
            } else {
                error.is_passing(changes)
            };
            if !again || !retry.pause(retry_after).await {
                return Err(error);
            }
        }
    }

    async fn attempt<A: DeserializeOwned>(
        &self,
        call: &Call,
        deadline: Instant,
    ) -> Result<A, (ClientError, Option<Duration>)> {
        let authority = self.endpoint.authority();
        let bearer = self.bearer().map_err(|error| (error, None))?;
        let request = connection::Request {
            method: &call.method,
            path: call.path,
            body: call.body.clone(),
            bearer,
            agent: self.agent,
        };
        let answer = match self
            .connector
            .exchange(&self.endpoint, request, deadline)
            .await
        {
            Ok(answer) => answer,
            Err(connection::ExchangeError::NotSent(source)) => {
                let what = call.what.clone();
                return Err((
                    ClientError::Unreachable {
                        what,
                        authority,
                        source: Box::new(source),
                    },
                    None,
                ));
            }
            Err(connection::ExchangeError::Unanswered(source)) => {
                return Err((
                    ClientError::Unanswered {
                        what: call.what.clone(),
                        authority,
                        changes: call.effect == Effect::Changes,
                        source: Box::new(source),
                    },
                    None,
                ));
            }
        };
        let refusal = if (200..300).contains(&answer.status) {
            match serde_json::from_slice(&answer.body) {
                Ok(body) => return Ok(body),
                Err(_) => None,
            }
        } else {
            serde_json::from_slice::<ErrorBody>(&answer.body).ok()
        };
        let error = match refusal {
            Some(ErrorBody { error }) => ClientError::Refused {
                what: call.what.clone(),
                status: answer.status,
                code: error.code,
                message: error.message,
                request_id: error.request_id,
            },
            None => ClientError::Foreign {
                what: call.what.clone(),
                authority,
                status: answer.status,
            },
        };
        Err((error, answer.retry_after))
    }

    /// The `Authorization` header.
    fn bearer(&self) -> Result<HeaderValue, ClientError> {
        let mut text = Zeroizing::new("Bearer ".to_owned());
        match &self.credential {
            Credential::Token(token) => text.push_str(token.trim()),
            Credential::File(path) => {
                let failed = |source| ClientError::Credential {
                    path: path.clone(),
                    source,
                };
                let token = Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
                if token.trim().is_empty() {
                    return Err(failed(std::io::Error::from(
                        std::io::ErrorKind::UnexpectedEof,
                    )));
                }
                text.push_str(token.trim());
            }
        }
        let mut header =
            HeaderValue::from_str(&text).map_err(|_| ClientError::MalformedCredential)?;
        header.set_sensitive(true);
        Ok(header)
    }
}

/// One call.
struct Call {
    /// What is asked, as it stands after "cannot".
    what: String,
    method: Method,
    path: &'static str,
    effect: Effect,
    /// Wiped when the last copy of the handle is gone.
    body: Bytes,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::test_server::{Reply, SERVER_NAME, Server, error, ok, reply, unused_port};
    use super::*;

    fn run<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    fn patience(tries_max: u32) -> Patience {
        Patience {
            total: Duration::from_secs(20),
            tries_max,
        }
    }

    fn client_at(endpoint: Endpoint, trust: &Trust) -> Client {
        let token = Credential::Token(Zeroizing::new("bk_api_1".to_owned()));
        Client::new(endpoint, trust, token, patience(3), "test/1").unwrap()
    }

    fn client_of(server: &Server) -> Client {
        let address = vec!["127.0.0.1".parse().unwrap()];
        client_at(
            Endpoint::of_service(SERVER_NAME, server.port(), address),
            &Trust::Authority(server.authority().to_vec()),
        )
    }

    fn list_projects(client: &Client) -> Result<ProjectListResponse, ClientError> {
        run(client.list_projects(&ProjectListRequest { org_slug: None }))
    }

    fn create_project(client: &Client) -> Result<ProjectCreateResponse, ClientError> {
        run(client.create_project(&ProjectCreateRequest {
            org_slug: None,
            name: "Shop".to_owned(),
            slug: None,
        }))
    }

    fn no_projects() -> Reply {
        ok(&json!({"projects": [], "requestId": "req_1"}))
    }

    #[test]
    fn the_servers_of_urls_are_read() {
        let server = |url: &str| {
            let endpoint = Endpoint::parse_url(url).unwrap();
            (
                endpoint.authority(),
                endpoint.base.clone(),
                endpoint.plain,
                endpoint.exposes_values(),
            )
        };
        let expected = |authority: &str, base: &str, plain, exposes| {
            (authority.to_owned(), base.to_owned(), plain, exposes)
        };
        assert_eq!(
            server("https://barekey.dev/"),
            expected("barekey.dev:443", "", false, false)
        );
        assert_eq!(
            server("https://h:8200/a/b/"),
            expected("h:8200", "/a/b", false, false)
        );
        assert_eq!(
            server("http://127.0.0.1:8200"),
            expected("127.0.0.1:8200", "", true, false)
        );
        assert_eq!(
            server("http://[::1]:8200"),
            expected("[::1]:8200", "", true, false)
        );
        assert_eq!(
            server("http://localhost"),
            expected("localhost:80", "", true, false)
        );
        assert_eq!(
            server("http://barekey.svc"),
            expected("barekey.svc:80", "", true, true)
        );
    }

    #[test]
    fn what_is_no_url_of_a_server_is_refused() {
        for bad in [
            "",
            "barekey.dev",
            "ftp://h",
            "https://",
            "https://u:p@h",
            "https://h?a=b",
            "//h",
            "/v1",
        ] {
            assert!(Endpoint::parse_url(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_call_carries_its_path_its_token_and_its_body_to_a_server_with_the_right_name() {
        let server = Server::start(|_| ok(&json!({"variables": {"A": "1"}, "requestId": "r"})));
        let pulled = run(client_of(&server).pull(&PullRequest {
            org_slug: None,
            project_slug: "shop".to_owned(),
            stage_slug: "production".to_owned(),
            seed: None,
            key: None,
        }))
        .unwrap();
        assert_eq!(pulled.variables["A"].0, "1");
        let requests = server.requests();
        assert!(
            requests[0]
                .head
                .starts_with("POST /v1/env/pull HTTP/1.1\r\n")
        );
        assert_eq!(requests[0].header("authorization"), Some("Bearer bk_api_1"));
        assert_eq!(
            requests[0].header("host"),
            Some(format!("{SERVER_NAME}:{}", server.port()).as_str())
        );
        assert_eq!(
            requests[0].body,
            r#"{"projectSlug":"shop","stageSlug":"production"}"#
        );
    }

    #[test]
    fn a_server_of_another_authority_hears_no_token_and_is_tried_once() {
        let server = Server::start(|_| no_projects());
        let other = Server::start(|_| no_projects());
        let mut client = client_of(&server);
        client.connector = connection::Connector::new(
            &client.endpoint,
            &Trust::Authority(other.authority().to_vec()),
        )
        .unwrap();
        assert!(list_projects(&client).unwrap_err().is_distrust());
        assert_eq!((server.connections(), server.requests().len()), (1, 0));
    }

    #[test]
    fn a_server_of_another_name_hears_no_token_and_is_tried_once() {
        let server = Server::start(|_| no_projects());
        let endpoint = Endpoint::of_service(
            "barekey.elsewhere",
            server.port(),
            vec!["127.0.0.1".parse().unwrap()],
        );
        let client = client_at(endpoint, &Trust::Authority(server.authority().to_vec()));
        assert!(list_projects(&client).unwrap_err().is_distrust());
        assert_eq!(server.requests().len(), 0);
    }

    #[test]
    fn an_address_is_a_name_that_a_certificate_can_have() {
        let server = Server::start(|_| no_projects());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        std::fs::write(&file, server.authority_pem()).unwrap();
        let url = format!("https://127.0.0.1:{}", server.port());
        let client = client_at(Endpoint::parse_url(&url).unwrap(), &Trust::File(file));
        assert!(list_projects(&client).is_ok());
    }

    #[test]
    fn a_plain_server_is_spoken_to_when_the_url_says_http() {
        let server = Server::start_plain(|_| no_projects());
        let url = format!("http://localhost:{}/base", server.port());
        let client = client_at(
            Endpoint::parse_url(&url).unwrap(),
            &Trust::Authority(Vec::new()),
        );
        assert!(list_projects(&client).is_ok());
        assert!(
            server.requests()[0]
                .head
                .starts_with("POST /base/v1/cli/projects/list ")
        );
    }

    #[test]
    fn a_server_that_is_busy_or_away_is_asked_again() {
        for status in [429, 503] {
            let server = Server::start(move |request| match request.number {
                0 => error(status, "BUSY", "later").with_header("Retry-After: 0"),
                _ => no_projects(),
            });
            assert!(list_projects(&client_of(&server)).is_ok());
            assert!(server.requests().len() == 2, "{status}");
        }
    }

    #[test]
    fn a_change_is_sent_again_when_the_server_was_too_busy_to_look_at_it() {
        let server = Server::start(|request| match request.number {
            0 => error(503, "STORAGE_UNAVAILABLE", "later"),
            _ => error(400, "PROJECT_CREATE_FAILED", "taken"),
        });
        let refused = create_project(&client_of(&server)).unwrap_err();
        assert!(refused.to_string().contains("taken"), "{refused}");
        assert_eq!(server.requests().len(), 2);
    }

    #[test]
    fn a_change_whose_answer_is_lost_is_not_sent_again_and_a_read_is() {
        let server = Server::start(|_| Reply::Close);
        let lost = create_project(&client_of(&server)).unwrap_err();
        assert!(lost.to_string().contains("may or may not"), "{lost}");
        assert_eq!(server.requests().len(), 1);
        assert!(list_projects(&client_of(&server)).is_err());
        assert_eq!(server.requests().len(), 4);
    }

    #[test]
    fn tries_end_with_patience() {
        let port = unused_port();
        let url = format!("http://127.0.0.1:{port}");
        let client = client_at(
            Endpoint::parse_url(&url).unwrap(),
            &Trust::Authority(Vec::new()),
        );
        let refused = list_projects(&client).unwrap_err();
        assert!(
            matches!(refused, ClientError::Unreachable { .. }),
            "{refused}"
        );
        // A pause that ends after patience is not begun.
        let server = Server::start(|_| {
            error(503, "STORAGE_UNAVAILABLE", "later").with_header("Retry-After: 3600")
        });
        let begin = Instant::now();
        assert!(list_projects(&client_of(&server)).is_err());
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(server.requests().len(), 1);
    }

    #[test]
    fn a_refusal_says_what_was_asked_and_what_the_server_answered() {
        let server = Server::start(|_| error(403, "FORBIDDEN", "the role viewer may not"));
        assert_eq!(
            create_project(&client_of(&server)).unwrap_err().to_string(),
            "cannot make the project \"Shop\": the role viewer may not (FORBIDDEN, request req_1)"
        );
    }

    #[test]
    fn an_answer_of_something_else_is_not_taken_for_one_and_not_shown() {
        for (status, body) in [
            (200, "<html>"),
            (200, "{}"),
            (404, "not found"),
            (500, "{}"),
        ] {
            let server = Server::start(move |_| reply(status, body));
            let refused = list_projects(&client_of(&server)).unwrap_err();
            assert!(
                matches!(refused, ClientError::Foreign { status: seen, .. } if seen == status),
                "{refused}"
            );
        }
    }

    #[test]
    fn an_answer_that_is_too_long_is_not_read() {
        let server = Server::start(|_| {
            let length = ANSWER_BYTES_MAX + 1;
            Reply::Bytes(format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"
            ))
        });
        let refused = list_projects(&client_of(&server)).unwrap_err();
        assert!(
            matches!(&refused, ClientError::Unanswered { source, .. } if matches!(**source, ConnectError::TooLong)),
            "{refused}"
        );
        assert_eq!(server.requests().len(), 1);
    }

    #[test]
    fn a_token_that_no_header_can_carry_is_refused_without_being_shown() {
        let server = Server::start(|_| no_projects());
        let mut client = client_of(&server);
        client.credential = Credential::Token(Zeroizing::new("bk_\napi".to_owned()));
        let refused = list_projects(&client).unwrap_err();
        assert!(!refused.to_string().contains("bk_"), "{refused}");
        assert_eq!(server.connections(), 0);
    }

    #[test]
    fn a_file_without_a_certificate_is_refused_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        let refusal = || {
            Trust::File(file.clone())
                .client_config()
                .unwrap_err()
                .to_string()
        };
        assert!(refusal().contains("ca.crt"));
        std::fs::write(&file, "no certificate").unwrap();
        assert!(refusal().contains("holds no certificate"), "{}", refusal());
    }
}
