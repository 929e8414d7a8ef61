//! The guard of one connection: a place among all that are open, with a share for each peer, and an end for those that
//! never send a byte, have no request under way, or have one that takes too long, such as one whose answer is never read.
//! hyper ends those without a request by itself over HTTP/1 alone; pings keep none open.

#[cfg(test)]
mod tests;

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
