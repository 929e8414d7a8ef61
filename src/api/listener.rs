//! A port that is listened on: TLS or plain, HTTP/1 and HTTP/2, with a cap on connections and time limits.
//!
//! axum-server accepts and serves; what stands here is what it leaves open: `TCP_NODELAY` (without it small answers wait
//! 40 ms), a limit on open connections, and an end for those that never send a byte.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum_server::accept::Accept;
use axum_server::tls_rustls::{RustlsAcceptor, RustlsConfig};
use axum_server::{Handle, Server};
use futures::future::BoxFuture;
use hyper_util::rt::TokioTimer;
use rustls::ServerConfig;
use rustls::server::ResolvesServerCert;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Sleep;

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
    /// Binds the address; port 0 picks a free one.
    ///
    /// # Errors
    /// [`ListenError::Bind`].
    pub fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let bind = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
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

/// Takes a place among the open connections before anything else is done, and closes the connection when there is none.
#[derive(Clone)]
struct Guard<A> {
    inner: A,
    places: Arc<Semaphore>,
}

impl<A> Guard<A> {
    fn around(inner: A) -> Self {
        Self::with_places(inner, limits::CONNECTIONS_MAX)
    }

    fn with_places(inner: A, places: usize) -> Self {
        Self {
            inner,
            places: Arc::new(Semaphore::new(places)),
        }
    }
}

impl<A, S> Accept<TcpStream, S> for Guard<A>
where
    A: Accept<TcpStream, S>,
    A::Future: Send + 'static,
    A::Stream: Send + 'static,
    A::Service: Send + 'static,
{
    type Stream = Guarded<A::Stream>;
    type Service = A::Service;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return Box::pin(std::future::ready(Err(io::Error::other(
                "too many connections are open",
            ))));
        };
        let accepted = self.inner.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepted.await?;
            Ok((
                Guarded::new(stream, place, limits::HEADER_TIME_MAX),
                service,
            ))
        })
    }
}

/// A connection that holds its place, and ends if its first byte does not come in time.
struct Guarded<S> {
    stream: S,
    first_byte: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Guarded<S> {
    fn new(stream: S, place: OwnedSemaphorePermit, first_byte: Duration) -> Self {
        Self {
            stream,
            first_byte: Some(Box::pin(tokio::time::sleep(first_byte))),
            _place: place,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if let Some(timer) = &mut self.first_byte {
            if read.is_ready() {
                self.first_byte = None;
            } else {
                ready!(timer.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    fn place() -> OwnedSemaphorePermit {
        Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap()
    }

    #[test]
    fn a_connection_that_never_sends_a_byte_ends_and_one_that_has_sent_stays() {
        runtime().block_on(async {
            let (_silent, served) = tokio::io::duplex(64);
            let mut guarded = Guarded::new(served, place(), Duration::from_millis(20));
            let error = guarded.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);

            let (mut talking, served) = tokio::io::duplex(64);
            let mut guarded = Guarded::new(served, place(), Duration::from_millis(20));
            talking.write_u8(1).await.unwrap();
            assert_eq!(guarded.read_u8().await.unwrap(), 1);
            let later = tokio::time::timeout(Duration::from_millis(60), guarded.read_u8());
            assert!(later.await.is_err(), "it still waits for the second byte");
        });
    }

    #[test]
    fn a_connection_too_many_is_closed_until_another_one_ends() {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let guard = Guard::with_places(Raw, 1);
            let connect = async || {
                let client = TcpStream::connect(address).await.unwrap();
                let (served, _) = listener.accept().await.unwrap();
                (client, guard.accept(served, ()).await)
            };
            let (_first, taken) = connect().await;
            assert!(taken.is_ok());
            let (mut second, refused) = connect().await;
            assert!(refused.is_err());
            assert_eq!(second.read(&mut [0]).await.unwrap_or(0), 0, "it is closed");
            drop(taken);
            assert!(connect().await.1.is_ok());
        });
    }

    #[test]
    fn a_place_comes_back_when_its_connection_ends() {
        let places = Arc::new(Semaphore::new(1));
        let place = Arc::clone(&places).try_acquire_owned().unwrap();
        runtime().block_on(async {
            let (_one, other) = tokio::io::duplex(8);
            let guarded = Guarded::new(other, place, Duration::from_secs(1));
            assert_eq!(places.available_permits(), 0);
            drop(guarded);
            assert_eq!(places.available_permits(), 1);
        });
    }
}
