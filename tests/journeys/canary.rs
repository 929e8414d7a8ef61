//! The canary: after everything else has run, no value, key or token of ours is anywhere that it must not be.
//!
//! Each place is proven before it is believed: what was planted there on purpose is found first, by the same search.

mod keys;
mod scan;

use std::path::Path;

use serde_json::{Value, json};

pub(crate) use self::keys::{DATA_KEYS, SEALED_KEYS};
use self::scan::Needles;
use crate::harness::{
    Installation, Journey, KEPT_LOGS, Namespace, Organization, Place, Program, eventually, get,
    kubectl, random_text, secrets, sha256_hex,
};
use crate::injection_setting::asking;

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::alone(
            "the_canary_finds_every_spelling_of_a_secret",
            scan::every_spelling_of_a_secret_is_found,
        ),
        Journey::last(
            "no_secret_is_in_the_api_or_in_our_logs",
            nothing_in_the_api_or_the_logs,
        ),
        Journey::last("no_secret_is_on_a_disk", nothing_on_a_disk).inside(),
    ]
}

/// A value that needs escaping in JSON and in URLs, so that each spelling is another text.
pub(crate) fn awkward_value() -> String {
    let value = format!("{}\"{}/+&é", random_text("canary"), random_text("="));
    secrets::remember(&value);
    value
}

/// What the canary does itself, so that every place has had its chance: a value is written, evaluated, and reaches a process;
/// calls are refused.
struct Walked {
    value: String,
    /// Planted on purpose, wherever a user's text goes.
    marker: String,
    organization: Organization,
}

#[track_caller]
fn walk(namespace: &Namespace) -> Walked {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    namespace.apply_example("first-value/barekey.yaml");
    namespace.wait_ready("bks/development");
    let marker = random_text("marker");
    let value = awkward_value();
    let api = installation.api();
    api.set(&organization, "shop", "development", "DATABASE_URL", &value);
    // The names of variables are no secrets: this one is planted in the database.
    api.set(&organization, "shop", "development", &marker, "value");
    let target = json!({"projectSlug": "shop", "stageSlug": "development", "name": "DATABASE_URL"});
    let answer = api
        .post("/v1/env/evaluate")
        .bearer(&organization.owner)
        .json(&target)
        .send()
        .ok();
    assert!(
        answer["value"] == value.as_str(),
        "evaluate answers another value"
    );
    // Refused calls are logged with the id that the caller gave them.
    api.post("/v1/env/evaluate")
        .bearer(&organization.owner)
        .header("x-request-id", &marker)
        .json(&json!({"projectSlug": "shop", "stageSlug": "absent", "name": "DATABASE_URL"}))
        .send()
        .refused(404, "VARIABLE_NOT_FOUND");

    namespace.apply_example("first-value/pod.yaml");
    namespace.wait_phase("shop", "Succeeded");
    assert_eq!(
        namespace.logs("shop").split_whitespace().next(),
        Some(sha256_hex(&value).as_str()),
        "the process has another value"
    );
    Walked {
        value,
        marker,
        organization,
    }
}

/// Everything that must be nowhere: values and tokens of all journeys, the master keys, and every key that they open, in the
/// vaults that are there and in those that ran.
#[track_caller]
fn needles() -> Needles {
    if let Some(node) = Place::get().node() {
        keys::remember_below(&node.join("volumes"));
    }
    Needles::of_this_run()
}

fn nothing_in_the_api_or_the_logs(namespace: &Namespace) {
    let walked = walk(namespace);
    let installation = Installation::shared();
    plant_in_the_api(namespace, &walked.marker);

    let needles = needles();
    // Kubernetes carries the master key as base64 of its text, which is base64 already.
    let secret = installation.kubectl(["get", "secret", "barekey-master-key", "-o", "yaml"]);
    let found = needles.within(secret.secret().succeed().as_bytes());
    let wanted = ("the text of a master key".to_owned(), "base64");
    assert!(
        found.contains(&wanted),
        "in the administrator's Secret: {found:?}"
    );
    let markers = Needles::new([("the marker", walked.marker.as_bytes())]);
    let all = |what: &str| kubectl(["get", what, "--all-namespaces", "-o", "json"]);
    let places: [(&str, Program); 8] = [
        ("events", all("events")),
        (
            "resources and their status",
            all("barekeyprojects,barekeystages"),
        ),
        ("pods", all("pods")),
        ("config maps", all("configmaps")),
        (
            "workloads",
            all("deployments,statefulsets,replicasets,daemonsets,jobs"),
        ),
        ("leases", all("leases")),
        (
            "the webhook configuration",
            kubectl(["get", "mutatingwebhookconfigurations", "-o", "json"]),
        ),
        (
            "the operator's log",
            kubectl(["--namespace", installation.namespace(), "logs"]).args(installation.pods()),
        ),
    ];
    for (place, program) in places {
        let text = program.secret().succeed();
        let planted = markers.within(text.as_bytes());
        // Nothing of a user's own goes into the last three.
        let takes_markers = !matches!(place, "workloads" | "leases" | "the webhook configuration");
        assert!(
            !planted.is_empty() || !takes_markers,
            "the search does not find what was planted in {place}"
        );
        assert!(text.len() > 100, "{place} is empty");
        let found = needles.within(text.as_bytes());
        assert!(found.is_empty(), "in {place}: {found:?}");
    }
    assert!(
        needles.within(walked.value.as_bytes()).len() == 1
            && needles.within(walked.organization.owner.as_bytes()).len() == 2,
        "the search does not know what it looks for"
    );
}

/// Puts the marker where a user's text goes in the API.
#[track_caller]
fn plant_in_the_api(namespace: &Namespace, marker: &str) {
    namespace
        .kubectl(["create", "configmap", "marker"])
        .args([format!("--from-literal=marker={marker}")])
        .succeed();
    // Its condition names the organization that is not there.
    namespace.apply(
        json!({
            "apiVersion": "barekey.dev/v1alpha1", "kind": "BarekeyProject",
            "metadata": {"name": "marker"}, "spec": {"organization": marker},
        })
        .to_string(),
    );
    eventually("the marker in a condition", || {
        namespace
            .condition("bkp/marker", "Ready")
            .filter(|condition| condition.message.contains(marker))
            .map(|_| ())
            .ok_or_else(|| "not there".to_owned())
    });
    namespace.apply(
        json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "marker"},
            "involvedObject": {"kind": "Namespace", "name": namespace.name(), "namespace": namespace.name()},
            "reason": "Marker", "message": marker, "type": "Normal",
        })
        .to_string(),
    );
    namespace.apply(
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "marker"},
            "spec": {
                "restartPolicy": "Never",
                "volumes": [{"name": "disk", "emptyDir": {}}],
                "containers": [{
                    "name": "marker", "image": "docker.io/library/busybox:stable",
                    "command": ["sh", "-c", "echo $MARKER; echo $MARKER > /tmp/layer; echo $MARKER > /disk/marker; sleep 3600"],
                    "env": [{"name": "MARKER", "value": marker}],
                    "volumeMounts": [{"name": "disk", "mountPath": "/disk"}],
                }],
            },
        })
        .to_string(),
    );
    namespace.wait_pod("marker");
}

/// Starts an injected pod that logs the marker, deletes it, and gives its UID.
#[track_caller]
fn plant_in_a_log_and_delete(namespace: &Namespace, marker: &str) -> String {
    let script = format!("echo {marker}");
    namespace.apply(asking("gone", &script).to_string());
    let pod = namespace.wait_phase("gone", "Succeeded");
    namespace.delete_pod_now("gone");
    pod["metadata"]["uid"].as_str().expect("a UID").to_owned()
}

/// The same search of a PostgreSQL server while it is there: its tables, its journal, its log, and the logs of the operator
/// that used it. In the first three `marker` is planted; `data_keys` and `sealed_keys` are what [`DATA_KEYS`] and
/// [`SEALED_KEYS`] select.
#[track_caller]
pub(crate) fn nothing_in_postgres(
    folder: &Path,
    marker: &str,
    data_keys: &[Value],
    sealed_keys: &[Value],
) {
    let installation = Installation::shared();
    let found = Needles::new([("the marker", marker.as_bytes())])
        .below(folder)
        .found;
    for place in ["data/base/", "data/pg_wal/", "server.log"] {
        let place = folder.join(place).display().to_string();
        assert!(
            found.keys().any(|path| path.starts_with(&place)),
            "the search does not find what was planted in {place}, but in {:?}",
            found.keys()
        );
    }
    // From here on they are looked for in the other places too.
    keys::remember_of(data_keys, sealed_keys, "PostgreSQL");
    let needles = Needles::of_this_run();
    let found = needles.below(folder).found;
    assert!(found.is_empty(), "in PostgreSQL: {found:?}");
    let found = needles.within(installation.logs().as_bytes());
    assert!(found.is_empty(), "in the operator's log: {found:?}");
    // Those of the replicas that are gone, and of the pods.
    let found = needles.below(&Place::inside().join(KEPT_LOGS)).found;
    assert!(found.is_empty(), "in the logs: {found:?}");
}

fn nothing_on_a_disk(namespace: &Namespace) {
    let walked = walk(namespace);
    plant_in_the_api(namespace, &walked.marker);
    let node = Place::inside();
    let installation = Installation::shared();

    // The operator that was called is replaced: its log is in none that is there now. When it ends, what is in the database's
    // journal goes to the database; a later write is in the journal alone.
    let [operator] = &installation.pods()[..] else {
        panic!("there are several operators");
    };
    let found = get(["--namespace", installation.namespace(), "pod", operator]);
    let replaced = found.expect("it runs")["metadata"]["uid"].take();
    let replaced = replaced.as_str().expect("a UID");
    installation.restart();
    let late = random_text("marker");
    let api = installation.api();
    api.set(&walked.organization, "shop", "development", &late, "value");
    // And so is the log of a pod that is gone.
    let gone = plant_in_a_log_and_delete(namespace, &walked.marker);

    let markers = Needles::new([
        ("the marker", walked.marker.as_bytes()),
        ("the late marker", late.as_bytes()),
    ]);
    eventually("what was planted, in every place", || {
        let found = markers.below(node).found;
        // Below each folder of the node itself, so that one planted file does not stand for another place.
        for (place, in_path, end, marker) in [
            ("etcd/", "", "", "the marker"),
            ("log/", "", "audit.jsonl", "the marker"),
            (KEPT_LOGS, replaced, "", "the marker"),
            (KEPT_LOGS, &gone, "", "the marker"),
            ("containerd/", "", "/tmp/layer", "the marker"),
            ("containerd/", "", "/meta.db", "the marker"),
            ("pods/", "", ".log", "the marker"),
            ("kubelet/", "", "marker", "the marker"),
            ("volumes/", "", "/barekey.db", "the marker"),
            ("volumes/", "", "/barekey.db-wal", "the late marker"),
        ] {
            let folder = node.join(place);
            let planted = found.iter().any(|(path, labels)| {
                path.strip_prefix(&*folder.to_string_lossy())
                    .is_some_and(|rest| rest.contains(in_path) && rest.ends_with(end))
                    && labels.iter().any(|(label, _)| label == marker)
            });
            if !planted {
                return Err(format!(
                    "{marker} is not in {place}…{in_path}…{end}, but in {:?}",
                    found.keys()
                ));
            }
        }
        Ok(())
    });

    let needles = needles();
    let searched = needles.below(node);
    println!(
        "     searched {} files, {} MiB",
        searched.files,
        searched.bytes >> 20
    );
    assert!(
        searched.found.is_empty(),
        "on the disk: {:?}",
        searched.found
    );
    // Nor did the tests write it beside the node.
    let own = Needles::new([("the canary's value", walked.value.as_bytes())]);
    let found = own.below(Path::new("/tmp")).found;
    assert!(found.is_empty(), "the tests wrote it: {found:?}");
}
