//! What a pod reads.

use super::*;
use crate::vault::pods::PodReadError;

on_both_databases!(
    a_pod_reads_its_allowance_cut_to_its_access,
    a_pod_without_allowance_or_access_reads_nothing_and_that_is_recorded,
);

fn allowance(stage: &str, variables: &str) -> Allowance {
    Allowance::parse(&format!(r#"{{"v":1,"stage":"{stage}"{variables}}}"#)).unwrap()
}

async fn a_pod_reads_its_allowance_cut_to_its_access(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    vault
        .declare_project(&project_declaration("team-a", "backend"))
        .await
        .unwrap();
    let mut declaration = stage_declaration("team-a", "backend", "production", &["api"]);
    declaration.access[0].variables = Some(vec!["DB_*".parse().unwrap(), "KEY".parse().unwrap()]);
    let stage = vault.declare_stage(&declaration).await.unwrap().id;
    let values = vec![
        entry("DB_URL", "u"),
        entry("DB_USER", "n"),
        entry("KEY", "k"),
        entry("OTHER", "o"),
    ];
    vault
        .write(
            &acme.owner,
            &origin(),
            &target("backend", "production"),
            upsert(values),
        )
        .await
        .unwrap();
    let reads = |allowances: Vec<Allowance>| {
        let vault = vault.clone();
        async move {
            let pod = pod("team-a", "api", allowances);
            let values = vault.read_for_pod(&pod, &origin()).await.unwrap();
            let pairs: Vec<_> = values
                .iter()
                .map(|value| format!("{}={}", value.name, text(&value.value)))
                .collect();
            pairs.join(" ")
        }
    };
    let id = stage.as_str();
    assert_eq!(
        reads(vec![allowance(id, "")]).await,
        "DB_URL=u DB_USER=n KEY=k"
    );
    let narrow = allowance(id, r#","variables":["DB_URL","OTHER","NONE"]"#);
    assert_eq!(reads(vec![narrow.clone()]).await, "DB_URL=u");
    let second = allowance(id, r#","variables":[],"references":["KEY"]"#);
    assert_eq!(reads(vec![narrow, second]).await, "DB_URL=u KEY=k");
    let names = |stage: &str, namespace: &str, name: &str| {
        let (vault, stage) = (vault.clone(), stage.parse().unwrap());
        let (namespace, name) = (namespace.parse().unwrap(), name.parse().unwrap());
        async move {
            vault
                .variable_names(&stage, &namespace, &name)
                .await
                .unwrap()
        }
    };
    assert_eq!(
        names(id, "team-a", "backend-production")
            .await
            .unwrap()
            .len(),
        4
    );
    for (stage, namespace, name) in [
        ("stg_none", "team-a", "backend-production"),
        (id, "team-b", "backend-production"),
        (id, "team-a", "other"),
    ] {
        let told = names(stage, namespace, name).await;
        assert!(told.is_none(), "{stage} to {namespace}/{name}");
    }
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn a_pod_without_allowance_or_access_reads_nothing_and_that_is_recorded(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    let stage = acme.backend().await;
    let declaration = stage_declaration("team-a", "backend", "production", &["api"]);
    let bare = pod("team-a", "api", Vec::new());
    assert!(matches!(
        vault.read_for_pod(&bare, &origin()).await,
        Err(PodReadError::NotInjected)
    ));
    for (namespace, account, stage) in [
        ("team-a", "web", stage.as_str()),
        ("team-b", "api", stage.as_str()),
        ("team-a", "api", "stg_none"),
    ] {
        let pod = pod(namespace, account, vec![allowance(stage, "")]);
        let refused = vault.read_for_pod(&pod, &origin()).await;
        assert!(
            matches!(refused, Err(PodReadError::NoAccess { .. })),
            "{namespace} {account} {stage}: {refused:?}"
        );
    }
    let good = pod("team-a", "api", vec![allowance(stage.as_str(), "")]);
    assert_eq!(vault.read_for_pod(&good, &origin()).await.unwrap().len(), 1);
    vault
        .withdraw_access(&declaration.namespace, &declaration.resource)
        .await
        .unwrap();
    assert!(matches!(
        vault.read_for_pod(&good, &origin()).await,
        Err(PodReadError::NoAccess { .. })
    ));
    vault.declare_stage(&declaration).await.unwrap();
    acme.tamper("UPDATE variable_versions SET visibility = 'public'")
        .await;
    assert!(matches!(
        vault.read_for_pod(&good, &origin()).await,
        Err(PodReadError::Altered { .. })
    ));
    let mut db = acme.intruder().await;
    let row = db
        .row(
            "SELECT COUNT(*) FROM audit_records WHERE action = 'read.refused'",
            vec![],
        )
        .await
        .unwrap()
        .unwrap();
    assert_eq!(row.integer(0).unwrap(), 5);
}
