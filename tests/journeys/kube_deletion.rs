//! What goes with a resource that is deleted, what waits, and what stays.

use serde_json::json;

use crate::harness::{Installation, Journey, Namespace, eventually, kubectl, secret_text};
use crate::kube_resources::{project, stage};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared("what_was_retained_is_found_again", retained_is_found_again),
        Journey::shared(
            "a_stage_with_values_goes_when_confirmed",
            goes_when_confirmed,
        ),
        Journey::shared("resources_are_deleted_in_any_order", deleted_in_any_order),
        Journey::shared("a_default_stage_stays_deleted", default_stage_stays_deleted),
    ]
}

fn retained_is_found_again(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    let apply = || {
        namespace.apply(project("backend", &organization.slug, json!({})));
        namespace.apply(stage("staging", "backend", json!({})));
        namespace.wait_ready("bks/staging");
        namespace.get("bks/staging").expect("is there")["status"].take()
    };
    let before = apply();
    let api = installation.api();
    api.set(
        &organization,
        "backend",
        "staging",
        "URL",
        &secret_text("value"),
    );
    namespace.delete("bks/staging");
    namespace.delete("bkp/backend");
    let after = apply();
    assert_eq!(after["id"], before["id"]);
    assert_eq!(after["variables"], 1);
}

fn goes_when_confirmed(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    let delete = json!({"deletionPolicy": "Delete"});
    namespace.apply(project("backend", &organization.slug, json!({})));
    namespace.apply(stage("staging", "backend", delete.clone()));
    namespace.apply(stage("development", "backend", delete.clone()));
    namespace.wait_ready("bks/staging");
    namespace.wait_ready("bks/development");
    let api = installation.api();
    for stage in ["staging", "development"] {
        api.set(
            &organization,
            "backend",
            stage,
            "URL",
            &secret_text("value"),
        );
        namespace
            .kubectl(["delete", "--wait=false", &format!("bks/{stage}")])
            .succeed();
    }
    let condition =
        namespace.wait_condition("bks/staging", "Ready", "False", "AwaitingConfirmation");
    assert!(
        condition
            .message
            .contains("barekey.dev/confirm-delete: staging"),
        "{}",
        condition.message
    );
    let annotate = |value: &str| {
        let annotation = format!("barekey.dev/confirm-delete={value}");
        namespace
            .kubectl(["annotate", "--overwrite", "bks/staging", &annotation])
            .succeed();
    };
    annotate("yes");
    namespace
        .kubectl(["wait", "--for=delete", "--timeout=6s", "bks/staging"])
        .fail();
    annotate("staging");
    namespace
        .kubectl(["wait", "--for=delete", "--timeout=60s", "bks/staging"])
        .succeed();
    // Or the values stay after all.
    namespace.wait_condition("bks/development", "Ready", "False", "AwaitingConfirmation");
    let retain = json!({"spec": {"deletionPolicy": "Retain"}}).to_string();
    namespace
        .kubectl([
            "patch",
            "bks/development",
            "--type=merge",
            "--patch",
            &retain,
        ])
        .succeed();
    namespace
        .kubectl(["wait", "--for=delete", "--timeout=60s", "bks/development"])
        .succeed();
    for (stage_name, variables) in [("staging", 0), ("development", 1)] {
        namespace.apply(stage(stage_name, "backend", delete.clone()));
        let resource = format!("bks/{stage_name}");
        namespace.wait_ready(&resource);
        let found = namespace.get(&resource).expect("is there");
        assert_eq!(found["status"]["variables"], variables, "{stage_name}");
    }
}

fn deleted_in_any_order(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    for (policy, first, second) in [
        ("Delete", "bkp/backend", "bks/staging"),
        ("Delete", "bks/staging", "bkp/backend"),
        ("Retain", "bkp/backend", "bks/staging"),
        ("Retain", "bks/staging", "bkp/backend"),
    ] {
        let more = json!({"deletionPolicy": policy});
        namespace.apply(project("backend", &organization.slug, more.clone()));
        namespace.apply(stage("staging", "backend", more));
        namespace.wait_ready("bks/staging");
        namespace.delete(first);
        namespace.delete(second);
    }
    // And both at once, with their namespace.
    let more = json!({"deletionPolicy": "Delete"});
    namespace.apply(project("backend", &organization.slug, more.clone()));
    namespace.apply(stage("staging", "backend", more));
    namespace.wait_ready("bks/staging");
    kubectl(["delete", "namespace", "--timeout=80s", namespace.name()]).succeed();
    Namespace::make(namespace.name());
}

fn default_stage_stays_deleted(namespace: &Namespace) {
    let organization = Installation::shared().organization(namespace);
    namespace.apply(project("backend", &organization.slug, json!({})));
    namespace.apply(stage(
        "staging",
        "backend",
        json!({"deletionPolicy": "Delete"}),
    ));
    namespace.wait_ready("bks/staging");
    namespace.delete("bks/staging");
    // A new look at the project, and nothing else.
    let rename = json!({"spec": {"name": "Renamed"}}).to_string();
    namespace
        .kubectl(["patch", "bkp/backend", "--type=merge", "--patch", &rename])
        .succeed();
    eventually("the project without staging", || {
        let found = namespace.get("bkp/backend").expect("is there");
        let seen = found["status"]["observedGeneration"] == found["metadata"]["generation"];
        if seen && found["status"]["stages"] == json!(["development", "production"]) {
            Ok(())
        } else {
            Err(found["status"].to_string())
        }
    });
}
