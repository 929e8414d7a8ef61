//! What the vault promises. The same tests run on SQLite and on PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tempfile::TempDir;

use super::authority::{Authority, AuthorityError};
use super::credentials::{
    AuthenticateError, CreateTokenError, NewToken, RevokeTokenError, TokenRequest,
};
use super::declarations::{
    DeclarationRefusal, DeclareError, Deletion, ProjectDeclaration, StageDeclaration, StageOwner,
};
use super::organizations::BootstrapError;
use super::pods::PodReadError;
use super::projects::{CreateError, ListError};
use super::variables::{
    Ask, Entry, Opened, ReadError, Target, Write, WriteError, WriteMode, Written,
};
use super::{AcceptedRisk, Clock, OpenVaultError, Vault, VaultSettings};
use crate::crypto::keys::MasterKey;
use crate::crypto::tokens::PresentedToken;
use crate::domain::access::{AccessGrant, Caller, PodCaller, Refusal, Role};
use crate::domain::audit::{Origin, Source};
use crate::domain::names::DisplayName;
use crate::domain::plaintext::Plaintext;
use crate::domain::reference::Allowance;
use crate::domain::variable::{DeclaredType, Kind, Visibility};
use crate::storage::{Connection, cells, test_server as postgres};

/// A clock that stands still until it is moved.
struct StillClock(AtomicI64);

impl Clock for StillClock {
    fn now_ms(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One database, and how to open it again.
struct Place {
    address: String,
    clock: Arc<StillClock>,
    _folder: Option<TempDir>,
}

impl Place {
    fn sqlite() -> Self {
        let folder = TempDir::new().unwrap();
        Self {
            address: format!("sqlite:{}", folder.path().join("barekey.db").display()),
            clock: Arc::new(StillClock(AtomicI64::new(1_800_000_000_000))),
            _folder: Some(folder),
        }
    }

    async fn postgres() -> Self {
        Self {
            address: postgres::make_database().await,
            clock: Arc::new(StillClock(AtomicI64::new(1_800_000_000_000))),
            _folder: None,
        }
    }

    fn is_shared(&self) -> bool {
        self.address.starts_with("postgres")
    }

    async fn try_open(&self, key: u8) -> Result<Vault, OpenVaultError> {
        let settings = VaultSettings {
            database: self.address.clone(),
            master_key: MasterKey::from_file_content(&[key; 32]).unwrap(),
            accepted_risks: vec![AcceptedRisk::SslMode],
            value_bytes_max: 1024,
            pod_identity: None,
        };
        Vault::open(settings, self.clock.clone()).await
    }

    async fn open(&self) -> Vault {
        self.try_open(7).await.unwrap()
    }
}

fn origin() -> Origin {
    Origin {
        source: Source::Api,
        ip: "192.0.2.1".to_owned(),
        user_agent: "test".to_owned(),
        request_id: "req_1".to_owned(),
    }
}

fn target(project: &str, stage: &str) -> Target {
    Target {
        organization: None,
        project: project.parse().unwrap(),
        stage: stage.parse().unwrap(),
    }
}

fn entry(name: &str, value: &str) -> Entry {
    Entry {
        name: name.parse().unwrap(),
        kind: Kind::Secret,
        declared_type: None,
        visibility: None,
        value: Plaintext::from(value.to_owned()),
    }
}

fn upsert(entries: Vec<Entry>) -> Write {
    Write {
        mode: WriteMode::Upsert,
        entries,
        deletes: Vec::new(),
    }
}

fn ask(name: &str) -> Ask {
    Ask {
        name: name.parse().unwrap(),
        declared_type: None,
    }
}

fn text(value: &Plaintext) -> &str {
    value.reveal_text().unwrap()
}

/// An organization `acme` with a project `shop`, and its owner.
struct Acme {
    vault: Vault,
    owner: Caller,
}

impl Acme {
    async fn on(place: &Place) -> Self {
        let vault = place.open().await;
        let (_, token) = vault
            .bootstrap(&origin(), &"acme".parse().unwrap())
            .await
            .unwrap();
        let owner = known(&vault, &token).await;
        let name = DisplayName::parse_project("Shop").unwrap();
        let slug = "shop".parse().unwrap();
        vault
            .create_project(&owner, &origin(), None, &name, Some(&slug))
            .await
            .unwrap();
        Self { vault, owner }
    }

    async fn write(&self, stage: &str, entries: Vec<Entry>) -> Result<Written, WriteError> {
        let target = target("shop", stage);
        self.vault
            .write(&self.owner, &origin(), &target, upsert(entries))
            .await
    }

    async fn read(&self, stage: &str, name: &str) -> Result<String, ReadError> {
        read(&self.vault, &self.owner, stage, name).await
    }

    async fn token(&self, role: Role, project: Option<&str>, stage: Option<&str>) -> NewToken {
        let request = TokenRequest {
            organization: "acme".parse().unwrap(),
            name: "ci".to_owned(),
            role,
            project: project.map(|slug| slug.parse().unwrap()),
            stage: stage.map(|slug| slug.parse().unwrap()),
            expires_at_ms: None,
        };
        self.vault.create_token(&origin(), &request).await.unwrap()
    }

    async fn caller(&self, role: Role, project: Option<&str>, stage: Option<&str>) -> Caller {
        known(&self.vault, &self.token(role, project, stage).await).await
    }

    /// A connection behind the vault's back.
    async fn intruder(&self) -> Connection {
        self.vault.core().database.writer().await.unwrap()
    }

    /// Changes the database behind the vault's back; memory is told nothing, as after a restart it knows nothing.
    async fn tamper(&self, statement: &'static str) {
        let mut db = self.intruder().await;
        let changed = db.execute(statement, cells![]).await.unwrap();
        assert!(changed > 0, "nothing was tampered with: {statement}");
        self.vault.core().cache.forget_all();
    }

    async fn findings(&self) -> Vec<String> {
        self.vault.verify_audit(&[]).await.unwrap().findings
    }

    /// The actions in the organization's chain, oldest first.
    async fn actions(&self) -> Vec<String> {
        let mut db = self.intruder().await;
        let rows = db
            .rows(
                "SELECT action FROM audit_records WHERE chain <> 'installation' ORDER BY sequence",
                vec![],
            )
            .await
            .unwrap();
        rows.iter()
            .map(|row| row.text(0).unwrap().to_owned())
            .collect()
    }
}

async fn known(vault: &Vault, token: &NewToken) -> Caller {
    vault
        .authenticate(&presented(text(&token.token)))
        .await
        .unwrap()
}

fn presented(token: &str) -> PresentedToken {
    PresentedToken::new(token.to_owned())
}

async fn read(
    vault: &Vault,
    caller: &Caller,
    stage: &str,
    name: &str,
) -> Result<String, ReadError> {
    let opened: Vec<Opened> = vault
        .evaluate(
            caller,
            &origin(),
            &target("shop", stage),
            &[ask(name)],
            None,
        )
        .await?;
    Ok(text(&opened[0].value).to_owned())
}

/// Limits the file of the writer's own connection, as a full volume does.
struct LimitPages(i64);

impl super::writer::Change for LimitPages {
    type Answer = ();

    fn chain(&self) -> super::records::Chain {
        super::records::Chain::Installation
    }

    async fn run(
        &self,
        work: &mut super::writer::Work,
    ) -> Result<super::writer::Verdict<()>, crate::storage::Error> {
        let statement = match self.0 {
            1 => "PRAGMA max_page_count = 1",
            _ => "PRAGMA max_page_count = 1000000",
        };
        work.db.rows(statement, vec![]).await?;
        Ok(super::writer::Verdict::Keep(()))
    }
}

impl Vault {
    async fn limit_pages(&self, pages: i64) {
        self.0.queue.change(LimitPages(pages)).await.unwrap();
    }
}

/// Every test of the list, once on each database.
macro_rules! on_both_databases {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name(super::Place::sqlite()).await; })+
        }
        mod on_postgres {
            $(#[tokio::test] async fn $name() { super::$name(super::Place::postgres().await).await; })+
        }
    };
}

on_both_databases!(
    a_written_value_is_read_back_and_survives_a_restart,
    a_second_write_keeps_type_and_visibility_and_raises_the_version,
    a_bad_write_is_refused_with_what_would_pass_and_changes_nothing,
    a_deleted_variable_is_gone_and_its_versions_are_never_used_again,
    each_absence_has_its_own_error,
    a_type_that_the_caller_does_not_expect_is_refused,
    a_token_of_a_small_role_is_refused_and_the_refusal_is_recorded,
    the_record_of_a_refusal_keeps_few_names,
    a_scoped_token_cannot_tell_what_is_there_outside_its_scope,
    a_role_that_sees_nothing_cannot_tell_which_stages_are_there,
    a_pod_has_no_business_on_the_other_routes,
    another_organizations_slug_is_refused,
    an_unknown_a_revoked_and_an_expired_token_read_the_same,
    a_revoked_token_is_none_even_while_it_is_used,
    a_planted_or_altered_token_row_is_no_credential,
    tokens_name_what_is_missing,
    an_altered_envelope_is_refused_and_recorded_and_others_are_served,
    what_stands_beside_an_envelope_is_authenticated,
    an_envelope_moved_to_another_stage_does_not_open,
    an_organization_is_made_once,
    projects_have_three_stages_and_slugs_are_unique,
    an_untouched_trail_has_no_findings,
    an_altered_record_is_named,
    a_missing_record_is_named,
    reordered_records_are_named,
    a_cut_off_trail_is_named,
    rows_that_no_record_speaks_of_are_named,
    an_older_version_put_back_is_named,
    the_wrong_master_key_names_both_ids,
    a_newer_schema_is_refused_by_name,
    an_altered_key_row_is_refused_by_name,
    a_namespace_owns_what_it_declared_first,
    access_counts_from_the_owner_and_ends_with_its_resource,
    deletion_waits_for_a_confirmation,
    what_was_retained_is_adopted,
    a_pod_reads_its_allowance_cut_to_its_access,
    a_pod_without_allowance_or_access_reads_nothing_and_that_is_recorded,
    the_first_authority_stays,
    attempts_without_a_caller_are_counted,
    one_change_that_fails_leaves_the_others_of_its_group_whole,
    reads_never_show_what_an_acknowledged_write_replaced,
    a_request_that_named_itself_is_counted_once,
    a_database_that_takes_no_writes_is_unavailable_and_recovers,
    a_stage_larger_than_memory_is_read_all_the_same,
    a_stage_takes_no_more_variables_than_it_may,
    a_stage_takes_no_more_bytes_than_it_may,
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
        .list(&acme.owner, &target("shop", "development"))
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
        .list(&acme.owner, &target("shop", "development"))
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
    let listed = acme.vault.list(&acme.owner, &stage).await.unwrap();
    assert_eq!(listed[0].version, 2);
    assert_eq!(acme.read("development", "A").await.unwrap(), "new");
    assert_eq!(acme.findings().await, Vec::<String>::new());
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
            .list(&acme.owner, &target("none", "development"))
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
            .list_stages(&acme.owner, None, &"none".parse().unwrap())
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

async fn a_token_of_a_small_role_is_refused_and_the_refusal_is_recorded(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("production", vec![entry("A", "x")])
        .await
        .unwrap();
    let viewer = acme.caller(Role::Viewer, None, None).await;
    let developer = acme.caller(Role::Developer, None, None).await;
    let billing = acme.caller(Role::Billing, None, None).await;
    assert!(matches!(
        read(&acme.vault, &viewer, "production", "A").await,
        Err(ReadError::Refused(Refusal::RoleTooSmall { .. }))
    ));
    assert!(
        read(&acme.vault, &developer, "production", "A")
            .await
            .is_ok()
    );
    for stage in ["production", "nowhere"] {
        let refused = read(&acme.vault, &billing, stage, "A").await;
        assert!(
            matches!(
                refused,
                Err(ReadError::Refused(Refusal::RoleTooSmall { .. }))
            ),
            "{stage}: {refused:?}"
        );
    }
    for entries in [vec![entry("A", "y")], vec![entry("A", "y\0")]] {
        let stage = target("shop", "production");
        let refused = acme
            .vault
            .write(&developer, &origin(), &stage, upsert(entries))
            .await;
        assert!(
            matches!(refused, Err(WriteError::Refused(_))),
            "{refused:?}"
        );
    }
    let name = DisplayName::parse_stage("QA").unwrap();
    let refused = acme
        .vault
        .create_stage(
            &developer,
            &origin(),
            None,
            &"shop".parse().unwrap(),
            &name,
            None,
        )
        .await;
    assert!(
        matches!(refused, Err(CreateError::Refused(_))),
        "{refused:?}"
    );
    assert_eq!(acme.read("production", "A").await.unwrap(), "x");
    let actions = acme.actions().await;
    let count = |action: &str| actions.iter().filter(|found| *found == action).count();
    assert_eq!(count("read.refused"), 3);
    assert_eq!(count("write.refused"), 3);
    assert_eq!(count("variables.read"), 2);
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn the_record_of_a_refusal_keeps_few_names(place: Place) {
    let acme = Acme::on(&place).await;
    let billing = acme.caller(Role::Billing, None, None).await;
    let operator = acme.caller(Role::Operator, None, None).await;
    let stage = target("shop", "development");
    let names: Vec<String> = (0..1000).map(|at| format!("NAME_{at}")).collect();
    let asks: Vec<Ask> = names.iter().map(|name| ask(name)).collect();
    let entries = || names.iter().map(|name| entry(name, "x")).collect();
    let read = acme
        .vault
        .evaluate(&billing, &origin(), &stage, &asks, None)
        .await;
    assert!(matches!(read, Err(ReadError::Refused(_))), "{read:?}");
    for caller in [&billing, &operator] {
        let written = acme
            .vault
            .write(caller, &origin(), &stage, upsert(entries()))
            .await;
        assert!(
            matches!(written, Err(WriteError::Refused(_))),
            "{written:?}"
        );
    }
    let mut db = acme.intruder().await;
    let statement =
        "SELECT names, detail FROM audit_records WHERE outcome = 'refused' ORDER BY sequence";
    let rows = db.rows(statement, cells![]).await.unwrap();
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert_eq!(
            row.text(0).unwrap().lines().collect::<Vec<_>>(),
            names[..16]
        );
        assert!(row.text(1).unwrap().ends_with("of 1000 names are kept)"));
    }
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn a_scoped_token_cannot_tell_what_is_there_outside_its_scope(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("staging", vec![entry("A", "x")]).await.unwrap();
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    let scoped = acme
        .caller(Role::Admin, Some("shop"), Some("development"))
        .await;
    let of_project = acme.caller(Role::Admin, Some("shop"), None).await;
    assert!(read(&acme.vault, &scoped, "development", "A").await.is_ok());
    let mut answers = Vec::new();
    for (project, stage, name) in [
        ("shop", "staging", "A"),
        ("shop", "staging", "NONE"),
        ("shop", "nowhere", "A"),
        ("none", "nowhere", "A"),
    ] {
        let stage = target(project, stage);
        let refused = acme
            .vault
            .evaluate(&scoped, &origin(), &stage, &[ask(name)], None)
            .await;
        answers.push(format!("{refused:?}"));
        let refused = acme.vault.pull(&scoped, &origin(), &stage, None).await;
        answers.push(format!("{refused:?}"));
        let refused = acme.vault.list(&scoped, &stage).await;
        answers.push(format!("{refused:?}"));
        let refused = acme
            .vault
            .write(&scoped, &origin(), &stage, upsert(vec![entry("A", "y")]))
            .await;
        answers.push(format!("{refused:?}"));
    }
    answers.dedup();
    assert_eq!(answers, ["Err(Refused(OutOfScope))"]);
    let elsewhere = acme
        .vault
        .evaluate(
            &of_project,
            &origin(),
            &target("none", "x"),
            &[ask("A")],
            None,
        )
        .await;
    assert!(matches!(
        elsewhere,
        Err(ReadError::Refused(Refusal::OutOfScope))
    ));
    assert!(matches!(
        read(&acme.vault, &of_project, "nowhere", "A").await,
        Err(ReadError::NoEnvironment { .. })
    ));
    let listed = acme
        .vault
        .list_stages(&scoped, None, &"shop".parse().unwrap())
        .await
        .unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(
        acme.vault.list_projects(&scoped, None).await.unwrap().len(),
        1
    );
}

async fn a_role_that_sees_nothing_cannot_tell_which_stages_are_there(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x")])
        .await
        .unwrap();
    let of_organization = acme.caller(Role::Billing, None, None).await;
    let of_project = acme.caller(Role::Billing, Some("shop"), None).await;
    for caller in [&of_organization, &of_project] {
        let mut answers: [Vec<String>; 4] = Default::default();
        for stage in ["development", "production", "nowhere"] {
            let stage = target("shop", stage);
            let write = async |value: &str| {
                let write = upsert(vec![entry("A", value)]);
                acme.vault.write(caller, &origin(), &stage, write).await
            };
            let read = acme
                .vault
                .evaluate(caller, &origin(), &stage, &[ask("A")], None)
                .await;
            answers[0].push(read.unwrap_err().to_string());
            answers[1].push(write("y").await.unwrap_err().to_string());
            answers[1].push(write("y\0").await.unwrap_err().to_string());
            let listed = acme.vault.list(caller, &stage).await;
            answers[2].push(listed.unwrap_err().to_string());
            let pulled = acme.vault.pull(caller, &origin(), &stage, None).await;
            answers[3].push(pulled.unwrap_err().to_string());
        }
        for (answers, act) in answers.iter_mut().zip(["read", "write", "list", "read"]) {
            answers.dedup();
            assert_eq!(answers.len(), 1, "{answers:?}");
            let says = format!("the role billing may not {act} ");
            assert!(answers[0].starts_with(&says), "{answers:?}");
        }
    }
    let stage = target("none", "development");
    assert!(matches!(
        acme.vault.list(&of_project, &stage).await,
        Err(ReadError::Refused(Refusal::OutOfScope))
    ));
}

async fn a_pod_has_no_business_on_the_other_routes(place: Place) {
    let acme = Acme::on(&place).await;
    let pod = Caller::Pod(pod("shop", "api", Vec::new()));
    assert!(matches!(
        read(&acme.vault, &pod, "development", "A").await,
        Err(ReadError::Refused(Refusal::PodElsewhere))
    ));
    let stage = target("shop", "development");
    let refused = acme
        .vault
        .write(&pod, &origin(), &stage, upsert(vec![entry("A", "x")]))
        .await;
    assert!(matches!(
        refused,
        Err(WriteError::Refused(Refusal::PodElsewhere))
    ));
    assert!(acme.vault.list(&pod, &stage).await.is_err());
}

async fn another_organizations_slug_is_refused(place: Place) {
    let acme = Acme::on(&place).await;
    let mut elsewhere = target("shop", "development");
    elsewhere.organization = Some("other".parse().unwrap());
    let refused = acme
        .vault
        .evaluate(&acme.owner, &origin(), &elsewhere, &[ask("A")], None)
        .await;
    assert!(matches!(
        refused,
        Err(ReadError::Refused(Refusal::OtherOrganization))
    ));
    let mut own = target("shop", "development");
    own.organization = Some("acme".parse().unwrap());
    assert!(acme.vault.list(&acme.owner, &own).await.is_ok());
}

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
    place.clock.0.fetch_add(10_000, Ordering::Relaxed);
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
        .list_stages(&acme.owner, None, &"shop".parse().unwrap())
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
    place.clock.0.fetch_add(1, Ordering::Relaxed);
    let made = acme
        .vault
        .create_project(&acme.owner, &origin(), None, &name, None)
        .await
        .unwrap();
    assert!(made.slug.as_str().starts_with("shop-"), "{}", made.slug);
    let listed = acme.vault.list_projects(&acme.owner, None).await.unwrap();
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

fn project_declaration(namespace: &str, slug: &str) -> ProjectDeclaration {
    ProjectDeclaration {
        namespace: namespace.parse().unwrap(),
        resource: slug.parse().unwrap(),
        organization: "acme".parse().unwrap(),
        slug: slug.parse().unwrap(),
        name: None,
    }
}

fn stage_declaration(
    namespace: &str,
    project: &str,
    slug: &str,
    accounts: &[&str],
) -> StageDeclaration {
    StageDeclaration {
        namespace: namespace.parse().unwrap(),
        resource: format!("{project}-{slug}").parse().unwrap(),
        organization: "acme".parse().unwrap(),
        project: project.parse().unwrap(),
        slug: slug.parse().unwrap(),
        protected: None,
        access: accounts
            .iter()
            .map(|account| AccessGrant {
                namespace: namespace.parse().unwrap(),
                service_accounts: vec![account.parse().unwrap()],
                variables: None,
            })
            .collect(),
    }
}

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
    assert!(vault.list(&acme.owner, &stage).await.is_ok());
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

fn pod(namespace: &str, account: &str, allowances: Vec<Allowance>) -> PodCaller {
    PodCaller {
        namespace: namespace.parse().unwrap(),
        service_account: account.parse().unwrap(),
        pod: "api-1".parse().unwrap(),
        uid: "u".to_owned(),
        node: None,
        allowances,
    }
}

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
    let names = vault.variable_names(&stage).await.unwrap().unwrap();
    assert_eq!(names.len(), 4);
    assert!(
        vault
            .variable_names(&"stg_none".parse().unwrap())
            .await
            .unwrap()
            .is_none()
    );
    assert_eq!(acme.findings().await, Vec::<String>::new());
}

async fn a_pod_without_allowance_or_access_reads_nothing_and_that_is_recorded(place: Place) {
    let acme = Acme::on(&place).await;
    let vault = &acme.vault;
    vault
        .declare_project(&project_declaration("team-a", "backend"))
        .await
        .unwrap();
    let declaration = stage_declaration("team-a", "backend", "production", &["api"]);
    let stage = vault.declare_stage(&declaration).await.unwrap().id;
    vault
        .write(
            &acme.owner,
            &origin(),
            &target("backend", "production"),
            upsert(vec![entry("A", "x")]),
        )
        .await
        .unwrap();
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

async fn attempts_without_a_caller_are_counted(place: Place) {
    let acme = Acme::on(&place).await;
    for _ in 0..3 {
        acme.vault.count_unknown_caller();
    }
    acme.vault.record_unknown_callers().await;
    acme.vault.record_unknown_callers().await;
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
    let used = db
        .row("SELECT last_used_at FROM api_tokens", vec![])
        .await
        .unwrap()
        .unwrap();
    assert_eq!(used.integer(0).unwrap(), place.clock.now_ms());
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

async fn a_stage_larger_than_memory_is_read_all_the_same(place: Place) {
    let acme = Acme::on(&place).await;
    acme.write("development", vec![entry("A", "x"), entry("B", "y")])
        .await
        .unwrap();
    // The envelope of a version that is not the newest: only its length counts here.
    let mut db = acme.intruder().await;
    let filler = "f".repeat(9 * 1024 * 1024);
    db.execute(
        "UPDATE variable_versions SET envelope_a = $1 WHERE name = 'B'",
        cells![filler],
    )
    .await
    .unwrap();
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
    db.execute(
        "UPDATE variable_versions SET envelope_a = $1 WHERE name = 'B'",
        cells![filler],
    )
    .await
    .unwrap();
    acme.vault.core().cache.forget_all();
    let value = "v".repeat(1024);
    let refused = problem(acme.write("development", vec![entry("C", &value)]).await);
    assert!(
        refused.contains("once sealed and may take 8388608"),
        "{refused}"
    );
    let listed = acme
        .vault
        .list(&acme.owner, &target("shop", "development"))
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
            .list(&acme.owner, &target("shop", "development"))
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

#[tokio::test]
async fn an_address_that_is_none_says_what_would_pass() {
    for address in ["", "barekey.db", "mysql://x", "sqlite:"] {
        let place = Place {
            address: address.to_owned(),
            clock: Arc::new(StillClock(AtomicI64::new(0))),
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
        there.list(&caller, &stage).await,
        Err(ReadError::Refused(Refusal::CredentialEnded))
    ));
    assert!(there.list_projects(&caller, None).await.is_err());
    let refused = there.authenticate(&presented(text(&token.token))).await;
    assert!(
        matches!(refused, Err(AuthenticateError::Unknown)),
        "{refused:?}"
    );
    assert_eq!(here.findings().await, Vec::<String>::new());
}

#[tokio::test]
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
    let actions = here.actions().await;
    let count = |action: &str| actions.iter().filter(|found| *found == action).count();
    assert_eq!(
        (count("variables.written"), count("variables.read")),
        (40, 40)
    );
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
    let target = target("shop", "development");
    let (written, listed) = tokio::join!(
        acme.write("development", vec![entry("KEY", "two")]),
        acme.vault.list(&acme.owner, &target),
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
    let actions = acme.actions().await;
    let count = |action: &str| actions.iter().filter(|found| *found == action).count();
    assert_eq!((count("read.refused"), count("write.refused")), (3, 4));
}
