//! What the controller writes into a resource: its finalizer, its status, and events about it.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;

use super::{Context, ReconcileError, TIMEOUT, key, kind_of};
use crate::kubernetes::events::{Message, Severity};
use crate::kubernetes::metrics::ReconcileOutcome;
use crate::kubernetes::plan::{FinalizerChange, Finding, Outlook, Reason};
use crate::kubernetes::resources::FINALIZER;
use crate::kubernetes::{FIELD_MANAGER, RequestError, timed};

/// How long after its last look a resource that is ready is looked at again: its revision and its number of variables change
/// without any event in the cluster. It bounds, too, how long a stage whose end no watch told of keeps its access: a look at
/// what is gone ends it. Raise it, and only the sweep is left of that.
const RESYNC: Duration = Duration::from_secs(20);
/// How long after its last look a resource that waits for something is looked at again, while few wait for the same.
const WAITING_LOOK: Duration = Duration::from_secs(4);
/// How long at most, while an organization is waited for.
const ORGANIZATION_LOOK_MAX: Duration = Duration::from_secs(8);
/// How long after its last look a resource that somebody must change is looked at again, while few must be changed for the same
/// reason: what stands in its way may go.
const STUCK_LOOK: Duration = Duration::from_secs(10);
/// How much later it is for each resource of the same kind, reason and namespace: together they are looked at 25 times a second.
/// Thousands of resources that name no project cost no more than a hundred.
const LOOK_FOR_EACH: Duration = Duration::from_millis(40);
/// The least time between two writes of one status.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// When to look again at one of so many that wait for the same.
fn look_again(first: Duration, alike: usize) -> Duration {
    first.max(LOOK_FOR_EACH.saturating_mul(u32::try_from(alike).unwrap_or(u32::MAX)))
}

impl Context {
    /// Sets or takes away our finalizer, if the resource is still as it was read.
    pub(super) async fn change_finalizer<K>(
        &self,
        object: &K,
        change: FinalizerChange,
    ) -> Result<(), ReconcileError>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        if change == FinalizerChange::Keep {
            return Ok(());
        }
        let name = object.name_any();
        let api: Api<K> =
            Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        // The store has none of others.
        let live = match timed(TIMEOUT, api.get_metadata_opt(&name)).await {
            Ok(live) => live,
            Err(source) => return Err(ReconcileError::Finalizer { name, source }),
        };
        let mut finalizers = live.map_or_else(Vec::new, |live| live.finalizers().to_vec());
        finalizers.retain(|finalizer| finalizer != FINALIZER);
        if change == FinalizerChange::Add {
            finalizers.push(FINALIZER.to_owned());
        }
        // The resource version keeps finalizers of others that came meanwhile.
        let patch = json!({"metadata": {
            "uid": object.uid(),
            "resourceVersion": object.resource_version(),
            "finalizers": finalizers,
        }});
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        match timed(TIMEOUT, api.patch(&name, &params, &Patch::Merge(patch))).await {
            Ok(_) => Ok(()),
            Err(RequestError::Api(kube::Error::Api(status)))
                if status.is_not_found() && change == FinalizerChange::Remove =>
            {
                Ok(())
            }
            Err(source) => Err(ReconcileError::Finalizer { name, source }),
        }
    }

    /// Takes our finalizer away, so that the resource goes.
    pub(super) async fn release<K>(&self, object: &K) -> Result<Action, ReconcileError>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        self.change_finalizer(object, FinalizerChange::Remove)
            .await?;
        Ok(self.gone(object))
    }

    pub(super) fn gone<K: Resource<DynamicType = ()>>(&self, object: &K) -> Action {
        self.count(kind_of::<K>(), ReconcileOutcome::Gone);
        self.paces().remove(&key(object));
        Action::await_change()
    }

    /// Writes the status if it differs, tells a new reason as an event, and says when to look again.
    pub(super) async fn tell<K>(
        &self,
        object: &K,
        before: Option<&[Condition]>,
        status: Option<&impl Serialize>,
        finding: &Finding,
    ) -> Result<Action, ReconcileError>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let key = key(object);
        if let Some(status) = status {
            let written = self.paces().get(&key).and_then(|pace| pace.status_written);
            if let Some(left) = written.and_then(|at| STATUS_EVERY.checked_sub(at.elapsed())) {
                return Ok(Action::requeue(left + Duration::from_millis(10)));
            }
            self.write_status(object, status).await?;
            self.paces().entry(key.clone()).or_default().status_written = Some(Instant::now());
            let reason = finding.reason.as_str();
            let told = before
                .into_iter()
                .flatten()
                .any(|condition| condition.type_ == "Ready" && condition.reason == reason);
            if !told {
                self.tell_event(object, finding).await;
            }
        }
        self.count(kind_of::<K>(), ReconcileOutcome::Found(finding.reason));
        if finding.reason == Reason::StorageUnavailable {
            return Ok(Action::requeue(self.backoff(&key)));
        }
        let mut paces = self.paces();
        let of_namespace = key.rfind('/').and_then(|end| key.get(..=end));
        let of_namespace = of_namespace.unwrap_or_default().to_owned();
        let pace = paces.entry(key).or_default();
        pace.failures = 0;
        pace.found = Some(finding.reason);
        // One namespace's many do not hold up another's.
        let alike = || {
            let others = paces.iter();
            let alike = others.filter(|(_, pace)| pace.found == Some(finding.reason));
            alike
                .filter(|(key, _)| key.starts_with(&of_namespace))
                .count()
        };
        Ok(Action::requeue(match finding.reason.outlook() {
            Outlook::Settled => RESYNC,
            // Within 10 seconds of its bootstrap; only namespaces that the administrator named wait for an organization.
            Outlook::Waiting if finding.reason == Reason::OrganizationNotFound => {
                look_again(WAITING_LOOK, alike()).min(ORGANIZATION_LOOK_MAX)
            }
            Outlook::Waiting => look_again(WAITING_LOOK, alike()),
            Outlook::Stuck => look_again(STUCK_LOOK, alike()),
        }))
    }

    async fn write_status<K>(
        &self,
        object: &K,
        status: &impl Serialize,
    ) -> Result<(), ReconcileError>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let name = object.name_any();
        let api: Api<K> =
            Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default());
        let patch = json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": {"name": name, "uid": object.uid()},
            "status": status,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        match timed(
            TIMEOUT,
            api.patch_status(&name, &params, &Patch::Apply(patch)),
        )
        .await
        {
            Ok(_) => Ok(()),
            // It went meanwhile; there is nobody left to tell.
            Err(RequestError::Api(kube::Error::Api(status))) if status.is_not_found() => Ok(()),
            Err(source) => Err(ReconcileError::Status { name, source }),
        }
    }

    async fn tell_event<K: Resource<DynamicType = ()>>(&self, object: &K, finding: &Finding) {
        let message = Message {
            severity: if finding.reason == Reason::Ready {
                Severity::Normal
            } else {
                Severity::Warning
            },
            reason: finding.reason.as_str(),
            action: "Reconcile",
            note: &finding.message,
        };
        let about: ObjectReference = object.object_ref(&());
        tracing::info!(
            kind = K::kind(&()).as_ref(),
            namespace = about.namespace.as_deref().unwrap_or_default(),
            name = about.name.as_deref().unwrap_or_default(),
            reason = finding.reason.as_str(),
            "a resource changed its condition"
        );
        self.events.tell(about, message).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_looked_at_as_often_as_before_until_many_wait_for_the_same() {
        for few in [0, 1, 100] {
            assert_eq!(look_again(WAITING_LOOK, few), WAITING_LOOK);
            assert_eq!(look_again(STUCK_LOOK, few), STUCK_LOOK);
        }
        for many in [1_000, 5_000, 100_000] {
            let each = look_again(WAITING_LOOK, many).as_secs_f64();
            let looks_per_second = many as f64 / each;
            assert!((looks_per_second - 25.0).abs() < 0.1, "{looks_per_second}");
        }
    }
}
