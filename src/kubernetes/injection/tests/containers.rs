//! Which containers get what.

use super::*;

#[test]
fn init_containers_get_values_and_our_step_runs_before_them() {
    let pod = with(
        pod(),
        "/spec/initContainers",
        json!([
            {"name": "migrate", "image": "i", "command": ["/migrate"]},
            {"name": "logs", "image": "i", "command": ["/logs"], "restartPolicy": "Always"},
        ]),
    );
    let becomes = injected(&pod);
    let names: Vec<&str> = becomes["spec"]["initContainers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["barekey-agent", "migrate", "logs"]);
    for index in [1, 2] {
        let container = &becomes["spec"]["initContainers"][index];
        assert_eq!(container["command"][0], "/run/barekey.dev/agent/barekey");
        assert_eq!(allowance(container).references, [].into());
    }
}

#[test]
fn a_proxy_is_left_alone_wherever_it_stands_and_gets_values_when_it_is_named() {
    let proxy = json!({"name": "istio-proxy", "image": "proxy", "args": ["proxy"], "env": [{"name": "A", "value": "$(B)"}]});
    let mut pod = pod();
    pod["spec"]["containers"]
        .as_array_mut()
        .unwrap()
        .insert(0, proxy.clone());
    let becomes = injected(&pod);
    assert_eq!(becomes["spec"]["containers"][0], proxy);
    assert_eq!(
        becomes["spec"]["containers"][1]["command"][0],
        "/run/barekey.dev/agent/barekey"
    );

    let named = with(
        pod,
        "/metadata/annotations/barekey.dev~1containers",
        json!("istio-proxy"),
    );
    assert!(refused(&named).contains("container istio-proxy has no command"));
}

#[test]
fn only_the_named_containers_are_touched() {
    let sidecar = json!({"name": "metrics", "image": "m"});
    let pod = with(pod(), "/spec/containers/-", sidecar.clone());
    assert!(refused(&pod).contains("container metrics has no command"));
    let pod = with(
        pod,
        "/metadata/annotations/barekey.dev~1containers",
        json!("app"),
    );
    assert_eq!(injected(&pod)["spec"]["containers"][1], sidecar);
    let pod = with(
        pod,
        "/metadata/annotations/barekey.dev~1containers",
        json!("ap"),
    );
    assert!(refused(&pod).contains("names \"ap\", and the pod has app, metrics"));
}

#[test]
fn a_container_without_command_is_refused_with_what_to_write() {
    for empty in [None, Some(json!([])), Some(Value::Null)] {
        let mut pod = without(pod(), "/spec/containers/0/command");
        if let Some(empty) = empty {
            pod = with(pod, "/spec/containers/0/command", empty);
        }
        let told = refused(&pod);
        assert!(
            told.starts_with("pod shop/api-6d5f-*: container app has no command"),
            "{told}"
        );
        assert!(
            told.contains("set command to what the image runs"),
            "{told}"
        );
    }
}

#[test]
fn a_value_that_starts_like_a_reference_and_is_none_is_refused_by_its_entry() {
    for value in ["barekey:", "barekey:A-B", "barekey:$(A)", "barekey:A "] {
        let pod = with(
            pod(),
            "/spec/containers/0/env/-",
            json!({"name": "BAD", "value": value}),
        );
        assert!(
            refused(&pod).contains("the value of BAD starts with barekey:"),
            "{value}"
        );
    }
    let prose = with(
        pod(),
        "/spec/containers/0/env/-",
        json!({"name": "OK", "value": " barekey:A-B"}),
    );
    injected(&prose);
}

#[test]
fn a_reference_in_a_container_that_is_left_out_is_refused() {
    let pod = with(
        pod(),
        "/spec/containers/-",
        json!({"name": "side", "env": [{"name": "X", "value": "barekey:TOKEN"}]}),
    );
    let pod = with(
        pod,
        "/metadata/annotations/barekey.dev~1containers",
        json!("app"),
    );
    assert!(refused(&pod).contains("container side refers to a variable in X"));
}

#[test]
fn variables_and_renames_are_in_the_allowance_of_every_container() {
    let pod = with(
        pod(),
        "/metadata/annotations/barekey.dev~1variables",
        json!("TOKEN,DB_*,USER=DB_USER"),
    );
    let allowance = allowance(&injected(&pod)["spec"]["containers"][0]);
    assert_eq!(
        serde_json::to_value(&allowance).unwrap(),
        json!({"v": 1, "stage": "stg_1", "variables": ["TOKEN", "DB_*"], "rename": {"USER": "DB_USER"}, "references": ["DATABASE_URL"]})
    );
}

#[test]
fn prefixes_of_env_from_are_told_to_the_agent() {
    let pod = with(
        pod(),
        "/spec/containers/0/envFrom",
        json!([
            {"configMapRef": {"name": "a"}, "prefix": "X_"},
            {"secretRef": {"name": "b"}},
            {"configMapRef": {"name": "c"}},
        ]),
    );
    assert_eq!(
        agent_settings(&injected(&pod)["spec"]["containers"][0]).prefixes,
        ["", "X_"]
    );
}

#[test]
fn a_dollar_in_the_name_of_an_entry_does_not_reach_the_kubelet() {
    let pod = with(
        pod(),
        "/spec/containers/0/env/-",
        json!({"name": "$(LEVEL)", "value": "x"}),
    );
    let becomes = injected(&pod);
    let container = &becomes["spec"]["containers"][0];
    assert!(!entry(container, SETTINGS_ENTRY).contains('$'));
    assert!(
        agent_settings(container)
            .own
            .contains(&"$(LEVEL)".to_owned())
    );
}

#[test]
fn every_problem_of_a_pod_is_told_at_once() {
    let pod = with(pod(), "/spec/containers/-", json!({"name": "one"}));
    let pod = with(
        pod,
        "/spec/containers/-",
        json!({"name": "two", "volumeMounts": [{"name": "x", "mountPath": "/run/barekey.dev"}]}),
    );
    let told = refused(&pod);
    for part in [
        "container one has no command",
        "container two has no command",
        "container two mounts /run/barekey.dev",
    ] {
        assert!(told.contains(part), "{told}");
    }
}

#[test]
fn a_pod_with_nothing_but_proxies_is_refused() {
    let mut pod = pod();
    pod["spec"]["containers"][0] = json!({"name": "linkerd-proxy", "command": ["x"]});
    assert!(refused(&pod).contains("every container is a known proxy"));
}

#[test]
fn a_pod_of_very_many_wrong_containers_is_refused_in_few_words() {
    let wrong: Vec<Value> = (0..20_000).map(|_| json!({"name": "a"})).collect();
    let many = with(pod(), "/spec/containers", json!(wrong));
    assert!(refused(&many).contains("the pod has 20000 containers, more than 256"));
    let some = with(pod(), "/spec/containers", json!(wrong[..256]));
    assert!(refused(&some).ends_with("; and 248 more"));

    // Parts of ours in each of them, and none that fit: each would name them all.
    let parts: Vec<Value> = (0..20_000)
        .map(|index| json!({"name": format!("c{index}"), "command": ["/run/barekey.dev/agent/barekey"]}))
        .collect();
    let copied = with(
        without(pod(), "/metadata/annotations/barekey.dev~1stage"),
        "/spec/containers",
        json!(parts),
    );
    let told = refused(&copied);
    assert!(told.contains("and 19992 more"), "{told:.400}");
    assert!(told.len() < 20_000, "{}", told.len());
}

#[test]
fn what_is_added_to_all_containers_has_a_limit() {
    let names: Vec<String> = (0..300).map(|index| format!("N{index:0>150}")).collect();
    let containers: Vec<Value> = (0..40)
        .map(|index| json!({"name": format!("c{index}"), "command": ["/c"]}))
        .collect();
    let listed = with(
        pod(),
        "/metadata/annotations/barekey.dev~1variables",
        json!(names.join(",")),
    );
    injected(&with(
        listed.clone(),
        "/spec/containers",
        json!(containers[..20]),
    ));
    let told = refused(&with(listed, "/spec/containers", json!(containers)));
    assert!(
        told.contains("would have more than 1048576 bytes"),
        "{told}"
    );
}

#[test]
fn a_pod_refers_to_1024_variables_at_most() {
    let entries = |count: usize| -> Value {
        (0..count)
            .map(|index| json!({"name": format!("E{index}"), "value": "barekey:TOKEN"}))
            .collect()
    };
    injected(&with(pod(), "/spec/containers/0/env", entries(1024)));
    let told = refused(&with(pod(), "/spec/containers/0/env", entries(1025)));
    assert!(
        told.contains("the pod has 1025 references to variables, more than 1024"),
        "{told}"
    );
}

#[test]
fn a_name_longer_than_any_of_a_pod_is_cut() {
    let long = with(
        pod(),
        "/metadata/generateName",
        json!("x".repeat(1_000_000)),
    );
    let told = refused(&without(long, "/spec/containers/0/command"));
    assert!(told.starts_with(&format!("pod shop/{}*: ", "x".repeat(253))));
    assert!(told.len() < 1000);
}
