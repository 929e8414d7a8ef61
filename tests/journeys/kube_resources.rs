//! What a team gets from `kubectl apply` of projects and stages, and what it is told when it gets nothing.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Installation, Journey, Namespace, Program, eventually, kubectl, secret_text, secrets, wait_for,
};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared("a_project_and_its_stage_become_ready", become_ready),
        Journey::shared(
            "an_organization_that_comes_later_is_found",
            organization_comes_later,
        ),
        Journey::shared(
            "an_organization_of_others_is_refused",
            organization_of_others,
        ),
        Journey::shared("a_stage_waits_for_its_project", stage_waits_for_its_project),
        Journey::shared(
            "unknown_fields_and_bad_names_are_refused",
            bad_specs_are_refused,
        ),
        Journey::shared("identity_of_a_resource_is_immutable", identity_is_immutable),
        Journey::shared(
            "of_two_resources_for_one_slug_the_older_counts",
            the_older_counts,
        ),
        Journey::shared(
            "what_was_made_over_the_api_is_not_taken_over",
            made_over_the_api,
        ),
        Journey::shared("what_was_retained_is_found_again", retained_is_found_again),
        Journey::shared(
            "a_stage_with_values_goes_when_confirmed",
            goes_when_confirmed,
        ),
        Journey::shared("resources_are_deleted_in_any_order", deleted_in_any_order),
        Journey::shared("a_default_stage_stays_deleted", default_stage_stays_deleted),
        Journey::shared(
            "a_status_follows_what_is_written_over_the_api",
            status_follows,
        ),
        Journey::changing(
            "a_project_is_not_claimed_by_another_namespace",
            not_claimed_by_another_namespace,
        ),
    ]
}

fn project(name: &str, organization: &str, more: Value) -> String {
    let mut spec = more;
    spec["organization"] = json!(organization);
    json!({
        "apiVersion": "barekey.dev/v1alpha1", "kind": "BarekeyProject",
        "metadata": {"name": name}, "spec": spec,
    })
    .to_string()
}

fn stage(name: &str, project: &str, more: Value) -> String {
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

fn organization_of_others(namespace: &Namespace) {
    Installation::shared();
    let other = namespace.beside("other");
    // Whether it is there or not, they are told the same.
    other.apply(project("backend", namespace.name(), json!({})));
    other.apply(project("frontend", "nobody-of-that-name", json!({})));
    let told: Vec<_> = [
        ("backend", namespace.name()),
        ("frontend", "nobody-of-that-name"),
    ]
    .into_iter()
    .map(|(name, organization)| {
        let resource = format!("bkp/{name}");
        let condition = other.wait_condition(&resource, "Ready", "False", "OrganizationNotAllowed");
        assert!(
            condition
                .message
                .contains(&format!("organizations.{organization}.namespaces")),
            "{}",
            condition.message
        );
        let stalled = other.condition(&resource, "Stalled").expect("is told");
        assert_eq!(stalled.status, "True");
        let message = condition.message.replace(other.name(), "NAMESPACE");
        message.replace(organization, "ORGANIZATION")
    })
    .collect();
    assert_eq!(told[0], told[1]);
    other.apply(stage("production", "backend", json!({})));
    other.wait_condition("bks/production", "Ready", "False", "OrganizationNotAllowed");
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
    ];
    for (manifest, word) in bad {
        let told = namespace.refuse(manifest.clone());
        assert!(told.contains(word), "{manifest}\n{told}");
    }
    assert_eq!(namespace.list("barekey"), Vec::<Value>::new());
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

fn the_older_counts(namespace: &Namespace) {
    let organization = Installation::shared().organization(namespace);
    namespace.apply(project(
        "first",
        &organization.slug,
        json!({"slug": "backend"}),
    ));
    namespace.wait_ready("bkp/first");
    // Ages are whole seconds, and of two of one second the name decides.
    namespace.apply(project(
        "second",
        &organization.slug,
        json!({"slug": "backend"}),
    ));
    let condition = namespace.wait_condition("bkp/second", "Ready", "False", "SlugTaken");
    assert!(
        condition.message.contains("BarekeyProject first"),
        "{}",
        condition.message
    );
    namespace.apply(stage("a", "first", json!({"slug": "production"})));
    namespace.wait_ready("bks/a");
    namespace.apply(stage(
        "b",
        "first",
        json!({"slug": "production", "deletionPolicy": "Delete"}),
    ));
    namespace.wait_condition("bks/b", "Ready", "False", "SlugTaken");
    namespace.apply(stage("c", "second", json!({"slug": "production"})));
    namespace.wait_condition("bks/c", "Ready", "False", "ProjectNotReady");

    // The one that does not count takes nothing with it, and follows when the older one goes.
    let before = namespace.get("bks/a").expect("is there")["status"]["id"].take();
    namespace.delete("bks/b");
    namespace.apply(stage("d", "first", json!({"slug": "production"})));
    namespace.wait_condition("bks/d", "Ready", "False", "SlugTaken");
    namespace.delete("bks/a");
    namespace.wait_ready("bks/d");
    let after = namespace.get("bks/d").expect("is there")["status"]["id"].take();
    assert_eq!(before, after, "the stage is still the same");
    namespace.delete("bkp/first");
    namespace.wait_ready("bkp/second");
    namespace.wait_ready("bks/c");
}

fn made_over_the_api(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    let api = installation.api();
    api.barekey(
        &organization.owner,
        &[
            "--org",
            &organization.slug,
            "project",
            "create",
            "backend",
            "--slug",
            "backend",
        ],
    )
    .succeed();
    namespace.apply(project(
        "backend",
        &organization.slug,
        json!({"deletionPolicy": "Delete"}),
    ));
    let condition = namespace.wait_condition("bkp/backend", "Ready", "False", "NotOwned");
    assert!(
        condition.message.contains("the project backend"),
        "{}",
        condition.message
    );
    namespace.delete("bkp/backend");
    let listed = api
        .barekey(
            &organization.owner,
            &["--org", &organization.slug, "project", "list"],
        )
        .succeed();
    assert!(listed.contains("backend"), "it is still there: {listed}");
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

fn not_claimed_by_another_namespace(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    let other = namespace.beside("other");
    let speakers = json!({"organizations": {
        organization.slug.as_str(): {"namespaces": [namespace.name(), other.name()]},
    }});
    installation.install(&speakers);
    namespace.apply(project("backend", &organization.slug, json!({})));
    namespace.apply(stage(
        "staging",
        "backend",
        json!({"access": [{"serviceAccounts": ["api"]}]}),
    ));
    namespace.wait_ready("bks/staging");

    let delete = json!({"deletionPolicy": "Delete"});
    other.apply(project("backend", &organization.slug, delete.clone()));
    other.apply(stage("staging", "backend", delete));
    let condition = other.wait_condition("bkp/backend", "Ready", "False", "NotOwned");
    // Whose it is, it is not told.
    assert_eq!(
        condition.message,
        "the project backend belongs to another namespace: make this resource anew with another slug"
    );
    other.wait_condition("bks/staging", "Ready", "False", "ProjectNotReady");
    // What does not count takes nothing with it.
    other.delete("bks/staging");
    other.delete("bkp/backend");
    let before = namespace.get("bks/staging").expect("is there")["status"]["id"].take();
    namespace.delete("bks/staging");
    namespace.apply(stage("staging", "backend", json!({})));
    namespace.wait_ready("bks/staging");
    let after = namespace.get("bks/staging").expect("is there")["status"]["id"].take();
    assert_eq!(before, after);

    // A namespace that may no longer speak has no say, and is told so.
    let speakers =
        json!({"organizations": {organization.slug.as_str(): {"namespaces": [other.name()]}}});
    installation.install(&speakers);
    namespace.wait_condition("bks/staging", "Ready", "False", "OrganizationNotAllowed");
    installation.install(&json!({}));
    namespace.wait_ready("bks/staging");
}
