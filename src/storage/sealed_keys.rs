//! Keys and the certificate authority, sealed by a master key.

use crate::storage::{Connection, Error, Row, cells};

/// One sealed key.
#[derive(Debug)]
pub(crate) struct SealedKeyRow {
    /// `audit`, `token` or `ca`.
    pub(crate) name: String,
    /// The master key that sealed it.
    pub(crate) kek_id: String,
    /// The envelope.
    pub(crate) envelope: String,
    /// What belongs to it in the clear: the CA's certificate.
    pub(crate) public_text: Option<String>,
}

fn sealed_key(row: &Row) -> Result<SealedKeyRow, Error> {
    Ok(SealedKeyRow {
        name: row.text(0)?.to_owned(),
        kek_id: row.text(1)?.to_owned(),
        envelope: row.text(2)?.to_owned(),
        public_text: row.maybe_text(3)?.map(str::to_owned),
    })
}

/// Every sealed key of a name, one for each master key that sealed it.
pub(crate) async fn sealed_keys(
    db: &mut Connection,
    name: &str,
) -> Result<Vec<SealedKeyRow>, Error> {
    db.rows(
        "SELECT name, kek_id, envelope, public_text FROM sealed_keys WHERE name = $1
          ORDER BY created_at, kek_id",
        cells![name],
    )
    .await?
    .iter()
    .map(sealed_key)
    .collect()
}

/// Stores a sealed key; `false` when there is one of that name already, whatever master key sealed it.
pub(crate) async fn insert_first_sealed_key(
    db: &mut Connection,
    key: &SealedKeyRow,
    now_ms: i64,
) -> Result<bool, Error> {
    let inserted = db
        .execute(
            "INSERT INTO sealed_keys (name, kek_id, envelope, public_text, created_at)
             SELECT $1, $2, $3, $4, $5
              WHERE NOT EXISTS (SELECT 1 FROM sealed_keys WHERE name = $1)
                 ON CONFLICT DO NOTHING",
            cells![
                key.name.as_str(),
                key.kek_id.as_str(),
                key.envelope.as_str(),
                key.public_text.as_deref(),
                now_ms
            ],
        )
        .await?;
    Ok(inserted == 1)
}
