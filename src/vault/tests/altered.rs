//! Somebody with write access to the database puts in a row what this program never wrote: that row is refused and named, and
//! no other goes with it.

use super::*;
use crate::vault::credentials::AuthenticateError;
use crate::vault::pods::PodReadError;

on_both_databases!(
    a_word_that_is_none_takes_its_own_variable_alone,
    a_name_that_is_none_is_found_and_others_are_served,
    an_altered_token_is_no_credential_and_others_are_revoked_beside_it,
    an_altered_stage_or_project_is_named_and_others_are_listed,
    a_stage_that_was_moved_or_unprotected_gives_nothing_and_takes_nothing,
    a_token_that_was_renamed_is_no_credential,
    an_altered_access_entry_takes_no_reader_from_its_stage,
    an_altered_data_key_refuses_reads_and_writes_and_both_are_recorded,
);

async fn shop(place: &Place) -> Acme {
    let acme = Acme::on(place).await;
    acme.write("development", vec![entry("A", "x"), entry("B", "y")])
        .await
        .unwrap();
    acme
}

async fn listed(acme: &Acme) -> Vec<String> {
    let stage = target("shop", "development");
    let listed = acme.vault.list(&acme.owner, &origin(), &stage).await;
    let names = listed.unwrap().into_iter().map(|found| found.name);
    names.map(String::from).collect()
}

async fn a_word_that_is_none_takes_its_own_variable_alone(place: Place) {
    let acme = shop(&place).await;
    let stage = target("shop", "development");
    let pull = async || {
        acme.vault
            .pull(&acme.owner, &origin(), &stage, None)
            .await
            .map(|opened| opened.len())
    };
    let mut statements = vec![
        "UPDATE variable_versions SET visibility = 'pubic' WHERE name = 'A'",
        "UPDATE variable_versions SET kind = 'sercet' WHERE name = 'A'",
        "UPDATE variable_versions SET declared_type = 'strin' WHERE name = 'A'",
    ];
    if !place.is_shared() {
        statements
            .push("UPDATE variable_versions SET visibility = CAST(x'ff' AS TEXT) WHERE name = 'A'");
    }
    for (at, statement) in statements.into_iter().enumerate() {
        acme.tamper(statement).await;
        let refused = acme.read("development", "A").await;
        assert!(
            matches!(&refused, Err(ReadError::Altered { name }) if name == "A"),
            "{statement}: {refused:?}"
        );
        assert_eq!(acme.read("development", "B").await.unwrap(), "y");
        let refused = pull().await;
        assert!(matches!(refused, Err(ReadError::Altered { .. })));
        assert_eq!(listed(&acme).await, ["B"], "{statement}");
        assert_eq!(acme.count("envelope.refused").await, (at + 1) * 3);
        assert_eq!(
            acme.findings().await,
            [
                "variable A of stage shop/development: its row was altered: it holds what was never written"
            ],
            "{statement}"
        );
        // It is there: it may not be made, and may be written anew.
        let create = Write {
            mode: WriteMode::CreateOnly,
            entries: vec![entry("A", "z")],
            deletes: Vec::new(),
        };
        let refused = acme
            .vault
            .write(&acme.owner, &origin(), &stage, create)
            .await;
        assert!(matches!(refused, Err(WriteError::Invalid { .. })));
        let written = acme.write("development", vec![entry("A", "healed")]).await;
        assert_eq!(written.unwrap().updated.len(), 1);
        assert_eq!(acme.read("development", "A").await.unwrap(), "healed");
        assert_eq!(pull().await.unwrap(), 2);
        assert_eq!(acme.findings().await, Vec::<String>::new());
    }
    acme.tamper("UPDATE variable_versions SET visibility = 'pubic' WHERE name = 'A'")
        .await;
    let delete = Write {
        mode: WriteMode::Upsert,
        entries: Vec::new(),
        deletes: vec!["A".parse().unwrap()],
    };
    let deleted = acme
        .vault
        .write(&acme.owner, &origin(), &stage, delete)
        .await;
    assert_eq!(deleted.unwrap().deleted.len(), 1);
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn a_name_that_is_none_is_found_and_others_are_served(place: Place) {
    let acme = shop(&place).await;
    for statement in [
        "INSERT INTO variables (stage_id, name, version, created_at, updated_at, sealed_bytes)
         SELECT stage_id, 'no name', version, created_at, updated_at, sealed_bytes FROM variables WHERE name = 'A'",
        "INSERT INTO variable_versions (stage_id, name, version, operation_id, kind, declared_type, visibility,
                                        envelope_a, lineage_id, dek_version, created_at)
         SELECT stage_id, 'no name', version, operation_id, kind, declared_type, visibility,
                envelope_a, lineage_id, dek_version, created_at FROM variable_versions WHERE name = 'A'",
    ] {
        acme.tamper(statement).await;
    }
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    assert_eq!(listed(&acme).await, ["A", "B"]);
    let stage = target("shop", "development");
    let pulled = acme.vault.pull(&acme.owner, &origin(), &stage, None).await;
    assert!(
        matches!(&pulled, Err(ReadError::Altered { name }) if name == "no name"),
        "{pulled:?}"
    );
    let findings = acme.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].starts_with("variable no name of stage"));
}

async fn an_altered_token_is_no_credential_and_others_are_revoked_beside_it(place: Place) {
    let acme = shop(&place).await;
    let altered = acme.token(Role::Viewer, None, None).await;
    let other = acme.token(Role::Viewer, None, None).await;
    let revoke = async |token: &NewToken| {
        acme.vault
            .revoke_token(&origin(), &"acme".parse().unwrap(), &token.id)
            .await
            .unwrap();
    };
    let is_unknown = async |token: &NewToken| {
        let token = presented(text(&token.token));
        let known = acme.vault.authenticate(&token).await;
        matches!(known, Err(AuthenticateError::Unknown))
    };
    let mut db = acme.intruder().await;
    let mut set_role = async |role: &str| {
        let statement = "UPDATE api_tokens SET role = $1 WHERE id = $2";
        let changed = db.execute(statement, cells![role, altered.id.as_str()]);
        assert_eq!(changed.await.unwrap(), 1);
    };
    set_role("x").await;
    assert!(is_unknown(&altered).await);
    let findings = acme.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].starts_with(&format!("token {}: its row was altered", altered.id)));
    assert!(!is_unknown(&other).await);
    revoke(&other).await;
    assert!(is_unknown(&other).await);
    // What memory knows of one goes with its revocation, and putting the word back brings nothing back.
    set_role("viewer").await;
    assert!(!is_unknown(&altered).await);
    set_role("x").await;
    revoke(&altered).await;
    assert!(is_unknown(&altered).await);
    set_role("viewer").await;
    assert!(is_unknown(&altered).await);
    assert_eq!(acme.count("token.revoked").await, 2);
}

async fn an_altered_stage_or_project_is_named_and_others_are_listed(place: Place) {
    let acme = shop(&place).await;
    let name = DisplayName::parse_project("Other").unwrap();
    let slug = "other".parse().unwrap();
    acme.vault
        .create_project(&acme.owner, &origin(), None, &name, Some(&slug))
        .await
        .unwrap();
    acme.tamper("UPDATE stages SET resource = 'NONE' WHERE slug = 'staging'")
        .await;
    acme.tamper("UPDATE projects SET namespace = 'NONE' WHERE slug = 'other'")
        .await;
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    let projects = acme.vault.list_projects(&acme.owner, &origin(), None).await;
    let slugs = projects.unwrap().into_iter().map(|found| found.slug);
    assert_eq!(slugs.map(String::from).collect::<Vec<_>>(), ["shop"]);
    let project = "shop".parse().unwrap();
    let stages = acme
        .vault
        .list_stages(&acme.owner, &origin(), None, &project)
        .await;
    assert_eq!(stages.unwrap().len(), 2);
    let refused = acme.read("staging", "A").await;
    assert!(
        matches!(&refused, Err(ReadError::Unavailable(cause)) if cause.is_lasting()),
        "{refused:?}"
    );
    let refused = acme.write("staging", vec![entry("A", "x")]).await;
    assert!(
        matches!(&refused, Err(WriteError::Unavailable(cause)) if cause.is_lasting()),
        "{refused:?}"
    );
    let findings = acme.findings().await;
    assert_eq!(findings.len(), 3, "{findings:?}");
    assert!(findings[0].starts_with("project other: its row was altered"));
    assert!(
        findings[1].ends_with("/staging: its row was altered: it holds what was never written")
    );
    assert!(
        findings[2].ends_with("/staging: its row was altered: it holds what was never written")
    );
}

async fn an_altered_access_entry_takes_no_reader_from_its_stage(place: Place) {
    let acme = shop(&place).await;
    let vault = &acme.vault;
    vault
        .declare_project(&project_declaration("team-a", "backend"))
        .await
        .unwrap();
    let declaration = stage_declaration("team-a", "backend", "production", &["api", "web"]);
    let id = vault.declare_stage(&declaration).await.unwrap().id;
    let stage = target("backend", "production");
    vault
        .write(
            &acme.owner,
            &origin(),
            &stage,
            upsert(vec![entry("A", "x")]),
        )
        .await
        .unwrap();
    acme.tamper("UPDATE access_entries SET pattern = '?' WHERE service_account = 'web'")
        .await;
    let reads = async |account: &str| {
        let text = format!(r#"{{"v":1,"stage":"{id}"}}"#);
        let pod = pod("team-a", account, vec![Allowance::parse(&text).unwrap()]);
        vault.read_for_pod(&pod, &origin()).await
    };
    assert_eq!(reads("api").await.unwrap().len(), 1);
    let refused = reads("web").await;
    assert!(
        matches!(refused, Err(PodReadError::NoAccess { .. })),
        "{refused:?}"
    );
    let opened = vault
        .evaluate(&acme.owner, &origin(), &stage, &[ask("A")], None)
        .await;
    assert_eq!(opened.unwrap().len(), 1);
    // An altered row beside it, of a variable that the pod may read, is refused as an altered envelope.
    acme.tamper("UPDATE variable_versions SET visibility = 'pubic' WHERE name = 'A'")
        .await;
    let refused = reads("api").await;
    assert!(
        matches!(&refused, Err(PodReadError::Altered { name }) if name == "A"),
        "{refused:?}"
    );
}

async fn an_altered_data_key_refuses_reads_and_writes_and_both_are_recorded(place: Place) {
    let acme = shop(&place).await;
    acme.tamper("UPDATE data_keys SET wrapped = REPLACE(wrapped, 'xcp1.', 'xcp1.A')")
        .await;
    let refused = acme.read("development", "A").await;
    assert!(matches!(refused, Err(ReadError::Altered { .. })));
    let refused = acme
        .write("development", vec![entry("A", "z"), entry("NEW", "z")])
        .await;
    assert!(
        matches!(&refused, Err(WriteError::Altered { what }) if what == "the data key of the project shop"),
        "{refused:?}"
    );
    let mut db = acme.intruder().await;
    let rows = db
        .rows(
            "SELECT names, detail FROM audit_records WHERE action = 'envelope.refused' ORDER BY sequence",
            cells![],
        )
        .await
        .unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1].text(0).unwrap(), "A\nNEW");
    assert!(rows[1].text(1).unwrap().contains("data key"));
    assert_eq!(listed(&acme).await, ["A", "B"]);
}

async fn a_stage_that_was_moved_or_unprotected_gives_nothing_and_takes_nothing(place: Place) {
    let acme = shop(&place).await;
    let bootstrapped = acme
        .vault
        .bootstrap(&origin(), &"evil".parse().unwrap())
        .await;
    let evil = known(&acme.vault, &bootstrapped.unwrap().1).await;
    let developer = acme.caller(Role::Developer, None, None).await;
    acme.write("production", vec![entry("A", "precious")])
        .await
        .unwrap();
    let cases = [
        (
            &evil,
            "development",
            "UPDATE projects SET organization_id = (SELECT id FROM organizations WHERE slug = 'evil')",
            "UPDATE projects SET organization_id = (SELECT id FROM organizations WHERE slug = 'acme')",
        ),
        (
            &developer,
            "production",
            "UPDATE stages SET protected = 0 WHERE slug = 'production'",
            "UPDATE stages SET protected = 1 WHERE slug = 'production'",
        ),
    ];
    for (at, (caller, stage, alter, put_back)) in cases.into_iter().enumerate() {
        acme.tamper(alter).await;
        let refused = read(&acme.vault, caller, stage, "A").await;
        assert!(
            matches!(&refused, Err(ReadError::Altered { name }) if name == "A"),
            "{alter}: {refused:?}"
        );
        assert_eq!(acme.count("envelope.refused").await, at * 3 + 1);
        let write = upsert(vec![entry("A", "planted")]);
        let place = target("shop", stage);
        let refused = acme.vault.write(caller, &origin(), &place, write).await;
        assert!(matches!(refused, Err(WriteError::Altered { .. })));
        assert_eq!(acme.count("envelope.refused").await, at * 3 + 2);
        let refused = acme.vault.list(caller, &origin(), &place).await;
        assert!(matches!(refused, Err(ReadError::AlteredStage { .. })));
        let named = format!("stage shop/{stage}: its row was altered, or moved from elsewhere");
        assert!(acme.findings().await.contains(&named), "{alter}");
        acme.tamper(put_back).await;
        assert_eq!(acme.findings().await, Vec::<String>::new(), "{put_back}");
    }
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    assert_eq!(acme.read("production", "A").await.unwrap(), "precious");
}

async fn a_token_that_was_renamed_is_no_credential(place: Place) {
    let acme = shop(&place).await;
    let token = acme.token(Role::Viewer, None, None).await;
    acme.tamper("UPDATE api_tokens SET name = 'alice (owner)' WHERE name = 'ci'")
        .await;
    let refused = acme
        .vault
        .authenticate(&presented(text(&token.token)))
        .await;
    assert!(matches!(refused, Err(AuthenticateError::Unknown)));
    let named = format!("token {}: its row was altered", token.id);
    assert_eq!(acme.findings().await, [named]);
}
