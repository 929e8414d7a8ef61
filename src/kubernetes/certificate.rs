//! The certificate authority, the serving leaf, and the trust that the API server has in them.
//!
//! One CA (ECDSA P-256, ten years) is kept sealed in the vault and read from there for the moment in which it signs. Every
//! process has a leaf of its own, in memory only, and renews it at two thirds of its life without a restart. The leader
//! publishes the CA in the webhook configuration, which the chart renders without `caBundle`, and repairs it when it is wiped.
//!
//! A process is ready once a handshake with its own listener, asking for the Service's name, verifies against the bundle that
//! it read back from the live configuration. That holds readiness back only until it first succeeds, and not at all where
//! there is no configuration; later faults are a metric, an event and a line in the log.

mod leaf;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use rcgen::SanType;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

pub use self::leaf::{AuthorityCertificate, CertificateError};
use self::leaf::{Leaf, authority, leaf_names, make_leaf};
use crate::domain::causes::with_causes;
use crate::kubernetes::events::{Events, Message, Severity};
use crate::kubernetes::metrics::Metrics;
use crate::kubernetes::{FIELD_MANAGER, KubernetesSettings, timed};
use crate::vault::{Clock, Vault};

/// How often the live configuration is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);
/// The same, until this process is ready.
const LOOK_EVERY_UNTIL_READY: Duration = Duration::from_millis(500);
/// How long a configuration must be absent before this process is ready without one: an installer may be about to make it.
const ABSENT_FOR: Duration = Duration::from_secs(10);
/// How long one request or handshake may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Gives whoever connects the current leaf.
struct CurrentLeaf(ArcSwap<CertifiedKey>);

impl std::fmt::Debug for CurrentLeaf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CurrentLeaf(..)")
    }
}

impl ResolvesServerCert for CurrentLeaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// The CA's certificate, the current leaf, and the way to keep both trusted.
pub struct Certificates {
    vault: Vault,
    clock: Arc<dyn Clock>,
    server_name: String,
    names: Vec<SanType>,
    listener: SocketAddr,
    configuration: String,
    authority: AuthorityCertificate,
    current: Arc<CurrentLeaf>,
    begins_at_ms: i64,
    renew_at_ms: i64,
    ends_at_ms: i64,
    ready: watch::Sender<bool>,
}

impl Certificates {
    /// Reads the CA, or makes the first one, and makes this process's first leaf.
    ///
    /// # Errors
    /// [`CertificateError`]; there is nothing to serve with then.
    pub async fn open(
        vault: Vault,
        settings: &KubernetesSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, CertificateError> {
        let now_ms = clock.now_ms();
        let authority = authority(&vault, now_ms).await?;
        let names = leaf_names(settings)?;
        let leaf = make_leaf(&authority, &names, now_ms)?;
        Ok(Self {
            server_name: settings.server_name(),
            names,
            listener: own_address(settings.listen),
            configuration: settings.webhook_configuration.clone(),
            authority: AuthorityCertificate::parse(&authority.certificate_pem)?,
            current: Arc::new(CurrentLeaf(ArcSwap::new(leaf.key))),
            begins_at_ms: leaf.begins_at_ms,
            renew_at_ms: leaf.renew_at_ms,
            ends_at_ms: leaf.ends_at_ms,
            ready: watch::Sender::new(false),
            vault,
            clock,
        })
    }

    /// Serves the current leaf.
    pub fn resolver(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>
    }

    /// The certificate that others trust.
    pub fn authority(&self) -> &AuthorityCertificate {
        &self.authority
    }

    /// Whether a handshake verified once.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Renews the leaf, publishes the CA while this replica leads, and checks the trust, until `shutdown`.
    pub async fn keep(
        mut self,
        client: Client,
        events: Events,
        metrics: Metrics,
        leads: watch::Receiver<bool>,
        mut shutdown: watch::Receiver<bool>,
    ) {
        let api: Api<MutatingWebhookConfiguration> = Api::all(client);
        let started = Instant::now();
        let mut last = Trust::Unknown;
        loop {
            self.renew(&metrics).await;
            let leading = *leads.borrow();
            let trust = self.look(&api, leading).await;
            metrics
                .certificate_verified
                .set(i64::from(trust == Trust::Verified));
            let ready = match trust {
                Trust::Verified => true,
                Trust::NoConfiguration => started.elapsed() >= ABSENT_FOR,
                Trust::Unknown | Trust::Broken(_) => false,
            };
            if ready && !*self.ready.borrow() {
                if trust == Trust::Verified {
                    tracing::info!(ca = self.authority.id, "the serving certificate is trusted");
                } else {
                    tracing::info!(
                        configuration = self.configuration,
                        "there is no webhook configuration: the serving certificate was not tried"
                    );
                }
                self.ready.send_replace(true);
            }
            self.tell(&events, &last, &trust).await;
            last = trust;
            let pause = if *self.ready.borrow() {
                LOOK_EVERY
            } else {
                LOOK_EVERY_UNTIL_READY
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
        }
    }

    /// Makes a new leaf when the current one has spent two thirds of its life, or was made while the clock was ahead and has not
    /// begun. A failure is tried again at the next look.
    async fn renew(&mut self, metrics: &Metrics) {
        let now_ms = self.clock.now_ms();
        if now_ms >= self.renew_at_ms || now_ms < self.begins_at_ms {
            match self.next_leaf(now_ms).await {
                Ok(leaf) => {
                    self.current.0.store(leaf.key);
                    self.begins_at_ms = leaf.begins_at_ms;
                    self.renew_at_ms = leaf.renew_at_ms;
                    self.ends_at_ms = leaf.ends_at_ms;
                    tracing::info!(
                        ends_at_ms = leaf.ends_at_ms,
                        "renewed the serving certificate"
                    );
                }
                Err(error) => tracing::warn!(
                    ends_at_ms = self.ends_at_ms,
                    problem = with_causes(&error),
                    "the serving certificate was not renewed"
                ),
            }
        }
        metrics
            .certificate_expires_seconds
            .set(self.ends_at_ms / 1000);
    }

    async fn next_leaf(&self, now_ms: i64) -> Result<Leaf, CertificateError> {
        let authority = authority(&self.vault, now_ms).await?;
        make_leaf(&authority, &self.names, now_ms)
    }

    /// One look at the live configuration: publishes where that is this replica's task, and tries the own listener.
    async fn look(&self, api: &Api<MutatingWebhookConfiguration>, leads: bool) -> Trust {
        let live = match timed(TIMEOUT, api.get_opt(&self.configuration)).await {
            Ok(Some(live)) => live,
            Ok(None) => return Trust::NoConfiguration,
            Err(error) => {
                return Trust::Broken(format!(
                    "the webhook configuration {} cannot be read: {}",
                    self.configuration,
                    with_causes(&error)
                ));
            }
        };
        let live = if leads && !self.is_published(&live) {
            match timed(TIMEOUT, self.publish(api, &live)).await {
                Ok(live) => {
                    tracing::info!(
                        configuration = self.configuration,
                        ca = self.authority.id,
                        "published the certificate authority"
                    );
                    live
                }
                Err(error) => {
                    return Trust::Broken(format!(
                        "the certificate authority cannot be published in the webhook configuration {}: {}",
                        self.configuration,
                        with_causes(&error)
                    ));
                }
            }
        } else {
            live
        };
        match self.try_own_listener(&live).await {
            Ok(()) => Trust::Verified,
            Err(problem) => Trust::Broken(problem),
        }
    }

    fn is_published(&self, live: &MutatingWebhookConfiguration) -> bool {
        bundles(live).all(|bundle| bundle == Some(self.authority.pem.as_bytes()))
    }

    async fn publish(
        &self,
        api: &Api<MutatingWebhookConfiguration>,
        live: &MutatingWebhookConfiguration,
    ) -> Result<MutatingWebhookConfiguration, kube::Error> {
        let bundle = k8s_openapi::ByteString(self.authority.pem.clone().into_bytes());
        let webhooks: Vec<_> = live
            .webhooks
            .iter()
            .flatten()
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let patch = json!({
            "apiVersion": MutatingWebhookConfiguration::api_version(&()),
            "kind": MutatingWebhookConfiguration::kind(&()),
            // Without the UID, a patch of a configuration that was deleted meanwhile would make a new one.
            "metadata": {"name": self.configuration, "uid": live.metadata.uid},
            "webhooks": webhooks,
        });
        api.patch(
            &self.configuration,
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(patch),
        )
        .await
    }

    /// Connects to the own listener, as the API server would, trusting what the live configuration says.
    async fn try_own_listener(&self, live: &MutatingWebhookConfiguration) -> Result<(), String> {
        for bundle in bundles(live) {
            let bundle = bundle.ok_or_else(|| {
                "the webhook configuration has no caBundle yet; the leader publishes it".to_owned()
            })?;
            let handshake = handshake(self.listener, &self.server_name, bundle);
            match tokio::time::timeout(TIMEOUT, handshake).await {
                Ok(Ok(())) => {}
                Ok(Err(problem)) => {
                    return Err(format!(
                        "the own certificate does not verify against the webhook configuration's caBundle: {problem}"
                    ));
                }
                Err(_) => return Err("the own listener does not answer".to_owned()),
            }
        }
        Ok(())
    }

    /// Tells when trust comes and goes; says nothing while it has not come yet.
    async fn tell(&self, events: &Events, last: &Trust, trust: &Trust) {
        match (last, trust) {
            (Trust::Broken(before), Trust::Broken(now)) if before == now => {}
            (_, Trust::Broken(problem)) if *self.ready.borrow() => {
                tracing::warn!(problem, "the serving certificate is not trusted");
                let about = k8s_openapi::api::core::v1::ObjectReference {
                    api_version: Some(MutatingWebhookConfiguration::api_version(&()).into_owned()),
                    kind: Some(MutatingWebhookConfiguration::kind(&()).into_owned()),
                    name: Some(self.configuration.clone()),
                    ..k8s_openapi::api::core::v1::ObjectReference::default()
                };
                let message = Message {
                    severity: Severity::Warning,
                    reason: "CertificateNotTrusted",
                    action: "VerifyCertificate",
                    note: problem,
                };
                events.tell(about, message).await;
            }
            (_, Trust::Broken(problem)) => {
                tracing::info!(problem, "the serving certificate is not trusted yet");
            }
            (Trust::Broken(_), Trust::Verified) => {
                tracing::info!("the serving certificate verifies");
            }
            _ => {}
        }
    }
}

/// What one look at the live configuration found.
#[derive(Debug, PartialEq, Eq)]
enum Trust {
    /// Nothing was looked at yet.
    Unknown,
    /// There is no webhook configuration.
    NoConfiguration,
    /// The own listener verifies.
    Verified,
    /// It does not; why, in words.
    Broken(String),
}

/// The CA bundle of each webhook; empty counts as none.
fn bundles(live: &MutatingWebhookConfiguration) -> impl Iterator<Item = Option<&[u8]>> {
    live.webhooks.iter().flatten().map(|webhook| {
        webhook
            .client_config
            .ca_bundle
            .as_ref()
            .map(|bundle| bundle.0.as_slice())
            .filter(|bundle| !bundle.is_empty())
    })
}

async fn handshake(listener: SocketAddr, server_name: &str, bundle: &[u8]) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        let certificate = certificate
            .map_err(|error| format!("the bundle is no PEM: {}", with_causes(&error)))?;
        roots
            .add(certificate)
            .map_err(|error| format!("the bundle has no certificate: {}", with_causes(&error)))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| with_causes(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(server_name.to_owned()).map_err(|error| with_causes(&error))?;
    let stream = TcpStream::connect(listener)
        .await
        .map_err(|error| format!("the own listener does not answer: {}", with_causes(&error)))?;
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|error| with_causes(&error))?;
    Ok(())
}

/// Where a listener on `listen` answers on this machine.
fn own_address(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
