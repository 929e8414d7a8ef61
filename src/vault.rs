//! Where domain, crypto and storage meet: a method a use case.
//!
//! [`Vault`] is a cheap handle. One writer task behind it owns the writing connection and the audit chains; every change
//! and every read's record goes through it in groups, and a caller is answered when the group with its record is durable.

mod access_entries;
pub mod audit;
pub mod authority;
mod cache;
mod counts;
pub mod credentials;
pub mod declarations;
mod environments;
mod loads;
pub mod organizations;
pub mod pods;
pub mod projects;
mod reads;
mod records;
mod refusals;
pub mod tokens;
pub mod variables;
mod writer;
mod writes;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use crate::crypto::envelope::SealError;
use crate::crypto::keys::{AuditKey, MasterKey, TokenKey};
use crate::storage::{self, Connection, Database, Risk, sealed_keys::SealedKeyRow};
use cache::Cache;
use counts::Counts;
use loads::{LoadError, Loads};
use records::Chain;
use writer::{Change, Queue, Verdict, Work};

/// Reads the time: milliseconds since 1970. Passed in, so that tests have a clock of their own.
pub trait Clock: Send + Sync {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    fn now_ms(&self) -> i64;
}

/// What a vault needs to open.
pub struct VaultSettings {
    /// `sqlite:PATH` or `postgres://…`.
    pub database: String,
    /// The master key. Never stored.
    pub master_key: MasterKey,
    /// Durability or transport risks that the administrator accepts by name.
    pub accepted_risks: Vec<AcceptedRisk>,
    /// The longest value that is accepted, in bytes.
    pub value_bytes_max: usize,
    /// Who proves which pod a token is bound to; `None` where there is no Kubernetes.
    pub pod_identity: Option<Arc<dyn pods::PodIdentity>>,
}

/// A PostgreSQL setting that the operator refuses unless told so by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptedRisk {
    /// `synchronous_commit=off`: acknowledged writes may be lost.
    SynchronousCommitOff,
    /// `fsync=off`: the database may be lost.
    FsyncOff,
    /// An `sslmode` under `verify-full`: the server's identity is not proven.
    SslMode,
}

/// The database could not be used: away, read-only or full. The caller may try again.
#[derive(Debug, thiserror::Error)]
#[error("the database cannot be used right now")]
pub struct Unavailable {
    /// What the driver says.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl Unavailable {
    /// Whether a change may have been made all the same: the database was lost, or too slow, before it had answered.
    pub fn is_uncertain(&self) -> bool {
        self.source
            .downcast_ref::<writer::GroupError>()
            .is_some_and(writer::GroupError::is_uncertain)
    }

    /// Whether the database answered, and holds what cannot be: the same will happen again until someone mends it.
    pub fn is_lasting(&self) -> bool {
        let storage = self.source.downcast_ref::<storage::Error>();
        let group = self.source.downcast_ref::<writer::GroupError>();
        let load = match self.source.downcast_ref::<LoadError>() {
            Some(LoadError::Database(error)) => Some(error.as_ref()),
            Some(LoadError::NoRoom { .. }) | None => None,
        };
        storage.or(load).is_some_and(storage::Error::is_lasting)
            || group.is_some_and(writer::GroupError::is_lasting)
    }
}

/// The vault. Cheap to clone.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    core: Arc<Core>,
    queue: Queue,
    pod_identity: Option<Arc<dyn pods::PodIdentity>>,
    counts: Counts,
}

/// What the vault and its writer share.
pub(crate) struct Core {
    database: Database,
    master_key: MasterKey,
    audit_key: AuditKey,
    token_key: TokenKey,
    clock: Arc<dyn Clock>,
    cache: Cache,
    loads: Loads,
    epoch: i64,
    value_bytes_max: usize,
}

/// Why a vault did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenVaultError {
    /// The database was sealed under another master key.
    #[error(
        "the master key is the wrong one: this database was sealed under the key {stored}, and the key given is {given}; start with the key {stored}"
    )]
    WrongMasterKey {
        /// The id of the key that is needed.
        stored: String,
        /// The id of the key that was given.
        given: String,
    },
    /// A key in the database does not open although its master key is the right one.
    #[error(
        "the sealed key {name:?} in the database does not open: its row was altered; restore the database from a backup"
    )]
    AlteredKey {
        /// Which one.
        name: &'static str,
    },
    /// Another process has the database file open.
    #[error(
        "the database {path} is in use by another process ({holder}): stop that process, or give this one a database of its own"
    )]
    InUse {
        /// The database file.
        path: PathBuf,
        /// What is known of the other process.
        holder: String,
    },
    /// The database cannot be used as it is; the text says what to do.
    #[error("the database cannot be opened")]
    Database(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The system gives no random bytes.
    #[error("no keys can be made")]
    Random(#[source] SealError),
}

impl From<storage::OpenError> for OpenVaultError {
    fn from(error: storage::OpenError) -> Self {
        match error {
            storage::OpenError::Locked { path, holder } => Self::InUse { path, holder },
            other => Self::Database(Box::new(other)),
        }
    }
}

impl From<storage::Error> for OpenVaultError {
    fn from(error: storage::Error) -> Self {
        Self::Database(Box::new(error))
    }
}

impl Vault {
    /// Opens the database, migrates it, checks the master key against it, and starts the writer task.
    ///
    /// # Errors
    /// [`OpenVaultError`]; nothing is left behind.
    pub async fn open(
        settings: VaultSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, OpenVaultError> {
        let accepted: Vec<Risk> = settings
            .accepted_risks
            .iter()
            .map(|risk| match risk {
                AcceptedRisk::SynchronousCommitOff => Risk::SynchronousCommitOff,
                AcceptedRisk::FsyncOff => Risk::FsyncOff,
                AcceptedRisk::SslMode => Risk::SslMode,
            })
            .collect();
        let database = Database::open(&settings.database, &accepted).await?;
        let mut db = database.writer().await?;
        db.begin().await?;
        let prepared = prepare(&mut db, &settings.master_key, clock.now_ms()).await;
        let (audit_key, token_key, epoch) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                db.roll_back().await?;
                database.close().await;
                return Err(error);
            }
        };
        db.commit().await?;
        db.close().await?;
        let core = Arc::new(Core {
            database,
            master_key: settings.master_key,
            audit_key,
            token_key,
            clock,
            cache: Cache::default(),
            loads: Loads::default(),
            epoch,
            value_bytes_max: settings.value_bytes_max,
        });
        let inner = Arc::new(Inner {
            queue: Queue::start(Arc::clone(&core)),
            core,
            pod_identity: settings.pod_identity,
            counts: Counts::default(),
        });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            let mut minute = tokio::time::interval(counts::INTERVAL);
            minute.tick().await;
            loop {
                minute.tick().await;
                let Some(inner) = weak.upgrade() else {
                    return;
                };
                let vault = Self(inner);
                vault.record_counts().await;
                vault.forget_request_keys().await;
            }
        });
        Ok(Self(inner))
    }

    /// Ends when the writer has: from then on nothing is answered, and the process is to be started anew.
    pub async fn closed(&self) {
        self.0.queue.closed().await;
    }

    /// Writes what is queued, and everything that is counted: the trail is whole then, unless the vault is used on.
    pub async fn flush(&self) {
        self.record_counts().await;
        self.0.queue.flush().await;
    }

    /// Writes what is still queued and closes the database. What is counted is lost unless it was flushed.
    pub async fn close(&self) {
        self.0.queue.close().await;
        self.core().database.close().await;
    }

    /// Whether the database answers and can be written.
    ///
    /// # Errors
    /// [`Unavailable`] with what the driver says.
    pub async fn check(&self) -> Result<(), Unavailable> {
        self.0.queue.change(Check).await
    }

    /// The longest value that is accepted, in bytes.
    pub fn value_bytes_max(&self) -> usize {
        self.core().value_bytes_max
    }

    fn core(&self) -> &Core {
        &self.0.core
    }

    /// A connection for reading.
    async fn reader(&self) -> Result<Connection, Unavailable> {
        Ok(self.core().database.reader().await?)
    }
}

/// Writes the smallest thing that shows whether the database takes writes.
struct Check;

impl Change for Check {
    type Answer = ();

    fn chain(&self) -> Chain {
        Chain::Installation
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<()>, storage::Error> {
        storage::organizations::touch_installation(&mut work.db, work.now_ms).await?;
        Ok(Verdict::Keep(()))
    }
}

/// Makes what a new database needs, and opens its keys.
async fn prepare(
    db: &mut Connection,
    master_key: &MasterKey,
    now_ms: i64,
) -> Result<(AuditKey, TokenKey, i64), OpenVaultError> {
    storage::organizations::insert_installation(db, now_ms).await?;
    let given = master_key.derive_id();
    let audit_key = AuditKey::make().map_err(OpenVaultError::Random)?;
    let token_key = TokenKey::make().map_err(OpenVaultError::Random)?;
    let sealed = [
        ("audit", master_key.seal_audit_key(&audit_key)),
        ("token", master_key.seal_token_key(&token_key)),
    ];
    for (name, envelope) in sealed {
        let row = SealedKeyRow {
            name: name.to_owned(),
            kek_id: given.clone(),
            envelope: envelope.map_err(OpenVaultError::Random)?,
            public_text: None,
        };
        storage::sealed_keys::insert_first_sealed_key(db, &row, now_ms).await?;
    }
    let audit = stored_key(db, "audit", &given).await?;
    let audit_key = master_key
        .open_audit_key(&audit.kek_id, &audit.envelope)
        .map_err(|_| OpenVaultError::AlteredKey { name: "audit" })?;
    let token = stored_key(db, "token", &given).await?;
    let token_key = master_key
        .open_token_key(&token.kek_id, &token.envelope)
        .map_err(|_| OpenVaultError::AlteredKey { name: "token" })?;
    let epoch = storage::organizations::installation_epoch(db).await?;
    Ok((audit_key, token_key, epoch))
}

/// The sealed key of that name which the given master key opens.
async fn stored_key(
    db: &mut Connection,
    name: &'static str,
    given: &str,
) -> Result<SealedKeyRow, OpenVaultError> {
    let rows = storage::sealed_keys::sealed_keys(db, name).await?;
    let stored: Vec<String> = rows.iter().map(|row| row.kek_id.clone()).collect();
    rows.into_iter()
        .find(|row| row.kek_id == given)
        .ok_or_else(|| OpenVaultError::WrongMasterKey {
            stored: stored.join(" or "),
            given: given.to_owned(),
        })
}

/// A new id: its kind, and 128 bits of which the first are the time, so that ids sort by age.
fn make_id<T>(kind: &str) -> Result<T, storage::Error>
where
    T: std::str::FromStr<Err = crate::domain::names::NameError>,
{
    let text = format!("{kind}_{}", uuid::Uuid::now_v7().simple());
    text.parse().map_err(|error| storage::Error::Unexpected {
        what: format!("{error}"),
    })
}

/// Random bytes were not to be had in the middle of a change.
fn no_random(error: SealError) -> storage::Error {
    storage::Error::Unexpected {
        what: error.to_string(),
    }
}
