//! The vault on an administrator's PostgreSQL, with the values of `examples/postgres`.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::canary::{self, DATA_KEYS, SEALED_KEYS, awkward_value};
use crate::harness::{
    Installation, Journey, Namespace, Program, checkout, example, get, random_text, sha256_hex,
};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::changing(
            "two_replicas_on_postgres_give_a_pod_its_value",
            two_replicas_on_postgres,
        )
        .inside(),
    ]
}

fn two_replicas_on_postgres(namespace: &Namespace) {
    let installation = Installation::shared();
    let database = Database::start();
    let mut values: Value =
        serde_yaml::from_str(&example("postgres/values.yaml")).expect("the example is YAML");
    // Some platforms choose the user, one that no image knows.
    let anybody = 1_000_680_000;
    values["podSecurityContext"] =
        json!({"runAsUser": anybody, "runAsGroup": anybody, "fsGroup": anybody});
    let objects = [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "barekey-database"}, "stringData": {"url": database.url}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "barekey-database-ca"}, "data": {"ca.crt": database.ca()}}),
    ];
    for object in objects {
        installation
            .kubectl(["apply", "--server-side", "-f", "-"])
            .stdin(object.to_string())
            .secret()
            .succeed();
    }
    installation.uninstall();
    installation.install(&values);
    assert_eq!(installation.workload(), "deployment/barekey");
    let replicas = installation.pods();
    assert_eq!(replicas.len(), 2, "{replicas:?}");
    for replica in &replicas {
        let resource = format!("pod/{replica}");
        let pod = get(["-n", installation.namespace(), &resource]).expect("it is there");
        assert_eq!(pod["spec"]["securityContext"]["runAsUser"], anybody);
    }

    let organization = installation.organization(namespace);
    namespace.restrict();
    namespace.apply_example("first-value/barekey.yaml");
    namespace.wait_ready("barekeyproject/shop");
    namespace.wait_ready("barekeystage/development");
    let value = awkward_value();
    let marker = random_text("marker");
    let api = installation.api();
    api.set(&organization, "shop", "development", "DATABASE_URL", &value);
    // The names of variables are no secrets: this one is planted in the database.
    api.set(&organization, "shop", "development", &marker, "value");
    drop(api);
    assert_eq!(namespace.value_in_a_pod(), sha256_hex(&value));

    // Whichever replica goes, the other one has it.
    for gone in &replicas {
        installation
            .kubectl(["delete", "pod", "--wait", gone])
            .succeed();
        assert_eq!(
            namespace.value_in_a_pod(),
            sha256_hex(&value),
            "without {gone}"
        );
        installation.wait_ready();
    }

    let rows = database.asks("SELECT count(*) FROM variable_versions");
    assert!(
        rows[0].as_u64() > Some(0),
        "the values are in PostgreSQL, and in nothing else"
    );
    let select = |what: &str| database.asks(&format!("SELECT json_build_object({what}"));
    let (data_keys, sealed_keys) = (select(DATA_KEYS), select(SEALED_KEYS));
    database.plant_in_the_log(&marker);
    database.administer("CHECKPOINT");
    canary::nothing_in_postgres(&database.folder, &marker, &data_keys, &sealed_keys);
    installation.uninstall();
    drop(database);
    installation.install(&json!({}));
}

/// A PostgreSQL server in the node's network, until this guard goes.
struct Database {
    folder: PathBuf,
    url: String,
    _parent: TempDir,
}

impl Database {
    fn start() -> Self {
        let parent = TempDir::new().expect("a folder can be made");
        // The server runs as a user of its own.
        std::fs::set_permissions(&parent, PermissionsExt::from_mode(0o755)).expect("it is ours");
        let folder = parent.path().join("postgres");
        let url = script("up").args([&folder]).secret().succeed();
        let url = url.trim();
        // The chart says where the CA is.
        let url = url
            .split("&sslrootcert=")
            .next()
            .expect("a text")
            .to_owned();
        assert!(url.ends_with("?sslmode=verify-full"));
        let database = Self {
            folder,
            url,
            _parent: parent,
        };
        // Whatever the operator sends is then in the log too, with its parameters.
        database.administer("ALTER SYSTEM SET log_statement = 'all'");
        database.administer("SELECT pg_reload_conf()");
        database
    }

    fn ca(&self) -> String {
        std::fs::read_to_string(self.folder.join("ca.crt")).expect("the CA is readable")
    }

    /// What a query gives: one JSON text in each row.
    #[track_caller]
    fn asks(&self, query: &str) -> Vec<Value> {
        let printed = self.psql(query).succeed();
        printed
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// A statement that fails is logged as it is.
    #[track_caller]
    fn plant_in_the_log(&self, text: &str) {
        self.psql(&format!("SELECT '{text}' FROM nowhere")).fail();
    }

    /// A statement of the server's administrator.
    #[track_caller]
    fn administer(&self, statement: &str) {
        Program::new("setpriv")
            .args(["--reuid", "postgres", "--regid", "postgres"])
            .args(["--clear-groups", "psql", "--quiet", "--host"])
            .args([&self.folder])
            .args(["--dbname", "postgres", "--command", statement])
            .succeed();
    }

    fn psql(&self, query: &str) -> Program {
        let url = format!(
            "{}&sslrootcert={}",
            self.url,
            self.folder.join("ca.crt").display()
        );
        Program::new("sh")
            .args(["-c", "exec psql \"$URL\" -tAc \"$QUERY\""])
            .env("URL", url)
            .env("QUERY", query)
            .secret()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        drop(script("down").args([&self.folder]).output());
    }
}

fn script(command: &str) -> Program {
    Program::new(checkout().join("tests/cluster/postgres")).args([command])
}
