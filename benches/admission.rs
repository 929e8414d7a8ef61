//! Admission reviews of a pod that asks for injection, over the operator's own listener without TLS, beside the same
//! framework answering the same bytes without looking.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use barekey::api::listener::{Listener, Transport};
use barekey::domain::access::AccessGrant;
use barekey::domain::names::{Namespace, ObjectName, StageId, VariableName};
use barekey::kubernetes::injection::{Authority, DeclaredStage, InjectionSettings};
use barekey::kubernetes::metrics::Metrics;
use barekey::kubernetes::webhook::{self, Facts, Unanswered};
use barekey::kubernetes::{AgentDelivery, AgentDeliverySettings};
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;

use crate::load::{Load, call, load, median, post, start_constant};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
/// The API server keeps some connections to a webhook and sends reviews over each.
const CONNECTIONS: usize = 16;

/// What the watch of the cluster would say: one stage, ready, which grants the pod's account everything.
struct OneStage;

fn stage() -> DeclaredStage {
    DeclaredStage {
        id: Some("stg_bench".parse().unwrap()),
        revision: 1,
        access: vec![AccessGrant {
            namespace: "shop".parse().unwrap(),
            service_accounts: vec!["shop".parse().unwrap()],
            variables: None,
        }],
        ready: true,
    }
}

impl Facts for OneStage {
    fn seen(&self, _namespace: &Namespace, _name: &ObjectName) -> Option<DeclaredStage> {
        Some(stage())
    }

    fn live<'a>(
        &'a self,
        _namespace: &'a Namespace,
        _name: &'a ObjectName,
    ) -> BoxFuture<'a, Result<Option<DeclaredStage>, Unanswered>> {
        async { Ok(Some(stage())) }.boxed()
    }

    fn names<'a>(
        &'a self,
        _stage: &'a StageId,
        _namespace: &'a Namespace,
        _name: &'a ObjectName,
    ) -> BoxFuture<'a, Result<BTreeSet<VariableName>, Unanswered>> {
        async { Ok(BTreeSet::from(["DATABASE_URL".parse().unwrap()])) }.boxed()
    }
}

pub(crate) fn run() {
    let settings = InjectionSettings {
        server: "barekey.barekey.svc".to_owned(),
        port: 443,
        addresses: vec!["10.96.0.20".to_owned()],
        authority: Authority {
            id: "0123456789abcdef".to_owned(),
            certificate: "MIIB".repeat(140),
        },
        agent: AgentDeliverySettings {
            image: "docker.io/barekey/agent:0.1.0".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            delivery: AgentDelivery::Init,
        },
    };
    let (_given, given) = tokio::sync::watch::channel(Arc::new(settings));
    let mut registry = prometheus_client::registry::Registry::default();
    let state = webhook::State::new(OneStage, given, Metrics::register(&mut registry));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.address();
    let (_running, stop) = tokio::sync::watch::channel(false);
    runtime.spawn(async move {
        let served = listener.serve(webhook::router(state), Transport::Plain, stop);
        served.await.unwrap();
    });

    let review = post("/admission/pods", None, &review().to_string());
    let (status, answer) = call(address, &review);
    assert!(
        status == 200 && answer.contains("\"patch\""),
        "{status} {answer}"
    );
    let (constant_address, _constant) = start_constant(&answer);

    let mut constant = Vec::new();
    let mut barekey = Vec::new();
    for _ in 0..ROUNDS {
        constant.push(load(constant_address, &review, CONNECTIONS, ROUND));
        barekey.push(load(address, &review, CONNECTIONS, ROUND));
    }
    let rate = |loads: &[Load]| median(loads.iter().map(|load| load.per_second).collect());
    let time =
        |times: Vec<Duration>| 1e3 * median(times.iter().map(Duration::as_secs_f64).collect());
    let p50 = |loads: &[Load]| time(loads.iter().map(|load| load.p50).collect());
    let p99 = |loads: &[Load]| time(loads.iter().map(|load| load.p99).collect());
    println!("admission of a pod that asks, {CONNECTIONS} reviews at a time");
    println!(
        "  {:.1} % of a constant answer ({:.0} of {:.0} reviews/s; p50 {:.2} ms beside {:.2} ms, p99 {:.2} ms beside {:.2} ms)",
        100.0 * rate(&barekey) / rate(&constant),
        rate(&barekey),
        rate(&constant),
        p50(&barekey),
        p50(&constant),
        p99(&barekey),
        p99(&constant),
    );
}

/// As the API server sends it for a pod of a Deployment.
fn review() -> serde_json::Value {
    let environment: Vec<_> = (0..20)
        .map(|number| json!({"name": format!("SETTING_{number}"), "value": "a value of the usual length"}))
        .collect();
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop", "operation": "CREATE", "dryRun": false,
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": {
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "generateName": "shop-6d4cf56db6-", "namespace": "shop",
                    "labels": {"app": "shop", "pod-template-hash": "6d4cf56db6"},
                    "annotations": {"barekey.dev/stage": "development"},
                },
                "spec": {
                    "serviceAccountName": "shop",
                    "volumes": [{"name": "kube-api-access", "projected": {"sources": [
                        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                    ]}}],
                    "containers": [{
                        "name": "shop", "image": "registry.example/shop:1.2.3",
                        "command": ["/shop"], "args": ["serve", "--listen", ":8080"],
                        "env": environment,
                        "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                        "volumeMounts": [{"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
                        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
                    }],
                    "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                },
            },
        },
    })
}
