//! Organizations.
use super::records::Chain;
use super::writer::{Change, Verdict, Work};
use super::{Unavailable, Vault, make_id};
use crate::domain::access::Role;
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{OrganizationId, OrganizationSlug};
use crate::storage;
use crate::storage::organizations::OrganizationRow;
use crate::vault::credentials::{Grant, NewToken, administrator, store_new_token};

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

impl From<OrganizationRow> for Organization {
    fn from(row: OrganizationRow) -> Self {
        Self {
            id: row.id,
            slug: row.slug,
            created_at_ms: row.created_at,
        }
    }
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
    ///
    /// # Errors
    /// [`BootstrapError::Exists`] when there is one of that slug.
    pub async fn bootstrap(
        &self,
        origin: &Origin,
        slug: &OrganizationSlug,
    ) -> Result<(Organization, NewToken), BootstrapError> {
        let change = Bootstrap {
            core: std::sync::Arc::clone(&self.0.core),
            origin: origin.clone(),
            slug: slug.clone(),
        };
        self.0
            .queue
            .change(change)
            .await?
            .ok_or_else(|| BootstrapError::Exists { slug: slug.clone() })
    }

    /// The organization of that slug; `None` when there is none.
    ///
    /// # Errors
    /// [`Unavailable`] when the database cannot be read.
    pub async fn organization(
        &self,
        slug: &OrganizationSlug,
    ) -> Result<Option<Organization>, Unavailable> {
        let mut db = self.reader().await?;
        let row = storage::organizations::organization_by_slug(&mut db, slug).await?;
        Ok(row.map(Organization::from))
    }
}

struct Bootstrap {
    core: std::sync::Arc<super::Core>,
    origin: Origin,
    slug: OrganizationSlug,
}

impl Change for Bootstrap {
    type Answer = Option<(Organization, NewToken)>;

    fn chain(&self) -> Chain {
        Chain::Installation
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let row = OrganizationRow {
            id: make_id("org")?,
            slug: self.slug.clone(),
            created_at: work.now_ms,
        };
        if !storage::organizations::insert_organization(&mut work.db, &row).await? {
            let event = self.event(Outcome::Refused, "the organization exists already");
            work.events.push((Chain::Installation, event));
            return Ok(Verdict::TakeBack(None));
        }
        let chain = Chain::Organization(row.id.clone());
        work.events.push((
            Chain::Installation,
            self.event(Outcome::Allowed, row.id.as_str()),
        ));
        work.events
            .push((chain, self.event(Outcome::Allowed, row.id.as_str())));
        let token = store_new_token(
            &self.core,
            work,
            &self.origin,
            &row,
            Grant {
                name: &format!("owner of {}", self.slug),
                role: Role::Owner,
                project: None,
                stage: None,
                expires_at: None,
            },
        )
        .await?;
        Ok(Verdict::Keep(Some((Organization::from(row), token))))
    }
}

impl Bootstrap {
    fn event(&self, outcome: Outcome, detail: &str) -> AuditEvent {
        AuditEvent {
            action: Action::OrganizationCreated,
            actor: administrator(),
            project: None,
            stage: None,
            names: vec![self.slug.to_string()],
            origin: self.origin.clone(),
            outcome,
            detail: detail.to_owned(),
        }
    }
}
