//! Access ends with the resource that declared it, however its end was noticed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use tokio::sync::watch;

use super::watching::{self, down};
use super::{Context, ReconcileError, TIMEOUT, key_of};
use crate::domain::causes::with_causes;
use crate::domain::names::{Namespace, ObjectName};
use crate::kubernetes::resources::BarekeyStage;
use crate::kubernetes::{RequestError, timed};
use crate::vault::declarations::StageOwner;

/// How often the sweep runs.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// How many resources one page of their names has.
const NAMES_PAGE: u32 = 100;

impl Context {
    /// A BarekeyStage is gone, as far as a watch knows.
    pub(super) async fn ended(&self, namespace: &str, name: &str) {
        self.paces()
            .remove(&key_of(&BarekeyStage::kind(&()), namespace, name));
        if !*self.leads.borrow() {
            return;
        }
        if let Err(error) = self.end_access(namespace, name).await {
            // The sweep ends it later.
            tracing::warn!(
                namespace,
                name,
                problem = with_causes(&error),
                "the access of a deleted BarekeyStage was not ended yet"
            );
        }
    }

    /// Ends the access that a resource declared, unless the API server has it (again).
    async fn end_access(&self, namespace: &str, name: &str) -> Result<(), ReconcileError> {
        let namespace: Namespace = namespace.parse()?;
        let name: ObjectName = name.parse()?;
        let _alone = self.declaring.write().await;
        let api: Api<BarekeyStage> = Api::namespaced(self.client.clone(), namespace.as_str());
        let live = timed(TIMEOUT, api.get_metadata_opt(name.as_str()))
            .await
            .map_err(|source| ReconcileError::Read {
                name: name.to_string(),
                source,
            })?;
        if live.is_none() {
            self.vault.withdraw_access(&namespace, &name).await?;
        }
        Ok(())
    }

    /// Ends the access of every BarekeyStage that is gone, however that was missed.
    async fn sweep(&self) -> Result<(), ReconcileError> {
        let owners = self.vault.stages_with_access().await?;
        if owners.is_empty() {
            return Ok(());
        }
        let existing = self
            .existing_stages()
            .await
            .map_err(|source| ReconcileError::Read {
                name: "list of BarekeyStages".to_owned(),
                source,
            })?;
        for (namespace, name) in stale(&owners, &existing) {
            tracing::info!(namespace, name, "a BarekeyStage is gone: its access ends");
            self.end_access(&namespace, &name).await?;
        }
        Ok(())
    }

    /// Namespace and name of every BarekeyStage that exists. Complete, or an error.
    async fn existing_stages(&self) -> Result<BTreeSet<(String, String)>, RequestError> {
        let api: Api<BarekeyStage> = Api::all(self.client.clone());
        let mut existing = BTreeSet::new();
        let mut params = ListParams::default().limit(NAMES_PAGE);
        loop {
            let page = timed(TIMEOUT, api.list_metadata(&params)).await?;
            let next = page.metadata.continue_.clone().unwrap_or_default();
            existing.extend(
                page.items
                    .into_iter()
                    .map(|stage| (stage.namespace().unwrap_or_default(), stage.name_any())),
            );
            if next.is_empty() {
                return Ok(existing);
            }
            params = params.continue_token(&next);
        }
    }
}

/// The resources that have access entries and do not exist.
fn stale(
    owners: &[StageOwner],
    existing: &BTreeSet<(String, String)>,
) -> BTreeSet<(String, String)> {
    owners
        .iter()
        .map(|owner| (owner.namespace.to_string(), owner.resource.to_string()))
        .filter(|owner| !existing.contains(owner))
        .collect()
}

/// Ends the access of each BarekeyStage as it goes, until `shutdown`.
pub(super) async fn follow_ends(context: Arc<Context>, shutdown: watch::Receiver<bool>) {
    let stages: Api<PartialObjectMeta<BarekeyStage>> = Api::all(context.client.clone());
    let events = watcher(stages, watching::config()).default_backoff();
    ends(events)
        .take_until(down(shutdown))
        .for_each(|(namespace, name)| {
            let context = Arc::clone(&context);
            async move { context.ended(&namespace, &name).await }
        })
        .await;
}

/// Namespace and name of every object that a watch tells the end of.
fn ends<K: Resource>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
) -> impl Stream<Item = (String, String)> {
    events.filter_map(|event| {
        std::future::ready(match event {
            Ok(Event::Delete(object)) => {
                Some((object.namespace().unwrap_or_default(), object.name_any()))
            }
            Ok(Event::Apply(_) | Event::Init | Event::InitApply(_) | Event::InitDone) => None,
            Err(error) => {
                tracing::warn!(problem = with_causes(&error), "a watch is begun again");
                None
            }
        })
    })
}

/// Sweeps when this replica becomes the leader, and regularly while it is.
pub(super) async fn sweep(
    context: Arc<Context>,
    mut leads: watch::Receiver<bool>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        if *leads.borrow_and_update()
            && let Err(error) = context.sweep().await
        {
            tracing::warn!(
                problem = with_causes(&error),
                "the sweep of access is tried again"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(SWEEP_EVERY) => {}
            changed = leads.changed() => if changed.is_err() { return },
            _ = shutdown.wait_for(|down| *down) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{ObjectMeta, PartialObjectMetaExt};

    use super::*;

    #[tokio::test]
    async fn the_end_of_a_resource_is_followed_and_a_watch_that_fails_is_outlived() {
        let stage = |name: &str| {
            let metadata = ObjectMeta {
                namespace: Some("shop".to_owned()),
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            };
            metadata.into_response_partial::<BarekeyStage>()
        };
        let events = [
            Ok(Event::Init),
            Ok(Event::InitApply(stage("stays"))),
            Ok(Event::InitDone),
            Ok(Event::Delete(stage("first"))),
            Err(watcher::Error::NoResourceVersion),
            Ok(Event::Apply(stage("stays"))),
            Ok(Event::Delete(stage("second"))),
        ];
        let ended: Vec<_> = ends(futures::stream::iter(events)).collect().await;
        let of_shop = |name: &str| ("shop".to_owned(), name.to_owned());
        assert_eq!(ended, [of_shop("first"), of_shop("second")]);
    }

    #[test]
    fn access_of_a_resource_that_does_not_exist_is_stale_and_no_other() {
        let owner = |namespace: &str, resource: &str| StageOwner {
            stage: "stg_1".parse().unwrap(),
            namespace: namespace.parse().unwrap(),
            resource: resource.parse().unwrap(),
        };
        let owners = [
            owner("shop", "gone"),
            owner("shop", "here"),
            owner("other", "here"),
        ];
        let existing = [("shop".to_owned(), "here".to_owned())].into();
        let names: Vec<_> = stale(&owners, &existing).into_iter().collect();
        assert_eq!(
            names,
            [
                ("other".to_owned(), "here".to_owned()),
                ("shop".to_owned(), "gone".to_owned())
            ]
        );
    }
}
