//! What the HTTP API counts. No organization, stage or variable is a label.

use std::time::Duration;

use axum::http::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::ROUTES;

/// What requests that match no route are counted under.
const UNMATCHED: &str = "unmatched";

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 12] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RouteAndClass {
    route: &'static str,
    class: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

/// Counters of the HTTP API. Cheap to clone.
#[derive(Clone)]
pub struct HttpMetrics {
    requests: Family<RouteAndClass, Counter>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
    failed_tokens: Counter,
    rate_limited: Counter,
}

impl HttpMetrics {
    /// Makes the counters and puts them into `registry`, as `barekey_http_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            failed_tokens: Counter::default(),
            rate_limited: Counter::default(),
        };
        registry.register(
            "barekey_http_requests",
            "HTTP requests by route and class of status",
            metrics.requests.clone(),
        );
        registry.register(
            "barekey_http_request_duration_seconds",
            "How long HTTP requests took, by route",
            metrics.seconds.clone(),
        );
        registry.register(
            "barekey_http_failed_tokens",
            "Credentials that were refused",
            metrics.failed_tokens.clone(),
        );
        registry.register(
            "barekey_http_rate_limited",
            "Requests that were told to wait",
            metrics.rate_limited.clone(),
        );
        metrics
    }

    /// Counts one answer.
    pub(crate) fn observe(&self, route: &'static str, status: StatusCode, took: Duration) {
        let class = match status.as_u16() {
            ..=199 => "1xx",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500.. => "5xx",
        };
        self.requests
            .get_or_create(&RouteAndClass { route, class })
            .inc();
        self.seconds
            .get_or_create(&Route { route })
            .observe(took.as_secs_f64());
    }

    /// Counts a credential that was refused.
    pub(crate) fn failed_token(&self) {
        self.failed_tokens.inc();
    }

    /// Counts a request that was told to wait.
    pub(crate) fn rate_limited(&self) {
        self.rate_limited.inc();
    }
}

/// The path of the table that a request matched: one of few words, whatever a client sends.
pub(crate) fn route_label(matched: Option<&str>) -> &'static str {
    matched
        .and_then(|matched| ROUTES.iter().find(|route| route.path == matched))
        .map_or(UNMATCHED, |route| route.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sends_never_becomes_a_label() {
        assert_eq!(route_label(Some("/v1/env/list")), "/v1/env/list");
        assert_eq!(route_label(Some("/v1/env/acme")), "unmatched");
        assert_eq!(route_label(None), "unmatched");
    }
}
