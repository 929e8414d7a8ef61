//! What is done about a BarekeyProject.

use super::*;

#[test]
fn a_project_is_declared_under_its_name_unless_it_has_a_slug() {
    let slug_of = |project: &BarekeyProject| match plan_one(project) {
        ProjectPlan::Declare { declaration, .. } => declaration.slug.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(slug_of(&project_from(json!({}))), "backend");
    let slug = json!({"spec": {"slug": "api"}});
    assert_eq!(slug_of(&project_from(slug)), "api");
}

#[test]
fn a_namespace_that_does_not_speak_for_the_organization_is_told_which_value_to_set() {
    let project = project_from(json!({"metadata": {"namespace": "other"}}));
    let finding = refusal(plan_one(&project));
    assert_eq!(finding.reason, Reason::OrganizationNotAllowed);
    assert!(
        finding.message.contains("organizations.acme.namespaces"),
        "{}",
        finding.message
    );
}

#[test]
fn an_unknown_organization_reads_the_same_as_one_that_is_not_allowed() {
    let message = |organization: &str| {
        let project = project_from(json!({"spec": {"organization": organization}}));
        refusal(plan_one(&project))
            .message
            .replace(organization, "X")
    };
    assert_eq!(message("umbrella"), message("nothing-of-that-name"));
}

#[test]
fn of_two_projects_of_one_slug_the_older_wins_and_of_equal_age_the_first_name() {
    let first = project_from(json!({"metadata": {"name": "a"}, "spec": {"slug": "x"}}));
    let second = project_from(json!({"metadata": {"name": "b"}, "spec": {"slug": "x"}}));
    let oldest = project_from(json!({
        "metadata": {"name": "z", "creationTimestamp": "2025-01-01T00:00:00Z"},
        "spec": {"slug": "x"}
    }));
    let all = [&second, &first, &oldest];
    let plan = |project| plan_project(project, all, &organizations());
    assert!(matches!(plan(&oldest), ProjectPlan::Declare { .. }));
    for loser in [&first, &second] {
        let finding = refusal(plan(loser));
        assert_eq!(finding.reason, Reason::SlugTaken);
        assert!(
            finding.message.contains("BarekeyProject z"),
            "{}",
            finding.message
        );
    }
    let two = [&second, &first];
    assert!(matches!(
        plan_project(&first, two, &organizations()),
        ProjectPlan::Declare { .. }
    ));
    assert_eq!(
        refusal(plan_project(&second, two, &organizations())).reason,
        Reason::SlugTaken
    );
}

#[test]
fn resources_of_another_namespace_or_organization_do_not_take_a_slug() {
    let project = project_from(json!({}));
    let elsewhere = project_from(json!({"metadata": {
        "name": "a", "namespace": "other", "creationTimestamp": "2025-01-01T00:00:00Z"
    }, "spec": {"slug": "backend"}}));
    let foreign = project_from(json!({"metadata": {
        "name": "b", "creationTimestamp": "2025-01-01T00:00:00Z"
    }, "spec": {"slug": "backend", "organization": "umbrella"}}));
    assert!(matches!(
        plan_project(&project, [&elsewhere, &foreign], &organizations()),
        ProjectPlan::Declare { .. }
    ));
}

#[test]
fn the_finalizer_follows_the_policy() {
    let change = |policy: &str, finalizer: bool| {
        let project = project_from(json!({
            "metadata": {"finalizers": if finalizer { vec![FINALIZER, "other"] } else { vec!["other"] }},
            "spec": {"deletionPolicy": policy}
        }));
        match plan_one(&project) {
            ProjectPlan::Declare { finalizer, .. } => finalizer,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(change("Delete", false), FinalizerChange::Add);
    assert_eq!(change("Delete", true), FinalizerChange::Keep);
    assert_eq!(change("Retain", true), FinalizerChange::Remove);
    assert_eq!(change("Retain", false), FinalizerChange::Keep);
}

#[test]
fn a_refused_resource_gets_no_finalizer_and_loses_one_that_it_does_not_want() {
    let change = |policy: &str, finalizer: bool| {
        let project = project_from(json!({
            "metadata": {"namespace": "other", "finalizers": if finalizer { vec![FINALIZER] } else { vec![] }},
            "spec": {"deletionPolicy": policy}
        }));
        match plan_one(&project) {
            ProjectPlan::Refuse { finalizer, .. } => finalizer,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(change("Delete", false), FinalizerChange::Keep);
    assert_eq!(change("Retain", true), FinalizerChange::Remove);
}

#[test]
fn a_deleted_project_deletes_in_the_vault_under_the_policy_delete_alone() {
    let plan = |policy: &str, finalizer: bool| {
        plan_one(&project_from(with(
            deleting(finalizer),
            json!({"spec": {"deletionPolicy": policy}}),
        )))
    };
    assert!(matches!(
        plan("Delete", true),
        ProjectPlan::Delete {
            confirmed: false,
            ..
        }
    ));
    assert!(matches!(plan("Retain", true), ProjectPlan::Release));
    assert!(matches!(plan("Retain", false), ProjectPlan::Nothing));
}

#[test]
fn a_confirmation_counts_when_it_names_the_slug() {
    let confirmed = |annotation: &str| {
        let project = project_from(with(
            deleting(true),
            json!({
                "metadata": {"annotations": {CONFIRM_DELETE_ANNOTATION: annotation}},
                "spec": {"deletionPolicy": "Delete", "slug": "api"}
            }),
        ));
        match plan_one(&project) {
            ProjectPlan::Delete { confirmed, .. } => confirmed,
            other => panic!("{other:?}"),
        }
    };
    assert!(confirmed("api"));
    assert!(!confirmed("backend"));
    assert!(!confirmed("true"));
}

#[test]
fn deleting_what_an_older_resource_declares_or_what_is_not_allowed_leaves_the_vault_alone() {
    let younger = project_from(with(
        deleting(true),
        json!({"spec": {"deletionPolicy": "Delete", "slug": "x"}}),
    ));
    let older = project_from(json!({
        "metadata": {"name": "a", "creationTimestamp": "2025-01-01T00:00:00Z"},
        "spec": {"slug": "x"}
    }));
    assert!(matches!(
        plan_project(&younger, [&younger, &older], &organizations()),
        ProjectPlan::Release
    ));
    let foreign = project_from(with(
        deleting(true),
        json!({"metadata": {"namespace": "other"}, "spec": {"deletionPolicy": "Delete"}}),
    ));
    assert!(matches!(plan_one(&foreign), ProjectPlan::Release));
}
