//! What is decided, and what is said of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::{Value, json};

use super::*;
use crate::domain::declaration::{DeclarationRefusal, DeclaredProject, DeclaredStage, Deletion};

fn organizations() -> Organizations {
    r#"{"acme":{"namespaces":["shop"]}}"#.parse().unwrap()
}

fn project_from(change: Value) -> BarekeyProject {
    let mut object = json!({
        "apiVersion": "barekey.dev/v1alpha1",
        "kind": "BarekeyProject",
        "metadata": {
            "name": "backend", "namespace": "shop", "uid": "1", "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z"
        },
        "spec": {"organization": "acme"}
    });
    merge(&mut object, change);
    serde_json::from_value(object).unwrap()
}

fn stage_from(change: Value) -> BarekeyStage {
    let mut object = json!({
        "apiVersion": "barekey.dev/v1alpha1",
        "kind": "BarekeyStage",
        "metadata": {
            "name": "production", "namespace": "shop", "uid": "2", "generation": 5,
            "creationTimestamp": "2026-01-01T00:00:00Z"
        },
        "spec": {"project": "backend"}
    });
    merge(&mut object, change);
    serde_json::from_value(object).unwrap()
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (key, value) in change {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, change) => *into = change,
    }
}

fn deleting(finalizer: bool) -> Value {
    json!({"metadata": {
        "deletionTimestamp": "2026-01-02T00:00:00Z",
        "finalizers": if finalizer { vec![FINALIZER] } else { vec![] }
    }})
}

fn with(mut first: Value, second: Value) -> Value {
    merge(&mut first, second);
    first
}

fn refusal(plan: ProjectPlan) -> Finding {
    match plan {
        ProjectPlan::Refuse { finding, .. } => finding,
        other => panic!("{other:?}"),
    }
}

fn stage_refusal(plan: StagePlan) -> Finding {
    match plan {
        StagePlan::Refuse { finding, .. } => finding,
        other => panic!("{other:?}"),
    }
}

fn plan_one(project: &BarekeyProject) -> ProjectPlan {
    plan_project(project, [project], &organizations())
}

fn plan_one_stage(stage: &BarekeyStage) -> StagePlan {
    let project = project_from(json!({}));
    plan_stage(stage, Some(&project), [stage], &organizations())
}

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
fn access_that_was_declared_elsewhere_ends_when_the_project_is_remade_under_another_slug() {
    let path = |project: &str| StagePath {
        organization: "acme".parse().unwrap(),
        project: project.parse().unwrap(),
        slug: "production".parse().unwrap(),
    };
    let declared = json!({"status": {"id": "stg_1", "path": "acme/backend/production"}});
    let stage = stage_from(declared);
    assert!(!may_have_moved(&stage, &path("backend")));
    assert!(may_have_moved(&stage, &path("backend-2")));
    for unsaid in [
        json!({}),
        json!({"status": {"path": "acme/backend/production"}}),
        json!({"status": {"id": "stg_1"}}),
    ] {
        assert!(may_have_moved(&stage_from(unsaid), &path("backend")));
    }
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

#[test]
fn a_missing_organization_comes_with_the_command_that_makes_it() {
    let command = bootstrap_command(
        &"barekey".parse().unwrap(),
        "service/barekey",
        &"acme".parse().unwrap(),
    );
    let answer = Answer::Refused(DeclarationRefusal::NoOrganization("acme".parse().unwrap()));
    let finding = judge_project(&answer, &command);
    assert_eq!(finding.reason, Reason::OrganizationNotFound);
    assert!(finding.message.contains(
        "kubectl exec -n barekey service/barekey -- /barekey-operator admin bootstrap --organization acme"
    ));
}

#[test]
fn a_foreign_slug_does_not_say_whose_it_is() {
    let answer = Answer::Refused(DeclarationRefusal::NotOwned {
        what: "the project shop".to_owned(),
        owner: "another namespace",
    });
    let finding = judge_project(&answer, "");
    assert_eq!(finding.reason, Reason::NotOwned);
    assert_eq!(
        finding.message,
        "the project shop belongs to another namespace: make this resource anew with another slug"
    );
}

#[test]
fn variables_that_would_be_lost_wait_for_the_annotation() {
    assert_eq!(judge_deletion(&Deletion::Done, "production"), None);
    let finding =
        judge_deletion(&Deletion::NeedsConfirmation { variables: 2 }, "production").unwrap();
    assert_eq!(finding.reason, Reason::AwaitingConfirmation);
    assert!(
        finding
            .message
            .contains("barekey.dev/confirm-delete: production")
    );
    assert!(finding.message.starts_with("2 variables would"));
    let one = Deletion::NeedsConfirmation { variables: 1 };
    let finding = judge_deletion(&one, "production").unwrap();
    assert!(finding.message.starts_with("1 variable would"));
}

fn time(text: &str) -> Time {
    Time(text.parse().unwrap())
}

fn summary(conditions: &[Condition]) -> Vec<(&str, &str, &str)> {
    conditions
        .iter()
        .map(|condition| {
            (
                condition.type_.as_str(),
                condition.status.as_str(),
                condition.reason.as_str(),
            )
        })
        .collect()
}

#[test]
fn ready_waiting_and_stuck_read_as_kstatus_expects() {
    let conditions_of = |reason| {
        let status = project_status(
            &project_from(json!({})),
            &Finding::new(reason, "m"),
            None,
            time("2026-01-01T00:00:00Z"),
        );
        assert_eq!(status.observed_generation, Some(3));
        status.conditions
    };
    assert_eq!(
        summary(&conditions_of(Reason::Ready)),
        [
            ("Ready", "True", "Ready"),
            ("Reconciling", "False", "Ready"),
            ("Stalled", "False", "Ready")
        ]
    );
    assert_eq!(
        summary(&conditions_of(Reason::OrganizationNotFound)),
        [
            ("Ready", "False", "OrganizationNotFound"),
            ("Reconciling", "True", "OrganizationNotFound"),
            ("Stalled", "False", "OrganizationNotFound")
        ]
    );
    assert_eq!(
        summary(&conditions_of(Reason::NotOwned)),
        [
            ("Ready", "False", "NotOwned"),
            ("Reconciling", "False", "NotOwned"),
            ("Stalled", "True", "NotOwned")
        ]
    );
}

#[test]
fn the_time_of_a_condition_changes_with_its_status_alone() {
    let project = project_from(json!({}));
    let first = time("2026-01-01T00:00:00Z");
    let later = time("2026-01-01T01:00:00Z");
    let waiting = Finding::new(Reason::OrganizationNotFound, "m");
    let status = project_status(&project, &waiting, None, first.clone());
    let mut again = project.clone();
    again.status = Some(status.clone());
    let unavailable = Finding::new(Reason::StorageUnavailable, "n");
    let next = project_status(&again, &unavailable, None, later.clone());
    assert!(
        next.conditions
            .iter()
            .all(|one| one.last_transition_time == first)
    );
    again.status = Some(next);
    let ready = project_status(
        &again,
        &Finding::new(Reason::Ready, "m"),
        None,
        later.clone(),
    );
    let times: Vec<_> = ready
        .conditions
        .iter()
        .map(|one| one.last_transition_time.clone())
        .collect();
    assert_eq!(times, [later.clone(), later, first]);
}

#[test]
fn the_same_finding_makes_the_same_status_so_that_nothing_is_written() {
    let declared = DeclaredStage {
        id: "stg_1".parse().unwrap(),
        revision: 4,
        variables: 2,
        protected: true,
    };
    let path = StagePath::parse("acme/backend/production").unwrap();
    let finding = Finding::new(Reason::Ready, "m");
    let mut stage = stage_from(json!({}));
    let first = stage_status(
        &stage,
        &finding,
        Some((&path, &declared)),
        time("2026-01-01T00:00:00Z"),
    );
    stage.status = Some(first.clone());
    let second = stage_status(
        &stage,
        &finding,
        Some((&path, &declared)),
        time("2026-01-01T05:00:00Z"),
    );
    assert_eq!(first, second);
}

#[test]
fn what_the_vault_said_is_kept_while_it_cannot_be_asked_and_dropped_when_it_is_not_ours() {
    let stage = stage_from(json!({"status": {"id": "stg_1", "path": "a/b/c", "revision": 7}}));
    let after = |reason| {
        stage_status(
            &stage,
            &Finding::new(reason, "m"),
            None,
            time("2026-01-01T00:00:00Z"),
        )
    };
    assert_eq!(after(Reason::StorageUnavailable).revision, Some(7));
    assert_eq!(
        after(Reason::AwaitingConfirmation).id.as_deref(),
        Some("stg_1")
    );
    assert_eq!(after(Reason::SlugTaken).id, None);
    assert_eq!(after(Reason::NotOwned).path, None);
}

#[test]
fn a_status_names_at_most_a_hundred_stages_and_counts_all() {
    let declared = DeclaredProject {
        id: "prj_1".parse().unwrap(),
        stages: (0..150).map(|n| format!("s{n}").parse().unwrap()).collect(),
        key_version: 1,
        key_created_at_ms: 1_767_225_600_123,
    };
    let status = project_status(
        &project_from(json!({})),
        &Finding::new(Reason::Ready, "m"),
        Some(&declared),
        time("2026-01-01T00:00:00Z"),
    );
    assert_eq!(status.stages.len(), 100);
    assert_eq!(status.stage_count, Some(150));
    assert_eq!(status.key_created_at, Some(time("2026-01-01T00:00:00Z")));
}

#[test]
fn access_ends_unless_the_resource_counts_or_nothing_can_be_said_of_it() {
    for reason in [
        Reason::OrganizationNotAllowed,
        Reason::NotOwned,
        Reason::SlugTaken,
        Reason::ProjectNotFound,
        Reason::ProjectNotReady,
        Reason::AwaitingConfirmation,
        Reason::InvalidSpec,
    ] {
        assert!(reason.ends_access(), "{reason:?}");
    }
    for reason in [
        Reason::Ready,
        Reason::StorageUnavailable,
        Reason::OrganizationNotFound,
    ] {
        assert!(!reason.ends_access(), "{reason:?}");
    }
}
