//! Values written, read, listed and deleted, and how many of them a stage takes.

use super::*;
use crate::domain::names::StageId;
use crate::domain::variable::{DeclaredType, Visibility};
use crate::storage::variables::stage_size;
use crate::vault::projects::ListError;

on_both_databases!(
    a_written_value_is_read_back_and_survives_a_restart,
    a_second_write_keeps_type_and_visibility_and_raises_the_version,
    a_bad_write_is_refused_with_what_would_pass_and_changes_nothing,
    a_deleted_variable_is_gone_and_its_versions_are_never_used_again,
    a_write_records_the_names_that_it_touched_and_no_others,
    each_absence_has_its_own_error,
    a_type_that_the_caller_does_not_expect_is_refused,
    a_stage_larger_than_memory_is_read_all_the_same,
    a_stage_is_measured_by_its_newest_envelopes,
    a_stage_takes_no_more_variables_than_it_may,
    a_stage_takes_no_more_bytes_than_it_may;
    reads_never_show_what_an_acknowledged_write_replaced,
    one_change_that_fails_leaves_the_others_of_its_group_whole,
);

async fn a_written_value_is_read_back_and_survives_a_restart(place: Place) {
    let acme = Acme::on(&place).await;
    let written = acme
        .write("development", vec![entry("B", "two"), entry("A", "one ü")])
        .await
        .unwrap();
    let names: Vec<_> = written.created.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["A", "B"]);
    assert_eq!(acme.read("development", "A").await.unwrap(), "one ü");
    acme.vault.close().await;

    let again = Acme {
        vault: place.open().await,
        owner: acme.owner.clone(),
    };
    assert_eq!(again.read("development", "B").await.unwrap(), "two");
    let pulled = again
        .vault
        .pull(
            &again.owner,
            &origin(),
            &target("shop", "development"),
            None,
        )
        .await
        .unwrap();
    let pulled: Vec<_> = pulled
        .iter()
        .map(|opened| (opened.name.as_str(), text(&opened.value)))
        .collect();
    assert_eq!(pulled, [("A", "one ü"), ("B", "two")]);
    assert_eq!(again.findings().await, Vec::<String>::new());
}

async fn a_second_write_keeps_type_and_visibility_and_raises_the_version(place: Place) {
    let acme = Acme::on(&place).await;
    let mut first = entry("COUNT", "1");
    first.declared_type = Some(DeclaredType::Int64);
    first.visibility = Some(Visibility::Public);
    acme.write("development", vec![first]).await.unwrap();
    let written = acme
        .write("development", vec![entry("COUNT", "-0")])
        .await
        .unwrap();
    assert_eq!(written.updated.len(), 1);
    assert_eq!(acme.read("development", "COUNT").await.unwrap(), "0");
    let refused = acme
        .write("development", vec![entry("COUNT", "many")])
        .await;
    let Err(WriteError::Invalid { problem }) = refused else {
        panic!("{refused:?}");
    };
    assert!(problem.starts_with("COUNT: "), "{problem}");
    assert!(!problem.contains("many"), "{problem}");
    let listed = acme
        .vault
        .list(&acme.owner, &origin(), &target("shop", "development"))
        .await
        .unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].version, 2);
    assert_eq!(listed[0].declared_type, DeclaredType::Int64);
    assert_eq!(listed[0].visibility, Visibility::Public);
}

async fn a_bad_write_is_refused_with_what_would_pass_and_changes_nothing(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("THERE", "x")])
        .await
        .unwrap();
    let long = "v".repeat(1025);
    let create_only = Write {
        mode: WriteMode::CreateOnly,
        entries: vec![entry("NEW", "x"), entry("THERE", "y")],
        deletes: Vec::new(),
    };
    let doubled = Write {
        mode: WriteMode::Upsert,
        entries: vec![entry("NEW", "x")],
        deletes: vec!["NEW".parse().unwrap()],
    };
    let mut binary = entry("NEW", "");
    binary.value = Plaintext::new(vec![0xff, 0xfe]);
    let cases = [
        (create_only, "mode upsert"),
        (doubled, "name it once"),
        (upsert(vec![entry("OK", "x"), entry("NEW", "a\0b")]), "NUL"),
        (
            upsert(vec![entry("OK", "x"), entry("NEW", &long)]),
            "1025 bytes",
        ),
        (upsert(vec![binary]), "not UTF-8"),
        (upsert(Vec::new()), "nothing to do"),
    ];
    for (write, says) in cases {
        let stage = target("shop", "development");
        let refused = acme
            .vault
            .write(&acme.owner, &origin(), &stage, write)
            .await;
        let Err(WriteError::Invalid { problem }) = refused else {
            panic!("{says}: {refused:?}");
        };
        assert!(problem.contains(says), "{problem}");
        assert!(!problem.contains(&long), "{problem}");
    }
    let listed = acme
        .vault
        .list(&acme.owner, &origin(), &target("shop", "development"))
        .await
        .unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(acme.read("development", "THERE").await.unwrap(), "x");
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn a_deleted_variable_is_gone_and_its_versions_are_never_used_again(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "old")])
        .await
        .unwrap();
    let delete = |name: &str| Write {
        mode: WriteMode::Upsert,
        entries: Vec::new(),
        deletes: vec![name.parse().unwrap()],
    };
    let stage = target("shop", "development");
    let deleted = acme
        .vault
        .write(&acme.owner, &origin(), &stage, delete("A"))
        .await
        .unwrap();
    assert_eq!(deleted.deleted.len(), 1);
    assert!(matches!(
        acme.read("development", "A").await,
        Err(ReadError::NoVariable { .. })
    ));
    let nothing = acme
        .vault
        .write(&acme.owner, &origin(), &stage, delete("NEVER"))
        .await
        .unwrap();
    assert!(nothing.deleted.is_empty());
    acme.write("development", vec![entry("A", "new")])
        .await
        .unwrap();
    let listed = acme
        .vault
        .list(&acme.owner, &origin(), &stage)
        .await
        .unwrap();
    assert_eq!(listed[0].version, 2);
    assert_eq!(acme.read("development", "A").await.unwrap(), "new");
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn a_write_records_the_names_that_it_touched_and_no_others(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("OLD", "1"), entry("GONE", "1")])
        .await
        .unwrap();
    let write = Write {
        mode: WriteMode::Upsert,
        entries: vec![entry("OLD", "2"), entry("NEW", "1")],
        deletes: vec!["NEVER_WAS".parse().unwrap(), "GONE".parse().unwrap()],
    };
    acme.vault
        .write(
            &acme.owner,
            &origin(),
            &target("shop", "development"),
            write,
        )
        .await
        .unwrap();
    let mut db = acme.intruder().await;
    for statement in [
        "SELECT names FROM operations ORDER BY revision DESC",
        "SELECT names FROM audit_records WHERE action = 'variables.written' ORDER BY sequence DESC",
    ] {
        let row = db.row(statement, cells![]).await.unwrap().unwrap();
        assert_eq!(row.text(0).unwrap(), "NEW\nOLD\nGONE", "{statement}");
    }
}

async fn each_absence_has_its_own_error(place: Place) {
    let acme = Acme::on(&place).await;
    assert!(matches!(
        acme.read("development", "NONE").await,
        Err(ReadError::NoVariable { name }) if name.as_str() == "NONE"
    ));
    assert!(matches!(
        acme.read("nowhere", "NONE").await,
        Err(ReadError::NoEnvironment { .. })
    ));
    assert!(matches!(
        acme.vault
            .list(&acme.owner, &origin(), &target("none", "development"))
            .await,
        Err(ReadError::NoEnvironment { .. })
    ));
    assert!(matches!(
        acme.write("nowhere", vec![entry("A", "x")]).await,
        Err(WriteError::NoEnvironment { .. })
    ));
    assert!(matches!(
        acme.write("nowhere", vec![entry("A", "a\0")]).await,
        Err(WriteError::NoEnvironment { .. })
    ));
    assert!(matches!(
        acme.vault
            .list_stages(&acme.owner, &origin(), None, &"none".parse().unwrap())
            .await,
        Err(ListError::NoProject(_))
    ));
}

async fn a_type_that_the_caller_does_not_expect_is_refused(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    let asks = [Ask {
        name: "A".parse().unwrap(),
        declared_type: Some(DeclaredType::Json),
    }];
    let stage = target("shop", "development");
    let refused = acme
        .vault
        .evaluate(&acme.owner, &origin(), &stage, &asks, None)
        .await;
    assert!(
        matches!(refused, Err(ReadError::WrongType { .. })),
        "{refused:?}"
    );
}

async fn reads_never_show_what_an_acknowledged_write_replaced(place: Place) {
    let acme = Arc::new(Acme::on(&place).await);
    acme.write("development", vec![entry("A", "0")])
        .await
        .unwrap();
    let newest = Arc::new(AtomicI64::new(0));
    let writer = {
        let (acme, newest) = (Arc::clone(&acme), Arc::clone(&newest));
        tokio::spawn(async move {
            for at in 1..=40 {
                acme.write("development", vec![entry("A", &at.to_string())])
                    .await
                    .unwrap();
                newest.store(at, Ordering::SeqCst);
            }
        })
    };
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (acme, newest) = (Arc::clone(&acme), Arc::clone(&newest));
            tokio::spawn(async move {
                while newest.load(Ordering::SeqCst) < 40 {
                    let before = newest.load(Ordering::SeqCst);
                    let value: i64 = acme
                        .read("development", "A")
                        .await
                        .unwrap()
                        .parse()
                        .unwrap();
                    assert!(
                        value >= before,
                        "read {value} after {before} was acknowledged"
                    );
                }
            })
        })
        .collect();
    writer.await.unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn one_change_that_fails_leaves_the_others_of_its_group_whole(place: Place) {
    let acme = Acme::on(&place).await;
    let mut db = acme.intruder().await;
    let statements: &[&'static str] = if place.is_shared() {
        &[
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN RAISE EXCEPTION 'no'; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON variable_versions
                 FOR EACH ROW WHEN (NEW.name = 'BAD') EXECUTE FUNCTION refuse()",
        ]
    } else {
        &[
            "CREATE TRIGGER refuse BEFORE INSERT ON variable_versions WHEN NEW.name = 'BAD'
               BEGIN SELECT RAISE(ABORT, 'no'); END",
        ]
    };
    for statement in statements {
        db.execute(statement, vec![]).await.unwrap();
    }
    let acme = Arc::new(acme);
    let tasks: Vec<_> = (0..40)
        .map(|at| {
            let acme = Arc::clone(&acme);
            tokio::spawn(async move {
                let name = if at % 4 == 0 {
                    "BAD".to_owned()
                } else {
                    format!("GOOD_{at}")
                };
                let written = acme.write("development", vec![entry(&name, "x")]).await;
                (name, written)
            })
        })
        .collect();
    for task in tasks {
        let (name, written) = task.await.unwrap();
        assert_eq!(written.is_ok(), name != "BAD", "{name}: {written:?}");
        if name == "BAD" {
            assert!(matches!(written, Err(WriteError::Unavailable(_))));
        }
    }
    let pulled = acme
        .vault
        .pull(&acme.owner, &origin(), &target("shop", "development"), None)
        .await
        .unwrap();
    assert_eq!(pulled.len(), 30);
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn a_stage_larger_than_memory_is_read_all_the_same(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x"), entry("B", "y")])
        .await
        .unwrap();
    // The envelope of a version that is not the newest: only its length counts here.
    let mut db = acme.intruder().await;
    let filler = "f".repeat(9 * 1024 * 1024);
    let length = i64::try_from(filler.len()).unwrap();
    for (statement, argument) in [
        (
            "UPDATE variable_versions SET envelope_a = $1 WHERE name = 'B'",
            cells![filler],
        ),
        (
            "UPDATE variables SET sealed_bytes = $1 WHERE name = 'B'",
            cells![length],
        ),
    ] {
        db.execute(statement, argument).await.unwrap();
    }
    acme.vault.core().cache.forget_all();
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    assert!(matches!(
        acme.read("development", "B").await,
        Err(ReadError::Altered { .. })
    ));
    assert!(matches!(
        acme.read("development", "C").await,
        Err(ReadError::NoVariable { .. })
    ));
}

async fn a_stage_is_measured_by_its_newest_envelopes(place: Place) {
    let acme = Acme::on(&place).await;
    let long = "v".repeat(1000);
    acme.write("development", vec![entry("A", &long), entry("B", "x")])
        .await
        .unwrap();
    let delete = Write {
        mode: WriteMode::Upsert,
        entries: vec![entry("A", "short"), entry("C", &long)],
        deletes: vec!["B".parse().unwrap()],
    };
    let stage = target("shop", "development");
    acme.vault
        .write(&acme.owner, &origin(), &stage, delete)
        .await
        .unwrap();
    let mut db = acme.intruder().await;
    let rows = db
        .rows(
            "SELECT v.name, v.sealed_bytes, CAST(LENGTH(n.envelope_a) AS BIGINT)
               FROM variables v JOIN variable_versions n ON n.name = v.name AND n.version = v.version
              ORDER BY v.name",
            cells![],
        )
        .await
        .unwrap();
    assert_eq!(rows.len(), 3);
    for row in &rows {
        let name = row.text(0).unwrap();
        assert_eq!(row.integer(1).unwrap(), row.integer(2).unwrap(), "{name}");
    }
    assert!(rows[0].integer(1).unwrap() < rows[2].integer(1).unwrap());
    let id = db.row("SELECT stage_id FROM variables", cells![]).await;
    let id: StageId = id.unwrap().unwrap().text(0).unwrap().parse().unwrap();
    let size = stage_size(&mut db, &id).await.unwrap();
    let there = rows[0].integer(1).unwrap() + rows[2].integer(1).unwrap();
    assert_eq!((size.variables, size.sealed_bytes), (2, there));
    // Altered ones are too much, and never more than can be added.
    acme.tamper("UPDATE variables SET sealed_bytes = 9223372036854775807")
        .await;
    let size = stage_size(&mut db, &id).await.unwrap();
    assert_eq!(size.sealed_bytes, 2 * 8_388_609);
    assert_eq!(acme.read("development", "A").await.unwrap(), "short");
}

/// What a write was refused for, which is what is wrong with the request.
fn problem(refused: Result<Written, WriteError>) -> String {
    match refused {
        Err(WriteError::Invalid { problem }) => problem,
        other => panic!("{other:?}"),
    }
}

async fn a_stage_takes_no_more_variables_than_it_may(place: Place) {
    let acme = Acme::on(&place).await;
    let entries = |range: std::ops::Range<usize>| {
        range
            .map(|at| entry(&format!("NAME_{at}"), "x"))
            .collect::<Vec<_>>()
    };
    let refused = problem(acme.write("development", entries(0..4097)).await);
    assert!(refused.contains("names 4097"), "{refused}");
    acme.write("development", entries(0..4096)).await.unwrap();
    let refused = problem(acme.write("development", entries(4096..4097)).await);
    assert!(
        refused.contains("would hold 4097 variables and may hold 4096"),
        "{refused}"
    );
    assert!(matches!(
        acme.read("development", "NAME_4096").await,
        Err(ReadError::NoVariable { .. })
    ));
    // One that is there may be replaced, and one that is deleted makes room.
    acme.write("development", vec![entry("NAME_1", "y")])
        .await
        .unwrap();
    let mut write = upsert(entries(4096..4097));
    write.deletes.push("NAME_0".parse().unwrap());
    acme.vault
        .write(
            &acme.owner,
            &origin(),
            &target("shop", "development"),
            write,
        )
        .await
        .unwrap();
    assert_eq!(acme.read("development", "NAME_4096").await.unwrap(), "x");
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn a_stage_takes_no_more_bytes_than_it_may(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x"), entry("B", "y")])
        .await
        .unwrap();
    // Only its length counts here.
    let mut db = acme.intruder().await;
    let filler = "f".repeat(8 * 1024 * 1024 - 200);
    let length = i64::try_from(filler.len()).unwrap();
    for (statement, argument) in [
        (
            "UPDATE variable_versions SET envelope_a = $1 WHERE name = 'B'",
            cells![filler],
        ),
        (
            "UPDATE variables SET sealed_bytes = $1 WHERE name = 'B'",
            cells![length],
        ),
    ] {
        db.execute(statement, argument).await.unwrap();
    }
    acme.vault.core().cache.forget_all();
    let value = "v".repeat(1024);
    let refused = problem(acme.write("development", vec![entry("C", &value)]).await);
    assert!(
        refused.contains("once sealed and may take 8388608"),
        "{refused}"
    );
    let listed = acme
        .vault
        .list(&acme.owner, &origin(), &target("shop", "development"))
        .await
        .unwrap();
    let names: Vec<&str> = listed.iter().map(|found| found.name.as_str()).collect();
    assert_eq!(names, ["A", "B"]);
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    let write = Write {
        mode: WriteMode::Upsert,
        entries: Vec::new(),
        deletes: vec!["B".parse().unwrap()],
    };
    let stage = target("shop", "development");
    acme.vault
        .write(&acme.owner, &origin(), &stage, write)
        .await
        .unwrap();
    acme.write("development", vec![entry("C", &value)])
        .await
        .unwrap();
    assert_eq!(acme.read("development", "C").await.unwrap(), value);
}
