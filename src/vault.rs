//! Where domain, crypto and storage meet: a method a use case.
//!
//! [`Vault`] is a cheap handle. One writer task behind it owns the writing connection and the audit chains; every change
//! and every read's record goes through it in groups, and a caller is answered when the group with its record is durable.

pub mod audit;
pub mod authority;
pub mod credentials;
pub mod declarations;
pub mod organizations;
pub mod pods;
pub mod projects;
pub mod variables;

use std::sync::Arc;

use crate::crypto::keys::MasterKey;

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

/// The vault. Cheap to clone.
#[derive(Clone)]
pub struct Vault(Arc<Inner>);

struct Inner {
    #[allow(dead_code)]
    settings: VaultSettings,
    #[allow(dead_code)]
    clock: Arc<dyn Clock>,
}

/// Why a vault did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenVaultError {
    /// (The variants are the vault's own: wrong master key naming both ids, lock held by another process, newer schema,
    /// refused database setting, database error.)
    #[error("{0}")]
    Placeholder(String),
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
        Ok(Self(Arc::new(Inner { settings, clock })))
    }

    /// Writes what is still queued and closes the database.
    pub async fn close(&self) {}

    /// Whether the database answers and can be written.
    pub async fn check(&self) -> Result<(), Unavailable> {
        todo!()
    }

    /// The longest value that is accepted, in bytes.
    pub fn value_bytes_max(&self) -> usize {
        self.0.settings.value_bytes_max
    }
}
