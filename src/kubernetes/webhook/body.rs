//! Reading a review's body: how long it may be, how long it may take, and how much of all bodies is in memory at once.
//!
//! Whoever reaches the Service can post here, so nothing that is posted may cost more than the process can spare.

use std::net::IpAddr;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, HttpBody as _};
use axum::http::header::RETRY_AFTER;
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use super::review::ReviewError;
use crate::domain::shares::{Bounds, Share, Shares, network};
use crate::kubernetes::turns::{Turn, Turns};
use crate::protocol::error::{ErrorBody, ErrorDetail};

/// The longest review that is read, in bytes: an object of the API server has 1.5 MiB at most, and a review holds two.
pub(super) const BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a body may take to arrive.
const READ_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a review may wait for others to be answered; the API server waits 10 seconds in all.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(5);
/// What any body counts beside its bytes while it is read, so that their number is bound too.
const BODY_BYTES_COUNTED: usize = 4 * 1024;
/// Whose bodies may be in memory before there is room for what they become, in bytes. One address gets half at most, so
/// that the API server finds room beside whoever else posts. The API's bodies have as much of their own.
const READING: Bounds = Bounds {
    all: 32 * 1024 * 1024,
    address: 16 * 1024 * 1024,
    network: 24 * 1024 * 1024,
    kept: 8 * 1024 * 1024,
    little: BYTES_MAX + BODY_BYTES_COUNTED,
};
/// How much all reviews that are being answered may have in memory together, in KiB, by [`kibibytes`].
const MEMORY_KIBIBYTES_MAX: u32 = 64 * 1024;
/// How much of it reviews of one address may have, or of one /64 network of IPv6: whoever else posts finds room, however many
/// wait there.
const MEMORY_KIBIBYTES_OF_PEER: u32 = MEMORY_KIBIBYTES_MAX / 2;
/// What one review counts at least, in KiB: no more than 64 are answered at once.
const REVIEW_KIBIBYTES_MIN: u32 = 1024;
/// What a JSON object takes in memory at most while it has few fields, in bytes.
const OBJECT_BYTES: usize = 640;
/// What any other JSON value takes in memory beside its text, in bytes.
const VALUE_BYTES: usize = 64;
/// When to come again.
const RETRY_SECONDS: u32 = 1;

/// Room for the bodies of reviews.
pub(super) struct Bodies {
    reading: Shares,
    memory: Turns<IpAddr>,
    read_time_max: Duration,
    wait_max: Duration,
}

impl Bodies {
    /// All of it.
    pub(super) fn new() -> Self {
        Self {
            reading: Shares::new(READING),
            memory: Turns::new(MEMORY_KIBIBYTES_MAX, MEMORY_KIBIBYTES_OF_PEER),
            read_time_max: READ_TIME_MAX,
            wait_max: WAIT_MAX,
        }
    }

    /// Reads a body of a peer, and holds room for what it becomes until the turn is dropped.
    ///
    /// # Errors
    /// [`Malformed`] for what is too long, too slow or too much.
    pub(super) async fn read(
        &self,
        body: Body,
        peer: Option<IpAddr>,
    ) -> Result<(Vec<u8>, Turn), Malformed> {
        if body.size_hint().lower() > BYTES_MAX as u64 {
            return Err(Malformed::TooLong);
        }
        let mut share = self
            .reading
            .take(peer, BODY_BYTES_COUNTED)
            .ok_or(Malformed::TooManyReviews)?;
        let body = timeout(self.read_time_max, collect(body, &mut share))
            .await
            .map_err(|_| Malformed::TooSlow)??;
        let kibibytes = kibibytes(&body);
        if kibibytes > MEMORY_KIBIBYTES_MAX {
            return Err(Malformed::TooManyParts);
        }
        let room = self
            .memory
            .take(peer.map(sender), kibibytes.max(REVIEW_KIBIBYTES_MIN));
        match timeout(self.wait_max, room).await {
            Ok(Some(room)) => Ok((body, room)),
            Ok(None) | Err(_) => Err(Malformed::TooManyReviews),
        }
    }
}

/// Who an address is, where senders share: the network of one of IPv6.
pub(super) fn sender(peer: IpAddr) -> IpAddr {
    network(peer).unwrap_or(peer)
}

async fn collect(mut body: Body, share: &mut Share) -> Result<Vec<u8>, Malformed> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Malformed::BrokenOff)?.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        if !share.grow(data.len()) {
            return Err(Malformed::TooManyReviews);
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// How much memory a body may take once it is parsed, in KiB, rather more than less.
fn kibibytes(body: &[u8]) -> u32 {
    let (mut objects, mut values) = (0_usize, 0_usize);
    for byte in body {
        match byte {
            b'{' => objects += 1,
            b',' | b'[' => values += 1,
            _ => {}
        }
    }
    let bytes = body.len() + objects * OBJECT_BYTES + values * VALUE_BYTES;
    u32::try_from(bytes / 1024).unwrap_or(u32::MAX)
}

/// Why a body is not answered as a review.
#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    /// No review.
    #[error(transparent)]
    Review(#[from] ReviewError),
    /// More objects and values than would fit in memory.
    #[error("this AdmissionReview has more parts than any pod has")]
    TooManyParts,
    /// It ended too early.
    #[error("the body broke off before its end")]
    BrokenOff,
    /// Longer than any review.
    #[error("the body is longer than {BYTES_MAX} bytes, and so is no AdmissionReview of a pod")]
    TooLong,
    /// It took too long to arrive.
    #[error("the body did not arrive within {} seconds", READ_TIME_MAX.as_secs())]
    TooSlow,
    /// Others have the room.
    #[error("too many reviews are answered right now; try again")]
    TooManyReviews,
}

impl Malformed {
    /// The status and the code, which are the API's own.
    fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Review(ReviewError::NotJson) => (StatusCode::BAD_REQUEST, "INVALID_JSON"),
            Self::Review(
                ReviewError::Malformed | ReviewError::AnotherKind | ReviewError::NoRequest,
            )
            | Self::TooManyParts
            | Self::BrokenOff => (StatusCode::BAD_REQUEST, "INVALID_REQUEST"),
            Self::TooLong => (StatusCode::PAYLOAD_TOO_LARGE, "REQUEST_TOO_LARGE"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT"),
            Self::TooManyReviews => (StatusCode::TOO_MANY_REQUESTS, "RATE_LIMITED"),
        }
    }
}

impl IntoResponse for Malformed {
    fn into_response(self) -> Response {
        let (status, code) = self.code();
        let request_id = format!("req_{}", uuid::Uuid::new_v4().simple());
        tracing::debug!(code, request = request_id, "no review: {self}");
        let body = ErrorBody {
            error: ErrorDetail {
                code: code.to_owned(),
                message: self.to_string(),
                request_id,
            },
        };
        let mut response = (status, Json(body)).into_response();
        if matches!(self, Self::TooManyReviews) {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from(RETRY_SECONDS));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::error::Code;

    #[test]
    fn every_code_is_one_of_the_api_with_its_status() {
        for refusal in [
            Malformed::Review(ReviewError::NotJson),
            Malformed::Review(ReviewError::Malformed),
            Malformed::Review(ReviewError::AnotherKind),
            Malformed::Review(ReviewError::NoRequest),
            Malformed::TooManyParts,
            Malformed::BrokenOff,
            Malformed::TooLong,
            Malformed::TooSlow,
            Malformed::TooManyReviews,
        ] {
            let (status, word) = refusal.code();
            let code = Code::ALL.iter().find(|code| code.as_str() == word);
            assert_eq!(code.map(|code| code.status()), Some(status), "{word}");
        }
    }

    fn hasty() -> Bodies {
        Bodies {
            read_time_max: Duration::from_millis(500),
            wait_max: Duration::from_millis(50),
            ..Bodies::new()
        }
    }

    /// A body that sends so many bytes and then neither more nor its end.
    fn unending(length: usize) -> Body {
        let sent = futures::stream::iter([Ok::<_, std::io::Error>(vec![b' '; length])]);
        Body::from_stream(futures::StreamExt::chain(sent, futures::stream::pending()))
    }

    #[tokio::test]
    async fn a_review_waits_for_room_and_goes_when_there_is_none() {
        let bodies = hasty();
        let mut rooms = Vec::new();
        for _ in 0..64 {
            let (_, room) = bodies.read(Body::from("{}"), None).await.unwrap();
            rooms.push(room);
        }
        let refused = bodies.read(Body::from("{}"), None).await.unwrap_err();
        assert!(matches!(refused, Malformed::TooManyReviews));
        let response = refused.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[RETRY_AFTER], "1");
        rooms.pop();
        assert!(bodies.read(Body::from("{}"), None).await.is_ok());
    }

    #[tokio::test]
    async fn reviews_of_one_address_do_not_hold_up_another_ones() {
        let bodies = Bodies::new();
        let peer = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let mut flood: futures::stream::FuturesUnordered<_> = (0..256)
            .map(|_| bodies.read(Body::from("{}"), peer("192.0.2.1")))
            .collect();
        let mut rooms = Vec::new();
        while let Some(Some(read)) =
            futures::FutureExt::now_or_never(futures::StreamExt::next(&mut flood))
        {
            rooms.push(read.unwrap());
        }
        assert_eq!(rooms.len(), 32, "all others wait");
        let review = bodies.read(Body::from("{}"), peer("192.0.2.2"));
        let review = futures::FutureExt::now_or_never(review);
        assert!(review.is_some_and(|read| read.is_ok()));
    }

    #[tokio::test]
    async fn slow_senders_are_given_up_and_do_not_hold_up_a_short_body() {
        let bodies = hasty();
        let peer = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let slow = futures::future::join_all(
            (0..64).map(|_| bodies.read(unending(64 * 1024), peer("192.0.2.1"))),
        );
        let short = async {
            tokio::task::yield_now().await;
            timeout(
                Duration::from_millis(250),
                bodies.read(Body::from("{}"), peer("192.0.2.1")),
            )
            .await
        };
        let (slow, short) = tokio::join!(slow, short);
        assert!(short.unwrap().is_ok());
        for slow in slow {
            let response = slow.unwrap_err().into_response();
            assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
        }
    }

    #[tokio::test]
    async fn bodies_that_do_not_end_leave_room_for_the_api_server() {
        let bodies = Bodies::new();
        let peer = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        let mut reading: futures::stream::FuturesUnordered<_> = (0..8)
            .map(|_| bodies.read(unending(BYTES_MAX), peer("192.0.2.1")))
            .collect();
        let refused = futures::StreamExt::next(&mut reading).await.unwrap();
        assert!(matches!(refused, Err(Malformed::TooManyReviews)));
        let review = Body::from(vec![b' '; BYTES_MAX]);
        assert!(bodies.read(review, peer("192.0.2.2")).await.is_ok());
    }
}
