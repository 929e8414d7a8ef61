//! Keys: none of them prints, copies or serialises itself, and every one is wiped on drop.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::crypto::envelope::{
    self, KEY_BYTES, OpenError, Place, SealError, ValuePlace, push_field,
};
use crate::domain::names::LineageId;
use crate::domain::plaintext::Plaintext;

/// The length of a MAC and of a digest, in bytes.
pub(crate) const MAC_BYTES: usize = 32;
/// The length of a block of SHA-256, in bytes.
const HMAC_BLOCK_BYTES: usize = 64;

/// Bytes of a key: boxed, so that moving the key does not copy them.
struct KeyBytes(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl KeyBytes {
    fn make() -> Result<Self, SealError> {
        let mut bytes = Box::new(Zeroizing::new([0; KEY_BYTES]));
        getrandom::fill(bytes.as_mut_slice()).map_err(|_| SealError)?;
        Ok(Self(bytes))
    }

    fn from_slice(slice: &[u8]) -> Option<Self> {
        let mut bytes = Box::new(Zeroizing::new([0; KEY_BYTES]));
        if slice.len() != KEY_BYTES {
            return None;
        }
        bytes.copy_from_slice(slice);
        Some(Self(bytes))
    }
}

/// Declares a key type whose `Debug` says its name alone.
macro_rules! key_type {
    ($(#[$doc:meta])* $visibility:vis $name:ident) => {
        $(#[$doc])*
        $visibility struct $name(KeyBytes);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

key_type!(
    /// The master key (KEK). It wraps every other key and never touches the database.
    pub MasterKey
);
key_type!(
    /// A data key (DEK): seals the values of one lineage.
    pub(crate) DataKey
);
key_type!(
    /// The key of the audit trail.
    pub(crate) AuditKey
);
key_type!(
    /// The key of the credentials.
    pub(crate) TokenKey
);

/// Why a text or a file is no master key. The text itself is never in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MasterKeyError {
    /// Not base64.
    #[error(
        "the master key is not base64: give 32 random bytes in standard base64, as `openssl rand -base64 32` prints them"
    )]
    NotBase64,
    /// Not 32 bytes.
    #[error(
        "the master key has {bytes} bytes and needs 32: give what `openssl rand -base64 32` prints"
    )]
    WrongLength {
        /// How many bytes there are.
        bytes: usize,
    },
}

impl MasterKey {
    /// Reads standard base64 of exactly 32 bytes; white space around it is no part of it.
    ///
    /// # Errors
    /// [`MasterKeyError`] for everything else.
    pub fn from_base64(text: &str) -> Result<Self, MasterKeyError> {
        let bytes = Zeroizing::new(
            STANDARD
                .decode(text.trim())
                .map_err(|_| MasterKeyError::NotBase64)?,
        );
        KeyBytes::from_slice(&bytes)
            .map(Self)
            .ok_or(MasterKeyError::WrongLength { bytes: bytes.len() })
    }

    /// Reads the content of a key file: 32 raw bytes, or their base64 text.
    ///
    /// # Errors
    /// [`MasterKeyError`] for everything else.
    pub fn from_file_content(content: &[u8]) -> Result<Self, MasterKeyError> {
        if let Some(key) = KeyBytes::from_slice(content) {
            return Ok(Self(key));
        }
        let text = std::str::from_utf8(content).map_err(|_| MasterKeyError::WrongLength {
            bytes: content.len(),
        })?;
        Self::from_base64(text)
    }

    /// What the key is known by: the first 8 bytes of HMAC-SHA-256(key, "barekey kek id"), as 16 hex digits. No secret.
    pub fn derive_id(&self) -> String {
        derive_hex(
            derive_mac(&self.0, &[b"barekey kek id"])
                .get(..8)
                .unwrap_or_default(),
        )
    }

    /// Wraps a data key for its place in a lineage.
    pub(crate) fn wrap_data_key(
        &self,
        lineage: &LineageId,
        version: i64,
        key: &DataKey,
    ) -> Result<String, SealError> {
        let kek_id = self.derive_id();
        let place = Place::DataKey {
            lineage,
            version,
            kek_id: &kek_id,
        };
        envelope::seal(&self.0.0, &place, key.0.0.as_slice())
    }

    /// Unwraps a data key that [`Self::wrap_data_key`] wrapped. `kek_id` is the id that stands beside it.
    pub(crate) fn unwrap_data_key(
        &self,
        lineage: &LineageId,
        version: i64,
        kek_id: &str,
        wrapped: &str,
    ) -> Result<DataKey, OpenError> {
        let place = Place::DataKey {
            lineage,
            version,
            kek_id,
        };
        self.open_key(&place, wrapped).map(DataKey)
    }

    /// Seals the key of the audit trail.
    pub(crate) fn seal_audit_key(&self, key: &AuditKey) -> Result<String, SealError> {
        let kek_id = self.derive_id();
        envelope::seal(
            &self.0.0,
            &Place::AuditKey { kek_id: &kek_id },
            key.0.0.as_slice(),
        )
    }

    /// Opens the key of the audit trail.
    pub(crate) fn open_audit_key(&self, kek_id: &str, sealed: &str) -> Result<AuditKey, OpenError> {
        self.open_key(&Place::AuditKey { kek_id }, sealed)
            .map(AuditKey)
    }

    /// Seals the key of the credentials.
    pub(crate) fn seal_token_key(&self, key: &TokenKey) -> Result<String, SealError> {
        let kek_id = self.derive_id();
        envelope::seal(
            &self.0.0,
            &Place::TokenKey { kek_id: &kek_id },
            key.0.0.as_slice(),
        )
    }

    /// Opens the key of the credentials.
    pub(crate) fn open_token_key(&self, kek_id: &str, sealed: &str) -> Result<TokenKey, OpenError> {
        self.open_key(&Place::TokenKey { kek_id }, sealed)
            .map(TokenKey)
    }

    /// Seals the private key of the certificate authority, bound to its certificate.
    pub(crate) fn seal_authority(
        &self,
        certificate: &str,
        key: &Plaintext,
    ) -> Result<String, SealError> {
        let kek_id = self.derive_id();
        let place = Place::Authority {
            certificate,
            kek_id: &kek_id,
        };
        envelope::seal(&self.0.0, &place, key.reveal())
    }

    /// Opens the private key of the certificate authority.
    pub(crate) fn open_authority(
        &self,
        certificate: &str,
        kek_id: &str,
        sealed: &str,
    ) -> Result<Plaintext, OpenError> {
        let place = Place::Authority {
            certificate,
            kek_id,
        };
        envelope::open(&self.0.0, &place, sealed)
    }

    fn open_key(&self, place: &Place<'_>, sealed: &str) -> Result<KeyBytes, OpenError> {
        let opened = envelope::open(&self.0.0, place, sealed)?;
        KeyBytes::from_slice(opened.reveal()).ok_or(OpenError)
    }
}

impl DataKey {
    /// A new key of random bytes.
    pub(crate) fn make() -> Result<Self, SealError> {
        KeyBytes::make().map(Self)
    }

    /// Seals a value for its place.
    pub(crate) fn seal_value(
        &self,
        place: ValuePlace<'_>,
        value: &Plaintext,
    ) -> Result<String, SealError> {
        envelope::seal(&self.0.0, &Place::Value(place), value.reveal())
    }

    /// Opens a value that was sealed for this place.
    pub(crate) fn open_value(
        &self,
        place: ValuePlace<'_>,
        sealed: &str,
    ) -> Result<Plaintext, OpenError> {
        envelope::open(&self.0.0, &Place::Value(place), sealed)
    }
}

impl AuditKey {
    /// A new key of random bytes.
    pub(crate) fn make() -> Result<Self, SealError> {
        KeyBytes::make().map(Self)
    }

    /// A key of given bytes, for what is frozen.
    #[cfg(test)]
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        KeyBytes::from_slice(bytes).map(Self)
    }

    /// The MAC of one record's canonical text, chained to the MAC before it.
    pub(crate) fn derive_record_mac(&self, record: &[u8], previous: &[u8]) -> [u8; MAC_BYTES] {
        derive_mac(&self.0, &[b"barekey/audit/v1", record, previous])
    }
}

impl TokenKey {
    /// A new key of random bytes.
    pub(crate) fn make() -> Result<Self, SealError> {
        KeyBytes::make().map(Self)
    }

    /// What is stored of a token, and looked up: HMAC(token key, SHA-256(token)).
    pub(crate) fn derive_token_mac(&self, token: &str) -> [u8; MAC_BYTES] {
        let mut digest = Sha256::digest(token.as_bytes());
        let mac = derive_mac(&self.0, &[&digest]);
        digest.as_mut_slice().zeroize();
        mac
    }

    /// The MAC over what stands beside a token's MAC (role, scope, end …), so that an altered row is no credential.
    pub(crate) fn derive_token_seal(&self, fields: &[&[u8]]) -> [u8; MAC_BYTES] {
        self.derive_row_seal(b"barekey/token-row/v1", fields)
    }

    /// The MAC over whose a stage is and how it is protected, so that one that was moved or altered gives nothing.
    pub(crate) fn derive_stage_seal(&self, fields: &[&[u8]]) -> [u8; MAC_BYTES] {
        self.derive_row_seal(b"barekey/stage-row/v1", fields)
    }

    fn derive_row_seal(&self, purpose: &[u8], fields: &[&[u8]]) -> [u8; MAC_BYTES] {
        let mut row = purpose.to_vec();
        for field in fields {
            push_field(&mut row, field);
        }
        derive_mac(&self.0, &[&row])
    }
}

/// Whether two MACs are the same, in a time that does not depend on where they differ.
pub(crate) fn same_mac(one: &[u8], other: &[u8]) -> bool {
    subtle::ConstantTimeEq::ct_eq(one, other).into()
}

/// SHA-256 of a public text such as an envelope, as lower-case hex.
pub(crate) fn derive_digest_hex(text: &[u8]) -> String {
    derive_hex(&Sha256::digest(text))
}

/// Lower-case hex.
pub(crate) fn derive_hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let digit = |value: u8| DIGITS.get(usize::from(value & 15)).copied().unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

fn derive_mac(key: &KeyBytes, parts: &[&[u8]]) -> [u8; MAC_BYTES] {
    // A key that is shorter than a block is filled up with zeros (RFC 2104, section 2).
    let mut block = Zeroizing::new([0; HMAC_BLOCK_BYTES]);
    block
        .iter_mut()
        .zip(key.0.iter())
        .for_each(|(to, from)| *to = *from);
    let mut mac = <Hmac<Sha256> as KeyInit>::new((&*block).into());
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_master_key_is_the_frozen_one() {
        let vector: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/kek-id-v1.json")).unwrap();
        let key = MasterKey::from_base64(vector["masterKey"].as_str().unwrap()).unwrap();
        assert_eq!(key.derive_id(), vector["kekId"].as_str().unwrap());
    }

    #[test]
    fn a_stored_token_is_the_frozen_mac() {
        let vector: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/api-token-v1.json")).unwrap();
        let bytes = hex::decode(vector["tokenKey"].as_str().unwrap()).unwrap();
        let key = TokenKey(KeyBytes::from_slice(&bytes).unwrap());
        let mac = key.derive_token_mac(vector["token"].as_str().unwrap());
        assert_eq!(hex::encode(mac), vector["mac"].as_str().unwrap());
        assert_eq!(derive_hex(&mac), hex::encode(mac));
    }

    #[test]
    fn printing_a_key_says_its_type_alone() {
        let key = MasterKey::from_base64(&STANDARD.encode([65; 32])).unwrap();
        assert_eq!(format!("{key:?}"), "MasterKey(..)");
    }

    #[test]
    fn a_master_key_is_32_bytes_raw_or_in_base64_and_nothing_else() {
        let text = STANDARD.encode([9; 32]);
        let id = MasterKey::from_base64(&text).unwrap().derive_id();
        let of = |content: &[u8]| MasterKey::from_file_content(content).unwrap().derive_id();
        assert_eq!(of(&[9; 32]), id);
        assert_eq!(of(format!("{text}\n").as_bytes()), id);
        assert_eq!(
            MasterKey::from_base64("").unwrap_err(),
            MasterKeyError::WrongLength { bytes: 0 }
        );
        assert_eq!(
            MasterKey::from_base64(&STANDARD.encode([9; 31])).unwrap_err(),
            MasterKeyError::WrongLength { bytes: 31 }
        );
        assert_eq!(
            MasterKey::from_base64("hunter2!").unwrap_err(),
            MasterKeyError::NotBase64
        );
        assert!(MasterKey::from_file_content(&[255; 31]).is_err());
    }

    #[test]
    fn a_wrapped_data_key_opens_under_its_master_key_lineage_and_version_alone() {
        let master = MasterKey::from_file_content(&[1; 32]).unwrap();
        let other = MasterKey::from_file_content(&[2; 32]).unwrap();
        let lineage: LineageId = "lin_1".parse().unwrap();
        let key = DataKey::make().unwrap();
        let wrapped = master.wrap_data_key(&lineage, 1, &key).unwrap();
        let id = master.derive_id();
        let opened = master.unwrap_data_key(&lineage, 1, &id, &wrapped).unwrap();
        assert_eq!(*opened.0.0, *key.0.0);
        assert!(other.unwrap_data_key(&lineage, 1, &id, &wrapped).is_err());
        assert!(master.unwrap_data_key(&lineage, 2, &id, &wrapped).is_err());
        assert!(
            master
                .unwrap_data_key(&"lin_2".parse().unwrap(), 1, &id, &wrapped)
                .is_err()
        );
        assert!(
            master
                .unwrap_data_key(&lineage, 1, &other.derive_id(), &wrapped)
                .is_err()
        );
    }
}
