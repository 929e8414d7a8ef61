//! What is said of it: reasons, messages and conditions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::*;
use crate::domain::declaration::{DeclarationRefusal, DeclaredProject, DeclaredStage, Deletion};

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
        Reason::OrganizationNotFound,
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
    for reason in [Reason::Ready, Reason::StorageUnavailable] {
        assert!(!reason.ends_access(), "{reason:?}");
    }
}
