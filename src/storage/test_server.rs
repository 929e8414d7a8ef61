//! A PostgreSQL for tests: the one that `BAREKEY_TEST_POSTGRES` names (an address without database, of a user who may
//! make databases), or one of Debian's that is started here and ends with this process.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

/// Where Debian keeps the server's programs.
const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
/// The folders of servers that are started here; the number behind it is the process that started it.
const FOLDER: &str = "/tmp/barekey-test-postgres-";

/// The address of a server, without a database.
fn server() -> &'static str {
    static SERVER: OnceLock<String> = OnceLock::new();
    SERVER.get_or_init(|| match std::env::var("BAREKEY_TEST_POSTGRES") {
        Ok(address) => address.trim_end_matches('/').to_owned(),
        Err(_) => start(),
    })
}

fn as_postgres(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args([
            "--reuid",
            "postgres",
            "--regid",
            "postgres",
            "--clear-groups",
        ])
        .arg(Path::new(PROGRAMS).join(program))
        .env_remove("LC_ALL")
        .env("LANG", "C.UTF-8")
        .current_dir("/tmp")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn run(command: &mut Command) {
    let output = command.stderr(Stdio::piped()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Removes what servers of processes left behind that are gone.
fn sweep() {
    for folder in std::fs::read_dir("/tmp").unwrap().flatten() {
        let path = folder.path();
        let process = path
            .to_string_lossy()
            .strip_prefix(FOLDER)
            .map(str::to_owned);
        if let Some(process) = process
            && !Path::new("/proc").join(process).exists()
        {
            // Another process may be removing it too.
            drop(std::fs::remove_dir_all(path));
        }
    }
}

fn start() -> String {
    sweep();
    let folder = PathBuf::from(format!("{FOLDER}{}", std::process::id()));
    drop(std::fs::remove_dir_all(&folder));
    std::fs::create_dir(&folder).unwrap();
    run(Command::new("chown").arg("postgres").arg(&folder));
    let data = folder.join("data");
    run(as_postgres("initdb")
        .args([
            "--no-sync",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "-D",
        ])
        .arg(&data));
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .unwrap()
        .port();
    // The shell reads what this process never writes: its end, however this process ends, is the server's.
    let script = format!(
        "exec 2>'{folder}/log'; setpriv --reuid postgres --regid postgres --clear-groups {PROGRAMS}/postgres -D '{data}' \
         -c port={port} -c listen_addresses=127.0.0.1 -c max_connections=400 -c shared_buffers=32MB \
         -c unix_socket_directories='{folder}' </dev/null & \
         cat; kill -QUIT $!; wait; rm -rf '{folder}'",
        folder = folder.display(),
        data = data.display(),
    );
    let mut shell = Command::new("sh")
        .args(["-c", &script])
        .current_dir("/tmp")
        .env("LANG", "C.UTF-8")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    // Both live as long as this process: the pipe's end is the server's.
    static SHELL: OnceLock<(Child, ChildStdin)> = OnceLock::new();
    let pipe = shell.stdin.take().unwrap();
    SHELL.set((shell, pipe)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !Command::new(Path::new(PROGRAMS).join("pg_isready"))
        .args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()])
        .status()
        .unwrap()
        .success()
    {
        assert!(
            Instant::now() < deadline,
            "the server did not start: see {}/log",
            folder.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    format!("postgres://postgres@127.0.0.1:{port}")
}

async fn administer(statement: String) {
    let mut db = PgConnection::connect(&format!("{}/postgres?sslmode=disable", server()))
        .await
        .unwrap();
    db.execute(AssertSqlSafe(statement)).await.unwrap();
    db.close().await.unwrap();
}

/// A new, empty database; its address.
pub(crate) async fn make_database() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let server = tokio::task::spawn_blocking(server).await.unwrap();
    let name = format!(
        "barekey_{}_{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    administer(format!("DROP DATABASE IF EXISTS {name}")).await;
    administer(format!("CREATE DATABASE {name}")).await;
    format!("{server}/{name}?sslmode=disable")
}

fn name_of(address: &str) -> &str {
    address
        .rsplit('/')
        .next()
        .unwrap()
        .split('?')
        .next()
        .unwrap()
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
