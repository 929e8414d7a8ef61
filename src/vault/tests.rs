//! What the vault promises, a file a noun. What holds for both databases is tried on both.

/// Every test of the list, once on each database; those behind the semicolon are races, and run on threads of their own.
/// Before the modules, which could not use it otherwise.
macro_rules! on_both_databases {
    ($($name:ident),+ $(,)? $(; $($race:ident),+ $(,)?)?) => {
        mod sqlite {
            $(#[tokio::test] async fn $name() { super::$name(super::Place::sqlite()).await; })+
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $race() { super::$race(super::Place::sqlite()).await; })+)?
        }
        mod on_postgres {
            $(#[tokio::test] async fn $name() { super::$name(super::Place::postgres().await).await; })+
            $($(#[tokio::test(flavor = "multi_thread")]
            async fn $race() { super::$race(super::Place::postgres().await).await; })+)?
        }
    };
}

mod access;
mod altered;
mod audit;
mod credentials;
mod databases;
mod declarations;
mod keys;
mod memory;
mod pods;
mod projects;
mod replicas;
mod variables;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tempfile::TempDir;

use super::credentials::{NewToken, TokenRequest};
use super::declarations::{ProjectDeclaration, StageDeclaration};
use super::variables::{
    Ask, Entry, Opened, ReadError, Target, Write, WriteError, WriteMode, Written,
};
use super::{AcceptedRisk, Clock, OpenVaultError, Vault, VaultSettings};
use crate::crypto::keys::MasterKey;
use crate::crypto::tokens::PresentedToken;
use crate::domain::access::{AccessGrant, Caller, PodCaller, Role};
use crate::domain::audit::{Origin, Source};
use crate::domain::names::{DisplayName, StageId};
use crate::domain::plaintext::Plaintext;
use crate::domain::reference::Allowance;
use crate::domain::variable::Kind;
use crate::storage::{Connection, cells, test_server as postgres};

/// A clock that stands still until it is moved.
struct StillClock(AtomicI64);

impl StillClock {
    fn at(now_ms: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(now_ms)))
    }

    fn advance(&self, time_ms: i64) {
        self.0.fetch_add(time_ms, Ordering::Relaxed);
    }
}

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
            clock: StillClock::at(1_800_000_000_000),
            _folder: Some(folder),
        }
    }

    async fn postgres() -> Self {
        Self {
            address: postgres::make_database().await,
            clock: StillClock::at(1_800_000_000_000),
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

    /// The stage `production` of a project `backend` that the account `api` in `team-a` may read, with one variable `A`.
    async fn backend(&self) -> StageId {
        let project = project_declaration("team-a", "backend");
        self.vault.declare_project(&project).await.unwrap();
        let stage = stage_declaration("team-a", "backend", "production", &["api"]);
        let stage = self.vault.declare_stage(&stage).await.unwrap().id;
        let (place, entries) = (target("backend", "production"), vec![entry("A", "x")]);
        self.vault
            .write(&self.owner, &origin(), &place, upsert(entries))
            .await
            .unwrap();
        stage
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

    /// How many records of an action are in the organization's chain.
    async fn count(&self, action: &str) -> usize {
        let actions = self.actions().await;
        actions.iter().filter(|found| *found == action).count()
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

fn pod(namespace: &str, account: &str, allowances: Vec<Allowance>) -> PodCaller {
    PodCaller {
        namespace: namespace.parse().unwrap(),
        service_account: account.parse().unwrap(),
        pod: "api-1".parse().unwrap(),
        uid: "u".to_owned(),
        allowances,
    }
}
