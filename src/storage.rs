//! The only SQL: one file a noun. The same text runs on SQLite and on PostgreSQL; what must differ is in [`dialect`].
//!
//! Nothing here opens an envelope: rows come and go sealed. A function is one statement, named for what comes back, with
//! the stage, project or organization first; the driver's error goes up unchanged, and `vault` begins and ends transactions.

pub(crate) mod audit;
mod batch;
pub(crate) mod credentials;
pub(crate) mod dialect;
pub(crate) mod organizations;
pub(crate) mod projects;
pub(crate) mod sealed_keys;
#[cfg(test)]
pub(crate) mod test_server;
pub(crate) mod usage;
pub(crate) mod variables;

pub(crate) use batch::Batch;
pub(crate) use dialect::{Connection, Database, OpenError, Risk};

/// Why a statement did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// What the driver says.
    #[error("the database refused a statement")]
    Driver(#[source] sqlx::Error),
    /// There is no connection: nothing was asked of the database.
    #[error("the database cannot be reached")]
    Unreachable(#[source] sqlx::Error),
    /// The database did not take a group in time.
    #[error("the database did not answer within {seconds} seconds")]
    TooSlow {
        /// How long it was waited for.
        seconds: u64,
    },
    /// A column holds something that this program never wrote.
    #[error("the database holds something that cannot be: {what}")]
    Unexpected {
        /// Which column, and why.
        what: String,
    },
}

impl Error {
    /// Whether another replica was in the way, so that the same may work when it is tried again.
    pub(crate) fn is_conflict(&self) -> bool {
        /// Serialization failure, deadlock.
        const CONFLICTS: [&str; 2] = ["40001", "40P01"];
        self.has_code(&CONFLICTS)
    }

    /// Whether what was asked may have been done all the same: no answer came, or one that ends the connection.
    pub(crate) fn is_uncertain(&self) -> bool {
        match self {
            Self::Driver(sqlx::Error::Database(error)) => !dialect::is_certain(error.as_ref()),
            Self::Driver(_) => true,
            Self::TooSlow { .. } => true,
            Self::Unreachable(_) | Self::Unexpected { .. } => false,
        }
    }

    /// Whether the same will happen again: what is stored cannot be.
    pub(crate) fn is_lasting(&self) -> bool {
        matches!(self, Self::Unexpected { .. })
    }

    /// Whether the database gave a statement up because it took too long: whoever is in the way is in the way of the next
    /// statement too.
    pub(crate) fn is_given_up(&self) -> bool {
        /// Lock not available, query canceled.
        const GIVEN_UP: [&str; 2] = ["55P03", "57014"];
        self.has_code(&GIVEN_UP)
    }

    fn has_code(&self, codes: &[&str]) -> bool {
        match self {
            Self::Driver(sqlx::Error::Database(error)) => error
                .code()
                .is_some_and(|code| codes.contains(&code.as_ref())),
            _ => false,
        }
    }

    /// A stored `what` that does not parse.
    fn unexpected(what: impl Into<String>) -> Self {
        Self::Unexpected { what: what.into() }
    }
}

/// One argument of a statement, or one column of a row. Absent ones keep their type, which PostgreSQL asks for.
#[derive(Debug, Clone)]
pub(crate) enum Cell {
    /// BIGINT or INTEGER.
    Integer(Option<i64>),
    /// TEXT.
    Text(Option<String>),
    /// BYTEA or BLOB.
    Bytes(Option<Vec<u8>>),
}

impl From<i64> for Cell {
    fn from(value: i64) -> Self {
        Self::Integer(Some(value))
    }
}

impl From<Option<i64>> for Cell {
    fn from(value: Option<i64>) -> Self {
        Self::Integer(value)
    }
}

impl From<bool> for Cell {
    fn from(value: bool) -> Self {
        Self::Integer(Some(i64::from(value)))
    }
}

impl From<&str> for Cell {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Cell {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<Option<String>> for Cell {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

impl From<Option<&str>> for Cell {
    fn from(value: Option<&str>) -> Self {
        Self::Text(value.map(str::to_owned))
    }
}

impl From<&[u8]> for Cell {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(Some(value.to_vec()))
    }
}

/// The arguments of a statement, in order.
macro_rules! cells {
    ($($cell:expr),* $(,)?) => { vec![$($crate::storage::Cell::from($cell)),*] };
}
pub(crate) use cells;

/// One row, read by position.
#[derive(Debug)]
pub(crate) struct Row(Vec<Cell>);

impl Row {
    fn cell(&self, at: usize) -> Result<&Cell, Error> {
        self.0
            .get(at)
            .ok_or_else(|| Error::unexpected(format!("a row without column {at}")))
    }

    /// An integer that is there.
    pub(crate) fn integer(&self, at: usize) -> Result<i64, Error> {
        self.maybe_integer(at)?
            .ok_or_else(|| Error::unexpected(format!("column {at} is NULL")))
    }

    /// An integer, or nothing.
    fn maybe_integer(&self, at: usize) -> Result<Option<i64>, Error> {
        match self.cell(at)? {
            Cell::Integer(value) => Ok(*value),
            Cell::Text(None) | Cell::Bytes(None) => Ok(None),
            Cell::Text(Some(_)) | Cell::Bytes(Some(_)) => {
                Err(Error::unexpected(format!("column {at} is no number")))
            }
        }
    }

    /// A truth value.
    fn truth(&self, at: usize) -> Result<bool, Error> {
        Ok(self.integer(at)? != 0)
    }

    /// A text that is there.
    pub(crate) fn text(&self, at: usize) -> Result<&str, Error> {
        self.maybe_text(at)?
            .ok_or_else(|| Error::unexpected(format!("column {at} is NULL")))
    }

    /// A text, or nothing.
    fn maybe_text(&self, at: usize) -> Result<Option<&str>, Error> {
        match self.cell(at)? {
            Cell::Text(value) => Ok(value.as_deref()),
            Cell::Integer(None) | Cell::Bytes(None) => Ok(None),
            Cell::Integer(Some(_)) | Cell::Bytes(Some(_)) => {
                Err(Error::unexpected(format!("column {at} is no text")))
            }
        }
    }

    /// Bytes that are there.
    fn bytes(&self, at: usize) -> Result<&[u8], Error> {
        match self.cell(at)? {
            Cell::Bytes(Some(value)) => Ok(value),
            _ => Err(Error::unexpected(format!("column {at} is no bytes"))),
        }
    }

    /// A text that is there, which leaves the row.
    fn take_text(&mut self, at: usize) -> Result<String, Error> {
        match self.0.get_mut(at) {
            Some(Cell::Text(Some(text))) => Ok(std::mem::take(text)),
            _ => self.text(at).map(str::to_owned),
        }
    }

    /// What a row that may hold anything calls itself.
    fn label(&self, at: usize) -> String {
        /// As long as a name may be.
        const CHARACTERS_MAX: usize = 160;
        let text = match self.0.get(at) {
            Some(Cell::Text(Some(text))) => text.into(),
            Some(Cell::Bytes(Some(bytes))) => String::from_utf8_lossy(bytes),
            _ => "?".into(),
        };
        let characters = text.chars().take(CHARACTERS_MAX);
        characters.flat_map(char::escape_debug).collect()
    }

    /// A text that parses as a name, an id or a word.
    fn parsed<T: std::str::FromStr>(&self, at: usize) -> Result<T, Error> {
        self.text(at)?
            .parse()
            .map_err(|_| Error::unexpected(format!("column {at} does not parse")))
    }

    /// A text that parses, or nothing.
    fn maybe_parsed<T: std::str::FromStr>(&self, at: usize) -> Result<Option<T>, Error> {
        self.maybe_text(at)?
            .map(|text| {
                text.parse()
                    .map_err(|_| Error::unexpected(format!("column {at} does not parse")))
            })
            .transpose()
    }
}

/// Rows, each read by itself: one that holds something that this program never wrote does not take the others with it.
#[derive(Debug)]
pub(crate) struct Found<T> {
    /// Those that are as we write them.
    pub(crate) whole: Vec<T>,
    /// What the others call themselves, as stored.
    pub(crate) altered: Vec<String>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self {
            whole: Vec::new(),
            altered: Vec::new(),
        }
    }
}

impl<T> Found<T> {
    /// Reads `rows`; `label` says what one calls itself.
    fn of(
        rows: Vec<Row>,
        mut parse: impl FnMut(&mut Row) -> Result<T, Error>,
        label: impl Fn(&Row) -> String,
    ) -> Self {
        let mut found = Self::default();
        for mut row in rows {
            match parse(&mut row) {
                Ok(whole) => found.whole.push(whole),
                Err(_) => found.altered.push(label(&row)),
            }
        }
        found
    }

    /// The whole rows, where the others are nothing; our log is told of them.
    pub(crate) fn whole_or_told(self, what: &'static str) -> Vec<T> {
        for name in &self.altered {
            tracing::warn!(
                what,
                name,
                "a row was altered in the database: it is passed over"
            );
        }
        self.whole
    }
}
