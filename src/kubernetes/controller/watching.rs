//! The watches that fill the stores: in small pages, and of each object only what is read later.
//!
//! Whoever may create our resources in a namespace of their own says how large they are and how many. What is kept of one that
//! no organization's namespace has is little, and no more than a page is in memory whole.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::Context;
use crate::domain::declaration::Organizations;
use crate::kubernetes::KubernetesSettings;
use crate::kubernetes::resources::{
    BarekeyProject, BarekeyStage, CONFIRM_DELETE_ANNOTATION, FINALIZER,
};

/// How many objects one page of a list has: one may have 1.5 MiB, and takes several times that while it is read.
pub(super) const PAGE: u32 = 10;
/// The conditions that are ours.
const CONDITIONS: [&str; 3] = ["Ready", "Reconciling", "Stalled"];
/// The longest text of a condition that is kept, in bytes; ours are far shorter.
const CONDITION_BYTES_MAX: usize = 4096;
/// How long readiness waits for the lists. A replica without them still answers pods and reviews.
const LISTED_WITHIN: Duration = Duration::from_secs(30);

/// A kind that is watched.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Leaves away what nobody reads; of what its namespace may not declare (not `known`) everything that can be large.
    fn trim(&mut self, known: bool);
}

impl Watched for BarekeyProject {
    fn trim(&mut self, _known: bool) {
        trim_metadata(&mut self.metadata);
        if let Some(status) = &mut self.status {
            trim_conditions(&mut status.conditions);
        }
    }
}

impl Watched for BarekeyStage {
    fn trim(&mut self, known: bool) {
        trim_metadata(&mut self.metadata);
        if !known {
            self.spec.access = Vec::new();
        }
        if let Some(status) = &mut self.status {
            trim_conditions(&mut status.conditions);
        }
    }
}

fn trim_metadata(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    metadata.labels = None;
    metadata.owner_references = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.retain(|key, _| key == CONFIRM_DELETE_ANNOTATION);
        for confirmed in annotations.values_mut() {
            // Longer than any slug, and so no confirmation.
            confirmed.truncate(confirmed.floor_char_boundary(64));
            confirmed.shrink_to_fit();
        }
    }
    if let Some(finalizers) = &mut metadata.finalizers {
        finalizers.retain(|finalizer| finalizer == FINALIZER);
    }
}

fn trim_conditions(conditions: &mut Vec<Condition>) {
    conditions.retain(|condition| {
        CONDITIONS.contains(&condition.type_.as_str())
            && condition.status.len() + condition.reason.len() + condition.message.len()
                <= CONDITION_BYTES_MAX
    });
}

/// How every kind is listed.
pub(super) fn config() -> watcher::Config {
    watcher::Config::default().page_size(PAGE)
}

/// A store, and the stream of changes that fills it.
pub(super) fn watched<K: Watched>(
    api: Api<K>,
    settings: &KubernetesSettings,
) -> (
    Store<K>,
    impl Stream<Item = watcher::Result<K>> + Send + 'static,
) {
    kept(watcher(api, config()), settings.organizations.clone())
}

fn kept<K: Watched>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    organizations: Organizations,
) -> (
    Store<K>,
    impl Stream<Item = watcher::Result<K>> + Send + 'static,
) {
    let (store, writer) = reflector::store();
    let objects = events
        .modify(move |object: &mut K| {
            let namespace = object.namespace().unwrap_or_default();
            object.trim(organizations.know(&namespace));
        })
        .reflect(writer)
        .applied_objects();
    (store, objects)
}

/// Says in `listed` once both stores are filled, or were waited for long enough.
pub(super) async fn follow_lists(
    context: Arc<Context>,
    listed: watch::Sender<bool>,
    shutdown: watch::Receiver<bool>,
) {
    let both = async {
        tokio::join!(
            context.projects.wait_until_ready(),
            context.stages.wait_until_ready()
        )
    };
    tokio::pin!(both);
    let down = down(shutdown);
    tokio::pin!(down);
    let in_time = tokio::select! {
        in_time = tokio::time::timeout(LISTED_WITHIN, &mut both) => in_time,
        () = &mut down => return,
    };
    let filled = match in_time {
        Ok(filled) => filled,
        Err(_) => {
            tracing::warn!(
                "the custom resources were not listed yet: without the list none of them is acted on"
            );
            listed.send_replace(true);
            tokio::select! {
                filled = &mut both => filled,
                () = &mut down => return,
            }
        }
    };
    if let (Ok(()), Ok(())) = filled {
        context.metrics.resources_listed.set(1);
    }
    listed.send_replace(true);
}

/// An item each time that this replica becomes the leader.
pub(super) fn gains(leads: watch::Receiver<bool>) -> impl Stream<Item = ()> + Send + 'static {
    futures::stream::unfold(leads, |mut leads| async move {
        loop {
            leads.changed().await.ok()?;
            if *leads.borrow_and_update() {
                return Some(((), leads));
            }
        }
    })
}

/// Waits until this process is told to end.
pub(super) async fn down(mut shutdown: watch::Receiver<bool>) {
    // A sender that is gone is a process that ends.
    drop(shutdown.wait_for(|down| *down).await);
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use kube::runtime::reflector::ObjectRef;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;

    /// A stage as large as the API server takes them.
    fn large(namespace: &str, name: &str) -> BarekeyStage {
        let text = "x".repeat(100_000);
        let labels: Value = (0..100)
            .map(|number| (format!("label-{number}"), json!("x".repeat(63))))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let condition = |kind: &str, message: &str| {
            json!({"type": kind, "status": "True", "reason": "Ready", "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        serde_json::from_value(json!({
            "apiVersion": "barekey.dev/v1alpha1",
            "kind": "BarekeyStage",
            "metadata": {
                "name": name, "namespace": namespace, "uid": "1", "resourceVersion": "7",
                "labels": labels,
                "annotations": {"a.example/large": text, "barekey.dev/confirm-delete": name},
                "finalizers": ["a.example/held", "barekey.dev/cleanup"],
                "managedFields": [{"manager": text, "fieldsV1": {"f:spec": {}}}],
                "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "2"}],
            },
            "spec": {"project": "backend", "access": [{"serviceAccounts": ["api", "worker"]}]},
            "status": {"id": "stg_1", "conditions": [
                condition("Ready", "ours"), condition("Foreign", "short"), condition("Stalled", &text),
            ]},
        }))
        .unwrap()
    }

    async fn stored(namespace: &str) -> Arc<BarekeyStage> {
        let organizations: Organizations = r#"{"acme":{"namespaces":["shop"]}}"#.parse().unwrap();
        let stage = large(namespace, "production");
        let events = [Event::Init, Event::InitApply(stage), Event::InitDone].map(Ok);
        let (store, changes) = kept(futures::stream::iter(events), organizations);
        drop(changes.collect::<Vec<_>>().await);
        store
            .get(&ObjectRef::new("production").within(namespace))
            .unwrap()
    }

    #[tokio::test]
    async fn of_a_resource_only_what_is_read_later_is_kept() {
        let stage = stored("shop").await;
        let text = serde_json::to_string(&*stage).unwrap();
        assert!(text.len() < 1_000, "{text}");
        assert_eq!(
            stage.annotations()["barekey.dev/confirm-delete"],
            "production"
        );
        assert_eq!(stage.finalizers(), ["barekey.dev/cleanup"]);
        assert_eq!(stage.resource_version().unwrap(), "7");
        assert_eq!(stage.spec.access[0].service_accounts, ["api", "worker"]);
        let conditions = &stage.status.as_ref().unwrap().conditions;
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].message, "ours");
    }

    #[tokio::test]
    async fn the_access_of_a_resource_that_may_declare_nothing_is_not_kept() {
        assert!(stored("elsewhere").await.spec.access.is_empty());
    }
}
