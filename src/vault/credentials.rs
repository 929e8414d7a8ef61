//! API tokens: made, revoked, recognised.
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use super::cache::Token;
use super::records::Chain;
use super::writer::{Change, Verdict, Work};
use super::{Core, Unavailable, Vault, make_id, no_random};
use crate::crypto::keys::{TokenKey, same_mac};
pub use crate::crypto::tokens::PresentedToken;
use crate::crypto::tokens::make_api_token;
use crate::domain::access::{Actor, Caller, Role, Scope, TokenCaller};
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{OrganizationSlug, ProjectId, ProjectSlug, StageId, StageSlug, TokenId};
use crate::domain::plaintext::Plaintext;
use crate::storage;
use crate::storage::credentials::TokenRow;
use crate::storage::organizations::OrganizationRow;

/// How long a token that another replica may have revoked is believed without asking, in milliseconds. Reads of values
/// and changes do not rely on it: the group that records them asks anew.
const SHARED_TOKEN_BELIEVED_MS: i64 = 1000;

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

/// Who acts through `barekey-operator admin`.
pub(crate) fn administrator() -> Actor {
    Actor {
        kind: "administrator",
        id: String::new(),
        name: "administrator".to_owned(),
    }
}

/// The seal over a token's row: an altered or planted row does not have it.
pub(crate) fn derive_row_seal(key: &TokenKey, row: &TokenRow) -> Vec<u8> {
    let number = |value: Option<i64>| value.map(|value| value.to_string()).unwrap_or_default();
    let (expires, revoked) = (number(row.expires_at), number(row.revoked_at));
    let epoch = row.epoch.to_string();
    key.derive_token_seal(&[
        row.id.as_str().as_bytes(),
        row.name.as_bytes(),
        row.organization.as_str().as_bytes(),
        row.role.as_str().as_bytes(),
        row.project
            .as_ref()
            .map_or("", ProjectId::as_str)
            .as_bytes(),
        row.stage.as_ref().map_or("", StageId::as_str).as_bytes(),
        &row.mac,
        expires.as_bytes(),
        revoked.as_bytes(),
        epoch.as_bytes(),
    ])
    .to_vec()
}

/// What a new token is to be.
pub(crate) struct Grant<'a> {
    /// What people call it.
    pub(crate) name: &'a str,
    /// What it may do.
    pub(crate) role: Role,
    /// The project that it is cut to.
    pub(crate) project: Option<ProjectId>,
    /// The stage that it is cut to.
    pub(crate) stage: Option<StageId>,
    /// When it ends.
    pub(crate) expires_at: Option<i64>,
}

/// Makes a token and stores what is needed to know it again. Audited.
pub(crate) async fn store_new_token(
    core: &Core,
    work: &mut Work,
    origin: &Origin,
    organization: &OrganizationRow,
    grant: Grant<'_>,
) -> Result<NewToken, storage::Error> {
    let token = make_api_token().map_err(no_random)?;
    let mut row = TokenRow {
        id: make_id("tok")?,
        organization: organization.id.clone(),
        organization_slug: organization.slug.clone(),
        name: grant.name.to_owned(),
        role: grant.role,
        project: grant.project,
        stage: grant.stage,
        mac: core
            .token_key
            .derive_token_mac(token.reveal_text().unwrap_or_default())
            .to_vec(),
        seal: Vec::new(),
        created_at: work.now_ms,
        expires_at: grant.expires_at,
        revoked_at: None,
        last_used_at: None,
        epoch: 1,
    };
    row.seal = derive_row_seal(&core.token_key, &row);
    storage::credentials::insert_token(&mut work.db, &row).await?;
    let event = AuditEvent {
        action: Action::TokenCreated,
        actor: administrator(),
        project: None,
        stage: None,
        names: vec![row.id.to_string()],
        origin: origin.clone(),
        outcome: Outcome::Allowed,
        detail: describe(&row),
    };
    work.events
        .push((Chain::Organization(organization.id.clone()), event));
    Ok(NewToken { id: row.id, token })
}

/// What a token is, for the audit trail.
pub(crate) fn describe(row: &TokenRow) -> String {
    let mut text = format!("role={}", row.role);
    if let Some(project) = &row.project {
        text.push_str(&format!(" project={project}"));
    }
    if let Some(stage) = &row.stage {
        text.push_str(&format!(" stage={stage}"));
    }
    if let Some(expires) = row.expires_at {
        text.push_str(&format!(" expires_at_ms={expires}"));
    }
    text
}

/// Revokes a token and tells memory; its row stays.
pub(crate) async fn store_revocation(
    core: &Core,
    work: &mut Work,
    mut row: TokenRow,
) -> Result<(), storage::Error> {
    row.revoked_at = Some(work.now_ms);
    row.epoch += 1;
    row.seal = derive_row_seal(&core.token_key, &row);
    let organization = row.organization.clone();
    storage::credentials::revoke_token(&mut work.db, &organization, &row).await?;
    work.changed_tokens.push(row.mac);
    Ok(())
}

impl Vault {
    /// Makes a token.
    ///
    /// # Errors
    /// [`CreateTokenError`]; nothing is stored then.
    pub async fn create_token(
        &self,
        origin: &Origin,
        request: &TokenRequest,
    ) -> Result<NewToken, CreateTokenError> {
        let Some(organization) = self.organization(&request.organization).await? else {
            return Err(CreateTokenError::NoOrganization(
                request.organization.clone(),
            ));
        };
        let change = CreateToken {
            core: Arc::clone(&self.0.core),
            origin: origin.clone(),
            organization: OrganizationRow {
                id: organization.id,
                slug: organization.slug,
                created_at: organization.created_at_ms,
            },
            request: request.clone(),
        };
        self.0.queue.change(change).await?
    }

    /// Revokes a token; its row stays. From the answer on, the token is no credential.
    ///
    /// # Errors
    /// [`RevokeTokenError`]; a token that is revoked already is no error.
    pub async fn revoke_token(
        &self,
        origin: &Origin,
        organization: &OrganizationSlug,
        token: &TokenId,
    ) -> Result<(), RevokeTokenError> {
        let Some(found) = self.organization(organization).await? else {
            return Err(RevokeTokenError::NoOrganization(organization.clone()));
        };
        let change = RevokeToken {
            core: Arc::clone(&self.0.core),
            origin: origin.clone(),
            organization: found.id,
            token: token.clone(),
        };
        self.0.queue.change(change).await?
    }

    /// Recognises a credential: an API token (`bk_api_…`) or a pod's service account token (three dot-separated parts).
    ///
    /// # Errors
    /// [`AuthenticateError`]; an unknown, a revoked and an expired token read the same.
    pub async fn authenticate(&self, bearer: &PresentedToken) -> Result<Caller, AuthenticateError> {
        let text = bearer.reveal();
        if bearer.is_api_token() {
            return self.authenticate_token(text).await.map(Caller::Token);
        }
        let parts = text.split('.').filter(|part| !part.is_empty()).count();
        match &self.0.pod_identity {
            Some(identity) if parts == 3 && text.matches('.').count() == 2 => {
                identity.identify(bearer).await.map(Caller::Pod)
            }
            _ => Err(AuthenticateError::Unknown),
        }
    }

    async fn authenticate_token(&self, text: &str) -> Result<TokenCaller, AuthenticateError> {
        let core = self.core();
        let mac = core.token_key.derive_token_mac(text);
        let now = core.clock.now_ms();
        let shared = core.database.is_shared();
        let held = core
            .cache
            .token(&mac)
            .filter(|token| !shared || now - token.read_at < SHARED_TOKEN_BELIEVED_MS);
        let token = match held {
            Some(token) => token,
            None => self.load_token(&mac, now).await?,
        };
        let row = &token.row;
        let ended = row.revoked_at.is_some() || row.expires_at.is_some_and(|end| end <= now);
        if ended || !same_mac(&row.mac, &mac) {
            return Err(AuthenticateError::Unknown);
        }
        let scope = match (&row.project, &row.stage) {
            (None, None) => Scope::Organization,
            // Never stored: a stage belongs to a project.
            (None, Some(_)) => return Err(AuthenticateError::Unknown),
            (Some(project), None) => Scope::Project(project.clone()),
            (Some(project), Some(stage)) => Scope::Stage(project.clone(), stage.clone()),
        };
        let last_used = token.last_used_at.swap(now, Ordering::Relaxed);
        Ok(TokenCaller {
            token: row.id.clone(),
            name: row.name.clone(),
            organization: row.organization.clone(),
            organization_slug: row.organization_slug.clone(),
            role: row.role,
            scope,
            expires_at_ms: row.expires_at,
            last_used_at_ms: (last_used != 0).then_some(last_used),
            epoch: row.epoch,
        })
    }

    async fn load_token(&self, mac: &[u8], now: i64) -> Result<Arc<Token>, AuthenticateError> {
        let core = self.core();
        let generation = core.cache.generation();
        let mut db = self.reader().await?;
        let row = storage::credentials::token_by_mac(&mut db, mac)
            .await
            .map_err(Unavailable::from)?
            .whole_or_told("token")
            .pop()
            .ok_or(AuthenticateError::Unknown)?;
        if !same_mac(&derive_row_seal(&core.token_key, &row), &row.seal) {
            tracing::warn!(token = %row.id, "the row of a token was altered: it is no credential");
            return Err(AuthenticateError::Unknown);
        }
        let token = Arc::new(Token {
            last_used_at: AtomicI64::new(row.last_used_at.unwrap_or(0)),
            row,
            read_at: now,
        });
        core.cache.hold_token(generation, Arc::clone(&token));
        Ok(token)
    }
}

struct CreateToken {
    core: Arc<Core>,
    origin: Origin,
    organization: OrganizationRow,
    request: TokenRequest,
}

impl Change for CreateToken {
    type Answer = Result<NewToken, CreateTokenError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.organization.id.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let request = &self.request;
        let refused = |error| Ok(Verdict::TakeBack(Err(error)));
        if request.expires_at_ms.is_some_and(|end| end <= work.now_ms) {
            return refused(CreateTokenError::AlreadyExpired);
        }
        let mut project = None;
        let mut stage = None;
        if let Some(slug) = &request.project {
            let id = &self.organization.id;
            let Some(found) = storage::projects::project_by_slug(&mut work.db, id, slug).await?
            else {
                return refused(CreateTokenError::NoProject(slug.clone()));
            };
            if let Some(stage_slug) = &request.stage {
                let Some(found) =
                    storage::projects::stage_by_slugs(&mut work.db, id, slug, stage_slug).await?
                else {
                    return refused(CreateTokenError::NoStage(stage_slug.clone()));
                };
                stage = Some(found.id);
            }
            project = Some(found.id);
        } else if let Some(stage) = &request.stage {
            // A stage alone names nothing.
            return refused(CreateTokenError::NoStage(stage.clone()));
        }
        let token = store_new_token(
            &self.core,
            work,
            &self.origin,
            &self.organization,
            Grant {
                name: &request.name,
                role: request.role,
                project,
                stage,
                expires_at: request.expires_at_ms,
            },
        )
        .await?;
        Ok(Verdict::Keep(Ok(token)))
    }
}

struct RevokeToken {
    core: Arc<Core>,
    origin: Origin,
    organization: crate::domain::names::OrganizationId,
    token: TokenId,
}

impl Change for RevokeToken {
    type Answer = Result<(), RevokeTokenError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let found =
            storage::credentials::token_by_id(&mut work.db, &self.organization, &self.token)
                .await?;
        let is_altered = !found.altered.is_empty();
        let row = found.whole.into_iter().next();
        if row.is_none() && !is_altered {
            let error = RevokeTokenError::NoToken(self.token.clone());
            return Ok(Verdict::TakeBack(Err(error)));
        }
        if row.as_ref().is_some_and(|row| row.revoked_at.is_some()) {
            return Ok(Verdict::Keep(Ok(())));
        }
        let event = AuditEvent {
            action: Action::TokenRevoked,
            actor: administrator(),
            project: None,
            stage: None,
            names: vec![self.token.to_string()],
            origin: self.origin.clone(),
            outcome: Outcome::Allowed,
            detail: String::new(),
        };
        work.events.push((self.chain(), event));
        match row {
            Some(row) => store_revocation(&self.core, work, row).await?,
            None => {
                // Memory may hold the token as it was before.
                let (organization, now) = (&self.organization, work.now_ms);
                let mac = storage::credentials::revoke_altered_token(
                    &mut work.db,
                    organization,
                    &self.token,
                    now,
                )
                .await?;
                work.changed_tokens.extend(mac);
            }
        }
        Ok(Verdict::Keep(Ok(())))
    }
}
