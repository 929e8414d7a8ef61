//! Bodies: read in the room that there is, and told apart into JSON, its shape, and what is neither.

use axum::body::Body;
use axum::http::HeaderMap;
use http_body_util::BodyExt;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::error::{ApiError, Code};
use super::limits;
use crate::domain::shares::Share;

/// How many bytes the names and values of headers have.
pub(super) fn header_bytes(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len())
        .sum()
}

/// The body, in the room that there is for it; no room is no body.
pub(super) async fn read_body(
    body: Body,
    bytes_max: usize,
    room: Option<&mut Share>,
) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        ApiError::new(
            Code::RequestTooLarge,
            format!("the body is longer than {bytes_max} bytes; send fewer or shorter entries"),
        )
    };
    if axum::body::HttpBody::size_hint(&body).lower() > bytes_max as u64 {
        return Err(too_large());
    }
    let no_room = || {
        ApiError::new(
            Code::RateLimited,
            "too many bodies are being read right now, from this address or in all; try again",
        )
        .retry_after(limits::BODY_RETRY_SECONDS)
    };
    let room = room.ok_or_else(no_room)?;
    let collected = tokio::time::timeout(limits::BODY_TIME_MAX, async {
        let (mut body, mut bytes) = (body, Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| {
                ApiError::new(Code::InvalidRequest, "the body broke off before its end")
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > bytes_max {
                return Err(too_large());
            }
            if !room.grow(data.len()) {
                return Err(no_room());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    });
    collected.await.unwrap_or_else(|_| {
        Err(ApiError::new(
            Code::RequestTimeout,
            format!(
                "the body did not arrive within {} seconds",
                limits::BODY_TIME_MAX.as_secs()
            ),
        ))
    })
}

/// JSON first and whole, then the shape. The parser's own message is not passed on, since it quotes what it read, which may
/// be a value.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| ApiError::new(Code::InvalidJson, "the body is not UTF-8"))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| not_json(&error))?;
    // The parser would take an array for an object, its items for the fields in order.
    if !text.trim_start().starts_with('{') {
        return Err(ApiError::new(
            Code::InvalidRequest,
            "the body is not a JSON object; GET /openapi.json describes it",
        ));
    }
    serde_json::from_str(text).map_err(|error| {
        if !error.is_data() {
            return not_json(&error);
        }
        let said = error.to_string();
        let problem = ["missing field `", "duplicate field `"]
            .iter()
            .find_map(|start| {
                let field = said.strip_prefix(start)?.split('`').next()?;
                Some(format!("{start}{field}`"))
            })
            .unwrap_or_else(|| "a field has another type than it should".to_owned());
        ApiError::new(
            Code::InvalidRequest,
            format!(
                "{problem} (line {}, column {}); GET /openapi.json describes the body",
                error.line(),
                error.column()
            ),
        )
    })
}

fn not_json(error: &serde_json::Error) -> ApiError {
    ApiError::new(
        Code::InvalidJson,
        format!(
            "the body is not JSON (line {}, column {})",
            error.line(),
            error.column()
        ),
    )
}

#[cfg(test)]
mod tests {
    use axum::http::header;
    use axum::response::IntoResponse;

    use super::*;
    use crate::domain::shares::Shares;
    use crate::protocol::environment::WriteRequest;

    #[test]
    fn headers_count_with_their_names() {
        let mut headers = HeaderMap::new();
        assert_eq!(header_bytes(&headers), 0);
        headers.append("x-a", "12345".parse().unwrap());
        headers.append("x-a", "1".parse().unwrap());
        assert_eq!(header_bytes(&headers), 12);
    }

    #[test]
    fn what_is_not_json_is_told_apart_from_what_has_another_shape() {
        for text in [
            "",
            "{",
            "{} x",
            "{\"name\": tru}",
            "nul",
            "{\"a\":\"\u{1}\"}",
        ] {
            let error = parse::<WriteRequest>(text.as_bytes()).unwrap_err();
            assert_eq!(error.code(), Code::InvalidJson, "{text:?}");
        }
        // Wrong shape in front of what is no JSON is still no JSON.
        let error = parse::<WriteRequest>(b"{\"projectSlug\": 5, oops").unwrap_err();
        assert_eq!(error.code(), Code::InvalidJson);
        for text in [
            "[]",
            "{}",
            "null",
            "{\"projectSlug\": 5}",
            "[null,\"a\",\"b\",\"upsert\"]",
        ] {
            let error = parse::<WriteRequest>(text.as_bytes()).unwrap_err();
            assert_eq!(error.code(), Code::InvalidRequest, "{text:?}");
        }
    }

    #[test]
    fn a_body_that_is_not_utf_8_is_no_json() {
        let error = parse::<WriteRequest>(b"{\"a\":\"\xff\"}").unwrap_err();
        assert_eq!(error.code(), Code::InvalidJson);
    }

    #[test]
    fn a_refusal_of_a_shape_names_the_field_and_never_quotes_what_was_sent() {
        let missing = parse::<WriteRequest>(b"{\"stageSlug\": \"a\"}").unwrap_err();
        assert!(
            missing.message().starts_with("missing field `projectSlug`"),
            "{}",
            missing.message()
        );
        let text = r#"{"projectSlug":"a","stageSlug":"b","mode":"upsert","entries":"hunter2"}"#;
        let wrong = parse::<WriteRequest>(text.as_bytes()).unwrap_err();
        assert!(!wrong.message().contains("hunter2"), "{}", wrong.message());
        let text = r#"{"projectSlug":"a","stageSlug":"b","mode":"upsert","entries":[{"name":"A","kind":"secret","value":4711}]}"#;
        let wrong = parse::<WriteRequest>(text.as_bytes()).unwrap_err();
        assert!(!wrong.message().contains("4711"), "{}", wrong.message());
    }

    /// A body that sends so many bytes and then neither more nor its end.
    fn unending(length: usize) -> Body {
        let sent = futures::stream::iter([Ok::<_, std::io::Error>(vec![b' '; length])]);
        Body::from_stream(futures::StreamExt::chain(sent, futures::stream::pending()))
    }

    #[tokio::test]
    async fn bodies_that_do_not_end_leave_room_for_another_address() {
        let bodies = Shares::new(limits::BODIES);
        let (greedy, other) = (
            Some("192.0.2.1".parse().unwrap()),
            Some("192.0.2.2".parse().unwrap()),
        );
        let length = limits::WRITE_BODY_BYTES_MAX;
        let mut reading = futures::stream::FuturesUnordered::new();
        for _ in 0..8 {
            let mut room = bodies.take(greedy, limits::BODY_BYTES_COUNTED);
            reading.push(async move { read_body(unending(length), length, room.as_mut()).await });
        }
        let refused = futures::StreamExt::next(&mut reading)
            .await
            .unwrap()
            .unwrap_err();
        assert_eq!(refused.code(), Code::RateLimited);
        assert_eq!(refused.into_response().headers()[header::RETRY_AFTER], "1");

        let mut room = bodies.take(other, limits::BODY_BYTES_COUNTED);
        let whole = read_body(Body::from(vec![b' '; length]), length, room.as_mut()).await;
        assert_eq!(whole.unwrap().len(), length);
        drop(reading);
        let mut room = bodies.take(greedy, limits::BODY_BYTES_COUNTED);
        let whole = read_body(Body::from(vec![b' '; length]), length, room.as_mut()).await;
        assert_eq!(whole.unwrap().len(), length, "the room came back");
        let longer = read_body(unending(length + 1), length, room.as_mut()).await;
        assert_eq!(longer.unwrap_err().code(), Code::RequestTooLarge);
    }
}
