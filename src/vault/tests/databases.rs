//! What each database is opened with, and what it is refused for; how one that goes away comes back.

use super::*;
use crate::storage;
use crate::vault::records::Chain;
use crate::vault::writer::{Change, Verdict, Work};

on_both_databases!(
    a_newer_schema_is_refused_by_name,
    a_database_that_takes_no_writes_is_unavailable_and_recovers,
);

async fn a_newer_schema_is_refused_by_name(place: Place) {
    let acme = Acme::on(&place).await;
    acme.tamper(if place.is_shared() {
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9000, 'later', TRUE, ''::bytea, 0)"
    } else {
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9000, 'later', 1, x'', 0)"
    })
    .await;
    acme.vault.close().await;
    drop(acme);
    let Err(OpenVaultError::Database(error)) = place.try_open(7).await else {
        panic!("it opened");
    };
    assert!(error.to_string().contains("schema version 9000"), "{error}");
}

async fn a_database_that_takes_no_writes_is_unavailable_and_recovers(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    let mut db = acme.intruder().await;
    db.execute("ALTER TABLE audit_records RENAME TO away", vec![])
        .await
        .unwrap();
    assert!(matches!(
        acme.read("development", "A").await,
        Err(ReadError::Unavailable(_))
    ));
    assert!(matches!(
        acme.write("development", vec![entry("A", "y")]).await,
        Err(WriteError::Unavailable(_))
    ));
    db.execute("ALTER TABLE away RENAME TO audit_records", vec![])
        .await
        .unwrap();
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    acme.vault.check().await.unwrap();
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

#[tokio::test]
async fn an_address_that_is_none_says_what_would_pass() {
    for address in ["", "barekey.db", "mysql://x", "sqlite:"] {
        let place = Place {
            address: address.to_owned(),
            clock: StillClock::at(0),
            _folder: None,
        };
        let Err(OpenVaultError::Database(error)) = place.try_open(7).await else {
            panic!("{address} opened");
        };
        assert!(
            error.to_string().contains("sqlite:PATH"),
            "{address}: {error}"
        );
    }
}

#[tokio::test]
async fn a_second_process_on_one_sqlite_file_is_refused_by_name() {
    let place = Place::sqlite();
    let vault = place.open().await;
    let Err(OpenVaultError::InUse { path, holder }) = place.try_open(7).await else {
        panic!("it opened");
    };
    assert!(path.ends_with("barekey.db"));
    assert_eq!(holder, format!("process {}", std::process::id()));
    vault.close().await;
    drop(vault);
    place.open().await;
}

#[tokio::test]
async fn a_sqlite_file_is_readable_by_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::sqlite();
    let vault = place.open().await;
    vault.check().await.unwrap();
    let path = place.address.strip_prefix("sqlite:").unwrap();
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let mode = std::fs::metadata(format!("{path}{suffix}"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
}

/// Limits the file of the writer's own connection, as a full volume does.
struct LimitPages(i64);

impl Change for LimitPages {
    type Answer = ();

    fn chain(&self) -> Chain {
        Chain::Installation
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<()>, storage::Error> {
        let statement = match self.0 {
            1 => "PRAGMA max_page_count = 1",
            _ => "PRAGMA max_page_count = 1000000",
        };
        work.db.rows(statement, vec![]).await?;
        Ok(Verdict::Keep(()))
    }
}

impl Vault {
    async fn limit_pages(&self, pages: i64) {
        self.0.queue.change(LimitPages(pages)).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_sqlite_file_is_unavailable_leaves_nothing_half_done_and_recovers() {
    let place = Place::sqlite();
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    // The limit holds for the connection that writes.
    acme.vault.limit_pages(1).await;
    let value = "v".repeat(1024);
    let many = (0..200)
        .map(|at| entry(&format!("V{at}"), &value))
        .collect();
    let refused = acme.write("development", many).await;
    assert!(
        matches!(refused, Err(WriteError::Unavailable(_))),
        "{refused:?}"
    );
    assert_eq!(
        acme.vault
            .list(&acme.owner, &origin(), &target("shop", "development"))
            .await
            .unwrap()
            .len(),
        1
    );
    acme.vault.limit_pages(1_000_000).await;
    let many = (0..200)
        .map(|at| entry(&format!("V{at}"), &value))
        .collect();
    acme.write("development", many).await.unwrap();
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_sqlite_file_that_another_program_holds_is_unavailable_and_recovers() {
    let place = Place::sqlite();
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    // Another program holds the file's write lock for longer than a writer waits.
    let mut db = acme.intruder().await;
    db.begin().await.unwrap();
    assert!(matches!(
        acme.read("development", "A").await,
        Err(ReadError::Unavailable(_))
    ));
    assert!(acme.vault.check().await.is_err());
    db.roll_back().await.unwrap();
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    acme.vault.check().await.unwrap();
}

#[tokio::test]
async fn risky_settings_of_postgres_are_refused_unless_accepted_by_name() {
    let place = Place::postgres().await;
    let open = |accepted_risks| {
        let settings = VaultSettings {
            database: place.address.clone(),
            master_key: MasterKey::from_file_content(&[7; 32]).unwrap(),
            accepted_risks,
            value_bytes_max: 1024,
            pod_identity: None,
        };
        Vault::open(settings, place.clock.clone())
    };
    let refused = |opened: Result<Vault, OpenVaultError>| match opened {
        Err(OpenVaultError::Database(error)) => error.to_string(),
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("it opened"),
    };
    let text = refused(open(vec![]).await);
    assert!(text.contains("--accept-database-risk sslmode"), "{text}");
    open(vec![AcceptedRisk::SslMode])
        .await
        .unwrap()
        .close()
        .await;
    postgres::set_for_database(&place.address, "synchronous_commit", "off").await;
    let text = refused(open(vec![AcceptedRisk::SslMode]).await);
    assert!(
        text.contains("--accept-database-risk synchronous-commit-off"),
        "{text}"
    );
    open(vec![
        AcceptedRisk::SslMode,
        AcceptedRisk::SynchronousCommitOff,
    ])
    .await
    .unwrap();
}

#[tokio::test]
async fn a_postgres_that_went_away_and_came_back_is_used_again() {
    let place = Place::postgres().await;
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    postgres::end_connections(&place.address).await;
    assert_eq!(acme.read("development", "A").await.unwrap(), "x");
    acme.write("development", vec![entry("A", "y")])
        .await
        .unwrap();
    assert_eq!(acme.read("development", "A").await.unwrap(), "y");
    postgres::set_for_database(&place.address, "default_transaction_read_only", "on").await;
    postgres::end_connections(&place.address).await;
    assert!(matches!(
        acme.write("development", vec![entry("A", "z")]).await,
        Err(WriteError::Unavailable(_))
    ));
    assert!(matches!(
        acme.read("development", "A").await,
        Err(ReadError::Unavailable(_))
    ));
    assert!(acme.vault.check().await.is_err());
    postgres::set_for_database(&place.address, "default_transaction_read_only", "off").await;
    postgres::end_connections(&place.address).await;
    assert_eq!(acme.read("development", "A").await.unwrap(), "y");
    acme.vault.check().await.unwrap();
}

/// Stands between the vault and its server until it is cut.
struct Wire {
    address: String,
    cut: tokio::sync::watch::Sender<bool>,
}

impl Wire {
    async fn to(address: &str) -> Self {
        let start = address.find("127.0.0.1:").unwrap();
        let host: String = address[start..]
            .chars()
            .take_while(|letter| *letter != '/')
            .collect();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().to_string();
        let (cut, is_cut) = tokio::sync::watch::channel(false);
        let server = host.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (server, mut is_cut) = (server.clone(), is_cut.clone());
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(server).await.unwrap();
                    let was_cut = tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => false,
                        cut = async { is_cut.wait_for(|is_cut| *is_cut).await.is_ok() } => cut,
                    };
                    if was_cut {
                        // Both ends stay open and hear nothing.
                        drop(is_cut.wait_for(|is_cut| !*is_cut).await);
                    }
                });
            }
        });
        Self {
            address: address.replace(&host, &own),
            cut,
        }
    }
}

#[tokio::test]
async fn a_server_behind_a_cut_wire_is_unavailable_and_comes_back() {
    let mut place = Place::postgres().await;
    let wire = Wire::to(&place.address).await;
    place.address.clone_from(&wire.address);
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("KEY", "one")])
        .await
        .unwrap();
    wire.cut.send(true).unwrap();
    let began = std::time::Instant::now();
    let (origin, target) = (origin(), target("shop", "development"));
    let (written, listed) = tokio::join!(
        acme.write("development", vec![entry("KEY", "two")]),
        acme.vault.list(&acme.owner, &origin, &target),
    );
    assert!(
        matches!(written, Err(WriteError::Unavailable(_))),
        "{written:?}"
    );
    assert!(
        matches!(listed, Err(ReadError::Unavailable(_))),
        "{listed:?}"
    );
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    wire.cut.send(false).unwrap();
    acme.write("development", vec![entry("KEY", "three")])
        .await
        .unwrap();
    assert_eq!(acme.read("development", "KEY").await.unwrap(), "three");
}
