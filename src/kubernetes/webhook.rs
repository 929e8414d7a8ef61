//! Admission of pods over HTTP: parse the review, call [`injection`](super::injection), always answer.
//!
//! The API server calls this for pods that ask for injection and for no others. A review gains nothing for whoever posts
//! one: the answer is a patch without secrets, and values are given at the start of a container, to its pod alone. Nothing
//! is made and nothing is kept, so a dry run needs no care.

mod body;
mod facts;
mod review;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request as HttpRequest, State as Shared};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tower_http::catch_panic::CatchPanicLayer;

use crate::domain::names::{Namespace, ObjectName, StageId, VariableName};

use self::body::{Bodies, Malformed, WAIT_MAX, sender};
pub use self::facts::{ClusterFacts, injection_settings, keep_addresses};
use self::review::{Review, Verdict};
use super::injection::{self, Asked, DeclaredStage, InjectionSettings, Request};
use super::metrics::{AdmissionLabels, AdmissionOutcome, Metrics};
use super::turns::Turns;

/// How long the vault may take to name the variables of a stage.
const NAMES_WAIT_MAX: Duration = Duration::from_secs(2);
/// The longest review that is looked at among the other requests, in bytes: longer than those of ordinary pods. What is
/// longer takes milliseconds, so it is looked at beside them, one at a time.
const SHORT_BYTES_MAX: usize = 64 * 1024;
/// The group of the users that are nodes: only they make mirrors of static pods.
const NODES_GROUP: &str = "system:nodes";
/// The annotation of a mirror of a static pod.
const MIRROR_ANNOTATION: &str = "/metadata/annotations/kubernetes.io~1config.mirror";

/// What a decision needs to know beside the pod.
pub trait Facts: Send + Sync {
    /// A BarekeyStage as last seen.
    fn seen(&self, namespace: &Namespace, name: &ObjectName) -> Option<DeclaredStage>;

    /// A BarekeyStage as the API server has it now.
    fn live<'a>(
        &'a self,
        namespace: &'a Namespace,
        name: &'a ObjectName,
    ) -> BoxFuture<'a, Result<Option<DeclaredStage>, Unanswered>>;

    /// The names that a stage holds, if the resource of that name declares it.
    fn names<'a>(
        &'a self,
        stage: &'a StageId,
        namespace: &'a Namespace,
        name: &'a ObjectName,
    ) -> BoxFuture<'a, Result<BTreeSet<VariableName>, Unanswered>>;
}

/// Nobody could say right now.
#[derive(Debug, thiserror::Error)]
#[error("there was no answer in time")]
pub struct Unanswered;

/// What admission works with. Cheap to clone.
#[derive(Clone)]
pub struct State {
    facts: Arc<dyn Facts>,
    settings: watch::Receiver<Arc<InjectionSettings>>,
    metrics: Metrics,
    bodies: Arc<Bodies>,
    /// The turn of one long review, for which each address has a queue of its own.
    long: Arc<Turns<IpAddr>>,
}

impl State {
    /// Admission that learns of stages from `facts` and gives pods what `settings` has at that moment.
    pub fn new(
        facts: impl Facts + 'static,
        settings: watch::Receiver<Arc<InjectionSettings>>,
        metrics: Metrics,
    ) -> Self {
        Self {
            facts: Arc::new(facts),
            settings,
            metrics,
            bodies: Arc::new(Bodies::new()),
            long: Arc::new(Turns::new(1, 1)),
        }
    }
}

/// `POST /admission/pods`.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/admission/pods", post(review_pod))
        .layer(CatchPanicLayer::new())
        .with_state(state)
}

/// `POST /admission/pods`: what becomes of one pod.
async fn review_pod(Shared(state): Shared<State>, request: HttpRequest) -> Response {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map(|peer| peer.0.ip().to_canonical());
    // The room is given back when the answer is made.
    let (body, room) = match state.bodies.read(request.into_body(), peer).await {
        Ok(read) => read,
        Err(malformed) => return refuse(&state, malformed),
    };
    if body.len() <= SHORT_BYTES_MAX {
        return answer(&state, &body).await;
    }
    let turn = timeout(WAIT_MAX, state.long.take(peer.map(sender), 1)).await;
    let Ok(Some(turn)) = turn else {
        return refuse(&state, Malformed::TooManyReviews);
    };
    let (aside, runtime) = (state.clone(), Handle::current());
    let answered = spawn_blocking(move || {
        let _held = (room, turn);
        runtime.block_on(answer(&aside, &body))
    });
    match answered.await {
        Ok(response) => response,
        Err(failed) => match failed.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => refuse(&state, Malformed::TooManyReviews),
        },
    }
}

/// The answer to a body that was read.
async fn answer(state: &State, body: &[u8]) -> Response {
    let review = match Review::parse(body) {
        Ok(review) => review,
        Err(error) => return refuse(state, error.into()),
    };
    let verdict = decide(state, &review).await;
    count(
        state,
        match &verdict {
            Verdict::Changed { .. } => AdmissionOutcome::Injected,
            Verdict::Unchanged { .. } => AdmissionOutcome::Unchanged,
            Verdict::Refused { message, .. } => {
                tracing::debug!(refusal = message.as_str(), "refused a pod");
                AdmissionOutcome::Refused
            }
        },
    );
    (
        [(CONTENT_TYPE, "application/json")],
        review.answer(&verdict),
    )
        .into_response()
}

fn refuse(state: &State, malformed: Malformed) -> Response {
    count(state, AdmissionOutcome::Malformed);
    malformed.into_response()
}

fn count(state: &State, outcome: AdmissionOutcome) {
    let labels = AdmissionLabels { outcome };
    state.metrics.admissions.get_or_create(&labels).inc();
}

async fn decide(state: &State, review: &Review) -> Verdict {
    if !review.creates_a_pod() {
        return Verdict::unchanged();
    }
    let Some(namespace) = review.namespace() else {
        return Verdict::Refused {
            code: StatusCode::FORBIDDEN,
            message: "the review names no namespace that a pod could be in".to_owned(),
        };
    };
    let pod = review.object();
    if pod.pointer(MIRROR_ANNOTATION).is_some() && review.is_from(NODES_GROUP) {
        return Verdict::Unchanged {
            warnings: vec!["barekey injects nothing into static pods".to_owned()],
        };
    }
    let settings = Arc::clone(&state.settings.borrow());
    match injection::read(pod, &namespace, &settings.server) {
        Ok(Asked::Nothing { warnings }) => Verdict::Unchanged { warnings },
        Ok(Asked::Injection(request)) => inject(state, review, &request, &settings).await,
        Err(refusal) => Verdict::forbidden(&refusal),
    }
}

async fn inject(
    state: &State,
    review: &Review,
    request: &Request,
    settings: &InjectionSettings,
) -> Verdict {
    let (namespace, name) = request.stage();
    // What was seen last decides alone when it says yes; a no is checked against what is there now.
    let mut stage = state.facts.seen(namespace, name);
    if injection::check_access(request, stage.as_ref()).is_err() {
        stage = match state.facts.live(namespace, name).await {
            Ok(stage) => stage,
            Err(unanswered) => {
                return Verdict::Refused {
                    code: StatusCode::SERVICE_UNAVAILABLE,
                    message: format!(
                        "the BarekeyStage that the pod names could not be read: {unanswered}; try again"
                    ),
                };
            }
        };
    }
    let granted = match injection::check_access(request, stage.as_ref()) {
        Ok(granted) => granted,
        Err(refusal) => return Verdict::forbidden(&refusal),
    };
    let names = if request.needs_names() {
        names_of(state, granted.id(), namespace, name).await
    } else {
        None
    };
    match injection::inject(review.object(), request, &granted, names.as_ref(), settings) {
        Ok(injection) => Verdict::Changed {
            patch: injection.patch,
            warnings: injection.warnings,
        },
        Err(refusal) => Verdict::forbidden(&refusal),
    }
}

async fn names_of(
    state: &State,
    stage: &StageId,
    namespace: &Namespace,
    name: &ObjectName,
) -> Option<BTreeSet<VariableName>> {
    let names = state.facts.names(stage, namespace, name);
    timeout(NAMES_WAIT_MAX, names).await.ok()?.ok()
}
