//! Reading variables: evaluated, pulled, listed.
//!
//! A read is answered when its record is durable. It is judged on what memory holds, or on what was just loaded; what it
//! relied on is held against the database in the group that records it, and a read that a change overtook is done again.
//! One that is overtaken again and again is done inside a group, where nothing can.
use std::fmt::Display;
use std::sync::Arc;

use super::cache::Environment;
use super::environments::{Opener, Unopened, facts_of, load_environment};
use super::projects::organization_of;
use super::records::Chain;
use super::variables::{Ask, Opened, ReadError, Target, VariableMetadata};
use super::writer::{Change, Recorded, Recording, Relied, Usage, Verdict, Work};
use super::{Core, Unavailable, Vault};
use crate::domain::access::{
    self, Actor, Caller, Refusal, Scope, StageAct, TokenCaller, may_list_variables, may_read,
};
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{ProjectSlug, StageSlug};
use crate::domain::variable::Visibility;
use crate::storage::variables::VariableRow;
use crate::storage::{self, Batch, Connection, Found};

/// How often a read is done again outside a group.
pub(crate) const READ_ATTEMPTS: u32 = 3;

/// What a read wants of a stage.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    /// These, in order; all or nothing.
    Named(&'a [Ask]),
    /// Every one, sorted by name.
    All,
}

impl Wanted<'_> {
    /// The scope that request keys are stored under.
    fn scope(self) -> &'static str {
        match self {
            Self::Named([_]) => "env_evaluate_single",
            Self::Named(_) => "env_evaluate_batch",
            Self::All => "env_pull",
        }
    }
}

/// A read, as it was asked for.
#[derive(Clone, Copy)]
struct Request<'a> {
    caller: &'a Caller,
    token: &'a TokenCaller,
    origin: &'a Origin,
    target: &'a Target,
    wanted: Wanted<'a>,
    request_key: Option<&'a str>,
}

/// What a read comes to, before it is recorded.
struct Judged {
    /// What is to be recorded before the answer leaves; `None` where nothing is: a variable that is not there, or of
    /// another type, and `public` values alone.
    event: Option<AuditEvent>,
    /// How many `public` values are in the answer; they are counted.
    public: u64,
    answer: Result<Vec<Opened>, ReadError>,
}

impl Judged {
    fn recorded(event: AuditEvent, answer: Result<Vec<Opened>, ReadError>) -> Self {
        Self {
            event: Some(event),
            public: 0,
            answer,
        }
    }

    fn unrecorded(error: ReadError) -> Self {
        Self {
            event: None,
            public: 0,
            answer: Err(error),
        }
    }
}

impl Request<'_> {
    /// What the read comes to on a stage as it is stored. `fetched` are the rows of a stage that memory does not hold.
    fn judge(
        &self,
        core: &Core,
        environment: &Environment,
        fetched: &Found<VariableRow>,
    ) -> Judged {
        if let Err(refusal) = may_read(self.caller, &environment.facts) {
            return self.refused(refusal);
        }
        let mut altered = environment.altered.iter().chain(&fetched.altered);
        let rows: Vec<&VariableRow> = match (self.wanted, &environment.variables) {
            (Wanted::All, held) => match (altered.next(), held) {
                (Some(name), _) => return self.altered(name.clone()),
                (None, Some(variables)) => variables.values().collect(),
                (None, None) => fetched.whole.iter().collect(),
            },
            (Wanted::Named(asks), held) => {
                let mut rows = Vec::with_capacity(asks.len());
                for ask in asks {
                    let row = match held {
                        Some(variables) => variables.get(&ask.name),
                        None => fetched.whole.iter().find(|row| row.name == ask.name),
                    };
                    let Some(row) = row else {
                        if altered.clone().any(|name| name == ask.name.as_str()) {
                            return self.altered(ask.name.to_string());
                        }
                        return Judged::unrecorded(ReadError::NoVariable {
                            name: ask.name.clone(),
                        });
                    };
                    if let Some(expected) = ask.declared_type
                        && expected != row.declared_type
                    {
                        return Judged::unrecorded(ReadError::WrongType {
                            name: row.name.clone(),
                            declared: row.declared_type,
                            expected,
                        });
                    }
                    rows.push(row);
                }
                rows
            }
        };
        let mut opener = Opener::new(core, environment);
        let mut opened = Vec::with_capacity(rows.len());
        for row in rows {
            match opener.open(row) {
                Ok(value) => opened.push(Opened {
                    name: row.name.clone(),
                    kind: row.kind,
                    declared_type: row.declared_type,
                    visibility: row.visibility,
                    value,
                }),
                Err(Unopened) => return self.altered(row.name.to_string()),
            }
        }
        let names: Vec<_> = opened
            .iter()
            .filter(|one| one.visibility == Visibility::Private)
            .map(|one| one.name.to_string())
            .collect();
        let public = opened.len() - names.len();
        let event = (public == 0 || !names.is_empty()).then(|| {
            let detail = String::new();
            self.event(Action::VariablesRead, names, Outcome::Allowed, detail)
        });
        Judged {
            event,
            public: u64::try_from(public).unwrap_or(u64::MAX),
            answer: Ok(opened),
        }
    }

    fn event(
        &self,
        action: Action,
        names: Vec<String>,
        outcome: Outcome,
        detail: String,
    ) -> AuditEvent {
        stage_event(
            action,
            self.caller.actor(),
            (&self.target.project, &self.target.stage),
            names,
            self.origin,
            outcome,
            detail,
        )
    }

    /// What a row comes to that does not open.
    fn altered(&self, name: String) -> Judged {
        let event = self.event(
            Action::EnvelopeRefused,
            vec![name.clone()],
            Outcome::Refused,
            ALTERED.to_owned(),
        );
        Judged::recorded(event, Err(ReadError::Altered { name }))
    }

    fn refused(&self, refusal: Refusal) -> Judged {
        let event = refused_read(self.caller, self.origin, self.target, self.wanted, &refusal);
        Judged::recorded(event, Err(refusal.into()))
    }

    /// The rows of a stage that memory does not hold.
    async fn fetch(
        &self,
        db: &mut Connection,
        environment: &Environment,
    ) -> Result<Found<VariableRow>, storage::Error> {
        let stage = &environment.facts.stage;
        match (self.wanted, &environment.variables) {
            (_, Some(_)) => Ok(Found::default()),
            (Wanted::All, None) => storage::variables::newest_variables(db, stage).await,
            (Wanted::Named(asks), None) => {
                let names: Vec<_> = asks.iter().map(|ask| &ask.name).collect();
                storage::variables::newest_variables_by_name(db, stage, &names).await
            }
        }
    }

    /// What is counted for an answer.
    fn usage(&self, answer: &Result<Vec<Opened>, ReadError>) -> Option<Usage> {
        let opened = answer.as_ref().ok()?;
        Some(Usage {
            organization: self.token.organization.clone(),
            scope: self.wanted.scope(),
            units: i64::try_from(opened.len()).unwrap_or(i64::MAX),
            request_key: self.request_key.map(str::to_owned),
        })
    }
}

/// What the record of a row that does not open says.
pub(crate) const ALTERED: &str = "the envelope, or what stands beside it, was altered";

/// How many names the record of something refused keeps: whoever may do nothing is not to fill the database.
const REFUSED_NAMES_MAX: usize = 16;

/// The names and the detail of the record of something refused, and `why` it was.
pub(crate) fn refused_names(
    names: impl Iterator<Item = impl ToString>,
    why: &impl Display,
) -> (Vec<String>, String) {
    let mut kept = Vec::new();
    let mut total = 0_usize;
    for name in names {
        total += 1;
        if total <= REFUSED_NAMES_MAX {
            kept.push(name.to_string());
        }
    }
    let detail = if total > REFUSED_NAMES_MAX {
        format!("{why} (the first {REFUSED_NAMES_MAX} of {total} names are kept)")
    } else {
        why.to_string()
    };
    (kept, detail)
}

/// The event of a read that was refused.
fn refused_read(
    caller: &Caller,
    origin: &Origin,
    target: &Target,
    wanted: Wanted<'_>,
    refusal: &Refusal,
) -> AuditEvent {
    let asks = match wanted {
        Wanted::Named(asks) => asks,
        Wanted::All => &[],
    };
    let (names, detail) = refused_names(asks.iter().map(|ask| &ask.name), refusal);
    stage_event(
        Action::ReadRefused,
        caller.actor(),
        (&target.project, &target.stage),
        names,
        origin,
        Outcome::Refused,
        detail,
    )
}

/// The event of something that concerns one stage.
pub(crate) fn stage_event(
    action: Action,
    actor: Actor,
    target: (&ProjectSlug, &StageSlug),
    names: Vec<String>,
    origin: &Origin,
    outcome: Outcome,
    detail: String,
) -> AuditEvent {
    AuditEvent {
        action,
        actor,
        project: Some(target.0.to_string()),
        stage: Some(target.1.to_string()),
        names,
        origin: origin.clone(),
        outcome,
        detail,
    }
}

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
        } = request.judge(core, &environment, &fetched);
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
