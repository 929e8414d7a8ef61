//! Values reach processes: in every kind of workload, in both ways that the agent arrives, and under the names asked for.

use serde_json::{Value, json};

use crate::harness::{Installation, Journey, Namespace, eventually, secret_text, sha256_hex};
use crate::injection_setting::{PRINT_HASH, Setting, asking, container, pod, spec};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared(
            "a_value_reaches_a_process_in_a_restricted_namespace",
            a_value_reaches_a_process,
        ),
        Journey::shared("the_program_is_the_first_process", the_program_is_first),
        Journey::shared(
            "variables_arrive_as_the_annotations_say",
            as_the_annotations_say,
        ),
        Journey::shared("a_stage_of_another_namespace", a_stage_elsewhere),
        Journey::shared("every_workload_gets_values", every_workload),
        Journey::shared(
            "init_containers_and_sidecars_get_values",
            init_containers_and_sidecars,
        ),
        Journey::shared("a_pod_keeps_its_class_under_a_quota", a_pod_keeps_its_class),
        Journey::shared("a_copy_is_injected_anew", a_copy_is_injected_anew),
        Journey::changing("an_image_volume_brings_the_agent", an_image_volume),
    ]
}

fn a_value_reaches_a_process(namespace: &Namespace) {
    namespace.restrict();
    let setting = Setting::make(namespace);
    namespace.apply_example("first-value/pod.yaml");
    setting.printed_by(namespace, "shop");
    let pod = namespace.get("pod/shop").expect("it is there");
    assert_eq!(pod["metadata"]["labels"]["barekey.dev/injected"], "true");
    assert!(!setting.leaks_into(&pod.to_string()));
}

fn the_program_is_first(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    namespace.apply(asking("long", "exec sleep infinity").to_string());
    namespace.wait_pod("long");
    let shell = |script: &str| {
        let printed = namespace.exec("long", &["sh", "-c", script]).succeed();
        printed.trim().to_owned()
    };
    assert_eq!(shell("tr '\\0' ' ' </proc/1/cmdline"), "sleep infinity");
    let value =
        "tr '\\0' '\\n' </proc/1/environ | sed -n s/^DATABASE_URL=//p | tr -d '\\n' | sha256sum";
    setting.is_in(&shell(value));
    assert_eq!(
        shell("tr '\\0' '\\n' </proc/1/environ | grep -c '^BAREKEY_A' || true"),
        "0",
        "the agent's settings are not the program's"
    );
    // A shell of `kubectl exec` gets what the pod's spec says, and no value.
    assert_eq!(shell("echo ${DATABASE_URL:-none}"), "none");

    namespace.apply(asking("failing", "exit 7").to_string());
    let ended = namespace.wait_phase("failing", "Failed");
    let state = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["exitCode"], 7, "{state}");
}

fn as_the_annotations_say(namespace: &Namespace) {
    let organization = Installation::shared().organization(namespace);
    namespace.apply_example("rename-and-reference/barekey.yaml");
    namespace.wait_ready("bks/development");
    let names = ["DATABASE_URL", "CACHE_URL", "MAIL_SENDER", "MAIL_HOST"];
    let values = names.map(secret_text);
    let api = Installation::shared().api();
    for (name, value) in names.iter().zip(&values) {
        api.set(&organization, "shop", "development", name, value);
    }
    namespace.apply_example("rename-and-reference/pod.yaml");
    namespace.wait_phase("report", "Succeeded");
    let [database, cache, sender, host] = &values;
    let printed = namespace
        .kubectl(["logs", "report", "-c", "report"])
        .secret()
        .succeed();
    assert!(
        !printed.contains(host.as_str()),
        "the pod's own MAIL_HOST wins"
    );
    let lines: Vec<&str> = printed.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        [
            format!("PG_URL {}  -", sha256_hex(database)),
            format!("CACHE {}  -", sha256_hex(cache)),
            format!("SENDER {}  -", sha256_hex(sender)),
            "MAIL_HOST localhost".to_owned(),
            "GREETING hello from localhost".to_owned(),
            "DATABASE_URL is not set".to_owned(),
        ]
    );
    let left_out = namespace
        .kubectl(["logs", "report", "-c", "sidecar"])
        .succeed();
    assert_eq!(left_out.trim(), "PG_URL is not set");

    // What the kubelet would have expanded too early, or turned into something else.
    let mut manifest = asking(
        "expanding",
        "printf %s \"$WRAPPED\" | sha256sum; echo '$(CACHE_HASH) $$(CACHE) $$$$ $'",
    );
    manifest["metadata"]["annotations"]["barekey.dev/variables"] = json!("DATABASE_URL");
    manifest["spec"]["serviceAccountName"] = json!("report");
    manifest["spec"]["containers"][0]["env"] = json!([
        {"name": "CACHE", "value": "barekey:CACHE_URL"},
        {"name": "WRAPPED", "value": "<$(CACHE)|$(DATABASE_URL)|$(LATER)|$$(CACHE)>"},
        {"name": "LATER", "value": "x"},
    ]);
    namespace.apply(manifest.to_string());
    namespace.wait_phase("expanding", "Succeeded");
    let wrapped = format!("<{cache}|{database}|$(LATER)|$(CACHE)>");
    assert_eq!(
        namespace.logs("expanding").lines().collect::<Vec<_>>(),
        [
            format!("{}  -", sha256_hex(wrapped)),
            "$(CACHE_HASH) $(CACHE) $$ $".to_owned(),
        ]
    );
}

fn a_stage_elsewhere(namespace: &Namespace) {
    let organization = Installation::shared().organization(namespace);
    let beside = namespace.beside("apps");
    let here = |text: String| {
        text.replace("namespace: shop", &format!("namespace: {}", beside.name()))
            .replace(
                "platform/production",
                &format!("{}/production", namespace.name()),
            )
    };
    namespace.apply(here(namespace.example("another-namespace/barekey.yaml")));
    namespace.wait_ready("bks/production");
    let value = secret_text("value");
    let api = Installation::shared().api();
    api.set(
        &organization,
        "platform",
        "production",
        "METRICS_TOKEN",
        &value,
    );
    api.set(
        &organization,
        "platform",
        "production",
        "OTHER",
        "not theirs",
    );
    beside.apply(here(namespace.example("another-namespace/pod.yaml")));
    beside.wait_phase("shop-metrics", "Succeeded");
    assert_eq!(
        beside.logs("shop-metrics").lines().collect::<Vec<_>>(),
        [&format!("{}  -", sha256_hex(&value)), "OTHER is not set"]
    );
}

fn every_workload(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    let stays = format!("{PRINT_HASH}; exec sleep infinity");
    let template = |name: &str, script: &str, restart: &str| {
        let mut spec = spec(script);
        spec["restartPolicy"] = json!(restart);
        json!({
            "metadata": {
                "labels": {"of": name},
                "annotations": {"barekey.dev/stage": "development"},
            },
            "spec": spec,
        })
    };
    let workload = |group: &str, kind: &str, name: &str, spec: Value| json!({"apiVersion": group, "kind": kind, "metadata": {"name": name}, "spec": spec});
    let selecting = |name: &str| json!({"matchLabels": {"of": name}});
    let always = |name: &str| template(name, &stays, "Always");
    for manifest in [
        workload(
            "apps/v1",
            "Deployment",
            "deployed",
            json!({
                "replicas": 2, "selector": selecting("deployed"), "template": always("deployed"),
            }),
        ),
        workload(
            "apps/v1",
            "StatefulSet",
            "stateful",
            json!({
                "serviceName": "stateful", "selector": selecting("stateful"), "template": always("stateful"),
            }),
        ),
        workload(
            "apps/v1",
            "DaemonSet",
            "daemon",
            json!({
                "selector": selecting("daemon"), "template": always("daemon"),
            }),
        ),
        workload(
            "batch/v1",
            "CronJob",
            "timed",
            json!({
                "schedule": "0 0 1 1 *",
                "jobTemplate": {"spec": {"backoffLimit": 0, "template": template("timed", PRINT_HASH, "Never")}},
            }),
        ),
    ] {
        namespace.apply(manifest.to_string());
    }
    namespace
        .kubectl(["create", "job", "once", "--from=cronjob/timed"])
        .succeed();
    for (name, pods) in [
        ("deployed", 2),
        ("stateful", 1),
        ("daemon", 1),
        ("timed", 1),
    ] {
        let hash = setting.hash();
        eventually(&format!("{pods} pods of {name} with the value"), || {
            let logs = namespace
                .kubectl(["logs", "--prefix", "--selector", &format!("of={name}")])
                .secret()
                .output();
            match logs.stdout.matches(&hash).count() {
                found if found == pods => Ok(()),
                found => Err(format!("{found}: {}", logs.stderr)),
            }
        });
    }
}

fn init_containers_and_sidecars(namespace: &Namespace) {
    namespace.restrict();
    let setting = Setting::make(namespace);
    let mut manifest = asking("order", PRINT_HASH);
    let mut sidecar = container("sidecar", &format!("{PRINT_HASH}; exec sleep infinity"));
    sidecar["restartPolicy"] = json!("Always");
    manifest["spec"]["initContainers"] = json!([container("migrate", PRINT_HASH), sidecar]);
    namespace.apply(manifest.to_string());
    setting.printed_by(namespace, "order");
    for name in ["migrate", "sidecar"] {
        setting.is_in(
            &namespace
                .kubectl(["logs", "order", "-c", name])
                .secret()
                .succeed(),
        );
    }
}

fn a_pod_keeps_its_class(namespace: &Namespace) {
    namespace.restrict();
    let setting = Setting::make(namespace);
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "tight"},
        "spec": {"hard": {
            "requests.cpu": "100m", "requests.memory": "64Mi", "limits.cpu": "100m", "limits.memory": "64Mi",
            "requests.ephemeral-storage": "8Mi",
        }},
    });
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "range"},
        "spec": {"limits": [{
            "type": "Container", "max": {"cpu": "100m", "memory": "64Mi"}, "min": {"cpu": "50m", "memory": "32Mi"},
        }]},
    });
    namespace.apply(quota.to_string());
    namespace.apply(range.to_string());
    // Any user, no token of the API server's own, no root file system to write to.
    let mut manifest = asking("guaranteed", PRINT_HASH);
    let asked = json!({"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "8Mi"});
    manifest["spec"]["automountServiceAccountToken"] = json!(false);
    manifest["spec"]["securityContext"]["runAsUser"] = json!(1_000_660_000);
    manifest["spec"]["securityContext"]["fsGroup"] = json!(1_000_660_000);
    manifest["spec"]["containers"][0]["resources"] = json!({"requests": asked, "limits": asked});
    eventually("the quota", || {
        namespace
            .get("resourcequota/tight")
            .filter(|quota| quota["status"]["hard"].is_object())
            .map(drop)
            .ok_or("it is not counted yet".to_owned())
    });
    namespace.apply(manifest.to_string());
    setting.printed_by(namespace, "guaranteed");
    let pod = namespace.get("pod/guaranteed").expect("it is there");
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    let injected = |name: &str| pod["spec"]["initContainers"][0][name].clone();
    assert_eq!(injected("name"), "barekey-agent");
    assert_eq!(
        injected("resources"),
        json!({"requests": asked, "limits": asked})
    );
}

fn a_copy_is_injected_anew(namespace: &Namespace) {
    let setting = Setting::make(namespace);
    namespace.apply(asking("first", PRINT_HASH).to_string());
    setting.printed_by(namespace, "first");
    let mut copy = namespace.get("pod/first").expect("it is there");
    copy["metadata"] = json!({
        "name": "second",
        "labels": copy["metadata"]["labels"],
        "annotations": copy["metadata"]["annotations"],
    });
    copy.as_object_mut().expect("a pod").remove("status");
    copy["spec"]
        .as_object_mut()
        .expect("a spec")
        .remove("nodeName");
    namespace.apply(copy.to_string());
    setting.printed_by(namespace, "second");
    let containers = |pod: &str| {
        let pod = namespace.get(&format!("pod/{pod}")).expect("it is there");
        pod["spec"]["containers"].clone()
    };
    assert_eq!(containers("second"), containers("first"));

    // In a pod of another account the same allowance is worth what that account may read: nothing.
    let mut foreign = copy.clone();
    foreign["metadata"]["name"] = json!("foreign");
    for field in ["serviceAccount", "serviceAccountName"] {
        foreign["spec"][field] = json!("default");
    }
    let told = namespace.refuse(foreign.to_string());
    assert!(told.contains("spec.access"), "{told}");

    // The copy that one makes to look at a pod: another program, with the same values.
    namespace
        .kubectl(["debug", "first", "--copy-to=looked-at", "--container=app"])
        .args([
            "--keep-annotations",
            "--profile=restricted",
            "--share-processes=false",
        ])
        .args(["--", "/bin/sh", "-c", PRINT_HASH])
        .succeed();
    setting.printed_by(namespace, "looked-at");

    copy["metadata"] = json!({"name": "third"});
    let told = namespace.refuse(copy.to_string());
    assert!(
        told.contains("copy of an injected one without barekey.dev/stage"),
        "{told}"
    );
    assert!(
        told.contains("the entry BAREKEY_ALLOWANCE of container app"),
        "{told}"
    );
}

fn an_image_volume(namespace: &Namespace) {
    namespace.restrict();
    let setting = Setting::make(namespace);
    let installation = Installation::shared();
    installation.install(&json!({"agent": {"delivery": "image"}}));
    namespace.apply(asking("image", PRINT_HASH).to_string());
    setting.printed_by(namespace, "image");
    let pod = namespace.get("pod/image").expect("it is there");
    assert_eq!(pod["spec"]["initContainers"], Value::Null);
    assert!(pod["spec"]["volumes"].as_array().is_some_and(|volumes| {
        volumes
            .iter()
            .any(|volume| volume["name"] == "barekey-agent" && volume["image"].is_object())
    }));
    installation.install(&json!({}));
    // What was injected one way runs on, and starts again, after the other was chosen.
    namespace.apply(pod_again().to_string());
    setting.printed_by(namespace, "again");
}

fn pod_again() -> Value {
    pod(
        "again",
        &json!({"barekey.dev/stage": "development"}),
        &spec(PRINT_HASH),
    )
}
