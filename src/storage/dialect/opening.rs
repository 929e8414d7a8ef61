//! Opening a database: the lock of a file, what a server is set to, the schema.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Mutex;
use std::time::Duration;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions as _, Connection as _, SqlSafeStr};

use super::{ACQUIRE_TIMEOUT, Database};
use crate::storage::Error;

/// How many connections read at the same time.
const READERS_MAX: u32 = 8;
/// How long SQLite waits for a lock (of a backup tool, say).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
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

const SQLITE_MIGRATIONS: [(i64, &str, &str); 1] = [(
    1,
    "schema",
    include_str!("../migrations/sqlite/0001_schema.sql"),
)];

const POSTGRES_MIGRATIONS: [(i64, &str, &str); 1] = [(
    1,
    "schema",
    include_str!("../migrations/postgres/0001_schema.sql"),
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
    /// The file has other names, under which another process would not see the lock.
    #[error(
        "the database {path} has {links} names (hard links), under which SQLite would lose data: remove the others, or give this process a copy"
    )]
    Linked {
        /// The database file.
        path: PathBuf,
        /// How many names it has.
        links: u64,
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
        // The lock is beside the file itself, as SQLite's journal is, whichever symbolic link leads there.
        let path = &path.canonicalize().map_err(file_error)?;
        let lock = lock_file(path)?;
        let links = file.metadata().map_err(file_error)?.nlink();
        if links > 1 {
            return Err(OpenError::Linked {
                path: path.to_owned(),
                links,
            });
        }
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
