//! The certificate authority, kept sealed beside everything else.
use super::{Unavailable, Vault};
use crate::domain::plaintext::Plaintext;

/// The CA: a certificate, and the key that signs leaves.
#[derive(Debug)]
pub struct Authority {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The key, PKCS#8 PEM.
    pub key_pem: Plaintext,
}

/// Why there is no CA.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The stored one does not open.
    #[error("the stored certificate authority does not open: its row was altered")]
    Altered,
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Vault {
    /// The stored CA; when there is none, stores and returns `candidate`. Of several replicas that start at once, all get the one that was stored first.
    pub async fn authority(&self, _candidate: Authority) -> Result<Authority, AuthorityError> {
        todo!()
    }
    /// The stored CA; `None` before the first start.
    pub async fn stored_authority(&self) -> Result<Option<Authority>, AuthorityError> {
        todo!()
    }
}
