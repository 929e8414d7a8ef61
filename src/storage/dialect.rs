//! What differs between SQLite and PostgreSQL: how they are opened, connections, transactions, locks, bulk inserts, name
//! lists. Nothing else in the crate names the driver.

mod opening;

use std::fs::File;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::TryStreamExt as _;
use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgSeverity};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool, Postgres, Row as _,
    SqlSafeStr, SqlStr, Sqlite, SqliteConnection, SqlitePool, TypeInfo as _, ValueRef as _,
};

pub(crate) use self::opening::{OpenError, Risk};
use crate::storage::{Batch, Cell, Error, Row};

/// How long a reader waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
/// How long an answer of PostgreSQL is waited for: longer than it is told to take, so that only a server that cannot be
/// reached is given up, and shorter than the writer gives a group.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(18);
/// The same for readers.
const READER_ANSWER_TIMEOUT: Duration = Duration::from_secs(25);

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
            Self::Sqlite {
                readers,
                write,
                lock,
            } => {
                readers.close().await;
                if let Err(error) = fold_journal(write).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "the journal stays beside the database: whoever copies it copies both"
                    );
                }
                drop(lock.lock().unwrap_or_else(PoisonError::into_inner).take());
            }
            Self::Postgres { readers, .. } => readers.close().await,
        }
    }
}

/// Brings what is in the journal into the file, which is whole by itself then. The last connection to close would do so, but
/// readers may not.
async fn fold_journal(write: &SqliteConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = write.connect().await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)")
        .execute(&mut connection)
        .await?;
    connection.close().await
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
                    _ => match row.try_get(at) {
                        Ok(text) => Cell::Text(text),
                        // A file takes bytes as a text that are none: a column that is read as one says so.
                        Err(_) => Cell::Bytes(row.try_get(at)?),
                    },
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
            // Each row is read as it comes, so that a stage is not in memory twice.
            let rows = query.fetch(driver);
            let rows = rows.and_then(|row| async move { cells_of!(row) });
            answered(timeout, rows.try_collect()).await
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
        let mut rows = Vec::new();
        for (sql, arguments) in by_names(before, &fixed, names) {
            rows.extend(self.all(sql, arguments).await?);
        }
        Ok(rows)
    }

    /// Runs a statement whose text ends in a list of names, as [`Self::rows_by_names`] does.
    pub(crate) async fn execute_by_names(
        &mut self,
        before: &'static str,
        fixed: Vec<Cell>,
        names: &[&str],
    ) -> Result<(), Error> {
        for (sql, arguments) in by_names(before, &fixed, names) {
            self.run(sql, arguments).await?;
        }
        Ok(())
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

/// Whether the database says that it did nothing: a server that ends the connection may have done what was asked before.
pub(super) fn is_certain(error: &(dyn DatabaseError + 'static)) -> bool {
    match error.try_downcast_ref::<PgDatabaseError>() {
        Some(error) => is_refusal(error.severity(), error.code()),
        None => true,
    }
}

/// Whether a server refused one statement, and goes on.
fn is_refusal(severity: PgSeverity, code: &str) -> bool {
    /// Connection exceptions, interventions of the operator, faults of the system.
    const ENDINGS: [&str; 3] = ["08", "57P", "58"];
    let ends = ENDINGS.iter().any(|class| code.starts_with(class));
    severity == PgSeverity::Error && !ends
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

/// The texts of a statement for all `names`, with their arguments: `fixed`, then names.
fn by_names(
    before: &'static str,
    fixed: &[Cell],
    names: &[&str],
) -> impl Iterator<Item = (SqlStr, Vec<Cell>)> {
    /// Below what either database takes in one statement.
    const NAMES_MAX: usize = 500;
    names.chunks(NAMES_MAX).map(move |names| {
        // Rounded up, so that few statements are prepared: a name that is repeated finds nothing more.
        let length = names.len().next_power_of_two();
        let mut sql = String::from(before);
        sql.push_str(" (");
        let mut arguments = fixed.to_vec();
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
        (AssertSqlSafe(sql).into_sql_str(), arguments)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::test_server;

    #[test]
    fn only_a_refusal_of_one_statement_is_certain() {
        for (severity, code, certain) in [
            (PgSeverity::Error, "23505", true),
            (PgSeverity::Error, "40001", true),
            (PgSeverity::Error, "57014", true),
            (PgSeverity::Error, "53100", true),
            (PgSeverity::Fatal, "57P01", false),
            (PgSeverity::Error, "57P01", false),
            (PgSeverity::Fatal, "53300", false),
            (PgSeverity::Panic, "XX000", false),
            (PgSeverity::Error, "08006", false),
            (PgSeverity::Error, "58030", false),
        ] {
            assert_eq!(is_refusal(severity, code), certain, "{severity:?} {code}");
        }
    }

    #[tokio::test]
    async fn nobody_knows_what_a_server_did_that_ended_the_connection() {
        let address = test_server::make_database().await;
        let database = Database::open(&address, &[Risk::SslMode]).await.unwrap();
        let mut db = database.writer().await.unwrap();
        let refused = db.execute("SELECT 1 FROM nothing", vec![]).await;
        assert!(!refused.unwrap_err().is_uncertain());
        db.begin().await.unwrap();
        test_server::end_connections(&address).await;
        assert!(db.commit().await.unwrap_err().is_uncertain());
    }
}
