//! The start of a program through the agent (TLS, proof, fetch, `execve`) beside a plain start of the same program.
//!
//! The vault, its API and the listener with its TLS are the real ones; only the look-up of the pod at the Kubernetes API server, which is
//! not ours to measure, is answered at once.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use barekey::api::listener::{Listener, Transport};
use barekey::crypto::keys::MasterKey;
use barekey::crypto::tokens::PresentedToken;
use barekey::domain::access::PodCaller;
use barekey::domain::audit::{Origin, Source};
use barekey::domain::names::StageId;
use barekey::domain::reference::{AgentSettings, Allowance, FORM_VERSION};
use barekey::vault::credentials::AuthenticateError;
use barekey::vault::pods::PodIdentity;
use barekey::vault::{Clock, Vault, VaultSettings};
use base64::Engine;
use futures::FutureExt;
use futures::future::BoxFuture;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

const STARTS: usize = 200;
const SERVER_NAME: &str = "barekey.barekey.svc";

/// Says of every token that it is of one pod, whose stage is set once it is known.
struct OnePod(std::sync::OnceLock<StageId>);

impl PodIdentity for OnePod {
    fn identify<'a>(
        &'a self,
        _token: &'a PresentedToken,
    ) -> BoxFuture<'a, Result<PodCaller, AuthenticateError>> {
        async {
            Ok(PodCaller {
                namespace: "bench".parse().unwrap(),
                service_account: "bench".parse().unwrap(),
                pod: "bench".parse().unwrap(),
                uid: "0".to_owned(),
                allowances: vec![allowance(self.0.get().unwrap())],
            })
        }
        .boxed()
    }

    fn tell_refused<'a>(&'a self, _pod: &'a PodCaller, message: &'a str) -> BoxFuture<'a, ()> {
        panic!("refused: {message}");
    }
}

struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> i64 {
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap();
        i64::try_from(now.as_millis()).unwrap()
    }
}

fn allowance(stage: &StageId) -> Allowance {
    Allowance {
        v: FORM_VERSION,
        stage: stage.clone(),
        variables: None,
        rename: Default::default(),
        references: Default::default(),
    }
}

pub(crate) fn run() {
    let agent = std::env::var("BAREKEY_BENCH_AGENT")
        .expect("BAREKEY_BENCH_AGENT names the agent's program, as `make bench` builds it");
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();

    let pod = Arc::new(OnePod(std::sync::OnceLock::new()));
    let key = base64::engine::general_purpose::STANDARD.encode([7_u8; 32]);
    let (stage, settings) = runtime.block_on(serve(&pod, &key, folder.path()));
    pod.0.set(stage.clone()).unwrap();

    let allowance = serde_json::to_string(&allowance(&stage)).unwrap();
    let through_agent = || {
        let mut command = Command::new(&agent);
        command
            .args(["run", "--", "/bin/true"])
            .env("BAREKEY_ALLOWANCE", &allowance)
            .env("BAREKEY_AGENT_SETTINGS", &settings);
        started(command)
    };
    through_agent();
    let mut plain = Vec::new();
    let mut agent_starts = Vec::new();
    for _ in 0..STARTS {
        plain.push(started(Command::new("/bin/true")));
        agent_starts.push(through_agent());
    }
    plain.sort_unstable();
    agent_starts.sort_unstable();
    let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "agent start (ClusterIP, TLS 1.3, one variable, durable audit record) beside plain exec of /bin/true"
    );
    println!(
        "  {:.1} times plain exec: adds {:.2} ms (median {:.2} ms beside {:.2} ms; p99 {:.2} ms beside {:.2} ms)",
        milliseconds(agent_starts[STARTS / 2]) / milliseconds(plain[STARTS / 2]),
        milliseconds(agent_starts[STARTS / 2]) - milliseconds(plain[STARTS / 2]),
        milliseconds(agent_starts[STARTS / 2]),
        milliseconds(plain[STARTS / 2]),
        milliseconds(agent_starts[STARTS * 99 / 100]),
        milliseconds(plain[STARTS * 99 / 100]),
    );
}

/// Starts the real API over TLS and returns the stage and the agent's settings.
async fn serve(pod: &Arc<OnePod>, key: &str, folder: &std::path::Path) -> (StageId, String) {
    let vault = Vault::open(
        VaultSettings {
            database: format!("sqlite:{}", folder.join("vault.db").display()),
            master_key: MasterKey::from_base64(key).unwrap(),
            accepted_risks: Vec::new(),
            value_bytes_max: barekey::domain::variable::VALUE_BYTES_MAX,
            pod_identity: Some(pod.clone()),
        },
        Arc::new(SystemClock),
    )
    .await
    .unwrap();
    let stage = fill(&vault).await;

    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec![SERVER_NAME.to_owned()])
        .unwrap()
        .signed_by(&leaf_key, &issuer)
        .unwrap();
    let certified = CertifiedKey::from_der(
        vec![leaf.der().clone()],
        PrivatePkcs8KeyDer::from(leaf_key.serialize_der()).into(),
        &rustls::crypto::aws_lc_rs::default_provider(),
    )
    .unwrap();
    let tls = Transport::Tls(Arc::new(SingleCertAndKey::from(certified)));
    let router = barekey::api::router(
        vault,
        barekey::api::ApiSettings {
            metrics: barekey::api::metrics::HttpMetrics::register(
                &mut prometheus_client::registry::Registry::default(),
            ),
        },
    );
    let listener = Listener::bind(([127, 0, 0, 1], 0).into()).unwrap();
    let address = listener.address();
    let (running, stop) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        listener.serve(router, tls, stop).await.unwrap();
        drop(running);
    });
    let token = folder.join("token");
    std::fs::write(&token, "header.payload.signature").unwrap();
    let settings = AgentSettings {
        v: FORM_VERSION,
        server: SERVER_NAME.to_owned(),
        port: address.port(),
        addresses: vec![address.ip().to_string()],
        ca: base64::engine::general_purpose::STANDARD.encode(authority_certificate.der()),
        token: token.display().to_string(),
        wait_seconds: 5,
        own: Vec::new(),
        expand: Default::default(),
        prefixes: Vec::new(),
    };
    (stage, serde_json::to_string(&settings).unwrap())
}

/// One project, one stage that grants the pod's account everything, one variable.
async fn fill(vault: &Vault) -> StageId {
    use barekey::domain::access::AccessGrant;
    use barekey::vault::declarations::{ProjectDeclaration, StageDeclaration};
    use barekey::vault::variables::{Entry, Target, Write, WriteMode};

    let origin = Origin {
        source: Source::Admin,
        ip: String::new(),
        user_agent: String::new(),
        request_id: "bench".to_owned(),
    };
    let (_, token) = vault
        .bootstrap(&origin, &"bench".parse().unwrap())
        .await
        .unwrap();
    vault
        .declare_project(&ProjectDeclaration {
            namespace: "bench".parse().unwrap(),
            resource: "bench".parse().unwrap(),
            organization: "bench".parse().unwrap(),
            slug: "bench".parse().unwrap(),
            name: None,
        })
        .await
        .unwrap();
    let stage = vault
        .declare_stage(&StageDeclaration {
            namespace: "bench".parse().unwrap(),
            resource: "bench".parse().unwrap(),
            organization: "bench".parse().unwrap(),
            project: "bench".parse().unwrap(),
            slug: "development".parse().unwrap(),
            protected: None,
            access: vec![AccessGrant {
                namespace: "bench".parse().unwrap(),
                service_accounts: vec!["bench".parse().unwrap()],
                variables: None,
            }],
        })
        .await
        .unwrap();
    let presented = PresentedToken::new(token.token.reveal_text().unwrap().to_owned());
    let caller = vault.authenticate(&presented).await.unwrap();
    vault
        .write(
            &caller,
            &origin,
            &Target {
                organization: None,
                project: "bench".parse().unwrap(),
                stage: "development".parse().unwrap(),
            },
            Write {
                mode: WriteMode::Upsert,
                entries: vec![Entry {
                    name: "DATABASE_URL".parse().unwrap(),
                    kind: barekey::domain::variable::Kind::Secret,
                    declared_type: None,
                    visibility: None,
                    value: "postgres://shop:0123456789abcdef@db:5432/shop"
                        .to_owned()
                        .into(),
                }],
                deletes: Vec::new(),
            },
        )
        .await
        .unwrap();
    stage.id
}

fn started(mut command: Command) -> Duration {
    let start = Instant::now();
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .expect("the program starts");
    assert!(status.success());
    start.elapsed()
}
