//! How the agent and its token get into a pod: volumes, and the init step that copies the program.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::containers::app_containers;
use super::pod::{self, List};
use super::refusal::{Problem, Problems};
use super::{
    AGENT_DIRECTORY, AGENT_VOLUME, AgentDelivery, INIT_CONTAINER, INSTALL, InjectionSettings,
    TOKEN_VOLUME,
};

/// How much memory the copied program may take.
const AGENT_VOLUME_SIZE: &str = "16Mi";
/// How long a token is good, in seconds; the kubelet renews it at four fifths.
const TOKEN_SECONDS: u32 = 3600;
/// The user of the agent's image.
const AGENT_USER: i64 = 65532;
/// What the init step asks for, if the container that it follows asks for it: what quotas and limit ranges look at.
/// Devices, huge pages and claims stay with those that use them.
const RESOURCES: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// Names of ours that the pod uses for something else.
pub(super) fn taken_names(pod: &Value) -> Problems {
    let volumes = [AGENT_VOLUME, TOKEN_VOLUME].into_iter().filter(|ours| {
        pod::items(pod::spec(pod), "volumes")
            .iter()
            .any(|volume| pod::name(volume) == *ours)
    });
    let containers = pod::containers(pod)
        .any(|(_, container)| pod::name(container) == INIT_CONTAINER)
        .then_some(Problem::NameTaken {
            what: "a container",
            name: INIT_CONTAINER,
        });
    volumes
        .map(|name| Problem::NameTaken {
            what: "a volume",
            name,
        })
        .chain(containers)
        .collect()
}

/// Adds the volumes, the pull secrets and, where the program is copied, the init step as the first.
pub(super) fn deliver(pod: &mut Value, settings: &InjectionSettings) {
    let init_step =
        (settings.agent.delivery == AgentDelivery::Init).then(|| init_step(pod, settings));
    let Some(Value::Object(spec)) = pod.get_mut("spec") else {
        return;
    };
    let agent = match settings.agent.delivery {
        AgentDelivery::Init => json!({
            "name": AGENT_VOLUME,
            "emptyDir": {"medium": "Memory", "sizeLimit": AGENT_VOLUME_SIZE},
        }),
        AgentDelivery::Image => {
            let mut source = json!({"reference": settings.agent.image});
            if let (Some(policy), Value::Object(source)) =
                (&settings.agent.image_pull_policy, &mut source)
            {
                source.insert("pullPolicy".to_owned(), Value::from(policy.as_str()));
            }
            json!({"name": AGENT_VOLUME, "image": source})
        }
    };
    let token = json!({
        "name": TOKEN_VOLUME,
        "projected": {"sources": [{"serviceAccountToken": {
            "audience": settings.server,
            "expirationSeconds": TOKEN_SECONDS,
            "path": "token",
        }}]},
    });
    pod::list_mut(spec, "volumes").extend([agent, token]);
    if let Some(init_step) = init_step {
        pod::list_mut(spec, List::Init.field()).insert(0, init_step);
    }
    add_pull_secrets(spec, settings);
}

fn add_pull_secrets(spec: &mut Map<String, Value>, settings: &InjectionSettings) {
    for secret in &settings.agent.image_pull_secrets {
        let present = spec
            .get("imagePullSecrets")
            .and_then(Value::as_array)
            .is_some_and(|secrets| secrets.iter().any(|other| pod::name(other) == secret));
        if !present {
            pod::list_mut(spec, "imagePullSecrets").push(json!({"name": secret}));
        }
    }
}

fn init_step(pod: &Value, settings: &InjectionSettings) -> Value {
    let mut security = json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    if let (Some(user), Value::Object(security)) = (init_user(pod), &mut security) {
        security.insert("runAsUser".to_owned(), Value::from(user));
    }
    let mut step = json!({
        "name": INIT_CONTAINER,
        "image": settings.agent.image,
        "command": INSTALL,
        "securityContext": security,
        "volumeMounts": [{"name": AGENT_VOLUME, "mountPath": AGENT_DIRECTORY}],
    });
    if let Value::Object(step) = &mut step {
        if let Some(policy) = &settings.agent.image_pull_policy {
            step.insert("imagePullPolicy".to_owned(), Value::from(policy.as_str()));
        }
        if let Some(resources) = init_resources(pod) {
            step.insert("resources".to_owned(), resources);
        }
    }
    step
}

/// The user that the init step must name. The image's own is enough in most pods.
///
/// - A pod that runs as root as a whole would make our step root too, and it says that it is not.
/// - Where every container names one and the same user, the kubelet gives the files of projected tokens to that user alone.
///   A step without that user would open them to everybody.
fn init_user(pod: &Value) -> Option<i64> {
    let user = |object: &Value| {
        object
            .pointer("/securityContext/runAsUser")
            .and_then(Value::as_i64)
    };
    let of_pod = user(pod::spec(pod));
    let mut users: Vec<Option<i64>> = pod::containers(pod)
        .map(|(_, container)| user(container).or(of_pod))
        .collect();
    users.dedup();
    let shared = match users.as_slice() {
        [Some(shared)] if *shared != 0 => Some(*shared),
        _ => None,
    };
    match (of_pod, shared) {
        (Some(0), None) => Some(AGENT_USER),
        (of_pod, Some(shared)) if of_pod != Some(shared) => Some(shared),
        _ => None,
    }
}

/// Requests and limits of the app container with the largest memory limit, then the largest memory request.
///
/// So the step asks for no more than runs later anyway: QoS class, quota, limit ranges and the pod's effective requests stay
/// as they were.
fn init_resources(pod: &Value) -> Option<Value> {
    let memory = |container: &Value, kind: &str| {
        container
            .pointer(&format!("/resources/{kind}/memory"))
            .and_then(quantity)
            .unwrap_or(-1.0)
    };
    let largest = app_containers(pod).iter().max_by(|one, other| {
        let by = |kind: &str| memory(one, kind).partial_cmp(&memory(other, kind));
        by("limits")
            .unwrap_or(Ordering::Equal)
            .then(by("requests").unwrap_or(Ordering::Equal))
    })?;
    let mut resources = Map::new();
    for kind in ["requests", "limits"] {
        let asked: Map<String, Value> = RESOURCES
            .into_iter()
            .filter_map(|resource| {
                let amount = largest.pointer(&format!("/resources/{kind}/{resource}"))?;
                Some((resource.to_owned(), amount.clone()))
            })
            .collect();
        if !asked.is_empty() {
            resources.insert(kind.to_owned(), Value::Object(asked));
        }
    }
    (!resources.is_empty()).then_some(Value::Object(resources))
}

/// A Kubernetes quantity, near enough to compare two of them.
fn quantity(amount: &Value) -> Option<f64> {
    let text = match amount {
        Value::String(text) => text.as_str(),
        Value::Number(number) => return number.as_f64(),
        _ => return None,
    };
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    let scaled = SUFFIXES.into_iter().find_map(|(suffix, scale)| {
        let number: f64 = text.strip_suffix(suffix)?.parse().ok()?;
        Some(number * scale)
    });
    scaled
        .or_else(|| text.parse().ok())
        .filter(|it| it.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: Value) -> Value {
        json!({"spec": {"containers": containers}})
    }

    #[test]
    fn quantities_compare_across_their_suffixes() {
        let ascending = [
            "1", "1500m", "2", "1k", "1Ki", "1e4", "1M", "1Mi", "128Mi", "1G", "1Gi", "2e9", "1T",
            "1Ei",
        ];
        for pair in ascending.windows(2) {
            let [one, other] = [0, 1].map(|it| quantity(&Value::from(pair[it])).unwrap());
            assert!(one < other, "{pair:?}");
        }
        for bad in ["", "Mi", "x", "inf", "NaN"] {
            assert_eq!(quantity(&Value::from(bad)), None, "{bad}");
        }
    }

    #[test]
    fn the_step_follows_the_container_with_the_largest_memory_limit() {
        let resources = init_resources(&pod(json!([
            {"name": "small", "resources": {"limits": {"memory": "900Mi", "cpu": "4"}}},
            {"name": "large", "resources": {
                "limits": {"memory": "1Gi", "nvidia.com/gpu": "1"},
                "requests": {"memory": "64Mi", "cpu": "100m", "ephemeral-storage": "1Gi", "hugepages-2Mi": "4Mi"},
                "claims": [{"name": "gpu"}],
            }},
            {"name": "none"},
        ])));
        assert_eq!(
            resources,
            Some(json!({
                "limits": {"memory": "1Gi"},
                "requests": {"memory": "64Mi", "cpu": "100m", "ephemeral-storage": "1Gi"},
            }))
        );
    }

    #[test]
    fn without_limits_the_largest_request_counts_and_without_either_nothing_is_asked() {
        assert_eq!(
            init_resources(&pod(json!([
                {"resources": {"requests": {"memory": "2Mi"}}},
                {"resources": {"requests": {"memory": "1Mi", "cpu": "1"}}},
            ]))),
            Some(json!({"requests": {"memory": "2Mi"}}))
        );
        assert_eq!(init_resources(&pod(json!([{"name": "a"}]))), None);
    }

    #[test]
    fn the_step_names_a_user_only_where_it_must() {
        let user = |of_pod: Value, of_containers: Vec<Value>| {
            let containers: Vec<Value> = of_containers
                .iter()
                .map(|it| json!({"securityContext": {"runAsUser": it}}))
                .collect();
            init_user(&json!({"spec": {
                "securityContext": {"runAsUser": of_pod}, "containers": containers,
            }}))
        };
        let none = Value::Null;
        assert_eq!(
            user(none.clone(), vec![none.clone()]),
            None,
            "the image's own"
        );
        assert_eq!(user(json!(1000), vec![none.clone()]), None, "the pod's");
        assert_eq!(
            user(json!(0), vec![none.clone()]),
            Some(65532),
            "a root pod"
        );
        assert_eq!(
            user(none.clone(), vec![json!(1000), json!(1000)]),
            Some(1000),
            "one user of all containers"
        );
        assert_eq!(user(json!(0), vec![json!(7)]), Some(7));
        assert_eq!(user(none.clone(), vec![json!(1000), json!(1001)]), None);
        assert_eq!(user(none.clone(), vec![json!(1000), none.clone()]), None);
        assert_eq!(user(none, vec![json!(0)]), None);
    }
}
