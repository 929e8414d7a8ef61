//! Where the vault is and what opens it: flags of `serve` and of `admin`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use zeroize::Zeroizing;

use super::SettingsError;
use crate::domain::plaintext::Plaintext;
use crate::domain::variable::{VALUE_BYTES_MAX, VALUE_BYTES_MAX_CEILING};

/// Where the master key may be, base64 of 32 bytes. An environment variable alone: a flag would be in the process list.
pub const MASTER_KEY_VARIABLE: &str = "BAREKEY_MASTER_KEY_B64";

/// Where the vault is, and what opens it.
#[derive(Debug, Args)]
pub struct VaultArguments {
    /// The database: sqlite:PATH or postgres://USER:PASSWORD@HOST/NAME.
    #[arg(
        long,
        env = "BAREKEY_DATABASE",
        hide_env_values = true,
        value_name = "URL",
        default_value = "sqlite:barekey.db",
        global = true
    )]
    database: String,
    /// The file with the master key: 32 bytes, or their base64. Or set BAREKEY_MASTER_KEY_B64.
    #[arg(
        long,
        env = "BAREKEY_MASTER_KEY_FILE",
        value_name = "PATH",
        global = true
    )]
    master_key_file: Option<PathBuf>,
    /// A setting of PostgreSQL that is accepted although it may lose writes or trust the wrong server; may be repeated.
    #[arg(
        long,
        env = "BAREKEY_ACCEPT_DATABASE_RISK",
        value_delimiter = ',',
        value_name = "RISK",
        global = true
    )]
    accept_database_risk: Vec<DatabaseRisk>,
    /// The longest value that is accepted, in bytes; at most 1048576.
    #[arg(
        long,
        env = "BAREKEY_VALUE_BYTES_MAX",
        value_name = "BYTES",
        default_value_t = VALUE_BYTES_MAX,
        global = true
    )]
    value_bytes_max: usize,
}

/// A setting of PostgreSQL that is refused unless it is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DatabaseRisk {
    /// Acknowledged writes may be lost.
    SynchronousCommitOff,
    /// The database may be lost.
    FsyncOff,
    /// The server's identity is not proven.
    Sslmode,
}

/// Where the master key came from, and what was there.
#[derive(Debug)]
pub enum MasterKeySource {
    /// A file.
    File {
        /// Its path.
        path: PathBuf,
        /// What is in it.
        content: Plaintext,
        /// Whether every user of the machine may read it.
        open_to_all: bool,
    },
    /// The environment variable [`MASTER_KEY_VARIABLE`].
    Environment(Plaintext),
}

/// Where the vault is, checked.
#[derive(Debug)]
pub struct VaultSource {
    /// `sqlite:PATH` or `postgres://…`.
    pub database: String,
    /// The file of a SQLite database.
    pub sqlite_file: Option<PathBuf>,
    /// Risks that are accepted by name.
    pub accepted_risks: Vec<DatabaseRisk>,
    /// The longest value that is accepted, in bytes.
    pub value_bytes_max: usize,
    master_key_file: Option<PathBuf>,
}

impl VaultSource {
    /// Reads the master key. Asked for only when the vault is opened.
    ///
    /// # Errors
    /// None, two, or a file that cannot be read.
    pub fn master_key(&self) -> Result<MasterKeySource, SettingsError> {
        let variable = std::env::var(MASTER_KEY_VARIABLE)
            .ok()
            .filter(|text| !text.is_empty())
            .map(Plaintext::from);
        match (&self.master_key_file, variable) {
            (None, None) => Err(SettingsError::NoMasterKey),
            (Some(_), Some(_)) => Err(SettingsError::TwoMasterKeys),
            (None, Some(text)) => Ok(MasterKeySource::Environment(text)),
            (Some(path), None) => {
                let (content, open_to_all) =
                    read_key(path).map_err(|source| SettingsError::Read {
                        path: path.clone(),
                        source,
                    })?;
                Ok(MasterKeySource::File {
                    path: path.clone(),
                    content,
                    open_to_all,
                })
            }
        }
    }
}

impl VaultArguments {
    pub(super) fn check(self) -> Result<VaultSource, SettingsError> {
        if self.database.starts_with("sqlite:") && self.database.contains('?') {
            return Err(SettingsError::SqliteOptions);
        }
        let sqlite_file = sqlite_file(&self.database);
        let postgres = ["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| self.database.starts_with(scheme));
        if sqlite_file.is_none() && !postgres {
            return Err(SettingsError::Database);
        }
        if !(1..=VALUE_BYTES_MAX_CEILING).contains(&self.value_bytes_max) {
            return Err(SettingsError::ValueBytesMax(self.value_bytes_max));
        }
        Ok(VaultSource {
            database: self.database,
            sqlite_file,
            accepted_risks: self.accept_database_risk,
            value_bytes_max: self.value_bytes_max,
            master_key_file: self
                .master_key_file
                .filter(|path| !path.as_os_str().is_empty()),
        })
    }
}

/// What is in a file, and whether every user may read it. Its group may: Kubernetes gives a volume's files to one.
fn read_key(path: &Path) -> std::io::Result<(Plaintext, bool)> {
    let mut file = File::open(path)?;
    let open_to_all = file.metadata()?.permissions().mode() & 0o004 != 0;
    let mut content = Zeroizing::new(Vec::new());
    file.read_to_end(&mut content)?;
    Ok((Plaintext::new(std::mem::take(&mut *content)), open_to_all))
}

/// The file of `sqlite:PATH` or `sqlite://PATH`; `None` for other databases and for one in memory.
fn sqlite_file(database: &str) -> Option<PathBuf> {
    let rest = database.strip_prefix("sqlite:")?;
    let path = rest.strip_prefix("//").unwrap_or(rest);
    (!path.is_empty() && path != ":memory:").then(|| PathBuf::from(path))
}
