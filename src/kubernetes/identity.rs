//! ServiceAccount tokens in, pods out.
//!
//! A token proves a pod when the API server says so ([`TokenReview`], for our audience, with the pod's name and UID in the
//! answer) and the pod, read back from the API server, is the same one, lives, and runs as that account. What the pod may ask
//! for is what its spec says; nothing that the caller sends counts, and nothing is remembered between two calls.
//!
//! What a token says of itself (issuer, audience, end) is looked at first, unverified, so that a flood of foreign tokens
//! costs the API server nothing. At most [`REVIEWS_MAX`] look-ups run at once; [`WAITERS_MAX`] more wait for their turn.

mod checks;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{GetParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use self::checks::{Failed, Reviewed, allowances, claims, look_at_claims, look_at_pod, reviewed};
use crate::domain::access::PodCaller;
use crate::domain::causes::with_causes;
use crate::domain::names::{Namespace, ObjectName};
use crate::kubernetes::events::{Events, Message, Severity};
use crate::kubernetes::metrics::{IdentityLabels, IdentityOutcome, Metrics};
use crate::kubernetes::{KubernetesSettings, RequestError, timed};
use crate::vault::Clock;
use crate::vault::credentials::{AuthenticateError, PresentedToken};
use crate::vault::pods::PodIdentity;

/// How many look-ups run at once.
pub const REVIEWS_MAX: usize = 64;
/// How many callers wait for a look-up.
pub const WAITERS_MAX: usize = 1024;
/// How long a caller waits for its turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);
/// What a caller that got no turn is told to wait, in seconds.
const RETRY_AFTER_SECONDS: u32 = 2;
/// How long one request to the API server may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// How often the cluster is asked for its issuer at most.
const ISSUER_EVERY: Duration = Duration::from_secs(10);
/// How many issuers are remembered.
const ISSUERS_MAX: usize = 8;

/// Recognises pods by asking the API server. Cheap to clone.
#[derive(Clone)]
pub struct ClusterIdentity(Arc<Inner>);

struct Inner {
    client: Client,
    audience: String,
    clock: Arc<dyn Clock>,
    events: Events,
    metrics: Metrics,
    turns: Semaphore,
    waiting: AtomicUsize,
    issuers: Mutex<Issuers>,
}

/// The issuers that the cluster named, newest last.
#[derive(Default)]
struct Issuers {
    known: Vec<String>,
    asked_at: Option<Instant>,
}

impl Issuers {
    fn admit(&self, issuer: &str) -> bool {
        self.known.iter().any(|known| known == issuer)
    }

    /// Whether the cluster may be asked again; if so, it counts as asked.
    fn is_due(&mut self) -> bool {
        let due = self.asked_at.is_none_or(|at| at.elapsed() >= ISSUER_EVERY);
        if due {
            self.asked_at = Some(Instant::now());
        }
        due
    }

    fn learn(&mut self, issuer: String) {
        if !self.admit(&issuer) {
            if self.known.len() == ISSUERS_MAX {
                self.known.remove(0);
            }
            self.known.push(issuer);
        }
    }
}

impl ClusterIdentity {
    /// Recognises pods with tokens for our server name.
    pub fn new(
        client: Client,
        settings: &KubernetesSettings,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Self {
        Self(Arc::new(Inner {
            events: Events::new(client.clone(), settings, Arc::clone(&clock)),
            client,
            audience: settings.server_name(),
            clock,
            metrics,
            turns: Semaphore::new(REVIEWS_MAX),
            waiting: AtomicUsize::new(0),
            issuers: Mutex::default(),
        }))
    }

    fn count(&self, outcome: IdentityOutcome) {
        self.0
            .metrics
            .identities
            .get_or_create(&IdentityLabels { outcome })
            .inc();
    }

    /// What costs the API server nothing.
    async fn look_first(&self, token: &PresentedToken) -> Result<(), Failed> {
        let claims = claims(token.reveal())?;
        look_at_claims(&claims, &self.0.audience, self.0.clock.now_ms())?;
        self.look_at_issuer(&claims.iss).await
    }

    /// What the API server says.
    async fn ask(&self, token: &PresentedToken) -> Result<PodCaller, AuthenticateError> {
        let _turn = self.turn().await?;
        let status = self.review(token).await?;
        let reviewed = reviewed(status, &self.0.audience)?;
        let pod = self.pod(&reviewed).await?;
        look_at_pod(pod.as_ref(), &reviewed)?;
        let allowances = match allowances(pod.as_ref()) {
            Ok(allowances) => allowances,
            Err(failed) => {
                self.tell(&reviewed, &failed.0);
                return Err(failed.into());
            }
        };
        Ok(PodCaller {
            namespace: reviewed.namespace,
            service_account: reviewed.service_account,
            pod: reviewed.pod,
            uid: reviewed.uid,
            allowances,
        })
    }

    /// A turn among [`REVIEWS_MAX`].
    async fn turn(&self) -> Result<SemaphorePermit<'_>, AuthenticateError> {
        let busy = || AuthenticateError::Busy {
            retry_after_seconds: RETRY_AFTER_SECONDS,
        };
        if let Ok(turn) = self.0.turns.try_acquire() {
            return Ok(turn);
        }
        let waiting = Waiting::among(&self.0.waiting).ok_or_else(busy)?;
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.0.turns.acquire()).await;
        drop(waiting);
        turn.map_err(|_| busy())?.map_err(|_| busy())
    }

    /// Whether the issuer is the cluster's. A cluster that does not name its issuer is not held against the token.
    async fn look_at_issuer(&self, issuer: &str) -> Result<(), Failed> {
        if self.issuers().admit(issuer) {
            return Ok(());
        }
        let due = self.issuers().is_due();
        if due && let Some(known) = self.discover_issuer().await {
            self.issuers().learn(known);
        }
        let issuers = self.issuers();
        if issuers.known.is_empty() || issuers.admit(issuer) {
            return Ok(());
        }
        Err(Failed(
            "its token was issued by somebody else than this cluster".to_owned(),
        ))
    }

    fn issuers(&self) -> MutexGuard<'_, Issuers> {
        match self.0.issuers.lock() {
            Ok(issuers) => issuers,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// The issuer of new tokens, as the API server names it to every service account.
    async fn discover_issuer(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Discovery {
            issuer: String,
        }
        let request = kube::core::Request::new("/.well-known")
            .get("openid-configuration", &GetParams::default())
            .ok()?;
        match timed(TIMEOUT, self.0.client.request::<Discovery>(request)).await {
            Ok(discovery) => Some(discovery.issuer),
            Err(error) => {
                tracing::debug!(
                    problem = with_causes(&error),
                    "the cluster does not name its issuer"
                );
                None
            }
        }
    }

    async fn review(&self, token: &PresentedToken) -> Result<TokenReviewStatus, AuthenticateError> {
        let review = TokenReview {
            metadata: ObjectMeta::default(),
            spec: TokenReviewSpec {
                audiences: Some(vec![self.0.audience.clone()]),
                token: Some(token.reveal().to_owned()),
            },
            status: None,
        };
        let api: Api<TokenReview> = Api::all(self.0.client.clone());
        let answer = timed(TIMEOUT, api.create(&PostParams::default(), &review))
            .await
            .map_err(unavailable)?;
        Ok(answer.status.unwrap_or_default())
    }

    async fn pod(&self, reviewed: &Reviewed) -> Result<Option<Pod>, AuthenticateError> {
        let api: Api<Pod> = Api::namespaced(self.0.client.clone(), reviewed.namespace.as_str());
        timed(TIMEOUT, api.get_opt(reviewed.pod.as_str()))
            .await
            .map_err(unavailable)
    }

    fn tell(&self, pod: &Reviewed, note: &str) {
        let about = pod_reference(&pod.namespace, &pod.pod, &pod.uid);
        self.0.events.tell_meanwhile(&about, &access_refused(note));
    }
}

impl PodIdentity for ClusterIdentity {
    fn identify<'a>(
        &'a self,
        token: &'a PresentedToken,
    ) -> BoxFuture<'a, Result<PodCaller, AuthenticateError>> {
        Box::pin(async move {
            if let Err(failed) = self.look_first(token).await {
                self.count(IdentityOutcome::RefusedEarly);
                return Err(failed.into());
            }
            let recognised = self.ask(token).await;
            match &recognised {
                Ok(_) => self.count(IdentityOutcome::Recognised),
                Err(AuthenticateError::Busy { .. }) => self.count(IdentityOutcome::Busy),
                Err(AuthenticateError::IdentityUnavailable(_)) => {
                    self.count(IdentityOutcome::Unavailable);
                }
                Err(_) => self.count(IdentityOutcome::Refused),
            }
            recognised
        })
    }

    fn tell_refused<'a>(&'a self, pod: &'a PodCaller, message: &'a str) -> BoxFuture<'a, ()> {
        let about = pod_reference(&pod.namespace, &pod.pod, &pod.uid);
        let message = access_refused(message);
        self.0.events.tell_meanwhile(&about, &message);
        Box::pin(std::future::ready(()))
    }
}

/// One more caller that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn among(waiting: &'a AtomicUsize) -> Option<Self> {
        let before = waiting.fetch_add(1, Ordering::AcqRel);
        let one = Self(waiting);
        (before < WAITERS_MAX).then_some(one)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn unavailable(error: RequestError) -> AuthenticateError {
    AuthenticateError::IdentityUnavailable(Box::new(error))
}

fn access_refused(note: &str) -> Message<'_> {
    Message {
        severity: Severity::Warning,
        reason: "AccessRefused",
        action: "ReadValues",
        note,
    }
}

fn pod_reference(namespace: &Namespace, pod: &ObjectName, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(namespace.to_string()),
        name: Some(pod.to_string()),
        uid: Some(uid.to_owned()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_waiter_than_allowed_is_turned_away_and_none_is_counted_twice() {
        let waiting = AtomicUsize::new(WAITERS_MAX - 1);
        let last = Waiting::among(&waiting);
        assert!(last.is_some());
        assert!(Waiting::among(&waiting).is_none());
        drop(last);
        assert_eq!(waiting.load(Ordering::Acquire), WAITERS_MAX - 1);
    }
}
