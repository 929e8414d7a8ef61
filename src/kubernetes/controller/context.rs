//! What a look at a resource works with: its turn, its pace, and what the stores and the API server have.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource};

use super::{BACKOFF_FIRST, BACKOFF_MAX, Context, Pace, ReconcileError, TIMEOUT, key};
use crate::domain::names::{Namespace, OrganizationSlug};
use crate::kubernetes::metrics::{Kind, ReconcileLabels, ReconcileOutcome};
use crate::kubernetes::plan::{self, Reason};
use crate::kubernetes::resources::{BarekeyProject, BarekeyStage};
use crate::kubernetes::timed;
use crate::kubernetes::turns::Turn;

impl Context {
    /// A turn for a look at a resource; `None` while another replica leads.
    pub(super) async fn turn<K: Resource<DynamicType = ()>>(&self, object: &K) -> Option<Turn> {
        let leads = || *self.leads.borrow();
        if !leads() {
            return None;
        }
        let turn = self.turns.take(object.meta().namespace.clone(), 1).await;
        turn.filter(|_| leads())
    }

    /// Now, as Kubernetes keeps it.
    pub(super) fn now(&self) -> Time {
        // Kubernetes keeps whole seconds.
        let seconds = self.clock.now_ms().div_euclid(1000);
        Time(Timestamp::from_second(seconds).unwrap_or_default())
    }

    /// The command that makes an organization.
    pub(super) fn bootstrap_command(&self, organization: &OrganizationSlug) -> String {
        plan::bootstrap_command(
            &self.settings.namespace,
            &self.settings.exec_target(),
            organization,
        )
    }

    /// Counts what a look came to.
    pub(super) fn count(&self, kind: Kind, outcome: ReconcileOutcome) {
        self.metrics
            .reconciles
            .get_or_create(&ReconcileLabels { kind, outcome })
            .inc();
    }

    /// What is known of each resource, by [`key`].
    pub(super) fn paces(&self) -> MutexGuard<'_, HashMap<String, Pace>> {
        match self.paces.lock() {
            Ok(paces) => paces,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    /// The pause before a resource is tried again.
    pub(super) fn backoff(&self, key: &str) -> Duration {
        let mut paces = self.paces();
        let pace = paces.entry(key.to_owned()).or_default();
        let pause = BACKOFF_FIRST.saturating_mul(2_u32.saturating_pow(pace.failures));
        pace.failures = pace.failures.saturating_add(1);
        pause.min(BACKOFF_MAX)
    }

    /// The stages that name a project.
    pub(super) fn stages_of(&self, project: &BarekeyProject) -> Vec<ObjectRef<BarekeyStage>> {
        self.stages
            .state()
            .iter()
            .filter(|stage| {
                stage.metadata.namespace == project.metadata.namespace
                    && Some(&stage.spec.project) == project.metadata.name.as_ref()
            })
            .map(|stage| ObjectRef::from_obj(stage.as_ref()))
            .collect()
    }

    /// The BarekeyProject that a stage names. The API server is asked when the store has none, which may be behind, but once:
    /// a stage that was told so is looked at when its project comes.
    pub(super) async fn project_of(
        &self,
        stage: &BarekeyStage,
        namespace: &Namespace,
    ) -> Result<Option<Arc<BarekeyProject>>, ReconcileError> {
        let name = &stage.spec.project;
        let stored = self
            .projects
            .get(&ObjectRef::new(name).within(namespace.as_str()));
        let told = || {
            let paces = self.paces();
            let pace = paces.get(&key(stage));
            pace.is_some_and(|pace| pace.found == Some(Reason::ProjectNotFound))
        };
        if stored.is_some() || told() {
            return Ok(stored);
        }
        let api: Api<BarekeyProject> = Api::namespaced(self.client.clone(), namespace.as_str());
        let live = timed(TIMEOUT, api.get_opt(name)).await;
        live.map(|project| project.map(Arc::new))
            .map_err(|source| ReconcileError::ReadProject {
                name: name.clone(),
                source,
            })
    }
}
