//! For tests: a TLS server with an authority of its own, whose answers a test writes.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

/// The name that the server's certificate has, besides the loopback address.
pub(crate) const SERVER_NAME: &str = "barekey.test";

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Recorded {
    /// How many came before it.
    pub(crate) number: usize,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Recorded {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// What the server does with a request.
pub(crate) enum Reply {
    /// Sends these bytes and closes.
    Bytes(String),
    /// Closes without a word.
    Close,
}

impl Reply {
    pub(crate) fn with_header(self, header: &str) -> Self {
        match self {
            Self::Bytes(text) => {
                Self::Bytes(text.replacen("\r\n", &format!("\r\n{header}\r\n"), 1))
            }
            Self::Close => Self::Close,
        }
    }
}

/// 200 with a body.
pub(crate) fn ok(body: &serde_json::Value) -> Reply {
    reply(200, &body.to_string())
}

/// A refusal.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Reply {
    let body =
        serde_json::json!({"error": {"code": code, "message": message, "requestId": "req_1"}});
    reply(status, &body.to_string())
}

/// Any status with any body.
pub(crate) fn reply(status: u16, body: &str) -> Reply {
    Reply::Bytes(format!(
        "HTTP/1.1 {status} Word\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ))
}

/// A port of the loopback address on which nothing listens.
pub(crate) fn unused_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[derive(Default)]
struct Seen {
    requests: Mutex<Vec<Recorded>>,
    connections: AtomicUsize,
}

/// A running server. It ends with the test's process.
pub(crate) struct Server {
    port: u16,
    authority: Vec<u8>,
    authority_pem: String,
    seen: Arc<Seen>,
}

impl Server {
    /// A TLS server on the loopback address.
    pub(crate) fn start(answer: impl FnMut(&Recorded) -> Reply + Send + 'static) -> Self {
        Self::start_with(true, answer)
    }

    /// A server without TLS.
    pub(crate) fn start_plain(answer: impl FnMut(&Recorded) -> Reply + Send + 'static) -> Self {
        Self::start_with(false, answer)
    }

    fn start_with(
        encrypted: bool,
        mut answer: impl FnMut(&Recorded) -> Reply + Send + 'static,
    ) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().unwrap();
        let names = vec![SERVER_NAME.to_owned(), "127.0.0.1".to_owned()];
        let leaf = CertificateParams::new(names)
            .unwrap()
            .signed_by(&leaf_key, &issuer)
            .unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der())),
            )
            .unwrap();
        let acceptor = encrypted.then(|| TlsAcceptor::from(Arc::new(config)));

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let server = Self {
            port,
            authority: authority.der().to_vec(),
            authority_pem: authority.pem(),
            seen: Arc::clone(&seen),
        };
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    seen.connections.fetch_add(1, Ordering::SeqCst);
                    let served = async {
                        match &acceptor {
                            Some(acceptor) => {
                                serve(acceptor.accept(stream).await?, &seen, &mut answer).await
                            }
                            None => serve(stream, &seen, &mut answer).await,
                        }
                    };
                    // A client that went away is what some tests are about.
                    drop(tokio::time::timeout(Duration::from_secs(10), served).await);
                }
            });
        });
        server
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The authority's certificate, in DER.
    pub(crate) fn authority(&self) -> &[u8] {
        &self.authority
    }

    /// The authority's certificate, in PEM.
    pub(crate) fn authority_pem(&self) -> &str {
        &self.authority_pem
    }

    /// The requests that came so far.
    pub(crate) fn requests(&self) -> Vec<Recorded> {
        self.seen.requests.lock().unwrap().clone()
    }

    /// How many connections came so far.
    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    seen: &Seen,
    answer: &mut impl FnMut(&Recorded) -> Reply,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let recorded = Recorded {
                number: 0,
                head: format!("{head}\r\n"),
                body: String::new(),
            };
            let length = recorded.header("content-length").unwrap_or("0");
            if body.len() >= length.parse::<usize>().unwrap() {
                break (recorded.head, body.to_owned());
            }
        }
        if stream.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    };
    let recorded = {
        let mut requests = seen.requests.lock().unwrap();
        let number = requests.len();
        requests.push(Recorded { number, head, body });
        requests[number].clone()
    };
    if let Reply::Bytes(text) = answer(&recorded) {
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
    }
    Ok(())
}
