//! HTTP requests as a stranger could write them, so that bad ones can be sent too.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Method, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const LIMIT: Duration = Duration::from_secs(60);

/// One request, on a connection of its own.
pub(crate) struct Request {
    request: hyper::http::request::Builder,
    uri: Uri,
    body: Vec<u8>,
    ca: Option<String>,
}

/// Its answer.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// The headers.
    pub(crate) headers: HeaderMap,
    body: Vec<u8>,
}

impl Request {
    /// A GET of an `http` or `https` URL.
    pub(crate) fn get(url: &str) -> Self {
        Self::new(Method::GET, url)
    }

    /// A POST to an `http` or `https` URL.
    pub(crate) fn post(url: &str) -> Self {
        Self::new(Method::POST, url)
    }

    /// Any method.
    pub(crate) fn new(method: Method, url: &str) -> Self {
        let uri: Uri = url.parse().unwrap_or_else(|error| panic!("{url}: {error}"));
        let path = uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        let host = uri.authority().expect("the URL has a host").to_string();
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, host);
        Self {
            request,
            uri,
            body: Vec::new(),
            ca: None,
        }
    }

    /// With a header.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.request = self.request.header(name, value);
        self
    }

    /// With a token.
    pub(crate) fn bearer(mut self, token: &str) -> Self {
        self.request = self
            .request
            .header(AUTHORIZATION, format!("Bearer {token}"));
        self
    }

    /// With a JSON body.
    pub(crate) fn json(mut self, body: &Value) -> Self {
        self.request = self.request.header(CONTENT_TYPE, "application/json");
        self.body(body.to_string())
    }

    /// With any body.
    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// For `https`: trusts this certificate, in PEM, and no other.
    pub(crate) fn trusting(mut self, ca: &str) -> Self {
        self.ca = Some(ca.to_owned());
        self
    }

    /// Sends it; must be answered.
    #[track_caller]
    pub(crate) fn send(self) -> Response {
        let uri = self.uri.clone();
        self.try_send()
            .unwrap_or_else(|error| panic!("{uri}: {error}"))
    }

    /// Sends it; or why there is no answer.
    pub(crate) fn try_send(self) -> Result<Response, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime can be made");
        runtime.block_on(async {
            let answer = tokio::time::timeout(LIMIT, self.exchange()).await;
            answer.map_err(|_| format!("no answer in {} s", LIMIT.as_secs()))?
        })
    }

    async fn exchange(self) -> Result<Response, String> {
        let Self {
            request,
            uri,
            body,
            ca,
        } = self;
        let secure = uri.scheme_str() == Some("https");
        let host = uri
            .host()
            .expect("the URL has a host")
            .trim_matches(['[', ']'])
            .to_owned();
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| error.to_string())?;
        if secure {
            let name = ServerName::try_from(host).map_err(|error| error.to_string())?;
            let connector =
                TlsConnector::from(Arc::new(trust(&ca.expect("https needs .trusting(..)"))));
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(|error| error.to_string())?;
            converse(TokioIo::new(stream), request).await
        } else {
            converse(TokioIo::new(stream), request).await
        }
    }
}

fn trust(ca: &str) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        roots
            .add(certificate.expect("the CA is PEM"))
            .expect("the CA is a certificate");
    }
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

async fn converse<T>(
    io: TokioIo<T>,
    request: hyper::Request<Full<Bytes>>,
) -> Result<Response, String>
where
    TokioIo<T>: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(io)
        .await
        .map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let answer = sender
        .send_request(request)
        .await
        .map_err(|error| error.to_string())?;
    let (head, body) = answer.into_parts();
    let body = body
        .collect()
        .await
        .map_err(|error| error.to_string())?
        .to_bytes()
        .to_vec();
    connection.abort();
    Ok(Response {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
    })
}

impl Response {
    /// The body, as text.
    #[track_caller]
    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the answer is text")
    }

    /// The body, as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("status {}: {error}", self.status))
    }

    /// The body, of a request that must have been answered with 200 or 201.
    #[track_caller]
    pub(crate) fn ok(&self) -> Value {
        // Only an error's body is shown: it holds no value.
        assert!(
            matches!(self.status, 200 | 201),
            "status {}: {}",
            self.status,
            self.text()
        );
        self.json()
    }

    /// Must be the error body with this status and code.
    #[track_caller]
    pub(crate) fn refused(&self, status: u16, code: &str) {
        assert_eq!(
            self.status,
            status,
            "wanted {code}, answered {}",
            self.shown()
        );
        let body = self.json();
        let found = [&body["code"], &body["error"]["code"]]
            .into_iter()
            .find_map(|code| code.as_str());
        assert_eq!(found, Some(code), "{}", self.shown());
    }

    /// For failures: an error's body, never one that may hold a value.
    fn shown(&self) -> String {
        if self.status < 300 {
            "with a body, not shown".to_owned()
        } else {
            self.text().to_owned()
        }
    }
}
