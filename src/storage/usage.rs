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
