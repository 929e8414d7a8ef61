//! ServiceAccount tokens in, pods out.
//!
//! A token proves a pod when the API server says so ([`TokenReview`], for our audience, with the pod's name and UID in the
//! answer) and the pod, read back from the API server, is the same one, lives, and runs as that account. What the pod may ask
//! for is what its spec says; nothing that the caller sends counts, and nothing is remembered between two calls.
//!
//! What a token says of itself (issuer, audience, end) is looked at first, unverified, so that a flood of foreign tokens
//! costs the API server nothing. At most [`REVIEWS_MAX`] look-ups run at once; [`WAITERS_MAX`] more wait for their turn.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use kube::api::{GetParams, ObjectMeta, PostParams};
use kube::{Api, Client};
use serde::Deserialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::domain::access::PodCaller;
use crate::domain::names::{Namespace, ObjectName};
use crate::domain::reference::{ALLOWANCE_ENTRY, Allowance};
use crate::kubernetes::events::{Events, Message, Severity};
use crate::kubernetes::metrics::{IdentityLabels, IdentityOutcome, Metrics};
use crate::kubernetes::{KubernetesSettings, chain};
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
/// The longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// How often the cluster is asked for its issuer at most.
const ISSUER_EVERY: Duration = Duration::from_secs(10);
/// How many issuers are remembered.
const ISSUERS_MAX: usize = 8;

const POD_NAME_EXTRA: &str = "authentication.kubernetes.io/pod-name";
const POD_UID_EXTRA: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME_EXTRA: &str = "authentication.kubernetes.io/node-name";

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

/// What a token says of itself. Not proven by anything.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    iss: String,
    #[serde(default)]
    aud: Audiences,
    exp: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audiences {
    One(String),
    Many(Vec<String>),
}

impl Default for Audiences {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Audiences {
    fn contains(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Many(many) => many.iter().any(|one| one == audience),
        }
    }
}

/// The pod that a review names.
#[derive(Debug, PartialEq, Eq)]
struct Reviewed {
    namespace: Namespace,
    service_account: ObjectName,
    pod: ObjectName,
    uid: String,
    node: Option<String>,
}

/// Which check failed, in words for the pod's owner.
#[derive(Debug, PartialEq, Eq)]
struct Failed(String);

impl From<Failed> for AuthenticateError {
    fn from(failed: Failed) -> Self {
        Self::PodRefused { reason: failed.0 }
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
                self.tell(&reviewed, &failed.0).await;
                return Err(failed.into());
            }
        };
        Ok(PodCaller {
            namespace: reviewed.namespace,
            service_account: reviewed.service_account,
            pod: reviewed.pod,
            uid: reviewed.uid,
            node: reviewed.node,
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
        let asked = tokio::time::timeout(TIMEOUT, self.0.client.request::<Discovery>(request));
        match asked.await {
            Ok(Ok(discovery)) => Some(discovery.issuer),
            Ok(Err(error)) => {
                tracing::debug!(
                    problem = chain(&error),
                    "the cluster does not name its issuer"
                );
                None
            }
            Err(_) => None,
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
        let answer = timed(api.create(&PostParams::default(), &review)).await?;
        Ok(answer.status.unwrap_or_default())
    }

    async fn pod(&self, reviewed: &Reviewed) -> Result<Option<Pod>, AuthenticateError> {
        let api: Api<Pod> = Api::namespaced(self.0.client.clone(), reviewed.namespace.as_str());
        timed(api.get_opt(reviewed.pod.as_str())).await
    }

    async fn tell(&self, pod: &Reviewed, note: &str) {
        let about = pod_reference(&pod.namespace, &pod.pod, &pod.uid);
        self.0.events.tell(about, access_refused(note)).await;
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
        Box::pin(async move {
            let about = pod_reference(&pod.namespace, &pod.pod, &pod.uid);
            self.0.events.tell(about, access_refused(message)).await;
        })
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

async fn timed<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, AuthenticateError> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(AuthenticateError::IdentityUnavailable(Box::new(error))),
        Err(elapsed) => Err(AuthenticateError::IdentityUnavailable(Box::new(elapsed))),
    }
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

/// What the token says of itself, without any proof.
fn claims(token: &str) -> Result<Claims, Failed> {
    let malformed = || Failed("its token is no ServiceAccount token".to_owned());
    if token.len() > TOKEN_BYTES_MAX {
        return Err(malformed());
    }
    let mut parts = token.split('.');
    let (Some(_), Some(payload), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(malformed());
    };
    let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| malformed())?;
    serde_json::from_slice(&payload).map_err(|_| malformed())
}

fn look_at_claims(claims: &Claims, audience: &str, now_ms: i64) -> Result<(), Failed> {
    if !claims.aud.contains(audience) {
        return Err(Failed(format!(
            "its token is for another audience; {audience} would pass"
        )));
    }
    let now_seconds = now_ms as f64 / 1000.0;
    match claims.exp {
        Some(end) if end > now_seconds => Ok(()),
        Some(_) => Err(Failed("its token has expired".to_owned())),
        None => Err(Failed(
            "its token never expires, so no pod has it".to_owned(),
        )),
    }
}

/// The pod that the review proves.
fn reviewed(status: TokenReviewStatus, audience: &str) -> Result<Reviewed, Failed> {
    if status.authenticated != Some(true) {
        // The API server's own text may quote the token's claims; it goes no further.
        return Err(Failed(
            "the API server does not accept its token: it has expired, is not the cluster's, or its pod is gone".to_owned(),
        ));
    }
    // An API server that ignores audiences leaves them empty.
    if !status
        .audiences
        .iter()
        .flatten()
        .any(|accepted| accepted == audience)
    {
        return Err(Failed(format!(
            "the API server did not accept its token for the audience {audience}"
        )));
    }
    let user = status.user.unwrap_or_default();
    let account = user
        .username
        .as_deref()
        .and_then(|name| name.strip_prefix("system:serviceaccount:"))
        .and_then(|name| name.split_once(':'))
        .and_then(|(namespace, account)| Some((namespace.parse().ok()?, account.parse().ok()?)));
    let Some((namespace, service_account)) = account else {
        return Err(Failed("its token is not a service account's".to_owned()));
    };
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([only]) => Some(only.clone()),
        _ => None,
    };
    let (Some(pod), Some(uid)) = (
        one(POD_NAME_EXTRA).and_then(|name| name.parse().ok()),
        one(POD_UID_EXTRA),
    ) else {
        return Err(Failed(
            "its token is not bound to a pod; the projected token of an injected pod would pass"
                .to_owned(),
        ));
    };
    Ok(Reviewed {
        namespace,
        service_account,
        pod,
        uid,
        node: one(NODE_NAME_EXTRA),
    })
}

/// Whether the pod is the one that the token is bound to, and lives.
fn look_at_pod(pod: Option<&Pod>, reviewed: &Reviewed) -> Result<(), Failed> {
    let Some(pod) = pod else {
        return Err(Failed("the pod is gone".to_owned()));
    };
    if pod.metadata.uid.as_deref() != Some(reviewed.uid.as_str()) {
        return Err(Failed(
            "another pod has taken the name since the token was made".to_owned(),
        ));
    }
    if pod.metadata.namespace.as_deref() != Some(reviewed.namespace.as_str()) {
        return Err(Failed("the pod is in another namespace".to_owned()));
    }
    let spec = pod.spec.as_ref();
    if spec.and_then(|spec| spec.service_account_name.as_deref())
        != Some(reviewed.service_account.as_str())
    {
        return Err(Failed(
            "the pod runs as another service account than its token names".to_owned(),
        ));
    }
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return Err(Failed("the pod has ended".to_owned()));
    }
    Ok(())
}

/// The allowances in the pod's spec. Ephemeral containers have none: they can be added to a pod that lives.
fn allowances(pod: Option<&Pod>) -> Result<Vec<Allowance>, Failed> {
    let Some(spec) = pod.and_then(|pod| pod.spec.as_ref()) else {
        return Ok(Vec::new());
    };
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .filter_map(|container| Some((container, allowance_text(container)?)))
        .map(|(container, text)| {
            Allowance::parse(text).map_err(|error| {
                Failed(format!(
                    "the container {} has an allowance that the webhook did not write: {error}; create the pod anew",
                    container.name
                ))
            })
        })
        .collect()
}

fn allowance_text(container: &Container) -> Option<&str> {
    container
        .env
        .iter()
        .flatten()
        .find(|entry| entry.name == ALLOWANCE_ENTRY)?
        .value
        .as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::authentication::v1::UserInfo;
    use serde_json::json;

    const AUDIENCE: &str = "barekey.barekey.svc";

    fn token(payload: &serde_json::Value) -> String {
        format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload.to_string()))
    }

    fn looked_at(payload: &serde_json::Value) -> Result<(), Failed> {
        look_at_claims(&claims(&token(payload))?, AUDIENCE, 1_000_000)
    }

    fn status() -> TokenReviewStatus {
        TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.to_owned()]),
            user: Some(UserInfo {
                username: Some("system:serviceaccount:shop:api".to_owned()),
                extra: Some(
                    [
                        (POD_NAME_EXTRA.to_owned(), vec!["api-1".to_owned()]),
                        (POD_UID_EXTRA.to_owned(), vec!["uid-1".to_owned()]),
                    ]
                    .into(),
                ),
                ..UserInfo::default()
            }),
            ..TokenReviewStatus::default()
        }
    }

    fn known() -> Reviewed {
        reviewed(status(), AUDIENCE).unwrap()
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "api-1", "namespace": "shop", "uid": "uid-1"},
            "spec": {
                "serviceAccountName": "api",
                "containers": [{"name": "app", "env": [
                    {"name": "BAREKEY_ALLOWANCE", "value": r#"{"v":1,"stage":"stg_1"}"#}
                ]}],
                "initContainers": [{"name": "migrate", "env": [
                    {"name": "BAREKEY_ALLOWANCE", "value": r#"{"v":1,"stage":"stg_2"}"#}
                ]}],
                "ephemeralContainers": [{"name": "debug", "env": [
                    {"name": "BAREKEY_ALLOWANCE", "value": r#"{"v":1,"stage":"stg_3"}"#}
                ]}]
            },
            "status": {"phase": "Pending"}
        }))
        .unwrap()
    }

    #[test]
    fn a_token_for_our_audience_that_lasts_is_worth_a_question() {
        assert_eq!(looked_at(&json!({"aud": [AUDIENCE], "exp": 1001})), Ok(()));
        assert_eq!(looked_at(&json!({"aud": AUDIENCE, "exp": 1001})), Ok(()));
    }

    #[test]
    fn a_token_of_another_audience_an_expired_and_an_endless_one_are_not() {
        for payload in [
            json!({"aud": ["https://kubernetes.default.svc"], "exp": 1001}),
            json!({"exp": 1001}),
            json!({"aud": [AUDIENCE], "exp": 1000}),
            json!({"aud": [AUDIENCE]}),
        ] {
            assert!(looked_at(&payload).is_err(), "{payload}");
        }
    }

    #[test]
    fn what_is_no_token_is_refused_without_a_question() {
        for text in ["", "a.b", "a.b.c", "a.b.c.d", "e30.e30", "bk_api_x"] {
            assert!(claims(text).is_err(), "{text}");
        }
        assert!(claims(&format!("e30.{}.x", "A".repeat(TOKEN_BYTES_MAX))).is_err());
    }

    #[test]
    fn a_review_proves_the_pod_that_it_names() {
        assert_eq!(
            known(),
            Reviewed {
                namespace: "shop".parse().unwrap(),
                service_account: "api".parse().unwrap(),
                pod: "api-1".parse().unwrap(),
                uid: "uid-1".to_owned(),
                node: None,
            }
        );
    }

    #[test]
    fn a_review_that_was_refused_or_ignores_audiences_or_names_no_pod_proves_nothing() {
        let changed = |change: &dyn Fn(&mut TokenReviewStatus)| {
            let mut status = status();
            change(&mut status);
            reviewed(status, AUDIENCE)
        };
        assert!(changed(&|status| status.authenticated = Some(false)).is_err());
        assert!(changed(&|status| status.authenticated = None).is_err());
        assert!(changed(&|status| status.audiences = None).is_err());
        assert!(changed(&|status| status.audiences = Some(vec!["other".to_owned()])).is_err());
        assert!(
            changed(&|status| status.user.as_mut().unwrap().username = Some("admin".to_owned()))
                .is_err()
        );
        assert!(changed(&|status| status.user.as_mut().unwrap().extra = None).is_err());
        assert!(
            changed(&|status| {
                let extra = status.user.as_mut().unwrap().extra.as_mut().unwrap();
                extra.remove(POD_UID_EXTRA);
            })
            .is_err()
        );
    }

    #[test]
    fn a_pod_that_is_gone_or_another_or_ended_or_of_another_account_is_refused() {
        assert_eq!(look_at_pod(Some(&pod()), &known()), Ok(()));
        assert!(look_at_pod(None, &known()).is_err());
        let changed = |change: &dyn Fn(&mut Pod)| {
            let mut pod = pod();
            change(&mut pod);
            look_at_pod(Some(&pod), &known())
        };
        assert!(changed(&|pod| pod.metadata.uid = Some("uid-2".to_owned())).is_err());
        assert!(changed(&|pod| pod.metadata.namespace = Some("other".to_owned())).is_err());
        for phase in ["Succeeded", "Failed"] {
            let ended = changed(&|pod| {
                pod.status.as_mut().unwrap().phase = Some(phase.to_owned());
            });
            assert!(ended.is_err(), "{phase}");
        }
        assert!(
            changed(&|pod| {
                pod.spec.as_mut().unwrap().service_account_name = Some("web".to_owned());
            })
            .is_err()
        );
    }

    #[test]
    fn allowances_of_containers_and_init_containers_count_and_those_of_ephemeral_ones_do_not() {
        let stages: Vec<_> = allowances(Some(&pod()))
            .unwrap()
            .into_iter()
            .map(|allowance| allowance.stage.to_string())
            .collect();
        assert_eq!(stages, ["stg_2", "stg_1"]);
    }

    #[test]
    fn a_malformed_allowance_is_refused_by_the_container_that_has_it() {
        let mut pod = pod();
        pod.spec.as_mut().unwrap().containers[0]
            .env
            .as_mut()
            .unwrap()[0]
            .value = Some("{}".to_owned());
        let Failed(reason) = allowances(Some(&pod)).unwrap_err();
        assert!(reason.contains("the container app"), "{reason}");
    }

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
