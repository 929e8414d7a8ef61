//! What is sealed, and whom the wrong key or an altered row is told to.

use super::*;
use crate::vault::authority::{Authority, AuthorityError};

on_both_databases!(
    an_altered_envelope_is_refused_and_recorded_and_others_are_served,
    what_stands_beside_an_envelope_is_authenticated,
    an_envelope_moved_to_another_stage_does_not_open,
    the_wrong_master_key_names_both_ids,
    an_altered_key_row_is_refused_by_name,
    the_first_authority_stays,
);

async fn an_altered_envelope_is_refused_and_recorded_and_others_are_served(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x"), entry("B", "y")])
        .await
        .unwrap();
    acme.tamper(
        "UPDATE variable_versions SET envelope_a = REPLACE(envelope_a, 'xcp1.', 'xcp1.A') WHERE name = 'A'",
    )
    .await;
    assert!(matches!(
        acme.read("development", "A").await,
        Err(ReadError::Altered { name }) if name.as_str() == "A"
    ));
    assert_eq!(acme.read("development", "B").await.unwrap(), "y");
    let actions = acme.actions().await;
    assert!(
        actions.contains(&"envelope.refused".to_owned()),
        "{actions:?}"
    );
    let findings = acme.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].contains("variable A of stage shop/development"));
}

async fn what_stands_beside_an_envelope_is_authenticated(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "1")])
        .await
        .unwrap();
    for (alter, restore) in [
        (
            "UPDATE variable_versions SET visibility = 'public'",
            "UPDATE variable_versions SET visibility = 'private'",
        ),
        (
            "UPDATE variable_versions SET declared_type = 'int64'",
            "UPDATE variable_versions SET declared_type = 'string'",
        ),
    ] {
        acme.tamper(alter).await;
        assert!(
            matches!(
                acme.read("development", "A").await,
                Err(ReadError::Altered { .. })
            ),
            "{alter}"
        );
        acme.tamper(restore).await;
        assert_eq!(acme.read("development", "A").await.unwrap(), "1");
    }
}

async fn an_envelope_moved_to_another_stage_does_not_open(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "dev")])
        .await
        .unwrap();
    acme.write("staging", vec![entry("A", "stage")])
        .await
        .unwrap();
    acme.tamper(
        "UPDATE variable_versions SET envelope_a =
             (SELECT o.envelope_a FROM variable_versions o WHERE o.stage_id <> variable_versions.stage_id)
          WHERE stage_id IN (SELECT id FROM stages WHERE slug = 'staging')",
    )
    .await;
    assert!(matches!(
        acme.read("staging", "A").await,
        Err(ReadError::Altered { .. })
    ));
    assert_eq!(acme.read("development", "A").await.unwrap(), "dev");
}

async fn the_wrong_master_key_names_both_ids(place: Place) {
    let vault = place.open().await;
    vault.close().await;
    drop(vault);
    let Err(error @ OpenVaultError::WrongMasterKey { .. }) = place.try_open(8).await else {
        panic!("it opened");
    };
    for key in [7, 8] {
        let id = MasterKey::from_file_content(&[key; 32])
            .unwrap()
            .derive_id();
        assert!(error.to_string().contains(&id), "{error}");
    }
    place.open().await;
}

async fn an_altered_key_row_is_refused_by_name(place: Place) {
    let acme = Acme::on(&place).await;
    acme.tamper(
        "UPDATE sealed_keys SET envelope = (SELECT envelope FROM sealed_keys WHERE name = 'token') WHERE name = 'audit'",
    )
    .await;
    acme.vault.close().await;
    drop(acme);
    let refused = place.try_open(7).await.map(drop);
    assert!(
        matches!(refused, Err(OpenVaultError::AlteredKey { name: "audit" })),
        "{refused:?}"
    );
}

async fn the_first_authority_stays(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    let candidate = |name: &str| Authority {
        certificate_pem: format!("certificate {name}"),
        key_pem: Plaintext::from(format!("key {name}")),
    };
    assert!(vault.stored_authority().await.unwrap().is_none());
    let (one, other) = tokio::join!(
        vault.authority(candidate("1")),
        vault.authority(candidate("2"))
    );
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.certificate_pem, other.certificate_pem);
    assert_eq!(one.key_pem.reveal(), other.key_pem.reveal());
    assert_eq!(
        one.certificate_pem.strip_prefix("certificate "),
        text(&one.key_pem).strip_prefix("key ")
    );
    acme.tamper("UPDATE sealed_keys SET public_text = 'another' WHERE name = 'ca'")
        .await;
    assert!(matches!(
        vault.stored_authority().await,
        Err(AuthorityError::Altered)
    ));
}
