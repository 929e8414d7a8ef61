//! Tokens: made, recognised, revoked, forged.

use super::*;
use crate::domain::access::Refusal;
use crate::vault::credentials::{AuthenticateError, CreateTokenError, RevokeTokenError};
use crate::vault::projects::CreateError;

on_both_databases!(
    an_unknown_a_revoked_and_an_expired_token_read_the_same,
    a_revoked_token_is_none_even_while_it_is_used,
    a_planted_or_altered_token_row_is_no_credential,
    tokens_name_what_is_missing,
);

async fn an_unknown_a_revoked_and_an_expired_token_read_the_same(place: Place) {
    let acme = Acme::on(&place).await;
    let unknown = |bearer: String| {
        let vault = acme.vault.clone();
        async move {
            let refused = vault.authenticate(&PresentedToken::new(bearer)).await;
            assert!(
                matches!(refused, Err(AuthenticateError::Unknown)),
                "{refused:?}"
            );
        }
    };
    unknown(String::new()).await;
    unknown("bk_api_".to_owned()).await;
    unknown("a.b.c".to_owned()).await;
    unknown(format!("bk_api_{}", "A".repeat(43))).await;

    let token = acme.token(Role::Viewer, None, None).await;
    known(&acme.vault, &token).await;
    acme.vault
        .revoke_token(&origin(), &"acme".parse().unwrap(), &token.id)
        .await
        .unwrap();
    unknown(text(&token.token).to_owned()).await;

    let request = TokenRequest {
        organization: "acme".parse().unwrap(),
        name: "short".to_owned(),
        role: Role::Viewer,
        project: None,
        stage: None,
        expires_at_ms: Some(place.clock.now_ms() + 10_000),
    };
    let token = acme.vault.create_token(&origin(), &request).await.unwrap();
    known(&acme.vault, &token).await;
    place.clock.advance(10_000);
    unknown(text(&token.token).to_owned()).await;
    let late = acme.vault.create_token(&origin(), &request).await;
    assert!(matches!(late, Err(CreateTokenError::AlreadyExpired)));
}

async fn a_revoked_token_is_none_even_while_it_is_used(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    let token = acme.token(Role::Admin, None, None).await;
    let caller = known(&acme.vault, &token).await;
    assert!(read(&acme.vault, &caller, "development", "A").await.is_ok());
    acme.vault
        .revoke_token(&origin(), &"acme".parse().unwrap(), &token.id)
        .await
        .unwrap();
    assert!(matches!(
        read(&acme.vault, &caller, "development", "A").await,
        Err(ReadError::Refused(Refusal::CredentialEnded))
    ));
    let stage = target("shop", "development");
    let refused = acme
        .vault
        .write(&caller, &origin(), &stage, upsert(vec![entry("A", "y")]))
        .await;
    assert!(matches!(
        refused,
        Err(WriteError::Refused(Refusal::CredentialEnded))
    ));
    let name = DisplayName::parse_project("P").unwrap();
    let refused = acme
        .vault
        .create_project(&caller, &origin(), None, &name, None)
        .await;
    assert!(matches!(
        refused,
        Err(CreateError::Refused(Refusal::CredentialEnded))
    ));
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
}

async fn a_planted_or_altered_token_row_is_no_credential(place: Place) {
    let acme = Acme::on(&place).await;
    let token = acme.token(Role::Viewer, None, None).await;
    known(&acme.vault, &token).await;
    acme.tamper("UPDATE api_tokens SET role = 'owner' WHERE role = 'viewer'")
        .await;
    let refused = acme
        .vault
        .authenticate(&presented(text(&token.token)))
        .await;
    assert!(
        matches!(refused, Err(AuthenticateError::Unknown)),
        "{refused:?}"
    );
    let findings = acme.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].contains(token.id.as_str()), "{findings:?}");

    // A row whose MAC an attacker computed without the token key.
    acme.tamper(
        "INSERT INTO api_tokens (id, organization_id, name, role, mac, seal, created_at, epoch)
         SELECT 'tok_planted', id, 'x', 'owner', mac, mac, 0, 1
           FROM (SELECT o.id, h.mac FROM organizations o JOIN audit_heads h ON h.chain = o.id) planted",
    )
    .await;
    let findings = acme.findings().await;
    assert!(
        findings.iter().any(|found| found.contains("tok_planted")),
        "{findings:?}"
    );
}

async fn tokens_name_what_is_missing(place: Place) {
    let acme = Acme::on(&place).await;
    let request = |organization: &str, project: Option<&str>, stage: Option<&str>| TokenRequest {
        organization: organization.parse().unwrap(),
        name: "ci".to_owned(),
        role: Role::Viewer,
        project: project.map(|slug| slug.parse().unwrap()),
        stage: stage.map(|slug| slug.parse().unwrap()),
        expires_at_ms: None,
    };
    let vault = &acme.vault;
    let made = |request: TokenRequest| async move { vault.create_token(&origin(), &request).await };
    assert!(matches!(
        made(request("none", None, None)).await,
        Err(CreateTokenError::NoOrganization(_))
    ));
    assert!(matches!(
        made(request("acme", Some("none"), None)).await,
        Err(CreateTokenError::NoProject(_))
    ));
    assert!(matches!(
        made(request("acme", Some("shop"), Some("none"))).await,
        Err(CreateTokenError::NoStage(_))
    ));
    assert!(matches!(
        vault
            .revoke_token(
                &origin(),
                &"acme".parse().unwrap(),
                &"tok_none".parse().unwrap()
            )
            .await,
        Err(RevokeTokenError::NoToken(_))
    ));
}
