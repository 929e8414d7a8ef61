//! What a token, a review and a pod must say. Pure: each check fails with words for the pod's owner.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::TokenReviewStatus;
use k8s_openapi::api::core::v1::{Container, Pod};
use serde::Deserialize;

use crate::domain::names::{Namespace, ObjectName};
use crate::domain::reference::{ALLOWANCE_ENTRY, Allowance};
use crate::vault::credentials::AuthenticateError;

/// The longest token that is looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

const POD_NAME_EXTRA: &str = "authentication.kubernetes.io/pod-name";
const POD_UID_EXTRA: &str = "authentication.kubernetes.io/pod-uid";

/// What a token says of itself. Not proven by anything.
#[derive(Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    pub(super) iss: String,
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
pub(super) struct Reviewed {
    pub(super) namespace: Namespace,
    pub(super) service_account: ObjectName,
    pub(super) pod: ObjectName,
    pub(super) uid: String,
}

/// Which check failed, in words for the pod's owner.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failed(pub(super) String);

impl From<Failed> for AuthenticateError {
    fn from(failed: Failed) -> Self {
        Self::PodRefused { reason: failed.0 }
    }
}

/// What the token says of itself, without any proof.
pub(super) fn claims(token: &str) -> Result<Claims, Failed> {
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

pub(super) fn look_at_claims(claims: &Claims, audience: &str, now_ms: i64) -> Result<(), Failed> {
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
pub(super) fn reviewed(status: TokenReviewStatus, audience: &str) -> Result<Reviewed, Failed> {
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
    })
}

/// Whether the pod is the one that the token is bound to, and lives.
pub(super) fn look_at_pod(pod: Option<&Pod>, reviewed: &Reviewed) -> Result<(), Failed> {
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
pub(super) fn allowances(pod: Option<&Pod>) -> Result<Vec<Allowance>, Failed> {
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
}
