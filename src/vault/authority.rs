//! The certificate authority, kept sealed beside everything else.
use std::sync::Arc;

use super::records::Chain;
use super::writer::{Change, Verdict, Work};
use super::{Core, Unavailable, Vault, no_random};
use crate::crypto::keys::derive_digest_hex;
use crate::domain::plaintext::Plaintext;
use crate::storage;
use crate::storage::sealed_keys::SealedKeyRow;

/// The name that the CA is stored under.
const NAME: &str = "ca";

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

/// What names a CA in annotations: the first 16 hex digits of the SHA-256 of its certificate in DER.
pub fn certificate_id(der: &[u8]) -> String {
    let mut id = derive_digest_hex(der);
    id.truncate(16);
    id
}

impl Vault {
    /// The stored CA; when there is none, stores and returns `candidate`. Of several replicas that start at once, all get the one that was stored first.
    ///
    /// # Errors
    /// [`AuthorityError::Altered`] when there is one that does not open.
    pub async fn authority(&self, candidate: Authority) -> Result<Authority, AuthorityError> {
        if let Some(authority) = self.stored_authority().await? {
            return Ok(authority);
        }
        let change = StoreAuthority {
            core: Arc::clone(&self.0.core),
            candidate,
        };
        self.0.queue.change(change).await?;
        // Somebody else's may have been first.
        self.stored_authority()
            .await?
            .ok_or(AuthorityError::Altered)
    }

    /// The stored CA; `None` before the first start.
    ///
    /// # Errors
    /// [`AuthorityError::Altered`] when there is one that does not open.
    pub async fn stored_authority(&self) -> Result<Option<Authority>, AuthorityError> {
        let mut db = self.reader().await?;
        let rows = storage::sealed_keys::sealed_keys(&mut db, NAME)
            .await
            .map_err(Unavailable::from)?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(None);
        };
        let certificate_pem = row.public_text.ok_or(AuthorityError::Altered)?;
        let key_pem = self
            .core()
            .master_key
            .open_authority(&certificate_pem, &row.kek_id, &row.envelope)
            .map_err(|_| AuthorityError::Altered)?;
        Ok(Some(Authority {
            certificate_pem,
            key_pem,
        }))
    }
}

struct StoreAuthority {
    core: Arc<Core>,
    candidate: Authority,
}

impl Change for StoreAuthority {
    type Answer = ();

    fn chain(&self) -> Chain {
        Chain::Installation
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<()>, storage::Error> {
        let master_key = &self.core.master_key;
        let certificate = &self.candidate.certificate_pem;
        let row = SealedKeyRow {
            name: NAME.to_owned(),
            kek_id: master_key.derive_id(),
            envelope: master_key
                .seal_authority(certificate, &self.candidate.key_pem)
                .map_err(no_random)?,
            public_text: Some(certificate.clone()),
        };
        storage::sealed_keys::insert_first_sealed_key(&mut work.db, &row, work.now_ms).await?;
        Ok(Verdict::Keep(()))
    }
}
