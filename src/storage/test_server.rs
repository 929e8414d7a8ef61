//! A PostgreSQL for tests: the one of `BAREKEY_TEST_POSTGRES` (the URL of a database, of a user who may make others), or one
//! that `tests/cluster/postgres` starts for this process and ends with it.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

/// The script that has a server for one command alone.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cluster/postgres");
/// Where that command finds the server.
const VARIABLE: &str = "BAREKEY_TEST_POSTGRES";

/// The URL of a database on the server.
fn server() -> &'static str {
    static SERVER: OnceLock<String> = OnceLock::new();
    SERVER.get_or_init(|| std::env::var(VARIABLE).unwrap_or_else(|_| start()))
}

fn start() -> String {
    // The command reads what this process never writes: its end, however this process ends, is the server's.
    let command = format!("echo \"${VARIABLE}\"; exec cat >/dev/null");
    let mut child = Command::new(SCRIPT)
        .args(["run", "sh", "-c", &command])
        .env("POSTGRES_PLAIN", "yes")
        .current_dir("/tmp")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let mut url = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut url)
        .unwrap();
    let pipe = child.stdin.take().unwrap();
    // Both live as long as this process.
    static RUNNING: OnceLock<(Child, ChildStdin)> = OnceLock::new();
    RUNNING.set((child, pipe)).unwrap();
    url.trim().to_owned()
}

async fn administer(statement: String) {
    let server = tokio::task::spawn_blocking(server).await.unwrap();
    let mut db = PgConnection::connect(server).await.unwrap();
    db.execute(AssertSqlSafe(statement)).await.unwrap();
    db.close().await.unwrap();
}

/// A new, empty database; its URL, which does not insist on who the server is.
pub(crate) async fn make_database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!(
        "barekey_{}_{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    administer(format!("DROP DATABASE IF EXISTS {name}")).await;
    administer(format!("CREATE DATABASE {name}")).await;
    let (address, options) = server().split_once('?').unwrap_or((server(), ""));
    let (server, _) = address.rsplit_once('/').unwrap();
    let options = options.replace("sslmode=verify-full", "sslmode=prefer");
    format!("{server}/{name}?{options}")
}

fn name_of(url: &str) -> &str {
    let address = url.split('?').next().unwrap();
    address.rsplit('/').next().unwrap()
}

/// Sets something for every new connection to a database.
pub(crate) async fn set_for_database(address: &str, setting: &str, value: &str) {
    let name = name_of(address);
    administer(format!("ALTER DATABASE {name} SET {setting} = {value}")).await;
}

/// Ends every connection to a database, as a server that restarts does.
pub(crate) async fn end_connections(address: &str) {
    let name = name_of(address);
    administer(format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    ))
    .await;
}
