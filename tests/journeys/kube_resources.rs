//! What a team gets from `kubectl apply` of projects and stages, and what it is told when it gets nothing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Installation, Journey, Namespace, Program, eventually, secret_text, secrets, wait_for,
};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared("a_project_and_its_stage_become_ready", become_ready),
        Journey::shared(
            "an_organization_that_comes_later_is_found",
            organization_comes_later,
        ),
        Journey::shared("a_stage_waits_for_its_project", stage_waits_for_its_project),
        Journey::shared(
            "unknown_fields_and_bad_names_are_refused",
            bad_specs_are_refused,
        ),
        Journey::shared("identity_of_a_resource_is_immutable", identity_is_immutable),
        Journey::shared(
            "a_status_follows_what_is_written_over_the_api",
            status_follows,
        ),
        Journey::changing(
            "a_time_that_is_none_in_one_status_stops_no_other_resource",
            a_bad_time_stops_nothing,
        ),
    ]
}

/// A BarekeyProject of an organization; `more` is the rest of its spec.
pub(crate) fn project(name: &str, organization: &str, more: Value) -> String {
    let mut spec = more;
    spec["organization"] = json!(organization);
    json!({
        "apiVersion": "barekey.dev/v1alpha1", "kind": "BarekeyProject",
        "metadata": {"name": name}, "spec": spec,
    })
    .to_string()
}

/// A BarekeyStage of a project; `more` is the rest of its spec.
pub(crate) fn stage(name: &str, project: &str, more: Value) -> String {
    let mut spec = more;
    spec["project"] = json!(project);
    json!({
        "apiVersion": "barekey.dev/v1alpha1", "kind": "BarekeyStage",
        "metadata": {"name": name}, "spec": spec,
    })
    .to_string()
}

fn become_ready(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    namespace.apply(project(
        "backend",
        &organization.slug,
        json!({"name": "The backend"}),
    ));
    namespace.apply(stage("production", "backend", json!({})));
    for resource in ["barekeyproject/backend", "bks/production"] {
        namespace
            .kubectl(["wait", "--for=condition=Ready", "--timeout=60s", resource])
            .succeed();
    }

    let found = namespace.get("bkp/backend").expect("is there");
    let status = &found["status"];
    assert_eq!(
        status["stages"],
        json!(["development", "staging", "production"])
    );
    assert_eq!(status["keyVersion"], 1);
    assert!(status["keyCreatedAt"].is_string(), "{status}");
    assert_eq!(
        status["observedGeneration"],
        found["metadata"]["generation"]
    );
    let found = namespace.get("bks/production").expect("is there");
    let status = &found["status"];
    // Production starts protected, and the resource takes over the stage that the project made.
    assert_eq!(status["protected"], true);
    assert_eq!(status["variables"], 0);
    assert_eq!(
        status["path"],
        format!("{}/backend/production", organization.slug)
    );
    for (kind, wanted) in [
        ("Ready", "True"),
        ("Reconciling", "False"),
        ("Stalled", "False"),
    ] {
        let condition = namespace.condition("bks/production", kind).expect(kind);
        assert_eq!(condition.status, wanted, "{kind}");
    }
    namespace.wait_event(&["BarekeyProject/backend", "Ready"]);
    namespace.wait_event(&["BarekeyStage/production", "Ready"]);

    let printed = namespace.kubectl(["get", "barekey"]).succeed();
    for column in [
        "ORGANIZATION",
        "READY",
        "REASON",
        "STAGES",
        "PROJECT",
        "VARIABLES",
        "REVISION",
        "AGE",
    ] {
        assert!(printed.contains(column), "{column} is not in\n{printed}");
    }
    assert!(printed.contains(&organization.slug), "{printed}");
}

fn organization_comes_later(namespace: &Namespace) {
    let installation = Installation::shared();
    // Made by the operator's readiness at the latest; the shared installation may not be there yet.
    installation.wait_ready();
    namespace.apply(project("backend", namespace.name(), json!({})));
    namespace.apply(stage("staging", "backend", json!({})));
    let condition =
        namespace.wait_condition("bkp/backend", "Ready", "False", "OrganizationNotFound");
    let reconciling = namespace
        .condition("bkp/backend", "Reconciling")
        .expect("is told");
    assert_eq!(reconciling.status, "True");

    let (_, command) = condition
        .message
        .split_once("with: ")
        .expect("a command is told");
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    assert_eq!(program, "kubectl");
    let token = Program::new(program).args(words).secret().succeed();
    secrets::remember(token.trim());
    let began = Instant::now();
    wait_for("both Ready", Duration::from_secs(10), || {
        for resource in ["bkp/backend", "bks/staging"] {
            match namespace.condition(resource, "Ready") {
                Some(condition) if condition.status == "True" => {}
                other => return Err(format!("{resource}: {other:?}")),
            }
        }
        Ok(())
    });
    println!(
        "     Ready {:.1} s after its organization was made",
        began.elapsed().as_secs_f32()
    );
}

fn stage_waits_for_its_project(namespace: &Namespace) {
    let organization = Installation::shared().organization(namespace);
    namespace.apply(stage("canary", "backend", json!({})));
    let condition = namespace.wait_condition("bks/canary", "Ready", "False", "ProjectNotFound");
    assert!(
        condition.message.contains("BarekeyProject backend"),
        "{}",
        condition.message
    );
    namespace.apply(project("backend", &organization.slug, json!({})));
    namespace.wait_ready("bks/canary");
    eventually("the fourth stage in the project's status", || {
        let stages = namespace.get("bkp/backend").expect("is there")["status"]["stages"].take();
        if stages
            .as_array()
            .is_some_and(|stages| stages.contains(&json!("canary")))
        {
            Ok(())
        } else {
            Err(stages.to_string())
        }
    });
}

/// An `access` that names so many service accounts and variables.
fn many_names(count: usize) -> Value {
    let names: Vec<String> = (0..count).map(|number| format!("n{number}")).collect();
    let entries = names.chunks(64);
    entries
        .map(|names| match names {
            [account, variables @ ..] if !variables.is_empty() => {
                json!({"serviceAccounts": [account], "variables": variables})
            }
            accounts => json!({"serviceAccounts": accounts}),
        })
        .collect()
}

fn bad_specs_are_refused(namespace: &Namespace) {
    Installation::shared();
    let long = "x".repeat(49);
    let access = |entry: Value| stage("production", "backend", json!({"access": [entry]}));
    let bad = [
        (
            project("backend", "acme", json!({"stages": []})),
            "unknown field",
        ),
        (project("backend", "Acme", json!({})), "spec.organization"),
        (
            project("backend", "acme", json!({"slug": "-x"})),
            "spec.slug",
        ),
        (
            project("backend", "acme", json!({"slug": long})),
            "spec.slug",
        ),
        (project("backend", "acme", json!({"name": ""})), "spec.name"),
        (
            project("backend", "acme", json!({"deletionPolicy": "Orphan"})),
            "spec.deletionPolicy",
        ),
        (project("back.end", "acme", json!({})), "set spec.slug"),
        (stage("production", "", json!({})), "spec.project"),
        (
            stage("production", "backend", json!({"rollout": {}})),
            "unknown field",
        ),
        (stage("pro.duction", "backend", json!({})), "set spec.slug"),
        (access(json!({})), "serviceAccounts"),
        (access(json!({"serviceAccounts": []})), "serviceAccounts"),
        (access(json!({"serviceAccounts": ["*"]})), "serviceAccounts"),
        (
            access(json!({"serviceAccounts": ["api"], "variables": ["*"]})),
            "variables",
        ),
        (
            access(json!({"serviceAccounts": ["api"], "variables": []})),
            "variables",
        ),
        (
            access(json!({"serviceAccounts": ["api"], "namespace": "Shop"})),
            "namespace",
        ),
        (
            stage("production", "backend", json!({"access": many_names(513)})),
            "access names more than 512",
        ),
    ];
    for (manifest, word) in bad {
        let told = namespace.refuse(manifest.clone());
        assert!(told.contains(word), "{manifest}\n{told}");
    }
    assert_eq!(namespace.list("barekey"), Vec::<Value>::new());
    namespace.apply(stage(
        "production",
        "backend",
        json!({"access": many_names(512)}),
    ));
}

fn identity_is_immutable(namespace: &Namespace) {
    Installation::shared();
    let slugged = namespace.name();
    namespace.apply(project("backend", slugged, json!({})));
    namespace.apply(project("other", slugged, json!({"slug": "other"})));
    namespace.apply(stage("production", "backend", json!({})));
    namespace.apply(stage("staging", "backend", json!({"slug": "staging"})));
    let changes = [
        ("bkp/backend", json!({"organization": "umbrella"})),
        ("bkp/backend", json!({"slug": "backend"})),
        ("bkp/other", json!({"slug": "another"})),
        ("bkp/other", json!({"slug": null})),
        ("bks/production", json!({"project": "other"})),
        ("bks/production", json!({"slug": "production"})),
        ("bks/staging", json!({"slug": "another"})),
        ("bks/staging", json!({"slug": null})),
    ];
    for (resource, spec) in changes {
        let patch = json!({"spec": spec}).to_string();
        let told = namespace
            .kubectl(["patch", resource, "--type=merge", "--patch", &patch])
            .fail()
            .stderr;
        assert!(told.contains("immutable"), "{resource} {patch}\n{told}");
    }
}

fn status_follows(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    namespace.apply(project("backend", &organization.slug, json!({})));
    namespace.apply(stage("staging", "backend", json!({})));
    namespace.wait_ready("bks/staging");
    let before = namespace.get("bks/staging").expect("is there")["status"]["revision"].take();
    let api = installation.api();
    api.set(
        &organization,
        "backend",
        "staging",
        "URL",
        &secret_text("value"),
    );
    wait_for("the new revision", Duration::from_secs(30), || {
        let status = namespace.get("bks/staging").expect("is there")["status"].take();
        if status["variables"] == 1 && status["revision"].as_i64() > before.as_i64() {
            Ok(())
        } else {
            Err(status.to_string())
        }
    });
}

fn a_bad_time_stops_nothing(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    namespace.apply(project("backend", &organization.slug, json!({})));
    namespace.apply(stage("production", "backend", json!({})));
    namespace.wait_ready("bks/production");
    installation.stop();
    // The API server takes it for a time.
    let condition = json!({"type": "Planted", "status": "True", "reason": "Planted", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00+99:99"});
    let patch = json!([{"op": "add", "path": "/status/conditions/-", "value": condition}]);
    namespace
        .kubectl([
            "patch",
            "bks/production",
            "--subresource=status",
            "--type=json",
        ])
        .args(["-p", &patch.to_string()])
        .succeed();
    installation.start();
    namespace.apply(stage("staging", "backend", json!({})));
    namespace.wait_ready("bks/staging");
    namespace.kubectl(["delete", "bks/production"]).succeed();
}
