//! The flags of `serve`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::Args;

use super::admin::admin_socket;
use super::vault::{VaultArguments, VaultSource};
use super::{LogArguments, SettingsError};
use crate::domain::names::Namespace;

/// The flags of `serve`.
#[derive(Debug, Args)]
pub struct ServeArguments {
    #[command(flatten)]
    vault: VaultArguments,
    #[command(flatten)]
    log: LogArguments,
    /// Where the API listens. Plain HTTP on loopback only; any other address needs a certificate, or --kubernetes.
    #[arg(
        long,
        env = "BAREKEY_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8200"
    )]
    listen: SocketAddr,
    /// The API's certificate chain, PEM.
    #[arg(
        long,
        env = "BAREKEY_TLS_CERTIFICATE_FILE",
        value_name = "PATH",
        requires = "tls_key_file"
    )]
    tls_certificate_file: Option<PathBuf>,
    /// The key of that certificate, PEM.
    #[arg(
        long,
        env = "BAREKEY_TLS_KEY_FILE",
        value_name = "PATH",
        requires = "tls_certificate_file"
    )]
    tls_key_file: Option<PathBuf>,
    /// Where /healthz, /readyz and /metrics are answered, over plain HTTP.
    #[arg(
        long,
        env = "BAREKEY_PROBE_LISTEN",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8201"
    )]
    probe_listen: SocketAddr,
    /// The socket of `barekey-operator admin` [default: FILE.sock beside the SQLite file; for PostgreSQL
    /// barekey-HOST-DATABASE-HASH.sock in the working directory].
    #[arg(long, env = "BAREKEY_ADMIN_SOCKET", value_name = "PATH")]
    admin_socket: Option<PathBuf>,
    #[command(flatten)]
    kubernetes: KubernetesArguments,
}

/// The flags of `serve` that count with --kubernetes.
#[derive(Debug, Args)]
pub struct KubernetesArguments {
    /// Also run the controller, the webhook, and what recognises pods.
    #[arg(long, env = "BAREKEY_KUBERNETES", value_name = "true|false", num_args = 0..=1, default_missing_value = "true", default_value = "false", action = clap::ArgAction::Set)]
    kubernetes: bool,
    /// The operator's own namespace.
    #[arg(long, env = "BAREKEY_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<Namespace>,
    /// The operator's own pod.
    #[arg(long, env = "BAREKEY_POD_NAME", value_name = "NAME")]
    pod_name: Option<String>,
    /// The Service in front of the operator; the server's name and the audience of pod tokens are SERVICE.NAMESPACE.svc.
    #[arg(
        long,
        env = "BAREKEY_SERVICE_NAME",
        value_name = "NAME",
        default_value = "barekey"
    )]
    service_name: String,
    /// The port of that Service.
    #[arg(
        long,
        env = "BAREKEY_SERVICE_PORT",
        value_name = "PORT",
        default_value_t = 443
    )]
    service_port: u16,
    /// The MutatingWebhookConfiguration whose caBundle the operator keeps.
    #[arg(
        long,
        env = "BAREKEY_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "00-barekey"
    )]
    webhook_configuration: String,
    /// The Lease that says which replica leads.
    #[arg(
        long,
        env = "BAREKEY_LEASE",
        value_name = "NAME",
        default_value = "barekey"
    )]
    lease: String,
    /// Which namespaces speak for which organization, such as {"acme":{"namespaces":["shop"]}}.
    #[arg(
        long,
        env = "BAREKEY_ORGANIZATIONS",
        value_name = "JSON",
        default_value = "{}"
    )]
    organizations: String,
    /// The image with the in-pod agent.
    #[arg(long, env = "BAREKEY_AGENT_IMAGE", value_name = "IMAGE")]
    agent_image: Option<String>,
    /// Its pull policy: Always, IfNotPresent or Never; absent for the cluster's default.
    #[arg(long, env = "BAREKEY_AGENT_IMAGE_PULL_POLICY", value_name = "POLICY", value_parser = ["Always", "IfNotPresent", "Never", ""])]
    agent_image_pull_policy: Option<String>,
    /// Names of pull secrets that are added to injected pods, with commas between them.
    #[arg(
        long,
        env = "BAREKEY_AGENT_IMAGE_PULL_SECRETS",
        value_delimiter = ',',
        value_name = "NAMES"
    )]
    agent_image_pull_secrets: Vec<String>,
    /// How the agent arrives in a pod.
    #[arg(long, env = "BAREKEY_AGENT_DELIVERY", value_name = "WAY", default_value = "init", value_parser = ["init", "image"])]
    agent_delivery: String,
}

/// The settings of `serve`, checked.
#[derive(Debug)]
pub struct ServeSettings {
    /// Where the vault is.
    pub vault: VaultSource,
    /// How much is logged, and how.
    pub log: LogArguments,
    /// Where the API listens.
    pub listen: SocketAddr,
    /// What goes over its wire.
    pub wire: Wire,
    /// Where the probes are answered.
    pub probe_listen: SocketAddr,
    /// The socket of `admin`.
    pub admin_socket: PathBuf,
    /// With --kubernetes.
    pub kubernetes: Option<ClusterSettings>,
}

/// What goes over the API's wire.
#[derive(Debug, PartialEq, Eq)]
pub enum Wire {
    /// Plain HTTP, on loopback.
    Plain,
    /// TLS with a certificate from files.
    Files {
        /// The chain, PEM.
        certificate: PathBuf,
        /// The key, PEM.
        key: PathBuf,
    },
    /// TLS with a certificate that the operator makes.
    Made,
}

/// What the operator is told of its cluster, checked as far as it can be here.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is documented at its flag above")]
pub struct ClusterSettings {
    pub namespace: Namespace,
    pub pod_name: String,
    pub service_name: String,
    pub service_port: u16,
    pub webhook_configuration: String,
    pub lease: String,
    pub organizations: String,
    pub agent_image: String,
    pub agent_image_pull_policy: Option<String>,
    pub agent_image_pull_secrets: Vec<String>,
    pub agent_delivery: String,
}

impl ServeArguments {
    /// Checks what belongs together.
    ///
    /// # Errors
    /// [`SettingsError`], which says what would pass.
    pub fn check(self) -> Result<ServeSettings, SettingsError> {
        let vault = self.vault.check()?;
        let kubernetes = self.kubernetes.check()?;
        let wire = match (self.tls_certificate_file, self.tls_key_file) {
            (Some(_), Some(_)) if kubernetes.is_some() => {
                return Err(SettingsError::TwoCertificates);
            }
            (Some(certificate), Some(key)) => Wire::Files { certificate, key },
            _ if kubernetes.is_some() => Wire::Made,
            _ if is_loopback(self.listen.ip()) => Wire::Plain,
            _ => return Err(SettingsError::PlainHttp(self.listen)),
        };
        Ok(ServeSettings {
            admin_socket: admin_socket(self.admin_socket, &vault),
            vault,
            log: self.log,
            listen: self.listen,
            wire,
            probe_listen: self.probe_listen,
            kubernetes,
        })
    }
}

fn is_loopback(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() && address != IpAddr::V4(Ipv4Addr::UNSPECIFIED)
}

impl KubernetesArguments {
    fn check(self) -> Result<Option<ClusterSettings>, SettingsError> {
        if !self.kubernetes {
            return Ok(None);
        }
        let missing = |flag, variable| move || SettingsError::Missing { flag, variable };
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Some(ClusterSettings {
            namespace: self
                .namespace
                .ok_or_else(missing("--namespace", "BAREKEY_NAMESPACE"))?,
            pod_name: given(self.pod_name).ok_or_else(missing("--pod-name", "BAREKEY_POD_NAME"))?,
            service_name: self.service_name,
            service_port: self.service_port,
            webhook_configuration: self.webhook_configuration,
            lease: self.lease,
            organizations: self.organizations,
            agent_image: given(self.agent_image)
                .ok_or_else(missing("--agent-image", "BAREKEY_AGENT_IMAGE"))?,
            agent_image_pull_policy: given(self.agent_image_pull_policy),
            agent_image_pull_secrets: self
                .agent_image_pull_secrets
                .into_iter()
                .filter(|name| !name.is_empty())
                .collect(),
            agent_delivery: self.agent_delivery,
        }))
    }
}
