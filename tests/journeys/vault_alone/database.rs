//! The databases that journeys run on, and the back door to what is in them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::fs::FlockOperation;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, Row};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;

use crate::harness::random_bytes;

/// Which database a journey runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

impl Engine {
    /// The URL of a database that nobody else uses.
    pub(crate) fn make_database(self, directory: &Path) -> String {
        match self {
            Self::Sqlite => format!("sqlite:{}", directory.join("barekey.db").display()),
            Self::Postgres => shared_postgres().make_database(),
        }
    }
}

/// What makes, starts and stops a PostgreSQL, with TLS and a CA of its own.
fn postgres_script() -> Command {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/postgres");
    let mut command = Command::new(script);
    command.env("POSTGRES_ADDRESS", "127.0.0.1");
    command
}

/// A PostgreSQL for all journeys of this process. It ends when the process does, however that ends: what runs inside it
/// reads from a pipe of ours.
struct SharedPostgres {
    url: String,
    _child: Child,
    _pipe: ChildStdin,
}

static MADE: AtomicU32 = AtomicU32::new(0);

fn shared_postgres() -> &'static SharedPostgres {
    static SHARED: OnceLock<SharedPostgres> = OnceLock::new();
    SHARED.get_or_init(|| {
        let mut child = postgres_script()
            .args([
                "run",
                "sh",
                "-c",
                "echo \"$BAREKEY_TEST_POSTGRES\"; exec cat >/dev/null",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("tests/cluster/postgres runs");
        let pipe = child.stdin.take().expect("a pipe");
        let mut url = String::new();
        BufReader::new(child.stdout.take().expect("a pipe"))
            .read_line(&mut url)
            .expect("the URL");
        let url = url.trim().to_owned();
        assert!(url.starts_with("postgres://"), "no PostgreSQL: {url:?}");
        SharedPostgres {
            url,
            _child: child,
            _pipe: pipe,
        }
    })
}

impl SharedPostgres {
    fn make_database(&self) -> String {
        make_postgres_database(&self.url)
    }
}

fn make_postgres_database(url: &str) -> String {
    let name = format!("journey_{}", MADE.fetch_add(1, Ordering::Relaxed));
    BackDoor::to(url).run(&format!("CREATE DATABASE {name}"));
    let (server, options) = url.split_once("/barekey?").expect("the URL of the script");
    format!("{server}/{name}?{options}")
}

fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// A PostgreSQL of one journey's own, which may stop it and start it again.
pub(crate) struct OwnPostgres {
    folder: PathBuf,
    /// Held so that a start of the node does not sweep the folder meanwhile.
    _lock: File,
    port: u16,
    pub(crate) url: String,
}

impl OwnPostgres {
    pub(crate) fn up() -> Self {
        // As the folders are called that a start of the node sweeps.
        let name = format!("barekey-{}", hex::encode(random_bytes::<4>()));
        Self::up_in(Path::new("/var/tmp").join(name), free_port())
    }

    /// On a disk of its own.
    pub(crate) fn up_on(disk: &Path) -> Self {
        Self::up_in(disk.join("postgres"), free_port())
    }

    fn up_in(folder: PathBuf, port: u16) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        let lock = File::open(&folder).unwrap();
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
        let mut server = Self {
            folder,
            _lock: lock,
            port,
            url: String::new(),
        };
        server.url = server.script("up").trim().to_owned();
        server
    }

    pub(crate) fn stop(&self) {
        self.script("stop");
    }

    pub(crate) fn start(&self) {
        self.script("start");
    }

    /// Changes a setting for every session, at once, as its administrator.
    pub(crate) fn set(&self, setting: &str, value: &str) {
        let status = Command::new("setpriv")
            .args([
                "--reuid",
                "postgres",
                "--regid",
                "postgres",
                "--clear-groups",
                "psql",
                "--quiet",
                "--no-align",
                "--tuples-only",
            ])
            .arg("--host")
            .arg(&self.folder)
            .args(["--port", &self.port.to_string(), "--dbname", "postgres"])
            .args([
                "--command",
                &format!("ALTER SYSTEM SET {setting} = {value}"),
            ])
            .args(["--command", "SELECT pg_reload_conf()"])
            .stdout(Stdio::null())
            .status()
            .expect("psql runs");
        assert!(status.success(), "{setting} = {value}: {status}");
    }

    fn script(&self, command: &str) -> String {
        let output = postgres_script()
            .env("POSTGRES_PORT", self.port.to_string())
            .args([command.as_ref(), self.folder.as_os_str()])
            .stderr(Stdio::inherit())
            .output()
            .expect("tests/cluster/postgres runs");
        assert!(
            output.status.success(),
            "postgres {command}: {}",
            output.status
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for OwnPostgres {
    fn drop(&mut self) {
        drop(
            postgres_script()
                .env("POSTGRES_PORT", self.port.to_string())
                .args(["down".as_ref(), self.folder.as_os_str()])
                .status(),
        );
    }
}

/// Someone with write access to the database, behind the server's back. The same SQL for both engines.
pub(crate) struct BackDoor {
    runtime: Runtime,
    connection: Mutex<Back>,
}

enum Back {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl BackDoor {
    /// Opens it; the server may run or not.
    #[track_caller]
    pub(crate) fn to(database: &str) -> Self {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let connection = runtime.block_on(async {
            match database.strip_prefix("sqlite:") {
                Some(path) => {
                    let options = SqliteConnectOptions::new()
                        .filename(path)
                        .foreign_keys(false)
                        .busy_timeout(Duration::from_secs(10));
                    Back::Sqlite(options.connect().await.expect("the file opens"))
                }
                None => Back::Postgres(
                    PgConnection::connect(database)
                        .await
                        .expect("the server answers"),
                ),
            }
        });
        Self {
            runtime,
            connection: Mutex::new(connection),
        }
    }

    /// Runs one statement; returns how many rows it touched.
    #[track_caller]
    pub(crate) fn run(&self, sql: &str) -> u64 {
        let statement = AssertSqlSafe(sql.to_owned());
        self.runtime.block_on(async {
            match &mut *self.connection.lock().await {
                Back::Sqlite(connection) => {
                    let done = connection.execute(statement).await;
                    done.expect(sql).rows_affected()
                }
                Back::Postgres(connection) => {
                    let done = connection.execute(statement).await;
                    done.expect(sql).rows_affected()
                }
            }
        })
    }

    /// The first column of every row, which must be text.
    #[track_caller]
    pub(crate) fn texts(&self, sql: &str) -> Vec<String> {
        let statement = AssertSqlSafe(sql.to_owned());
        self.runtime.block_on(async {
            match &mut *self.connection.lock().await {
                Back::Sqlite(connection) => {
                    let rows = connection.fetch_all(statement).await.expect(sql);
                    rows.iter().map(|row| row.get(0)).collect()
                }
                Back::Postgres(connection) => {
                    let rows = connection.fetch_all(statement).await.expect(sql);
                    rows.iter().map(|row| row.get(0)).collect()
                }
            }
        })
    }
}
