//! The guard of one connection: a place among all that are open, with a share for each peer, and an end for those that
//! never send a byte, have no request under way, or have one that takes too long, such as one whose answer is never read.
//! hyper ends those without a request by itself over HTTP/1 alone; pings keep none open.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Response;
use axum_server::accept::Accept;
use futures::future::BoxFuture;
use hyper::body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tower::Service;

use crate::api::limits;
use crate::domain::shares::{Bounds, Share, Shares};

/// How long a connection may be quiet.
#[derive(Clone, Copy)]
struct Patience {
    /// Before its first byte.
    first_byte: Duration,
    /// Without a request under way.
    idle: Duration,
    /// With the same request under way.
    request: Duration,
}

/// Takes a place among the open connections before anything else is done, and closes the connection when there is none.
#[derive(Clone)]
pub(super) struct Guard<A> {
    inner: A,
    places: Shares,
    patience: Patience,
}

impl<A> Guard<A> {
    /// With the limits of [`limits`].
    pub(super) fn around(inner: A) -> Self {
        let patience = Patience {
            first_byte: limits::HEADER_TIME_MAX,
            idle: limits::IDLE_TIME_MAX,
            request: limits::REQUEST_TIME_MAX,
        };
        Self::with(inner, limits::CONNECTIONS, patience)
    }

    fn with(inner: A, places: Bounds, patience: Patience) -> Self {
        Self {
            inner,
            places: Shares::new(places),
            patience,
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
    type Service = Counted<A::Service>;
    type Future = BoxFuture<'static, io::Result<(Self::Stream, Self::Service)>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let place = stream.peer_addr().ok().and_then(|peer| {
            let address = peer.ip().to_canonical();
            self.places.take(Some(address), 1)
        });
        let Some(place) = place else {
            return Box::pin(std::future::ready(Err(io::Error::other(
                "too many connections are open",
            ))));
        };
        let patience = self.patience;
        let accepted = self.inner.accept(stream, service);
        Box::pin(async move {
            let (stream, service) = accepted.await?;
            let requests = Arc::new(Requests::default());
            Ok((
                Guarded::new(stream, place, patience, Arc::clone(&requests)),
                Counted {
                    inner: service,
                    requests,
                },
            ))
        })
    }
}

/// The requests of one connection so far.
#[derive(Default)]
struct Requests(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    begun: usize,
    ended: usize,
    /// Those under way, each by its number with when it began; the oldest first.
    underway: VecDeque<(usize, Instant)>,
}

impl Requests {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the oldest of those under way began.
    fn oldest(&self) -> Option<Instant> {
        self.counts().underway.front().map(|(_, begun)| *begun)
    }
}

/// A request under way: from its headers until its answer was handed over.
struct Underway {
    requests: Arc<Requests>,
    number: usize,
}

impl Underway {
    fn begin(requests: &Arc<Requests>) -> Self {
        let mut counts = requests.counts();
        let number = counts.begun;
        counts.begun += 1;
        counts.underway.push_back((number, Instant::now()));
        Self {
            requests: Arc::clone(requests),
            number,
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let mut counts = self.requests.counts();
        counts.ended += 1;
        counts.underway.retain(|(number, _)| *number != self.number);
    }
}

/// Counts the requests of its connection.
#[derive(Clone)]
pub(super) struct Counted<S> {
    inner: S,
    requests: Arc<Requests>,
}

impl<S, R> Service<R> for Counted<S>
where
    S: Service<R, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<CountedBody>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Self::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let underway = Underway::begin(&self.requests);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| CountedBody {
                body,
                _request: underway,
            }))
        })
    }
}

/// An answer's body; once it is gone its request is over.
pub(super) struct CountedBody {
    body: Body,
    _request: Underway,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection that holds its place, and ends if its first byte does not come in time, no request is under way for long,
/// or one is for too long.
pub(super) struct Guarded<S> {
    stream: S,
    idle: Duration,
    timer: Pin<Box<Sleep>>,
    request: Duration,
    request_timer: Pin<Box<Sleep>>,
    /// Since when something waits to be sent. Its request may have ended: hyper takes a short answer over whole.
    unsent: Option<Instant>,
    has_sent: bool,
    requests: Arc<Requests>,
    /// How many requests had ended when the timer was set.
    ended: usize,
    _place: Share,
}

impl<S> Guarded<S> {
    fn new(stream: S, place: Share, patience: Patience, requests: Arc<Requests>) -> Self {
        Self {
            stream,
            idle: patience.idle,
            timer: Box::pin(tokio::time::sleep(patience.first_byte)),
            request: patience.request,
            request_timer: Box::pin(tokio::time::sleep(patience.request)),
            unsent: None,
            has_sent: false,
            requests,
            ended: 0,
            _place: place,
        }
    }

    /// Ready when no request was under way since the timer was set. Sets it anew otherwise.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let (begun, ended) = {
                let counts = self.requests.counts();
                (counts.begun, counts.ended)
            };
            if begun == ended && ended == self.ended {
                return Poll::Ready(());
            }
            self.ended = ended;
            self.timer.as_mut().reset(Instant::now() + self.idle);
        }
    }

    /// Ready when the oldest request, or what waits to be sent, takes too long.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.request_timer.as_mut().poll(cx));
            let now = Instant::now();
            let since = self.requests.oldest().into_iter().chain(self.unsent).min();
            let until = since.unwrap_or(now) + self.request;
            if until <= now {
                return Poll::Ready(());
            }
            self.request_timer.as_mut().reset(until);
        }
    }

    /// What a write came to, or its end when it waits and a request takes too long: whoever does not read its answer may
    /// not send either, and then nothing else looks at the time.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_pending() {
            self.unsent.get_or_insert_with(Instant::now);
            ready!(self.poll_overdue(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_ready() {
            if !self.has_sent {
                self.has_sent = true;
                let until = Instant::now() + self.idle;
                self.timer.as_mut().reset(until);
            }
            return read;
        }
        if self.poll_overdue(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(self.poll_idle(cx));
        Poll::Ready(if self.has_sent {
            // As if the other side had ended it: what is left is sent, and the connection closed in order.
            Ok(())
        } else {
            Err(io::ErrorKind::TimedOut.into())
        })
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.unsent = None;
        }
        self.written(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.written(cx, shut)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use axum::Router;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::api::listener::{Raw, limit};

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    /// So many places, and half of them for one address.
    fn places(all: usize) -> Bounds {
        Bounds {
            all,
            address: all.div_ceil(2),
            network: all,
            kept: 0,
            little: 0,
        }
    }

    fn place() -> Share {
        Shares::new(places(1)).take(None, 1).unwrap()
    }

    fn within(milliseconds: u64) -> Patience {
        Patience {
            first_byte: Duration::from_millis(milliseconds),
            idle: Duration::from_millis(milliseconds),
            ..PATIENT
        }
    }

    const PATIENT: Patience = Patience {
        first_byte: Duration::from_secs(60),
        idle: Duration::from_secs(60),
        request: Duration::from_secs(60),
    };

    #[test]
    fn a_connection_that_never_sends_a_byte_ends() {
        runtime().block_on(async {
            let (_silent, served) = tokio::io::duplex(64);
            let mut guarded = Guarded::new(served, place(), within(20), Arc::default());
            let error = guarded.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_connection_that_has_sent_waits_longer_and_stays_while_a_request_is_under_way() {
        runtime().block_on(async {
            let (mut talking, served) = tokio::io::duplex(64);
            let patience = Patience {
                first_byte: Duration::from_millis(20),
                ..PATIENT
            };
            let mut guarded = Guarded::new(served, place(), patience, Arc::default());
            talking.write_u8(1).await.unwrap();
            assert_eq!(guarded.read_u8().await.unwrap(), 1);
            let later = tokio::time::timeout(Duration::from_millis(60), guarded.read_u8());
            assert!(later.await.is_err(), "it still waits for the second byte");

            let (mut asking, served) = tokio::io::duplex(64);
            let requests = Arc::new(Requests::default());
            let mut guarded = Guarded::new(served, place(), within(20), Arc::clone(&requests));
            asking.write_u8(1).await.unwrap();
            assert_eq!(guarded.read_u8().await.unwrap(), 1);
            let underway = Underway::begin(&requests);
            let later = tokio::time::timeout(Duration::from_millis(100), guarded.read_u8());
            assert!(later.await.is_err(), "its request is under way");
            drop(underway);
            let error = guarded.read_u8().await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "it was ended");
        });
    }

    /// A frame of HTTP/2.
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        let head = [0, 0, length, kind, flags, 0, 0, 0, stream];
        [&head[..], payload].concat()
    }

    #[test]
    fn pings_do_not_keep_an_http_2_connection_open_and_a_slow_answer_does() {
        let answering = Duration::from_millis(1500);
        let slow = async move || {
            tokio::time::sleep(answering).await;
            "done"
        };
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let address = listener.local_addr().unwrap();
            let guard = Guard::with(Raw, limits::CONNECTIONS, within(200));
            let mut server = axum_server::from_tcp(listener).unwrap().acceptor(guard);
            limit(&mut server);
            let router = Router::new().route("/", axum::routing::get(slow));
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            let serving = tokio::spawn(server.serve(service));

            // `GET /` by the static table of RFC 7541, its headers and itself ended.
            let get = frame(1, 5, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a']);
            for (asks, lives) in [(Vec::new(), false), (get, true)] {
                let (mut reads, mut writes) =
                    TcpStream::connect(address).await.unwrap().into_split();
                let settings = frame(4, 0, 0, &[]);
                let opening = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &asks].concat();
                writes.write_all(&opening).await.unwrap();
                let pinging = tokio::spawn(async move {
                    while writes.write_all(&frame(6, 0, 0, &[7; 8])).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                });
                let begun = Instant::now();
                let mut came = Vec::new();
                let end = reads.read_to_end(&mut came);
                // A reset is an end too: a ping may cross the closing.
                drop(
                    tokio::time::timeout(Duration::from_secs(20), end)
                        .await
                        .expect("it ends"),
                );
                assert_eq!(begun.elapsed() > answering, lives);
                assert_eq!(came.windows(4).any(|it| it == b"done"), lives);
                pinging.abort();
            }
            serving.abort();
        });
    }

    #[test]
    fn a_connection_whose_answer_nobody_reads_ends_whatever_comes_over_it() {
        // More than the buffers of two sockets hold.
        let long = Bytes::from(vec![b'x'; 64 * 1024 * 1024]);
        runtime().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let address = listener.local_addr().unwrap();
            let patience = Patience {
                request: Duration::from_millis(300),
                ..PATIENT
            };
            let guard = Guard::with(Raw, limits::CONNECTIONS, patience);
            let places = guard.places.clone();
            let mut server = axum_server::from_tcp(listener).unwrap().acceptor(guard);
            limit(&mut server);
            let router = Router::new().route("/", axum::routing::get(async move || long.clone()));
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            let serving = tokio::spawn(server.serve(service));
            let all_are_free =
                || places.take(None, limits::CONNECTIONS_MAX - limits::CONNECTIONS.kept);

            // HTTP/2: SETTINGS with an INITIAL_WINDOW_SIZE of nothing, `GET /`, and pings for ever.
            let settings = frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]);
            let get = frame(1, 5, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a']);
            let second = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &get].concat();
            // HTTP/1: a second request behind the first, so that nothing more is read until the first is answered.
            let first = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(2);
            for (opening, pings) in [(second, true), (first, false)] {
                let (_reads, mut writes) = TcpStream::connect(address).await.unwrap().into_split();
                writes.write_all(&opening).await.unwrap();
                let pinging = tokio::spawn(async move {
                    while !pings || writes.write_all(&frame(6, 0, 0, &[7; 8])).await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                });
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert!(all_are_free().is_none(), "it is being answered");
                let ended = async {
                    while all_are_free().is_none() {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(20), ended)
                    .await
                    .expect("it ends");
                pinging.abort();
            }
            serving.abort();
        });
    }

    #[test]
    fn a_connection_too_many_is_closed_until_another_one_ends() {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let guard = Guard::with(Raw, places(1), PATIENT);
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
    fn a_peer_that_has_its_share_leaves_places_for_another() {
        runtime().block_on(async {
            let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let guard = Guard::with(Raw, places(4), PATIENT);
            // Each address of 127.0.0.0/8 that is connected to is also that which is connected from.
            let connect = async |from: [u8; 4]| {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.bind(SocketAddr::from((from, 0))).unwrap();
                let client = socket
                    .connect(SocketAddr::from((from, port)))
                    .await
                    .unwrap();
                let (served, _) = listener.accept().await.unwrap();
                (client, guard.accept(served, ()).await)
            };
            let greedy = [127, 0, 0, 2];
            let _one = connect(greedy).await;
            let _two = connect(greedy).await;
            assert!(connect(greedy).await.1.is_err());
            assert!(connect([127, 0, 0, 3]).await.1.is_ok());
        });
    }

    #[test]
    fn no_peer_can_take_every_place_of_the_real_listener() {
        let Bounds {
            all,
            address,
            network,
            kept,
            little,
        } = limits::CONNECTIONS;
        assert!(address < network && network <= all - kept && (1..kept).contains(&little));
    }
}
