//! Injection as a whole, on pods as the API server posts them.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::domain::reference::{ALLOWANCE_ENTRY, AgentSettings, SETTINGS_ENTRY};

const AUDIENCE: &str = "barekey.barekey.svc";

fn settings(delivery: AgentDelivery) -> InjectionSettings {
    InjectionSettings {
        server: AUDIENCE.to_owned(),
        port: 443,
        addresses: vec!["10.96.7.7".to_owned()],
        authority: Authority {
            id: "0123456789abcdef".to_owned(),
            certificate: "MIIB".to_owned(),
        },
        agent: AgentDeliverySettings {
            image: "docker.io/barekey/agent:0.1.0".to_owned(),
            image_pull_policy: Some("IfNotPresent".to_owned()),
            image_pull_secrets: Vec::new(),
            delivery,
        },
    }
}

fn stage() -> DeclaredStage {
    stage_granting(None)
}

fn stage_granting(variables: Option<&[&str]>) -> DeclaredStage {
    DeclaredStage {
        id: Some("stg_1".parse().unwrap()),
        revision: 7,
        access: vec![AccessGrant {
            namespace: "shop".parse().unwrap(),
            service_accounts: vec!["api".parse().unwrap()],
            variables: variables.map(|names| names.iter().map(|it| it.parse().unwrap()).collect()),
        }],
        not_ready: None,
    }
}

fn names() -> BTreeSet<VariableName> {
    ["DATABASE_URL", "DB_USER", "TOKEN", "PATH"]
        .iter()
        .map(|it| it.parse().unwrap())
        .collect()
}

/// A pod of a Deployment, as the API server has it when webhooks are called.
fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "api-6d5f-",
            "namespace": "shop",
            "creationTimestamp": null,
            "labels": {"app": "api"},
            "annotations": {"barekey.dev/stage": "backend-production", "example.com/a": "b"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "api-6d5f", "uid": "u", "controller": true}],
        },
        "spec": {
            "volumes": [{"name": "kube-api-access-x", "projected": {"sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt"}},
            ]}}],
            "containers": [{
                "name": "app",
                "image": "docker.io/library/busybox:stable",
                "command": ["/bin/app", "--level=$(LEVEL)", "$$kept"],
                "args": ["serve"],
                "env": [
                    {"name": "LEVEL", "value": "debug"},
                    {"name": "DB", "value": "barekey:DATABASE_URL"},
                    {"name": "URL", "value": "x://$(DB)/y"},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                ],
                "resources": {"limits": {"memory": "128Mi"}, "requests": {"memory": "64Mi", "cpu": "10m"}},
                "volumeMounts": [{"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
                "newerThanUs": {"kept": [1.5, null, "x"]},
            }],
            "serviceAccountName": "api",
            "serviceAccount": "api",
            "securityContext": {},
        },
    })
}

/// Changes one place of a pod, named as in a JSON pointer whose last part may be new.
fn with(mut pod: Value, pointer: &str, value: Value) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    let field = field.replace("~1", "/");
    match pod.pointer_mut(parent).expect("the parent is there") {
        Value::Object(map) => {
            map.insert(field, value);
        }
        Value::Array(list) => list.push(value),
        other => panic!("{parent} is {other}"),
    }
    pod
}

fn without(mut pod: Value, pointer: &str) -> Value {
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    pod.pointer_mut(parent)
        .and_then(Value::as_object_mut)
        .and_then(|map| map.remove(&field.replace("~1", "/")))
        .expect("it was there");
    pod
}

fn request(pod: &Value) -> Result<Box<Request>, Refusal> {
    match read(pod, &"shop".parse().unwrap(), AUDIENCE)? {
        Asked::Injection(request) => Ok(request),
        Asked::Nothing { .. } => panic!("the pod asks for nothing"),
    }
}

fn try_inject(
    pod: &Value,
    delivery: AgentDelivery,
    stage: &DeclaredStage,
    names: Option<&BTreeSet<VariableName>>,
) -> Result<(Value, Injection), Refusal> {
    let request = request(pod)?;
    let granted = check_access(&request, Some(stage))?;
    let injection = inject(pod, &request, &granted, names, &settings(delivery))?;
    let mut becomes = pod.clone();
    json_patch::patch(&mut becomes, &injection.patch).expect("the patch applies");
    Ok((becomes, injection))
}

fn injected(pod: &Value) -> Value {
    try_inject(pod, AgentDelivery::Init, &stage(), Some(&names()))
        .unwrap_or_else(|refusal| panic!("{refusal}"))
        .0
}

fn refused(pod: &Value) -> String {
    match read(pod, &"shop".parse().unwrap(), AUDIENCE) {
        Err(refusal) => refusal.to_string(),
        Ok(Asked::Nothing { .. }) => panic!("the pod passes unchanged"),
        Ok(Asked::Injection(_)) => try_inject(pod, AgentDelivery::Init, &stage(), Some(&names()))
            .expect_err("the pod is refused")
            .to_string(),
    }
}

fn entry<'a>(container: &'a Value, name: &str) -> &'a str {
    container["env"]
        .as_array()
        .unwrap()
        .iter()
        .find(|entry| entry["name"] == name)
        .unwrap_or_else(|| panic!("{name} is there"))["value"]
        .as_str()
        .unwrap()
}

fn allowance(container: &Value) -> Allowance {
    Allowance::parse(entry(container, ALLOWANCE_ENTRY)).unwrap()
}

fn agent_settings(container: &Value) -> AgentSettings {
    AgentSettings::parse(entry(container, SETTINGS_ENTRY)).unwrap()
}

#[test]
fn a_pod_of_a_deployment_becomes_what_the_contract_says() {
    let becomes = injected(&pod());
    let container = &becomes["spec"]["containers"][0];
    assert_eq!(
        container["command"],
        json!([
            "/run/barekey.dev/agent/barekey",
            "run",
            "--",
            "/bin/app",
            "--level=$$(LEVEL)",
            "$$$$kept",
        ])
    );
    assert_eq!(container["args"], json!(["serve"]));
    assert_eq!(entry(container, "URL"), "x://$$(DB)/y");
    assert_eq!(entry(container, "DB"), "barekey:DATABASE_URL");
    assert_eq!(
        allowance(container),
        Allowance {
            v: 1,
            stage: "stg_1".parse().unwrap(),
            variables: None,
            rename: [].into(),
            references: ["DATABASE_URL".parse().unwrap()].into(),
        }
    );
    assert_eq!(
        agent_settings(container),
        AgentSettings {
            v: 1,
            server: AUDIENCE.to_owned(),
            port: 443,
            addresses: vec!["10.96.7.7".to_owned()],
            ca: "MIIB".to_owned(),
            token: "/run/barekey.dev/token/token".to_owned(),
            wait_seconds: 60,
            own: ["LEVEL", "DB", "URL", "NODE"].map(str::to_owned).into(),
            expand: ["URL".to_owned()].into(),
            prefixes: vec![],
        }
    );
    let mounts = container["volumeMounts"].as_array().unwrap();
    assert_eq!(
        mounts[1..],
        [
            json!({"name": "barekey-agent", "mountPath": "/run/barekey.dev/agent", "readOnly": true}),
            json!({"name": "barekey-token", "mountPath": "/run/barekey.dev/token", "readOnly": true}),
        ]
    );
    assert_eq!(
        becomes["spec"]["volumes"].as_array().unwrap()[1..],
        [
            json!({"name": "barekey-agent", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
            json!({"name": "barekey-token", "projected": {"sources": [{"serviceAccountToken": {
                "audience": AUDIENCE, "expirationSeconds": 3600, "path": "token"}}]}}),
        ]
    );
    assert_eq!(
        becomes["spec"]["initContainers"],
        json!([{
            "name": "barekey-agent",
            "image": "docker.io/barekey/agent:0.1.0",
            "imagePullPolicy": "IfNotPresent",
            "command": ["/barekey", "install", "/run/barekey.dev/agent/barekey"],
            "resources": {"limits": {"memory": "128Mi"}, "requests": {"memory": "64Mi", "cpu": "10m"}},
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "volumeMounts": [{"name": "barekey-agent", "mountPath": "/run/barekey.dev/agent"}],
        }])
    );
    assert_eq!(
        becomes["metadata"]["labels"],
        json!({"app": "api", "barekey.dev/injected": "true"})
    );
    assert_eq!(
        becomes["metadata"]["annotations"],
        json!({
            "barekey.dev/stage": "backend-production",
            "example.com/a": "b",
            "barekey.dev/injected-stage": "stg_1",
            "barekey.dev/injected-revision": "7",
            "barekey.dev/injected-ca": "0123456789abcdef",
        })
    );
    assert_eq!(
        container["newerThanUs"],
        pod()["spec"]["containers"][0]["newerThanUs"]
    );
}

#[test]
fn the_patch_names_no_more_than_what_changes() {
    let (_, injection) = try_inject(&pod(), AgentDelivery::Init, &stage(), Some(&names())).unwrap();
    let mut paths: Vec<String> = injection
        .patch
        .iter()
        .map(|it| it.path().to_string())
        .collect();
    paths.sort();
    assert_eq!(
        paths,
        [
            "/metadata/annotations/barekey.dev~1injected-ca",
            "/metadata/annotations/barekey.dev~1injected-revision",
            "/metadata/annotations/barekey.dev~1injected-stage",
            "/metadata/labels/barekey.dev~1injected",
            "/spec/containers/0/command",
            "/spec/containers/0/env/2/value",
            "/spec/containers/0/env/4",
            "/spec/containers/0/env/5",
            "/spec/containers/0/volumeMounts/1",
            "/spec/containers/0/volumeMounts/2",
            "/spec/initContainers",
            "/spec/volumes/1",
            "/spec/volumes/2",
        ]
    );
}

#[test]
fn an_image_volume_needs_no_init_step() {
    let (becomes, _) = try_inject(&pod(), AgentDelivery::Image, &stage(), None).unwrap();
    assert_eq!(becomes["spec"].get("initContainers"), None);
    assert_eq!(
        becomes["spec"]["volumes"][1],
        json!({"name": "barekey-agent", "image": {
            "reference": "docker.io/barekey/agent:0.1.0", "pullPolicy": "IfNotPresent"}})
    );
}

#[test]
fn lists_that_are_absent_empty_or_null_before_are_there_after() {
    for before in [None, Some(json!([])), Some(Value::Null)] {
        for (field, count) in [("volumes", 2), ("initContainers", 1)] {
            let mut pod = without(pod(), "/spec/volumes");
            if let Some(before) = &before {
                pod = with(pod, &format!("/spec/{field}"), before.clone());
            }
            assert_eq!(
                injected(&pod)["spec"][field].as_array().unwrap().len(),
                count,
                "{field} {before:?}"
            );
        }
        for (field, count) in [("env", 2), ("volumeMounts", 2)] {
            let mut pod = without(pod(), &format!("/spec/containers/0/{field}"));
            if let Some(before) = &before {
                pod = with(pod, &format!("/spec/containers/0/{field}"), before.clone());
            }
            assert_eq!(
                injected(&pod)["spec"]["containers"][0][field]
                    .as_array()
                    .unwrap()
                    .len(),
                count,
                "{field} {before:?}"
            );
        }
    }
    for before in [None, Some(json!({})), Some(Value::Null)] {
        let mut pod = without(pod(), "/metadata/labels");
        if let Some(before) = &before {
            pod = with(pod, "/metadata/labels", before.clone());
        }
        assert_eq!(
            injected(&pod)["metadata"]["labels"],
            json!({"barekey.dev/injected": "true"})
        );
    }
}

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
fn a_windows_pod_is_refused_with_what_to_remove() {
    for pod in [
        with(pod(), "/spec/os", json!({"name": "windows"})),
        with(
            pod(),
            "/spec/nodeSelector",
            json!({"kubernetes.io/os": "windows"}),
        ),
    ] {
        assert!(refused(&pod).contains("Windows"));
    }
    injected(&with(pod(), "/spec/os", json!({"name": "linux"})));
}

#[test]
fn names_and_paths_of_ours_that_the_pod_uses_otherwise_are_refused() {
    let volume = with(
        pod(),
        "/spec/volumes/-",
        json!({"name": "barekey-agent", "configMap": {"name": "x"}}),
    );
    assert!(refused(&volume).contains("a volume named barekey-agent"));
    let init = with(
        pod(),
        "/spec/initContainers",
        json!([{"name": "barekey-agent", "command": ["/x"]}]),
    );
    assert!(refused(&init).contains("a container named barekey-agent"));
    for path in [
        "/run/barekey.dev",
        "/run/barekey.dev/agent",
        "/run/barekey.dev/x/",
    ] {
        let mount = with(
            pod(),
            "/spec/containers/0/volumeMounts/-",
            json!({"name": "kube-api-access-x", "mountPath": path}),
        );
        assert!(
            refused(&mount).contains("which belongs to barekey"),
            "{path}"
        );
    }
    for path in ["/run", "/run/barekey.devices"] {
        injected(&with(
            pod(),
            "/spec/containers/0/volumeMounts/-",
            json!({"name": "kube-api-access-x", "mountPath": path}),
        ));
    }
}

#[test]
fn entries_of_ours_written_by_hand_are_refused_with_and_without_a_stage() {
    for entry in [
        "BAREKEY_ALLOWANCE",
        "BAREKEY_AGENT_SETTINGS",
        "BAREKEY_AGENT_X",
    ] {
        let by_hand = with(
            pod(),
            "/spec/containers/0/env/-",
            json!({"name": entry, "value": "{}"}),
        );
        for pod in [
            by_hand.clone(),
            without(by_hand, "/metadata/annotations/barekey.dev~1stage"),
        ] {
            assert!(
                refused(&pod).contains(&format!(
                    "container app sets {entry}, which only barekey's webhook writes"
                )),
                "{entry}"
            );
        }
    }
    // All other names with our prefix are the users' own, such as those of the command line in a CI job.
    injected(&with(
        pod(),
        "/spec/containers/0/env/-",
        json!({"name": "BAREKEY_ORG", "value": "acme"}),
    ));
}

#[test]
fn an_allowance_by_hand_in_a_container_that_is_left_out_is_refused() {
    let pod = with(
        pod(),
        "/spec/initContainers",
        json!([{"name": "istio-init", "env": [{"name": "BAREKEY_ALLOWANCE", "value": "{}"}]}]),
    );
    assert!(refused(&pod).contains("container istio-init sets BAREKEY_ALLOWANCE"));
}

#[test]
fn a_pod_without_annotations_passes_as_it_is_and_hears_of_a_token_that_reads_nothing() {
    let plain = without(pod(), "/metadata/annotations/barekey.dev~1stage");
    let Asked::Nothing { warnings } = read(&plain, &"shop".parse().unwrap(), AUDIENCE).unwrap()
    else {
        panic!("it asks for nothing");
    };
    assert!(warnings.is_empty());
    let token = with(
        plain,
        "/spec/volumes/-",
        json!({"name": "barekey-token", "projected": {"sources": [
        {"serviceAccountToken": {"audience": AUDIENCE, "path": "token"}}]}}),
    );
    let Asked::Nothing { warnings } = read(&token, &"shop".parse().unwrap(), AUDIENCE).unwrap()
    else {
        panic!("it asks for nothing");
    };
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("reads nothing"), "{warnings:?}");
}

#[test]
fn a_copy_is_injected_anew_and_comes_out_the_same() {
    let once = injected(&pod());
    assert_eq!(injected(&once), once);
    let (again, injection) =
        try_inject(&once, AgentDelivery::Init, &stage(), Some(&names())).unwrap();
    assert_eq!(again, once);
    assert!(injection.patch.is_empty());
}

#[test]
fn a_copy_gets_the_present_settings_and_loses_an_altered_allowance() {
    let mut copy = injected(&pod());
    let env = copy["spec"]["containers"][0]["env"].as_array_mut().unwrap();
    env.iter_mut()
        .find(|it| it["name"] == ALLOWANCE_ENTRY)
        .unwrap()["value"] = json!(r#"{"v":1,"stage":"stg_other","references":["ROOT_PASSWORD"]}"#);
    copy["spec"]["initContainers"][0]["image"] = json!("evil");
    assert_eq!(injected(&copy), injected(&pod()));
}

#[test]
fn a_copy_without_its_stage_is_refused_with_what_to_remove() {
    let copy = without(injected(&pod()), "/metadata/annotations/barekey.dev~1stage");
    let told = refused(&copy);
    for part in [
        "without barekey.dev/stage",
        "the entry BAREKEY_ALLOWANCE of container app",
        "/run/barekey.dev/agent/barekey run -- at the start of the command of container app",
        "the init container barekey-agent",
        "the volume barekey-token",
        "the annotation barekey.dev/injected-ca",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}

#[test]
fn a_copy_whose_parts_do_not_fit_is_refused() {
    let copy = injected(&pod());
    let no_mount = with(copy.clone(), "/spec/containers/0/volumeMounts", json!([]));
    assert!(refused(&no_mount).contains("lacks a mount of the agent"));
    let mut no_entries = copy.clone();
    no_entries["spec"]["containers"][0]["env"] = json!([]);
    assert!(refused(&no_entries).contains("starts the agent without its entries"));
    let no_volumes = with(copy, "/spec/volumes", json!([]));
    assert!(refused(&no_volumes).contains("which only barekey's webhook writes"));
}

#[test]
fn a_debugging_copy_with_a_shell_in_place_of_the_program_is_injected() {
    let mut copy = injected(&pod());
    copy["spec"]["containers"][0]["command"] = json!(["sh", "-c", "echo $$"]);
    copy["spec"]["containers"][0]
        .as_object_mut()
        .unwrap()
        .remove("args");
    copy["spec"]
        .as_object_mut()
        .unwrap()
        .remove("initContainers");
    let becomes = injected(&copy);
    assert_eq!(
        becomes["spec"]["containers"][0]["command"],
        json!([
            "/run/barekey.dev/agent/barekey",
            "run",
            "--",
            "sh",
            "-c",
            "echo $$$$"
        ])
    );
    assert_eq!(
        entry(&becomes["spec"]["containers"][0], "URL"),
        "x://$$(DB)/y"
    );
}

#[test]
fn a_probe_or_hook_that_names_a_variable_is_refused_wherever_it_is() {
    let command = json!({"exec": {"command": ["sh", "-c", "psql \"$DB_USER\""]}});
    for (pointer, check) in [
        ("/livenessProbe", "livenessProbe"),
        ("/readinessProbe", "readinessProbe"),
        ("/startupProbe", "startupProbe"),
        ("/lifecycle/preStop", "preStop hook"),
        ("/lifecycle/postStart", "postStart hook"),
    ] {
        let base = with(pod(), "/spec/containers/0/lifecycle", json!({}));
        let told = refused(&with(
            base,
            &format!("/spec/containers/0{pointer}"),
            command.clone(),
        ));
        assert!(
            told.contains(&format!("container app: its {check} names DB_USER")),
            "{told}"
        );
    }
}

#[test]
fn a_probe_is_held_against_the_names_that_its_own_container_gets() {
    let probing = |text: &str| {
        with(
            pod(),
            "/spec/containers/0/livenessProbe",
            json!({"exec": {"command": ["sh", "-c", text]}}),
        )
    };
    let listing = |pod, variables: &str| {
        with(
            pod,
            "/metadata/annotations/barekey.dev~1variables",
            json!(variables),
        )
    };
    for (pod, names_it) in [
        (probing("echo $TOKEN"), true),
        (probing("printenv TOKEN"), true),
        (probing("echo $TOKENS ${MY_TOKEN}"), false),
        (probing("echo $LEVEL"), false),
        (probing("echo $DB"), true),
        (probing("echo $ABSENT"), false),
        (probing("ls $PATH"), false),
        (listing(probing("ls $PATH"), "PATH"), true),
        (listing(probing("echo $TOKEN"), "DB_*"), false),
        (listing(probing("echo $DB_USER"), "DB_*"), true),
        (listing(probing("echo $USER"), "USER=DB_USER"), true),
        (listing(probing("echo $LEVEL"), "LEVEL=DB_USER"), false),
        (listing(probing("echo $SOON"), "SOON"), true),
    ] {
        let result = try_inject(&pod, AgentDelivery::Init, &stage(), Some(&names()));
        let told = result.as_ref().err().map(ToString::to_string);
        assert_eq!(
            told.is_some(),
            names_it,
            "{} {told:?}",
            pod["spec"]["containers"][0]["livenessProbe"]
        );
    }
}

#[test]
fn a_probe_over_variables_that_the_account_may_not_read_is_fine() {
    let pod = with(
        pod(),
        "/spec/containers/0/livenessProbe",
        json!({"exec": {"command": ["echo", "$TOKEN"]}}),
    );
    assert!(
        try_inject(
            &pod,
            AgentDelivery::Init,
            &stage_granting(Some(&["DATABASE_URL"])),
            Some(&names())
        )
        .is_ok()
    );
}

#[test]
fn without_an_answer_of_the_vault_a_probe_that_could_name_a_variable_is_refused_for_now() {
    let pod = with(
        pod(),
        "/spec/containers/0/livenessProbe",
        json!({"exec": {"command": ["cat", "/tmp/ok"]}}),
    );
    assert!(
        try_inject(&pod, AgentDelivery::Init, &stage(), None)
            .unwrap_err()
            .to_string()
            .contains("does not answer right now")
    );
    let listed = with(
        pod,
        "/metadata/annotations/barekey.dev~1variables",
        json!("TOKEN"),
    );
    assert!(try_inject(&listed, AgentDelivery::Init, &stage(), None).is_ok());
}

#[test]
fn probes_that_ask_over_the_network_are_fine() {
    let pod = with(
        pod(),
        "/spec/containers/0/livenessProbe",
        json!({"httpGet": {"path": "/TOKEN", "port": 80}}),
    );
    assert!(try_inject(&pod, AgentDelivery::Init, &stage(), None).is_ok());
}

#[test]
fn a_value_that_lands_in_arguments_is_warned_about() {
    let pod = with(
        pod(),
        "/spec/containers/0/args",
        json!(["--token=$(TOKEN)", "--db=$(DB)", "$(LEVEL)", "$$(DB_USER)"]),
    );
    let (_, injection) = try_inject(&pod, AgentDelivery::Init, &stage(), Some(&names())).unwrap();
    assert_eq!(injection.warnings.len(), 2, "{:?}", injection.warnings);
    assert!(injection.warnings[0].contains("$(DB)") && injection.warnings[1].contains("$(TOKEN)"));
}

#[test]
fn a_name_that_the_stage_does_not_hold_is_warned_about() {
    let pod = with(
        pod(),
        "/metadata/annotations/barekey.dev~1variables",
        json!("TOKEN,SOON"),
    );
    let (_, injection) = try_inject(&pod, AgentDelivery::Init, &stage(), Some(&names())).unwrap();
    assert_eq!(injection.warnings.len(), 1, "{:?}", injection.warnings);
    assert!(
        injection.warnings[0].contains("BarekeyStage shop/backend-production has no variable SOON")
    );
}

#[test]
fn a_stage_that_is_absent_and_one_that_grants_nothing_read_the_same() {
    let request = request(&pod()).unwrap();
    let mut foreign = stage();
    foreign.access[0].service_accounts = vec!["other".parse().unwrap()];
    foreign.not_ready = Some("secret detail".to_owned());
    let absent = check_access(&request, None).unwrap_err().to_string();
    assert_eq!(
        check_access(&request, Some(&foreign))
            .unwrap_err()
            .to_string(),
        absent
    );
    assert!(
        absent.contains("the service account api of namespace shop"),
        "{absent}"
    );
    assert!(absent.contains("spec.access"), "{absent}");
}

#[test]
fn a_stage_that_is_not_ready_is_told_to_those_it_grants_something() {
    let mut stage = stage();
    stage.not_ready = Some("ProjectNotFound: there is no BarekeyProject shop/backend".to_owned());
    let told = check_access(&request(&pod()).unwrap(), Some(&stage))
        .unwrap_err()
        .to_string();
    assert!(
        told.contains("not Ready (ProjectNotFound: there is no"),
        "{told}"
    );
    stage.not_ready = None;
    stage.id = None;
    assert!(check_access(&request(&pod()).unwrap(), Some(&stage)).is_err());
}

#[test]
fn a_name_listed_or_referred_to_that_is_not_granted_is_refused() {
    let granting = stage_granting(Some(&["TOKEN"]));
    let told = check_access(&request(&pod()).unwrap(), Some(&granting))
        .unwrap_err()
        .to_string();
    assert!(told.contains("the variable DATABASE_URL"), "{told}");
    let listing = with(
        pod(),
        "/metadata/annotations/barekey.dev~1variables",
        json!("DB_USER"),
    );
    let told = check_access(
        &request(&listing).unwrap(),
        Some(&stage_granting(Some(&["DATABASE_URL"]))),
    )
    .unwrap_err()
    .to_string();
    assert!(told.contains("the variable DB_USER"), "{told}");
    assert!(
        check_access(
            &request(&listing).unwrap(),
            Some(&stage_granting(Some(&["D*"])))
        )
        .is_ok()
    );
}

#[test]
fn the_default_service_account_counts_as_one() {
    let mut pod = without(
        without(pod(), "/spec/serviceAccountName"),
        "/spec/serviceAccount",
    );
    let told = check_access(&request(&pod).unwrap(), Some(&stage()))
        .unwrap_err()
        .to_string();
    assert!(told.contains("the service account default of"), "{told}");
    pod["spec"]["serviceAccountName"] = json!("");
    assert!(request(&pod).is_ok());
}

#[test]
fn a_stage_of_another_namespace_is_looked_for_there() {
    let pod = with(
        pod(),
        "/metadata/annotations/barekey.dev~1stage",
        json!("vaults/production"),
    );
    let request = request(&pod).unwrap();
    assert_eq!(request.stage().0.as_str(), "vaults");
    assert_eq!(request.stage().1.as_str(), "production");
}

#[test]
fn pull_secrets_are_added_once() {
    let mut settings = settings(AgentDelivery::Init);
    settings.agent.image_pull_secrets = vec!["mirror".to_owned(), "own".to_owned()];
    let pod = with(pod(), "/spec/imagePullSecrets", json!([{"name": "own"}]));
    let request = request(&pod).unwrap();
    let stage = stage();
    let granted = check_access(&request, Some(&stage)).unwrap();
    let injection = inject(&pod, &request, &granted, None, &settings).unwrap();
    let mut becomes = pod.clone();
    json_patch::patch(&mut becomes, &injection.patch).unwrap();
    assert_eq!(
        becomes["spec"]["imagePullSecrets"],
        json!([{"name": "own"}, {"name": "mirror"}])
    );
}

#[test]
fn what_would_be_too_long_for_an_environment_is_refused() {
    let many: Vec<String> = (0..5000).map(|it| format!("VARIABLE_{it:06}")).collect();
    let pod = with(
        pod(),
        "/metadata/annotations/barekey.dev~1variables",
        json!(many.join(",")),
    );
    let told = try_inject(&pod, AgentDelivery::Init, &stage(), None)
        .unwrap_err()
        .to_string();
    assert!(told.contains("BAREKEY_ALLOWANCE would have"), "{told}");
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

fn dollared() -> impl Strategy<Value = String> {
    "[ab$()]{0,10}"
}

fn any_container(index: usize) -> impl Strategy<Value = Value> {
    (
        prop::collection::vec(dollared(), 1..4),
        prop::collection::vec(dollared(), 0..3),
        prop::collection::vec(("[A-C$()]{1,4}", prop::option::of(dollared())), 0..4),
        prop::collection::vec("/[a-c]{1,3}", 0..3),
    )
        .prop_map(move |(command, args, env, mounts)| {
            let mut container = json!({"name": format!("c{index}"), "command": command});
            let map = container.as_object_mut().unwrap();
            if !args.is_empty() {
                map.insert("args".to_owned(), json!(args));
            }
            if !env.is_empty() {
                let entries: Vec<Value> = env.into_iter().map(|(name, value)| match value {
                    Some(value) => json!({"name": name, "value": value}),
                    None => json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
                }).collect();
                map.insert("env".to_owned(), json!(entries));
            }
            if !mounts.is_empty() {
                let mounts: Vec<Value> = mounts.into_iter().map(|path| json!({"name": "v", "mountPath": path})).collect();
                map.insert("volumeMounts".to_owned(), json!(mounts));
            }
            container
        })
}

proptest! {
    #[test]
    fn bringing_an_injected_pod_back_gives_what_was_written(
        app in any_container(0),
        init in prop::option::of(any_container(1)),
        image in any::<bool>(),
    ) {
        let mut pod = json!({
            "metadata": {"annotations": {"barekey.dev/stage": "backend-production"}},
            "spec": {"containers": [app], "serviceAccountName": "api"},
        });
        if let Some(init) = init {
            pod["spec"]["initContainers"] = json!([init]);
        }
        let delivery = if image { AgentDelivery::Image } else { AgentDelivery::Init };
        let (becomes, _) = try_inject(&pod, delivery, &stage(), Some(&names())).unwrap();
        prop_assert_eq!(&copies::restore(&becomes).unwrap(), &pod);
        let (again, injection) = try_inject(&becomes, delivery, &stage(), Some(&names())).unwrap();
        prop_assert_eq!(again, becomes);
        prop_assert!(injection.patch.is_empty());
    }
}
