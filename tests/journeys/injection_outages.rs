//! Admission while parts are missing: pods that ask for nothing never notice, and pods that ask never start without.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Installation, Journey, Namespace, eventually, get, kubectl};
use crate::injection_setting::{PRINT_HASH, Setting, asking, pod, spec};

/// Far above what the API server takes for a pod, far below the webhook's time limit.
const NOT_DELAYED: Duration = Duration::from_secs(5);

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::changing(
            "with_the_operator_down_only_pods_that_ask_wait",
            with_the_operator_down,
        ),
        Journey::changing(
            "without_the_webhook_configuration_pods_that_ask_are_refused",
            without_the_configuration,
        ),
    ]
}

fn with_the_operator_down(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    let installation = Installation::shared();
    installation.stop();

    let plain = pod("plain", &json!({}), &spec("true"));
    let many: serde_json::Map<String, Value> = (0..64)
        .map(|number| {
            (
                format!("example.com/note-{number}"),
                json!("x".repeat(4000)),
            )
        })
        .collect();
    let large = pod("large", &Value::Object(many), &spec("true"));
    for (name, manifest) in [("plain", plain.to_string()), ("large", large.to_string())] {
        let began = Instant::now();
        // `apply` would double the annotations, above what an object may have.
        namespace
            .kubectl(["create", "-f", "-"])
            .stdin(manifest)
            .succeed();
        assert!(
            began.elapsed() < NOT_DELAYED,
            "{name} took {:?}",
            began.elapsed()
        );
        namespace.wait_phase(name, "Succeeded");
    }
    // A job with the command line's own variables.
    namespace.apply_example("continuous-integration/job.yaml");
    eventually("the job's end", || {
        let job = namespace.get("job/deploy").ok_or("there is none")?;
        (job["status"]["succeeded"] == 1)
            .then_some(())
            .ok_or_else(|| job["status"].to_string())
    });

    let began = Instant::now();
    let refusal = namespace.refuse(asking("asking", PRINT_HASH).to_string());
    assert!(refusal.contains("failed calling webhook"), "{refusal}");
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );

    // A workload that asks meanwhile has its pods after the operator is back, by itself.
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

fn without_the_configuration(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    let installation = Installation::shared();
    let name = configuration();
    let api = installation.api();
    kubectl(["delete", "mutatingwebhookconfiguration", &name]).succeed();

    eventually("the refusal by policy", || {
        let refusal = namespace.refuse(asking("asking", PRINT_HASH).to_string());
        if refusal.contains("was not injected") {
            Ok(())
        } else {
            Err(refusal)
        }
    });
    namespace.apply(pod("plain", &json!({}), &spec("true")).to_string());
    namespace.wait_phase("plain", "Succeeded");
    let token = token_of_a_pod_with_an_allowance_by_hand(namespace);
    let answer = api
        .post("/v1/pod/values")
        .bearer(&token)
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
fn token_of_a_pod_with_an_allowance_by_hand(namespace: &Namespace) -> String {
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
    namespace.apply(by_hand.to_string());
    namespace.wait_pod("by-hand");
    let token = namespace
        .exec("by-hand", &["cat", "/token/token"])
        .succeed();
    token.trim().to_owned()
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
