//! What is done about a BarekeyStage.

use super::*;

#[test]
fn a_stage_is_declared_with_its_access_and_the_default_namespace_is_its_own() {
    let stage = stage_from(json!({"spec": {
        "protected": true,
        "access": [
            {"serviceAccounts": ["api", "worker"]},
            {"namespace": "ops", "serviceAccounts": ["cron"], "variables": ["DB_*", "URL"]}
        ]
    }}));
    let StagePlan::Declare { declaration, .. } = plan_one_stage(&stage) else {
        panic!("not declared");
    };
    assert_eq!(declaration.protected, Some(true));
    assert_eq!(declaration.project.as_str(), "backend");
    assert_eq!(declaration.slug.as_str(), "production");
    let [own, foreign] = declaration.access.as_slice() else {
        panic!("{:?}", declaration.access);
    };
    assert_eq!(own.namespace.as_str(), "shop");
    assert_eq!(own.service_accounts.len(), 2);
    assert_eq!(own.variables, None);
    assert_eq!(foreign.namespace.as_str(), "ops");
    assert_eq!(foreign.variables.as_ref().unwrap().len(), 2);
}

#[test]
fn a_stage_whose_access_makes_more_entries_than_the_vault_takes_is_refused_with_what_would_pass() {
    let accounts =
        |count: usize| -> Vec<String> { (0..count).map(|it| format!("a{it}")).collect() };
    let variables =
        |count: usize| -> Vec<String> { (0..count).map(|it| format!("V{it}")).collect() };
    let stage = |access: Value| stage_from(json!({"spec": {"access": access}}));
    let full = json!({"serviceAccounts": accounts(32), "variables": variables(64)});
    let every = json!({"serviceAccounts": ["api"]});

    let fits = stage(json!([full, full]));
    assert!(matches!(plan_one_stage(&fits), StagePlan::Declare { .. }));
    let finding = stage_refusal(plan_one_stage(&stage(json!([full, full, every]))));
    assert_eq!(finding.reason, Reason::InvalidSpec);
    assert!(
        finding.message.contains("has 4097 pairs") && finding.message.contains("PREFIX_*"),
        "{}",
        finding.message
    );
    // An older resource of so many entries does not grant anything either.
    assert!(finding.reason.ends_access());
}

#[test]
fn a_stage_without_its_project_says_which_one_is_missing() {
    let stage = stage_from(json!({}));
    let finding = stage_refusal(plan_stage(&stage, None, [&stage], &organizations()));
    assert_eq!(finding.reason, Reason::ProjectNotFound);
    assert!(finding.message.contains("BarekeyProject backend"));
}

#[test]
fn a_stage_of_a_project_that_lost_its_slug_is_not_declared() {
    let stage = stage_from(json!({}));
    for reason in ["SlugTaken", "NotOwned"] {
        let project = project_from(json!({"status": {"conditions": [{
            "type": "Ready", "status": "False", "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"
        }]}}));
        let plan = plan_stage(&stage, Some(&project), [&stage], &organizations());
        assert_eq!(
            stage_refusal(plan).reason,
            Reason::ProjectNotReady,
            "{reason}"
        );
    }
}

#[test]
fn of_two_stages_of_one_slug_the_older_wins() {
    let older = stage_from(json!({
        "metadata": {"name": "a", "creationTimestamp": "2025-01-01T00:00:00Z"},
        "spec": {"slug": "production"}
    }));
    let younger = stage_from(json!({}));
    let project = project_from(json!({}));
    let plan = |stage| plan_stage(stage, Some(&project), [&younger, &older], &organizations());
    assert!(matches!(plan(&older), StagePlan::Declare { .. }));
    assert_eq!(stage_refusal(plan(&younger)).reason, Reason::SlugTaken);
}

#[test]
fn a_stage_of_another_project_does_not_take_the_slug() {
    let stage = stage_from(json!({}));
    let other = stage_from(json!({
        "metadata": {"name": "a", "creationTimestamp": "2025-01-01T00:00:00Z"},
        "spec": {"slug": "production", "project": "frontend"}
    }));
    let project = project_from(json!({}));
    assert!(matches!(
        plan_stage(&stage, Some(&project), [&stage, &other], &organizations()),
        StagePlan::Declare { .. }
    ));
}

#[test]
fn a_deleted_stage_is_found_by_its_path_when_its_project_went_first() {
    let stage = stage_from(with(
        deleting(true),
        json!({
            "spec": {"deletionPolicy": "Delete"},
            "status": {"path": "acme/backend/production"}
        }),
    ));
    let StagePlan::Delete { path, confirmed } =
        plan_stage(&stage, None, [&stage], &organizations())
    else {
        panic!("not deleted");
    };
    assert_eq!(path.to_string(), "acme/backend/production");
    assert!(!confirmed);
}

#[test]
fn a_deleted_stage_that_never_was_in_the_vault_goes() {
    let stage = stage_from(with(
        deleting(true),
        json!({"spec": {"deletionPolicy": "Delete"}}),
    ));
    assert!(matches!(
        plan_stage(&stage, None, [&stage], &organizations()),
        StagePlan::Release
    ));
}

#[test]
fn a_deleted_stage_whose_path_is_of_an_organization_that_is_not_allowed_goes_alone() {
    let stage = stage_from(with(
        deleting(true),
        json!({
            "spec": {"deletionPolicy": "Delete"},
            "status": {"path": "umbrella/backend/production"}
        }),
    ));
    assert!(matches!(plan_one_stage(&stage), StagePlan::Release));
}

#[test]
fn a_path_has_three_slugs() {
    assert!(StagePath::parse("a/b/c").is_some());
    for bad in ["", "a/b", "a/b/c/d", "a//c", "A/b/c"] {
        assert!(StagePath::parse(bad).is_none(), "{bad}");
    }
}
