//! PostgreSQL in place of SQLite: the administrator's own server, with TLS and a name that is verified, and two replicas.

use serde_json::json;

use crate::harness::{Installation, Journey, Namespace, Place, Program, checkout, eventually, get};
use crate::injection_setting::{PRINT_HASH, Setting, asking};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![Journey::changing("values_live_in_postgres_as_well", values_live_in_postgres).inside()]
}

/// Debian's PostgreSQL in the node's network; it ends with this.
struct Postgres {
    folder: String,
    url: String,
}

impl Postgres {
    #[track_caller]
    fn start() -> Self {
        // User postgres must reach it, and its socket's path is short.
        let folder = format!("{}/postgres", Place::inside().display());
        let url = script("up", &folder).succeed().trim().to_owned();
        crate::harness::secrets::remember(password(&url));
        Self { folder, url }
    }

    fn authority(&self) -> String {
        std::fs::read_to_string(format!("{}/ca.crt", self.folder)).expect("the server's CA")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        script("down", &self.folder).output();
    }
}

fn script(command: &str, folder: &str) -> Program {
    Program::new(checkout().join("tests/cluster/postgres"))
        .args([command, folder])
        .secret()
}

fn password(url: &str) -> &str {
    url.split([':', '@']).nth(2).expect("a password in the URL")
}

fn values_live_in_postgres(namespace: &Namespace) {
    let installation = Installation::shared();
    let postgres = Postgres::start();
    // As the chart mounts it, PGSSLROOTCERT names the CA.
    let url = postgres.url.split("&sslrootcert=").next().unwrap();
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "barekey-database"}, "stringData": {"url": url}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "barekey-database-ca"},
         "data": {"ca.crt": postgres.authority()}},
    ]});
    installation
        .kubectl(["create", "-f", "-"])
        .stdin(objects.to_string())
        .secret()
        .succeed();
    installation.install(&json!({
        "database": {"kind": "postgres", "postgres": {
            "urlSecret": {"name": "barekey-database"}, "ca": {"configMap": "barekey-database-ca"},
        }},
        "replicas": 2,
    }));
    assert_eq!(installation.pods().len(), 2, "two replicas");
    assert!(
        get([
            "--namespace",
            installation.namespace(),
            "statefulset/barekey"
        ])
        .is_none(),
        "the StatefulSet of SQLite is gone"
    );

    // The whole way, on an empty vault: an organization, a stage, a value, a process.
    let setting = Setting::make(namespace);
    namespace.apply(asking("first", PRINT_HASH).to_string());
    setting.printed_by(namespace, "first");
    // What one replica wrote, another answers after the first is gone.
    let pods = installation.pods();
    installation
        .kubectl(["delete", "pod", &pods[0], "--wait=true"])
        .succeed();
    installation.wait_ready();
    namespace.apply(asking("second", PRINT_HASH).to_string());
    setting.printed_by(namespace, "second");
    // A database that is away refuses, and the vault recovers by itself.
    script("stop", &postgres.folder).succeed();
    let api = installation.api();
    let ask = || {
        let target =
            json!({"projectSlug": "shop", "stageSlug": "development", "name": "DATABASE_URL"});
        api.post("/v1/env/evaluate")
            .bearer(&setting.organization.owner)
            .json(&target)
            .send()
    };
    ask().refused(503, "STORAGE_UNAVAILABLE");
    script("start", &postgres.folder).succeed();
    eventually("evaluate, after the database is back", || {
        let answer = ask();
        if answer.status == 200 {
            Ok(())
        } else {
            Err(answer.status.to_string())
        }
    });

    // Back to the file, where everything is as it was.
    installation.install(&json!({}));
    installation
        .kubectl([
            "delete",
            "secret/barekey-database",
            "configmap/barekey-database-ca",
        ])
        .succeed();
}
