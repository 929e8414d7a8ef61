//! API tokens as an administrator is shown them: everything but the token.

use crate::domain::names::{OrganizationSlug, TokenId};
use crate::storage;

use super::credentials::describe;
use super::{Unavailable, Vault};

/// One API token, without the token.
#[derive(Debug)]
pub struct TokenSummary {
    /// Its id.
    pub id: TokenId,
    /// What people call it.
    pub name: String,
    /// Its role, its scope and its end, in words.
    pub description: String,
    /// When it was last used, in milliseconds since 1970; as of the last time that was stored.
    pub last_used_at_ms: Option<i64>,
}

impl Vault {
    /// The tokens of an organization that were not revoked, those made last first; none where there is no organization.
    ///
    /// # Errors
    /// The database cannot be used.
    pub async fn tokens(
        &self,
        organization: &OrganizationSlug,
    ) -> Result<Vec<TokenSummary>, Unavailable> {
        let Some(found) = self.organization(organization).await? else {
            return Ok(Vec::new());
        };
        let mut db = self.reader().await?;
        let found = storage::credentials::tokens(&mut db, &found.id).await?;
        let mut rows = found.whole_or_told("token");
        rows.retain(|row| row.revoked_at.is_none());
        rows.sort_by_key(|row| std::cmp::Reverse(row.created_at));
        Ok(rows
            .into_iter()
            .map(|row| TokenSummary {
                description: describe(&row),
                id: row.id,
                name: row.name,
                last_used_at_ms: row.last_used_at,
            })
            .collect())
    }
}
