//! What a pod reads: its allowances, cut to the stage's present access.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::BoxFuture;

use super::cache::Environment;
use super::environments::{Opener, Unopened, beside_others, load_environment};
use super::reads::{ALTERED, READ_ATTEMPTS, stage_event};
use super::records::Chain;
use super::writer::{Change, Recorded, Recording, Relied, Usage, Verdict, Work, count_usage};
use super::{Core, Unavailable, Vault};
use crate::crypto::tokens::PresentedToken;
use crate::domain::access::{Actor, Caller, PodCaller, grants_anything, grants_variable};
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{Namespace, ObjectName, StageId, VariableName};
use crate::domain::plaintext::Plaintext;
use crate::storage::variables::VariableRow;
use crate::storage::{self, Batch, Found};
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
        /// Its name, as stored.
        name: String,
    },
    /// The database, or the audit trail in it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

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
        let answer = self.answer_pod(pod, origin).await;
        if let (Err(refusal), Some(identity)) = (&answer, &self.0.pod_identity)
            && !matches!(refusal, PodReadError::Unavailable(_))
        {
            identity.tell_refused(pod, &refusal.to_string()).await;
        }
        answer
    }

    async fn answer_pod(
        &self,
        pod: &PodCaller,
        origin: &Origin,
    ) -> Result<Vec<PodValue>, PodReadError> {
        if pod.allowances.is_empty() {
            let refusal = PodReadError::NotInjected;
            let event = pod_event(pod, origin, &refusal);
            self.record_event(Chain::Installation, event).await?;
            return Err(refusal);
        }
        for attempt in 0..READ_ATTEMPTS {
            if let Some(answer) = self.answer_pod_once(pod, origin, attempt > 0).await? {
                return answer;
            }
        }
        let inside = ReadForPodInGroup {
            core: Arc::clone(&self.0.core),
            chain: self.chain_of_stages(pod).await?,
            pod: pod.clone(),
            origin: origin.clone(),
        };
        self.0.queue.change(inside).await?
    }

    /// The chain of the first stage that is there, to be locked while the pod's values are read.
    async fn chain_of_stages(&self, pod: &PodCaller) -> Result<Chain, Unavailable> {
        for stage in stages_of(pod) {
            if let Some(environment) = self.environment_by_id(stage, false).await? {
                return Ok(Chain::Organization(environment.facts.organization.clone()));
            }
        }
        Ok(Chain::Installation)
    }

    /// One attempt; `None` when a change overtook it.
    async fn answer_pod_once(
        &self,
        pod: &PodCaller,
        origin: &Origin,
        fresh: bool,
    ) -> Result<Option<Result<Vec<PodValue>, PodReadError>>, Unavailable> {
        let mut stages = Vec::new();
        for stage in stages_of(pod) {
            let found = self.environment_by_id(stage, fresh).await?;
            let fetched = match &found {
                Some(environment) if environment.variables.is_none() => {
                    let mut db = self.reader().await?;
                    storage::variables::newest_variables(&mut db, stage).await?
                }
                _ => Found::default(),
            };
            stages.push((found, fetched));
        }
        let is_large = |(stage, _): &Stored| stage.as_ref().is_some_and(|stage| stage.is_large());
        let judged = beside_others(stages.iter().any(is_large), || {
            judge(self.core(), pod, origin, &stages)
        });
        let relied: Vec<(StageId, i64)> = stages
            .iter()
            .filter_map(|(environment, _)| environment.as_ref())
            .map(|environment| (environment.facts.stage.clone(), environment.stage.epoch))
            .collect();
        let recording = Recording {
            events: judged.events,
            relied: Relied {
                stages: relied,
                token: None,
            },
            used: None,
            usage: judged.usage,
        };
        if self.0.queue.record(recording).await? == Recorded::Durable {
            return Ok(Some(judged.answer));
        }
        for (environment, _) in &stages {
            if let Some(environment) = environment {
                self.core().cache.forget_past_stage(&environment.stage);
            }
        }
        Ok(None)
    }

    /// The names that a stage holds, sorted; `None` when there is no such stage, or another resource than `name` in `namespace`
    /// declares it. For the webhook, which sees no value.
    ///
    /// # Errors
    /// [`Unavailable`] when the database cannot be read.
    pub async fn variable_names(
        &self,
        stage: &StageId,
        namespace: &Namespace,
        name: &ObjectName,
    ) -> Result<Option<Vec<VariableName>>, Unavailable> {
        let mut db = self.reader().await?;
        let declared = storage::projects::stages_of_resource(&mut db, namespace, name).await?;
        if !declared.whole.contains(stage) {
            return Ok(None);
        }
        let names = storage::variables::variable_names(&mut db, stage).await?;
        Ok(Some(names.whole_or_told("variable")))
    }
}

/// The stages that a pod's allowances name, each once.
fn stages_of(pod: &PodCaller) -> BTreeSet<&StageId> {
    pod.allowances
        .iter()
        .map(|allowance| &allowance.stage)
        .collect()
}

/// A stage as it is stored, if it is there, and its rows when they are too many to hold.
type Stored = (Option<Arc<Environment>>, Found<VariableRow>);

/// What a pod's read comes to, before it is recorded.
struct Judged {
    events: Vec<(Chain, AuditEvent)>,
    usage: Option<Usage>,
    answer: Result<Vec<PodValue>, PodReadError>,
}

/// What a pod is answered, on stages as they are stored. One that is not there reads as one that grants nothing.
fn judge(core: &Core, pod: &PodCaller, origin: &Origin, stages: &[Stored]) -> Judged {
    let refused = |event, refusal| Judged {
        events: vec![event],
        usage: None,
        answer: Err(refusal),
    };
    let ungranted = stages.iter().find(|(environment, _)| {
        environment.as_ref().is_none_or(|environment| {
            !grants_anything(&environment.grants, &pod.namespace, &pod.service_account)
        })
    });
    if let Some((environment, _)) = ungranted {
        let refusal = PodReadError::NoAccess {
            account: pod.service_account.to_string(),
            namespace: pod.namespace.to_string(),
        };
        let mut event = pod_event(pod, origin, &refusal);
        let chain = match environment {
            Some(environment) => {
                event.project = Some(environment.stage.project_slug.to_string());
                event.stage = Some(environment.stage.slug.to_string());
                Chain::Organization(environment.facts.organization.clone())
            }
            None => Chain::Installation,
        };
        return refused((chain, event), refusal);
    }
    let mut values = Vec::new();
    let mut events = Vec::with_capacity(stages.len());
    let mut usage = None;
    for (environment, fetched) in stages {
        let Some(environment) = environment else {
            continue;
        };
        let chain = Chain::Organization(environment.facts.organization.clone());
        let of_stage = |action, names, outcome, detail: &str| {
            stage_event(
                action,
                actor(pod),
                (&environment.stage.project_slug, &environment.stage.slug),
                names,
                origin,
                outcome,
                detail.to_owned(),
            )
        };
        match open_for_pod(core, pod, environment, fetched) {
            Ok(opened) => {
                let names = opened.iter().map(|value| value.name.to_string()).collect();
                usage.get_or_insert_with(|| Usage {
                    organization: environment.facts.organization.clone(),
                    scope: "pod_values",
                    units: i64::try_from(opened.len()).unwrap_or(i64::MAX),
                    request_key: None,
                });
                values.extend(opened);
                events.push((
                    chain,
                    of_stage(Action::VariablesRead, names, Outcome::Allowed, ""),
                ));
            }
            Err(name) => {
                let event = of_stage(
                    Action::EnvelopeRefused,
                    vec![name.clone()],
                    Outcome::Refused,
                    ALTERED,
                );
                return refused((chain, event), PodReadError::Altered { name });
            }
        }
    }
    Judged {
        events,
        usage,
        answer: Ok(values),
    }
}

/// What the pod's allowances ask of one stage and its access grants, opened; or the name of what does not open.
fn open_for_pod(
    core: &Core,
    pod: &PodCaller,
    environment: &Environment,
    fetched: &Found<VariableRow>,
) -> Result<Vec<PodValue>, String> {
    let stage = &environment.facts.stage;
    let is_asked = |name: &VariableName| {
        let allowed = pod
            .allowances
            .iter()
            .any(|allowance| allowance.stage == *stage && allowance.covers(name));
        let (namespace, account) = (&pod.namespace, &pod.service_account);
        allowed && grants_variable(&environment.grants, namespace, account, name)
    };
    // A row whose very name is none is asked for by nobody.
    let altered = environment.altered.iter().chain(&fetched.altered);
    for name in altered {
        if name.parse().is_ok_and(|name| is_asked(&name)) {
            return Err(name.clone());
        }
    }
    let held = environment.variables.iter().flat_map(BTreeMap::values);
    let mut opener = Opener::new(core, environment);
    let mut values = Vec::new();
    for row in held.chain(&fetched.whole) {
        if is_asked(&row.name) {
            let value = opener.open(row).map_err(|Unopened| row.name.to_string())?;
            values.push(PodValue {
                stage: stage.clone(),
                name: row.name.clone(),
                value,
            });
        }
    }
    Ok(values)
}

fn actor(pod: &PodCaller) -> Actor {
    Caller::Pod(pod.clone()).actor()
}

/// The event of a refusal, before a stage is named in it.
fn pod_event(pod: &PodCaller, origin: &Origin, refusal: &PodReadError) -> AuditEvent {
    AuditEvent {
        action: Action::ReadRefused,
        actor: actor(pod),
        project: None,
        stage: None,
        names: Vec::new(),
        origin: origin.clone(),
        outcome: Outcome::Refused,
        detail: refusal.to_string(),
    }
}

/// A pod's read that is done inside a group, where no change can overtake it.
struct ReadForPodInGroup {
    core: Arc<Core>,
    chain: Chain,
    pod: PodCaller,
    origin: Origin,
}

impl Change for ReadForPodInGroup {
    type Answer = Result<Vec<PodValue>, PodReadError>;

    fn chain(&self) -> Chain {
        self.chain.clone()
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let mut stages = Vec::new();
        for stage in stages_of(&self.pod) {
            let found = storage::projects::stage_by_id(&mut work.db, stage).await?;
            let stored = match found {
                Some(row) => {
                    let size = storage::variables::stage_size(&mut work.db, stage).await?;
                    let environment = load_environment(&self.core, &mut work.db, row, size).await?;
                    let fetched = if environment.variables.is_none() {
                        storage::variables::newest_variables(&mut work.db, stage).await?
                    } else {
                        Found::default()
                    };
                    (Some(Arc::new(environment)), fetched)
                }
                None => (None, Found::default()),
            };
            stages.push(stored);
        }
        let judged = judge(&self.core, &self.pod, &self.origin, &stages);
        work.events.extend(judged.events);
        if let Some(usage) = &judged.usage {
            let mut batch = Batch::default();
            count_usage(&mut work.db, &mut batch, usage, work.now_ms).await?;
            work.db.run_batch(batch).await?;
        }
        Ok(Verdict::Keep(judged.answer))
    }
}
