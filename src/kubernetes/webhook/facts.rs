//! What admission knows of the cluster and of the vault, and how it comes to know it.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client};
use tokio::sync::{Semaphore, watch};

use super::{Facts, Unanswered};
use crate::domain::causes::with_causes;
use crate::domain::names::{Namespace, ObjectName, StageId, VariableName};
use crate::kubernetes::certificate::AuthorityCertificate;
use crate::kubernetes::injection::{Authority, DeclaredStage, InjectionSettings};
use crate::kubernetes::resources::BarekeyStage;
use crate::kubernetes::{KubernetesSettings, plan};
use crate::vault::Vault;

/// How long the API server may take to show one BarekeyStage.
const LIVE_WAIT_MAX: Duration = Duration::from_secs(2);
/// How many BarekeyStages the API server is asked for at once.
const LIVE_READS_MAX: usize = 16;
/// How long a BarekeyStage that the API server does not have is not asked for again, unless the watch tells of one.
const ABSENT_KEPT: Duration = Duration::from_secs(1);
/// How many of those are remembered.
const ABSENT_MAX: usize = 1024;
/// How often the Service's addresses are looked up anew.
const ADDRESSES_EVERY: Duration = Duration::from_secs(60);
/// How soon they are looked up again while there are none, as when the cluster's DNS starts after the operator.
const NO_ADDRESSES_EVERY: Duration = Duration::from_secs(5);

/// What the watch of BarekeyStages, the API server and the vault say.
pub struct ClusterFacts {
    client: Client,
    stages: Store<BarekeyStage>,
    vault: Vault,
    live_reads: Semaphore,
    absent: Absent,
}

impl ClusterFacts {
    /// Facts from a store that a watch fills, from the API server and from the vault.
    pub fn new(client: Client, stages: Store<BarekeyStage>, vault: Vault) -> Self {
        Self {
            client,
            stages,
            vault,
            live_reads: Semaphore::new(LIVE_READS_MAX),
            absent: Absent::default(),
        }
    }
}

impl Facts for ClusterFacts {
    fn seen(&self, namespace: &Namespace, name: &ObjectName) -> Option<DeclaredStage> {
        let key = ObjectRef::new(name.as_str()).within(namespace.as_str());
        self.stages.get(&key).map(|stage| declared(&stage))
    }

    fn live<'a>(
        &'a self,
        namespace: &'a Namespace,
        name: &'a ObjectName,
    ) -> BoxFuture<'a, Result<Option<DeclaredStage>, Unanswered>> {
        Box::pin(async move {
            if self.seen(namespace, name).is_none() && self.absent.has(namespace, name) {
                return Ok(None);
            }
            let stages = Api::<BarekeyStage>::namespaced(self.client.clone(), namespace.as_str());
            let asked = async {
                let _turn = self.live_reads.acquire().await;
                stages.get_opt(name.as_str()).await
            };
            match tokio::time::timeout(LIVE_WAIT_MAX, asked).await {
                Ok(Ok(Some(stage))) => Ok(Some(declared(&stage))),
                Ok(Ok(None)) => {
                    self.absent.remember(namespace, name);
                    Ok(None)
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = %with_causes(&error), "cannot read a BarekeyStage");
                    Err(Unanswered)
                }
                Err(_) => Err(Unanswered),
            }
        })
    }

    fn names<'a>(
        &'a self,
        stage: &'a StageId,
        namespace: &'a Namespace,
        name: &'a ObjectName,
    ) -> BoxFuture<'a, Result<BTreeSet<VariableName>, Unanswered>> {
        Box::pin(async move {
            // The status that the id was read from is written by whoever has the right to.
            let names = self.vault.variable_names(stage, namespace, name);
            match names.await {
                Ok(names) => Ok(names.into_iter().flatten().collect()),
                Err(error) => {
                    tracing::warn!(error = %with_causes(&error), "cannot read the names of a stage");
                    Err(Unanswered)
                }
            }
        })
    }
}

/// BarekeyStages that were not there a moment ago, so that a flood of reviews that name none does not become one of requests.
#[derive(Default)]
struct Absent(Mutex<HashMap<(Namespace, ObjectName), Instant>>);

impl Absent {
    fn has(&self, namespace: &Namespace, name: &ObjectName) -> bool {
        let absent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        absent
            .get(&(namespace.clone(), name.clone()))
            .is_some_and(|since| since.elapsed() < ABSENT_KEPT)
    }

    fn remember(&self, namespace: &Namespace, name: &ObjectName) {
        let mut absent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if absent.len() >= ABSENT_MAX {
            absent.retain(|_, since| since.elapsed() < ABSENT_KEPT);
        }
        if absent.len() < ABSENT_MAX {
            absent.insert((namespace.clone(), name.clone()), Instant::now());
        }
    }
}

/// What admission needs to know of a BarekeyStage. One that is going, or whose access is no access, grants nothing.
fn declared(stage: &BarekeyStage) -> DeclaredStage {
    let status = stage.status.as_ref();
    let access = match &stage.metadata.deletion_timestamp {
        None => plan::access_grants(stage).unwrap_or_default(),
        Some(_) => Vec::new(),
    };
    let ready = status.and_then(|status| status.conditions.iter().find(|it| it.type_ == "Ready"));
    DeclaredStage {
        id: status
            .and_then(|status| status.id.as_deref())
            .and_then(|id| id.parse().ok()),
        revision: status.and_then(|status| status.revision).unwrap_or(0),
        access,
        ready: ready.is_some_and(|ready| ready.status == "True"),
    }
}

/// What every injected pod is given, with no address of the Service known yet.
pub fn injection_settings(
    settings: &KubernetesSettings,
    authority: &AuthorityCertificate,
) -> InjectionSettings {
    InjectionSettings {
        server: settings.server_name(),
        port: settings.service_port,
        addresses: Vec::new(),
        authority: Authority {
            id: authority.id.clone(),
            certificate: STANDARD.encode(&authority.der),
        },
        agent: settings.agent.clone(),
    }
}

/// Keeps the addresses of the vault's Service in `settings` fresh, off the path of any request, until `shutdown` turns true.
///
/// Pods try them first and the name second, so a look-up that fails changes nothing.
pub async fn keep_addresses(
    settings: watch::Sender<Arc<InjectionSettings>>,
    mut shutdown: watch::Receiver<bool>,
) {
    loop {
        let now = Arc::clone(&settings.borrow());
        match addresses(&now.server, now.port).await {
            Ok(addresses) if addresses != now.addresses => {
                settings.send_replace(Arc::new(InjectionSettings {
                    addresses,
                    ..InjectionSettings::clone(&now)
                }));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "the addresses of the Service stay as they are"),
        }
        let pause = if settings.borrow().addresses.is_empty() {
            NO_ADDRESSES_EVERY
        } else {
            ADDRESSES_EVERY
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = shutdown.wait_for(|ends| *ends) => return,
        }
    }
}

async fn addresses(server: &str, port: u16) -> std::io::Result<Vec<String>> {
    let found: BTreeSet<IpAddr> = tokio::net::lookup_host((server, port))
        .await?
        .map(|address| address.ip())
        .collect();
    Ok(found
        .into_iter()
        .map(|address| address.to_string())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn stage(over: &[(&str, Value)]) -> DeclaredStage {
        let mut stage = json!({
            "apiVersion": "barekey.dev/v1alpha1",
            "kind": "BarekeyStage",
            "metadata": {"name": "production", "namespace": "shop"},
            "spec": {"project": "shop", "access": [{"serviceAccounts": ["api"], "variables": ["DB_*"]}]},
            "status": {"id": "stg_1", "revision": 3, "conditions": [condition("True", "Ready")]},
        });
        for (pointer, value) in over {
            *stage.pointer_mut(pointer).expect("the field is there") = value.clone();
        }
        declared(&serde_json::from_value(stage).expect("it is a stage"))
    }

    fn condition(status: &str, reason: &str) -> Value {
        json!({"type": "Ready", "status": status, "reason": reason, "message": "do this",
            "lastTransitionTime": "2026-11-22T00:00:00Z"})
    }

    #[test]
    fn a_ready_stage_has_its_id_its_revision_and_its_access() {
        let stage = stage(&[]);
        assert_eq!(stage.id.unwrap().as_str(), "stg_1");
        assert_eq!((stage.revision, stage.ready), (3, true));
        assert_eq!(stage.access[0].namespace.as_str(), "shop");
    }

    #[test]
    fn a_stage_that_was_absent_is_remembered_by_its_whole_name_and_no_more_than_some_are() {
        let absent = Absent::default();
        let of = |namespace: &str, name: &str| {
            let name: ObjectName = name.parse().unwrap();
            (namespace.parse::<Namespace>().unwrap(), name)
        };
        let (shop, name) = of("shop", "stage-0");
        absent.remember(&shop, &name);
        assert!(absent.has(&shop, &name));
        let (other, _) = of("other", "stage-0");
        assert!(!absent.has(&other, &name));
        for number in 1..2 * ABSENT_MAX {
            let (namespace, name) = of("shop", &format!("stage-{number}"));
            absent.remember(&namespace, &name);
        }
        assert!(absent.0.lock().unwrap().len() <= ABSENT_MAX);
    }

    #[test]
    fn a_stage_is_ready_when_its_condition_says_so() {
        let conditions = json!([condition("False", "NotOwned")]);
        let refused = stage(&[("/status/conditions", conditions)]);
        assert!(!refused.ready);
        let unseen = stage(&[("/status", json!(null))]);
        assert!(!unseen.ready);
        assert_eq!(unseen.id, None);
    }

    #[test]
    fn a_stage_that_is_going_and_access_that_is_none_grant_nothing() {
        let metadata = json!({"name": "production", "namespace": "shop",
            "deletionTimestamp": "2026-11-22T00:00:00Z"});
        assert!(stage(&[("/metadata", metadata)]).access.is_empty());
        let access = json!([{"serviceAccounts": ["api"]}, {"serviceAccounts": ["Not A Name"]}]);
        assert!(stage(&[("/spec/access", access)]).access.is_empty());
    }
}
