//! `/healthz`, `/readyz` and `/metrics`, on a port of their own.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, watch};

use super::limits::{CHECK_KEPT, CHECK_TIME_MAX};
use crate::vault::Vault;

#[derive(Clone)]
struct Probes(Arc<Inner>);

struct Inner {
    vault: Vault,
    ready: Vec<watch::Receiver<bool>>,
    registry: Arc<Registry>,
    checked: Mutex<Option<(Instant, bool)>>,
}

/// The probes: alive as long as it answers, ready when the database answers and every one of `ready` says so.
pub fn probes(vault: Vault, ready: Vec<watch::Receiver<bool>>, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Probes(Arc::new(Inner {
            vault,
            ready,
            registry,
            checked: Mutex::new(None),
        })))
}

async fn readyz(State(probes): State<Probes>) -> Response {
    if !probes.0.ready.iter().all(|ready| *ready.borrow()) {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: still starting, or told to stop\n",
        )
            .into_response();
    }
    if database_answers(&probes.0).await {
        "ready\n".into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the database cannot be used\n",
        )
            .into_response()
    }
}

/// Asks the database at most once in [`CHECK_KEPT`], however often the probe is called.
async fn database_answers(probes: &Inner) -> bool {
    let mut checked = probes.checked.lock().await;
    if let Some((at, answered)) = *checked
        && at.elapsed() < CHECK_KEPT
    {
        return answered;
    }
    let answered = match tokio::time::timeout(CHECK_TIME_MAX, probes.vault.check()).await {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            let cause = error.source.as_ref();
            tracing::warn!("not ready: {error}: {cause}");
            false
        }
        Err(_) => {
            tracing::warn!("not ready: the database did not answer in time");
            false
        }
    };
    *checked = Some((Instant::now(), answered));
    answered
}

async fn metrics(State(probes): State<Probes>) -> Response {
    let mut text = String::new();
    if encode(&mut text, &probes.0.registry).is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    let mut response = text.into_response();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8"),
    );
    response
}
