//! Who a project and its stages belong to: an organization has its namespaces, and a slug its first owner.

use serde_json::json;

use crate::harness::{Installation, Journey, Namespace};
use crate::kube_resources::{project, stage};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared(
            "an_organization_of_others_is_refused",
            organization_of_others,
        ),
        Journey::shared(
            "of_two_resources_for_one_slug_the_older_counts",
            the_older_counts,
        ),
        Journey::shared(
            "what_was_made_over_the_api_is_not_taken_over",
            made_over_the_api,
        ),
        Journey::changing(
            "a_project_is_not_claimed_by_another_namespace",
            not_claimed_by_another_namespace,
        ),
    ]
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
