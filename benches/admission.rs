//! Admission reviews beside a constant answer of the same length, over the same framework: what injection itself costs.
//!
//! The webhook runs as the operator runs it, with a stage that its watch has seen; the pod has what pods have (a probe, two
//! containers, a dozen entries, a token volume) and lists its variables, so that their names are held against the stage's.
//! Those names are in memory here: on the operator they are one look into the vault.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use barekey::domain::access::AccessGrant;
use barekey::domain::names::{Namespace, ObjectName, StageId, VariableName};
use barekey::kubernetes::injection::{Authority, DeclaredStage, InjectionSettings};
use barekey::kubernetes::metrics::Metrics;
use barekey::kubernetes::webhook::{Facts, State, Unanswered, router};
use barekey::kubernetes::{AgentDelivery, AgentDeliverySettings};
use base64::Engine;
use futures::future::BoxFuture;
use serde_json::{Value, json};

use crate::load::{Running, call, free_address, load, median, post, start_constant, wait_for};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
/// How many reviews are under way at once.
const CONNECTIONS: usize = 16;

pub(crate) fn run() {
    let address = free_address();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["serve-admission", &address.to_string()])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let _webhook = Running(child);
    wait_for(address);
    let request = post("/admission/pods", None, &review().to_string());
    let (status, answer) = call(address, &request);
    assert_eq!(status, 200, "{answer}");
    let response: Value = serde_json::from_str(&answer).unwrap();
    assert!(response["response"]["patch"].is_string(), "{response}");
    let (constant_address, _constant) = start_constant(&answer);

    let mut rates = [Vec::new(), Vec::new()];
    let mut last = None;
    for _ in 0..ROUNDS {
        rates[0].push(load(constant_address, &request, CONNECTIONS, ROUND).per_second);
        let seen = load(address, &request, CONNECTIONS, ROUND);
        rates[1].push(seen.per_second);
        last = Some(seen);
    }
    let [constant, injected] = rates.map(median);
    let last = last.unwrap();
    println!("admission reviews, {CONNECTIONS} at once");
    println!(
        "  {:>5.1} % of a constant answer ({injected:.0} of {constant:.0} reviews/s; p50 {:.2} ms, p99 {:.2} ms)",
        100.0 * injected / constant,
        last.p50.as_secs_f64() * 1e3,
        last.p99.as_secs_f64() * 1e3,
    );
}

/// The other side of [`run`].
pub(crate) fn serve(arguments: &[String]) {
    let address: SocketAddr = arguments[0].parse().unwrap();
    let settings = InjectionSettings {
        server: "barekey.barekey.svc".to_owned(),
        port: 443,
        addresses: vec!["10.96.7.7".to_owned()],
        authority: Authority {
            id: "0123456789abcdef".to_owned(),
            // As long as that of an ECDSA certificate.
            certificate: base64::engine::general_purpose::STANDARD.encode([7_u8; 420]),
        },
        agent: AgentDeliverySettings {
            image: "docker.io/barekey/agent:0.1.0".to_owned(),
            image_pull_policy: Some("IfNotPresent".to_owned()),
            image_pull_secrets: Vec::new(),
            delivery: AgentDelivery::Init,
        },
    };
    let (_, settings) = tokio::sync::watch::channel(Arc::new(settings));
    let app = router(State::new(InMemory::new(), settings, Metrics::default()));
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(async {
            let listener = tokio::net::TcpListener::bind(address).await.unwrap();
            let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                stream.set_nodelay(true).ok();
            });
            axum::serve(listener, app).await.unwrap();
        });
}

/// One stage, and the names that it holds.
struct InMemory {
    stage: DeclaredStage,
    names: BTreeSet<VariableName>,
}

impl InMemory {
    fn new() -> Self {
        Self {
            stage: DeclaredStage {
                id: Some("stg_1".parse().unwrap()),
                revision: 1,
                access: vec![AccessGrant {
                    namespace: "shop".parse().unwrap(),
                    service_accounts: vec!["shop".parse().unwrap()],
                    variables: None,
                }],
                not_ready: None,
            },
            names: (0..50)
                .map(|it| format!("VARIABLE_{it}").parse().unwrap())
                .collect(),
        }
    }
}

impl Facts for InMemory {
    fn seen(&self, _: &Namespace, _: &ObjectName) -> Option<DeclaredStage> {
        Some(self.stage.clone())
    }

    fn live<'a>(
        &'a self,
        _: &'a Namespace,
        _: &'a ObjectName,
    ) -> BoxFuture<'a, Result<Option<DeclaredStage>, Unanswered>> {
        Box::pin(async { Ok(Some(self.stage.clone())) })
    }

    fn names<'a>(
        &'a self,
        _: &'a StageId,
    ) -> BoxFuture<'a, Result<BTreeSet<VariableName>, Unanswered>> {
        Box::pin(async { Ok(self.names.clone()) })
    }
}

/// A review as the API server posts it for a pod of a Deployment.
fn review() -> Value {
    let entries: Vec<Value> = (0..12)
        .map(|it| json!({"name": format!("OWN_{it}"), "value": format!("value-{it}-$(OWN_0)")}))
        .collect();
    let container = |name: &str| {
        json!({
            "name": name,
            "image": "docker.io/library/busybox:stable",
            "command": ["/bin/sh", "-c"],
            "args": ["exec sleep infinity"],
            "env": entries,
            "resources": {
                "limits": {"cpu": "500m", "memory": "128Mi"},
                "requests": {"cpu": "100m", "memory": "128Mi"},
            },
            "readinessProbe": {"exec": {"command": ["/bin/sh", "-c", "test -f /tmp/ready"]}, "periodSeconds": 5},
            "terminationMessagePath": "/dev/termination-log",
            "terminationMessagePolicy": "File",
            "imagePullPolicy": "IfNotPresent",
            "volumeMounts": [
                {"name": "kube-api-access-x", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
            ],
            "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                "capabilities": {"drop": ["ALL"]},
            },
        })
    };
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "groups": ["system:serviceaccounts", "system:authenticated"],
            },
            "object": {
                "kind": "Pod",
                "apiVersion": "v1",
                "metadata": {
                    "generateName": "shop-6d5f7c9b8-",
                    "namespace": "shop",
                    "labels": {"app": "shop", "pod-template-hash": "6d5f7c9b8"},
                    "annotations": {
                        "barekey.dev/stage": "production",
                        "barekey.dev/variables": "VARIABLE_1,VARIABLE_2,URL=VARIABLE_3",
                    },
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "shop-6d5f7c9b8",
                        "uid": "0a1b2c3d", "controller": true, "blockOwnerDeletion": true,
                    }],
                },
                "spec": {
                    "serviceAccountName": "shop",
                    "restartPolicy": "Always",
                    "terminationGracePeriodSeconds": 30,
                    "dnsPolicy": "ClusterFirst",
                    "securityContext": {"runAsNonRoot": true, "runAsUser": 1000},
                    "containers": [container("app"), container("sidecar")],
                    "volumes": [{"name": "kube-api-access-x", "projected": {"defaultMode": 420, "sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    ]}}],
                },
            },
            "oldObject": null,
            "dryRun": false,
        },
    })
}
