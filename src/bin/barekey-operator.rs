//! `barekey-operator`: the vault, the operator and the webhook. Wiring alone: settings, vault, API, admin socket, probes and
//! what belongs to a cluster; joined, and shut down together.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use barekey::api::certificate_files::CertificateFiles;
use barekey::api::listener::{Listener, Transport};
use barekey::api::metrics::HttpMetrics;
use barekey::api::{self, ApiSettings};
use barekey::crypto::keys::MasterKey;
use barekey::kubernetes::identity::ClusterIdentity;
use barekey::kubernetes::metrics::Metrics as KubernetesMetrics;
use barekey::kubernetes::uninstall::{UninstallSettings, uninstall};
use barekey::kubernetes::{self, AgentDeliverySettings, KubernetesSettings, crds, webhook};
use barekey::settings::{
    AdminArguments, AdminCommand, AuditCommand, ClusterSettings, Command, CrdsArguments,
    DatabaseRisk, LogArguments, LogFormat, LogLevel, MASTER_KEY_VARIABLE, MasterKeySource, Program,
    ServeArguments, ServeSettings, TokenCommand, UninstallArguments, VaultSource, Wire, heads,
};
use barekey::vault::pods::PodIdentity;
use barekey::vault::{AcceptedRisk, Clock, Vault, VaultSettings};
use barekey::{admin, telemetry};
use clap::Parser as _;
use mimalloc::MiMalloc;
use prometheus_client::registry::Registry;
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit, umask,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use zeroizing_alloc::ZeroAlloc;

/// Wipes what it frees, so that values and keys do not stay behind in memory.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

/// How often the heads of the audit trail are published.
const HEADS_EVERY: Duration = Duration::from_secs(50);

/// The time of this machine.
struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|since| i64::try_from(since.as_millis()).ok())
            .unwrap_or_default()
    }
}

fn main() -> anyhow::Result<ExitCode> {
    harden()?;
    let program = Program::parse();
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match program.command {
        Command::Serve(arguments) => runtime.block_on(serve(*arguments)),
        Command::Admin(arguments) => runtime.block_on(administer(arguments)),
        Command::Crds(arguments) => write_crds(&arguments),
        Command::Uninstall(arguments) => runtime.block_on(go(arguments)),
    }
}

/// No core dump, no tracing, no reading of this process' memory by others.
fn harden() -> anyhow::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("cannot make the process undumpable")?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none).context("cannot forbid core dumps")
}

/// As many open files as the system allows, so that connections never take the database's.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}

/// Logs where something panicked and not what it said, which may hold a piece of a value.
fn keep_panics_quiet() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        tracing::error!(location, "a part of the server panicked");
    }));
}

/// Files that are made from now on are for their owner alone.
fn keep_files_private() {
    umask(Mode::RWXG | Mode::RWXO);
}

fn start_log(log: &LogArguments) -> anyhow::Result<()> {
    let level = match log.level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
        LogLevel::Trace => tracing::Level::TRACE,
    };
    match log.format {
        LogFormat::Text => telemetry::start_text(level)?,
        LogFormat::Json => telemetry::start_json(level)?,
    }
    Ok(())
}

/// The vault's own settings; `pod_identity` is who recognises pods, in a cluster.
fn vault_settings(
    source: &VaultSource,
    pod_identity: Option<Arc<dyn PodIdentity>>,
) -> anyhow::Result<VaultSettings> {
    let master_key = match source.master_key()? {
        MasterKeySource::File {
            path,
            content,
            open_to_all,
        } => {
            if open_to_all {
                tracing::warn!(
                    file = %path.display(),
                    "every user of this machine may read the master key: `chmod 0600` that file"
                );
            }
            MasterKey::from_file_content(content.reveal())
                .with_context(|| format!("cannot use {}", path.display()))?
        }
        MasterKeySource::Environment(text) => {
            MasterKey::from_base64(text.reveal_text().unwrap_or_default())
                .with_context(|| format!("cannot use {MASTER_KEY_VARIABLE}"))?
        }
    };
    Ok(VaultSettings {
        database: source.database.clone(),
        master_key,
        accepted_risks: source
            .accepted_risks
            .iter()
            .map(|risk| match risk {
                DatabaseRisk::SynchronousCommitOff => AcceptedRisk::SynchronousCommitOff,
                DatabaseRisk::FsyncOff => AcceptedRisk::FsyncOff,
                DatabaseRisk::Sslmode => AcceptedRisk::SslMode,
            })
            .collect(),
        value_bytes_max: source.value_bytes_max,
        pod_identity,
    })
}

async fn serve(arguments: ServeArguments) -> anyhow::Result<ExitCode> {
    let settings = arguments.check()?;
    start_log(&settings.log)?;
    keep_panics_quiet();
    keep_files_private();
    raise_open_files();
    match run(settings).await {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!("{error:#}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Everything that the process runs.
async fn run(settings: ServeSettings) -> anyhow::Result<()> {
    let (stop_sender, stop) = watch::channel(false);
    let (ready_sender, ready) = watch::channel(false);
    let mut told_to_stop = Signals::new()?;
    let mut registry = Registry::default();
    let metrics = HttpMetrics::register(&mut registry);
    let mut tasks: JoinSet<(&str, anyhow::Result<()>)> = JoinSet::new();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);

    let cluster = match settings.kubernetes {
        None => None,
        Some(told) => Some(Cluster::join(told, settings.listen, &mut registry).await?),
    };
    let pod_identity = cluster.as_ref().map(|cluster| cluster.identity(&clock));
    let vault = Vault::open(
        vault_settings(&settings.vault, pod_identity)?,
        Arc::clone(&clock),
    )
    .await?;
    let api_listener = Listener::bind(settings.listen)?;
    let probe_listener = Listener::bind(settings.probe_listen)?;
    let socket = admin::socket::Socket::bind(&settings.admin_socket).await?;

    let mut router = api::router(vault.clone(), ApiSettings { metrics });
    let mut all_ready = vec![ready];
    let mut made = None;
    let mut parts = JoinSet::new();
    if let Some(cluster) = cluster {
        let running = kubernetes::start(
            cluster.client,
            vault.clone(),
            cluster.settings,
            clock,
            cluster.metrics,
            stop.clone(),
        )
        .await?;
        router = router.merge(webhook::router(running.admission));
        all_ready.extend([running.ready, running.listed]);
        made = Some(running.certificate);
        parts = running.tasks;
    }
    let transport = match (settings.wire, made) {
        (Wire::Plain, _) => Transport::Plain,
        (Wire::Files { certificate, key }, _) => {
            let files = CertificateFiles::open(&certificate, &key)?;
            let keep = Arc::clone(&files).keep(stop.clone());
            tasks.spawn(async move {
                keep.await;
                ("certificate", Ok(()))
            });
            Transport::Tls(files)
        }
        (Wire::Made, Some(made)) => Transport::Tls(made),
        (Wire::Made, None) => anyhow::bail!("there is no certificate to serve with"),
    };
    let probes = api::probes(vault.clone(), all_ready, Arc::new(registry));

    tracing::info!(
        api = %api_listener.address(),
        probes = %probe_listener.address(),
        admin = %settings.admin_socket.display(),
        "listening"
    );

    let serving = api_listener.serve(router, transport, stop.clone());
    tasks.spawn(async move { ("API", serving.await.map_err(Into::into)) });
    let probing = probe_listener.serve(probes, Transport::Plain, stop.clone());
    tasks.spawn(async move { ("probes", probing.await.map_err(Into::into)) });
    let administering = socket.serve(vault.clone(), stop.clone());
    tasks.spawn(async move {
        administering.await;
        ("admin socket", Ok(()))
    });
    let publishing = publish_heads(vault.clone(), stop.clone());
    tasks.spawn(async move {
        publishing.await;
        ("audit heads", Ok(()))
    });
    ready_sender.send_replace(true);

    // Whatever ends first ends all: the signal as asked, a task as a fault.
    let fault = tokio::select! {
        () = told_to_stop.any() => None,
        () = vault.closed() => Some(anyhow::anyhow!("the vault's writer ended by itself")),
        ended = tasks.join_next() => Some(match ended {
            Some(Ok((name, Ok(())))) => anyhow::anyhow!("the part `{name}` ended by itself"),
            Some(Ok((name, Err(error)))) => error.context(format!("the part `{name}` failed")),
            Some(Err(error)) => anyhow::Error::from(error).context("a part of the server failed"),
            None => anyhow::anyhow!("nothing runs"),
        }),
        Some(ended) = parts.join_next() => Some(match ended {
            Ok(name) => anyhow::anyhow!("the part `{name}` for Kubernetes ended by itself"),
            Err(error) => anyhow::Error::from(error).context("a part for Kubernetes failed"),
        }),
    };
    tracing::info!("stopping");
    ready_sender.send_replace(false);
    stop_sender.send_replace(true);
    while tasks.join_next().await.is_some() {}
    while parts.join_next().await.is_some() {}
    // Nobody writes any more: these are the last heads.
    vault.flush().await;
    publish(&vault).await;
    vault.close().await;
    tracing::info!("stopped");
    fault.map_or(Ok(()), Err)
}

/// The cluster that the operator runs in, before anything of it runs.
struct Cluster {
    client: kube::Client,
    settings: Arc<KubernetesSettings>,
    metrics: KubernetesMetrics,
}

impl Cluster {
    async fn join(
        told: ClusterSettings,
        listen: SocketAddr,
        registry: &mut Registry,
    ) -> anyhow::Result<Self> {
        let settings = KubernetesSettings {
            namespace: told.namespace,
            pod_name: told.pod_name,
            service_name: told.service_name,
            service_port: told.service_port,
            webhook_configuration: told.webhook_configuration,
            lease: told.lease,
            organizations: told
                .organizations
                .parse()
                .context("cannot use --organizations (BAREKEY_ORGANIZATIONS)")?,
            agent: AgentDeliverySettings {
                image: told.agent_image,
                image_pull_policy: told.agent_image_pull_policy,
                image_pull_secrets: told.agent_image_pull_secrets,
                delivery: told
                    .agent_delivery
                    .parse()
                    .context("cannot use --agent-delivery (BAREKEY_AGENT_DELIVERY)")?,
            },
            listen,
        };
        Ok(Self {
            client: kube_client().await?,
            settings: Arc::new(settings),
            metrics: KubernetesMetrics::register(registry),
        })
    }

    fn identity(&self, clock: &Arc<dyn Clock>) -> Arc<dyn PodIdentity> {
        Arc::new(ClusterIdentity::new(
            self.client.clone(),
            &self.settings,
            Arc::clone(clock),
            self.metrics.clone(),
        ))
    }
}

async fn kube_client() -> anyhow::Result<kube::Client> {
    kube::Client::try_default()
        .await
        .context("cannot learn how to reach the API server: run in a pod with a service account, or set KUBECONFIG")
}

/// `crds`: the custom resource definitions, printed or written.
#[allow(clippy::print_stdout, reason = "its output is the definitions")]
fn write_crds(arguments: &CrdsArguments) -> anyhow::Result<ExitCode> {
    for (name, text) in crds::crds()? {
        match &arguments.directory {
            None => print!("---\n{text}"),
            Some(directory) => {
                std::fs::create_dir_all(directory)
                    .with_context(|| format!("cannot make {}", directory.display()))?;
                let path = directory.join(name);
                std::fs::write(&path, text)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `uninstall`: what goes before the operator goes.
#[allow(
    clippy::print_stdout,
    reason = "its output is the report of what stays"
)]
async fn go(arguments: UninstallArguments) -> anyhow::Result<ExitCode> {
    start_log(&arguments.log)?;
    let settings = UninstallSettings {
        namespace: arguments.namespace,
        webhook_configuration: arguments.webhook_configuration,
        lease: arguments.lease,
    };
    let report = uninstall(kube_client().await?, &settings, &SystemClock).await?;
    print!("{report}");
    Ok(ExitCode::SUCCESS)
}

/// The signals that end the server.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Publishes the heads of the audit trail at the start, and then from time to time.
async fn publish_heads(vault: Vault, mut stop: watch::Receiver<bool>) {
    loop {
        publish(&vault).await;
        tokio::select! {
            () = tokio::time::sleep(HEADS_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
    }
}

/// Publishes the heads of the audit trail in the log.
async fn publish(vault: &Vault) {
    match vault.audit_heads().await {
        Ok(heads) => {
            for head in heads {
                let (chain, mac) = (&head.chain, &head.mac);
                let text = format!("{chain}:{}:{}:{mac}", head.epoch, head.sequence);
                tracing::info!(target: telemetry::AUDIT_TARGET, head = %text, "audit head");
            }
        }
        Err(error) => {
            let cause = &error.source;
            tracing::warn!("the heads of the audit trail are not published: {error}: {cause}");
        }
    }
}

async fn administer(arguments: AdminArguments) -> anyhow::Result<ExitCode> {
    keep_files_private();
    let settings = arguments.check()?;
    let request = admin_request(settings.command)?;
    let reply = match admin::socket::ask(&settings.socket, &request).await {
        Ok(reply) => reply,
        Err(error @ admin::socket::AskError::NoServer { .. }) => {
            let Some(file) = &settings.vault.sqlite_file else {
                return Err(error).context(
                    "start `barekey-operator serve`, or name its socket with --admin-socket",
                );
            };
            if !file.exists() {
                return Err(error).with_context(|| {
                    format!(
                        "there is no database at {} either: start `barekey-operator serve`, or name its socket with --admin-socket",
                        file.display()
                    )
                });
            }
            let vault = Vault::open(
                vault_settings(&settings.vault, None)?,
                Arc::new(SystemClock),
            )
            .await
            .with_context(|| format!("{error}, and its database does not open"))?;
            let who = format!("uid {}", rustix::process::getuid().as_raw());
            let reply = admin::perform(&vault, &admin::origin(who), request).await;
            vault.flush().await;
            vault.close().await;
            reply
        }
        Err(error) => return Err(error.into()),
    };
    Ok(if admin::tell(&reply) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn admin_request(command: AdminCommand) -> anyhow::Result<admin::Request> {
    Ok(match command {
        AdminCommand::Bootstrap { organization } => admin::Request::Bootstrap { organization },
        AdminCommand::Token { command } => match command {
            TokenCommand::Create {
                organization,
                role,
                name,
                project,
                stage,
                expires,
            } => admin::Request::CreateToken {
                organization,
                role: role.as_str().to_owned(),
                name,
                project,
                stage,
                expires_at_ms: expires.map(|expiry| expiry.instant_ms(SystemClock.now_ms())),
            },
            TokenCommand::Revoke {
                organization,
                token,
            } => admin::Request::RevokeToken {
                organization,
                token,
            },
        },
        AdminCommand::Audit {
            command: AuditCommand::Verify { head, heads_file },
        } => admin::Request::VerifyAudit {
            published: heads(head, heads_file.as_deref())?
                .into_iter()
                .map(|head| admin::PublishedHead {
                    chain: head.chain,
                    epoch: head.epoch,
                    sequence: head.sequence,
                    mac: head.mac,
                })
                .collect(),
        },
    })
}
