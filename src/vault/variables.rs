//! Variables: evaluated, pulled, listed, written.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::cache::{Environment, STAGE_BYTES_MAX};
use super::projects::{access_grants, organization_of};
use super::records::Chain;
use super::writer::{Change, Recorded, Recording, Relied, Usage, Verdict, Work};
use super::{Core, Unavailable, Vault, make_id, no_random};
use crate::crypto::envelope::ValuePlace;
use crate::crypto::keys::{DataKey, derive_digest_hex};
use crate::domain::access::{
    Actor, Caller, Refusal, Scope, StageFacts, TokenCaller, may_list_variables, may_read, may_write,
};
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{
    LineageId, OperationId, OrganizationSlug, ProjectSlug, StageId, StageSlug, VariableName,
};
use crate::domain::operation::OperationKind;
use crate::domain::plaintext::Plaintext;
use crate::domain::variable::{Arm, DeclaredType, Kind, Visibility};
use crate::storage;
use crate::storage::Connection;
use crate::storage::projects::{DataKeyRow, StageRow};
use crate::storage::variables::{OperationRow, VariableRow};

/// How often a read is done again when a change overtook it.
const READ_ATTEMPTS: u32 = 16;

/// The stage that a request names.
#[derive(Debug, Clone)]
pub struct Target {
    /// May be left out; must be the credential's own.
    pub organization: Option<OrganizationSlug>,
    /// The project.
    pub project: ProjectSlug,
    /// The stage.
    pub stage: StageSlug,
}

/// One variable asked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its name.
    pub name: VariableName,
    /// The type that the caller expects; another one is refused.
    pub declared_type: Option<DeclaredType>,
}

/// One variable, opened.
#[derive(Debug)]
pub struct Opened {
    /// Its name.
    pub name: VariableName,
    /// Its kind.
    pub kind: Kind,
    /// Its declared type.
    pub declared_type: DeclaredType,
    /// Its visibility.
    pub visibility: Visibility,
    /// The value.
    pub value: Plaintext,
}

/// What is known of a variable apart from its value.
#[derive(Debug, Clone)]
pub struct VariableMetadata {
    /// Its name.
    pub name: VariableName,
    /// Its kind.
    pub kind: Kind,
    /// Its declared type.
    pub declared_type: DeclaredType,
    /// Its visibility.
    pub visibility: Visibility,
    /// The newest version.
    pub version: i64,
    /// When it was first written, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// When the newest version was written, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// A value to write.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: VariableName,
    /// Its kind.
    pub kind: Kind,
    /// Its type; `None` keeps what is stored, or `string` for a new variable.
    pub declared_type: Option<DeclaredType>,
    /// Its visibility; `None` keeps what is stored, or `private` for a new variable.
    pub visibility: Option<Visibility>,
    /// The value, not yet normalised.
    pub value: Plaintext,
}

/// What a write does with names that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// Replaces them.
    Upsert,
    /// Refuses the whole write.
    CreateOnly,
}

/// One atomic change of a stage.
#[derive(Debug)]
pub struct Write {
    /// What to do with names that exist.
    pub mode: WriteMode,
    /// What to write.
    pub entries: Vec<Entry>,
    /// What to delete; a missing name is nothing.
    pub deletes: Vec<VariableName>,
}

/// What a write did, each list sorted.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// New names.
    pub created: Vec<VariableName>,
    /// Names with a new version.
    pub updated: Vec<VariableName>,
    /// Names that are gone.
    pub deleted: Vec<VariableName>,
}

/// Why values were not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not for this caller.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No such project or stage.
    #[error("there is no stage {project}/{stage}")]
    NoEnvironment {
        /// The project.
        project: ProjectSlug,
        /// The stage.
        stage: StageSlug,
    },
    /// No such variable.
    #[error("there is no variable {name} in this stage")]
    NoVariable {
        /// Its name.
        name: VariableName,
    },
    /// Another type than the caller expects.
    #[error("the variable {name} is declared {declared}, not {expected}")]
    WrongType {
        /// Its name.
        name: VariableName,
        /// What it is.
        declared: DeclaredType,
        /// What the caller said.
        expected: DeclaredType,
    },
    /// The envelope, or what stands beside it, was altered in the database.
    #[error("the variable {name} does not open: its row was altered")]
    Altered {
        /// Its name.
        name: VariableName,
    },
    /// The database, or the audit trail in it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Not for this caller.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No such project or stage.
    #[error("there is no stage {project}/{stage}")]
    NoEnvironment {
        /// The project.
        project: ProjectSlug,
        /// The stage.
        stage: StageSlug,
    },
    /// The request itself is wrong: a doubled name, a value that its type does not accept, too long, with NUL, nothing to do,
    /// or a name that exists in mode `create_only`.
    #[error("{problem}")]
    Invalid {
        /// Which name, what is wrong, what would pass. Never a value.
        problem: String,
    },
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// A read was overtaken by changes again and again.
#[derive(Debug, thiserror::Error)]
#[error("the stage changes faster than it can be read")]
pub(crate) struct Overtaken;

impl From<Overtaken> for Unavailable {
    fn from(error: Overtaken) -> Self {
        Self {
            source: Box::new(error),
        }
    }
}

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

/// Opens values, unwrapping each data key once. Made for one request; the keys are wiped with it.
pub(crate) struct Opener<'a> {
    core: &'a Core,
    facts: &'a StageFacts,
    keys: &'a [DataKeyRow],
    unwrapped: HashMap<(&'a LineageId, i64), DataKey>,
}

/// A row does not open.
pub(crate) struct Unopened;

impl<'a> Opener<'a> {
    /// For one request on one stage.
    pub(crate) fn new(core: &'a Core, environment: &'a Environment) -> Self {
        Self {
            core,
            facts: &environment.facts,
            keys: &environment.keys,
            unwrapped: HashMap::new(),
        }
    }

    /// The value of a row.
    pub(crate) fn open(&mut self, row: &VariableRow) -> Result<Plaintext, Unopened> {
        let stored = self
            .keys
            .iter()
            .find(|key| key.lineage == row.lineage && key.version == row.dek_version)
            .ok_or(Unopened)?;
        let key = match self.unwrapped.entry((&stored.lineage, stored.version)) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(
                self.core
                    .master_key
                    .unwrap_data_key(
                        &stored.lineage,
                        stored.version,
                        &stored.kek_id,
                        &stored.wrapped,
                    )
                    .map_err(|_| Unopened)?,
            ),
        };
        key.open_value(place(self.facts, row), &row.envelope_a)
            .map_err(|_| Unopened)
    }
}

/// Where the value of a row belongs.
fn place<'a>(facts: &'a StageFacts, row: &'a VariableRow) -> ValuePlace<'a> {
    ValuePlace {
        project: &facts.project,
        stage: &facts.stage,
        name: &row.name,
        version: row.version,
        arm: Arm::A,
        kind: row.kind,
        declared_type: row.declared_type,
        visibility: row.visibility,
        chance_or_curve: "",
    }
}

/// The facts of a stored stage.
pub(crate) fn facts_of(stage: &StageRow) -> StageFacts {
    StageFacts {
        organization: stage.organization.clone(),
        project: stage.project.clone(),
        stage: stage.id.clone(),
        protected: stage.protected,
    }
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
                return Err(self
                    .refuse_read(caller, origin, target, wanted, refusal, None)
                    .await?);
            }
        };
        for attempt in 0..READ_ATTEMPTS {
            let read = self
                .read_once(
                    caller,
                    token,
                    origin,
                    target,
                    wanted,
                    request_key,
                    attempt > 0,
                )
                .await?;
            if let Some(opened) = read {
                return Ok(opened);
            }
        }
        Err(ReadError::Unavailable(Overtaken.into()))
    }

    /// One attempt; `None` when a change overtook it. `fresh` asks the database and not memory.
    #[allow(
        clippy::too_many_arguments,
        reason = "each says one thing that the read depends on"
    )]
    async fn read_once(
        &self,
        caller: &Caller,
        token: &TokenCaller,
        origin: &Origin,
        target: &Target,
        wanted: Wanted<'_>,
        request_key: Option<&str>,
        fresh: bool,
    ) -> Result<Option<Vec<Opened>>, ReadError> {
        let core = self.core();
        let (environment, from_memory) = match self.environment(token, target, fresh).await? {
            Some(found) => found,
            None => {
                return Err(self
                    .no_environment(caller, token, origin, target, wanted)
                    .await?);
            }
        };
        if let Err(refusal) = may_read(caller, &environment.facts) {
            let refused = self
                .refuse_read(caller, origin, target, wanted, refusal, Some(&environment))
                .await;
            return match refused {
                Ok(refused) => Err(refused),
                Err(Refused::Again) => Ok(None),
                Err(Refused::Unavailable(error)) => Err(error.into()),
            };
        }
        let fetched;
        let rows: Vec<&VariableRow> = match (&environment.variables, wanted) {
            (Some(variables), Wanted::All) => variables.values().collect(),
            (None, Wanted::All) => {
                let mut db = self.reader().await?;
                fetched = storage::variables::newest_variables(&mut db, &environment.facts.stage)
                    .await
                    .map_err(Unavailable::from)?;
                fetched.iter().collect()
            }
            (held, Wanted::Named(asks)) => {
                let found: Vec<Option<&VariableRow>> = if let Some(variables) = held {
                    asks.iter().map(|ask| variables.get(&ask.name)).collect()
                } else {
                    let names: Vec<_> = asks.iter().map(|ask| &ask.name).collect();
                    let mut db = self.reader().await?;
                    let stage = &environment.facts.stage;
                    fetched = storage::variables::newest_variables_by_name(&mut db, stage, &names)
                        .await
                        .map_err(Unavailable::from)?;
                    asks.iter()
                        .map(|ask| fetched.iter().find(|row| row.name == ask.name))
                        .collect()
                };
                let mut rows = Vec::with_capacity(asks.len());
                for (ask, row) in asks.iter().zip(found) {
                    let Some(row) = row else {
                        if from_memory && core.database.is_shared() {
                            // Another replica may have written it since.
                            core.cache.forget_stage(&environment.facts.stage);
                            return Ok(None);
                        }
                        return Err(ReadError::NoVariable {
                            name: ask.name.clone(),
                        });
                    };
                    if let Some(expected) = ask.declared_type
                        && expected != row.declared_type
                    {
                        if from_memory && core.database.is_shared() {
                            core.cache.forget_stage(&environment.facts.stage);
                            return Ok(None);
                        }
                        return Err(ReadError::WrongType {
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
        let mut opened = Vec::with_capacity(rows.len());
        let mut altered = None;
        {
            let mut opener = Opener::new(core, &environment);
            for row in &rows {
                match opener.open(row) {
                    Ok(value) => opened.push(Opened {
                        name: row.name.clone(),
                        kind: row.kind,
                        declared_type: row.declared_type,
                        visibility: row.visibility,
                        value,
                    }),
                    Err(Unopened) => {
                        altered = Some(row.name.clone());
                        break;
                    }
                }
            }
        }
        let (action, outcome, names, detail) = match &altered {
            Some(name) => (
                Action::EnvelopeRefused,
                Outcome::Refused,
                vec![name.to_string()],
                "the envelope, or what stands beside it, was altered".to_owned(),
            ),
            None => (
                Action::VariablesRead,
                Outcome::Allowed,
                rows.iter().map(|row| row.name.to_string()).collect(),
                String::new(),
            ),
        };
        let event = stage_event(
            action,
            caller.actor(),
            (&target.project, &target.stage),
            names,
            origin,
            outcome,
            detail,
        );
        let units = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        let recording = Recording {
            events: vec![(Chain::Organization(token.organization.clone()), event)],
            relied: Relied {
                stages: vec![(environment.facts.stage.clone(), environment.stage.epoch)],
                token: Some((token.token.clone(), token.epoch)),
            },
            used: Some((token.organization.clone(), token.token.clone())),
            usage: altered.is_none().then(|| Usage {
                organization: token.organization.clone(),
                scope: wanted.scope(),
                units,
                request_key: request_key.map(str::to_owned),
            }),
        };
        match self.0.queue.record(recording).await? {
            Recorded::Durable => match altered {
                Some(name) => Err(ReadError::Altered { name }),
                None => Ok(Some(opened)),
            },
            Recorded::StageChanged => {
                core.cache.forget_stage(&environment.facts.stage);
                Ok(None)
            }
            Recorded::CredentialEnded => {
                self.forget_caller(token);
                Err(self
                    .refuse_read(
                        caller,
                        origin,
                        target,
                        wanted,
                        Refusal::CredentialEnded,
                        None,
                    )
                    .await?)
            }
        }
    }

    /// Lets go of a credential that has ended.
    fn forget_caller(&self, token: &TokenCaller) {
        tracing::debug!(token = %token.token, "a credential ended while it was used");
        self.core().cache.forget_token_id(&token.token);
    }

    /// The stage that a request names, and whether it came out of memory.
    async fn environment(
        &self,
        token: &TokenCaller,
        target: &Target,
        fresh: bool,
    ) -> Result<Option<(Arc<Environment>, bool)>, Unavailable> {
        let core = self.core();
        let organization = &token.organization;
        if !fresh
            && let Some(held) = core
                .cache
                .environment(organization, &target.project, &target.stage)
        {
            return Ok(Some((held, true)));
        }
        let generation = core.cache.generation();
        let mut db = self.reader().await?;
        let stage = storage::projects::stage_by_slugs(
            &mut db,
            organization,
            &target.project,
            &target.stage,
        )
        .await?;
        match stage {
            Some(stage) => {
                let environment = load_environment(&mut db, stage).await?;
                let environment = Arc::new(environment);
                core.cache
                    .hold_environment(generation, Arc::clone(&environment));
                Ok(Some((environment, false)))
            }
            None => Ok(None),
        }
    }

    /// The stage of that id, out of memory or out of the database.
    pub(crate) async fn environment_by_id(
        &self,
        stage: &StageId,
        fresh: bool,
    ) -> Result<Option<Arc<Environment>>, Unavailable> {
        let core = self.core();
        if !fresh && let Some(held) = core.cache.environment_by_id(stage) {
            return Ok(Some(held));
        }
        let generation = core.cache.generation();
        let mut db = self.reader().await?;
        match storage::projects::stage_by_id(&mut db, stage).await? {
            Some(stage) => {
                let environment = Arc::new(load_environment(&mut db, stage).await?);
                core.cache
                    .hold_environment(generation, Arc::clone(&environment));
                Ok(Some(environment))
            }
            None => Ok(None),
        }
    }

    /// What a caller is told of a stage that is not there: a scoped or too small one the same as of any other.
    async fn no_environment(
        &self,
        caller: &Caller,
        token: &TokenCaller,
        origin: &Origin,
        target: &Target,
        wanted: Wanted<'_>,
    ) -> Result<ReadError, ReadError> {
        match refusal_for_absent(self, token, target).await? {
            Some(refusal) => Ok(self
                .refuse_read(caller, origin, target, wanted, refusal, None)
                .await?),
            None => Ok(ReadError::NoEnvironment {
                project: target.project.clone(),
                stage: target.stage.clone(),
            }),
        }
    }

    /// Records that a read was refused.
    async fn refuse_read(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
        wanted: Wanted<'_>,
        refusal: Refusal,
        environment: Option<&Environment>,
    ) -> Result<ReadError, Refused> {
        let names = match wanted {
            Wanted::Named(asks) => asks.iter().map(|ask| ask.name.to_string()).collect(),
            Wanted::All => Vec::new(),
        };
        let event = stage_event(
            Action::ReadRefused,
            caller.actor(),
            (&target.project, &target.stage),
            names,
            origin,
            Outcome::Refused,
            refusal.to_string(),
        );
        let recording = Recording {
            events: vec![(chain_of(caller), event)],
            relied: Relied {
                stages: environment
                    .map(|environment| (environment.facts.stage.clone(), environment.stage.epoch))
                    .into_iter()
                    .collect(),
                token: None,
            },
            used: None,
            usage: None,
        };
        match self
            .0
            .queue
            .record(recording)
            .await
            .map_err(Refused::Unavailable)?
        {
            Recorded::Durable => Ok(ReadError::Refused(refusal)),
            Recorded::StageChanged | Recorded::CredentialEnded => {
                if let Some(environment) = environment {
                    self.core().cache.forget_stage(&environment.facts.stage);
                }
                Err(Refused::Again)
            }
        }
    }

    /// What the stage holds, sorted by name.
    ///
    /// # Errors
    /// [`ReadError`]. Not audited, since no value is read.
    pub async fn list(
        &self,
        caller: &Caller,
        target: &Target,
    ) -> Result<Vec<VariableMetadata>, ReadError> {
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
            return match refusal_for_absent(self, token, target).await? {
                Some(refusal) => Err(refusal.into()),
                None => Err(ReadError::NoEnvironment {
                    project: target.project.clone(),
                    stage: target.stage.clone(),
                }),
            };
        };
        may_list_variables(caller, &facts_of(&stage))?;
        let rows = storage::variables::newest_variables(&mut db, &stage.id)
            .await
            .map_err(Unavailable::from)?;
        Ok(rows
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
            self.forget_caller(token);
            Err(ConfirmError::Refused(Refusal::CredentialEnded))
        }
    }

    /// Writes and deletes in one transaction.
    ///
    /// # Errors
    /// [`WriteError`]; nothing is written then. Refusals are audited.
    pub async fn write(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
        write: Write,
    ) -> Result<Written, WriteError> {
        let checked = organization_of(caller, target.organization.as_ref());
        let token = match checked {
            Ok(token) => token.clone(),
            Err(refusal) => {
                self.record_refused_write(caller, origin, target, &write, &refusal)
                    .await?;
                return Err(refusal.into());
            }
        };
        let change = WriteVariables {
            core: Arc::clone(&self.0.core),
            caller: caller.clone(),
            token: token.clone(),
            origin: origin.clone(),
            target: target.clone(),
            write,
        };
        let (answer, write) = match change.problem() {
            // Whether the caller may write comes before whether the request is right.
            Some(problem) => {
                let write = change.write;
                let mut db = self.reader().await?;
                let stage = storage::projects::stage_by_slugs(
                    &mut db,
                    &token.organization,
                    &target.project,
                    &target.stage,
                )
                .await
                .map_err(Unavailable::from)?;
                drop(db);
                let answer = match stage {
                    None => Err(WriteError::NoEnvironment {
                        project: target.project.clone(),
                        stage: target.stage.clone(),
                    }),
                    Some(stage) => match may_write(caller, &facts_of(&stage)) {
                        Ok(_) => Err(WriteError::Invalid { problem }),
                        Err(refusal) => Err(refusal.into()),
                    },
                };
                if let Err(WriteError::Refused(refusal)) = &answer {
                    self.record_refused_write(caller, origin, target, &write, refusal)
                        .await?;
                }
                (answer, Some(write))
            }
            None => (self.0.queue.change(change).await?, None),
        };
        if let Err(WriteError::NoEnvironment { .. }) = &answer
            && let Some(refusal) = refusal_for_absent(self, &token, target).await?
        {
            let nothing = Write {
                mode: WriteMode::Upsert,
                entries: Vec::new(),
                deletes: Vec::new(),
            };
            let write = write.as_ref().unwrap_or(&nothing);
            self.record_refused_write(caller, origin, target, write, &refusal)
                .await?;
            return Err(refusal.into());
        }
        answer
    }

    async fn record_refused_write(
        &self,
        caller: &Caller,
        origin: &Origin,
        target: &Target,
        write: &Write,
        refusal: &Refusal,
    ) -> Result<(), Unavailable> {
        let event = stage_event(
            Action::WriteRefused,
            caller.actor(),
            (&target.project, &target.stage),
            write.names().map(ToString::to_string).collect(),
            origin,
            Outcome::Refused,
            refusal.to_string(),
        );
        let recording = Recording {
            events: vec![(chain_of(caller), event)],
            relied: Relied::default(),
            used: None,
            usage: None,
        };
        self.0.queue.record(recording).await.map(drop)
    }
}

/// Why a refusal was not answered.
enum Refused {
    /// What it relied on changed: the read is done again.
    Again,
    /// It could not be recorded.
    Unavailable(Unavailable),
}

impl From<Refused> for ReadError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Again => Self::Unavailable(Overtaken.into()),
            Refused::Unavailable(error) => Self::Unavailable(error),
        }
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
fn chain_of(caller: &Caller) -> Chain {
    match caller {
        Caller::Token(token) => Chain::Organization(token.organization.clone()),
        Caller::Pod(_) => Chain::Installation,
    }
}

/// What a caller is refused with when a stage is not there: the same as when it is there and not theirs. `None` for those
/// who may know that it is not there.
async fn refusal_for_absent(
    vault: &Vault,
    token: &TokenCaller,
    target: &Target,
) -> Result<Option<Refusal>, Unavailable> {
    Ok(match &token.scope {
        Scope::Stage(..) => Some(Refusal::OutOfScope),
        Scope::Project(only) => {
            let mut db = vault.reader().await?;
            let project =
                storage::projects::project_by_slug(&mut db, &token.organization, &target.project)
                    .await?;
            project
                .is_none_or(|project| project.id != *only)
                .then_some(Refusal::OutOfScope)
        }
        Scope::Organization if !token.role.sees_structure() => Some(Refusal::RoleTooSmall {
            role: token.role,
            act: "read values",
            needs: "owner, admin, developer, operator and viewer",
        }),
        Scope::Organization => None,
    })
}

/// Everything that a read of a stage needs, as it is stored. The stage's row, with its epoch, was read before the rest: what
/// changed in between is found by that epoch when the read is recorded.
async fn load_environment(
    db: &mut Connection,
    stage: StageRow,
) -> Result<Environment, storage::Error> {
    let grants = access_grants(storage::projects::access_entries(db, &stage.id).await?)?;
    let bytes = storage::variables::sealed_bytes(db, &stage.id).await?;
    let variables = if bytes <= STAGE_BYTES_MAX {
        let rows = storage::variables::newest_variables(db, &stage.id).await?;
        let by_name: BTreeMap<_, _> = rows
            .into_iter()
            .map(|row| (row.name.clone(), row))
            .collect();
        Some(by_name)
    } else {
        None
    };
    // After the rows, so that the key of every row is there.
    let keys = storage::projects::data_keys(db, &stage.project).await?;
    Ok(Environment {
        facts: facts_of(&stage),
        stage,
        grants,
        variables,
        keys,
    })
}

impl Write {
    fn names(&self) -> impl Iterator<Item = &VariableName> {
        self.entries
            .iter()
            .map(|entry| &entry.name)
            .chain(&self.deletes)
    }
}

struct WriteVariables {
    core: Arc<Core>,
    caller: Caller,
    token: TokenCaller,
    origin: Origin,
    target: Target,
    write: Write,
}

impl WriteVariables {
    /// What is wrong with the request whatever the stage holds.
    fn problem(&self) -> Option<String> {
        let write = &self.write;
        if write.entries.is_empty() && write.deletes.is_empty() {
            return Some("there is nothing to do: give entries or deletes".to_owned());
        }
        let mut names = BTreeSet::new();
        if let Some(name) = write.names().find(|name| !names.insert(*name)) {
            return Some(format!(
                "the variable {name} is named twice: name it once across entries and deletes"
            ));
        }
        let bytes_max = self.core.value_bytes_max;
        write.entries.iter().find_map(|entry| {
            let (name, value) = (&entry.name, &entry.value);
            if value.len() > bytes_max {
                return Some(format!(
                    "the value of {name} has {} bytes and may have {bytes_max}",
                    value.len()
                ));
            }
            if value.reveal().contains(&0) {
                return Some(format!(
                    "the value of {name} has a NUL byte, which no environment variable can hold: encode it, in base64 say"
                ));
            }
            if value.reveal_text().is_none() {
                return Some(format!(
                    "the value of {name} is not UTF-8: encode it, in base64 say"
                ));
            }
            None
        })
    }

    fn refused(&self, work: &mut Work, refusal: Refusal) -> Verdict<Result<Written, WriteError>> {
        let event = stage_event(
            Action::WriteRefused,
            self.caller.actor(),
            (&self.target.project, &self.target.stage),
            self.write.names().map(ToString::to_string).collect(),
            &self.origin,
            Outcome::Refused,
            refusal.to_string(),
        );
        work.events.push((self.chain(), event));
        Verdict::TakeBack(Err(refusal.into()))
    }
}

impl Change for WriteVariables {
    type Answer = Result<Written, WriteError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.token.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let target = &self.target;
        let found = storage::projects::stage_by_slugs(
            &mut work.db,
            &self.token.organization,
            &target.project,
            &target.stage,
        )
        .await?;
        let absent = || WriteError::NoEnvironment {
            project: target.project.clone(),
            stage: target.stage.clone(),
        };
        let Some(stage) = found else {
            return Ok(Verdict::TakeBack(Err(absent())));
        };
        let Some(revision) =
            storage::projects::raise_revision(&mut work.db, &stage.id, work.now_ms).await?
        else {
            return Ok(Verdict::TakeBack(Err(absent())));
        };
        // The stage is locked from here on: what decides is read again.
        let Some(stage) = storage::projects::stage_by_id(&mut work.db, &stage.id).await? else {
            return Ok(Verdict::TakeBack(Err(absent())));
        };
        let epochs = storage::credentials::token_epochs(&mut work.db, &[&self.token.token]).await?;
        if epochs
            .first()
            .is_none_or(|(_, epoch)| *epoch != self.token.epoch)
        {
            return Ok(self.refused(work, Refusal::CredentialEnded));
        }
        let facts = facts_of(&stage);
        if let Err(refusal) = may_write(&self.caller, &facts) {
            return Ok(self.refused(work, refusal));
        }
        let planned = match self.plan(work, &facts.stage).await? {
            Ok(planned) => planned,
            Err(problem) => {
                return Ok(Verdict::TakeBack(Err(WriteError::Invalid { problem })));
            }
        };
        if planned.entries.is_empty() && planned.written.deleted.is_empty() {
            // Deletes of names that are not there: nothing is what was asked.
            return Ok(Verdict::TakeBack(Ok(planned.written)));
        }
        self.apply(work, &facts, revision, planned).await
    }
}

/// What a write comes to, after all checks and before anything is sealed.
struct Planned<'a> {
    entries: Vec<PlannedEntry<'a>>,
    written: Written,
}

struct PlannedEntry<'a> {
    name: &'a VariableName,
    kind: Kind,
    declared_type: DeclaredType,
    visibility: Visibility,
    version: i64,
    created_at: i64,
    value: Plaintext,
}

impl WriteVariables {
    /// Every check that needs what the stage holds.
    async fn plan(
        &self,
        work: &mut Work,
        stage: &StageId,
    ) -> Result<Result<Planned<'_>, String>, storage::Error> {
        let names: Vec<&VariableName> = self.write.names().collect();
        let db = &mut work.db;
        let present: HashMap<VariableName, VariableRow> =
            storage::variables::newest_variables_by_name(db, stage, &names)
                .await?
                .into_iter()
                .map(|row| (row.name.clone(), row))
                .collect();
        let versions: HashMap<VariableName, i64> =
            storage::variables::versions_by_name(db, stage, &names)
                .await?
                .into_iter()
                .collect();
        let mut written = Written::default();
        let mut entries = Vec::with_capacity(self.write.entries.len());
        for entry in &self.write.entries {
            let stored = present.get(&entry.name);
            if stored.is_some() && self.write.mode == WriteMode::CreateOnly {
                return Ok(Err(format!(
                    "the variable {} exists already: use mode upsert to replace it",
                    entry.name
                )));
            }
            let declared_type = entry
                .declared_type
                .or(stored.map(|row| row.declared_type))
                .unwrap_or(DeclaredType::String);
            let text = entry.value.reveal_text().unwrap_or_default();
            let value = match declared_type.normalise(text) {
                Ok(normalised) => Plaintext::from(normalised),
                Err(error) => return Ok(Err(format!("{}: {error}", entry.name))),
            };
            if value.len() > self.core.value_bytes_max {
                return Ok(Err(format!(
                    "the value of {} has {} bytes once normalised and may have {}",
                    entry.name,
                    value.len(),
                    self.core.value_bytes_max
                )));
            }
            if stored.is_some() {
                written.updated.push(entry.name.clone());
            } else {
                written.created.push(entry.name.clone());
            }
            entries.push(PlannedEntry {
                name: &entry.name,
                kind: entry.kind,
                declared_type,
                visibility: entry
                    .visibility
                    .or(stored.map(|row| row.visibility))
                    .unwrap_or(Visibility::Private),
                version: versions.get(&entry.name).copied().unwrap_or(0) + 1,
                created_at: stored.map_or(work.now_ms, |row| row.created_at),
                value,
            });
        }
        written.deleted = self
            .write
            .deletes
            .iter()
            .filter(|name| present.contains_key(*name))
            .cloned()
            .collect();
        written.created.sort();
        written.updated.sort();
        written.deleted.sort();
        Ok(Ok(Planned { entries, written }))
    }

    /// Seals, stores, records.
    async fn apply(
        &self,
        work: &mut Work,
        facts: &StageFacts,
        revision: i64,
        planned: Planned<'_>,
    ) -> Result<Verdict<Result<Written, WriteError>>, storage::Error> {
        let Planned { entries, written } = planned;
        let mut rows = Vec::with_capacity(entries.len());
        if !entries.is_empty() {
            let stored = storage::projects::active_data_key(&mut work.db, &facts.project)
                .await?
                .ok_or_else(|| storage::Error::Unexpected {
                    what: "the project has no data key".to_owned(),
                })?;
            let key = self
                .core
                .master_key
                .unwrap_data_key(
                    &stored.lineage,
                    stored.version,
                    &stored.kek_id,
                    &stored.wrapped,
                )
                .map_err(|_| storage::Error::Unexpected {
                    what: "the project's data key does not open: its row was altered".to_owned(),
                })?;
            for entry in entries {
                let mut row = VariableRow {
                    name: entry.name.clone(),
                    version: entry.version,
                    created_at: entry.created_at,
                    updated_at: work.now_ms,
                    kind: entry.kind,
                    declared_type: entry.declared_type,
                    visibility: entry.visibility,
                    envelope_a: String::new(),
                    lineage: stored.lineage.clone(),
                    dek_version: stored.version,
                };
                row.envelope_a = key
                    .seal_value(place(facts, &row), &entry.value)
                    .map_err(no_random)?;
                rows.push(row);
            }
        }
        let actor = self.caller.actor();
        let names: Vec<String> = self.write.names().map(ToString::to_string).collect();
        let id: OperationId = make_id("op")?;
        let operation = OperationRow {
            id: &id,
            revision,
            kind: if !written.updated.is_empty() {
                OperationKind::Update
            } else if written.created.is_empty() {
                OperationKind::Delete
            } else {
                OperationKind::Create
            },
            actor: &actor,
            names: &names.join("\n"),
            created_at: work.now_ms,
        };
        storage::variables::insert_operation(&mut work.db, &facts.stage, &operation).await?;
        storage::variables::append_versions(&mut work.db, &facts.stage, &id, &rows).await?;
        for name in &written.deleted {
            storage::variables::delete_variable(&mut work.db, &facts.stage, name, work.now_ms)
                .await?;
        }
        let organization = &facts.organization;
        storage::credentials::touch_token(
            &mut work.db,
            organization,
            &self.token.token,
            work.now_ms,
        )
        .await?;
        let units = i64::try_from(rows.len() + written.deleted.len()).unwrap_or(i64::MAX);
        storage::usage::add_usage(&mut work.db, organization, "writes", units, work.now_ms).await?;
        let mut detail = Vec::with_capacity(rows.len() + written.deleted.len());
        for row in &rows {
            let digest = derive_digest_hex(row.envelope_a.as_bytes());
            detail.push(format!("{} v{} {digest}", row.name, row.version));
        }
        for name in &written.deleted {
            detail.push(format!("{name} deleted"));
        }
        let event = stage_event(
            Action::VariablesWritten,
            actor,
            (&self.target.project, &self.target.stage),
            names,
            &self.origin,
            Outcome::Allowed,
            detail.join("\n"),
        );
        work.events.push((self.chain(), event));
        work.changed_stages.push(facts.stage.clone());
        Ok(Verdict::Keep(Ok(written)))
    }
}
