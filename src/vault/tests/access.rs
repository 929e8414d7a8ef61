//! What roles, scopes and pods may not do, and what they are told.

use super::*;
use crate::domain::access::Refusal;
use crate::vault::projects::CreateError;

on_both_databases!(
    a_token_of_a_small_role_is_refused_and_the_refusal_is_recorded,
    the_record_of_a_refusal_keeps_few_names,
    a_refused_listing_is_recorded,
    a_refused_creation_is_recorded_though_its_caller_hung_up,
    variables_are_counted_to_those_who_may_list_them_alone,
    a_scoped_token_cannot_tell_what_is_there_outside_its_scope,
    a_role_that_sees_nothing_cannot_tell_which_stages_are_there,
    a_pod_has_no_business_on_the_other_routes,
    another_organizations_slug_is_refused,
);

async fn a_token_of_a_small_role_is_refused_and_the_refusal_is_recorded(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("production", vec![entry("A", "x")])
        .await
        .unwrap();
    let viewer = acme.caller(Role::Viewer, None, None).await;
    let developer = acme.caller(Role::Developer, None, None).await;
    let billing = acme.caller(Role::Billing, None, None).await;
    assert!(matches!(
        read(&acme.vault, &viewer, "production", "A").await,
        Err(ReadError::Refused(Refusal::RoleTooSmall { .. }))
    ));
    assert!(
        read(&acme.vault, &developer, "production", "A")
            .await
            .is_ok()
    );
    for stage in ["production", "nowhere"] {
        let refused = read(&acme.vault, &billing, stage, "A").await;
        assert!(
            matches!(
                refused,
                Err(ReadError::Refused(Refusal::RoleTooSmall { .. }))
            ),
            "{stage}: {refused:?}"
        );
    }
    for entries in [vec![entry("A", "y")], vec![entry("A", "y\0")]] {
        let stage = target("shop", "production");
        let refused = acme
            .vault
            .write(&developer, &origin(), &stage, upsert(entries))
            .await;
        assert!(
            matches!(refused, Err(WriteError::Refused(_))),
            "{refused:?}"
        );
    }
    let name = DisplayName::parse_stage("QA").unwrap();
    let refused = acme
        .vault
        .create_stage(
            &developer,
            &origin(),
            None,
            &"shop".parse().unwrap(),
            &name,
            None,
        )
        .await;
    assert!(
        matches!(refused, Err(CreateError::Refused(_))),
        "{refused:?}"
    );
    assert_eq!(acme.read("production", "A").await.unwrap(), "x");
    assert_eq!(acme.count("read.refused").await, 3);
    assert_eq!(acme.count("write.refused").await, 3);
    assert_eq!(acme.count("variables.read").await, 2);
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn the_record_of_a_refusal_keeps_few_names(place: Place) {
    let acme = Acme::on(&place).await;
    let billing = acme.caller(Role::Billing, None, None).await;
    let operator = acme.caller(Role::Operator, None, None).await;
    let stage = target("shop", "development");
    let names: Vec<String> = (0..1000).map(|at| format!("NAME_{at}")).collect();
    let asks: Vec<Ask> = names.iter().map(|name| ask(name)).collect();
    let entries = || names.iter().map(|name| entry(name, "x")).collect();
    let read = acme
        .vault
        .evaluate(&billing, &origin(), &stage, &asks, None)
        .await;
    assert!(matches!(read, Err(ReadError::Refused(_))), "{read:?}");
    for caller in [&billing, &operator] {
        let written = acme
            .vault
            .write(caller, &origin(), &stage, upsert(entries()))
            .await;
        assert!(
            matches!(written, Err(WriteError::Refused(_))),
            "{written:?}"
        );
    }
    let mut db = acme.intruder().await;
    let statement =
        "SELECT names, detail FROM audit_records WHERE outcome = 'refused' ORDER BY sequence";
    let rows = db.rows(statement, cells![]).await.unwrap();
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert_eq!(
            row.text(0).unwrap().lines().collect::<Vec<_>>(),
            names[..16]
        );
        assert!(row.text(1).unwrap().ends_with("of 1000 names are kept)"));
    }
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn a_refused_listing_is_recorded(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    let billing = acme.caller(Role::Billing, None, None).await;
    let scoped = acme
        .caller(Role::Admin, Some("shop"), Some("development"))
        .await;
    let project = "shop".parse().unwrap();
    let none = "none".parse().unwrap();
    assert!(
        vault
            .list_projects(&billing, &origin(), None)
            .await
            .is_err()
    );
    for (caller, project) in [(&billing, &project), (&scoped, &none)] {
        let refused = vault.list_stages(caller, &origin(), None, project).await;
        assert!(refused.is_err());
    }
    for stage in ["staging", "nowhere"] {
        let stage = target("shop", stage);
        assert!(vault.list(&scoped, &origin(), &stage).await.is_err());
    }
    let mut db = acme.intruder().await;
    let rows = db
        .rows(
            "SELECT COALESCE(project, '-'), COALESCE(stage, '-') FROM audit_records WHERE action = 'read.refused'
              ORDER BY sequence",
            cells![],
        )
        .await
        .unwrap();
    let places: Vec<_> = rows
        .iter()
        .map(|row| [0, 1].map(|at| row.text(at).unwrap()))
        .collect();
    assert_eq!(
        places,
        [
            ["-", "-"],
            ["shop", "-"],
            ["none", "-"],
            ["shop", "staging"],
            ["shop", "nowhere"]
        ]
    );
    // What is allowed is not recorded.
    assert!(vault.list_projects(&scoped, &origin(), None).await.is_ok());
    assert_eq!(acme.count("read.refused").await, 5);
}

async fn a_refused_creation_is_recorded_though_its_caller_hung_up(place: Place) {
    let acme = Acme::on(&place).await;
    let developer = acme.caller(Role::Developer, None, None).await;
    let name = DisplayName::parse_stage("QA").unwrap();
    let (origin, project) = (origin(), "shop".parse().unwrap());
    {
        let creation = acme
            .vault
            .create_stage(&developer, &origin, None, &project, &name, None);
        let mut creation = std::pin::pin!(creation);
        assert!(futures::poll!(&mut creation).is_pending());
    }
    // What was asked before is done before.
    acme.vault.check().await.unwrap();
    assert_eq!(acme.count("write.refused").await, 1);
}

async fn variables_are_counted_to_those_who_may_list_them_alone(place: Place) {
    let acme = Acme::on(&place).await;
    for (stage, count) in [("development", 1), ("staging", 2), ("production", 4)] {
        let entries = (0..count).map(|at| entry(&format!("V{at}"), "x")).collect();
        acme.write(stage, entries).await.unwrap();
    }
    let project = "shop".parse().unwrap();
    let counts = async |caller: &Caller| {
        let projects = acme.vault.list_projects(caller, &origin(), None).await;
        let stages = acme
            .vault
            .list_stages(caller, &origin(), None, &project)
            .await;
        let stages: Vec<i64> = stages
            .unwrap()
            .iter()
            .map(|stage| stage.variables)
            .collect();
        (projects.unwrap()[0].variables, stages)
    };
    let viewer = acme.caller(Role::Viewer, None, None).await;
    let staging = acme
        .caller(Role::Viewer, Some("shop"), Some("staging"))
        .await;
    let production = acme
        .caller(Role::Viewer, Some("shop"), Some("production"))
        .await;
    let (all, mut each) = counts(&acme.owner).await;
    each.sort_unstable();
    assert_eq!((all, each), (7, vec![1, 2, 4]));
    let (all, mut each) = counts(&viewer).await;
    each.sort_unstable();
    assert_eq!((all, each), (3, vec![0, 1, 2]));
    assert_eq!(counts(&staging).await, (2, vec![2]));
    assert_eq!(counts(&production).await, (0, vec![0]));
}

async fn a_scoped_token_cannot_tell_what_is_there_outside_its_scope(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("staging", vec![entry("A", "x")]).await.unwrap();
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    let scoped = acme
        .caller(Role::Admin, Some("shop"), Some("development"))
        .await;
    let of_project = acme.caller(Role::Admin, Some("shop"), None).await;
    assert!(read(&acme.vault, &scoped, "development", "A").await.is_ok());
    let mut answers = Vec::new();
    for (project, stage, name) in [
        ("shop", "staging", "A"),
        ("shop", "staging", "NONE"),
        ("shop", "nowhere", "A"),
        ("none", "nowhere", "A"),
    ] {
        let stage = target(project, stage);
        let refused = acme
            .vault
            .evaluate(&scoped, &origin(), &stage, &[ask(name)], None)
            .await;
        answers.push(format!("{refused:?}"));
        let refused = acme.vault.pull(&scoped, &origin(), &stage, None).await;
        answers.push(format!("{refused:?}"));
        let refused = acme.vault.list(&scoped, &origin(), &stage).await;
        answers.push(format!("{refused:?}"));
        let refused = acme
            .vault
            .write(&scoped, &origin(), &stage, upsert(vec![entry("A", "y")]))
            .await;
        answers.push(format!("{refused:?}"));
    }
    answers.dedup();
    assert_eq!(answers, ["Err(Refused(OutOfScope))"]);
    let elsewhere = acme
        .vault
        .evaluate(
            &of_project,
            &origin(),
            &target("none", "x"),
            &[ask("A")],
            None,
        )
        .await;
    assert!(matches!(
        elsewhere,
        Err(ReadError::Refused(Refusal::OutOfScope))
    ));
    assert!(matches!(
        read(&acme.vault, &of_project, "nowhere", "A").await,
        Err(ReadError::NoEnvironment { .. })
    ));
    let listed = acme
        .vault
        .list_stages(&scoped, &origin(), None, &"shop".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        acme.vault
            .list_projects(&scoped, &origin(), None)
            .await
            .unwrap()
            .len(),
        1
    );
}

async fn a_role_that_sees_nothing_cannot_tell_which_stages_are_there(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    let of_organization = acme.caller(Role::Billing, None, None).await;
    let of_project = acme.caller(Role::Billing, Some("shop"), None).await;
    for caller in [&of_organization, &of_project] {
        let mut answers: [Vec<String>; 4] = Default::default();
        for stage in ["development", "production", "nowhere"] {
            let stage = target("shop", stage);
            let write = async |value: &str| {
                let write = upsert(vec![entry("A", value)]);
                acme.vault.write(caller, &origin(), &stage, write).await
            };
            let read = acme
                .vault
                .evaluate(caller, &origin(), &stage, &[ask("A")], None)
                .await;
            answers[0].push(read.unwrap_err().to_string());
            answers[1].push(write("y").await.unwrap_err().to_string());
            answers[1].push(write("y\0").await.unwrap_err().to_string());
            let listed = acme.vault.list(caller, &origin(), &stage).await;
            answers[2].push(listed.unwrap_err().to_string());
            let pulled = acme.vault.pull(caller, &origin(), &stage, None).await;
            answers[3].push(pulled.unwrap_err().to_string());
        }
        for (answers, act) in answers.iter_mut().zip(["read", "write", "list", "read"]) {
            answers.dedup();
            assert_eq!(answers.len(), 1, "{answers:?}");
            let says = format!("the role billing may not {act} ");
            assert!(answers[0].starts_with(&says), "{answers:?}");
        }
    }
    let stage = target("none", "development");
    assert!(matches!(
        acme.vault.list(&of_project, &origin(), &stage).await,
        Err(ReadError::Refused(Refusal::OutOfScope))
    ));
}

async fn a_pod_has_no_business_on_the_other_routes(place: Place) {
    let acme = Acme::on(&place).await;
    let pod = Caller::Pod(pod("shop", "api", Vec::new()));
    assert!(matches!(
        read(&acme.vault, &pod, "development", "A").await,
        Err(ReadError::Refused(Refusal::PodElsewhere))
    ));
    let stage = target("shop", "development");
    let refused = acme
        .vault
        .write(&pod, &origin(), &stage, upsert(vec![entry("A", "x")]))
        .await;
    assert!(matches!(
        refused,
        Err(WriteError::Refused(Refusal::PodElsewhere))
    ));
    assert!(acme.vault.list(&pod, &origin(), &stage).await.is_err());
}

async fn another_organizations_slug_is_refused(place: Place) {
    let acme = Acme::on(&place).await;
    let mut elsewhere = target("shop", "development");
    elsewhere.organization = Some("other".parse().unwrap());
    let refused = acme
        .vault
        .evaluate(&acme.owner, &origin(), &elsewhere, &[ask("A")], None)
        .await;
    assert!(matches!(
        refused,
        Err(ReadError::Refused(Refusal::OtherOrganization))
    ));
    let mut own = target("shop", "development");
    own.organization = Some("acme".parse().unwrap());
    assert!(acme.vault.list(&acme.owner, &origin(), &own).await.is_ok());
}
