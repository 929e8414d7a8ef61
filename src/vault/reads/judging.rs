//! What a read comes to on a stage as it is stored: opened, refused, or none of it to be opened; and how that is recorded.

use std::fmt::Display;

use crate::domain::access::{Actor, Caller, Refusal, TokenCaller, may_read};
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{ProjectSlug, StageSlug};
use crate::domain::variable::Visibility;
use crate::storage::variables::VariableRow;
use crate::storage::{self, Connection, Found};
use crate::vault::Core;
use crate::vault::cache::Environment;
use crate::vault::environments::{Opener, Unopened};
use crate::vault::variables::{Ask, Opened, ReadError, Target};
use crate::vault::writer::Usage;

/// What a read wants of a stage.
#[derive(Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// These, in order; all or nothing.
    Named(&'a [Ask]),
    /// Every one, sorted by name.
    All,
}

impl Wanted<'_> {
    /// Whether it may be most of the stage.
    pub(super) fn is_much(self) -> bool {
        const FEW: usize = 64;
        match self {
            Self::Named(asks) => asks.len() > FEW,
            Self::All => true,
        }
    }

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
pub(super) struct Request<'a> {
    pub(super) caller: &'a Caller,
    pub(super) token: &'a TokenCaller,
    pub(super) origin: &'a Origin,
    pub(super) target: &'a Target,
    pub(super) wanted: Wanted<'a>,
    pub(super) request_key: Option<&'a str>,
}

/// What a read comes to, before it is recorded.
pub(super) struct Judged {
    /// What is to be recorded before the answer leaves; `None` where nothing is: a variable that is not there, or of
    /// another type, and `public` values alone.
    pub(super) event: Option<AuditEvent>,
    /// How many `public` values are in the answer; they are counted.
    pub(super) public: u64,
    pub(super) answer: Result<Vec<Opened>, ReadError>,
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
    pub(super) fn judge(
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

    pub(super) fn refused(&self, refusal: Refusal) -> Judged {
        let event = refused_read(self.caller, self.origin, self.target, self.wanted, &refusal);
        Judged::recorded(event, Err(refusal.into()))
    }

    /// The rows of a stage that memory does not hold.
    pub(super) async fn fetch(
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
    pub(super) fn usage(&self, answer: &Result<Vec<Opened>, ReadError>) -> Option<Usage> {
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
pub(super) fn refused_read(
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
