//! Keeps the vault in step with the custom resources: read, decide, act, tell.
//!
//! Every replica watches both kinds, since the webhook answers from the same store; the leader alone acts. Deciding is in
//! [`plan`](super::plan). A resource that is refused is asked about again by itself, so that nothing has to be touched twice.
//!
//! # Access ends with its resource
//!
//! A BarekeyStage under `Retain` has no finalizer, so its end is seen as an event, on a watch of its own: the runtime's watch
//! tells nothing of what goes. Where that event is missed, its end is seen at the next look at it, and by a sweep that compares
//! the vault's entries with a complete list of what exists: after each change of leadership, and regularly. Ending and
//! declaring exclude each other, so that a stage that is deleted and applied again at once keeps what the new one says.

mod access;
mod context;
mod telling;
mod watching;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::Controller as Runtime;
use kube::runtime::controller::{Action, Config, Error as ControllerError};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::{RwLock, watch};
use tokio::time::Instant;

use self::watching::{config, down, follow_lists, gains, watched};
use crate::domain::causes::with_causes;
use crate::domain::names::{NameError, Namespace, ObjectName};
use crate::kubernetes::events::Events;
use crate::kubernetes::metrics::{Kind, Metrics, ReconcileOutcome};
use crate::kubernetes::plan::{self, Answer, Finding, ProjectPlan, Reason, StagePath, StagePlan};
use crate::kubernetes::resources::{BarekeyProject, BarekeyStage};
use crate::kubernetes::turns::Turns;
use crate::kubernetes::{KubernetesSettings, RequestError};
use crate::vault::declarations::{DeclareError, Deletion};
use crate::vault::{Clock, Unavailable, Vault};

/// How many resources are reconciled at once.
const CONCURRENCY: u32 = 16;
/// How many of one namespace: whoever has thousands in theirs does not hold up what others change.
const CONCURRENCY_OF_NAMESPACE: u32 = 4;
/// The pause before a look at what went while its look waited.
const LOOK_AT_ONCE: Duration = Duration::from_millis(10);
/// The first pause after a failure; it doubles.
const BACKOFF_FIRST: Duration = Duration::from_millis(500);
/// The longest pause after a failure.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// How long one request to the API server may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a reconcile did not come to an end. It is tried again.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// A resource without a name or a namespace that is one.
    #[error("the API server sent a resource without a proper name")]
    Name(#[from] NameError),
    /// The project of a stage could not be read.
    #[error("cannot read the BarekeyProject {name}")]
    ReadProject {
        /// Its name.
        name: String,
        /// Why.
        source: RequestError,
    },
    /// The resource could not be read.
    #[error("cannot read the resource {name}")]
    Read {
        /// Its name.
        name: String,
        /// Why.
        source: RequestError,
    },
    /// The finalizer could not be changed.
    #[error("cannot change the finalizer of {name}")]
    Finalizer {
        /// The resource.
        name: String,
        /// Why.
        source: RequestError,
    },
    /// The status could not be written.
    #[error("cannot write the status of {name}")]
    Status {
        /// The resource.
        name: String,
        /// Why.
        source: RequestError,
    },
    /// The database.
    #[error("the vault was not told")]
    Vault(#[from] Unavailable),
}

/// Watches both kinds and acts while this replica leads.
pub struct Controller {
    context: Arc<Context>,
    projects: Runtime<BarekeyProject>,
    stages: Runtime<BarekeyStage>,
    leads: watch::Receiver<bool>,
    listed: watch::Sender<bool>,
}

/// What reconciles share.
struct Context {
    client: Client,
    vault: Vault,
    settings: Arc<KubernetesSettings>,
    clock: Arc<dyn Clock>,
    events: Events,
    metrics: Metrics,
    leads: watch::Receiver<bool>,
    projects: Store<BarekeyProject>,
    stages: Store<BarekeyStage>,
    /// Declaring reads, ending writes: see the module's documentation.
    declaring: RwLock<()>,
    paces: Mutex<HashMap<String, Pace>>,
    turns: Turns<String>,
}

/// How fast one resource may be looked at and written.
#[derive(Default)]
struct Pace {
    failures: u32,
    /// What the last look found.
    found: Option<Reason>,
    status_written: Option<Instant>,
}

impl Controller {
    /// A controller that has not begun to watch.
    pub fn new(
        client: Client,
        vault: Vault,
        settings: Arc<KubernetesSettings>,
        clock: Arc<dyn Clock>,
        events: Events,
        metrics: Metrics,
        leads: watch::Receiver<bool>,
    ) -> Self {
        // The runtime takes all that change; whose turn it is, is said by [`Context::turns`].
        let config = Config::default().concurrency(0);
        let (known_projects, changed) = watched(Api::all(client.clone()), &settings);
        let projects =
            Runtime::for_stream(changed, known_projects.clone()).with_config(config.clone());
        let (known_stages, changed) = watched(Api::all(client.clone()), &settings);
        let stages = Runtime::for_stream(changed, known_stages.clone()).with_config(config);
        let context = Context {
            projects: known_projects,
            stages: known_stages,
            client,
            vault,
            settings,
            clock,
            events,
            metrics,
            leads: leads.clone(),
            declaring: RwLock::new(()),
            paces: Mutex::default(),
            turns: Turns::new(CONCURRENCY, CONCURRENCY_OF_NAMESPACE),
        };
        Self {
            context: Arc::new(context),
            projects,
            stages,
            leads,
            listed: watch::Sender::new(false),
        }
    }

    /// Whether both kinds were listed once, or were waited for long enough.
    pub fn listed(&self) -> watch::Receiver<bool> {
        self.listed.subscribe()
    }

    /// Every BarekeyStage, as last seen; filled once [`Controller::run`] runs.
    pub fn stages(&self) -> Store<BarekeyStage> {
        self.context.stages.clone()
    }

    /// Watches and reconciles until `shutdown`.
    pub async fn run(self, shutdown: watch::Receiver<bool>) {
        let context = self.context;
        let of_project = Arc::clone(&context);
        let known = Arc::clone(&context);
        // What an earlier time as the leader found is found anew.
        let anew = Arc::clone(&context);
        let projects = self
            .projects
            .reconcile_all_on(gains(self.leads.clone()).inspect(move |()| anew.paces().clear()))
            .graceful_shutdown_on(down(shutdown.clone()))
            .run(reconcile_project, retry, Arc::clone(&context))
            .for_each(move |result| {
                match result {
                    Err(ControllerError::ObjectNotFound(project)) => {
                        let namespace = project.namespace.as_deref().unwrap_or_default();
                        let key = key_of(&BarekeyProject::kind(&()), namespace, &project.name);
                        known.paces().remove(&key);
                    }
                    Err(error) => log(&error),
                    Ok(_) => {}
                }
                std::future::ready(())
            });
        let gone = Arc::clone(&context);
        let stages = self
            .stages
            .watches(
                Api::<BarekeyProject>::all(context.client.clone()),
                config(),
                move |project| of_project.stages_of(&project),
            )
            .reconcile_all_on(gains(self.leads.clone()))
            .graceful_shutdown_on(down(shutdown.clone()))
            .run(reconcile_stage, retry, Arc::clone(&context))
            .for_each(move |result| {
                let gone = Arc::clone(&gone);
                async move {
                    match result {
                        // Its event was missed, or is still being worked on.
                        Err(ControllerError::ObjectNotFound(stage)) => {
                            let namespace = stage.namespace.as_deref().unwrap_or_default();
                            gone.ended(namespace, &stage.name).await;
                        }
                        Err(error) => log(&error),
                        Ok(_) => {}
                    }
                }
            });
        // Without a list a runtime does not end by itself.
        let (told, listed) = (shutdown.clone(), context.metrics.resources_listed.clone());
        let never_listed = async {
            down(told).await;
            if listed.get() != 0 {
                std::future::pending::<()>().await;
            }
        };
        let runtimes = async {
            tokio::select! {
                ((), ()) = async { tokio::join!(projects, stages) } => {}
                () = never_listed => {}
            }
        };
        tokio::join!(
            runtimes,
            follow_lists(Arc::clone(&context), self.listed, shutdown.clone()),
            access::follow_ends(Arc::clone(&context), shutdown.clone()),
            access::sweep(context, self.leads, shutdown)
        );
    }
}

fn log<Q: std::error::Error + 'static>(error: &ControllerError<ReconcileError, Q>) {
    match error {
        ControllerError::ReconcilerFailed(source, object) => tracing::warn!(
            object = object.name,
            namespace = object.namespace.as_deref().unwrap_or_default(),
            problem = with_causes(source),
            "a reconcile is tried again"
        ),
        ControllerError::ObjectNotFound(_) => {}
        error @ (ControllerError::QueueError(_) | ControllerError::RunnerError(_)) => {
            tracing::warn!(problem = with_causes(error), "a watch is begun again");
        }
    }
}

fn retry<K: Resource<DynamicType = ()>>(
    object: Arc<K>,
    _error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    context.count(kind_of::<K>(), ReconcileOutcome::Failed);
    Action::requeue(context.backoff(&key(&*object)))
}

fn kind_of<K: Resource<DynamicType = ()>>() -> Kind {
    if K::kind(&()) == BarekeyProject::kind(&()) {
        Kind::Project
    } else {
        Kind::Stage
    }
}

async fn reconcile_project(
    project: Arc<BarekeyProject>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let Some(_turn) = context.turn(&*project).await else {
        return Ok(Action::await_change());
    };
    // It may have waited for long: what is there now counts. Of one that is gone the runtime tells at its next look.
    let Some(project) = context.projects.get(&ObjectRef::from_obj(&*project)) else {
        return Ok(Action::requeue(LOOK_AT_ONCE));
    };
    // Apart, so that what waits for its turn is small.
    Box::pin(act_on_project(project, context)).await
}

async fn act_on_project(
    project: Arc<BarekeyProject>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    // Read.
    let siblings = context
        .projects
        .state_filter(|sibling| sibling.metadata.namespace == project.metadata.namespace);
    // Decide.
    let plan = plan::plan_project(
        &project,
        siblings.iter().map(AsRef::as_ref),
        &context.settings.organizations,
    );
    // Act.
    let (finding, declared) = match plan {
        ProjectPlan::Nothing => return Ok(context.gone(&*project)),
        ProjectPlan::Release => return context.release(&*project).await,
        ProjectPlan::Refuse { finalizer, finding } => {
            context.change_finalizer(&*project, finalizer).await?;
            (finding, None)
        }
        ProjectPlan::Declare {
            finalizer,
            declaration,
        } => {
            context.change_finalizer(&*project, finalizer).await?;
            let answer = answered(context.vault.declare_project(&declaration).await);
            let finding = plan::judge_project(
                &answer,
                &context.bootstrap_command(&declaration.organization),
            );
            (finding, answer.declared())
        }
        ProjectPlan::Delete {
            organization,
            slug,
            confirmed,
        } => {
            let namespace: Namespace = project.namespace().unwrap_or_default().parse()?;
            let deletion = context
                .vault
                .delete_declared_project(&namespace, &organization, &slug, confirmed)
                .await;
            match after_deletion(deletion, slug.as_str()) {
                Some(finding) => (finding, None),
                None => return context.release(&*project).await,
            }
        }
    };
    // Tell.
    let status = plan::project_status(&project, &finding, declared.as_ref(), context.now());
    let before = project.status.as_ref();
    let changed = before != Some(&status);
    context
        .tell(
            &*project,
            before.map(|status| status.conditions.as_slice()),
            changed.then_some(&status),
            &finding,
        )
        .await
}

async fn reconcile_stage(
    stage: Arc<BarekeyStage>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let Some(_turn) = context.turn(&*stage).await else {
        return Ok(Action::await_change());
    };
    Box::pin(act_on_stage(stage, context)).await
}

async fn act_on_stage(
    stage: Arc<BarekeyStage>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let namespace: Namespace = stage.namespace().unwrap_or_default().parse()?;
    let name: ObjectName = stage.name_any().parse()?;
    let declaring = context.declaring.read().await;
    // It may have waited for long: what is there now counts. Of one that is gone the runtime tells, which ends its access.
    let Some(stage) = context.stages.get(&ObjectRef::from_obj(&*stage)) else {
        return Ok(Action::requeue(LOOK_AT_ONCE));
    };
    // Read.
    let siblings = context
        .stages
        .state_filter(|sibling| sibling.metadata.namespace == stage.metadata.namespace);
    let project = context.project_of(&stage, &namespace).await?;
    // Decide.
    let plan = plan::plan_stage(
        &stage,
        project.as_deref(),
        siblings.iter().map(AsRef::as_ref),
        &context.settings.organizations,
    );
    // Act.
    let (finding, declared) = match plan {
        StagePlan::Nothing => {
            context.vault.withdraw_access(&namespace, &name).await?;
            return Ok(context.gone(&*stage));
        }
        StagePlan::Release => {
            context.vault.withdraw_access(&namespace, &name).await?;
            return context.release(&*stage).await;
        }
        StagePlan::Refuse { finalizer, finding } => {
            if finding.reason.ends_access() {
                context.vault.withdraw_access(&namespace, &name).await?;
            }
            context.change_finalizer(&*stage, finalizer).await?;
            (finding, None)
        }
        StagePlan::Declare {
            finalizer,
            declaration,
        } => {
            context.change_finalizer(&*stage, finalizer).await?;
            let path = StagePath {
                organization: declaration.organization.clone(),
                project: declaration.project.clone(),
                slug: declaration.slug.clone(),
            };
            let answer = answered(context.vault.declare_stage(&declaration).await);
            let finding = plan::judge_stage(
                &answer,
                &context.bootstrap_command(&declaration.organization),
            );
            // Its project may have been remade elsewhere since, whatever its status still says.
            if let Answer::Declared(declared) = &answer {
                context
                    .vault
                    .withdraw_access_elsewhere(&namespace, &name, &declared.id)
                    .await?;
            } else if finding.reason.ends_access() {
                context.vault.withdraw_access(&namespace, &name).await?;
            }
            (finding, answer.declared().map(|declared| (path, declared)))
        }
        StagePlan::Delete { path, confirmed } => {
            context.vault.withdraw_access(&namespace, &name).await?;
            let deletion = context
                .vault
                .delete_declared_stage(
                    &namespace,
                    &path.organization,
                    &path.project,
                    &path.slug,
                    confirmed,
                )
                .await;
            match after_deletion(deletion, path.slug.as_str()) {
                Some(finding) => (finding, None),
                None => return context.release(&*stage).await,
            }
        }
    };
    drop(declaring);
    // Tell.
    let declared = declared.as_ref().map(|(path, declared)| (path, declared));
    let status = plan::stage_status(&stage, &finding, declared, context.now());
    let before = stage.status.as_ref();
    let changed = before != Some(&status);
    context
        .tell(
            &*stage,
            before.map(|status| status.conditions.as_slice()),
            changed.then_some(&status),
            &finding,
        )
        .await
}

/// What the vault said, for `plan`; a fault of the database goes into the log here.
fn answered<T>(answer: Result<T, DeclareError>) -> Answer<T> {
    match answer {
        Ok(declared) => Answer::Declared(declared),
        Err(DeclareError::Refused(refusal)) => Answer::Refused(refusal),
        Err(DeclareError::Unavailable(error)) => {
            tracing::warn!(
                problem = with_causes(&error),
                "a declaration waits for the database"
            );
            Answer::Unavailable
        }
    }
}

/// What to say of a resource that asked to delete something; `None` when it may go.
fn after_deletion(deletion: Result<Deletion, Unavailable>, slug: &str) -> Option<Finding> {
    match deletion {
        Ok(deletion) => plan::judge_deletion(&deletion, slug),
        Err(error) => {
            tracing::warn!(
                problem = with_causes(&error),
                "a deletion waits for the database"
            );
            Some(plan::storage_unavailable())
        }
    }
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    let metadata = object.meta();
    key_of(
        &K::kind(&()),
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default(),
    )
}

fn key_of(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}
