//! What goes before the operator goes, so that nothing is left that blocks pods or hangs.
//!
//! The chart's hook runs this before it deletes anything: the webhook configuration first, then our finalizers. It takes the
//! Lease meanwhile, so that the operator, which still runs, does not set them again.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::domain::names::Namespace;
use crate::kubernetes::lease::LOOK_EVERY;
use crate::kubernetes::resources::{BarekeyProject, BarekeyStage, FINALIZER};
use crate::kubernetes::{FIELD_MANAGER, RequestError, timed};
use crate::vault::Clock;

/// How long the Lease is taken for. If the release is not deleted after all, the operator goes on after that.
const TAKEN_FOR_SECONDS: i32 = 120;
/// Who takes it.
const IDENTITY: &str = "uninstall";
/// How often the Lease is tried while the operator writes it too.
const TAKE_TRIES: usize = 10;
/// How often all resources are gone through until none has our finalizer.
const PASSES: usize = 5;
/// How many objects one page of a list has.
const PAGE: u32 = 500;
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where to look.
#[derive(Debug, Clone)]
pub struct UninstallSettings {
    /// The operator's namespace.
    pub namespace: Namespace,
    /// The name of the MutatingWebhookConfiguration.
    pub webhook_configuration: String,
    /// The name of the Lease.
    pub lease: String,
}

/// What was done, and what stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UninstallReport {
    /// Whether there was a webhook configuration.
    pub webhook_deleted: bool,
    /// How many finalizers were removed.
    pub finalizers_removed: usize,
    /// How many BarekeyProjects stay.
    pub projects: usize,
    /// How many BarekeyStages stay.
    pub stages: usize,
}

impl std::fmt::Display for UninstallReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let webhook = if self.webhook_deleted {
            "deleted: annotated pods are admitted without injection once the release is gone"
        } else {
            "was not there"
        };
        writeln!(f, "webhook configuration: {webhook}")?;
        writeln!(f, "finalizers removed: {}", self.finalizers_removed)?;
        writeln!(f, "what stays:")?;
        writeln!(
            f,
            "  {} BarekeyProjects and {} BarekeyStages",
            self.projects, self.stages
        )?;
        writeln!(
            f,
            "  the CustomResourceDefinitions of both (deleting them deletes the resources)"
        )?;
        write!(
            f,
            "  the database with every value, and your master key's Secret or file"
        )
    }
}

/// Why something is left that would block or hang.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The webhook configuration.
    #[error("cannot delete the webhook configuration {name}")]
    Webhook {
        /// Its name.
        name: String,
        /// Why.
        source: RequestError,
    },
    /// The Lease.
    #[error("cannot take the Lease {name}")]
    Lease {
        /// Its name.
        name: String,
        /// Why.
        source: RequestError,
    },
    /// A list.
    #[error("cannot list the {kind}s")]
    List {
        /// The kind.
        kind: String,
        /// Why.
        source: RequestError,
    },
    /// A finalizer.
    #[error("cannot remove the finalizer of the {kind} {namespace}/{name}")]
    Finalizer {
        /// The kind.
        kind: String,
        /// The namespace.
        namespace: String,
        /// The name.
        name: String,
        /// Why.
        source: RequestError,
    },
    /// Somebody sets the finalizers again.
    #[error(
        "{left} resources got their finalizer again while it was removed: stop the operator, then try again"
    )]
    SetAgain {
        /// How many had it at the last look.
        left: usize,
    },
}

/// Deletes the webhook configuration, then removes our finalizer from all our resources. Repeatable.
///
/// # Errors
/// [`UninstallError`] names what is left.
pub async fn uninstall(
    client: Client,
    settings: &UninstallSettings,
    clock: &dyn Clock,
) -> Result<UninstallReport, UninstallError> {
    let webhook_deleted = delete_webhook(&client, &settings.webhook_configuration).await?;
    let taken = take_lease(&client, settings, clock).await?;
    if taken {
        // The leader looks at the Lease that often, and steps down.
        tokio::time::sleep(LOOK_EVERY + Duration::from_secs(1)).await;
    }
    let (mut finalizers_removed, mut left) = (0, 0);
    for _ in 0..PASSES {
        let (stages_removed, stages) = release_all::<BarekeyStage>(&client).await?;
        let (projects_removed, projects) = release_all::<BarekeyProject>(&client).await?;
        left = stages_removed + projects_removed;
        finalizers_removed += left;
        if left == 0 {
            return Ok(UninstallReport {
                webhook_deleted,
                finalizers_removed,
                projects,
                stages,
            });
        }
    }
    Err(UninstallError::SetAgain { left })
}

async fn delete_webhook(client: &Client, name: &str) -> Result<bool, UninstallError> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    match timed(TIMEOUT, api.delete(name, &DeleteParams::default())).await {
        Ok(_) => Ok(true),
        Err(RequestError::Api(kube::Error::Api(status))) if status.is_not_found() => Ok(false),
        Err(source) => Err(UninstallError::Webhook {
            name: name.to_owned(),
            source,
        }),
    }
}

/// Whether there was a Lease to take.
async fn take_lease(
    client: &Client,
    settings: &UninstallSettings,
    clock: &dyn Clock,
) -> Result<bool, UninstallError> {
    let api: Api<Lease> = Api::namespaced(client.clone(), settings.namespace.as_str());
    let failed = |source| UninstallError::Lease {
        name: settings.lease.clone(),
        source,
    };
    let mut tries = 0;
    loop {
        let Some(mut lease) = timed(TIMEOUT, api.get_opt(&settings.lease))
            .await
            .map_err(failed)?
        else {
            return Ok(false);
        };
        let now = MicroTime(Timestamp::from_millisecond(clock.now_ms()).unwrap_or_default());
        let transitions = lease.spec.and_then(|spec| spec.lease_transitions);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(IDENTITY.to_owned()),
            lease_duration_seconds: Some(TAKEN_FOR_SECONDS),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions.unwrap_or(0).saturating_add(1)),
            ..LeaseSpec::default()
        });
        let params = PostParams::default();
        match timed(TIMEOUT, api.replace(&settings.lease, &params, &lease)).await {
            Ok(_) => return Ok(true),
            Err(RequestError::Api(kube::Error::Api(status)))
                if status.is_conflict() && tries < TAKE_TRIES =>
            {
                tries += 1;
            }
            Err(source) => return Err(failed(source)),
        }
    }
}

/// Removes our finalizer from every object of a kind: how many had it, and how many objects there are.
async fn release_all<K>(client: &Client) -> Result<(usize, usize), UninstallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let kind = K::kind(&()).into_owned();
    let all: Api<K> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let (mut removed, mut objects) = (0, 0);
    loop {
        let page = match timed(TIMEOUT, all.list_metadata(&params)).await {
            Ok(page) => page,
            // The definitions are gone, and the objects with them. Where the whole group is gone, the API server answers a
            // plain page, which has no reason.
            Err(RequestError::Api(kube::Error::Api(status))) if status.code == 404 => {
                return Ok((0, 0));
            }
            Err(source) => return Err(UninstallError::List { kind, source }),
        };
        let next = page.metadata.continue_.clone().unwrap_or_default();
        for object in &page.items {
            objects += 1;
            if release(client, &kind, object).await? {
                removed += 1;
            }
        }
        if next.is_empty() {
            return Ok((removed, objects));
        }
        params = params.continue_token(&next);
    }
}

async fn release<K>(
    client: &Client,
    kind: &str,
    object: &kube::core::PartialObjectMeta<K>,
) -> Result<bool, UninstallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let mut finalizers = object.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    if finalizers.len() == object.finalizers().len() {
        return Ok(false);
    }
    let namespace = object.namespace().unwrap_or_default();
    let name = object.name_any();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let patch = json!({"metadata": {
        "resourceVersion": object.resource_version(),
        "finalizers": finalizers,
    }});
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let patch = Patch::Merge(patch);
    match timed(TIMEOUT, api.patch_metadata(&name, &params, &patch)).await {
        Ok(_) => Ok(true),
        // Gone, or changed meanwhile: the next pass looks again.
        Err(RequestError::Api(kube::Error::Api(status)))
            if status.is_not_found() || status.is_conflict() =>
        {
            Ok(true)
        }
        Err(source) => Err(UninstallError::Finalizer {
            kind: kind.to_owned(),
            namespace,
            name,
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Json;
    use axum::http::{Method, StatusCode, Uri};
    use axum::response::{IntoResponse, Response};

    use super::*;

    struct StillClock;

    impl Clock for StillClock {
        fn now_ms(&self) -> i64 {
            1_795_000_000_000
        }
    }

    fn stage(name: usize) -> serde_json::Value {
        json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": name.to_string(), "namespace": "shop", "finalizers": [FINALIZER]},
        })
    }

    /// What an API server answers that has stages alone, fewer at each look, whose finalizer somebody always sets again.
    fn answer(method: &Method, uri: &Uri, looks: &AtomicUsize) -> Response {
        let items = match (method.as_str(), uri.path()) {
            ("PATCH", _) => return Json(stage(0)).into_response(),
            ("GET", "/apis/barekey.dev/v1alpha1/barekeystages") => {
                let look = looks.fetch_add(1, Ordering::Relaxed);
                (look..PASSES + 1).map(stage).collect()
            }
            ("GET", "/apis/barekey.dev/v1alpha1/barekeyprojects") => Vec::new(),
            _ => {
                let status = json!({
                    "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404, "message": "not there",
                });
                return (StatusCode::NOT_FOUND, Json(status)).into_response();
            }
        };
        Json(json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": {}, "items": items,
        }))
        .into_response()
    }

    #[tokio::test]
    async fn finalizers_that_are_set_again_are_counted_once_a_resource() {
        // Another test may have done it.
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let looks = std::sync::Arc::new(AtomicUsize::new(0));
        let router = axum::Router::new().fallback(move |method: Method, uri: Uri| {
            let looks = std::sync::Arc::clone(&looks);
            async move { answer(&method, &uri, &looks) }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let settings = UninstallSettings {
            namespace: "barekey".parse().unwrap(),
            webhook_configuration: "barekey".to_owned(),
            lease: "barekey".to_owned(),
        };
        let told = uninstall(client, &settings, &StillClock).await;
        assert!(
            matches!(told, Err(UninstallError::SetAgain { left: 2 })),
            "{told:?}"
        );
    }
}
