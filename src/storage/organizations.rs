//! Organizations, and the one row of the installation.

use crate::domain::names::{OrganizationId, OrganizationSlug};
use crate::storage::{Connection, Error, Found, Row, cells};

/// An organization.
#[derive(Debug)]
pub(crate) struct OrganizationRow {
    /// Its id.
    pub(crate) id: OrganizationId,
    /// Its slug.
    pub(crate) slug: OrganizationSlug,
    /// When it was made.
    pub(crate) created_at: i64,
}

fn organization(row: &Row) -> Result<OrganizationRow, Error> {
    Ok(OrganizationRow {
        id: row.parsed(0)?,
        slug: row.parsed(1)?,
        created_at: row.integer(2)?,
    })
}

/// The organization of that slug.
pub(crate) async fn organization_by_slug(
    db: &mut Connection,
    slug: &OrganizationSlug,
) -> Result<Option<OrganizationRow>, Error> {
    db.row(
        "SELECT id, slug, created_at FROM organizations WHERE slug = $1",
        cells![slug.as_str()],
    )
    .await?
    .as_ref()
    .map(organization)
    .transpose()
}

/// Every organization.
pub(crate) async fn organizations(db: &mut Connection) -> Result<Found<OrganizationRow>, Error> {
    db.rows(
        "SELECT id, slug, created_at FROM organizations ORDER BY id",
        vec![],
    )
    .await
    .map(|rows| Found::of(rows, |row| organization(row), |row| row.label(0)))
}

/// Makes an organization; `false` when the slug is taken.
pub(crate) async fn insert_organization(
    db: &mut Connection,
    organization: &OrganizationRow,
) -> Result<bool, Error> {
    let inserted = db
        .execute(
            "INSERT INTO organizations (id, slug, created_at) VALUES ($1, $2, $3)
                 ON CONFLICT DO NOTHING",
            cells![
                organization.id.as_str(),
                organization.slug.as_str(),
                organization.created_at
            ],
        )
        .await?;
    Ok(inserted == 1)
}

/// Makes the installation's row if there is none.
pub(crate) async fn insert_installation(db: &mut Connection, now_ms: i64) -> Result<(), Error> {
    db.execute(
        "INSERT INTO installation (id, epoch, created_at, checked_at) VALUES (1, 1, $1, $1)
             ON CONFLICT DO NOTHING",
        cells![now_ms],
    )
    .await
    .map(drop)
}

/// The installation's epoch.
pub(crate) async fn installation_epoch(db: &mut Connection) -> Result<i64, Error> {
    let row = db
        .row("SELECT epoch FROM installation WHERE id = 1", vec![])
        .await?;
    match row {
        Some(row) => row.integer(0),
        None => Err(Error::unexpected("the row of the installation is missing")),
    }
}

/// Writes something, to see whether that can be done.
pub(crate) async fn touch_installation(db: &mut Connection, now_ms: i64) -> Result<(), Error> {
    db.execute(
        "UPDATE installation SET checked_at = $1 WHERE id = 1",
        cells![now_ms],
    )
    .await
    .map(drop)
}
