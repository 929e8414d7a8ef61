//! One call over one connection: find an address, connect, check the certificate, send, read the bounded answer.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, RETRY_AFTER, USER_AGENT,
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use crate::client::trust::{Trust, TrustError};
use crate::client::{ANSWER_BYTES_MAX, Endpoint};

/// How long one address may take to accept.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// How long a name may take to be looked up.
const LOOKUP_TIME_MAX: Duration = Duration::from_secs(5);
/// How long a TLS handshake may take.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// A server that asks for a longer pause is held to have asked for this one.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// How long an answer may take, from the sent request to its last byte.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(30);

/// Why there is no connection, or no answer on it.
#[derive(Debug)]
pub enum ConnectError {
    /// The name was not looked up.
    Lookup {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The name has no address.
    NoAddress {
        /// The name.
        host: String,
    },
    /// Nothing accepts there.
    Refused {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate there is not one to trust.
    Untrusted {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: rustls::Error,
    },
    /// The TLS handshake broke off.
    Handshake {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Something did not happen in time.
    TimedOut {
        /// What.
        step: &'static str,
    },
    /// The request could not be written as HTTP, or the answer is none.
    Http(hyper::Error),
    /// The request is none that HTTP can carry.
    Unsendable(hyper::http::Error),
    /// The answer is longer than [`ANSWER_BYTES_MAX`].
    TooLong,
}

impl ConnectError {
    /// Whether the server showed a certificate that does not pass: waiting does not help.
    pub fn is_distrust(&self) -> bool {
        matches!(self, Self::Untrusted { .. })
    }

    /// Whether the same may go well a little later.
    pub(super) fn is_passing(&self) -> bool {
        !matches!(
            self,
            Self::Untrusted { .. } | Self::Unsendable(_) | Self::TooLong
        )
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lookup { host, .. } => write!(f, "{host} cannot be looked up"),
            Self::NoAddress { host } => write!(f, "{host} has no address"),
            Self::Refused { address, .. } => write!(f, "{address} does not accept"),
            Self::Untrusted { address, .. } => {
                write!(f, "the certificate of {address} does not pass")
            }
            Self::Handshake { address, .. } => {
                write!(f, "the TLS handshake with {address} broke off")
            }
            Self::TimedOut { step } => write!(f, "no {step} in time"),
            Self::Http(_) => f.write_str("the connection broke"),
            Self::Unsendable(_) => f.write_str("the request is not one that HTTP can carry"),
            Self::TooLong => write!(f, "the answer is longer than {ANSWER_BYTES_MAX} bytes"),
        }
    }
}

impl std::error::Error for ConnectError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Lookup { source, .. }
            | Self::Refused { source, .. }
            | Self::Handshake { source, .. } => Some(source),
            Self::Untrusted { source, .. } => Some(source),
            Self::Http(source) => Some(source),
            Self::Unsendable(source) => Some(source),
            Self::NoAddress { .. } | Self::TimedOut { .. } | Self::TooLong => None,
        }
    }
}

/// Where a call failed: before the server can have seen it, or after.
pub(super) enum ExchangeError {
    NotSent(ConnectError),
    Unanswered(ConnectError),
}

/// What is sent.
pub(super) struct Request<'a> {
    pub(super) method: &'a hyper::Method,
    pub(super) path: &'a str,
    pub(super) body: Bytes,
    pub(super) bearer: HeaderValue,
    pub(super) agent: &'static str,
}

/// What came back.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Zeroizing<Vec<u8>>,
}

/// A connection, encrypted or not.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// How connections are made.
pub(super) struct Connector(Option<(TlsConnector, ServerName<'static>)>);

impl Connector {
    pub(super) fn new(endpoint: &Endpoint, trust: &Trust) -> Result<Self, TrustError> {
        if endpoint.plain {
            return Ok(Self(None));
        }
        let name =
            ServerName::try_from(endpoint.host.clone()).map_err(|_| TrustError::BadName {
                host: endpoint.host.clone(),
            })?;
        let config = trust.client_config()?;
        Ok(Self(Some((TlsConnector::from(Arc::new(config)), name))))
    }

    /// Sends one request and reads its answer.
    pub(super) async fn exchange(
        &self,
        endpoint: &Endpoint,
        request: Request<'_>,
        deadline: Instant,
    ) -> Result<Answer, ExchangeError> {
        let stream = self
            .open(endpoint, deadline)
            .await
            .map_err(ExchangeError::NotSent)?;
        let by = deadline.min(Instant::now() + ANSWER_TIME_MAX);
        match timeout_at(by, converse(stream, endpoint, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(ExchangeError::Unanswered(ConnectError::TimedOut {
                step: "answer",
            })),
        }
    }

    /// A connection to the first address that gives a good one: those that were given, then those of the name.
    async fn open(
        &self,
        endpoint: &Endpoint,
        deadline: Instant,
    ) -> Result<Box<dyn Stream>, ConnectError> {
        let mut failed = None;
        for address in &endpoint.addresses {
            match self
                .open_at(SocketAddr::new(*address, endpoint.port), deadline)
                .await
            {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = Some(error),
            }
        }
        let found = match look_up(endpoint, deadline).await {
            Ok(found) => found,
            // The given addresses are the better story.
            Err(error) => return Err(failed.unwrap_or(error)),
        };
        for address in found {
            if endpoint.addresses.contains(&address.ip()) {
                continue;
            }
            match self.open_at(address, deadline).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| ConnectError::NoAddress {
            host: endpoint.host.clone(),
        }))
    }

    async fn open_at(
        &self,
        address: SocketAddr,
        deadline: Instant,
    ) -> Result<Box<dyn Stream>, ConnectError> {
        let by = deadline.min(Instant::now() + CONNECT_TIME_MAX);
        let stream = timeout_at(by, TcpStream::connect(address))
            .await
            .map_err(|_| ConnectError::TimedOut { step: "connection" })?
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|source| ConnectError::Refused { address, source })?;
        let Some((tls, name)) = &self.0 else {
            return Ok(Box::new(stream));
        };
        let by = deadline.min(Instant::now() + HANDSHAKE_TIME_MAX);
        let stream = timeout_at(by, tls.connect(name.clone(), stream))
            .await
            .map_err(|_| ConnectError::TimedOut {
                step: "TLS handshake",
            })?
            .map_err(|source| handshake_error(address, source))?;
        Ok(Box::new(stream))
    }
}

/// Tells a certificate that does not pass from a handshake that broke off.
fn handshake_error(address: SocketAddr, source: io::Error) -> ConnectError {
    let distrust = source
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .filter(|error| matches!(error, rustls::Error::InvalidCertificate(_)));
    match distrust {
        Some(error) => ConnectError::Untrusted {
            address,
            source: error.clone(),
        },
        None => ConnectError::Handshake { address, source },
    }
}

async fn look_up(endpoint: &Endpoint, deadline: Instant) -> Result<Vec<SocketAddr>, ConnectError> {
    let by = deadline.min(Instant::now() + LOOKUP_TIME_MAX);
    let looked_up = timeout_at(
        by,
        tokio::net::lookup_host((endpoint.host.as_str(), endpoint.port)),
    )
    .await;
    match looked_up {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(source)) => Err(ConnectError::Lookup {
            host: endpoint.host.clone(),
            source,
        }),
        Err(_) => Err(ConnectError::TimedOut {
            step: "address from the name service",
        }),
    }
}

/// Speaks HTTP/1.1 on a connection: one request, one answer.
async fn converse(
    stream: Box<dyn Stream>,
    endpoint: &Endpoint,
    request: Request<'_>,
) -> Result<Answer, ExchangeError> {
    let not_sent = |error| ExchangeError::NotSent(ConnectError::Http(error));
    let unanswered = |error| ExchangeError::Unanswered(ConnectError::Http(error));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(not_sent)?;
    // Its outcome is seen through `sender`; it ends with it.
    let connection = tokio::spawn(connection);
    let built = hyper::Request::builder()
        .method(request.method)
        .uri(format!("{}{}", endpoint.base, request.path))
        .header(HOST, endpoint.authority())
        .header(AUTHORIZATION, request.bearer)
        .header(USER_AGENT, request.agent)
        .header(ACCEPT, "application/json")
        .header(CONTENT_TYPE, "application/json")
        .body(Full::new(request.body));
    let built = built.map_err(|error| ExchangeError::NotSent(ConnectError::Unsendable(error)))?;
    let response = sender.send_request(built).await.map_err(unanswered)?;
    let status = response.status().as_u16();
    let header_number = |name| {
        response
            .headers()
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
            .and_then(|text| text.trim().parse::<u64>().ok())
    };
    let retry_after =
        header_number(RETRY_AFTER).map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    let expected = header_number(CONTENT_LENGTH).unwrap_or(0);
    let too_long = || ExchangeError::Unanswered(ConnectError::TooLong);
    let expected = usize::try_from(expected).map_err(|_| too_long())?;
    if expected > ANSWER_BYTES_MAX {
        return Err(too_long());
    }
    let mut body = Zeroizing::new(Vec::with_capacity(expected));
    let mut incoming = response.into_body();
    while let Some(frame) = incoming.frame().await {
        if let Ok(data) = frame.map_err(unanswered)?.into_data() {
            if body.len() + data.len() > ANSWER_BYTES_MAX {
                return Err(too_long());
            }
            body.extend_from_slice(&data);
        }
    }
    connection.abort();
    Ok(Answer {
        status,
        retry_after,
        body,
    })
}
