//! The keys that the master keys of this run open, read from its database by the documented form of an envelope alone.
//!
//! This is a second reading of the form, on purpose: it shares no code with the vault.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use crate::harness::secrets;

/// The bytes of a text in standard base64.
fn decode(text: &str) -> Vec<u8> {
    STANDARD.decode(text).expect("standard base64")
}

/// What a vault keeps of one key, as JSON that both databases can write: one query for each kind.
pub(crate) const DATA_KEYS: &str =
    "'lineage', lineage_id, 'version', version, 'kek', kek_id, 'wrapped', wrapped) FROM data_keys";
pub(crate) const SEALED_KEYS: &str =
    "'name', name, 'kek', kek_id, 'envelope', envelope, 'public', public_text) FROM sealed_keys";

/// Opens and remembers every key of the SQLite vaults below `volumes`.
#[track_caller]
pub(super) fn remember_below(volumes: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let read = |file: &PathBuf, what: &str| runtime.block_on(rows(file, what));
    let mut all = Vec::new();
    for file in vaults(volumes) {
        all.extend(opened(
            &read(&file, DATA_KEYS),
            &read(&file, SEALED_KEYS),
            &secrets::master_keys(),
            &file.display().to_string(),
        ));
    }
    remember(all);
}

/// Opens and remembers every key of these rows of a vault.
#[track_caller]
pub(super) fn remember_of(data_keys: &[Value], sealed_keys: &[Value], vault: &str) {
    remember(opened(
        data_keys,
        sealed_keys,
        &secrets::master_keys(),
        vault,
    ));
}

#[track_caller]
fn remember(keys: Vec<(String, Vec<u8>)>) {
    assert!(
        keys.iter().any(|(label, _)| label.starts_with("data key"))
            && keys.iter().any(|(label, _)| label.starts_with("ca")),
        "there is no vault with keys here"
    );
    for (label, key) in keys {
        secrets::remember_key(label, key);
    }
}

fn vaults(volumes: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(volumes)
        .unwrap()
        .map(|volume| volume.unwrap().path().join("barekey.db"))
        .filter(|file| file.is_file())
        .collect()
}

async fn rows(file: &Path, what: &str) -> Vec<Value> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true);
    let mut db: SqliteConnection = options.connect().await.unwrap();
    let query = AssertSqlSafe(format!("SELECT json_object({what}"));
    let rows = sqlx::query(query).fetch_all(&mut db).await.unwrap();
    rows.iter()
        .map(|row| serde_json::from_str(row.get(0)).unwrap())
        .collect()
}

/// Every key of these rows of a vault, and what it is. One that no master key opens would be searched for nowhere, so it ends
/// the test.
#[track_caller]
fn opened(
    data_keys: &[Value],
    sealed_keys: &[Value],
    master_keys: &[Vec<u8>],
    vault: &str,
) -> Vec<(String, Vec<u8>)> {
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let open = |label: &str, purpose: &str, fields: &[&str], envelope: &str| {
        let mut keys = master_keys.iter();
        keys.find_map(|key| open(key, purpose, fields, envelope))
            .unwrap_or_else(|| panic!("{vault}: no master key of this run opens {label}"))
    };
    let mut all = Vec::new();
    for row in data_keys {
        let (lineage, version) = (text(row, "lineage"), row["version"].to_string());
        let kek = text(row, "kek");
        let fields = [lineage.as_str(), &version, &kek];
        let label = format!("data key {lineage} v{version}");
        let key = open(&label, "barekey/dek/v1", &fields, &text(row, "wrapped"));
        all.push((label, key));
    }
    for row in sealed_keys {
        let (name, kek, public) = (text(row, "name"), text(row, "kek"), text(row, "public"));
        let (purpose, fields) = match name.as_str() {
            "audit" => ("barekey/audit-key/v1", vec![kek.as_str()]),
            "token" => ("barekey/token-key/v1", vec![kek.as_str()]),
            "ca" => ("barekey/ca/v1", vec![public.as_str(), kek.as_str()]),
            other => panic!("a sealed key of the unknown name {other}"),
        };
        let key = open(
            &format!("{name} key"),
            purpose,
            &fields,
            &text(row, "envelope"),
        );
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
