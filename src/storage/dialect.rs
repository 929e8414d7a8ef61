//! What differs between SQLite and PostgreSQL: how they are opened, connections, transactions, locks, bulk inserts, name
//! lists. Nothing else in the crate names the driver.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Row as _,
    SqlSafeStr, SqlStr, Sqlite, SqliteConnection, SqlitePool, TypeInfo as _, ValueRef as _,
};

use crate::storage::{Cell, Error, Row};

/// How many connections read at the same time.
const READERS_MAX: u32 = 8;
/// How long a reader waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long SQLite waits for a lock (of a backup tool, say).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How many rows of a bulk insert a file takes in one trip.
const TRIP_ROWS_MAX: usize = 64;
/// How many prepared statements the writer of a file keeps: a group's text for every number of rows up to
/// [`TRIP_ROWS_MAX`], the first and the middle ones of larger groups, and those of changes.
const WRITER_STATEMENTS: usize = 256;
/// What PostgreSQL is told about the writing connection: it waits for no lock for long, and lets go of what a replica
/// holds that vanished inside a transaction.
const WRITER_LIMITS: [(&str, &str); 3] = [
    ("lock_timeout", "5s"),
    ("idle_in_transaction_session_timeout", "10s"),
    ("statement_timeout", "15s"),
];
/// What PostgreSQL is told about readers.
const READER_LIMITS: [(&str, &str); 1] = [("statement_timeout", "20s")];
/// How long an answer of PostgreSQL is waited for: longer than it is told to take, so that only a server that cannot be
/// reached is given up, and shorter than the writer gives a group.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(18);
/// The same for readers.
const READER_ANSWER_TIMEOUT: Duration = Duration::from_secs(25);

const SQLITE_MIGRATIONS: [(i64, &str, &str); 1] = [(
    1,
    "schema",
    include_str!("migrations/sqlite/0001_schema.sql"),
)];
const POSTGRES_MIGRATIONS: [(i64, &str, &str); 1] = [(
    1,
    "schema",
    include_str!("migrations/postgres/0001_schema.sql"),
)];

/// A setting of PostgreSQL that is refused unless accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Risk {
    /// `synchronous_commit=off`.
    SynchronousCommitOff,
    /// `fsync=off`.
    FsyncOff,
    /// An `sslmode` under `verify-full`.
    SslMode,
}

/// Why a database was not opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Not an address that is known.
    #[error(
        "the database address is not understood: use sqlite:PATH or postgres://USER@HOST/DATABASE?sslmode=verify-full&sslrootcert=FILE"
    )]
    BadAddress,
    /// Another process has the file open.
    #[error(
        "the database {path} is in use by another process ({holder}): stop that process, or give this one a database of its own"
    )]
    Locked {
        /// The database file.
        path: PathBuf,
        /// What the lock file says of it.
        holder: String,
    },
    /// The file is on a file system that does not lock.
    #[error(
        "the database {path} is on a network file system ({kind}), where SQLite loses data: use a local volume, or PostgreSQL"
    )]
    NetworkFileSystem {
        /// The database file.
        path: PathBuf,
        /// Which one.
        kind: &'static str,
    },
    /// The file or its lock file cannot be opened.
    #[error("cannot open {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The schema comes from a newer release.
    #[error(
        "the database has schema version {found} and this program knows up to {known}: run the release that wrote it, or a newer one"
    )]
    NewerSchema {
        /// The newest version in the database.
        found: i64,
        /// The newest that this program knows.
        known: i64,
    },
    /// The schema could not be brought up to date.
    #[error("the database schema could not be brought up to date")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// A setting that may lose or leak data.
    #[error(
        "the database is set to {setting}, {consequence}: set it to {wanted}, or accept the risk with --accept-database-risk {name}"
    )]
    Risky {
        /// The setting, as found.
        setting: String,
        /// What it may cost.
        consequence: &'static str,
        /// What would pass.
        wanted: &'static str,
        /// The name to accept it by.
        name: &'static str,
    },
    /// The database cannot be reached or refuses.
    #[error("cannot connect to the database")]
    Connect(#[source] sqlx::Error),
    /// A statement failed.
    #[error(transparent)]
    Statement(#[from] Error),
}

/// An opened database: a pool of readers, and what a writing connection needs.
pub(crate) enum Database {
    /// One file, one process.
    Sqlite {
        /// Readers.
        readers: SqlitePool,
        /// For the writing connection.
        write: Box<SqliteConnectOptions>,
        /// Held until the database is closed.
        lock: Mutex<Option<File>>,
    },
    /// A server, many processes.
    Postgres {
        /// Readers.
        readers: PgPool,
        /// For the writing connection.
        write: Box<PgConnectOptions>,
    },
}

/// A connection to either database.
pub(crate) enum Connection {
    /// The writer of a file.
    Sqlite(SqliteConnection),
    /// A reader of a file.
    SqlitePooled(PoolConnection<Sqlite>),
    /// The writer of a server.
    Postgres(PgConnection),
    /// A reader of a server.
    PostgresPooled(PoolConnection<Postgres>),
}

impl Database {
    /// Opens `address`, checks how it is set up, and brings its schema up to date.
    pub(crate) async fn open(address: &str, accepted: &[Risk]) -> Result<Self, OpenError> {
        if address.starts_with("postgres://") || address.starts_with("postgresql://") {
            Self::open_postgres(address, accepted).await
        } else if let Some(path) = address.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.contains('?') {
                return Err(OpenError::BadAddress);
            }
            Self::open_sqlite(Path::new(path)).await
        } else {
            Err(OpenError::BadAddress)
        }
    }

    async fn open_sqlite(path: &Path) -> Result<Self, OpenError> {
        let lock = lock_file(path)?;
        let file_error = |source| OpenError::File {
            path: path.to_owned(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(file_error)?;
        refuse_network_file_system(path, &file)?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(file_error)?;
        let common = SqliteConnectOptions::new()
            .filename(path)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("trusted_schema", "OFF")
            .pragma("temp_store", "memory")
            .disable_statement_logging();
        // A journal mode set on a reader would make it write: it is set on the writer alone.
        let write = common
            .clone()
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .statement_cache_capacity(WRITER_STATEMENTS);
        let mut connection = write.connect().await.map_err(OpenError::Connect)?;
        migrate(&SQLITE_MIGRATIONS, &mut connection).await?;
        connection.close().await.map_err(OpenError::Connect)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(common.read_only(true));
        Ok(Self::Sqlite {
            readers,
            write: Box::new(write),
            lock: Mutex::new(Some(lock)),
        })
    }

    async fn open_postgres(address: &str, accepted: &[Risk]) -> Result<Self, OpenError> {
        let options = PgConnectOptions::from_str(address)
            .map_err(|_| OpenError::BadAddress)?
            .application_name("barekey")
            .disable_statement_logging();
        // A socket in the file system is as far from a network as it gets.
        let verified = matches!(options.get_ssl_mode(), PgSslMode::VerifyFull)
            || options.get_socket().is_some();
        if !verified && !accepted.contains(&Risk::SslMode) {
            return Err(OpenError::Risky {
                setting: format!("sslmode={}", ssl_mode_word(options.get_ssl_mode())),
                consequence: "which does not prove that the server is the right one",
                wanted: "sslmode=verify-full, with sslrootcert",
                name: "sslmode",
            });
        }
        let mut connection = options.connect().await.map_err(OpenError::Connect)?;
        for (setting, consequence, risk, name) in [
            (
                "synchronous_commit",
                "which may lose acknowledged writes",
                Risk::SynchronousCommitOff,
                "synchronous-commit-off",
            ),
            (
                "fsync",
                "which may lose the whole database",
                Risk::FsyncOff,
                "fsync-off",
            ),
        ] {
            let value: String = sqlx::query_scalar("SELECT current_setting($1)")
                .bind(setting)
                .fetch_one(&mut connection)
                .await
                .map_err(OpenError::Connect)?;
            if value == "off" && !accepted.contains(&risk) {
                return Err(OpenError::Risky {
                    setting: format!("{setting}=off"),
                    consequence,
                    wanted: "on",
                    name,
                });
            }
        }
        migrate(&POSTGRES_MIGRATIONS, &mut connection).await?;
        connection.close().await.map_err(OpenError::Connect)?;
        let readers = PgPoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(options.clone().options(READER_LIMITS));
        Ok(Self::Postgres {
            readers,
            write: Box::new(options.options(WRITER_LIMITS)),
        })
    }

    /// Whether other processes may change the same database.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres { .. })
    }

    /// A connection for reading.
    pub(crate) async fn reader(&self) -> Result<Connection, Error> {
        match self {
            Self::Sqlite { readers, .. } => readers.acquire().await.map(Connection::SqlitePooled),
            Self::Postgres { readers, .. } => {
                readers.acquire().await.map(Connection::PostgresPooled)
            }
        }
        .map_err(Error::Unreachable)
    }

    /// A new connection for writing.
    pub(crate) async fn writer(&self) -> Result<Connection, Error> {
        match self {
            Self::Sqlite { write, .. } => write.connect().await.map(Connection::Sqlite),
            Self::Postgres { write, .. } => {
                match tokio::time::timeout(ACQUIRE_TIMEOUT, write.connect()).await {
                    Ok(connected) => connected.map(Connection::Postgres),
                    Err(_) => Err(sqlx::Error::PoolTimedOut),
                }
            }
        }
        .map_err(Error::Unreachable)
    }

    /// Closes the readers and lets go of the lock. The writing connection is closed before.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { readers, lock, .. } => {
                readers.close().await;
                drop(lock.lock().unwrap_or_else(PoisonError::into_inner).take());
            }
            Self::Postgres { readers, .. } => readers.close().await,
        }
    }
}

/// Takes the lock beside a database file; it is let go when the returned file is dropped or the process ends.
fn lock_file(database: &Path) -> Result<File, OpenError> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let file_error = |source| OpenError::File {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(file_error)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(file_error)?;
            return Err(OpenError::Locked {
                path: database.to_owned(),
                holder: holder.trim().to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(file_error(source)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "process {}", std::process::id()))
        .map_err(file_error)?;
    Ok(file)
}

fn refuse_network_file_system(path: &Path, file: &File) -> Result<(), OpenError> {
    let status = rustix::fs::fstatfs(file).map_err(|source| OpenError::File {
        path: path.to_owned(),
        source: source.into(),
    })?;
    // The numbers are the kernel's (linux/magic.h).
    let kind = match status.f_type {
        0x6969 => "NFS",
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => "SMB",
        0x0102_1997 => "9P",
        0x5346_414f => "AFS",
        0x00c3_6400 => "Ceph",
        _ => return Ok(()),
    };
    Err(OpenError::NetworkFileSystem {
        path: path.to_owned(),
        kind,
    })
}

fn ssl_mode_word(mode: PgSslMode) -> &'static str {
    match mode {
        PgSslMode::Disable => "disable",
        PgSslMode::Allow => "allow",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Require => "require",
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::VerifyFull => "verify-full",
    }
}

/// Runs what is missing, under the driver's own lock (PostgreSQL: an advisory lock; SQLite has the lock file).
async fn migrate<C>(
    migrations: &[(i64, &'static str, &'static str)],
    connection: &mut C,
) -> Result<(), OpenError>
where
    C: sqlx::migrate::Migrate + sqlx::Connection,
    for<'a> &'a mut C: sqlx::Acquire<'a>,
    for<'a> <<&'a mut C as sqlx::Acquire<'a>>::Connection as std::ops::Deref>::Target:
        sqlx::migrate::Migrate,
{
    let known = migrations.iter().map(|(version, ..)| *version).max();
    let migrator = Migrator::with_migrations(
        migrations
            .iter()
            .map(|(version, description, sql)| {
                Migration::new(
                    *version,
                    (*description).into(),
                    MigrationType::Simple,
                    (*sql).into_sql_str(),
                    false,
                )
            })
            .collect(),
    );
    migrator
        .run(&mut *connection)
        .await
        .map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(found) => OpenError::NewerSchema {
                found,
                known: known.unwrap_or(0),
            },
            other => OpenError::Migrate(other),
        })
}

/// Runs `$run` with the query and the driver's own connection.
macro_rules! on_driver {
    ($connection:expr, $sql:expr, $arguments:expr, |$query:ident, $driver:ident| $run:expr) => {
        match $connection {
            Connection::Sqlite($driver) => {
                let $query = bound!(Sqlite, $sql, $arguments);
                $run
            }
            Connection::SqlitePooled(pooled) => {
                let $driver = &mut **pooled;
                let $query = bound!(Sqlite, $sql, $arguments);
                $run
            }
            Connection::Postgres($driver) => {
                let $query = bound!(Postgres, $sql, $arguments);
                $run
            }
            Connection::PostgresPooled(pooled) => {
                let $driver = &mut **pooled;
                let $query = bound!(Postgres, $sql, $arguments);
                $run
            }
        }
    };
}

macro_rules! bound {
    ($database:ty, $sql:expr, $arguments:expr) => {{
        let mut query = sqlx::query::<$database>($sql);
        for cell in $arguments {
            query = match cell {
                Cell::Integer(value) => query.bind(value),
                Cell::Text(value) => query.bind(value),
                Cell::Bytes(value) => query.bind(value),
            };
        }
        query
    }};
}

/// Reads a driver's row into cells.
macro_rules! cells_of {
    ($row:expr) => {{
        let row = $row;
        let mut cells = Vec::with_capacity(row.len());
        for at in 0..row.len() {
            let raw = row.try_get_raw(at)?;
            let cell = if raw.is_null() {
                Cell::Integer(None)
            } else {
                match raw.type_info().name() {
                    "INTEGER" | "INT8" => Cell::Integer(row.try_get(at)?),
                    "BLOB" | "BYTEA" => Cell::Bytes(row.try_get(at)?),
                    _ => Cell::Text(row.try_get(at)?),
                }
            };
            cells.push(cell);
        }
        Ok::<Row, sqlx::Error>(Row(cells))
    }};
}

impl Connection {
    /// Runs a statement; how many rows it changed.
    pub(crate) async fn execute(
        &mut self,
        sql: &'static str,
        arguments: Vec<Cell>,
    ) -> Result<u64, Error> {
        self.run(sql.into_sql_str(), arguments).await
    }

    async fn run(&mut self, sql: SqlStr, arguments: Vec<Cell>) -> Result<u64, Error> {
        let timeout = self.answer_timeout();
        on_driver!(self, sql, arguments, |query, driver| answered(
            timeout,
            query.execute(driver)
        )
        .await
        .map(|done| done.rows_affected()))
        .map_err(Error::Driver)
    }

    /// Every row of a query.
    pub(crate) async fn rows(
        &mut self,
        sql: &'static str,
        arguments: Vec<Cell>,
    ) -> Result<Vec<Row>, Error> {
        self.all(sql.into_sql_str(), arguments).await
    }

    async fn all(&mut self, sql: SqlStr, arguments: Vec<Cell>) -> Result<Vec<Row>, Error> {
        let timeout = self.answer_timeout();
        on_driver!(self, sql, arguments, |query, driver| {
            match answered(timeout, query.fetch_all(driver)).await {
                Ok(rows) => rows.iter().map(|row| cells_of!(row)).collect(),
                Err(error) => Err(error),
            }
        })
        .map_err(Error::Driver)
    }

    /// The first row of a query, if any.
    pub(crate) async fn row(
        &mut self,
        sql: &'static str,
        arguments: Vec<Cell>,
    ) -> Result<Option<Row>, Error> {
        Ok(self.rows(sql, arguments).await?.into_iter().next())
    }

    /// Begins a transaction that will write.
    pub(crate) async fn begin(&mut self) -> Result<(), Error> {
        match self {
            Self::Sqlite(_) | Self::SqlitePooled(_) => {
                self.execute("BEGIN IMMEDIATE", vec![]).await?;
            }
            Self::Postgres(_) | Self::PostgresPooled(_) => {
                self.execute("BEGIN", vec![]).await?;
            }
        }
        Ok(())
    }

    /// Begins a transaction that only reads, all of it at one instant.
    pub(crate) async fn begin_snapshot(&mut self) -> Result<(), Error> {
        let begin = if self.is_postgres() {
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        } else {
            "BEGIN"
        };
        self.execute(begin, vec![]).await.map(drop)
    }

    /// Makes the transaction durable.
    pub(crate) async fn commit(&mut self) -> Result<(), Error> {
        self.execute("COMMIT", vec![]).await.map(drop)
    }

    /// Takes the transaction back.
    pub(crate) async fn roll_back(&mut self) -> Result<(), Error> {
        self.execute("ROLLBACK", vec![]).await.map(drop)
    }

    /// Begins one member of a group, which may be taken back alone.
    pub(crate) async fn begin_member(&mut self) -> Result<(), Error> {
        self.execute("SAVEPOINT member", vec![]).await.map(drop)
    }

    /// Keeps a member.
    pub(crate) async fn keep_member(&mut self) -> Result<(), Error> {
        self.execute("RELEASE SAVEPOINT member", vec![])
            .await
            .map(drop)
    }

    /// Takes a member back.
    pub(crate) async fn take_member_back(&mut self) -> Result<(), Error> {
        self.execute("ROLLBACK TO SAVEPOINT member", vec![]).await?;
        self.keep_member().await
    }

    /// Whether the database is a server's.
    fn is_postgres(&self) -> bool {
        matches!(self, Self::Postgres(_) | Self::PostgresPooled(_))
    }

    /// Runs `sqlite` or `postgres`, the one statement of two that must differ in locking.
    pub(crate) async fn locked_rows(
        &mut self,
        sqlite: &'static str,
        postgres: &'static str,
        arguments: Vec<Cell>,
    ) -> Result<Vec<Row>, Error> {
        let sql = if self.is_postgres() { postgres } else { sqlite };
        self.rows(sql, arguments).await
    }

    /// Every row of a query whose text ends in a list of names: `before (…)` with `names` in the list. `fixed` come first.
    pub(crate) async fn rows_by_names(
        &mut self,
        before: &'static str,
        fixed: Vec<Cell>,
        names: &[&str],
    ) -> Result<Vec<Row>, Error> {
        /// Below what either database takes in one statement.
        const NAMES_MAX: usize = 500;
        let mut rows = Vec::new();
        for names in names.chunks(NAMES_MAX) {
            // Rounded up, so that few statements are prepared: a name that is repeated finds nothing more.
            let length = names.len().next_power_of_two();
            let mut sql = String::from(before);
            sql.push_str(" (");
            let mut arguments = fixed.clone();
            for at in 0..length {
                if at > 0 {
                    sql.push(',');
                }
                sql.push('$');
                sql.push_str(&(fixed.len() + at + 1).to_string());
                let name = names.get(at).or(names.last()).copied().unwrap_or_default();
                arguments.push(Cell::from(name));
            }
            sql.push(')');
            // Numbers and our own text alone: nothing from outside is in it.
            rows.extend(
                self.all(AssertSqlSafe(sql).into_sql_str(), arguments)
                    .await?,
            );
        }
        Ok(rows)
    }

    /// Runs a batch.
    pub(crate) async fn run_batch(&mut self, batch: Batch) -> Result<(), Error> {
        let trips = if self.is_postgres() {
            batch.one_by_one()
        } else {
            batch.together()
        };
        for (sql, arguments) in trips {
            // Numbers and our own text alone: nothing from outside is in it.
            self.run(AssertSqlSafe(sql).into_sql_str(), arguments)
                .await?;
        }
        Ok(())
    }

    /// How long an answer is waited for; a file always answers.
    fn answer_timeout(&self) -> Option<Duration> {
        match self {
            Self::Sqlite(_) | Self::SqlitePooled(_) => None,
            Self::Postgres(_) => Some(ANSWER_TIMEOUT),
            Self::PostgresPooled(_) => Some(READER_ANSWER_TIMEOUT),
        }
    }

    /// Closes the connection in good order.
    pub(crate) async fn close(self) -> Result<(), Error> {
        match self {
            Self::Sqlite(connection) => connection.close().await,
            Self::Postgres(connection) => connection.close().await,
            Self::SqlitePooled(_) | Self::PostgresPooled(_) => Ok(()),
        }
        .map_err(Error::Driver)
    }
}

/// What a statement comes to, unless it takes longer than `timeout`.
async fn answered<T>(
    timeout: Option<Duration>,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let Some(timeout) = timeout else {
        return statement.await;
    };
    tokio::time::timeout(timeout, statement)
        .await
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
}

/// Statements that run one after the other. A server takes them one by one. A file takes them in as few trips as it may to
/// the thread that serves it, since a trip costs more than most statements do.
#[derive(Default)]
pub(crate) struct Batch(Vec<Step>);

enum Step {
    Begin,
    Statement {
        sql: &'static str,
        arguments: Vec<Cell>,
    },
    Rows {
        into: &'static str,
        columns: usize,
        cells: Vec<Cell>,
    },
}

impl Batch {
    /// Begins a transaction that will write.
    pub(crate) fn begin(&mut self) {
        self.0.push(Step::Begin);
    }

    /// Makes the transaction durable.
    pub(crate) fn commit(&mut self) {
        self.add("COMMIT", vec![]);
    }

    /// Adds a statement.
    pub(crate) fn add(&mut self, sql: &'static str, arguments: Vec<Cell>) {
        self.0.push(Step::Statement { sql, arguments });
    }

    /// Inserts many rows of the same shape: `into` is `INSERT INTO table (columns) VALUES`, `cells` are those of all rows.
    pub(crate) fn insert_rows(&mut self, into: &'static str, columns: usize, cells: Vec<Cell>) {
        self.0.push(Step::Rows {
            into,
            columns,
            cells,
        });
    }

    /// A text for each statement, with numbered parameters.
    fn one_by_one(self) -> Vec<(String, Vec<Cell>)> {
        let mut trips = Vec::new();
        for step in self.0 {
            match step {
                Step::Begin => trips.push((String::from("BEGIN"), Vec::new())),
                Step::Statement { sql, arguments } => trips.push((sql.to_owned(), arguments)),
                Step::Rows {
                    into,
                    columns,
                    cells,
                } => {
                    let mut rows = cells.len() / columns;
                    let mut cells = cells.into_iter();
                    while rows > 0 {
                        // Few lengths, so that few statements are prepared.
                        let length = match rows {
                            64.. => 64,
                            16.. => 16,
                            4.. => 4,
                            _ => 1,
                        };
                        let mut sql = String::new();
                        push_insert(&mut sql, into, columns, length, true);
                        trips.push((sql, cells.by_ref().take(length * columns).collect()));
                        rows -= length;
                    }
                }
            }
        }
        trips
    }

    /// All statements in one text, with plain parameters, which are counted through; a trip of its own for each
    /// [`TRIP_ROWS_MAX`] rows of a bulk insert but the last, so that few texts are prepared.
    fn together(self) -> Vec<(String, Vec<Cell>)> {
        let mut trips = Vec::new();
        let (mut text, mut all) = (String::new(), Vec::new());
        for step in self.0 {
            match step {
                Step::Begin => text.push_str("BEGIN IMMEDIATE;"),
                Step::Statement { sql, arguments } => {
                    push_plain(&mut text, &mut all, sql, &arguments);
                    text.push(';');
                }
                Step::Rows {
                    into,
                    columns,
                    cells,
                } => {
                    let mut rows = cells.len() / columns;
                    let mut cells = cells.into_iter();
                    while rows > 0 {
                        let length = rows.min(TRIP_ROWS_MAX);
                        push_insert(&mut text, into, columns, length, false);
                        text.push(';');
                        all.extend(cells.by_ref().take(length * columns));
                        rows -= length;
                        if rows > 0 {
                            trips.push((std::mem::take(&mut text), std::mem::take(&mut all)));
                        }
                    }
                }
            }
        }
        if !text.is_empty() {
            trips.push((text, all));
        }
        trips
    }
}

/// Adds a statement with its numbered parameters made plain, and its arguments in the order in which they stand there.
fn push_plain(text: &mut String, all: &mut Vec<Cell>, sql: &str, arguments: &[Cell]) {
    let mut parts = sql.split('$');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_digit());
        let number: Option<usize> = part
            .get(..part.len() - rest.len())
            .and_then(|digits| digits.parse().ok());
        let argument = number.and_then(|number| arguments.get(number.checked_sub(1)?));
        all.push(argument.cloned().unwrap_or(Cell::Integer(None)));
        text.push('?');
        text.push_str(rest);
    }
}

/// Adds the text of a bulk insert. SQLite looks a numbered parameter up by walking all of them, so it gets plain ones.
fn push_insert(sql: &mut String, into: &str, columns: usize, rows: usize, numbered: bool) {
    sql.reserve(into.len() + rows * columns * 6);
    sql.push_str(into);
    for row in 0..rows {
        sql.push_str(if row == 0 { " (" } else { ",(" });
        for column in 0..columns {
            if column > 0 {
                sql.push(',');
            }
            if numbered {
                sql.push('$');
                sql.push_str(&(row * columns + column + 1).to_string());
            } else {
                sql.push('?');
            }
        }
        sql.push(')');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::cells;

    fn group(rows: i64) -> Batch {
        let mut batch = Batch::default();
        batch.begin();
        let cells = (0..rows).flat_map(|row| cells![row, "a"]).collect();
        batch.insert_rows("INSERT INTO t (n, x) VALUES", 2, cells);
        batch.add(
            "UPDATE h SET n = $2, x = $3 WHERE c = $1 OR d = $1",
            cells!["c", 2, "x"],
        );
        batch.commit();
        batch
    }

    fn plain(cells: &[Cell]) -> String {
        let texts = cells.iter().map(|cell| match cell {
            Cell::Integer(value) => value.map(|value| value.to_string()),
            Cell::Text(value) => value.clone(),
            Cell::Bytes(_) => None,
        });
        texts.flatten().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_file_takes_a_small_group_in_one_trip_with_the_arguments_in_the_order_of_the_text() {
        let trips = group(2).together();
        let [(text, arguments)] = trips.as_slice() else {
            panic!("{} trips", trips.len());
        };
        assert_eq!(
            text,
            "BEGIN IMMEDIATE;INSERT INTO t (n, x) VALUES (?,?),(?,?);\
             UPDATE h SET n = ?, x = ? WHERE c = ? OR d = ?;COMMIT;"
        );
        assert_eq!(plain(arguments), "0 a 1 a 2 x c c");
    }

    #[test]
    fn a_large_group_takes_a_trip_for_each_bulk_of_rows_and_loses_none() {
        let trips = group(150).together();
        let rows = |text: &str| text.matches("(?,?)").count();
        let seen: Vec<_> = trips.iter().map(|(text, _)| rows(text)).collect();
        assert_eq!(seen, [64, 64, 22]);
        assert!(trips[0].0.starts_with("BEGIN IMMEDIATE;INSERT"));
        assert!(trips[2].0.ends_with("COMMIT;"));
        for (text, arguments) in &trips {
            assert_eq!(text.matches('?').count(), arguments.len());
        }
        assert_eq!(plain(&trips[2].1[..2]), "128 a");
    }

    #[test]
    fn a_server_takes_each_statement_by_itself_in_few_lengths() {
        let trips = group(70).one_by_one();
        let first_words: Vec<_> = trips
            .iter()
            .map(|(text, arguments)| (text.split(' ').next().unwrap(), arguments.len()))
            .collect();
        assert_eq!(
            first_words,
            [
                ("BEGIN", 0),
                ("INSERT", 128),
                ("INSERT", 8),
                ("INSERT", 2),
                ("INSERT", 2),
                ("UPDATE", 3),
                ("COMMIT", 0)
            ]
        );
        assert!(trips[2].0.ends_with("($1,$2),($3,$4),($5,$6),($7,$8)"));
    }

    #[test]
    fn a_group_without_rows_is_still_a_whole_transaction() {
        let mut batch = Batch::default();
        batch.begin();
        batch.insert_rows("INSERT INTO t (n, x) VALUES", 2, vec![]);
        batch.commit();
        let trips = batch.together();
        assert_eq!(trips.len(), 1);
        assert_eq!(trips[0].0, "BEGIN IMMEDIATE;COMMIT;");
    }
}
