//! Admission over HTTP, with facts that a test sets.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::domain::access::AccessGrant;
use crate::kubernetes::injection::{AgentDelivery, AgentDeliverySettings, Authority};

/// What the cluster and the vault say in a test.
#[derive(Clone, Default)]
struct Said {
    /// What the watch saw.
    seen: Option<DeclaredStage>,
    /// What the API server has; `None` when it does not answer.
    live: Option<Option<DeclaredStage>>,
    /// What the stage holds; `None` when the vault does not answer.
    names: Option<BTreeSet<VariableName>>,
    /// How often the API server was asked.
    asked: Arc<AtomicUsize>,
}

impl Facts for Said {
    fn seen(&self, _: &Namespace, _: &ObjectName) -> Option<DeclaredStage> {
        self.seen.clone()
    }

    fn live<'a>(
        &'a self,
        _: &'a Namespace,
        _: &'a ObjectName,
    ) -> BoxFuture<'a, Result<Option<DeclaredStage>, Unanswered>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { self.live.clone().ok_or(Unanswered) })
    }

    fn names<'a>(
        &'a self,
        _: &'a StageId,
        _: &'a Namespace,
        _: &'a ObjectName,
    ) -> BoxFuture<'a, Result<BTreeSet<VariableName>, Unanswered>> {
        Box::pin(async {
            match self.names.clone() {
                Some(names) => Ok(names),
                None => futures::future::pending().await,
            }
        })
    }
}

fn stage() -> DeclaredStage {
    DeclaredStage {
        id: Some("stg_1".parse().unwrap()),
        revision: 1,
        access: vec![AccessGrant {
            namespace: "shop".parse().unwrap(),
            service_accounts: vec!["api".parse().unwrap()],
            variables: None,
        }],
        ready: true,
    }
}

fn knowing(stage: DeclaredStage) -> Said {
    Said {
        seen: Some(stage.clone()),
        live: Some(Some(stage)),
        names: Some(BTreeSet::new()),
        ..Said::default()
    }
}

fn app(said: Said) -> Router {
    let settings = InjectionSettings {
        server: "barekey.barekey.svc".to_owned(),
        port: 443,
        addresses: Vec::new(),
        authority: Authority {
            id: "0123456789abcdef".to_owned(),
            certificate: "MIIB".to_owned(),
        },
        agent: AgentDeliverySettings {
            image: "agent".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            delivery: AgentDelivery::Init,
        },
    };
    let (_, settings) = watch::channel(Arc::new(settings));
    router(State::new(said, settings, Metrics::default()))
}

fn pod() -> Value {
    json!({
        "metadata": {"name": "api", "annotations": {"barekey.dev/stage": "production"}},
        "spec": {"serviceAccountName": "api", "containers": [{"name": "app", "command": ["/app"]}]},
    })
}

fn review(pod: Value) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "groups": ["system:authenticated"]},
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

async fn post(app: &Router, body: impl Into<Body>) -> (StatusCode, String) {
    let request = HttpRequest::post("/admission/pods")
        .body(body.into())
        .unwrap();
    let response = app.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// The `response` of the answer to a review.
async fn answer(said: Said, review: &Value) -> Value {
    let (status, body) = post(&app(said), review.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer["kind"], "AdmissionReview");
    assert_eq!(answer["response"]["uid"], "705ab4f5");
    answer["response"].clone()
}

#[tokio::test]
async fn an_annotated_pod_is_answered_with_a_patch_in_base64() {
    let response = answer(knowing(stage()), &review(pod())).await;
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    let patch = STANDARD
        .decode(response["patch"].as_str().unwrap())
        .unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut becomes = pod();
    json_patch::patch(&mut becomes, &patch).unwrap();
    assert_eq!(
        becomes["spec"]["containers"][0]["command"],
        json!(["/run/barekey.dev/agent/barekey", "run", "--", "/app"])
    );
}

#[tokio::test]
async fn what_the_watch_saw_is_enough_for_a_yes_and_a_no_is_checked_live() {
    let said = knowing(stage());
    assert_eq!(answer(said.clone(), &review(pod())).await["allowed"], true);
    assert_eq!(said.asked.load(Ordering::SeqCst), 0);

    let missed = Said {
        seen: None,
        ..knowing(stage())
    };
    assert_eq!(
        answer(missed.clone(), &review(pod())).await["allowed"],
        true
    );
    assert_eq!(missed.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_refusal_says_why_and_a_stage_that_cannot_be_read_is_for_later() {
    let absent = Said {
        live: Some(None),
        ..Said::default()
    };
    let response = answer(absent, &review(pod())).await;
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["code"], 403);
    assert_eq!(response.get("patch"), None);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("pod shop/api: no BarekeyStage shop/production grants"),
        "{message}"
    );

    let response = answer(Said::default(), &review(pod())).await;
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["code"], 503);
}

#[tokio::test]
async fn a_vault_that_does_not_answer_holds_nobody_up_for_long() {
    let silent = Said {
        names: None,
        ..knowing(stage())
    };
    let mut listing = pod();
    listing["metadata"]["annotations"]["barekey.dev/variables"] = json!("A");
    let reviewed = review(listing);
    let answered = timeout(NAMES_WAIT_MAX * 4, async {
        answer(silent, &reviewed).await
    });
    assert_eq!(answered.await.unwrap()["allowed"], true);
}

#[tokio::test]
async fn pods_that_ask_for_nothing_and_everything_but_creation_pass_unchanged() {
    let nobody = Said::default();
    let plain = json!({"metadata": {}, "spec": {"containers": [{"name": "app"}]}});
    let mut changed = review(pod());
    changed["request"]["operation"] = json!("UPDATE");
    let mut part = review(pod());
    part["request"]["subResource"] = json!("ephemeralcontainers");
    let mut other = review(pod());
    other["request"]["resource"] =
        json!({"group": "apps", "version": "v1", "resource": "deployments"});
    for passes in [review(plain), changed, part, other] {
        let response = answer(nobody.clone(), &passes).await;
        assert_eq!(response, json!({"uid": "705ab4f5", "allowed": true}));
    }
}

#[tokio::test]
async fn a_mirror_of_a_static_pod_passes_when_a_node_makes_it_and_only_then() {
    let mut mirror = pod();
    mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"] = json!("x");
    let mut by_node = review(mirror.clone());
    by_node["request"]["userInfo"]["groups"] = json!(["system:nodes", "system:authenticated"]);
    let response = answer(Said::default(), &by_node).await;
    assert_eq!(response["allowed"], true);
    assert!(
        response["warnings"][0]
            .as_str()
            .unwrap()
            .contains("static pods")
    );
    assert_eq!(
        answer(Said::default(), &review(mirror)).await["allowed"],
        false
    );
}

#[tokio::test]
async fn what_is_no_review_is_a_400_with_the_body_of_every_refusal() {
    let app = app(knowing(stage()));
    let mut no_uid = review(pod());
    no_uid["request"]["uid"] = json!("");
    for (body, code) in [
        (String::new(), "INVALID_JSON"),
        ("{".to_owned(), "INVALID_JSON"),
        ("null".to_owned(), "INVALID_REQUEST"),
        ("[]".to_owned(), "INVALID_REQUEST"),
        ("\u{0}".to_owned(), "INVALID_JSON"),
        (
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}).to_string(),
            "INVALID_REQUEST",
        ),
        (
            json!({"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview", "request": null}).to_string(),
            "INVALID_REQUEST",
        ),
        (
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "SECRET"}}).to_string(),
            "INVALID_REQUEST",
        ),
        (no_uid.to_string(), "INVALID_REQUEST"),
    ] {
        let (status, told) = post(&app, body.clone()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body:.80}");
        let told: Value = serde_json::from_str(&told).unwrap();
        let error = &told["error"];
        assert_eq!(error["code"], code, "{body:.80}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("AdmissionReview"), "{message}");
        assert!(!message.contains("SECRET"), "{message}");
        assert!(error["requestId"].as_str().unwrap().starts_with("req_"));
    }
    let (status, _) = post(&app, "[".repeat(100_000)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_and_one_with_256_kib_of_annotations_is_not() {
    let app = app(knowing(stage()));
    let (status, told) = post(&app, vec![b' '; body::BYTES_MAX + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(told.contains("REQUEST_TOO_LARGE"), "{told}");

    let mut large = pod();
    large["metadata"]["annotations"]["example.com/large"] = json!("x".repeat(256 * 1024 - 64));
    assert_eq!(
        answer(knowing(stage()), &review(large)).await["allowed"],
        true
    );
}

#[tokio::test]
async fn a_long_review_that_takes_its_time_holds_no_short_one_up() {
    let app = app(Said {
        names: None,
        ..knowing(stage())
    });
    let mut long = pod();
    long["metadata"]["annotations"]["barekey.dev/variables"] = json!("A");
    long["metadata"]["annotations"]["example.com/large"] = json!("x".repeat(SHORT_BYTES_MAX));
    let mut long = Box::pin(post(&app, review(long).to_string()));
    tokio::select! {
        biased;
        _ = &mut long => panic!("it waits for the names"),
        (status, _) = post(&app, review(pod()).to_string()) => assert_eq!(status, StatusCode::OK),
    }
    assert_eq!(long.await.0, StatusCode::OK);
}

#[tokio::test]
async fn the_namespace_of_the_review_counts_and_not_that_in_the_pod() {
    let mut elsewhere = review(pod());
    elsewhere["request"]["namespace"] = json!("other");
    elsewhere["request"]["object"]["metadata"]["namespace"] = json!("shop");
    assert_eq!(answer(knowing(stage()), &elsewhere).await["allowed"], false);
}

#[tokio::test]
async fn a_small_body_that_becomes_large_in_memory_is_not_parsed() {
    let many = format!("[{}0]", r#"{"":0},"#.repeat(200_000));
    assert!(many.len() < body::BYTES_MAX);
    let (status, told) = post(&app(knowing(stage())), many).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(told.contains("more parts than any pod has"), "{told}");
}

#[tokio::test]
async fn one_post_of_very_many_names_is_answered_shortly() {
    let names: Vec<String> = (0..100_000).map(|index| format!("n{index}")).collect();
    let containers: Vec<Value> = names
        .iter()
        .take(40_000)
        .map(|it| json!({"name": it}))
        .collect();
    let mut many = pod();
    many["metadata"]["name"] = json!("x".repeat(200_000));
    many["metadata"]["annotations"]["barekey.dev/containers"] = json!(names.join(","));
    many["spec"]["containers"] = json!(containers);
    let response = answer(knowing(stage()), &review(many)).await;
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.len() < 8 * 1024, "{}", message.len());
}

/// JSON in which the fields of pods and reviews turn up at places and with types that they should not have.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "(barekey:A|barekey:|\\$\\(A\\)|/run/barekey.dev|barekey-agent|barekey-token|BAREKEY_ALLOWANCE|BAREKEY_AGENT_SETTINGS|windows|\\PC{0,6})".prop_map(Value::from),
    ];
    let field = "(name|value|env|envFrom|prefix|command|args|volumes|volumeMounts|mountPath|containers|initContainers|metadata|annotations|labels|spec|exec|livenessProbe|lifecycle|resources|limits|memory|securityContext|runAsUser|imagePullSecrets|projected|sources|serviceAccountToken|audience|barekey.dev/stage|barekey.dev/x|image|emptyDir|medium)";
    leaf.prop_recursive(6, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::btree_map(field, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn answers(body: String) -> (StatusCode, String) {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
        .block_on(async { post(&app(knowing(stage())), body).await })
}

proptest! {
    #[test]
    fn any_json_is_answered(body in any_json()) {
        let (status, _) = answers(body.to_string());
        prop_assert_eq!(status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn any_object_in_a_review_is_answered(object in any_json()) {
        let (status, body) = answers(review(object).to_string());
        prop_assert_eq!(status, StatusCode::OK, "{}", body);
    }

    #[test]
    fn an_annotated_pod_with_any_spec_is_answered_and_its_patch_applies(
        spec in any_json(), container in any_json(), volumes in any_json(), env in any_json(),
    ) {
        let mut pod = pod();
        pod["spec"]["volumes"] = volumes;
        pod["spec"]["containers"][0]["env"] = env;
        pod["spec"]["initContainers"] = json!([container]);
        pod["spec"]["securityContext"] = spec;
        pod["metadata"]["annotations"]["barekey.dev/containers"] = json!("app");
        let (status, body) = answers(review(pod.clone()).to_string());
        prop_assert_eq!(status, StatusCode::OK, "{}", body);
        let answer: Value = serde_json::from_str(&body).unwrap();
        if let Some(patch) = answer["response"]["patch"].as_str() {
            let patch: json_patch::Patch = serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap();
            prop_assert!(json_patch::patch(&mut pod, &patch).is_ok());
        }
    }
}
