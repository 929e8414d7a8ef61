//! Reading variables: evaluated, pulled, listed.
//!
//! A read is answered when its record is durable. It is judged on what memory holds, or on what was just loaded; what it
//! relied on is held against the database in the group that records it, and a read that a change overtook is done again.
//! One that is overtaken again and again is done inside a group, where nothing can.
mod judging;

use std::sync::Arc;

use super::environments::{beside_others, facts_of, is_sealed, load_environment};
use super::projects::organization_of;
use super::records::Chain;
use super::variables::{Ask, Opened, ReadError, Target, VariableMetadata};
use super::writer::{Change, Recorded, Recording, Relied, Verdict, Work};
use super::{Core, Unavailable, Vault};
use crate::domain::access::{
    self, Caller, Refusal, Scope, StageAct, TokenCaller, may_list_variables,
};
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{ProjectSlug, StageSlug};
use crate::storage::variables::VariableRow;
use crate::storage::{self, Batch, Found};
pub(crate) use judging::{ALTERED, refused_names, stage_event};
use judging::{Judged, Request, Wanted, refused_read};

/// How often a read is done again outside a group.
pub(crate) const READ_ATTEMPTS: u32 = 3;

impl Vault {
    /// Opens the named variables, in order; all or nothing.
    ///
    /// # Errors
    /// [`ReadError`]; refusals and envelopes that do not open are audited before it returns, as reads are.
    pub async fn evaluate(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
        asks: &[Ask],
        request_key: Option<&str>,
    ) -> Result<Vec<Opened>, ReadError> {
        self.read(caller, origin, target, Wanted::Named(asks), request_key)
            .await
    }

    /// Opens every variable of the stage, sorted by name.
    ///
    /// # Errors
    /// As [`Vault::evaluate`]; one that does not open fails all.
    pub async fn pull(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
        request_key: Option<&str>,
    ) -> Result<Vec<Opened>, ReadError> {
        self.read(caller, origin, target, Wanted::All, request_key)
            .await
    }

    async fn read(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
        wanted: Wanted<'_>,
        request_key: Option<&str>,
    ) -> Result<Vec<Opened>, ReadError> {
        let token = match organization_of(caller, target.organization.as_ref()) {
            Ok(token) => token,
            Err(refusal) => {
                let event = refused_read(caller, origin, target, wanted, &refusal);
                self.record_event(chain_of(caller), event).await?;
                return Err(refusal.into());
            }
        };
        let request = Request {
            caller,
            token,
            origin,
            target,
            wanted,
            request_key,
        };
        for attempt in 0..READ_ATTEMPTS {
            if let Some(answer) = self.read_once(&request, attempt > 0).await? {
                return answer;
            }
        }
        let inside = ReadInGroup {
            core: Arc::clone(&self.0.core),
            caller: caller.clone(),
            token: token.clone(),
            origin: origin.clone(),
            target: target.clone(),
            asks: match wanted {
                Wanted::Named(asks) => Some(asks.to_vec()),
                Wanted::All => None,
            },
            request_key: request_key.map(str::to_owned),
        };
        match self.0.queue.change(inside).await? {
            Some((answer, public)) => {
                self.count_public_reads(&request, public);
                answer
            }
            None => Err(self.no_environment(&request).await?),
        }
    }

    /// One attempt; `None` when a change overtook it. `fresh` asks the database and not memory.
    async fn read_once(
        &self,
        request: &Request<'_>,
        fresh: bool,
    ) -> Result<Option<Result<Vec<Opened>, ReadError>>, ReadError> {
        let core = self.core();
        let (token, target) = (request.token, request.target);
        let Some((environment, from_memory)) = self.environment(token, target, fresh).await? else {
            return Err(self.no_environment(request).await?);
        };
        let fetched = if environment.variables.is_some() {
            Found::default()
        } else {
            let mut db = self.reader().await?;
            request
                .fetch(&mut db, &environment)
                .await
                .map_err(Unavailable::from)?
        };
        let Judged {
            event,
            public,
            answer,
        } = beside_others(request.wanted.is_much() && environment.is_large(), || {
            request.judge(core, &environment, &fetched)
        });
        if event.is_none() && answer.is_err() {
            // Nothing is recorded that would hold the stage and the credential against the database.
            if from_memory && !self.is_current(&environment).await? {
                return Ok(None);
            }
            if let Some(refusal) = self.ended(token).await? {
                return Err(self.refuse(request, refusal).await?);
            }
            return Ok(Some(answer));
        }
        let chain = || Chain::Organization(token.organization.clone());
        let recording = Recording {
            events: event.into_iter().map(|event| (chain(), event)).collect(),
            relied: Relied {
                stages: vec![(environment.facts.stage.clone(), environment.stage.epoch)],
                token: Some((token.token.clone(), token.epoch)),
            },
            used: Some((token.organization.clone(), token.token.clone())),
            usage: request.usage(&answer),
        };
        match self.0.queue.record(recording).await? {
            Recorded::Durable => {
                self.count_public_reads(request, public);
                Ok(Some(answer))
            }
            Recorded::StageChanged => {
                core.cache.forget_past_stage(&environment.stage);
                Ok(None)
            }
            Recorded::CredentialEnded => {
                core.cache.forget_token_id(&token.token);
                Err(self.refuse(request, Refusal::CredentialEnded).await?)
            }
        }
    }

    fn count_public_reads(&self, request: &Request<'_>, count: u64) {
        if count > 0 {
            let organization = request.token.organization.clone();
            let (project, stage) = (&request.target.project, &request.target.stage);
            self.0
                .counts
                .add_public_reads((organization, project.clone(), stage.clone()), count);
        }
    }

    /// Records something that relied on nothing.
    pub(crate) async fn record_event(
        &self,
        chain: Chain,
        event: AuditEvent,
    ) -> Result<(), Unavailable> {
        let recording = Recording {
            events: vec![(chain, event)],
            relied: Relied::default(),
            used: None,
            usage: None,
        };
        self.0.queue.record(recording).await.map(drop)
    }

    /// What a caller is told of a stage that is not there: a scoped or too small one the same as of any other.
    async fn no_environment(&self, request: &Request<'_>) -> Result<ReadError, Unavailable> {
        let target = request.target;
        let refusal = match self.ended(request.token).await? {
            Some(ended) => Some(ended),
            None => refusal_for_absent(self, request.token, target, StageAct::Read).await?,
        };
        match refusal {
            Some(refusal) => self.refuse(request, refusal).await,
            None => Ok(ReadError::NoEnvironment {
                project: target.project.clone(),
                stage: target.stage.clone(),
            }),
        }
    }

    /// Records that a read was refused.
    async fn refuse(
        &self,
        request: &Request<'_>,
        refusal: Refusal,
    ) -> Result<ReadError, Unavailable> {
        let event = refused_read(
            request.caller,
            request.origin,
            request.target,
            request.wanted,
            &refusal,
        );
        self.record_event(chain_of(request.caller), event).await?;
        Ok(refusal.into())
    }

    /// What the stage holds, sorted by name. A variable whose row holds what was never written is not among it.
    ///
    /// # Errors
    /// [`ReadError`]. Refusals and altered rows are audited; nothing else is, since no value is read.
    pub async fn list(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
    ) -> Result<Vec<VariableMetadata>, ReadError> {
        let listed = self.list_once(caller, target).await;
        if let Err(ReadError::Refused(refusal)) = &listed {
            let place = (Some(&target.project), Some(&target.stage));
            self.record_refused_listing(caller, origin, place, refusal)
                .await?;
        }
        if let Err(error @ ReadError::AlteredStage { .. }) = &listed {
            let event = stage_event(
                Action::EnvelopeRefused,
                caller.actor(),
                (&target.project, &target.stage),
                Vec::new(),
                origin,
                Outcome::Refused,
                error.to_string(),
            );
            self.record_event(chain_of(caller), event).await?;
        }
        let found = listed?;
        if !found.altered.is_empty() {
            let (names, detail) = refused_names(found.altered.iter(), &ALTERED);
            let event = stage_event(
                Action::EnvelopeRefused,
                caller.actor(),
                (&target.project, &target.stage),
                names,
                origin,
                Outcome::Refused,
                detail,
            );
            self.record_event(chain_of(caller), event).await?;
        }
        Ok(found
            .whole
            .into_iter()
            .map(|row| VariableMetadata {
                name: row.name,
                kind: row.kind,
                declared_type: row.declared_type,
                visibility: row.visibility,
                version: row.version,
                created_at_ms: row.created_at,
                updated_at_ms: row.updated_at,
            })
            .collect())
    }

    /// Records that a listing was refused.
    pub(crate) async fn record_refused_listing(
        &self,
        caller: &Caller,
        origin: &Origin,
        (project, stage): (Option<&ProjectSlug>, Option<&StageSlug>),
        refusal: &Refusal,
    ) -> Result<(), Unavailable> {
        let event = AuditEvent {
            action: Action::ReadRefused,
            actor: caller.actor(),
            project: project.map(ToString::to_string),
            stage: stage.map(ToString::to_string),
            names: Vec::new(),
            origin: origin.clone(),
            outcome: Outcome::Refused,
            detail: refusal.to_string(),
        };
        self.record_event(chain_of(caller), event).await
    }

    async fn list_once(
        &self,
        caller: &Caller,
        target: &Target,
    ) -> Result<Found<VariableRow>, ReadError> {
        let token = organization_of(caller, target.organization.as_ref())?;
        self.confirm_token(token).await?;
        let mut db = self.reader().await?;
        let stage = storage::projects::stage_by_slugs(
            &mut db,
            &token.organization,
            &target.project,
            &target.stage,
        )
        .await
        .map_err(Unavailable::from)?;
        let Some(stage) = stage else {
            drop(db);
            return match refusal_for_absent(self, token, target, StageAct::List).await? {
                Some(refusal) => Err(refusal.into()),
                None => Err(ReadError::NoEnvironment {
                    project: target.project.clone(),
                    stage: target.stage.clone(),
                }),
            };
        };
        may_list_variables(caller, &facts_of(&stage))?;
        if !is_sealed(self.core(), &stage) {
            return Err(ReadError::AlteredStage {
                project: target.project.clone(),
                stage: target.stage.clone(),
            });
        }
        let found = storage::variables::newest_without_envelopes(&mut db, &stage.id)
            .await
            .map_err(Unavailable::from)?;
        Ok(found)
    }

    /// What a credential that has ended is refused with.
    pub(crate) async fn ended(&self, token: &TokenCaller) -> Result<Option<Refusal>, Unavailable> {
        match self.confirm_token(token).await {
            Ok(()) => Ok(None),
            Err(ConfirmError::Refused(refusal)) => Ok(Some(refusal)),
            Err(ConfirmError::Unavailable(error)) => Err(error),
        }
    }

    /// Asks the database whether a credential still is one, where another replica may have ended it.
    pub(crate) async fn confirm_token(&self, token: &TokenCaller) -> Result<(), ConfirmError> {
        if !self.core().database.is_shared() {
            return Ok(());
        }
        let mut db = self.reader().await?;
        let epochs = storage::credentials::token_epochs(&mut db, &[&token.token])
            .await
            .map_err(Unavailable::from)?;
        if epochs
            .first()
            .is_some_and(|(_, epoch)| *epoch == token.epoch)
        {
            Ok(())
        } else {
            self.core().cache.forget_token_id(&token.token);
            Err(ConfirmError::Refused(Refusal::CredentialEnded))
        }
    }
}

/// A read that is done inside a group, where no change can overtake it.
struct ReadInGroup {
    core: Arc<Core>,
    caller: Caller,
    token: TokenCaller,
    origin: Origin,
    target: Target,
    /// `None` for every variable.
    asks: Option<Vec<Ask>>,
    request_key: Option<String>,
}

impl Change for ReadInGroup {
    /// With how many of the values are `public`. `None` when there is no such stage.
    type Answer = Option<(Result<Vec<Opened>, ReadError>, u64)>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.token.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let request = Request {
            caller: &self.caller,
            token: &self.token,
            origin: &self.origin,
            target: &self.target,
            wanted: self.asks.as_deref().map_or(Wanted::All, Wanted::Named),
            request_key: self.request_key.as_deref(),
        };
        let organization = &self.token.organization;
        let found = storage::projects::stage_by_slugs(
            &mut work.db,
            organization,
            &self.target.project,
            &self.target.stage,
        )
        .await?;
        let Some(stage) = found else {
            return Ok(Verdict::TakeBack(None));
        };
        let epochs = storage::credentials::token_epochs(&mut work.db, &[&self.token.token]).await?;
        let token_held = epochs
            .first()
            .is_some_and(|(_, epoch)| *epoch == self.token.epoch);
        let Judged {
            event,
            public,
            answer,
        } = if token_held {
            let size = storage::variables::stage_size(&mut work.db, &stage.id).await?;
            let environment = load_environment(&self.core, &mut work.db, stage, size).await?;
            let fetched = request.fetch(&mut work.db, &environment).await?;
            request.judge(&self.core, &environment, &fetched)
        } else {
            request.refused(Refusal::CredentialEnded)
        };
        if event.is_none() && answer.is_err() {
            return Ok(Verdict::TakeBack(Some((answer, public))));
        }
        work.events.extend(event.map(|event| (self.chain(), event)));
        let now = work.now_ms;
        if let Some(usage) = request.usage(&answer) {
            let mut batch = Batch::default();
            super::writer::count_usage(&mut work.db, &mut batch, &usage, now).await?;
            storage::credentials::touch_token(&mut batch, organization, &self.token.token, now);
            work.db.run_batch(batch).await?;
        }
        Ok(Verdict::Keep(Some((answer, public))))
    }
}

/// Why a credential was not confirmed.
pub(crate) enum ConfirmError {
    /// It has ended.
    Refused(Refusal),
    /// The database.
    Unavailable(Unavailable),
}

impl From<Unavailable> for ConfirmError {
    fn from(error: Unavailable) -> Self {
        Self::Unavailable(error)
    }
}

impl From<ConfirmError> for ReadError {
    fn from(error: ConfirmError) -> Self {
        match error {
            ConfirmError::Refused(refusal) => Self::Refused(refusal),
            ConfirmError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}

/// The chain that a caller's refusals go to.
pub(crate) fn chain_of(caller: &Caller) -> Chain {
    match caller {
        Caller::Token(token) => Chain::Organization(token.organization.clone()),
        Caller::Pod(_) => Chain::Installation,
    }
}

/// What a caller is refused with when a stage is not there: the same as when it is there and not theirs. `None` for those
/// who may know that it is not there.
pub(crate) async fn refusal_for_absent(
    vault: &Vault,
    token: &TokenCaller,
    target: &Target,
    act: StageAct,
) -> Result<Option<Refusal>, Unavailable> {
    let project = if matches!(token.scope, Scope::Project(_)) {
        let mut db = vault.reader().await?;
        storage::projects::project_by_slug(&mut db, &token.organization, &target.project).await?
    } else {
        None
    };
    let project = project.map(|project| project.id);
    Ok(access::refusal_for_absent(token, act, project.as_ref()))
}
