//! Several processes on one PostgreSQL.

use super::*;
use crate::domain::access::Refusal;
use crate::domain::variable::DeclaredType;
use crate::vault::credentials::AuthenticateError;

#[tokio::test]
async fn what_one_replica_changes_holds_at_once_on_the_other() {
    let place = Place::postgres().await;
    let here = Acme::on(&place).await;
    let there = place.open().await;
    here.write("development", vec![entry("A", "1")])
        .await
        .unwrap();
    let token = here.token(Role::Developer, None, None).await;
    let caller = known(&there, &token).await;
    assert_eq!(
        read(&there, &caller, "development", "A").await.unwrap(),
        "1"
    );
    for value in ["2", "3", "4"] {
        here.write("development", vec![entry("A", value)])
            .await
            .unwrap();
        assert_eq!(
            read(&there, &caller, "development", "A").await.unwrap(),
            value
        );
    }
    assert!(matches!(
        read(&there, &caller, "development", "B").await,
        Err(ReadError::NoVariable { .. })
    ));
    here.write("development", vec![entry("B", "b")])
        .await
        .unwrap();
    assert_eq!(
        read(&there, &caller, "development", "B").await.unwrap(),
        "b"
    );
    here.vault
        .revoke_token(&origin(), &"acme".parse().unwrap(), &token.id)
        .await
        .unwrap();
    assert!(matches!(
        read(&there, &caller, "development", "A").await,
        Err(ReadError::Refused(Refusal::CredentialEnded))
    ));
    let stage = target("shop", "development");
    assert!(matches!(
        there.list(&caller, &origin(), &stage).await,
        Err(ReadError::Refused(Refusal::CredentialEnded))
    ));
    assert!(there.list_projects(&caller, &origin(), None).await.is_err());
    let refused = there.authenticate(&presented(text(&token.token))).await;
    assert!(
        matches!(refused, Err(AuthenticateError::Unknown)),
        "{refused:?}"
    );
    assert_eq!(here.findings().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_token_that_another_replica_revoked_is_told_nothing() {
    let place = Place::postgres().await;
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    let other = place.open().await;
    let token = acme.token(Role::Admin, None, None).await;
    let admin = known(&other, &token).await;
    // What the other replica holds in memory is what it would answer of.
    assert_eq!(read(&other, &admin, "development", "A").await.unwrap(), "x");
    acme.vault
        .revoke_token(&origin(), &"acme".parse().unwrap(), &token.id)
        .await
        .unwrap();
    let typed = [Ask {
        name: "A".parse().unwrap(),
        declared_type: Some(DeclaredType::Json),
    }];
    for (stage, asks) in [
        ("development", [ask("NONE")]),
        ("development", typed),
        ("nowhere", [ask("A")]),
    ] {
        let stage = target("shop", stage);
        let refused = other
            .evaluate(&admin, &origin(), &stage, &asks, None)
            .await
            .unwrap_err();
        assert!(
            matches!(refused, ReadError::Refused(Refusal::CredentialEnded)),
            "{refused:?}"
        );
    }
    for (stage, value) in [
        ("development", "y"),
        ("development", "y\0"),
        ("nowhere", "y"),
        ("nowhere", "y\0"),
    ] {
        let refused = other
            .write(
                &admin,
                &origin(),
                &target("shop", stage),
                upsert(vec![entry("A", value)]),
            )
            .await
            .unwrap_err();
        assert!(
            matches!(refused, WriteError::Refused(Refusal::CredentialEnded)),
            "{stage} {value:?}: {refused:?}"
        );
    }
    assert_eq!(acme.count("read.refused").await, 3);
    assert_eq!(acme.count("write.refused").await, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_write_at_once_and_the_chain_stays_whole() {
    let place = Place::postgres().await;
    let here = Arc::new(Acme::on(&place).await);
    let there = Arc::new(Acme {
        vault: place.open().await,
        owner: here.owner.clone(),
    });
    let tasks: Vec<_> = (0..40)
        .map(|at| {
            let acme = Arc::clone(if at % 2 == 0 { &here } else { &there });
            tokio::spawn(async move {
                let stage = if at % 3 == 0 {
                    "development"
                } else {
                    "staging"
                };
                let name = format!("V{}", at % 5);
                acme.write(stage, vec![entry(&name, &at.to_string())])
                    .await
                    .unwrap();
                acme.read(stage, &name).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let report = here.vault.verify_audit(&[]).await.unwrap();
    assert_eq!(report.findings, Vec::<String>::new());
    assert_eq!(here.count("variables.written").await, 40);
    assert_eq!(here.count("variables.read").await, 40);
}

#[tokio::test]
async fn a_replica_that_vanished_inside_a_group_is_not_waited_for() {
    let acme = Acme::on(&Place::postgres().await).await;
    acme.write("development", vec![entry("KEY", "one")])
        .await
        .unwrap();
    let mut vanished = acme.intruder().await;
    vanished.begin().await.unwrap();
    let heads = "SELECT chain FROM audit_heads FOR UPDATE";
    vanished.rows(heads, cells![]).await.unwrap();
    let began = std::time::Instant::now();
    let refused = acme.write("development", vec![entry("KEY", "two")]).await;
    assert!(
        matches!(refused, Err(WriteError::Unavailable(_))),
        "{refused:?}"
    );
    assert!(began.elapsed().as_secs() < 18, "{:?}", began.elapsed());
    while acme
        .write("development", vec![entry("KEY", "three")])
        .await
        .is_err()
    {
        assert!(began.elapsed().as_secs() < 60, "its locks are still held");
    }
    // The server ended it: what it had locked is free, and it can do no more.
    assert!(vanished.commit().await.is_err());
    assert_eq!(acme.read("development", "KEY").await.unwrap(), "three");
    assert_eq!(acme.findings().await, Vec::<String>::new());
}
