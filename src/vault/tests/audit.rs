//! The audit trail, and what is found when somebody altered it.

use super::*;
use crate::domain::variable::Visibility;
use crate::vault::pods::PodReadError;

on_both_databases!(
    an_untouched_trail_has_no_findings,
    an_altered_record_is_named,
    a_missing_record_is_named,
    reordered_records_are_named,
    a_cut_off_trail_is_named,
    rows_that_no_record_speaks_of_are_named,
    an_older_version_put_back_is_named,
    attempts_without_a_caller_are_counted,
    refusals_of_one_caller_beyond_some_are_counted,
    reads_of_public_values_are_counted_and_those_of_private_ones_recorded,
    a_request_that_named_itself_is_counted_once,
);

async fn an_untouched_trail_has_no_findings(place: Place) {
    let acme = Acme::on(&place).await;
    for at in 0..10 {
        let value = format!("v{at}");
        acme.write("development", vec![entry("A", &value)])
            .await
            .unwrap();
        assert_eq!(acme.read("development", "A").await.unwrap(), value);
    }
    let heads = acme.vault.audit_heads().await.unwrap();
    let report = acme.vault.verify_audit(&heads).await.unwrap();
    assert_eq!(report.findings, Vec::<String>::new());
    // Two for the bootstrap in each chain (and one in the installation's), project, stages, writes and reads.
    assert_eq!(report.records, 1 + 2 + 4 + 20);
}

async fn trail(place: &Place) -> Acme {
    let acme = Acme::on(place).await;
    for name in ["A", "B", "C"] {
        acme.write("development", vec![entry(name, "x")])
            .await
            .unwrap();
        acme.read("development", name).await.unwrap();
    }
    acme
}

async fn an_altered_record_is_named(place: Place) {
    let acme = trail(&place).await;
    acme.tamper(
        "UPDATE audit_records SET actor_name = 'somebody else' WHERE chain <> 'installation' AND sequence = 8",
    )
    .await;
    let findings = acme.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(
        findings[0].ends_with("record 8 was altered"),
        "{findings:?}"
    );
}

async fn a_missing_record_is_named(place: Place) {
    let acme = trail(&place).await;
    acme.tamper("DELETE FROM audit_records WHERE chain <> 'installation' AND sequence = 8")
        .await;
    let findings = acme.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(findings[0].ends_with("record 8 is missing"), "{findings:?}");
}

async fn reordered_records_are_named(place: Place) {
    let acme = trail(&place).await;
    for statement in [
        "UPDATE audit_records SET sequence = 1000 WHERE chain <> 'installation' AND sequence = 8",
        "UPDATE audit_records SET sequence = 8 WHERE chain <> 'installation' AND sequence = 10",
        "UPDATE audit_records SET sequence = 10 WHERE sequence = 1000",
    ] {
        acme.tamper(statement).await;
    }
    let findings = acme.findings().await;
    assert!(
        findings
            .iter()
            .any(|found| found.ends_with("record 8 is out of order: it was written as record 10")),
        "{findings:?}"
    );
    assert!(
        findings
            .iter()
            .any(|found| found.ends_with("record 10 is out of order: it was written as record 8")),
        "{findings:?}"
    );
}

async fn a_cut_off_trail_is_named(place: Place) {
    let acme = trail(&place).await;
    let published = acme.vault.audit_heads().await.unwrap();
    acme.tamper("DELETE FROM audit_records WHERE chain <> 'installation' AND sequence > 9")
        .await;
    let findings = acme.findings().await;
    assert!(
        findings
            .iter()
            .any(|found| found.contains("cut off after record 9: its head is record 12")),
        "{findings:?}"
    );
    // Whoever cuts the head back too is found by what was published.
    acme.tamper(
        "UPDATE audit_heads SET sequence = 9, mac = (SELECT mac FROM audit_records r
          WHERE r.chain = audit_heads.chain AND r.sequence = 9) WHERE chain <> 'installation'",
    )
    .await;
    let report = acme.vault.verify_audit(&published).await.unwrap();
    assert!(
        report
            .findings
            .iter()
            .any(|found| found.contains("record 12 was published")),
        "{:?}",
        report.findings
    );
}

async fn rows_that_no_record_speaks_of_are_named(place: Place) {
    let acme = trail(&place).await;
    for (statement, says) in [
        (
            "INSERT INTO access_entries (stage_id, namespace, service_account, pattern, created_at)
             SELECT id, 'evil', 'thief', '*', 0 FROM stages WHERE slug = 'production'",
            "stage shop/production: its access entries",
        ),
        (
            "UPDATE stages SET protected = 0 WHERE slug = 'production'",
            "stage shop/production: its protection, owner or resource",
        ),
        (
            "UPDATE stages SET resource = 'thief' WHERE slug = 'staging'",
            "stage shop/staging: its protection, owner or resource",
        ),
        (
            "UPDATE projects SET namespace = 'evil' WHERE slug = 'shop'",
            "project shop: its owner is not what its record says (owner=)",
        ),
        (
            "UPDATE projects SET slug = 'shop2' WHERE slug = 'shop'",
            "project shop2: no record says that it was made",
        ),
        (
            "UPDATE projects SET slug = 'shop' WHERE slug = 'shop2'",
            "project shop: its owner",
        ),
        (
            "UPDATE organizations SET slug = 'other' WHERE slug = 'acme'",
            "organization org_",
        ),
        (
            "UPDATE variables SET deleted_at = 1 WHERE name = 'B'",
            "variable B of stage shop/development: its row is missing",
        ),
    ] {
        acme.tamper(statement).await;
        let findings = acme.findings().await;
        assert!(
            findings.iter().any(|found| found.starts_with(says)),
            "{statement}: {findings:?}"
        );
    }
}

async fn an_older_version_put_back_is_named(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "old")])
        .await
        .unwrap();
    acme.write("development", vec![entry("A", "new")])
        .await
        .unwrap();
    acme.tamper("UPDATE variables SET version = 1 WHERE name = 'A'")
        .await;
    let findings = acme.findings().await;
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(
        findings[0].ends_with("version 1 was put in the place of version 2"),
        "{findings:?}"
    );
}

async fn attempts_without_a_caller_are_counted(place: Place) {
    let acme = Acme::on(&place).await;
    for _ in 0..3 {
        acme.vault.count_unknown_caller();
    }
    acme.vault.record_counts().await;
    acme.vault.record_counts().await;
    let mut db = acme.intruder().await;
    let rows = db
        .rows(
            "SELECT detail FROM audit_records WHERE action = 'callers.unknown'",
            vec![],
        )
        .await
        .unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].text(0).unwrap(), "count=3");
}

async fn refusals_of_one_caller_beyond_some_are_counted(place: Place) {
    let acme = Acme::on(&place).await;
    let pod = pod("apps", "api", Vec::new());
    let refuse = async || {
        let refused = acme.vault.read_for_pod(&pod, &origin()).await;
        assert!(matches!(refused, Err(PodReadError::NotInjected)));
    };
    for _ in 0..100 {
        refuse().await;
    }
    let mut db = acme.intruder().await;
    let mut details = async |action: &str| -> Vec<String> {
        db.rows(
            "SELECT detail FROM audit_records WHERE action = $1 ORDER BY sequence",
            cells![action],
        )
        .await
        .unwrap()
        .iter()
        .map(|row| row.text(0).unwrap().to_owned())
        .collect()
    };
    assert_eq!(details("read.refused").await.len(), 60);
    assert!(details("refusals.counted").await.is_empty());
    place.clock.advance(60_000);
    refuse().await;
    assert_eq!(details("read.refused").await.len(), 60);
    assert_eq!(details("refusals.counted").await, ["count=40"]);
    refuse().await;
    assert_eq!(details("read.refused").await.len(), 61);
    assert!(acme.findings().await.is_empty());
}

async fn reads_of_public_values_are_counted_and_those_of_private_ones_recorded(place: Place) {
    let acme = Acme::on(&place).await;
    let public = Entry {
        visibility: Some(Visibility::Public),
        ..entry("GREETING", "hello")
    };
    acme.write("development", vec![public, entry("A", "x")])
        .await
        .unwrap();
    let stage = target("shop", "development");
    let (owner, origin) = (&acme.owner, origin());
    for _ in 0..2 {
        let opened = acme
            .vault
            .evaluate(owner, &origin, &stage, &[ask("GREETING")], None)
            .await
            .unwrap();
        assert_eq!(opened[0].value.reveal_text(), Some("hello"));
    }
    acme.vault.pull(owner, &origin, &stage, None).await.unwrap();
    acme.vault.record_counts().await;
    acme.vault.record_counts().await;
    let mut db = acme.intruder().await;
    let rows = db
        .rows(
            "SELECT action, stage, names, detail FROM audit_records WHERE action LIKE 'variables.read%' ORDER BY sequence",
            vec![],
        )
        .await
        .unwrap();
    let read: Vec<_> = rows
        .iter()
        .map(|row| [0, 1, 2, 3].map(|at| row.text(at).unwrap()))
        .collect();
    assert_eq!(
        read,
        [
            ["variables.read", "development", "A", ""],
            ["variables.read_public", "development", "", "count=3"],
        ]
    );
    let units = db
        .row(
            "SELECT units FROM usage WHERE meter = 'dynamic_requests'",
            vec![],
        )
        .await
        .unwrap()
        .unwrap();
    assert_eq!(units.integer(0).unwrap(), 4);
    assert!(acme.findings().await.is_empty());
}

async fn a_request_that_named_itself_is_counted_once(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x"), entry("B", "y")])
        .await
        .unwrap();
    let stage = target("shop", "development");
    let asks = [ask("A"), ask("B")];
    for key in [Some("one"), Some("one"), None] {
        acme.vault
            .evaluate(&acme.owner, &origin(), &stage, &asks, key)
            .await
            .unwrap();
    }
    let mut db = acme.intruder().await;
    let units = db
        .row(
            "SELECT units FROM usage WHERE meter = 'dynamic_requests'",
            vec![],
        )
        .await
        .unwrap()
        .unwrap();
    assert_eq!(units.integer(0).unwrap(), 4);
    let keys = db
        .rows("SELECT request_key FROM request_keys", vec![])
        .await
        .unwrap();
    assert_eq!(keys.len(), 1);
    // For a day: then it is forgotten.
    let day_ms = 86_400_000;
    let mut kept = async || {
        acme.vault.forget_request_keys().await;
        let keys = db.rows("SELECT request_key FROM request_keys", vec![]);
        keys.await.unwrap().len()
    };
    place.clock.advance(day_ms);
    assert_eq!(kept().await, 1);
    place.clock.advance(1);
    assert_eq!(kept().await, 0);
    place.clock.advance(-day_ms - 1);
    let used = db
        .row("SELECT last_used_at FROM api_tokens", vec![])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(used.integer(0).unwrap(), place.clock.now_ms());
}
