//! What the operator says on standard error. No body, header, token or value at any level.
//!
//! Our own crates follow the chosen level. Everything from elsewhere is cut at `info`, whatever is chosen: at `debug` and
//! `trace` HTTP and TLS libraries print headers, and the database driver prints statements. Heads of the audit trail
//! (target [`AUDIT_TARGET`]) are said at every level, since they are what a later check compares with.

use tracing::Level;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// The target of the heads of the audit trail.
pub const AUDIT_TARGET: &str = "audit";

/// The crates that follow the chosen level.
const OURS: [&str; 2] = ["barekey", "barekey_operator"];

/// What passes at `level`.
fn targets(level: Level) -> Targets {
    let foreign = LevelFilter::from_level(level.min(Level::INFO));
    Targets::new()
        .with_default(foreign)
        // Below, it tells the whole answer that it could not read: custom resources, and reviews of tokens with the token in them.
        .with_target("kube_client", LevelFilter::ERROR)
        // At `info` and below the driver tells statements that were slow: names and ids, no values, and no use to anyone else.
        .with_target("sqlx", LevelFilter::WARN.min(foreign))
        .with_target(AUDIT_TARGET, LevelFilter::INFO)
        .with_targets(OURS.map(|target| (target, LevelFilter::from_level(level))))
}

/// Starts the log as lines for people. Once a process.
///
/// # Errors
/// When it was started before.
pub fn start_text(level: Level) -> Result<(), TryInitError> {
    tracing_subscriber::registry()
        .with(targets(level))
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(false),
        )
        .try_init()
}

/// Starts the log as a JSON object a line. Once a process.
///
/// # Errors
/// When it was started before.
pub fn start_json(level: Level) -> Result<(), TryInitError> {
    tracing_subscriber::registry()
        .with(targets(level))
        .with(
            tracing_subscriber::fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(std::io::stderr),
        )
        .try_init()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_that_could_print_headers_stay_at_info_whatever_is_chosen() {
        let targets = targets(Level::TRACE);
        for library in [
            "h2",
            "hyper",
            "hyper_util",
            "rustls",
            "tower",
            "tower_http",
            "axum",
        ] {
            assert!(!targets.would_enable(library, &Level::DEBUG), "{library}");
            assert!(targets.would_enable(library, &Level::INFO), "{library}");
        }
        assert!(!targets.would_enable("sqlx::query", &Level::INFO));
        assert!(!targets.would_enable("kube_client::client", &Level::WARN));
        assert!(targets.would_enable("kube_client::client", &Level::ERROR));
        assert!(targets.would_enable("barekey::api", &Level::TRACE));
        assert!(targets.would_enable("barekey_operator", &Level::TRACE));
    }

    #[test]
    fn a_quiet_log_is_quiet_and_still_publishes_the_heads() {
        let targets = targets(Level::ERROR);
        assert!(!targets.would_enable("barekey::vault", &Level::WARN));
        assert!(!targets.would_enable("hyper", &Level::INFO));
        assert!(!targets.would_enable("sqlx", &Level::WARN));
        assert!(targets.would_enable(AUDIT_TARGET, &Level::INFO));
    }
}
