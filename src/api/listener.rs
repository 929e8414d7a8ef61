//! A port that is listened on: TLS or plain, HTTP/1 and HTTP/2, with a cap on connections and time limits.
//!
//! axum-server accepts and serves; what stands here is what it leaves open: `TCP_NODELAY` (without it small answers wait
//! 40 ms), and the guard of each connection.

mod guard;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::Router;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;

use self::guard::Guard;
use super::limits;

/// What goes over the wire.
pub enum Transport {
    /// HTTP in the clear: loopback and probes alone.
    Plain,
    /// TLS with the certificate that the resolver has at the time.
    Tls(Arc<dyn ResolvesServerCert>),
}

/// Why a port is not listened on.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[error("cannot set up TLS")]
    Tls(#[source] rustls::Error),
    /// The listener ended by itself.
    #[error("the listener ended")]
    Ended(#[source] io::Error),
}

/// A port that is bound and not served yet.
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Binds the address; port 0 picks a free one. Inside a runtime.
    ///
    /// # Errors
    /// [`ListenError::Bind`].
    pub fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let bind = || {
            let socket = match address {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            // A server that restarts takes its port back at once.
            socket.set_reuseaddr(true)?;
            socket.bind(address)?;
            let listener = socket.listen(limits::BACKLOG)?.into_std()?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        bind().map_err(|source| ListenError::Bind { address, source })
    }

    /// The address, with the port that was picked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` turns true, then lets open requests end, for at most [`limits::DRAIN_TIME_MAX`].
    ///
    /// # Errors
    /// [`ListenError`].
    pub async fn serve(
        self,
        router: Router,
        transport: Transport,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), ListenError> {
        let handle = Handle::new();
        let stopper = handle.clone();
        let waiting = tokio::spawn(async move {
            // An error means that whoever could say stop is gone: the same.
            drop(stop.wait_for(|stop| *stop).await);
            stopper.graceful_shutdown(Some(limits::DRAIN_TIME_MAX));
        });
        let service = router.into_make_service_with_connect_info::<SocketAddr>();
        let server = axum_server::from_tcp(self.listener)
            .map_err(ListenError::Ended)?
            .handle(handle);
        let served = match transport {
            Transport::Plain => {
                let mut server = server.acceptor(Guard::around(Raw));
                limit(&mut server);
                server.serve(service).await
            }
            Transport::Tls(resolver) => {
                let tls = RustlsConfig::from_config(Arc::new(tls_config(resolver)?));
                let acceptor = RustlsAcceptor::new(tls)
                    .handshake_timeout(limits::HANDSHAKE_TIME_MAX)
                    .acceptor(Raw);
                let mut server = server.acceptor(Guard::around(acceptor));
                limit(&mut server);
                server.serve(service).await
            }
        };
        waiting.abort();
        served.map_err(ListenError::Ended)
    }
}

fn tls_config(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig, ListenError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(ListenError::Tls)?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn limit<A>(server: &mut Server<SocketAddr, A>) {
    let builder = server.http_builder();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits::HEADER_TIME_MAX)
        .max_buf_size(limits::HEADER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits::PING_INTERVAL)
        .keep_alive_timeout(limits::PING_INTERVAL)
        .max_concurrent_streams(limits::STREAMS_MAX)
        .max_header_list_size(u32::try_from(limits::HEADER_BYTES_MAX).unwrap_or(u32::MAX));
}

/// Sets `TCP_NODELAY`.
#[derive(Clone, Copy)]
struct Raw;

impl<S> Accept<TcpStream, S> for Raw {
    type Stream = TcpStream;
    type Service = S;
    type Future = std::future::Ready<io::Result<(TcpStream, S)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        std::future::ready(stream.set_nodelay(true).map(|()| (stream, service)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn many_connections_may_wait_until_they_are_taken() {
        let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
        // More than the 128 that the standard library asks for; one too many is sent again after a second.
        let mut waiting = Vec::new();
        for index in 0..300 {
            let connecting = TcpStream::connect(listener.address());
            let connected = tokio::time::timeout(Duration::from_millis(900), connecting).await;
            waiting.push(
                connected
                    .unwrap_or_else(|_| panic!("{index} wait"))
                    .unwrap(),
            );
        }
    }
}
