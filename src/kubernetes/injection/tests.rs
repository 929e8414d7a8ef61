//! Injection as a whole, on pods as the API server posts them.

mod access;
mod containers;
mod copies;
mod expansion;
mod exposure;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::domain::reference::{ALLOWANCE_ENTRY, AgentSettings, Allowance, SETTINGS_ENTRY};

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
        ready: true,
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
    let many: Vec<String> = (0..1000).map(|it| format!("VARIABLE_{it:0>90}")).collect();
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
