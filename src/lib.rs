//! Barekey for Kubernetes: a vault, the operator that serves it, and the agent that carries its values into processes.
//!
//! # The code map
//!
//! | module | what it is | may name |
//! |---|---|---|
//! | [`domain`] | what barekey is about: no I/O, no clock, no randomness | – |
//! | [`protocol`] | bodies of the HTTP API, shared by server and client | domain |
//! | `crypto` | envelopes, keys, tokens | domain |
//! | `storage` | the only SQL | domain |
//! | `vault` | where domain, crypto and storage meet: a method a use case | domain, crypto, storage |
//! | `api` | every HTTP route, in one table | domain, protocol, vault |
//! | `kubernetes` | custom resources, controller, webhook, certificates, pod identity | domain, vault |
//! | `admin` | `barekey-operator admin …` and its socket | domain, protocol, vault |
//! | `client` | the HTTP API as Rust calls | domain, protocol, crypto |
//! | `cli` | the `barekey` command for people | domain, protocol, client, crypto, agent |
//! | `agent` | `barekey run -- PROGRAM`: fetch, become the program | domain, client, crypto |
//! | `settings`, `telemetry` | the operator's flags; logs and metrics | domain; – |
//!
//! `tests/tidy.rs` holds this table; the programs, in `src/bin`, join the parts and may name them all. `kubernetes::injection`,
//! `kubernetes::plan` and `kubernetes::resources` have rows of their own there: they decide, and may not name what acts; so has
//! `kubernetes::webhook`, which answers over HTTP and may name `protocol` too.
//!
//! # What is never there
//!
//! - `domain`, `kubernetes::injection` and `kubernetes::plan` do no I/O, read no clock and have no randomness.
//! - `storage` never sees a [`domain::plaintext::Plaintext`]; `crypto` never sees a row.
//! - Nothing but `api` and `kubernetes::webhook` chooses an HTTP status; `client`, and `cli` for its advice, read the number of
//!   an answer, as `kubernetes` reads that of the API server.
//! - The agent links neither the database nor the Kubernetes client.
//! - No plaintext is in a log, an error, an event, a status, a metric or an admission patch.

#[cfg(feature = "server")]
pub mod admin;
#[cfg(any(feature = "cli", feature = "agent"))]
pub mod agent;
#[cfg(feature = "server")]
pub mod api;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(any(feature = "cli", feature = "agent"))]
pub mod client;
#[cfg(feature = "server")]
pub mod crypto;
pub mod domain;
#[cfg(feature = "server")]
pub mod kubernetes;
pub mod protocol;
#[cfg(feature = "server")]
pub mod settings;
#[cfg(feature = "server")]
pub(crate) mod storage;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(feature = "server")]
pub mod vault;
