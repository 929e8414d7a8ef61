//! The operator's flags and environment, read and checked once. No other file reads either.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::domain::access::Role;
use crate::domain::names::{Namespace, OrganizationSlug, ProjectSlug, StageSlug, TokenId};
use crate::domain::plaintext::Plaintext;
use crate::domain::variable::{VALUE_BYTES_MAX, VALUE_BYTES_MAX_CEILING};

/// Where the master key may be, base64 of 32 bytes. An environment variable alone: a flag would be in the process list.
pub const MASTER_KEY_VARIABLE: &str = "BAREKEY_MASTER_KEY_B64";
/// How the socket of `admin` is called where no flag says otherwise.
const ADMIN_SOCKET: &str = "barekey-admin.sock";

/// The vault, the operator and the webhook of Barekey for Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "barekey-operator", version, about)]
pub struct Program {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the vault, and with --kubernetes everything that belongs to a cluster.
    Serve(Box<ServeArguments>),
    /// Print the custom resource definitions, or write them to a directory, a file each.
    Crds(CrdsArguments),
    /// Organizations, tokens and the audit trail, over the socket of the running server.
    Admin(AdminArguments),
    /// What goes before the operator goes: its webhook configuration, then its finalizers.
    Uninstall(UninstallArguments),
}

/// Where the vault is, and what opens it.
#[derive(Debug, Args)]
pub struct VaultArguments {
    /// The database: sqlite:PATH or postgres://USER:PASSWORD@HOST/NAME.
    #[arg(
        long,
        env = "BAREKEY_DATABASE",
        hide_env_values = true,
        value_name = "URL",
        default_value = "sqlite:barekey.db"
    )]
    database: String,
    /// The file with the master key: 32 bytes, or their base64. Or set BAREKEY_MASTER_KEY_B64.
    #[arg(long, env = "BAREKEY_MASTER_KEY_FILE", value_name = "PATH")]
    master_key_file: Option<PathBuf>,
    /// A setting of PostgreSQL that is accepted although it may lose writes or trust the wrong server; may be repeated.
    #[arg(
        long,
        env = "BAREKEY_ACCEPT_DATABASE_RISK",
        value_delimiter = ',',
        value_name = "RISK"
    )]
    accept_database_risk: Vec<DatabaseRisk>,
    /// The longest value that is accepted, in bytes; at most 1048576.
    #[arg(
        long,
        env = "BAREKEY_VALUE_BYTES_MAX",
        value_name = "BYTES",
        default_value_t = VALUE_BYTES_MAX
    )]
    value_bytes_max: usize,
}

/// A setting of PostgreSQL that is refused unless it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DatabaseRisk {
    /// Acknowledged writes may be lost.
    SynchronousCommitOff,
    /// The database may be lost.
    FsyncOff,
    /// The server's identity is not proven.
    Sslmode,
}

/// How much is logged, and how.
#[derive(Debug, Args)]
pub struct LogArguments {
    /// How much is logged; values, tokens and bodies at no level.
    #[arg(
        long = "log-level",
        env = "BAREKEY_LOG",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub level: LogLevel,
    /// How it is logged.
    #[arg(
        long = "log-format",
        env = "BAREKEY_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub format: LogFormat,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the words of every log")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How it is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

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
    /// The socket of `barekey-operator admin` [default: barekey-admin.sock beside the SQLite file, or in the working directory].
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

/// The flags of `crds`.
#[derive(Debug, Args)]
pub struct CrdsArguments {
    /// Where the files go; absent: all to standard output.
    pub directory: Option<PathBuf>,
}

/// The flags of `admin`.
#[derive(Debug, Args)]
pub struct AdminArguments {
    #[command(flatten)]
    vault: VaultArguments,
    /// The socket of the running server [default: barekey-admin.sock beside the SQLite file, or in the working directory].
    #[arg(long, env = "BAREKEY_ADMIN_SOCKET", value_name = "PATH", global = true)]
    admin_socket: Option<PathBuf>,
    #[command(subcommand)]
    command: AdminCommand,
}

/// What an administrator does.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Make one organization and print its owner's token.
    Bootstrap {
        /// The organization's slug.
        #[arg(long, value_name = "SLUG")]
        organization: OrganizationSlug,
    },
    /// API tokens.
    Token {
        /// What to do with them.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// The audit trail.
    Audit {
        /// What to do with it.
        #[command(subcommand)]
        command: AuditCommand,
    },
}

/// What is done with API tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it.
    Create {
        /// The organization's slug.
        #[arg(long, value_name = "SLUG")]
        organization: OrganizationSlug,
        /// What it may do: owner, admin, developer, operator, viewer or billing.
        #[arg(long)]
        role: Role,
        /// What people call it.
        #[arg(long, default_value = "token", value_parser = token_name)]
        name: String,
        /// The project that it is cut to.
        #[arg(long, value_name = "SLUG")]
        project: Option<ProjectSlug>,
        /// The stage that it is cut to.
        #[arg(long, value_name = "SLUG", requires = "project")]
        stage: Option<StageSlug>,
        /// When it ends: an instant such as 2027-01-31T12:00:00Z, or a time from now such as 30d or 12h. Absent: never.
        #[arg(long, value_name = "WHEN")]
        expires: Option<Expiry>,
    },
    /// Revoke a token; it is refused at once.
    Revoke {
        /// The organization's slug.
        #[arg(long, value_name = "SLUG")]
        organization: OrganizationSlug,
        /// The token's id, as `token create` and the audit trail name it.
        #[arg(value_name = "TOKEN_ID")]
        token: TokenId,
    },
}

/// A token's name: trimmed, 1 to 64 characters, none of them a control character.
fn token_name(text: &str) -> Result<String, String> {
    let name = text.trim();
    if (1..=64).contains(&name.chars().count()) && !name.chars().any(char::is_control) {
        Ok(name.to_owned())
    } else {
        Err("it must have 1 to 64 characters, without control characters".to_owned())
    }
}

/// What is done with the audit trail.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Read every record and say which is altered, missing, reordered or cut off. Exit code 1 when the trail is not whole.
    Verify {
        /// A head that was published outside the database, as the log has it; may be repeated.
        #[arg(long, value_name = "CHAIN:EPOCH:SEQUENCE:MAC")]
        head: Vec<Head>,
        /// A file with such heads, one a line.
        #[arg(long, value_name = "PATH")]
        heads_file: Option<PathBuf>,
    },
}

/// The flags of `uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArguments {
    /// The MutatingWebhookConfiguration to delete.
    #[arg(
        long,
        env = "BAREKEY_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "00-barekey"
    )]
    pub webhook_configuration: String,
    /// The operator's namespace.
    #[arg(long, env = "BAREKEY_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Namespace,
    /// The Lease that says which replica leads; it is taken meanwhile.
    #[arg(
        long,
        env = "BAREKEY_LEASE",
        value_name = "NAME",
        default_value = "barekey"
    )]
    pub lease: String,
    /// How much is logged, and how.
    #[command(flatten)]
    pub log: LogArguments,
}

/// When a token ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// At an instant, in milliseconds since 1970.
    At(i64),
    /// So long from now.
    In(Duration),
}

impl Expiry {
    /// The instant, in milliseconds since 1970.
    pub fn instant_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::At(instant_ms) => instant_ms,
            Self::In(time) => {
                now_ms.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
            }
        }
    }
}

/// Why a text is not the end of a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is neither an instant such as 2027-01-31T12:00:00Z nor a time from now such as 30d, 12h or 90m"
)]
pub struct ExpiryError;

impl std::str::FromStr for Expiry {
    type Err = ExpiryError;

    fn from_str(text: &str) -> Result<Self, ExpiryError> {
        for (unit, seconds) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
            if let Some(count) = text.strip_suffix(unit) {
                let count: u64 = count.parse().map_err(|_| ExpiryError)?;
                let seconds = count.checked_mul(seconds).ok_or(ExpiryError)?;
                return Ok(Self::In(Duration::from_secs(seconds)));
            }
        }
        let instant: jiff::Timestamp = text.parse().map_err(|_| ExpiryError)?;
        Ok(Self::At(instant.as_millisecond()))
    }
}

/// A published head of an audit chain: `CHAIN:EPOCH:SEQUENCE:MAC`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The organization's id, or `installation`.
    pub chain: String,
    /// The epoch.
    pub epoch: i64,
    /// The sequence of the newest record.
    pub sequence: i64,
    /// Its MAC, in hex.
    pub mac: String,
}

/// Why a text is not a head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a head is CHAIN:EPOCH:SEQUENCE:MAC, as the log has it after `head=`")]
pub struct HeadError;

impl std::str::FromStr for Head {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let mut parts = text.trim().split(':');
        let (Some(chain), Some(epoch), Some(sequence), Some(mac), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(HeadError);
        };
        let head = Self {
            chain: chain.to_owned(),
            epoch: epoch.parse().map_err(|_| HeadError)?,
            sequence: sequence.parse().map_err(|_| HeadError)?,
            mac: mac.to_owned(),
        };
        let whole = !chain.is_empty() && mac.bytes().all(|byte| byte.is_ascii_hexdigit());
        if whole { Ok(head) } else { Err(HeadError) }
    }
}

/// Why the settings do not pass. Each says what would.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No master key.
    #[error(
        "there is no master key: name a file with --master-key-file (or BAREKEY_MASTER_KEY_FILE), or set {MASTER_KEY_VARIABLE}; `openssl rand -base64 32` makes one"
    )]
    NoMasterKey,
    /// Two master keys.
    #[error(
        "there are two master keys, in --master-key-file and in {MASTER_KEY_VARIABLE}: leave one of them out"
    )]
    TwoMasterKeys,
    /// A file that cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The database is of no kind that we know. Its text may hold a password and is not shown.
    #[error(
        "the database is neither sqlite:PATH nor postgres://USER:PASSWORD@HOST/NAME (--database, BAREKEY_DATABASE)"
    )]
    Database,
    /// Too long or zero.
    #[error("--value-bytes-max is {0}: it must be 1 to {VALUE_BYTES_MAX_CEILING}")]
    ValueBytesMax(usize),
    /// Plain HTTP would leave the machine.
    #[error(
        "the API would speak plain HTTP on {0}: listen on a loopback address, or give --tls-certificate-file and --tls-key-file, or --kubernetes"
    )]
    PlainHttp(SocketAddr),
    /// Something that belongs to --kubernetes.
    #[error("--kubernetes needs {flag} (or {variable})")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// Its environment variable.
        variable: &'static str,
    },
    /// A line of a file of heads.
    #[error("line {line} of {path} is no head")]
    HeadsFile {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What a head is.
        source: HeadError,
    },
}

/// Where the master key came from, and what was there.
#[derive(Debug)]
pub enum MasterKeySource {
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// What is in it.
        content: Plaintext,
    },
    /// The environment variable [`MASTER_KEY_VARIABLE`].
    Environment(Plaintext),
}

/// Where the vault is, checked.
#[derive(Debug)]
pub struct VaultSource {
    /// `sqlite:PATH` or `postgres://…`.
    pub database: String,
    /// The file of a SQLite database.
    pub sqlite_file: Option<PathBuf>,
    /// Risks that are accepted by name.
    pub accepted_risks: Vec<DatabaseRisk>,
    /// The longest value that is accepted, in bytes.
    pub value_bytes_max: usize,
    master_key_file: Option<PathBuf>,
}

impl VaultSource {
    /// Reads the master key. Asked for only when the vault is opened.
    ///
    /// # Errors
    /// None, two, or a file that cannot be read.
    pub fn master_key(&self) -> Result<MasterKeySource, SettingsError> {
        let variable = std::env::var(MASTER_KEY_VARIABLE)
            .ok()
            .filter(|text| !text.is_empty())
            .map(Plaintext::from);
        match (&self.master_key_file, variable) {
            (None, None) => Err(SettingsError::NoMasterKey),
            (Some(_), Some(_)) => Err(SettingsError::TwoMasterKeys),
            (None, Some(text)) => Ok(MasterKeySource::Environment(text)),
            (Some(path), None) => Ok(MasterKeySource::File {
                path: path.clone(),
                content: Plaintext::new(std::fs::read(path).map_err(|source| {
                    SettingsError::Read {
                        path: path.clone(),
                        source,
                    }
                })?),
            }),
        }
    }
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

/// The settings of `admin`, checked.
#[derive(Debug)]
pub struct AdminSettings {
    /// Where the vault is, for when no server runs.
    pub vault: VaultSource,
    /// The socket of the running server.
    pub socket: PathBuf,
    /// What to do.
    pub command: AdminCommand,
}

impl VaultArguments {
    fn check(self) -> Result<VaultSource, SettingsError> {
        let sqlite_file = sqlite_file(&self.database);
        let postgres = ["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| self.database.starts_with(scheme));
        if sqlite_file.is_none() && !postgres {
            return Err(SettingsError::Database);
        }
        if !(1..=VALUE_BYTES_MAX_CEILING).contains(&self.value_bytes_max) {
            return Err(SettingsError::ValueBytesMax(self.value_bytes_max));
        }
        Ok(VaultSource {
            database: self.database,
            sqlite_file,
            accepted_risks: self.accept_database_risk,
            value_bytes_max: self.value_bytes_max,
            master_key_file: self
                .master_key_file
                .filter(|path| !path.as_os_str().is_empty()),
        })
    }
}

/// The file of `sqlite:PATH`, `sqlite://PATH` or either with `?…` behind it; `None` for other databases and for one in memory.
fn sqlite_file(database: &str) -> Option<PathBuf> {
    let rest = database.strip_prefix("sqlite:")?;
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let path = rest.split('?').next().unwrap_or_default();
    (!path.is_empty() && path != ":memory:").then(|| PathBuf::from(path))
}

fn admin_socket(given: Option<PathBuf>, sqlite_file: Option<&Path>) -> PathBuf {
    match given {
        Some(path) if !path.as_os_str().is_empty() => path,
        _ => sqlite_file
            .and_then(Path::parent)
            .map_or_else(PathBuf::new, Path::to_path_buf)
            .join(ADMIN_SOCKET),
    }
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
            (Some(certificate), Some(key)) => Wire::Files { certificate, key },
            _ if kubernetes.is_some() => Wire::Made,
            _ if is_loopback(self.listen.ip()) => Wire::Plain,
            _ => return Err(SettingsError::PlainHttp(self.listen)),
        };
        Ok(ServeSettings {
            admin_socket: admin_socket(self.admin_socket, vault.sqlite_file.as_deref()),
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

impl AdminArguments {
    /// Checks what belongs together.
    ///
    /// # Errors
    /// [`SettingsError`], which says what would pass.
    pub fn check(self) -> Result<AdminSettings, SettingsError> {
        let vault = self.vault.check()?;
        Ok(AdminSettings {
            socket: admin_socket(self.admin_socket, vault.sqlite_file.as_deref()),
            vault,
            command: self.command,
        })
    }
}

/// The heads that were given one by one and in a file. Empty lines count for nothing.
///
/// # Errors
/// A file that cannot be read, or a line in it that is no head.
pub fn heads(given: Vec<Head>, file: Option<&Path>) -> Result<Vec<Head>, SettingsError> {
    let mut heads = given;
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            heads.push(line.parse().map_err(|source| SettingsError::HeadsFile {
                path: path.to_owned(),
                line: index + 1,
                source,
            })?);
        }
    }
    Ok(heads)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn serve(arguments: &[&str]) -> Result<ServeSettings, SettingsError> {
        let all = ["barekey-operator", "serve"].iter().chain(arguments);
        match Program::try_parse_from(all).unwrap().command {
            Command::Serve(serve) => serve.check(),
            _ => unreachable!("the command was serve"),
        }
    }

    #[test]
    fn the_flags_are_a_valid_definition() {
        use clap::CommandFactory;
        Program::command().debug_assert();
    }

    #[test]
    fn without_flags_the_vault_is_a_file_here_and_listens_on_loopback_in_the_clear() {
        let settings = serve(&[]).unwrap();
        assert_eq!(settings.vault.sqlite_file.unwrap(), Path::new("barekey.db"));
        assert_eq!(settings.admin_socket, Path::new("barekey-admin.sock"));
        assert_eq!(settings.wire, Wire::Plain);
        assert!(settings.listen.ip().is_loopback());
        assert!(settings.kubernetes.is_none());
    }

    #[test]
    fn plain_http_is_for_loopback_alone() {
        for address in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(serve(&["--listen", address]).is_ok(), "{address}");
        }
        for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let error = serve(&["--listen", address]).unwrap_err();
            assert!(matches!(error, SettingsError::PlainHttp(_)), "{address}");
        }
        let files = ["--tls-certificate-file", "c.pem", "--tls-key-file", "k.pem"];
        let settings = serve(&[&["--listen", "0.0.0.0:1"][..], &files].concat()).unwrap();
        assert!(matches!(settings.wire, Wire::Files { .. }));
    }

    #[test]
    fn kubernetes_wants_what_it_cannot_guess_and_says_which() {
        let error = serve(&["--kubernetes"]).unwrap_err().to_string();
        assert!(error.contains("--namespace") && error.contains("BAREKEY_NAMESPACE"));
        let whole = [
            "--kubernetes",
            "--namespace",
            "barekey",
            "--pod-name",
            "barekey-0",
            "--agent-image",
            "docker.io/barekey/agent:0.1.0",
            "--listen",
            "0.0.0.0:10250",
        ];
        let settings = serve(&whole).unwrap();
        assert_eq!(settings.wire, Wire::Made);
        assert_eq!(settings.kubernetes.unwrap().agent_delivery, "init");
    }

    #[test]
    fn the_admin_socket_is_beside_the_sqlite_file() {
        for database in [
            "sqlite:/data/barekey.db",
            "sqlite:///data/barekey.db?mode=rwc",
        ] {
            let settings = serve(&["--database", database]).unwrap();
            assert_eq!(settings.admin_socket, Path::new("/data/barekey-admin.sock"));
        }
        let settings = serve(&["--database", "postgres://localhost/barekey"]).unwrap();
        assert_eq!(settings.admin_socket, Path::new("barekey-admin.sock"));
    }

    #[test]
    fn the_admin_socket_is_named_before_or_behind_what_the_administrator_does() {
        let named = ["--admin-socket", "/run/other.sock"];
        let bootstrap = ["bootstrap", "--organization", "acme"];
        let verify = ["audit", "verify"];
        for does in [&bootstrap[..], &verify] {
            for order in [[&named[..], does], [does, &named]] {
                let words = [&["barekey-operator", "admin"], &order.concat()[..]].concat();
                let Command::Admin(admin) = Program::try_parse_from(&words).unwrap().command else {
                    unreachable!("the command was admin");
                };
                let socket = admin.check().unwrap().socket;
                assert_eq!(socket, Path::new("/run/other.sock"), "{words:?}");
            }
        }
    }

    #[test]
    fn a_database_of_another_kind_is_refused_without_showing_it() {
        let error = serve(&["--database", "mysql://root:hunter2@db/x"]).unwrap_err();
        assert!(matches!(error, SettingsError::Database));
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn a_value_limit_above_the_ceiling_is_refused() {
        assert!(serve(&["--value-bytes-max", "1048576"]).is_ok());
        assert!(serve(&["--value-bytes-max", "1048577"]).is_err());
        assert!(serve(&["--value-bytes-max", "0"]).is_err());
    }

    #[test]
    fn a_token_ends_at_an_instant_or_a_time_from_now() {
        assert_eq!(
            "30d".parse(),
            Ok(Expiry::In(Duration::from_secs(30 * 86_400)))
        );
        assert_eq!(
            "12h".parse::<Expiry>().unwrap().instant_ms(1_000),
            43_201_000
        );
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Expiry::At(1_000)));
        for bad in ["", "d", "-1d", "30", "30w", "tomorrow", "1970-01-01"] {
            assert_eq!(bad.parse::<Expiry>(), Err(ExpiryError), "{bad:?}");
        }
    }

    #[test]
    fn a_head_has_four_parts() {
        let head: Head = "org_1:1:42:00ff".parse().unwrap();
        assert_eq!((head.epoch, head.sequence), (1, 42));
        for bad in ["", "a:1:2", "a:1:2:zz", "a:x:2:00", ":1:2:00", "a:1:2:00:b"] {
            assert!(bad.parse::<Head>().is_err(), "{bad:?}");
        }
    }
}
