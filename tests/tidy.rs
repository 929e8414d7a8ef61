//! Style as a test: which module may name which, which crate belongs to whom, and what no file may be or hold.
//!
//! The checks read the sources as text, so that they need no compiler and see every feature set at once. Unit tests at
//! the foot of a file (`#[cfg(test)]`) may name what they need; everything else holds to the tables below. Each check has
//! a test of its own that plants what it must find.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets what it does not understand has to fail"
)]

mod tidy {
    mod documents;
    mod files;
    mod finding;
    #[cfg(feature = "server")]
    mod generated;
    mod layers;
    mod manifest;
    mod modules;
    mod rust;
    mod words;
}

/// Which module may name which other one. The row with the longest name that fits a file counts. A module may always name
/// its own parts; `lib.rs` declares everything and the programs may name everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("protocol", &["domain"]),
    ("crypto", &["domain"]),
    ("storage", &["domain"]),
    ("vault", &["domain", "crypto", "storage"]),
    ("api", &["domain", "protocol", "vault"]),
    ("kubernetes", &["domain", "vault"]),
    // The deciding parts are pure: they see the custom resources and nothing that acts.
    (
        "kubernetes::injection",
        &["domain", "kubernetes::resources"],
    ),
    ("kubernetes::plan", &["domain", "kubernetes::resources"]),
    ("kubernetes::resources", &["domain"]),
    // It answers over HTTP, with the bodies of the API.
    (
        "kubernetes::webhook",
        &["domain", "protocol", "vault", "kubernetes"],
    ),
    ("admin", &["domain", "protocol", "vault"]),
    ("client", &["domain", "protocol", "crypto"]),
    ("cli", &["domain", "protocol", "client", "crypto", "agent"]),
    ("agent", &["domain", "client", "crypto"]),
    ("settings", &["domain"]),
    ("telemetry", &[]),
];

/// Which module a crate belongs to. The programs (`bin`) join the parts and may name these too.
const CRATES: &[(&str, &[&str])] = &[
    ("sqlx", &["storage"]),
    ("chacha20poly1305", &["crypto"]),
    ("sha2", &["crypto"]),
    ("hmac", &["crypto"]),
    ("axum", &["api", "kubernetes::webhook"]),
    ("axum_server", &["api"]),
    ("utoipa", &["api", "protocol", "domain"]),
    ("kube", &["kubernetes"]),
    ("k8s_openapi", &["kubernetes"]),
    ("schemars", &["kubernetes"]),
    ("json_patch", &["kubernetes"]),
    ("rcgen", &["kubernetes"]),
    ("hyper", &["client", "api::listener"]),
    ("hyper_util", &["client", "api::listener"]),
    ("clap", &["cli", "settings"]),
    ("rustls_native_certs", &["cli", "client"]),
    ("anyhow", &[]),
];

/// Words that say what only one part may know: the word, who may hold it, and the invariant.
const ABSENT: &[(&str, &[&str], &str)] = &[(
    "StatusCode",
    &["api", "kubernetes::webhook"],
    "only what answers over HTTP chooses a status",
)];

/// What modules may not name, though their arrows would let them: words, and parts of paths.
const FORBIDDEN_IN: &[(&[&str], &[&str], &str)] = &[
    (
        &["storage"],
        &["Plaintext"],
        "storage never sees a value in the clear",
    ),
    (
        PURE,
        &[
            "tokio",
            "std::fs",
            "std::env",
            "std::process",
            "std::io::stdin",
            "std::os::unix::net",
            "TcpStream",
            "TcpListener",
            "UdpSocket",
            "ToSocketAddrs",
        ],
        "what is pure does no I/O",
    ),
    (
        PURE,
        &[
            "SystemTime",
            "Instant",
            "Timestamp::now",
            "Zoned::now",
            "now_utc",
            "Clock",
        ],
        "what is pure reads no clock",
    ),
    (
        PURE,
        &["getrandom", "rand", "new_v4", "now_v7"],
        "what is pure has no randomness",
    ),
    (
        PURE,
        &[
            "kube::Api",
            "kube::Client",
            "kube::api",
            "kube::client",
            "kube::runtime",
        ],
        "what is pure asks no API server",
    ),
];

/// The modules that decide from what they are given: no I/O, no clock, no randomness.
const PURE: &[&str] = &["domain", "kubernetes::injection", "kubernetes::plan"];

/// Names that say nothing: what would go there belongs to its one caller, or shows a missing noun.
const NAMELESS: &[&str] = &[
    "util", "utils", "helper", "helpers", "common", "types", "manager", "service", "misc", "mod",
];

/// Marks of unfinished work. Spelt in halves, so that this file may name them.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("<!", "--"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
    concat!("#[ig", "nore"),
];

/// What the agent must not link, by the features that build it.
const NOT_IN_PODS: &[&str] = &["sqlx", "kube", "k8s-openapi", "axum", "chacha20poly1305"];
