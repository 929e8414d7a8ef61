//! Everything that speaks to a Kubernetes API server: custom resources, controller, certificates, pod identity, webhook.
//!
//! ```text
//!  resources      the custom resources, as types          crds          their YAML
//!  controller     read → decide → act → tell              plan          the deciding part, pure
//!  identity       pod tokens in, pod callers out          certificate   the CA, the leaf, the caBundle
//!  lease          who leads; audit heads outside          events        what resources and pods are told
//!  webhook        admission of pods over HTTP            injection     the deciding part, pure
//!  uninstall      what goes before the operator goes     turns         little at once, and each kind its part
//! ```
//!
//! [`start`] joins them; each of them can be read alone.

pub mod certificate;
pub mod controller;
pub mod crds;
pub mod events;
pub mod identity;
pub mod injection;
pub mod lease;
pub mod metrics;
pub mod plan;
pub mod resources;
mod turns;
pub mod uninstall;
pub mod webhook;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use crate::domain::declaration::{Organizations, OrganizationsError};
use crate::domain::names::Namespace;
use crate::vault::{Clock, Vault};

pub use self::injection::{AgentDelivery, AgentDeliverySettings};

/// The API group of our kinds, and the prefix of our annotations.
pub const GROUP: &str = "barekey.dev";
/// The name under which we own fields of objects.
pub const FIELD_MANAGER: &str = "barekey";
/// Where the heads of the audit chains are published, on our Lease.
pub const AUDIT_HEADS_ANNOTATION: &str = "barekey.dev/audit-heads";

/// What the operator is told about the cluster that it runs in.
#[derive(Debug, Clone)]
pub struct KubernetesSettings {
    /// The operator's own namespace.
    pub namespace: Namespace,
    /// The operator's own pod: who holds the Lease, and who tells events.
    pub pod_name: String,
    /// The name of the Service in front of the operator.
    pub service_name: String,
    /// The port of that Service.
    pub service_port: u16,
    /// The name of the MutatingWebhookConfiguration.
    pub webhook_configuration: String,
    /// The name of the Lease.
    pub lease: String,
    /// Which namespaces speak for which organization.
    pub organizations: Organizations,
    /// How the in-pod agent is delivered.
    pub agent: AgentDeliverySettings,
    /// The operator's own TLS listener (API and webhook).
    pub listen: SocketAddr,
}

impl KubernetesSettings {
    /// What `kubectl exec` is told to enter, in messages: right for every kind of workload behind the Service.
    pub fn exec_target(&self) -> String {
        format!("service/{}", self.service_name)
    }

    /// The name that the serving certificate must have, and the audience of the tokens of pods: `SERVICE.NAMESPACE.svc`.
    pub fn server_name(&self) -> String {
        format!("{}.{}.svc", self.service_name, self.namespace)
    }
}

/// Why the parts that speak to Kubernetes did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no certificate to serve with.
    #[error("there is no certificate to serve with")]
    Certificate(#[from] certificate::CertificateError),
}

/// Why a request to the API server came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It was refused, or the API server is away.
    #[error("the API server refused or is away")]
    Api(#[from] kube::Error),
    /// No answer.
    #[error("no answer within {} s", limit.as_secs())]
    Timeout {
        /// How long it was waited for.
        limit: Duration,
    },
}

/// One request to the API server, which may take `limit`.
async fn timed<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, RequestError> {
    match tokio::time::timeout(limit, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(RequestError::Timeout { limit }),
    }
}

/// The parts that speak to Kubernetes, running.
pub struct Running {
    /// Serves the current leaf to whoever connects to our TLS listener.
    pub certificate: Arc<dyn rustls::server::ResolvesServerCert>,
    /// What admission works with, for [`webhook::router`].
    pub admission: webhook::State,
    /// Whether a handshake with our own listener verified against the live webhook configuration, once.
    pub ready: watch::Receiver<bool>,
    /// Whether the custom resources were listed once, or were waited for long enough.
    pub listed: watch::Receiver<bool>,
    /// What runs. Each task ends soon after `shutdown` turns true; one that ends before is a fault.
    pub tasks: JoinSet<&'static str>,
}

/// Starts leadership, certificates and the controller.
///
/// # Errors
/// [`StartError`] when no certificate can be made or read. An API server that cannot be reached is no error: it is asked again.
pub async fn start(
    client: Client,
    vault: Vault,
    settings: Arc<KubernetesSettings>,
    clock: Arc<dyn Clock>,
    metrics: metrics::Metrics,
    shutdown: watch::Receiver<bool>,
) -> Result<Running, StartError> {
    let certificates =
        certificate::Certificates::open(vault.clone(), &settings, Arc::clone(&clock)).await?;
    let certificate = certificates.resolver();
    let authority = certificates.authority().clone();
    let ready = certificates.ready();
    let events = events::Events::new(client.clone(), &settings, Arc::clone(&clock));
    let mut tasks = JoinSet::new();

    let (leads_sender, leads) = watch::channel(false);
    let lease = lease::Candidate::new(
        client.clone(),
        vault.clone(),
        &settings,
        Arc::clone(&clock),
        metrics.clone(),
        leads_sender,
    );
    tasks.spawn(named("lease", lease.run(shutdown.clone())));
    tasks.spawn(named(
        "certificates",
        certificates.keep(
            client.clone(),
            events.clone(),
            metrics.clone(),
            leads.clone(),
            shutdown.clone(),
        ),
    ));
    let (given, given_now) =
        watch::channel(Arc::new(webhook::injection_settings(&settings, &authority)));
    tasks.spawn(named(
        "addresses",
        webhook::keep_addresses(given, shutdown.clone()),
    ));
    let controller = controller::Controller::new(
        client.clone(),
        vault.clone(),
        settings,
        clock,
        events,
        metrics.clone(),
        leads,
    );
    let listed = controller.listed();
    let admission = webhook::State::new(
        webhook::ClusterFacts::new(client, controller.stages(), vault),
        given_now,
        metrics,
    );
    tasks.spawn(named("controller", controller.run(shutdown)));
    Ok(Running {
        certificate,
        admission,
        ready,
        listed,
        tasks,
    })
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}
