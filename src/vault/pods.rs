//! What a pod reads: its allowances, cut to the stage's present access.
use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::BoxFuture;

use super::cache::Environment;
use super::records::Chain;
use super::variables::{Opener, Overtaken, Unopened, stage_event};
use super::writer::{Recorded, Recording, Relied, Usage};
use super::{Unavailable, Vault};
use crate::crypto::tokens::PresentedToken;
use crate::domain::access::{Caller, PodCaller, grants_anything, grants_variable};
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{StageId, VariableName};
use crate::domain::plaintext::Plaintext;
use crate::vault::credentials::AuthenticateError;

/// Proves which living pod a token is bound to. Implemented by `kubernetes::identity`.
pub trait PodIdentity: Send + Sync {
    /// The pod, as the API server has it now.
    fn identify<'a>(
        &'a self,
        token: &'a PresentedToken,
    ) -> BoxFuture<'a, Result<PodCaller, AuthenticateError>>;

    /// Tells the pod's owner why its start was refused, as an event on the pod. Never fails and never waits for long.
    fn tell_refused<'a>(&'a self, pod: &'a PodCaller, message: &'a str) -> BoxFuture<'a, ()>;
}

/// One value for a pod.
#[derive(Debug)]
pub struct PodValue {
    /// The stage.
    pub stage: StageId,
    /// The name in the stage.
    pub name: VariableName,
    /// The value.
    pub value: Plaintext,
}

/// Why a pod reads nothing.
#[derive(Debug, thiserror::Error)]
pub enum PodReadError {
    /// The pod's spec has no allowance: it was never injected.
    #[error(
        "this pod was not injected: its spec has no BAREKEY_ALLOWANCE; annotate it with barekey.dev/stage and create it anew"
    )]
    NotInjected,
    /// The stage grants this service account nothing (or is not there any more: the pod is told the same).
    #[error(
        "the stage grants the service account {account} of namespace {namespace} nothing; add it to spec.access of the BarekeyStage"
    )]
    NoAccess {
        /// The service account.
        account: String,
        /// Its namespace.
        namespace: String,
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

/// How often a read is done again when a change overtook it.
const READ_ATTEMPTS: u32 = 16;

impl Vault {
    /// The union of the pod's allowances, cut to what each stage grants its service account now. Names that are absent or
    /// not granted are left out; the agent names them. Audited before it returns; a refusal is audited and told as an event.
    ///
    /// # Errors
    /// [`PodReadError`]; no value is answered then, of any stage.
    pub async fn read_for_pod(
        &self,
        pod: &PodCaller,
        origin: &Origin,
    ) -> Result<Vec<PodValue>, PodReadError> {
        if pod.allowances.is_empty() {
            let refusal = PodReadError::NotInjected;
            let event = pod_event(Action::ReadRefused, pod, origin, refusal.to_string());
            self.record_for_pod(vec![(Chain::Installation, event)], Relied::default(), None)
                .await?;
            return Err(self.told(pod, refusal).await);
        }
        for attempt in 0..READ_ATTEMPTS {
            if let Some(values) = self.read_for_pod_once(pod, origin, attempt > 0).await? {
                return Ok(values);
            }
        }
        Err(PodReadError::Unavailable(Overtaken.into()))
    }

    /// One attempt; `None` when a change overtook it.
    async fn read_for_pod_once(
        &self,
        pod: &PodCaller,
        origin: &Origin,
        fresh: bool,
    ) -> Result<Option<Vec<PodValue>>, PodReadError> {
        let stages: BTreeSet<&StageId> = pod
            .allowances
            .iter()
            .map(|allowance| &allowance.stage)
            .collect();
        let mut environments: Vec<Arc<Environment>> = Vec::with_capacity(stages.len());
        let mut absent = false;
        for stage in stages {
            match self.environment_by_id(stage, fresh).await? {
                Some(environment) => environments.push(environment),
                None => absent = true,
            }
        }
        let relied = || Relied {
            stages: environments
                .iter()
                .map(|environment| (environment.facts.stage.clone(), environment.stage.epoch))
                .collect(),
            token: None,
        };
        let ungranted = environments.iter().find(|environment| {
            !grants_anything(&environment.grants, &pod.namespace, &pod.service_account)
        });
        if absent || ungranted.is_some() {
            let refusal = PodReadError::NoAccess {
                account: pod.service_account.to_string(),
                namespace: pod.namespace.to_string(),
            };
            let event = match ungranted {
                Some(environment) => (
                    Chain::Organization(environment.facts.organization.clone()),
                    stage_event(
                        Action::ReadRefused,
                        Caller::Pod(pod.clone()).actor(),
                        (&environment.stage.project_slug, &environment.stage.slug),
                        Vec::new(),
                        origin,
                        Outcome::Refused,
                        refusal.to_string(),
                    ),
                ),
                None => (
                    Chain::Installation,
                    pod_event(Action::ReadRefused, pod, origin, refusal.to_string()),
                ),
            };
            return if self.record_for_pod(vec![event], relied(), None).await? {
                Err(self.told(pod, refusal).await)
            } else {
                Ok(None)
            };
        }
        let mut values = Vec::new();
        let mut events = Vec::with_capacity(environments.len());
        let mut usage = None;
        for environment in &environments {
            let read = self.open_for_pod(pod, origin, environment).await?;
            let chain = Chain::Organization(environment.facts.organization.clone());
            match read {
                Ok((opened, event)) => {
                    usage.get_or_insert_with(|| Usage {
                        organization: environment.facts.organization.clone(),
                        scope: "pod_values",
                        units: i64::try_from(opened.len()).unwrap_or(i64::MAX),
                        request_key: None,
                    });
                    values.extend(opened);
                    events.push((chain, event));
                }
                Err((name, event)) => {
                    return if self
                        .record_for_pod(vec![(chain, event)], relied(), None)
                        .await?
                    {
                        Err(self.told(pod, PodReadError::Altered { name }).await)
                    } else {
                        Ok(None)
                    };
                }
            }
        }
        let recorded = self.record_for_pod(events, relied(), usage).await?;
        Ok(recorded.then_some(values))
    }

    /// Opens what the pod's allowances ask of one stage and its access grants; either way with the event to record.
    #[allow(
        clippy::type_complexity,
        reason = "the pair is taken apart by its one caller"
    )]
    async fn open_for_pod(
        &self,
        pod: &PodCaller,
        origin: &Origin,
        environment: &Environment,
    ) -> Result<Result<(Vec<PodValue>, AuditEvent), (VariableName, AuditEvent)>, Unavailable> {
        let stage = &environment.facts.stage;
        let fetched;
        let rows = match &environment.variables {
            Some(variables) => variables.values().collect::<Vec<_>>(),
            None => {
                let mut db = self.reader().await?;
                fetched = crate::storage::variables::newest_variables(&mut db, stage).await?;
                fetched.iter().collect()
            }
        };
        let event = |action, names, outcome, detail: &str| {
            stage_event(
                action,
                Caller::Pod(pod.clone()).actor(),
                (&environment.stage.project_slug, &environment.stage.slug),
                names,
                origin,
                outcome,
                detail.to_owned(),
            )
        };
        let mut opener = Opener::new(self.core(), environment);
        let mut values = Vec::new();
        for row in rows {
            let allowed = pod
                .allowances
                .iter()
                .any(|allowance| allowance.stage == *stage && allowance.covers(&row.name));
            let granted = grants_variable(
                &environment.grants,
                &pod.namespace,
                &pod.service_account,
                &row.name,
            );
            if !(allowed && granted) {
                continue;
            }
            match opener.open(row) {
                Ok(value) => values.push(PodValue {
                    stage: stage.clone(),
                    name: row.name.clone(),
                    value,
                }),
                Err(Unopened) => {
                    return Ok(Err((
                        row.name.clone(),
                        event(
                            Action::EnvelopeRefused,
                            vec![row.name.to_string()],
                            Outcome::Refused,
                            "the envelope, or what stands beside it, was altered",
                        ),
                    )));
                }
            }
        }
        let names = values.iter().map(|value| value.name.to_string()).collect();
        let event = event(Action::VariablesRead, names, Outcome::Allowed, "");
        Ok(Ok((values, event)))
    }

    /// Whether what the read relied on still held, so that it is recorded.
    async fn record_for_pod(
        &self,
        events: Vec<(Chain, AuditEvent)>,
        relied: Relied,
        usage: Option<Usage>,
    ) -> Result<bool, Unavailable> {
        let stages: Vec<StageId> = relied
            .stages
            .iter()
            .map(|(stage, _)| stage.clone())
            .collect();
        let recording = Recording {
            events,
            relied,
            used: None,
            usage,
        };
        let durable = self.0.queue.record(recording).await? == Recorded::Durable;
        if !durable {
            for stage in &stages {
                self.core().cache.forget_stage(stage);
            }
        }
        Ok(durable)
    }

    /// Tells the pod's owner, and hands the refusal on.
    async fn told(&self, pod: &PodCaller, refusal: PodReadError) -> PodReadError {
        if let Some(identity) = &self.0.pod_identity {
            identity.tell_refused(pod, &refusal.to_string()).await;
        }
        refusal
    }

    /// The names that a stage holds, sorted; `None` when there is no such stage. For the webhook, which sees no value.
    ///
    /// # Errors
    /// [`Unavailable`] when the database cannot be read.
    pub async fn variable_names(
        &self,
        stage: &StageId,
    ) -> Result<Option<Vec<VariableName>>, Unavailable> {
        let mut db = self.reader().await?;
        if crate::storage::projects::stage_by_id(&mut db, stage)
            .await?
            .is_none()
        {
            return Ok(None);
        }
        let names = crate::storage::variables::variable_names(&mut db, stage).await?;
        Ok(Some(names))
    }
}

/// An event of a pod that concerns no stage that is there.
fn pod_event(action: Action, pod: &PodCaller, origin: &Origin, detail: String) -> AuditEvent {
    AuditEvent {
        action,
        actor: Caller::Pod(pod.clone()).actor(),
        project: None,
        stage: None,
        names: Vec::new(),
        origin: origin.clone(),
        outcome: Outcome::Refused,
        detail,
    }
}
