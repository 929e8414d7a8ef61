//! API tokens, as stored: never the token itself.

use crate::domain::access::Role;
use crate::domain::names::{OrganizationId, OrganizationSlug, ProjectId, StageId, TokenId};
use crate::storage::{Batch, Connection, Error, Found, Row, cells};

/// One API token.
#[derive(Debug, Clone)]
pub(crate) struct TokenRow {
    /// Its id.
    pub(crate) id: TokenId,
    /// The organization that it belongs to.
    pub(crate) organization: OrganizationId,
    /// That organization's slug.
    pub(crate) organization_slug: OrganizationSlug,
    /// What people call it.
    pub(crate) name: String,
    /// What it may do.
    pub(crate) role: Role,
    /// The project that it is cut to.
    pub(crate) project: Option<ProjectId>,
    /// The stage that it is cut to.
    pub(crate) stage: Option<StageId>,
    /// What it is looked up by.
    pub(crate) mac: Vec<u8>,
    /// The MAC over the row.
    pub(crate) seal: Vec<u8>,
    /// When it was made.
    pub(crate) created_at: i64,
    /// When it ends.
    pub(crate) expires_at: Option<i64>,
    /// When it was revoked.
    pub(crate) revoked_at: Option<i64>,
    /// When it was last used.
    pub(crate) last_used_at: Option<i64>,
    /// Raised by every change that a use relies on.
    pub(crate) epoch: i64,
}

fn token(row: &Row) -> Result<TokenRow, Error> {
    Ok(TokenRow {
        id: row.parsed(0)?,
        organization: row.parsed(1)?,
        organization_slug: row.parsed(2)?,
        name: row.text(3)?.to_owned(),
        role: row.parsed(4)?,
        project: row.maybe_parsed(5)?,
        stage: row.maybe_parsed(6)?,
        mac: row.bytes(7)?.to_vec(),
        seal: row.bytes(8)?.to_vec(),
        created_at: row.integer(9)?,
        expires_at: row.maybe_integer(10)?,
        revoked_at: row.maybe_integer(11)?,
        last_used_at: row.maybe_integer(12)?,
        epoch: row.integer(13)?,
    })
}

/// The tokens `t`, each of an organization `o`, that `$which` says, as [`found`] reads them.
macro_rules! select_tokens {
    ($which:literal) => {
        concat!(
            "SELECT t.id, t.organization_id, o.slug, t.name, t.role, t.project_id, t.stage_id, t.mac, t.seal,
                    t.created_at, t.expires_at, t.revoked_at, t.last_used_at, t.epoch
               FROM api_tokens t JOIN organizations o ON o.id = t.organization_id ",
            $which
        )
    };
}

fn found(rows: Vec<Row>) -> Found<TokenRow> {
    Found::of(rows, |row| token(row), |row| row.label(0))
}

/// The token of that MAC: one at most.
pub(crate) async fn token_by_mac(
    db: &mut Connection,
    mac: &[u8],
) -> Result<Found<TokenRow>, Error> {
    db.rows(select_tokens!("WHERE t.mac = $1"), cells![mac])
        .await
        .map(found)
}

/// The organization's token of that id: one at most.
pub(crate) async fn token_by_id(
    db: &mut Connection,
    organization: &OrganizationId,
    id: &TokenId,
) -> Result<Found<TokenRow>, Error> {
    db.rows(
        select_tokens!("WHERE t.organization_id = $1 AND t.id = $2"),
        cells![organization.as_str(), id.as_str()],
    )
    .await
    .map(found)
}

/// Every token of an organization.
pub(crate) async fn tokens(
    db: &mut Connection,
    organization: &OrganizationId,
) -> Result<Found<TokenRow>, Error> {
    db.rows(
        select_tokens!("WHERE t.organization_id = $1 ORDER BY t.id"),
        cells![organization.as_str()],
    )
    .await
    .map(found)
}

/// Stores a token.
pub(crate) async fn insert_token(db: &mut Connection, token: &TokenRow) -> Result<(), Error> {
    db.execute(
        "INSERT INTO api_tokens (id, organization_id, name, role, project_id, stage_id, mac, seal, created_at,
                                 expires_at, revoked_at, last_used_at, epoch)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
        cells![
            token.id.as_str(),
            token.organization.as_str(),
            token.name.as_str(),
            token.role.as_str(),
            token.project.as_ref().map(ProjectId::as_str),
            token.stage.as_ref().map(StageId::as_str),
            token.mac.as_slice(),
            token.seal.as_slice(),
            token.created_at,
            token.expires_at,
            token.revoked_at,
            token.last_used_at,
            token.epoch
        ],
    )
    .await
    .map(drop)
}

/// Stores that a token is revoked, with its new epoch and seal.
pub(crate) async fn revoke_token(
    db: &mut Connection,
    organization: &OrganizationId,
    token: &TokenRow,
) -> Result<(), Error> {
    db.execute(
        "UPDATE api_tokens SET revoked_at = $3, epoch = $4, seal = $5 WHERE organization_id = $1 AND id = $2",
        cells![
            organization.as_str(),
            token.id.as_str(),
            token.revoked_at,
            token.epoch,
            token.seal.as_slice()
        ],
    )
    .await
    .map(drop)
}

/// Stores that a token whose row was altered is revoked, and leaves it without a seal that fits; its MAC.
pub(crate) async fn revoke_altered_token(
    db: &mut Connection,
    organization: &OrganizationId,
    token: &TokenId,
    now_ms: i64,
) -> Result<Option<Vec<u8>>, Error> {
    db.row(
        "UPDATE api_tokens SET revoked_at = $3, epoch = epoch + 1 WHERE organization_id = $1 AND id = $2
         RETURNING mac",
        cells![organization.as_str(), token.as_str(), now_ms],
    )
    .await?
    .map(|row| row.bytes(0).map(<[u8]>::to_vec))
    .transpose()
}

/// Stores that a token was used.
pub(crate) fn touch_token(
    batch: &mut Batch,
    organization: &OrganizationId,
    token: &TokenId,
    now_ms: i64,
) {
    batch.add(
        "UPDATE api_tokens SET last_used_at = $3 WHERE organization_id = $1 AND id = $2",
        cells![organization.as_str(), token.as_str(), now_ms],
    );
}

/// The epochs of tokens that are there.
pub(crate) async fn token_epochs(
    db: &mut Connection,
    tokens: &[&TokenId],
) -> Result<Vec<(TokenId, i64)>, Error> {
    db.rows_by_names(
        "SELECT id, epoch FROM api_tokens WHERE id IN",
        vec![],
        &tokens.iter().map(|name| name.as_str()).collect::<Vec<_>>(),
    )
    .await?
    .iter()
    .map(|row| Ok((row.parsed(0)?, row.integer(1)?)))
    .collect()
}
