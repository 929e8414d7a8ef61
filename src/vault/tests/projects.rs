//! Organizations, projects and stages.

use super::*;
use crate::vault::organizations::BootstrapError;
use crate::vault::projects::CreateError;

on_both_databases!(
    an_organization_is_made_once,
    projects_have_three_stages_and_slugs_are_unique,
);

async fn an_organization_is_made_once(place: Place) {
    let acme = Acme::on(&place).await;
    let again = acme
        .vault
        .bootstrap(&origin(), &"acme".parse().unwrap())
        .await;
    let Err(error @ BootstrapError::Exists { .. }) = again else {
        panic!("{again:?}");
    };
    assert!(error.to_string().contains("admin token create"));
    assert!(
        acme.vault
            .organization(&"acme".parse().unwrap())
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        acme.vault
            .organization(&"none".parse().unwrap())
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn projects_have_three_stages_and_slugs_are_unique(place: Place) {
    let acme = Acme::on(&place).await;
    let stages = acme
        .vault
        .list_stages(&acme.owner, &origin(), None, &"shop".parse().unwrap())
        .await
        .unwrap();
    let seen: Vec<_> = stages
        .iter()
        .map(|stage| (stage.slug.as_str(), stage.protected, stage.is_default))
        .collect();
    assert_eq!(
        seen,
        [
            ("development", false, true),
            ("staging", false, true),
            ("production", true, true)
        ]
    );
    let name = DisplayName::parse_project("Shop").unwrap();
    let taken = acme
        .vault
        .create_project(
            &acme.owner,
            &origin(),
            None,
            &name,
            Some(&"shop".parse().unwrap()),
        )
        .await;
    assert!(matches!(taken, Err(CreateError::SlugTaken(slug)) if slug == "shop"));
    place.clock.advance(1);
    let made = acme
        .vault
        .create_project(&acme.owner, &origin(), None, &name, None)
        .await
        .unwrap();
    assert!(made.slug.as_str().starts_with("shop-"), "{}", made.slug);
    let listed = acme
        .vault
        .list_projects(&acme.owner, &origin(), None)
        .await
        .unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0].slug, made.slug, "the newest comes first");
    let qa = DisplayName::parse_stage("QA 1").unwrap();
    let shop = "shop".parse().unwrap();
    let from = origin();
    let make = || {
        acme.vault
            .create_stage(&acme.owner, &from, None, &shop, &qa, None)
    };
    assert_eq!(make().await.unwrap().slug.as_str(), "qa-1");
    assert!(make().await.unwrap().slug.as_str().starts_with("qa-1-"));
    let slug = "qa-1".parse().unwrap();
    let taken = acme
        .vault
        .create_stage(&acme.owner, &origin(), None, &shop, &qa, Some(&slug))
        .await;
    assert!(matches!(taken, Err(CreateError::SlugTaken(_))));
}
