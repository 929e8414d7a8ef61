//! The keys that a vault's master key opens, read from its SQLite file by the documented form of an envelope alone.
//!
//! This is a second reading of the form, on purpose: it shares no code with the vault.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Row};

/// The bytes of a text in standard base64.
pub(super) fn decode(text: &str) -> Vec<u8> {
    STANDARD.decode(text).expect("standard base64")
}

/// Every key that `master_key` opens in the vaults below `volumes`, and what it is.
pub(super) fn opened(volumes: &Path, master_key: &str) -> Vec<(String, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut all = Vec::new();
    for file in vaults(volumes) {
        all.extend(runtime.block_on(opened_in(&file, &decode(master_key))));
    }
    assert!(
        all.iter().any(|(label, _)| label.starts_with("data key"))
            && all.iter().any(|(label, _)| label.starts_with("ca")),
        "no vault below {} opens with the master key",
        volumes.display()
    );
    all
}

fn vaults(volumes: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(volumes)
        .unwrap()
        .map(|volume| volume.unwrap().path().join("barekey.db"))
        .filter(|file| file.is_file())
        .collect()
}

async fn opened_in(file: &Path, master_key: &[u8]) -> Vec<(String, Vec<u8>)> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let mut db: SqliteConnection = options.connect().await.unwrap();
    let mut all = Vec::new();
    let data_keys = sqlx::query("SELECT lineage_id, version, kek_id, wrapped FROM data_keys")
        .fetch_all(&mut db)
        .await
        .unwrap();
    for row in data_keys {
        let (lineage, version): (String, i64) = (row.get(0), row.get(1));
        let (kek_id, wrapped): (String, String) = (row.get(2), row.get(3));
        let fields = [lineage.as_str(), &version.to_string(), &kek_id];
        if let Some(key) = open(master_key, "barekey/dek/v1", &fields, &wrapped) {
            all.push((format!("data key {lineage} v{version}"), key));
        }
    }
    let sealed = sqlx::query("SELECT name, kek_id, envelope, public_text FROM sealed_keys")
        .fetch_all(&mut db)
        .await
        .unwrap();
    for row in sealed {
        let (name, kek_id, envelope): (String, String, String) =
            (row.get(0), row.get(1), row.get(2));
        let public: Option<String> = row.get(3);
        let (purpose, fields) = match name.as_str() {
            "audit" => ("barekey/audit-key/v1", vec![kek_id.as_str()]),
            "token" => ("barekey/token-key/v1", vec![kek_id.as_str()]),
            "ca" => (
                "barekey/ca/v1",
                vec![public.as_deref().unwrap_or_default(), kek_id.as_str()],
            ),
            other => panic!("a sealed key of the unknown name {other}"),
        };
        let Some(key) = open(master_key, purpose, &fields, &envelope) else {
            continue;
        };
        if name == "ca" {
            // The first two lines of the PEM hold the secret number; the public key behind it is in the certificate too.
            let pem = String::from_utf8(key).unwrap();
            let lines = pem.lines().filter(|line| !line.starts_with('-')).take(2);
            all.extend(lines.map(|line| {
                (
                    "ca key, a line of its PEM".to_owned(),
                    line.as_bytes().to_vec(),
                )
            }));
            let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
            let der = decode(&body);
            // PKCS#8 of P-256: 36 bytes that are the same in every key of the kind, then the secret number.
            all.push(("ca key, its secret number".to_owned(), der[36..68].to_vec()));
        } else {
            all.push((format!("{name} key"), key));
        }
    }
    all
}

/// Opens `xcp1.<nonce>.<ciphertext and tag>`; `None` when another key sealed it.
fn open(key: &[u8], purpose: &str, fields: &[&str], envelope: &str) -> Option<Vec<u8>> {
    let parts: Vec<&str> = envelope.split('.').collect();
    let ["xcp1", nonce, sealed] = parts[..] else {
        panic!("not an envelope of the documented form")
    };
    let mut aad = purpose.as_bytes().to_vec();
    for field in fields {
        aad.extend_from_slice(&u32::try_from(field.len()).unwrap().to_be_bytes());
        aad.extend_from_slice(field.as_bytes());
    }
    let nonce: [u8; 24] = decode(nonce).try_into().unwrap();
    XChaCha20Poly1305::new_from_slice(key)
        .unwrap()
        .decrypt(
            &XNonce::from(nonce),
            Payload {
                msg: &decode(sealed),
                aad: &aad,
            },
        )
        .ok()
}
