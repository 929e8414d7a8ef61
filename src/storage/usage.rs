//! Usage counters and request keys.

use crate::domain::names::OrganizationId;
use crate::storage::{Batch, Connection, Error, cells};

/// Milliseconds in a day.
const DAY_MS: i64 = 86_400_000;

/// Adds units to a meter of the day.
pub(crate) fn add_usage(
    batch: &mut Batch,
    organization: &OrganizationId,
    meter: &str,
    units: i64,
    now_ms: i64,
) {
    batch.add(
        "INSERT INTO usage (organization_id, meter, day, units) VALUES ($1, $2, $3, $4)
             ON CONFLICT (organization_id, meter, day) DO UPDATE SET units = usage.units + excluded.units",
        cells![
            organization.as_str(),
            meter,
            now_ms.div_euclid(DAY_MS),
            units
        ],
    );
}

/// Whether a request is remembered that is older than `before_ms`.
pub(crate) async fn has_request_keys(db: &mut Connection, before_ms: i64) -> Result<bool, Error> {
    db.row(
        "SELECT created_at FROM request_keys WHERE created_at < $1 LIMIT 1",
        cells![before_ms],
    )
    .await
    .map(|row| row.is_some())
}

/// Forgets requests that are older than `before_ms`, the oldest first and at most 1000: who forgets them holds up who writes.
pub(crate) async fn delete_request_keys(db: &mut Connection, before_ms: i64) -> Result<(), Error> {
    db.execute(
        "DELETE FROM request_keys WHERE (organization_id, scope, request_key) IN
                (SELECT organization_id, scope, request_key FROM request_keys
                  WHERE created_at < $1 ORDER BY created_at LIMIT 1000)",
        cells![before_ms],
    )
    .await
    .map(drop)
}

/// Remembers a request that named itself; `false` when it was there already.
pub(crate) async fn insert_request_key(
    db: &mut Connection,
    organization: &OrganizationId,
    scope: &str,
    request_key: &str,
    units: i64,
    now_ms: i64,
) -> Result<bool, Error> {
    let inserted = db
        .execute(
            "INSERT INTO request_keys (organization_id, scope, request_key, units, created_at)
             VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT DO NOTHING",
            cells![organization.as_str(), scope, request_key, units, now_ms],
        )
        .await?;
    Ok(inserted == 1)
}
