//! Organizations.
use super::{Unavailable, Vault};
use crate::domain::audit::Origin;
use crate::domain::names::{OrganizationId, OrganizationSlug};
use crate::vault::credentials::NewToken;

/// An organization.
#[derive(Debug, Clone)]
pub struct Organization {
    /// Its id.
    pub id: OrganizationId,
    /// Its slug.
    pub slug: OrganizationSlug,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
}

/// Why an organization was not made.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// It is there already.
    #[error(
        "the organization {slug} exists already; `barekey-operator admin token create --organization {slug} --role owner` makes another token"
    )]
    Exists {
        /// Its slug.
        slug: OrganizationSlug,
    },
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Vault {
    /// Makes one organization and its owner's token.
    pub async fn bootstrap(
        &self,
        _origin: &Origin,
        _slug: &OrganizationSlug,
    ) -> Result<(Organization, NewToken), BootstrapError> {
        todo!()
    }
    /// The organization of that slug; `None` when there is none.
    pub async fn organization(
        &self,
        _slug: &OrganizationSlug,
    ) -> Result<Option<Organization>, Unavailable> {
        todo!()
    }
}
