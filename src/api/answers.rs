//! Room for values: how much of them is in memory at once, from before they are opened until the answer was sent.
//!
//! A read holds its values in the clear while it waits for its record, and its answer is in memory as long as whoever asked
//! takes to read it. Who asks too much of either is told to come again.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::{ApiError, Code};
use super::limits;
use crate::domain::shares::{Share, Shares};

/// What the permits of the semaphore stand for: a number of bytes does not fit.
const KIBIBYTE: usize = 1024;

/// Room for the values of answers.
pub(crate) struct Answers {
    reading: Arc<Semaphore>,
    sending: Shares,
    time_max: Duration,
}

impl Answers {
    /// All of it, with the limits of [`limits`].
    pub(crate) fn new() -> Self {
        Self::with(limits::VALUES_TIME_MAX)
    }

    fn with(time_max: Duration) -> Self {
        Self {
            reading: Arc::new(Semaphore::new(limits::VALUES_BYTES_MAX / KIBIBYTE)),
            sending: Shares::new(limits::ANSWERS),
            time_max,
        }
    }

    /// Room for one answer with so many bytes of values at most, once there is some.
    ///
    /// # Errors
    /// A 429, when others took it for too long, or the address has its share.
    pub(crate) async fn room(
        &self,
        address: Option<IpAddr>,
        bytes_max: usize,
    ) -> Result<Room, ApiError> {
        let share = self
            .sending
            .take(address, limits::ANSWER_BYTES_COUNTED)
            .ok_or_else(no_room)?;
        let kibibytes = bytes_max
            .min(limits::VALUES_BYTES_MAX)
            .div_ceil(KIBIBYTE)
            .try_into()
            .unwrap_or(u32::MAX);
        let reading = Arc::clone(&self.reading).acquire_many_owned(kibibytes);
        let reading = tokio::time::timeout(self.time_max, reading)
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(no_room)?;
        Ok(Room { reading, share })
    }
}

fn no_room() -> ApiError {
    ApiError::new(
        Code::RateLimited,
        "too many values are being read right now, from this address or in all; try again",
    )
    .retry_after(limits::ANSWER_RETRY_SECONDS)
}

/// Room for one answer.
pub(crate) struct Room {
    reading: OwnedSemaphorePermit,
    share: Share,
}

impl Room {
    /// The answer as JSON. It takes the room that its text needs until that was sent.
    ///
    /// # Errors
    /// A 429, when there is no room for so long an answer.
    pub(crate) fn fill(self, answer: impl Serialize) -> Result<Response, ApiError> {
        let Self { reading, mut share } = self;
        let text = serde_json::to_vec(&answer).map_err(|_| ApiError::internal())?;
        drop(answer);
        drop(reading);
        if !share.grow(text.capacity().min(limits::ANSWER_BYTES_COUNTED_MAX)) {
            return Err(no_room());
        }
        let text = Bytes::from_owner(Filled {
            text,
            _share: share,
        });
        Ok((
            [(header::CONTENT_TYPE, "application/json")],
            Body::from(text),
        )
            .into_response())
    }
}

/// The text of an answer, with the room that it takes.
struct Filled {
    text: Vec<u8>,
    _share: Share,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    const STAGE: usize = limits::STAGE_BYTES_COUNTED;

    fn address(number: u8) -> Option<IpAddr> {
        Some(IpAddr::from([192, 0, 2, number]))
    }

    #[tokio::test]
    async fn no_more_values_are_read_at_once_than_there_is_room_for_and_the_next_waits() {
        let answers = Answers::with(Duration::from_millis(50));
        let mut reading = Vec::new();
        for _ in 0..limits::VALUES_BYTES_MAX / STAGE {
            reading.push(answers.room(address(1), STAGE).await.ok().unwrap());
        }
        let refused = answers.room(address(2), 1).await.err().unwrap();
        assert_eq!(refused.code(), Code::RateLimited);
        assert_eq!(refused.into_response().headers()[header::RETRY_AFTER], "1");

        let answers = Answers {
            time_max: Duration::from_secs(20),
            ..answers
        };
        let ending = reading.pop();
        let (next, ()) = futures::join!(answers.room(address(2), STAGE), async {
            tokio::task::yield_now().await;
            drop(ending);
        });
        assert!(next.is_ok(), "it waited");
    }

    #[tokio::test]
    async fn answers_that_nobody_reads_take_the_room_of_their_address_and_give_it_back() {
        let answers = Answers::new();
        let long = "x".repeat(8 * 1024 * 1024);
        let answer = async |number| {
            let room = answers.room(address(number), STAGE).await?;
            room.fill(&long)
        };
        let mut unread = Vec::new();
        let refused = loop {
            match answer(1).await {
                Ok(response) => unread.push(response),
                Err(refused) => break refused,
            }
        };
        assert_eq!(refused.code(), Code::RateLimited);
        assert!((1..=4).contains(&unread.len()), "{}", unread.len());
        assert!(answer(2).await.is_ok(), "another address");
        let read = unread.pop().unwrap().into_body().collect().await.unwrap();
        assert_eq!(read.to_bytes().len(), long.len() + 2);
        assert!(answer(1).await.is_ok(), "it was read");
    }

    #[tokio::test]
    async fn the_longest_answer_of_all_fits() {
        let escaped = "\u{1}".repeat(STAGE);
        let room = Answers::new().room(address(1), STAGE).await.ok().unwrap();
        assert!(room.fill(escaped).is_ok());
    }
}
