//! What surrounds every request and every answer: the id, the body of refusals, CORS, `no-store`, counters, the log.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::Json;
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use super::error::{ApiError, Code};
use super::limits::{REQUEST_ID_BYTES_MAX, USER_AGENT_BYTES_MAX};
use super::{Api, metrics};
use crate::domain::audit::{Origin, Source};
use crate::protocol::error::{ErrorBody, ErrorDetail};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request: the client's own when it is sane, else made here.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

impl RequestId {
    /// Takes the header over if it is 1 to [`REQUEST_ID_BYTES_MAX`] visible ASCII characters, else makes `req_` and 32 hex digits.
    fn of(headers: &HeaderMap) -> Self {
        let given = headers
            .get(REQUEST_ID)
            .and_then(|value| value.to_str().ok())
            .filter(|text| (1..=REQUEST_ID_BYTES_MAX).contains(&text.len()))
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()));
        match given {
            Some(text) => Self(text.to_owned()),
            None => Self(format!("req_{}", uuid::Uuid::new_v4().simple())),
        }
    }
}

/// The layer around every route of the API, the fallbacks included.
pub(crate) async fn surround(State(api): State<Api>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = RequestId::of(request.headers());
    request.extensions_mut().insert(id.clone());
    let method = request.method().clone();
    let route = metrics::route_label(
        request
            .extensions()
            .get::<MatchedPath>()
            .map(MatchedPath::as_str),
    );

    let response = if method == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        AssertUnwindSafe(next.run(request))
            .catch_unwind()
            .await
            .unwrap_or_else(|_| ApiError::internal().into_response())
    };
    let response = finish(response, &id, &method, route);

    if response.status() == StatusCode::TOO_MANY_REQUESTS {
        api.metrics().rate_limited();
    }
    api.metrics()
        .observe(route, response.status(), started.elapsed());
    response
}

/// Writes the body of a refusal, whichever layer refused, logs it, and sets the headers of every answer.
fn finish(mut response: Response, id: &RequestId, method: &Method, route: &str) -> Response {
    let refusal = match response.extensions_mut().remove::<ApiError>() {
        Some(error) => Some(error),
        None if response.status().is_client_error() || response.status().is_server_error() => {
            Some(ApiError::of_status(response.status()))
        }
        None => None,
    };
    if let Some(error) = refusal {
        log(&error, id, method, route);
        let body = Json(ErrorBody {
            error: ErrorDetail {
                code: error.code().as_str().to_owned(),
                message: error.message().to_owned(),
                request_id: id.0.clone(),
            },
        });
        let (mut parts, _) = response.into_parts();
        parts.status = error.code().status();
        parts.headers.remove(header::CONTENT_LENGTH);
        let mut rewritten = body.into_response();
        for (name, value) in &parts.headers {
            if name != header::CONTENT_TYPE {
                rewritten.headers_mut().insert(name, value.clone());
            }
        }
        *rewritten.status_mut() = parts.status;
        response = rewritten;
    }
    let headers = response.headers_mut();
    // All at once: a map of headers that grows is made anew several times.
    headers.reserve(8);
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET,POST,OPTIONS"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization,content-type,x-request-id,x-barekey-request-key",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "86400"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        headers.insert(REQUEST_ID, value);
    }
    response
}

/// One line for each refusal: what failed on our side as an error with its causes, what the caller did wrong for those who look.
fn log(error: &ApiError, id: &RequestId, method: &Method, route: &str) {
    let (code, request) = (error.code().as_str(), id.0.as_str());
    match error.causes() {
        Some(causes) => {
            tracing::error!(code, request, %method, route, "request failed: {causes}");
        }
        None if error.code().status().is_server_error() => {
            tracing::error!(code, request, %method, route, "request failed: {}", error.message());
        }
        None => tracing::debug!(code, request, %method, route, "request refused"),
    }
}

/// Where a request comes from, for the audit trail. Forwarded headers are not believed.
pub(crate) fn origin(
    headers: &HeaderMap,
    peer: Option<&ConnectInfo<SocketAddr>>,
    id: &RequestId,
    pod_route: bool,
) -> Origin {
    let user_agent: String = headers
        .get(header::USER_AGENT)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        .unwrap_or_default()
        .chars()
        .filter(|character| !character.is_control())
        .scan(0, |bytes, character| {
            *bytes += character.len_utf8();
            (*bytes <= USER_AGENT_BYTES_MAX).then_some(character)
        })
        .collect();
    let source = if pod_route {
        Source::Pod
    } else if user_agent.starts_with("barekey-cli/") {
        Source::Cli
    } else {
        Source::Api
    };
    Origin {
        source,
        ip: peer.map_or_else(String::new, |peer| address(peer).to_string()),
        user_agent,
        request_id: id.0.clone(),
    }
}

/// The peer's address; one of IPv4 that came in over IPv6 as what it is.
pub(crate) fn address(peer: &ConnectInfo<SocketAddr>) -> IpAddr {
    peer.0.ip().to_canonical()
}

/// No such route.
pub(crate) async fn no_route() -> ApiError {
    ApiError::of_status(StatusCode::NOT_FOUND)
}

/// The route is there, for another method.
pub(crate) async fn no_method() -> ApiError {
    ApiError::new(
        Code::MethodNotAllowed,
        ApiError::of_status(StatusCode::METHOD_NOT_ALLOWED).message(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        headers
    }

    #[test]
    fn a_sane_request_id_is_taken_over_and_any_other_is_replaced() {
        for good in ["a", "req_1", &"x".repeat(128)] {
            assert_eq!(RequestId::of(&headers("x-request-id", good)).0, good);
        }
        for bad in ["", "with space", "tab\there", "ü", &"x".repeat(129)] {
            let made = RequestId::of(&headers("x-request-id", bad)).0;
            assert!(
                made.starts_with("req_") && made.len() == 36,
                "{bad:?}: {made}"
            );
        }
    }

    #[test]
    fn a_user_agent_is_cut_at_256_bytes_between_characters() {
        let long = "ü".repeat(200);
        let origin = origin(
            &headers("user-agent", &long),
            None,
            &RequestId("r".to_owned()),
            false,
        );
        assert_eq!(origin.user_agent, "ü".repeat(128));
    }

    #[test]
    fn the_cli_is_told_by_its_user_agent_and_a_pod_by_its_route() {
        let id = RequestId("r".to_owned());
        let cli = headers("user-agent", "barekey-cli/0.1.0");
        assert_eq!(origin(&cli, None, &id, false).source, Source::Cli);
        assert_eq!(origin(&cli, None, &id, true).source, Source::Pod);
        assert_eq!(
            origin(&headers("user-agent", "curl/8"), None, &id, false).source,
            Source::Api
        );
    }

    #[test]
    fn an_answer_that_a_foreign_layer_refused_gets_our_body() {
        let response = (StatusCode::PAYLOAD_TOO_LARGE, "length limit exceeded").into_response();
        let id = RequestId("r-1".to_owned());
        let response = finish(response, &id, &Method::POST, "/v1/env/write");
        assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(response.headers()[header::CACHE_CONTROL], "no-store");
        assert!(!response.headers().contains_key(header::SET_COOKIE));
    }
}
