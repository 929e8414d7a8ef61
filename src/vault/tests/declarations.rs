//! What resources declare, who owns it, and how it goes.

use super::*;
use crate::vault::credentials::AuthenticateError;
use crate::vault::declarations::{DeclarationRefusal, DeclareError, Deletion, StageOwner};

on_both_databases!(
    a_namespace_owns_what_it_declared_first,
    access_counts_from_the_owner_and_ends_with_its_resource,
    access_of_a_resource_that_declares_another_stage_now_ends,
    deletion_waits_for_a_confirmation,
    what_was_retained_is_adopted,
);

async fn a_namespace_owns_what_it_declared_first(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    let mut backend = project_declaration("team-a", "backend");
    let made = vault.declare_project(&backend).await.unwrap();
    let stages: Vec<_> = made.stages.iter().map(ToString::to_string).collect();
    assert_eq!(stages, ["development", "staging", "production"]);
    assert_eq!(made.key_version, 1);
    assert_eq!(vault.declare_project(&backend).await.unwrap(), made);
    backend.name = Some(DisplayName::parse_project("Back end").unwrap());
    assert_eq!(vault.declare_project(&backend).await.unwrap(), made);

    let foreign = vault
        .declare_project(&project_declaration("team-b", "backend"))
        .await;
    let Err(DeclareError::Refused(DeclarationRefusal::NotOwned { what, owner })) = foreign else {
        panic!("{foreign:?}");
    };
    assert_eq!(
        (what.as_str(), owner),
        ("the project backend", "another namespace")
    );
    let over_http = vault
        .declare_project(&project_declaration("team-a", "shop"))
        .await;
    assert!(
        matches!(over_http, Err(DeclareError::Refused(DeclarationRefusal::NotOwned { owner, .. })) if owner.starts_with("nobody")),
    );
    let mut nowhere = project_declaration("team-a", "x");
    nowhere.organization = "none".parse().unwrap();
    assert!(matches!(
        vault.declare_project(&nowhere).await,
        Err(DeclareError::Refused(DeclarationRefusal::NoOrganization(_)))
    ));

    let custom = stage_declaration("team-a", "backend", "qa", &[]);
    let made = vault.declare_stage(&custom).await.unwrap();
    assert_eq!((made.revision, made.protected), (0, false));
    let adopted = stage_declaration("team-a", "backend", "production", &[]);
    assert!(vault.declare_stage(&adopted).await.unwrap().protected);
    for (namespace, project, slug) in [
        ("team-b", "backend", "production"),
        ("team-b", "backend", "new"),
        ("team-a", "shop", "development"),
    ] {
        let refused = vault
            .declare_stage(&stage_declaration(namespace, project, slug, &["thief"]))
            .await;
        assert!(
            matches!(
                refused,
                Err(DeclareError::Refused(DeclarationRefusal::NotOwned { .. }))
            ),
            "{refused:?}"
        );
    }
    assert!(matches!(
        vault
            .declare_stage(&stage_declaration("team-a", "none", "qa", &[]))
            .await,
        Err(DeclareError::Refused(DeclarationRefusal::NoProject(_)))
    ));
    assert_eq!(vault.stages_with_access().await.unwrap(), []);
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn access_counts_from_the_owner_and_ends_with_its_resource(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    vault
        .declare_project(&project_declaration("team-a", "backend"))
        .await
        .unwrap();
    let mut declaration = stage_declaration("team-a", "backend", "production", &["api", "web"]);
    declaration.protected = Some(false);
    let stage = vault.declare_stage(&declaration).await.unwrap();
    assert!(!stage.protected);
    let head = || async { vault.audit_heads().await.unwrap() };
    let before = head().await;
    assert_eq!(vault.declare_stage(&declaration).await.unwrap(), stage);
    assert_eq!(
        head().await,
        before,
        "declaring the same again changes nothing"
    );
    let owners = vault.stages_with_access().await.unwrap();
    assert_eq!(
        owners,
        [StageOwner {
            stage: stage.id.clone(),
            namespace: "team-a".parse().unwrap(),
            resource: "backend-production".parse().unwrap(),
        }]
    );
    let foreign = "team-b".parse().unwrap();
    vault
        .withdraw_access(&foreign, &declaration.resource)
        .await
        .unwrap();
    assert_eq!(vault.stages_with_access().await.unwrap().len(), 1);
    for _ in 0..2 {
        vault
            .withdraw_access(&declaration.namespace, &declaration.resource)
            .await
            .unwrap();
        assert_eq!(vault.stages_with_access().await.unwrap(), []);
    }
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn access_of_a_resource_that_declares_another_stage_now_ends(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    let mut stages = Vec::new();
    for project in ["backend", "backend-2"] {
        vault
            .declare_project(&project_declaration("team-a", project))
            .await
            .unwrap();
        let mut declaration = stage_declaration("team-a", project, "production", &["api"]);
        declaration.resource = "production".parse().unwrap();
        stages.push(vault.declare_stage(&declaration).await.unwrap().id);
    }
    let neighbour = stage_declaration("team-a", "backend", "staging", &["api"]);
    stages.push(vault.declare_stage(&neighbour).await.unwrap().id);
    for _ in 0..2 {
        vault
            .withdraw_access_elsewhere(
                &"team-a".parse().unwrap(),
                &"production".parse().unwrap(),
                &stages[1],
            )
            .await
            .unwrap();
        let owners = vault.stages_with_access().await.unwrap();
        let mut left: Vec<_> = owners.into_iter().map(|owner| owner.stage).collect();
        left.sort();
        let mut wanted = stages[1..].to_vec();
        wanted.sort();
        assert_eq!(left, wanted);
    }
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn deletion_waits_for_a_confirmation(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    vault
        .declare_project(&project_declaration("team-a", "backend"))
        .await
        .unwrap();
    let stage = target("backend", "development");
    vault
        .write(
            &acme.owner,
            &origin(),
            &stage,
            upsert(vec![entry("A", "x")]),
        )
        .await
        .unwrap();
    let request = TokenRequest {
        organization: "acme".parse().unwrap(),
        name: "ci".to_owned(),
        role: Role::Viewer,
        project: Some("backend".parse().unwrap()),
        stage: Some("development".parse().unwrap()),
        expires_at_ms: None,
    };
    let token = vault.create_token(&origin(), &request).await.unwrap();
    known(vault, &token).await;
    let delete_stage = |namespace: &'static str, confirmed| {
        let vault = vault.clone();
        async move {
            vault
                .delete_declared_stage(
                    &namespace.parse().unwrap(),
                    &"acme".parse().unwrap(),
                    &"backend".parse().unwrap(),
                    &"development".parse().unwrap(),
                    confirmed,
                )
                .await
                .unwrap()
        }
    };
    let delete_project = |confirmed| {
        let vault = vault.clone();
        async move {
            vault
                .delete_declared_project(
                    &"team-a".parse().unwrap(),
                    &"acme".parse().unwrap(),
                    &"backend".parse().unwrap(),
                    confirmed,
                )
                .await
                .unwrap()
        }
    };
    assert_eq!(delete_stage("team-b", true).await, Deletion::Done);
    let waits = Deletion::NeedsConfirmation { variables: 1 };
    assert_eq!(delete_stage("team-a", false).await, waits);
    assert_eq!(delete_project(false).await, waits);
    assert!(vault.list(&acme.owner, &origin(), &stage).await.is_ok());
    assert_eq!(delete_stage("team-a", true).await, Deletion::Done);
    assert_eq!(delete_stage("team-a", true).await, Deletion::Done);
    assert!(matches!(
        vault.pull(&acme.owner, &origin(), &stage, None).await,
        Err(ReadError::NoEnvironment { .. })
    ));
    let refused = vault.authenticate(&presented(text(&token.token))).await;
    assert!(matches!(refused, Err(AuthenticateError::Unknown)));
    let project = vault
        .declare_project(&project_declaration("team-a", "backend"))
        .await
        .unwrap();
    assert_eq!(
        project.stages.len(),
        2,
        "a deleted default stage is not made again"
    );
    assert_eq!(delete_project(false).await, Deletion::Done);
    assert_eq!(delete_project(false).await, Deletion::Done);
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn what_was_retained_is_adopted(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    let project = project_declaration("team-a", "backend");
    vault.declare_project(&project).await.unwrap();
    let declaration = stage_declaration("team-a", "backend", "qa", &["api"]);
    let made = vault.declare_stage(&declaration).await.unwrap();
    let stage = target("backend", "qa");
    vault
        .write(
            &acme.owner,
            &origin(),
            &stage,
            upsert(vec![entry("A", "kept")]),
        )
        .await
        .unwrap();
    vault
        .withdraw_access(&declaration.namespace, &declaration.resource)
        .await
        .unwrap();
    let mut renamed = declaration.clone();
    renamed.resource = "another-name".parse().unwrap();
    vault.declare_project(&project).await.unwrap();
    let again = vault.declare_stage(&renamed).await.unwrap();
    assert_eq!(again.id, made.id);
    assert_eq!((again.variables, again.revision), (1, 1));
    assert_eq!(vault.stages_with_access().await.unwrap().len(), 1);
    assert_eq!(acme.findings().await, Vec::<String>::new());
}
