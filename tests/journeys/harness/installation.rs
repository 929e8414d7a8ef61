//! The chart, installed with our images as an administrator would.

use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};
use tempfile::NamedTempFile;

use super::{
    Forward, Namespace, Place, Program, barekey, checkout, eventually, get, helm, kubectl, load,
    random_bytes, secrets,
};

/// The namespace and release name of the installation.
pub(crate) const NAMESPACE: &str = "barekey";

const MASTER_KEY: &str = "barekey-master-key";

/// The namespaces that speak for organizations of their own names: those of all journeys.
static SPEAKERS: OnceLock<Vec<String>> = OnceLock::new();

/// Whether this run has begun to install: then all of Barekey that is on the cluster is the run's.
static BEGUN: AtomicBool = AtomicBool::new(false);

/// Kinds of which the chart makes objects that no namespace takes with it.
const CLUSTER_WIDE: &str = "mutatingwebhookconfigurations,validatingadmissionpolicybindings,\
    validatingadmissionpolicies,clusterrolebindings,clusterroles";

/// The definitions of our kinds.
const DEFINITIONS: [&str; 2] = ["barekeyprojects.barekey.dev", "barekeystages.barekey.dev"];

/// A release of the chart.
pub(crate) struct Installation {
    release: String,
    /// The master key as the administrator keeps it, in base64.
    master_key: String,
}

/// An organization and its owner's token.
pub(crate) struct Organization {
    /// Its slug.
    pub(crate) slug: String,
    /// Its owner's token.
    pub(crate) owner: String,
}

impl Installation {
    /// Which namespaces will speak for the organization of the same name: said before the first journey.
    pub(super) fn speak_for(namespaces: Vec<String>) {
        SPEAKERS.set(namespaces).expect("is said once");
    }

    /// The one that all journeys share, installed when the first of them asks.
    #[track_caller]
    pub(crate) fn shared() -> &'static Self {
        static SHARED: OnceLock<Option<Installation>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| catch_unwind(AssertUnwindSafe(Self::first)).ok());
        shared
            .as_ref()
            .expect("the chart could not be installed, as an earlier failure says")
    }

    fn first() -> Self {
        Self::refuse_somebody_elses();
        BEGUN.store(true, Ordering::Relaxed);
        if let Some(node) = Place::get().node() {
            keep_logs(node);
        }
        for image in ["operator", "agent"] {
            load(&images().join(image).with_extension("tar"));
        }
        let installation = Self {
            release: NAMESPACE.to_owned(),
            master_key: STANDARD.encode(random_bytes::<32>()),
        };
        secrets::remember_master_key(&installation.master_key);
        installation.make_anew();
        installation
    }

    /// Ends the run where Barekey is used already: the journeys remove and replace what they find.
    #[track_caller]
    fn refuse_somebody_elses() {
        let namespace = get(["namespace", NAMESPACE]);
        assert!(
            namespace.is_none(),
            "the cluster has a namespace {NAMESPACE} already: the journeys would replace what is in it. Remove it, or \
             give another cluster"
        );
        for definition in DEFINITIONS {
            assert!(
                get(["crd", definition]).is_none(),
                "the cluster has the definition {definition} already: the journeys would delete it, with all resources \
                 of its kind. Remove it, or give another cluster"
            );
        }
    }

    /// Removes what the journeys have installed from a cluster that stays, whatever state they left it in.
    pub(super) fn leave() {
        if !BEGUN.load(Ordering::Relaxed) {
            return;
        }
        let releases = helm(["list", "--short", "--namespace", NAMESPACE]).output();
        for release in releases.stdout.split_whitespace() {
            let args = ["uninstall", release, "--namespace", NAMESPACE];
            let waiting = ["--wait", "--timeout", "150s"];
            eprintln!("{}", helm(args).args(waiting).output());
        }
        // What is left of a release that could not be uninstalled; and the definitions, which are kept.
        let labelled = ["--selector", "app.kubernetes.io/name=barekey"];
        let delete = kubectl(["delete", "--ignore-not-found", CLUSTER_WIDE]).args(labelled);
        eprintln!("{}", delete.output());
        let delete = kubectl(["delete", "--ignore-not-found", "--timeout=60s", "crd"]);
        eprintln!("{}", delete.args(DEFINITIONS).output());
    }

    /// Makes the namespace, which must not be there, and the release in it.
    #[track_caller]
    pub(crate) fn make_anew(&self) {
        Namespace::make(NAMESPACE);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": MASTER_KEY, "namespace": NAMESPACE},
            "stringData": {"master.key": self.master_key},
        });
        kubectl(["create", "-f", "-"])
            .stdin(secret.to_string())
            .secret()
            .succeed();
        self.install(&json!({}));
    }

    /// The values of every installation here.
    fn values() -> Value {
        let speakers = SPEAKERS.get().into_iter().flatten();
        let organizations: Map<_, _> = speakers
            .map(|name| (name.clone(), json!({"namespaces": [name]})))
            .collect();
        json!({
            "masterKey": {"secret": {"name": MASTER_KEY}},
            "organizations": organizations,
            "log": {"level": "debug"},
        })
    }

    /// Installs or upgrades the release with `values` over the usual ones, and waits until it is ready.
    #[track_caller]
    pub(crate) fn install(&self, values: &Value) {
        self.helm_install(values).succeed();
        self.wait_ready();
    }

    /// The same command, for what it answers.
    pub(crate) fn helm_install(&self, values: &Value) -> Program {
        let mut all = Self::values();
        merge(&mut all, values);
        let chart = checkout().join("charts/barekey");
        helm([
            "upgrade",
            "--install",
            &self.release,
            "--namespace",
            NAMESPACE,
            "--values",
            "-",
        ])
        .args(["--wait", "--timeout", "150s"])
        .args([chart])
        .stdin(all.to_string())
    }

    /// Removes the release, as `helm uninstall` does; must go through.
    #[track_caller]
    pub(crate) fn uninstall(&self) {
        self.helm_uninstall().succeed();
    }

    /// The same command, for what it answers.
    pub(crate) fn helm_uninstall(&self) -> Program {
        helm([
            "uninstall",
            &self.release,
            "--namespace",
            NAMESPACE,
            "--wait",
            "--timeout",
            "150s",
        ])
    }

    /// A release of another name, with the same master key.
    pub(crate) fn named(&self, release: &str) -> Self {
        Self {
            release: release.to_owned(),
            master_key: self.master_key.clone(),
        }
    }

    /// The master key, in base64.
    pub(crate) fn master_key(&self) -> &str {
        &self.master_key
    }

    /// The namespace of the installation.
    pub(crate) fn namespace(&self) -> &'static str {
        NAMESPACE
    }

    /// kubectl in the installation's namespace.
    pub(crate) fn kubectl(&self, args: impl IntoIterator<Item: AsRef<std::ffi::OsStr>>) -> Program {
        kubectl(["--namespace", NAMESPACE]).args(args)
    }

    /// The workload: a StatefulSet with SQLite, a Deployment with PostgreSQL.
    #[track_caller]
    pub(crate) fn workload(&self) -> &'static str {
        let workload = "statefulset/barekey";
        if get(["--namespace", NAMESPACE, workload]).is_some() {
            workload
        } else {
            "deployment/barekey"
        }
    }

    /// Waits until every replica is the newest and ready.
    #[track_caller]
    pub(crate) fn wait_ready(&self) {
        self.kubectl(["rollout", "status", "--timeout=150s", self.workload()])
            .succeed();
    }

    /// Ends every replica as a drain does, and waits until others are ready.
    #[track_caller]
    pub(crate) fn restart(&self) {
        self.kubectl(["rollout", "restart", self.workload()])
            .succeed();
        self.wait_ready();
    }

    /// Takes the operator down, and waits until no replica is left.
    #[track_caller]
    pub(crate) fn stop(&self) {
        self.kubectl(["scale", "--replicas=0", self.workload()])
            .succeed();
        eventually("no replica", || {
            let pods = self.pods();
            if pods.is_empty() {
                Ok(())
            } else {
                Err(format!("{pods:?}"))
            }
        });
    }

    /// Brings it up again.
    #[track_caller]
    pub(crate) fn start(&self) {
        self.kubectl(["scale", "--replicas=1", self.workload()])
            .succeed();
        self.wait_ready();
    }

    /// The names of the operator's pods.
    #[track_caller]
    pub(crate) fn pods(&self) -> Vec<String> {
        let workload = self.workload();
        let selector = get(["--namespace", NAMESPACE, workload]).map(|mut found| {
            let labels = found["spec"]["selector"]["matchLabels"].take();
            let pair = |(name, value): (&String, &Value)| {
                format!("{name}={}", value.as_str().unwrap_or_default())
            };
            labels
                .as_object()
                .expect("a selector")
                .iter()
                .map(pair)
                .collect::<Vec<_>>()
                .join(",")
        });
        let selector = selector.expect("the operator is installed");
        let names = self
            .kubectl(["get", "pods", "--selector", &selector, "-o", "name"])
            .succeed();
        names
            .lines()
            .map(|name| name.trim_start_matches("pod/").to_owned())
            .collect()
    }

    /// What all replicas have logged so far.
    #[track_caller]
    pub(crate) fn logs(&self) -> String {
        self.pods()
            .iter()
            .map(|pod| self.kubectl(["logs", pod]).secret().succeed())
            .collect()
    }

    /// `barekey-operator admin ARGS` in the running server's pod.
    pub(crate) fn admin(&self, args: &[&str]) -> Program {
        self.kubectl([
            "exec",
            "-i",
            self.workload(),
            "--",
            "/barekey-operator",
            "admin",
        ])
        .args(args)
        .secret()
    }

    /// The name of an organization's audit chain, which is its id.
    #[track_caller]
    pub(crate) fn audit_chain(&self, organization: &Organization) -> String {
        let api = self.api();
        let request = api.get("/v1/cli/session");
        let session = request.bearer(&organization.owner).send().ok();
        session["orgId"].as_str().expect("an id").to_owned()
    }

    /// The number of the newest record in an audit chain: the check of a head that is far ahead of it says so.
    #[track_caller]
    pub(crate) fn newest_record(&self, chain: &str) -> u64 {
        let ahead = format!("{chain}:1:999999999:00");
        let answer = self.admin(&["audit", "verify", "--head", &ahead]).fail();
        let begin = format!("chain {chain}: cut off after record ");
        let findings = &answer.stdout;
        let number = findings.lines().find_map(|line| {
            let rest = line.strip_prefix(&begin)?;
            rest.split(':').next()?.parse().ok()
        });
        number.unwrap_or_else(|| panic!("no such finding in: {findings}\n{}", answer.stderr))
    }

    /// Makes the organization that `namespace` speaks for, and gives its owner's token.
    #[track_caller]
    pub(crate) fn organization(&self, namespace: &Namespace) -> Organization {
        let slug = namespace.name().to_owned();
        let owner = token(
            &self
                .admin(&["bootstrap", "--organization", &slug])
                .succeed(),
        );
        Organization { slug, owner }
    }

    /// The CA that the operator published in its webhook configuration, in PEM.
    #[track_caller]
    pub(crate) fn ca(&self) -> String {
        eventually("the CA in the webhook configuration", || {
            let all = get(["mutatingwebhookconfigurations"]).ok_or("there is none")?;
            let mut all = all["items"].as_array().into_iter().flatten();
            let ours = all.find(|found| {
                found["metadata"]["name"]
                    .as_str()
                    .is_some_and(|name| name.ends_with("barekey"))
            });
            let bundle =
                ours.ok_or("none of them is ours")?["webhooks"][0]["clientConfig"]["caBundle"]
                    .as_str()
                    .unwrap_or_default();
            let bytes = STANDARD.decode(bundle).map_err(|error| error.to_string())?;
            if bytes.is_empty() {
                Err("it is empty".to_owned())
            } else {
                String::from_utf8(bytes).map_err(|error| error.to_string())
            }
        })
    }

    /// The API, from this machine.
    #[track_caller]
    pub(crate) fn api(&self) -> Api {
        let ca = self.ca();
        let ca_file = NamedTempFile::new().expect("a file can be made");
        std::fs::write(&ca_file, &ca).expect("a file can be written");
        Api {
            forward: Forward::to(NAMESPACE, "service/barekey", 443),
            ca,
            ca_file,
        }
    }
}

/// The API of the installation, by a port on this machine.
pub(crate) struct Api {
    forward: Forward,
    ca: String,
    ca_file: NamedTempFile,
}

impl Api {
    /// Where it answers.
    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.forward.port())
    }

    /// A POST to `path`, trusting the operator's CA alone.
    pub(crate) fn post(&self, path: &str) -> super::Request {
        super::Request::post(&format!("{}{path}", self.url())).trusting(&self.ca)
    }

    /// A GET of `path`, trusting the operator's CA alone.
    pub(crate) fn get(&self, path: &str) -> super::Request {
        super::Request::get(&format!("{}{path}", self.url())).trusting(&self.ca)
    }

    /// The CLI, with a token.
    pub(crate) fn barekey(&self, token: &str, args: &[&str]) -> Program {
        barekey(args)
            .env("BAREKEY_API_URL", self.url())
            .env("BAREKEY_CA_FILE", self.ca_file.path())
            .env("BAREKEY_ACCESS_TOKEN", token)
    }

    /// Writes a value, which goes by stdin.
    #[track_caller]
    pub(crate) fn set(
        &self,
        organization: &Organization,
        project: &str,
        stage: &str,
        name: &str,
        value: &str,
    ) {
        self.barekey(&organization.owner, &["env", "set", name])
            .env("BAREKEY_ORG", &organization.slug)
            .env("BAREKEY_PROJECT", project)
            .env("BAREKEY_STAGE", stage)
            .stdin(value)
            .succeed();
    }
}

/// Where the logs of all pods are kept in the node's folder, below its own.
pub(crate) const KEPT_LOGS: &str = "log/pods";

/// From now on keeps the log of every container, the operator's and those that the agent starts in, in the node's folder, for
/// the canary to search: the kubelet removes it with its pod. A second link to a file has whatever is written to it later.
fn keep_logs(node: &Path) {
    let (pods, kept) = (node.join("pods"), node.join(KEPT_LOGS));
    std::fs::create_dir_all(&kept).expect("a folder can be made");
    thread::spawn(move || {
        loop {
            for pod in below(&pods) {
                let name = pod.file_name().unwrap_or_default().to_string_lossy();
                for log in below(&pod).iter().flat_map(|container| below(container)) {
                    // It may be gone, or have been moved, since it was listed.
                    let Ok(found) = std::fs::metadata(&log) else {
                        continue;
                    };
                    let link = kept.join(format!("{name}-{}", found.ino()));
                    drop(std::fs::hard_link(&log, link));
                }
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
}

/// What a folder holds; nothing when it is gone.
fn below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The token in what an `admin` command printed.
#[track_caller]
pub(crate) fn token(printed: &str) -> String {
    let mut words = printed.split(|letter: char| letter.is_whitespace() || "\"',".contains(letter));
    let token = words
        .find(|word| word.starts_with("bk_"))
        .expect("a token is printed");
    secrets::remember(token);
    token.to_owned()
}

/// Where `make images` puts the images.
fn images() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| checkout().join("target"), PathBuf::from);
    target.join("images")
}

/// Lays `over` over `values`, object by object.
fn merge(values: &mut Value, over: &Value) {
    match (values, over) {
        (Value::Object(values), Value::Object(over)) => {
            for (name, value) in over {
                merge(values.entry(name).or_insert(Value::Null), value);
            }
        }
        (values, over) => *values = over.clone(),
    }
}
