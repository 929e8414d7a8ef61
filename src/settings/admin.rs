//! The flags of `admin`, and what its words say: when a token ends, which head was published.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use super::SettingsError;
use super::vault::{VaultArguments, VaultSource};
use crate::domain::access::Role;
use crate::domain::names::{OrganizationSlug, ProjectSlug, StageSlug, TokenId, is_unseen};

/// The longest time from now after which a token may end, in days: a hundred years.
const EXPIRY_DAYS_MAX: u64 = 36_500;
/// How many characters of a database's address the name of its socket shows: the path of a socket has 107 bytes.
const SOCKET_NAME_CHARACTERS: usize = 30;

/// The flags of `admin`.
#[derive(Debug, Args)]
pub struct AdminArguments {
    #[command(flatten)]
    vault: VaultArguments,
    /// The socket of the running server, whose database counts then [default: as of `serve` with the same --database].
    #[arg(long, env = "BAREKEY_ADMIN_SOCKET", value_name = "PATH", global = true)]
    admin_socket: Option<PathBuf>,
    #[command(subcommand)]
    command: AdminCommand,
}

/// What an administrator does.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Make one organization and print its owner's token.
    Bootstrap {
        /// The organization's slug.
        #[arg(long, value_name = "SLUG")]
        organization: OrganizationSlug,
    },
    /// API tokens.
    Token {
        /// What to do with them.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// The audit trail.
    Audit {
        /// What to do with it.
        #[command(subcommand)]
        command: AuditCommand,
    },
}

/// What is done with API tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it.
    Create {
        /// The organization's slug.
        #[arg(long, value_name = "SLUG")]
        organization: OrganizationSlug,
        /// What it may do: owner, admin, developer, operator, viewer or billing.
        #[arg(long)]
        role: Role,
        /// What people call it.
        #[arg(long, default_value = "token", value_parser = token_name)]
        name: String,
        /// The project that it is cut to.
        #[arg(long, value_name = "SLUG")]
        project: Option<ProjectSlug>,
        /// The stage that it is cut to.
        #[arg(long, value_name = "SLUG", requires = "project")]
        stage: Option<StageSlug>,
        /// When it ends: an instant such as 2027-01-31T12:00:00Z, or a time from now such as 30d or 12h. Absent: never.
        #[arg(long, value_name = "WHEN")]
        expires: Option<Expiry>,
    },
    /// Revoke a token; it is refused at once.
    Revoke {
        /// The organization's slug.
        #[arg(long, value_name = "SLUG")]
        organization: OrganizationSlug,
        /// The token's id, as `token create` and the audit trail name it. With any that is none, such as `list`, those that
        /// there are are listed, with name, role, scope and last use.
        #[arg(value_name = "TOKEN_ID")]
        token: TokenId,
    },
}

/// A token's name: trimmed, 1 to 64 characters, each of which is seen.
fn token_name(text: &str) -> Result<String, String> {
    let name = text.trim();
    if (1..=64).contains(&name.chars().count()) && !name.chars().any(is_unseen) {
        Ok(name.to_owned())
    } else {
        Err("it must have 1 to 64 characters, without control and invisible ones".to_owned())
    }
}

/// What is done with the audit trail.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Read every record and say which is altered, missing, reordered or cut off. Exit code 1 when the trail is not whole.
    Verify {
        /// A head that was published outside the database, as the log has it; may be repeated.
        #[arg(long, value_name = "CHAIN:EPOCH:SEQUENCE:MAC")]
        head: Vec<Head>,
        /// A file with such heads, one a line.
        #[arg(long, value_name = "PATH")]
        heads_file: Option<PathBuf>,
    },
}

/// The settings of `admin`, checked.
#[derive(Debug)]
pub struct AdminSettings {
    /// Where the vault is, for when no server runs.
    pub vault: VaultSource,
    /// The socket of the running server.
    pub socket: PathBuf,
    /// What to do.
    pub command: AdminCommand,
}

impl AdminArguments {
    /// Checks what belongs together.
    ///
    /// # Errors
    /// [`SettingsError`], which says what would pass.
    pub fn check(self) -> Result<AdminSettings, SettingsError> {
        let vault = self.vault.check()?;
        Ok(AdminSettings {
            socket: admin_socket(self.admin_socket, &vault),
            vault,
            command: self.command,
        })
    }
}

/// The socket that was given, or the one of that database: `FILE.sock` beside a SQLite file, and in the working directory
/// one that has the name of PostgreSQL's host and database. Two databases never share one by default.
pub(super) fn admin_socket(given: Option<PathBuf>, vault: &VaultSource) -> PathBuf {
    if let Some(path) = given.filter(|path| !path.as_os_str().is_empty()) {
        return path;
    }
    let Some(file) = &vault.sqlite_file else {
        return PathBuf::from(format!("barekey-{}.sock", place(&vault.database)));
    };
    let file = behind_links(file);
    let mut socket = file.into_os_string();
    socket.push(".sock");
    socket.into()
}

/// The file itself, whichever symbolic link leads there; behind one to nothing yet, what will be there.
fn behind_links(file: &Path) -> PathBuf {
    if !file.is_symlink() {
        return file.to_owned();
    }
    if let Ok(there) = file.canonicalize() {
        return there;
    }
    let Ok(target) = file.read_link() else {
        return file.to_owned();
    };
    let target = file
        .parent()
        .map_or(target.clone(), |folder| folder.join(&target));
    match (target.parent().map(Path::canonicalize), target.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => target,
    }
}

/// Host and database of a PostgreSQL address, as a part of a file's name: readable, and a hash that tells long ones apart.
/// Without user and password.
fn place(address: &str) -> String {
    let behind_scheme = address.split_once("://").map_or(address, |(_, rest)| rest);
    let behind_user = behind_scheme
        .rsplit_once('@')
        .map_or(behind_scheme, |(_, rest)| rest);
    let (place, options) = behind_user.split_once('?').unwrap_or((behind_user, ""));
    let says_where = |option: &&str| {
        let key = option.split('=').next().unwrap_or_default();
        matches!(key, "host" | "hostaddr" | "port" | "dbname")
    };
    // Who serves and who administers are the same program, so its own hash will do.
    let mut hasher = DefaultHasher::new();
    place.hash(&mut hasher);
    for option in options.split('&').filter(says_where) {
        option.hash(&mut hasher);
    }
    let readable: String = place
        .chars()
        .map(|character| match character {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '_' | '-' => character,
            _ => '-',
        })
        .take(SOCKET_NAME_CHARACTERS)
        .collect();
    format!("{readable}-{:08x}", hasher.finish() & 0xffff_ffff)
}

/// When a token ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// At an instant, in milliseconds since 1970.
    At(i64),
    /// So long from now.
    In(Duration),
}

impl Expiry {
    /// The instant, in milliseconds since 1970.
    pub fn instant_ms(self, now_ms: i64) -> i64 {
        match self {
            Self::At(instant_ms) => instant_ms,
            Self::In(time) => {
                now_ms.saturating_add(i64::try_from(time.as_millis()).unwrap_or(i64::MAX))
            }
        }
    }
}

/// Why a text is not the end of a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpiryError {
    /// No form that is known.
    #[error(
        "it is neither an instant such as 2027-01-31T12:00:00Z nor a time from now such as 30d, 12h or 90m"
    )]
    Unreadable,
    /// Nobody means that.
    #[error(
        "it is more than {EXPIRY_DAYS_MAX} days from now: leave out --expires for a token that never ends"
    )]
    TooFar,
}

impl std::str::FromStr for Expiry {
    type Err = ExpiryError;

    fn from_str(text: &str) -> Result<Self, ExpiryError> {
        for (unit, seconds) in [("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)] {
            if let Some(count) = text.strip_suffix(unit) {
                let digits = count.bytes().all(|byte| byte.is_ascii_digit());
                if count.is_empty() || !digits {
                    return Err(ExpiryError::Unreadable);
                }
                let count: u64 = count.parse().map_err(|_| ExpiryError::TooFar)?;
                return count
                    .checked_mul(seconds)
                    .filter(|seconds| *seconds <= EXPIRY_DAYS_MAX * 86_400)
                    .map(|seconds| Self::In(Duration::from_secs(seconds)))
                    .ok_or(ExpiryError::TooFar);
            }
        }
        let instant: jiff::Timestamp = text.parse().map_err(|_| ExpiryError::Unreadable)?;
        Ok(Self::At(instant.as_millisecond()))
    }
}

/// A published head of an audit chain: `CHAIN:EPOCH:SEQUENCE:MAC`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The organization's id, or `installation`.
    pub chain: String,
    /// The epoch.
    pub epoch: i64,
    /// The sequence of the newest record.
    pub sequence: i64,
    /// Its MAC, in hex.
    pub mac: String,
}

/// Why a text is not a head.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a head is CHAIN:EPOCH:SEQUENCE:MAC, as the log has it after `head=`")]
pub struct HeadError;

impl std::str::FromStr for Head {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let mut parts = text.trim().split(':');
        let (Some(chain), Some(epoch), Some(sequence), Some(mac), None) = (
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
            parts.next(),
        ) else {
            return Err(HeadError);
        };
        let head = Self {
            chain: chain.to_owned(),
            epoch: epoch.parse().map_err(|_| HeadError)?,
            sequence: sequence.parse().map_err(|_| HeadError)?,
            mac: mac.to_owned(),
        };
        let whole = !chain.is_empty() && mac.bytes().all(|byte| byte.is_ascii_hexdigit());
        if whole { Ok(head) } else { Err(HeadError) }
    }
}

/// The heads that were given one by one and in a file. Empty lines count for nothing.
///
/// # Errors
/// A file that cannot be read, or a line in it that is no head.
pub fn heads(given: Vec<Head>, file: Option<&Path>) -> Result<Vec<Head>, SettingsError> {
    let mut heads = given;
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
            path: path.to_owned(),
            source,
        })?;
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() {
                continue;
            }
            heads.push(line.parse().map_err(|source| SettingsError::HeadsFile {
                path: path.to_owned(),
                line: index + 1,
                source,
            })?);
        }
    }
    Ok(heads)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_at_an_instant_or_a_time_from_now() {
        assert_eq!(
            "30d".parse(),
            Ok(Expiry::In(Duration::from_secs(30 * 86_400)))
        );
        assert_eq!(
            "12h".parse::<Expiry>().unwrap().instant_ms(1_000),
            43_201_000
        );
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Expiry::At(1_000)));
        for bad in ["", "d", "-1d", "30", "30w", "tomorrow", "1970-01-01"] {
            assert_eq!(
                bad.parse::<Expiry>(),
                Err(ExpiryError::Unreadable),
                "{bad:?}"
            );
        }
        assert!("36500d".parse::<Expiry>().is_ok());
        for far in ["36501d", "99999999999999d", "99999999999999999999999s"] {
            assert_eq!(far.parse::<Expiry>(), Err(ExpiryError::TooFar), "{far:?}");
        }
    }

    #[test]
    fn a_tokens_name_has_nothing_that_is_not_seen() {
        assert_eq!(token_name(" build bot "), Ok("build bot".to_owned()));
        for bad in ["", " ", "a\nb", "a\u{202e}b", "a\u{200b}"] {
            assert!(token_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_head_has_four_parts() {
        let head: Head = "org_1:1:42:00ff".parse().unwrap();
        assert_eq!((head.epoch, head.sequence), (1, 42));
        for bad in ["", "a:1:2", "a:1:2:zz", "a:x:2:00", ":1:2:00", "a:1:2:00:b"] {
            assert!(bad.parse::<Head>().is_err(), "{bad:?}");
        }
    }
}
