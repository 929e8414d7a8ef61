//! The HTTP API as Rust calls: address, trust, credential, retries, time limits. One client for the agent and the command.
//!
//! # Guarantees
//!
//! - A server is spoken to only after its certificate was checked against the given trust and the name that was asked for,
//!   whatever address was connected to. Plain HTTP is spoken only where the URL says `http://`.
//! - A call that changes something is sent again only when the server cannot have done it: no connection came about, or it
//!   answered 429 or 503 and said when to come again.
//! - Bodies are held in memory that is wiped; answers are bounded by [`ANSWER_BYTES_MAX`].

mod calls;
mod connection;
mod endpoint;
mod error;
mod retry;
pub(crate) mod test_server;
#[cfg(test)]
mod tests;
mod trust;

use std::path::PathBuf;
use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use hyper::header::HeaderValue;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use zeroize::Zeroizing;

use crate::protocol::error::ErrorBody;

pub use calls::StageValue;
pub use connection::ConnectError;
pub use endpoint::{Endpoint, EndpointError};
pub use error::ClientError;
use retry::Retry;
pub use trust::{Trust, TrustError};

/// The longest answer that is read, in bytes.
pub const ANSWER_BYTES_MAX: usize = 32 * 1024 * 1024;

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
                // A server that may have begun a change says nothing of coming again; a stranger's word counts for nothing.
                let not_begun = error.is_refused() && retry_after.is_some();
                error.is_passing(changes) && (!changes || not_begun || error.is_unsent())
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
