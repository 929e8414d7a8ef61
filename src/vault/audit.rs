//! The audit trail: heads to publish, and the check of the chains.
use super::{Unavailable, Vault};

/// Where a chain ends now. Published outside the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditHead {
    /// The organization's id, or `installation` for what belongs to none.
    pub chain: String,
    /// The epoch of the database: raised by an accepted restore.
    pub epoch: i64,
    /// The sequence of the newest record; 0 for none.
    pub sequence: i64,
    /// The newest record's MAC, in lower-case hex; empty for none.
    pub mac: String,
}

/// What a check of the trail found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditReport {
    /// How many records were read.
    pub records: u64,
    /// Every finding, naming chain and sequence; empty when the trail is whole.
    pub findings: Vec<String>,
}

impl Vault {
    /// The heads of all chains.
    pub async fn audit_heads(&self) -> Result<Vec<AuditHead>, Unavailable> {
        todo!()
    }
    /// Reads every chain and compares it with `published` heads: altered, missing, reordered or cut-off records, and
    /// envelopes that are not what their write record says.
    pub async fn verify_audit(&self, _published: &[AuditHead]) -> Result<AuditReport, Unavailable> {
        todo!()
    }
}
