//! Envelopes: sealed bytes that open in their own place alone.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{Key, Tag, XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

use crate::domain::names::{LineageId, ProjectId, StageId, VariableName};
use crate::domain::plaintext::Plaintext;
use crate::domain::variable::{Arm, DeclaredType, Kind, Visibility};

/// The first part of every envelope. It never changes: a new form gets a new word.
const FORM: &str = "xcp1";
/// The length of a nonce, in bytes.
const NONCE_BYTES: usize = 24;
/// The length of an authentication tag, in bytes.
const TAG_BYTES: usize = 16;
/// The length of every key, in bytes.
pub(crate) const KEY_BYTES: usize = 32;

/// Where an envelope belongs. Everything in it is authenticated; nothing in it is secret.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place<'a> {
    /// A variable's value, under the project's data key.
    Value(ValuePlace<'a>),
    /// A data key, under the master key.
    DataKey {
        /// The lineage that the key belongs to.
        lineage: &'a LineageId,
        /// Its version in the lineage.
        version: i64,
        /// The master key that wraps it.
        kek_id: &'a str,
    },
    /// The private key of the certificate authority, under the master key.
    Authority {
        /// The certificate, PEM.
        certificate: &'a str,
        /// The master key that seals it.
        kek_id: &'a str,
    },
    /// The key of the audit trail, under the master key.
    AuditKey {
        /// The master key that seals it.
        kek_id: &'a str,
    },
    /// The key of the credentials, under the master key.
    TokenKey {
        /// The master key that seals it.
        kek_id: &'a str,
    },
}

/// Where a value belongs. Slugs and the organization stay out, so that renaming and transferring need no re-sealing.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ValuePlace<'a> {
    /// The project.
    pub(crate) project: &'a ProjectId,
    /// The stage.
    pub(crate) stage: &'a StageId,
    /// The variable.
    pub(crate) name: &'a VariableName,
    /// The variable's version.
    pub(crate) version: i64,
    /// Which of its values.
    pub(crate) arm: Arm,
    /// Its kind.
    pub(crate) kind: Kind,
    /// Its declared type.
    pub(crate) declared_type: DeclaredType,
    /// Its visibility.
    pub(crate) visibility: Visibility,
    /// Its chance or its curve, as stored; empty for a `secret`.
    pub(crate) chance_or_curve: &'a str,
}

impl Place<'_> {
    /// The associated data: the purpose, then each field after its length (32 bits, big endian).
    fn associated_data(&self) -> Vec<u8> {
        match self {
            Self::Value(place) => text(
                "barekey/value/v1",
                &[
                    place.project.as_str(),
                    place.stage.as_str(),
                    place.name.as_str(),
                    &place.version.to_string(),
                    place.arm.as_str(),
                    place.kind.as_str(),
                    place.declared_type.as_str(),
                    place.visibility.as_str(),
                    place.chance_or_curve,
                ],
            ),
            Self::DataKey {
                lineage,
                version,
                kek_id,
            } => text(
                "barekey/dek/v1",
                &[lineage.as_str(), &version.to_string(), kek_id],
            ),
            Self::Authority {
                certificate,
                kek_id,
            } => text("barekey/ca/v1", &[certificate, kek_id]),
            Self::AuditKey { kek_id } => text("barekey/audit-key/v1", &[kek_id]),
            Self::TokenKey { kek_id } => text("barekey/token-key/v1", &[kek_id]),
        }
    }
}

fn text(purpose: &str, fields: &[&str]) -> Vec<u8> {
    let length = fields.iter().map(|field| field.len() + 4).sum::<usize>();
    let mut data = Vec::with_capacity(purpose.len() + length);
    data.extend_from_slice(purpose.as_bytes());
    for field in fields {
        push_field(&mut data, field.as_bytes());
    }
    data
}

/// Appends `field` after its length, 32 bits, big endian. A field of 4 GiB or more does not occur: bodies are far smaller.
pub(crate) fn push_field(data: &mut Vec<u8>, field: &[u8]) {
    let length = u32::try_from(field.len()).unwrap_or(u32::MAX);
    data.extend_from_slice(&length.to_be_bytes());
    data.extend_from_slice(field);
}

/// An envelope does not open: it was altered or moved, or was sealed under another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the envelope does not open here: it was altered or moved, or sealed under another key")]
pub(crate) struct OpenError;

/// The system gives no random bytes, or the plaintext is longer than the cipher takes (256 GiB).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nothing can be sealed: the system gives no random bytes")]
pub struct SealError;

/// Seals `plaintext` under `key`, for one `place` in the vault.
///
/// Returns the text `xcp1.<nonce>.<ciphertext and tag>`, both in standard base64 with padding. XChaCha20-Poly1305 as in
/// draft-irtf-cfrg-xchacha-03, section 2, with a random 24-byte nonce.
///
/// # Errors
/// [`SealError`] when the system gives no random bytes.
pub(crate) fn seal(
    key: &[u8; KEY_BYTES],
    place: &Place<'_>,
    plaintext: &[u8],
) -> Result<String, SealError> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| SealError)?;
    seal_with_nonce(key, place, plaintext, nonce)
}

/// [`seal`] with a nonce that the caller chose. A nonce must **never** be used twice under one key.
fn seal_with_nonce(
    key: &[u8; KEY_BYTES],
    place: &Place<'_>,
    plaintext: &[u8],
    nonce: [u8; NONCE_BYTES],
) -> Result<String, SealError> {
    let cipher = XChaCha20Poly1305::new(&Key::from(*key));
    // Reserved at once: growing would leave a part of the plaintext behind.
    let mut buffer = Zeroizing::new(Vec::with_capacity(plaintext.len() + TAG_BYTES));
    buffer.extend_from_slice(plaintext);
    let tag = cipher
        .encrypt_inout_detached(
            &XNonce::from(nonce),
            &place.associated_data(),
            buffer.as_mut_slice().into(),
        )
        .map_err(|_| SealError)?;
    buffer.extend_from_slice(&tag);
    let mut envelope = String::with_capacity(FORM.len() + 34 + buffer.len().div_ceil(3) * 4);
    envelope.push_str(FORM);
    envelope.push('.');
    STANDARD.encode_string(nonce, &mut envelope);
    envelope.push('.');
    STANDARD.encode_string(buffer.as_slice(), &mut envelope);
    Ok(envelope)
}

/// Opens an envelope that [`seal`] made under the same `key` for the same `place`.
///
/// # Errors
/// [`OpenError`] for everything else: other text, another key, another place.
pub(crate) fn open(
    key: &[u8; KEY_BYTES],
    place: &Place<'_>,
    envelope: &str,
) -> Result<Plaintext, OpenError> {
    let mut parts = envelope.split('.');
    let (Some(FORM), Some(nonce), Some(sealed), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(OpenError);
    };
    let nonce: [u8; NONCE_BYTES] = STANDARD
        .decode(nonce)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(OpenError)?;
    let mut buffer = Zeroizing::new(STANDARD.decode(sealed).map_err(|_| OpenError)?);
    let length = buffer.len().checked_sub(TAG_BYTES).ok_or(OpenError)?;
    let tag: [u8; TAG_BYTES] = buffer.last_chunk().copied().ok_or(OpenError)?;
    buffer.truncate(length);
    XChaCha20Poly1305::new(&Key::from(*key))
        .decrypt_inout_detached(
            &XNonce::from(nonce),
            &place.associated_data(),
            buffer.as_mut_slice().into(),
            &Tag::from(tag),
        )
        .map_err(|_| OpenError)?;
    Ok(Plaintext::new(std::mem::take(&mut *buffer)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One frozen vector: an envelope that must open for ever.
    #[derive(serde::Deserialize)]
    struct Vector {
        purpose: String,
        key: String,
        nonce: String,
        fields: Vec<String>,
        plaintext: String,
        envelope: String,
    }

    const VECTORS: [&str; 5] = [
        include_str!("../../tests/vectors/xcp1-value-v1.json"),
        include_str!("../../tests/vectors/xcp1-dek-v1.json"),
        include_str!("../../tests/vectors/xcp1-ca-v1.json"),
        include_str!("../../tests/vectors/xcp1-audit-key-v1.json"),
        include_str!("../../tests/vectors/xcp1-token-key-v1.json"),
    ];

    fn key_of(text: &str) -> [u8; KEY_BYTES] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    /// Runs `check` with the place that a vector's purpose and fields name.
    fn with_place(vector: &Vector, check: impl FnOnce(&Place<'_>)) {
        let field = |at: usize| vector.fields[at].as_str();
        let project = || field(0).parse().unwrap();
        let stage = || field(1).parse().unwrap();
        let lineage = || field(0).parse().unwrap();
        match vector.purpose.as_str() {
            "barekey/value/v1" => check(&Place::Value(ValuePlace {
                project: &project(),
                stage: &stage(),
                name: &field(2).parse().unwrap(),
                version: field(3).parse().unwrap(),
                arm: field(4).parse().unwrap(),
                kind: field(5).parse().unwrap(),
                declared_type: field(6).parse().unwrap(),
                visibility: field(7).parse().unwrap(),
                chance_or_curve: field(8),
            })),
            "barekey/dek/v1" => check(&Place::DataKey {
                lineage: &lineage(),
                version: field(1).parse().unwrap(),
                kek_id: field(2),
            }),
            "barekey/ca/v1" => check(&Place::Authority {
                certificate: field(0),
                kek_id: field(1),
            }),
            "barekey/audit-key/v1" => check(&Place::AuditKey { kek_id: field(0) }),
            "barekey/token-key/v1" => check(&Place::TokenKey { kek_id: field(0) }),
            other => panic!("no such purpose: {other}"),
        }
    }

    fn vectors() -> Vec<Vector> {
        VECTORS
            .iter()
            .map(|text| serde_json::from_str(text).unwrap())
            .collect()
    }

    #[test]
    fn every_frozen_vector_opens_and_is_sealed_again_byte_for_byte() {
        for vector in vectors() {
            with_place(&vector, |place| {
                let key = key_of(&vector.key);
                let nonce = hex::decode(&vector.nonce).unwrap().try_into().unwrap();
                let plaintext = hex::decode(&vector.plaintext).unwrap();
                let sealed = seal_with_nonce(&key, place, &plaintext, nonce).unwrap();
                assert_eq!(sealed, vector.envelope, "{}", vector.purpose);
                let opened = open(&key, place, &vector.envelope).unwrap();
                assert_eq!(opened.reveal(), plaintext, "{}", vector.purpose);
            });
        }
    }

    #[test]
    fn an_envelope_of_one_purpose_opens_as_no_other() {
        for vector in vectors() {
            for other in vectors() {
                if vector.purpose != other.purpose {
                    with_place(&other, |place| {
                        assert_eq!(
                            open(&key_of(&vector.key), place, &vector.envelope).unwrap_err(),
                            OpenError,
                            "{} as {}",
                            vector.purpose,
                            other.purpose
                        );
                    });
                }
            }
        }
    }

    #[test]
    fn an_envelope_does_not_open_when_any_field_beside_it_was_altered() {
        let replacements = [
            "prj_2", "stg_2", "OTHER", "2", "b", "", "json", "public", "0.5",
        ];
        let [vector] = &vectors()[..1] else {
            panic!("no vector")
        };
        for (at, replacement) in replacements.into_iter().enumerate() {
            // There is one kind so far; its word is held by the vector itself.
            if replacement.is_empty() {
                continue;
            }
            let mut moved: Vector = serde_json::from_str(VECTORS[0]).unwrap();
            moved.fields[at] = replacement.to_owned();
            with_place(&moved, |place| {
                assert_eq!(
                    open(&key_of(&vector.key), place, &vector.envelope).unwrap_err(),
                    OpenError,
                    "field {at}"
                );
            });
        }
    }

    #[test]
    fn an_envelope_does_not_open_when_any_character_was_altered_or_under_another_key() {
        for vector in vectors() {
            with_place(&vector, |place| {
                let key = key_of(&vector.key);
                for at in 0..vector.envelope.len() {
                    let mut altered = vector.envelope.clone().into_bytes();
                    altered[at] = if altered[at] == b'A' { b'B' } else { b'A' };
                    let altered = String::from_utf8(altered).unwrap();
                    assert!(open(&key, place, &altered).is_err(), "{at}");
                }
                let mut other = key;
                other[31] ^= 1;
                assert!(open(&other, place, &vector.envelope).is_err());
            });
        }
    }

    #[test]
    fn an_envelope_cut_at_any_length_does_not_open() {
        for vector in vectors() {
            with_place(&vector, |place| {
                for length in 0..vector.envelope.len() {
                    assert!(
                        open(&key_of(&vector.key), place, &vector.envelope[..length]).is_err(),
                        "{length}"
                    );
                }
                let longer = format!("{}.", vector.envelope);
                assert!(open(&key_of(&vector.key), place, &longer).is_err());
            });
        }
    }

    #[test]
    fn two_envelopes_of_one_value_differ() {
        let key = [7; KEY_BYTES];
        let place = Place::TokenKey { kek_id: "k" };
        assert_ne!(
            seal(&key, &place, b"v").unwrap(),
            seal(&key, &place, b"v").unwrap()
        );
    }

    #[test]
    fn the_empty_value_has_an_envelope() {
        let key = [7; KEY_BYTES];
        let place = Place::TokenKey { kek_id: "k" };
        let sealed = seal(&key, &place, b"").unwrap();
        assert!(open(&key, &place, &sealed).unwrap().is_empty());
    }
}
