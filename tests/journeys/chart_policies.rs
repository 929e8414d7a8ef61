//! What the API server itself keeps, whatever happens to the operator: the policies and the match conditions of the chart.

use std::time::Instant;

use serde_json::{Value, json};

use crate::harness::{Installation, Journey, Namespace, Output, eventually, kubectl};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared(
            "a_pod_that_is_not_injected_where_it_asks_starts_with_a_warning",
            a_pod_in_an_exempt_namespace_is_warned_about,
        ),
        Journey::changing(
            "a_pod_that_asked_for_injection_is_refused_without_the_webhook",
            an_annotated_pod_is_refused_without_the_webhook,
        ),
        Journey::changing(
            "a_namespace_that_the_administrator_exempts_is_left_alone",
            an_administrators_exempt_namespace_is_left_alone,
        ),
        Journey::changing(
            "other_pods_do_not_wait_for_an_operator_that_is_down",
            other_pods_do_not_wait,
        ),
    ]
}

const CONFIGURATION: &str = "mutatingwebhookconfiguration/00-barekey";

fn a_pod_in_an_exempt_namespace_is_warned_about(_: &Namespace) {
    let installation = Installation::shared();
    let mut asking = plain("exempt");
    asking["metadata"]["annotations"] = json!({"barekey.dev/stage": "shop/development"});
    for namespace in ["kube-system", installation.namespace()] {
        let output = kubectl(["create", "--dry-run=server", "-n", namespace, "-f", "-"])
            .stdin(asking.to_string())
            .output();
        assert!(output.status.success(), "{output}");
        for word in ["Warning:", "barekey-exempt", "not injected"] {
            assert!(
                output.stderr.contains(word),
                "{namespace}: no {word:?} in {output}"
            );
        }
        let output = kubectl(["create", "--dry-run=server", "-n", namespace, "-f", "-"])
            .stdin(plain("plain").to_string())
            .output();
        assert!(
            output.status.success() && !output.stderr.contains("barekey"),
            "{output}"
        );
    }
}

fn an_annotated_pod_is_refused_without_the_webhook(namespace: &Namespace) {
    let installation = Installation::shared();
    installation.organization(namespace);
    namespace.apply_example("first-value/barekey.yaml");
    namespace.make_service_account("shop");
    namespace.wait_ready("barekeystage/development");
    let injected = create(namespace, &annotated("asks", "development"));
    assert!(injected.status.success(), "{injected}");

    kubectl(["delete", CONFIGURATION]).succeed();
    // The API server forgets the configuration within a moment.
    eventually("the policy's refusal", || {
        let refusal = create(namespace, &annotated("asks", "development"));
        let words = [
            "barekey-injected",
            "was not injected",
            "00-barekey",
            "helm upgrade",
        ];
        if !refusal.status.success() && words.iter().all(|word| refusal.stderr.contains(word)) {
            Ok(())
        } else {
            Err(refusal.to_string())
        }
    });
    let mut misspelt = annotated("misspelt", "development");
    misspelt["metadata"]["annotations"] = json!({"barekey.dev/stagee": "development"});
    let mut labelled = annotated("labelled", "development");
    labelled["metadata"]["labels"] = json!({"barekey.dev/injected": "true"});
    for pod in [misspelt, labelled] {
        let refusal = create(namespace, &pod);
        assert!(
            !refusal.status.success() && refusal.stderr.contains("barekey-injected"),
            "{refusal}"
        );
    }
    let output = create(namespace, &plain("plain"));
    assert!(output.status.success(), "{output}");

    // The way back that the message names; the operator publishes its CA again.
    installation.install(&json!({}));
    installation.ca();
    eventually("injection again", || {
        let output = create(namespace, &annotated("asks", "development"));
        output
            .status
            .success()
            .then_some(())
            .ok_or_else(|| output.to_string())
    });
}

fn an_administrators_exempt_namespace_is_left_alone(namespace: &Namespace) {
    let installation = Installation::shared();
    installation.organization(namespace);
    namespace.apply_example("first-value/barekey.yaml");
    namespace.make_service_account("shop");
    namespace.wait_ready("barekeystage/development");
    let exempt = namespace.name();
    installation.install(&json!({"exemptNamespaces": [exempt]}));
    let asked = || {
        let output = namespace
            .kubectl(["create", "--dry-run=server", "--output=json", "-f", "-"])
            .stdin(annotated("asks", "development").to_string())
            .output();
        let pod: Value = serde_json::from_str(&output.stdout).unwrap_or_default();
        (pod["spec"]["containers"][0]["command"].clone(), output)
    };
    let made = eventually("a pod as it was written", || {
        let (command, output) = asked();
        if command == json!(["sleep", "3600"]) {
            Ok(output)
        } else {
            Err(output.to_string())
        }
    });
    for word in ["Warning:", "barekey-exempt", "not injected"] {
        assert!(made.stderr.contains(word), "no {word:?} in {made}");
    }
    installation.install(&json!({}));
    eventually("injection again", || {
        let (command, output) = asked();
        let injected = command.get(1).is_some_and(|word| word == "run");
        injected.then_some(()).ok_or_else(|| output.to_string())
    });
}

fn other_pods_do_not_wait(namespace: &Namespace) {
    let installation = Installation::shared();
    installation.stop();

    let mut kilobytes = plain("kilobytes");
    for number in 0..256 {
        let key = format!("example.com/note-{number}");
        kilobytes["metadata"]["annotations"][key] = json!("x".repeat(1000));
    }
    let mut many = plain("many");
    for number in 0..20_000 {
        many["metadata"]["annotations"][format!("n{number:05}")] = json!("");
    }
    let mut entries = plain("entries");
    entries["spec"]["containers"][0]["env"] = (0..5_000)
        .map(|number| json!({"name": format!("E{number}"), "value": "x"}))
        .collect();
    let mut empty = plain("empty-projection");
    empty["spec"]["volumes"] = json!([{"name": "empty", "projected": {}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token", "audience": "other"}}]}}]);
    let mut command_line = plain("command-line");
    command_line["spec"]["containers"][0]["env"] = [
        "BAREKEY_ORG",
        "BAREKEY_TOKEN",
        "BAREKEY_API_URL",
        "BAREKEY_AGENT",
        "BAREKEY_ALLOWANCES",
    ]
    .map(|name| json!({"name": name, "value": "x"}))
    .into_iter()
    .collect();
    for pod in [
        plain("plain"),
        kilobytes,
        many.clone(),
        entries,
        empty,
        command_line,
    ] {
        let name = &pod["metadata"]["name"];
        let began = Instant::now();
        let output = create(namespace, &pod);
        let took = began.elapsed();
        assert!(output.status.success(), "{name}: {output}");
        // A webhook that was called and did not answer would take its 10 s.
        assert!(took.as_secs() < 5, "{name} took {took:?}");
    }
    namespace.apply(crate::harness::example("continuous-integration/job.yaml"));
    namespace
        .kubectl([
            "wait",
            "--for=condition=Complete",
            "--timeout=90s",
            "job/deploy",
        ])
        .succeed();

    // One of ours among very many is not looked for key by key, which would take the API server seconds.
    many["metadata"]["name"] = json!("mentions");
    many["metadata"]["annotations"]["note"] = json!("see barekey.dev/stage");
    let began = Instant::now();
    let refused = create(namespace, &many);
    assert!(refused.stderr.contains("barekey.dev"), "{refused}");
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());

    // What concerns us is refused meanwhile.
    namespace.make_service_account("shop");
    let mut written = plain("written-by-hand");
    written["spec"]["containers"][0]["env"] = json!([{"name": "BAREKEY_ALLOWANCE", "value": "{}"}]);
    let mut token = plain("token");
    token["spec"]["volumes"] = json!([{"name": "token", "projected": {"sources": [{"serviceAccountToken": {
        "path": "token", "audience": format!("barekey.{}.svc", installation.namespace())}}]}}]);
    for pod in [annotated("annotated", "development"), written, token] {
        let output = create(namespace, &pod);
        assert!(
            !output.status.success() && output.stderr.contains("pods.barekey.dev"),
            "{output}"
        );
    }
    installation.start();
}

/// Creates a pod, or would: the answer is that of all of admission.
fn create(namespace: &Namespace, pod: &Value) -> Output {
    namespace
        .kubectl(["create", "--dry-run=server", "-f", "-"])
        .stdin(pod.to_string())
        .output()
}

/// A pod that has nothing to do with us.
pub(crate) fn plain(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": "docker.io/library/busybox:stable", "command": ["sleep", "3600"],
            }],
        },
    })
}

/// One that asks for the values of a stage, as the account of the example.
fn annotated(name: &str, stage: &str) -> Value {
    let mut pod = plain(name);
    pod["metadata"]["annotations"] = json!({"barekey.dev/stage": stage});
    pod["spec"]["serviceAccountName"] = json!("shop");
    pod
}
