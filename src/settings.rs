//! The operator's flags and environment, read and checked once. Nothing outside this module reads either.

mod admin;
mod serve;
mod vault;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::domain::names::Namespace;
use crate::domain::variable::VALUE_BYTES_MAX_CEILING;

pub use admin::{
    AdminArguments, AdminCommand, AdminSettings, AuditCommand, Expiry, ExpiryError, Head,
    HeadError, TokenCommand, heads,
};
pub use serve::{ClusterSettings, KubernetesArguments, ServeArguments, ServeSettings, Wire};
pub use vault::{DatabaseRisk, MASTER_KEY_VARIABLE, MasterKeySource, VaultArguments, VaultSource};

/// The vault, the operator and the webhook of Barekey for Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "barekey-operator", version, about)]
pub struct Program {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the vault, and with --kubernetes everything that belongs to a cluster.
    Serve(Box<ServeArguments>),
    /// Print the custom resource definitions, or write them to a directory, a file each.
    Crds(CrdsArguments),
    /// Organizations, tokens and the audit trail, over the socket of the running server.
    Admin(AdminArguments),
    /// What goes before the operator goes: its webhook configuration, then its finalizers.
    Uninstall(UninstallArguments),
}

/// How much is logged, and how.
#[derive(Debug, Args)]
pub struct LogArguments {
    /// How much is logged; values, tokens and bodies at no level.
    #[arg(
        long = "log-level",
        env = "BAREKEY_LOG",
        value_name = "LEVEL",
        default_value = "info"
    )]
    pub level: LogLevel,
    /// How it is logged.
    #[arg(
        long = "log-format",
        env = "BAREKEY_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub format: LogFormat,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the words of every log")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// How it is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// The flags of `crds`.
#[derive(Debug, Args)]
pub struct CrdsArguments {
    /// Where the files go; absent: all to standard output.
    pub directory: Option<PathBuf>,
}

/// The flags of `uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArguments {
    /// The MutatingWebhookConfiguration to delete.
    #[arg(
        long,
        env = "BAREKEY_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "00-barekey"
    )]
    pub webhook_configuration: String,
    /// The operator's namespace.
    #[arg(long, env = "BAREKEY_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Namespace,
    /// The Lease that says which replica leads; it is taken meanwhile.
    #[arg(
        long,
        env = "BAREKEY_LEASE",
        value_name = "NAME",
        default_value = "barekey"
    )]
    pub lease: String,
    /// How much is logged, and how.
    #[command(flatten)]
    pub log: LogArguments,
}

/// Why the settings do not pass. Each says what would.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// No master key.
    #[error(
        "there is no master key: name a file with --master-key-file (or BAREKEY_MASTER_KEY_FILE), or set {MASTER_KEY_VARIABLE}; `openssl rand -base64 32` makes one"
    )]
    NoMasterKey,
    /// Two master keys.
    #[error(
        "there are two master keys, in --master-key-file and in {MASTER_KEY_VARIABLE}: leave one of them out"
    )]
    TwoMasterKeys,
    /// A file that cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The database is of no kind that we know. Its text may hold a password and is not shown.
    #[error(
        "the database is neither sqlite:PATH nor postgres://USER:PASSWORD@HOST/NAME (--database, BAREKEY_DATABASE)"
    )]
    Database,
    /// Options that nothing would heed.
    #[error(
        "a SQLite database takes no options: leave out the `?` and what is behind it (--database, BAREKEY_DATABASE)"
    )]
    SqliteOptions,
    /// Too long or zero.
    #[error("--value-bytes-max is {0}: it must be 1 to {VALUE_BYTES_MAX_CEILING}")]
    ValueBytesMax(usize),
    /// Plain HTTP would leave the machine.
    #[error(
        "the API would speak plain HTTP on {0}: listen on a loopback address, or give --tls-certificate-file and --tls-key-file, or --kubernetes"
    )]
    PlainHttp(SocketAddr),
    /// Pods and the API server trust the operator's own certificate alone.
    #[error(
        "with --kubernetes the operator makes its certificate itself: leave out --tls-certificate-file and --tls-key-file (BAREKEY_TLS_CERTIFICATE_FILE, BAREKEY_TLS_KEY_FILE)"
    )]
    TwoCertificates,
    /// Something that belongs to --kubernetes.
    #[error("--kubernetes needs {flag} (or {variable})")]
    Missing {
        /// The flag.
        flag: &'static str,
        /// Its environment variable.
        variable: &'static str,
    },
    /// A line of a file of heads.
    #[error("line {line} of {path} is no head")]
    HeadsFile {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What a head is.
        source: HeadError,
    },
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    fn serve(arguments: &[&str]) -> Result<ServeSettings, SettingsError> {
        let all = ["barekey-operator", "serve"].iter().chain(arguments);
        match Program::try_parse_from(all).unwrap().command {
            Command::Serve(serve) => serve.check(),
            _ => unreachable!("the command was serve"),
        }
    }

    #[test]
    fn the_flags_are_a_valid_definition() {
        use clap::CommandFactory;
        Program::command().debug_assert();
    }

    #[test]
    fn without_flags_the_vault_is_a_file_here_and_listens_on_loopback_in_the_clear() {
        let settings = serve(&[]).unwrap();
        assert_eq!(settings.vault.sqlite_file.unwrap(), Path::new("barekey.db"));
        assert_eq!(settings.admin_socket, Path::new("barekey.db.sock"));
        assert_eq!(settings.wire, Wire::Plain);
        assert!(settings.listen.ip().is_loopback());
        assert!(settings.kubernetes.is_none());
    }

    #[test]
    fn plain_http_is_for_loopback_alone() {
        for address in [
            "127.0.0.1:1",
            "127.9.9.9:1",
            "[::1]:1",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(serve(&["--listen", address]).is_ok(), "{address}");
        }
        for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let error = serve(&["--listen", address]).unwrap_err();
            assert!(matches!(error, SettingsError::PlainHttp(_)), "{address}");
        }
        let files = ["--tls-certificate-file", "c.pem", "--tls-key-file", "k.pem"];
        let settings = serve(&[&["--listen", "0.0.0.0:1"][..], &files].concat()).unwrap();
        assert!(matches!(settings.wire, Wire::Files { .. }));
    }

    #[test]
    fn kubernetes_wants_what_it_cannot_guess_and_says_which() {
        let error = serve(&["--kubernetes"]).unwrap_err().to_string();
        assert!(error.contains("--namespace") && error.contains("BAREKEY_NAMESPACE"));
        let whole = [
            "--kubernetes",
            "--namespace",
            "barekey",
            "--pod-name",
            "barekey-0",
            "--agent-image",
            "docker.io/barekey/agent:0.1.0",
            "--listen",
            "0.0.0.0:10250",
        ];
        let settings = serve(&whole).unwrap();
        assert_eq!(settings.wire, Wire::Made);
        assert_eq!(settings.kubernetes.unwrap().agent_delivery, "init");
        let files = ["--tls-certificate-file", "c.pem", "--tls-key-file", "k.pem"];
        let error = serve(&[&whole[..], &files].concat()).unwrap_err();
        assert!(matches!(error, SettingsError::TwoCertificates));
    }

    #[test]
    fn every_database_has_an_admin_socket_of_its_own() {
        let socket = |database: &str| {
            let settings = serve(&["--database", database]).unwrap();
            settings.admin_socket.to_str().unwrap().to_owned()
        };
        assert_eq!(socket("sqlite:/data/barekey.db"), "/data/barekey.db.sock");
        assert_eq!(socket("sqlite:///data/b.db"), "/data/b.db.sock");
        let named = socket("postgresql://me:hun?ter2@db.example:5433/b?sslmode=verify-full");
        assert!(named.starts_with("barekey-db.example-5433-b-"), "{named}");
        assert_eq!(socket("postgres://db.example:5433/b"), named);
        let host = format!("{}.example", "long".repeat(15));
        let all = [
            format!("postgres://{host}/shop_staging"),
            format!("postgres://{host}/shop_production"),
            "postgres://a-b/c".to_owned(),
            "postgres://a/b-c".to_owned(),
            "postgres:///shop?host=/run/one".to_owned(),
            "postgres:///shop?host=/run/other".to_owned(),
        ];
        let sockets: BTreeSet<_> = all.iter().map(|database| socket(database)).collect();
        assert_eq!(sockets.len(), all.len(), "{sockets:?}");
        assert!(sockets.iter().all(|socket| socket.len() < 60));
    }

    #[test]
    fn behind_a_link_to_a_file_that_is_not_there_yet_the_socket_is_that_files() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        std::fs::create_dir(folder.join("data")).unwrap();
        std::os::unix::fs::symlink("data/b.db", folder.join("link.db")).unwrap();
        let database = format!("sqlite:{}", folder.join("link.db").display());
        let socket = || serve(&["--database", &database]).unwrap().admin_socket;
        assert_eq!(socket(), folder.join("data/b.db.sock"));
        std::fs::write(folder.join("data/b.db"), "").unwrap();
        assert_eq!(socket(), folder.join("data/b.db.sock"));
    }

    #[test]
    fn the_admin_socket_is_named_before_or_behind_what_the_administrator_does() {
        let named = ["--admin-socket", "/run/other.sock"];
        let bootstrap = ["bootstrap", "--organization", "acme"];
        let verify = ["audit", "verify"];
        for does in [&bootstrap[..], &verify] {
            for order in [[&named[..], does], [does, &named]] {
                let words = [&["barekey-operator", "admin"], &order.concat()[..]].concat();
                let Command::Admin(admin) = Program::try_parse_from(&words).unwrap().command else {
                    unreachable!("the command was admin");
                };
                let socket = admin.check().unwrap().socket;
                assert_eq!(socket, Path::new("/run/other.sock"), "{words:?}");
            }
        }
    }

    #[test]
    fn the_vault_is_named_before_or_behind_what_the_administrator_does() {
        let named = [
            "--database",
            "sqlite:other.db",
            "--master-key-file",
            "other.key",
        ];
        let create = [
            "token",
            "create",
            "--organization",
            "acme",
            "--role",
            "viewer",
        ];
        for order in [[&named[..], &create], [&create, &named]] {
            let words = [&["barekey-operator", "admin"], &order.concat()[..]].concat();
            let Command::Admin(admin) = Program::try_parse_from(&words).unwrap().command else {
                unreachable!("the command was admin");
            };
            let settings = admin.check().unwrap();
            assert_eq!(settings.socket, Path::new("other.db.sock"), "{words:?}");
            assert_eq!(settings.vault.database, "sqlite:other.db");
        }
    }

    #[test]
    fn a_database_of_another_kind_is_refused_without_showing_it() {
        let error = serve(&["--database", "mysql://root:hunter2@db/x"]).unwrap_err();
        assert!(matches!(error, SettingsError::Database));
        assert!(!error.to_string().contains("hunter2"));
    }

    #[test]
    fn options_behind_a_sqlite_file_are_refused_and_those_of_postgresql_are_not() {
        for database in ["sqlite:barekey.db?mode=rwc", "sqlite:///data/barekey.db?"] {
            let error = serve(&["--database", database]).unwrap_err();
            assert!(matches!(error, SettingsError::SqliteOptions), "{database}");
        }
        assert!(serve(&["--database", "postgres://db/barekey?sslmode=verify-full"]).is_ok());
    }

    #[test]
    fn a_value_limit_above_the_ceiling_is_refused() {
        assert!(serve(&["--value-bytes-max", "1048576"]).is_ok());
        assert!(serve(&["--value-bytes-max", "1048577"]).is_err());
        assert!(serve(&["--value-bytes-max", "0"]).is_err());
    }
}
