//! What journeys rely on in our own node.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde_json::json;

use crate::harness::{
    Background, Journey, Namespace, Place, Program, checkout, eventually, random_bytes,
    random_text, sha256_hex,
};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared(
            "names_of_services_resolve_in_pods_and_in_the_node",
            names_of_services_resolve,
        )
        .inside(),
        Journey::shared(
            "a_secret_is_not_in_the_files_of_etcd",
            a_secret_is_not_in_the_files_of_etcd,
        )
        .inside(),
        Journey::shared(
            "a_pod_without_rights_keeps_a_file_on_a_volume",
            a_pod_keeps_a_file_on_a_volume,
        ),
        Journey::alone(
            "a_database_asks_for_tls_with_its_own_ca",
            a_database_asks_for_tls,
        )
        .inside(),
        Journey::changing(
            "a_node_whose_caller_is_killed_leaves_nothing",
            a_node_whose_caller_is_killed,
        )
        .inside(),
        Journey::changing(
            "what_a_killed_node_leaves_the_next_start_removes",
            what_a_killed_node_leaves,
        )
        .inside(),
    ]
}

fn names_of_services_resolve(namespace: &Namespace) {
    namespace.apply(busybox("client", &["sleep", "infinity"]).to_string());
    namespace.wait_pod("client");
    for name in [
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
    ] {
        eventually(&format!("the address of {name} in a pod"), || {
            let output = namespace.exec("client", &["nslookup", name]).output();
            if output.stdout.contains("10.96.0.1") {
                Ok(())
            } else {
                Err(output.stdout + &output.stderr)
            }
        });
        let found = Program::new("getent").args(["hosts", name]).succeed();
        assert!(found.starts_with("10.96.0.1 "), "{found}");
    }
}

fn a_secret_is_not_in_the_files_of_etcd(namespace: &Namespace) {
    let (hidden, open) = (random_text("hidden"), random_text("open"));
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "planted"}, "stringData": {"value": hidden}});
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "planted"}, "data": {"value": open}});
    namespace
        .kubectl(["create", "-f", "-"])
        .stdin(secret.to_string())
        .secret()
        .succeed();
    namespace
        .kubectl(["create", "-f", "-"])
        .stdin(map.to_string())
        .succeed();

    let decode = [
        "get",
        "secret/planted",
        "-o",
        "go-template={{.data.value | base64decode}}",
    ];
    assert_eq!(namespace.kubectl(decode).secret().succeed(), hidden);
    let etcd = Place::inside().join("etcd");
    let is_there = |text: &str| {
        // The pattern goes by stdin, since arguments are seen by all.
        let output = Program::new("grep")
            .args(["-r", "-q", "-F", "-f", "-"])
            .args([&etcd])
            .stdin(text)
            .output();
        assert!(matches!(output.status.code(), Some(0 | 1)), "{output}");
        output.status.success()
    };
    assert!(
        is_there(&open),
        "a ConfigMap must be found, or this search finds nothing at all"
    );
    assert!(!is_there(&hidden));
}

fn a_pod_keeps_a_file_on_a_volume(namespace: &Namespace) {
    namespace.restrict();
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    namespace.apply(claim.to_string());
    let text = hex::encode(random_bytes::<8>());
    for (pod, script) in [
        ("writer", format!("echo {text} > /data/file")),
        ("reader", "cat /data/file".to_owned()),
    ] {
        let mut manifest = busybox(pod, &["sh", "-c", &script]);
        manifest["spec"]["restartPolicy"] = json!("Never");
        manifest["spec"]["volumes"] =
            json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
        manifest["spec"]["containers"][0]["volumeMounts"] =
            json!([{"name": "data", "mountPath": "/data"}]);
        namespace.apply(manifest.to_string());
        namespace.wait_phase(pod, "Succeeded");
    }
    assert_eq!(namespace.logs("reader").trim(), text);
}

fn a_database_asks_for_tls() {
    let postgres = checkout().join("tests/cluster/postgres");
    let ask = "psql \"$BAREKEY_TEST_POSTGRES\" -tAc 'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()'";
    let answer = Program::new(&postgres)
        .args(["run", "sh", "-c", ask])
        .secret()
        .succeed();
    assert_eq!(answer.trim(), "t");
    let ask = "psql \"${BAREKEY_TEST_POSTGRES%%\\?*}?sslmode=disable\" -c 'SELECT 1'";
    let refusal = Program::new(&postgres)
        .args(["run", "sh", "-c", ask])
        .secret()
        .fail()
        .stderr;
    assert!(refusal.contains("no encryption"), "{refusal}");
    let ask = "psql \"$BAREKEY_TEST_POSTGRES&sslrootcert=/dev/null\" -c 'SELECT 1'";
    Program::new(&postgres)
        .args(["run", "sh", "-c", ask])
        .secret()
        .fail();
}

/// A second node, inside the first.
struct OtherNode {
    state: String,
}

impl OtherNode {
    fn new() -> Self {
        let state = format!("/var/tmp/barekey-{}", hex::encode(random_bytes::<4>()));
        Self { state }
    }

    /// A program that starts it, from outside of the first one as it seems.
    fn program(&self, program: impl AsRef<OsStr>) -> Program {
        Program::new("env")
            .args(["-u", "BAREKEY_NODE", &format!("NODE={}", self.state)])
            .args([program])
    }

    /// What is there of it: processes, mounts, cgroups, files.
    fn traces(&self) -> Vec<String> {
        let Self { state } = self;
        let digest = sha256_hex(format!("{state}\n"));
        let script = format!(
            "pgrep -f -a {state}; grep -h {state} /proc/*/mountinfo; \
             find /sys/fs/cgroup -maxdepth 2 -name barekey-{}; ls -d {state}; true",
            &digest[..12]
        );
        // Not the search itself.
        let found = Program::new("bash").args(["-c", &script]).output().stdout;
        found
            .lines()
            .filter(|line| !line.contains("pgrep"))
            .map(str::to_owned)
            .collect()
    }

    /// Has a shell start it with a pod, and waits until that runs: the shell, and the process id of the node's script.
    #[track_caller]
    fn run(&self) -> (Background, String) {
        let command =
            "kubectl run pod --image=docker.io/library/busybox:stable -- sleep 300; sleep 300";
        let (caller, mut lines) = self
            .program("sh")
            .args(["-c", "\"$0\" run sh -c \"$1\" & echo $!; wait"])
            .args([node_script()])
            .args([command])
            .start_reading();
        let script = lines.next().expect("the script's process id");
        std::thread::spawn(move || lines.for_each(drop));
        eventually("the other node's pod", || {
            let found = self.traces().join("\n");
            if found.contains("containerd-shim")
                && found.contains("kubelet")
                && found.contains("/sys/fs/cgroup")
            {
                Ok(())
            } else {
                Err(found)
            }
        });
        (caller, script)
    }

    #[track_caller]
    fn wait_gone(&self) {
        eventually("nothing left of it", || {
            let found = self.traces();
            if found.is_empty() {
                Ok(())
            } else {
                Err(found.join("\n"))
            }
        });
    }
}

fn node_script() -> PathBuf {
    checkout().join("tests/cluster/node")
}

/// Not the script itself: whoever called it.
fn a_node_whose_caller_is_killed(_: &Namespace) {
    let other = OtherNode::new();
    let (caller, _) = other.run();
    caller.kill();
    other.wait_gone();
}

/// All three are killed: who called, the script, and the watcher that would have removed what is left.
fn what_a_killed_node_leaves(_: &Namespace) {
    /// Under 20 s is what we promise of a machine with nothing else to do; this one has the journeys' own node beside it.
    const COLD_START_MS_MAX: u64 = 25_000;

    let other = OtherNode::new();
    let (caller, script) = other.run();
    let watcher = Program::new("pgrep")
        .args(["-f", &format!("cluster/node watch {script} ")])
        .succeed();
    Program::new("kill")
        .args(["-s", "KILL", watcher.trim(), &script])
        .succeed();
    caller.kill();
    assert!(!other.traces().is_empty(), "nobody was left to remove it");
    let database = folder_of_a_killed_database();
    let foreign = FolderOfAnother::make();

    // A node of another checkout.
    let next = OtherNode::new();
    let started = next.program(node_script()).args(["run", "true"]).output();
    // It ends with why.
    let why = started.stderr.lines().last().unwrap_or_default();
    assert!(started.status.success(), "{why}\n{started}");
    other.wait_gone();
    next.wait_gone();
    assert!(!database.exists(), "{} stays", database.display());
    for file in [foreign.file(), foreign.locked_file()] {
        assert!(file.exists(), "{} was somebody's", file.display());
    }

    let said = started.stderr.lines().find_map(|line| {
        let rest = line.strip_prefix("node: DNS ready after ")?;
        rest.strip_suffix(" ms")?.parse::<u64>().ok()
    });
    let took = said.unwrap_or_else(|| panic!("it does not say when DNS is ready: {started}"));
    println!("     a node started in {took} ms, with DNS");
    assert!(took <= COLD_START_MS_MAX, "{took} ms");
}

/// Where a PostgreSQL was, which was killed together with the script that runs it.
#[track_caller]
fn folder_of_a_killed_database() -> PathBuf {
    let url = Program::new(checkout().join("tests/cluster/postgres"))
        .args(["run", "sh", "-c"])
        .args(["echo \"$BAREKEY_TEST_POSTGRES\"; kill -s KILL $PPID"])
        .secret()
        .output()
        .stdout;
    let (_, file) = url.trim().rsplit_once("sslrootcert=").expect("a URL");
    let folder = Path::new(file).parent().expect("a folder").to_owned();
    assert!(folder.join("data").exists(), "nobody was left to remove it");
    // The server's processes take a moment to see that they have been left.
    eventually("the end of the server", || {
        let lock = File::open(&folder).map_err(|error| error.to_string())?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| error.to_string())
    });
    folder
}

/// What is called as our own folders are, and is not a node's; and one of ours that is in use. Removed when it is dropped.
struct FolderOfAnother {
    unmarked: PathBuf,
    locked: PathBuf,
    _lock: File,
}

impl FolderOfAnother {
    const VAULT: &str = "no vault, but a journey's";

    /// What a run left that was killed meanwhile: nothing else may sweep it.
    fn remove_earlier() {
        let folders = std::fs::read_dir("/var/tmp").expect("it is there");
        for folder in folders.flatten().map(|entry| entry.path()) {
            let vault = std::fs::read_to_string(folder.join("barekey.db"));
            if vault.is_ok_and(|vault| vault == Self::VAULT) {
                std::fs::remove_dir_all(folder).expect("it is a journey's");
            }
        }
    }

    fn make() -> Self {
        Self::remove_earlier();
        let [unmarked, locked] =
            [OtherNode::new().state, OtherNode::new().state].map(PathBuf::from);
        for folder in [&unmarked, &locked] {
            std::fs::create_dir(folder).expect("a folder can be made");
            std::fs::write(folder.join("barekey.db"), Self::VAULT).expect("a file can be written");
        }
        std::fs::write(locked.join("may-be-swept"), "").expect("a file can be written");
        let lock = File::open(&locked).expect("it is there");
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("nobody else has it");
        Self {
            unmarked,
            locked,
            _lock: lock,
        }
    }

    fn file(&self) -> PathBuf {
        self.unmarked.join("barekey.db")
    }

    fn locked_file(&self) -> PathBuf {
        self.locked.join("barekey.db")
    }
}

impl Drop for FolderOfAnother {
    fn drop(&mut self) {
        for folder in [&self.unmarked, &self.locked] {
            drop(std::fs::remove_dir_all(folder));
        }
    }
}

/// A pod of one busybox that Pod Security `restricted` lets through.
fn busybox(name: &str, command: &[&str]) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "main", "image": "docker.io/library/busybox:stable", "command": command,
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}
