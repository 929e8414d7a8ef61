//! API tokens: made, revoked, recognised.
use super::{Unavailable, Vault};
pub use crate::crypto::tokens::PresentedToken;
use crate::domain::access::{Caller, Role};
use crate::domain::audit::Origin;
use crate::domain::names::{OrganizationSlug, ProjectSlug, StageSlug, TokenId};
use crate::domain::plaintext::Plaintext;

/// A token that was just made: the only time that its text is seen.
#[derive(Debug)]
pub struct NewToken {
    /// Its id, which is no secret.
    pub id: TokenId,
    /// The token itself (`bk_api_…`).
    pub token: Plaintext,
}

/// What to make.
#[derive(Debug, Clone)]
pub struct TokenRequest {
    /// The organization.
    pub organization: OrganizationSlug,
    /// What people call it.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The project that it is cut to.
    pub project: Option<ProjectSlug>,
    /// The stage that it is cut to; needs a project.
    pub stage: Option<StageSlug>,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: Option<i64>,
}

/// Why a token was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateTokenError {
    /// No such organization.
    #[error(
        "there is no organization {0}; `barekey-operator admin bootstrap --organization {0}` makes it"
    )]
    NoOrganization(OrganizationSlug),
    /// No such project.
    #[error("the organization has no project {0}")]
    NoProject(ProjectSlug),
    /// No such stage.
    #[error("the project has no stage {0}")]
    NoStage(StageSlug),
    /// The end is not in the future.
    #[error("the token would have expired already; name an instant in the future")]
    AlreadyExpired,
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why a token was not revoked.
#[derive(Debug, thiserror::Error)]
pub enum RevokeTokenError {
    /// No such organization.
    #[error("there is no organization {0}")]
    NoOrganization(OrganizationSlug),
    /// No such token.
    #[error("the organization has no token {0}")]
    NoToken(TokenId),
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why a credential was not recognised.
#[derive(Debug, thiserror::Error)]
pub enum AuthenticateError {
    /// Unknown, expired or revoked: the caller is told the same.
    #[error("the credential is unknown, expired or revoked")]
    Unknown,
    /// A pod's token that does not prove a living pod; the caller is told what to look at (its own token, so no secret).
    #[error("the pod could not be recognised: {reason}")]
    PodRefused {
        /// Which check failed, in words for the pod's owner.
        reason: String,
    },
    /// Too many look-ups wait; try again after that many seconds.
    #[error("too many pods ask at once")]
    Busy {
        /// Seconds.
        retry_after_seconds: u32,
    },
    /// The API server cannot be asked.
    #[error("the Kubernetes API server cannot be asked")]
    IdentityUnavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Vault {
    /// Makes a token.
    pub async fn create_token(
        &self,
        _origin: &Origin,
        _request: &TokenRequest,
    ) -> Result<NewToken, CreateTokenError> {
        todo!()
    }
    /// Revokes a token; its row stays.
    pub async fn revoke_token(
        &self,
        _origin: &Origin,
        _organization: &OrganizationSlug,
        _token: &TokenId,
    ) -> Result<(), RevokeTokenError> {
        todo!()
    }
    /// Recognises a credential: an API token (`bk_api_…`) or a pod's service account token (three dot-separated parts).
    pub async fn authenticate(
        &self,
        _bearer: &PresentedToken,
    ) -> Result<Caller, AuthenticateError> {
        todo!()
    }
    /// Counts an attempt without a known caller; written to the audit trail once a minute.
    pub fn count_unknown_caller(&self) {}
}
