//! Admission while parts of it are missing: nothing is lost, and nothing is gained.

use serde_json::{Value, json};

use crate::harness::{Installation, Journey, Namespace, eventually, get, kubectl};
use crate::injection_setting::{PRINT_HASH, Setting, asking, pod, spec};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::changing(
            "a_workload_that_asked_while_the_operator_was_down_recovers",
            recovers,
        ),
        Journey::changing(
            "an_allowance_by_hand_gains_nothing_without_the_webhook",
            by_hand_without_the_webhook,
        ),
    ]
}

fn recovers(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    let installation = Installation::shared();
    installation.stop();
    let mut template = asking("", &format!("{PRINT_HASH}; exec sleep infinity"));
    template["spec"]["restartPolicy"] = json!("Always");
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "waiting"},
        "spec": {
            "selector": {"matchLabels": {"of": "waiting"}},
            "template": {
                "metadata": {
                    "labels": {"of": "waiting"}, "annotations": {"barekey.dev/stage": "development"},
                },
                "spec": template["spec"],
            },
        },
    });
    namespace.apply(deployment.to_string());
    namespace.wait_event(&[
        "ReplicaSet/waiting",
        "FailedCreate",
        "failed calling webhook",
    ]);
    installation.start();
    namespace.wait_rollout("deployment/waiting");
    let logs = namespace
        .kubectl(["logs", "deployment/waiting"])
        .secret()
        .succeed();
    setting.is_in(&logs);
}

fn by_hand_without_the_webhook(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    let installation = Installation::shared();
    let name = configuration();
    let api = installation.api();
    kubectl(["delete", "mutatingwebhookconfiguration", &name]).succeed();

    eventually("a pod that the webhook would refuse", || {
        let output = namespace
            .kubectl(["apply", "-f", "-"])
            .stdin(by_hand(namespace).to_string())
            .output();
        let made = output.status.success();
        made.then_some(()).ok_or_else(|| output.to_string())
    });
    namespace.wait_pod("by-hand");
    let token = namespace
        .exec("by-hand", &["cat", "/token/token"])
        .succeed();
    let answer = api
        .post("/v1/pod/values")
        .bearer(token.trim())
        .json(&json!({"v": 1}))
        .send();
    answer.refused(403, "FORBIDDEN");
    assert!(!setting.leaks_into(answer.text()));

    installation.install(&json!({}));
    eventually("the configuration with its CA", || {
        get([&format!("mutatingwebhookconfiguration/{name}")])
            .filter(|found| found["webhooks"][0]["clientConfig"]["caBundle"].is_string())
            .map(drop)
            .ok_or("it is not there".to_owned())
    });
    namespace.apply(asking("asking", PRINT_HASH).to_string());
    setting.printed_by(namespace, "asking");
}

/// Without the webhook anybody may write an allowance into a pod; it is worth what its account may read, which is nothing.
fn by_hand(namespace: &Namespace) -> Value {
    let stage = namespace.get("bks/development").expect("it is there");
    let allowance = json!({"v": 1, "stage": stage["status"]["id"]});
    let audience = format!("barekey.{}.svc", Installation::shared().namespace());
    let mut by_hand = pod("by-hand", &json!({}), &spec("exec sleep infinity"));
    by_hand["spec"]["serviceAccountName"] = json!("default");
    let container = &mut by_hand["spec"]["containers"][0];
    container["env"] = json!([{"name": "BAREKEY_ALLOWANCE", "value": allowance.to_string()}]);
    container["volumeMounts"] = json!([{"name": "token", "mountPath": "/token"}]);
    by_hand["spec"]["volumes"] = json!([{"name": "token", "projected": {"sources": [
        {"serviceAccountToken": {"audience": audience, "path": "token"}}]}}]);
    by_hand
}

/// The name of our webhook configuration.
fn configuration() -> String {
    let all = get(["mutatingwebhookconfigurations"]).expect("there are some");
    let names = all["items"].as_array().into_iter().flatten();
    names
        .filter_map(|found| found["metadata"]["name"].as_str())
        .find(|name| name.ends_with("barekey"))
        .expect("the chart is installed")
        .to_owned()
}
