//! What the HTTP API takes at most, and for how long it waits.
//!
//! What can be in memory at once, of the 512 MiB that the chart gives the operator: what was asked ([`BODIES`], 32 MiB),
//! values that are read ([`VALUES_BYTES_MAX`], 96 MiB), answers until they were sent ([`ANSWERS`], 64 MiB), sealed stages (96
//! MiB, of which the vault's cache keeps 64), the webhook's reviews (32 MiB while they arrive, 64 MiB while they are answered):
//! 384 MiB. The rest is for connections, for rows on their way into a stage, for the text of the answers that the threads are
//! making, and for the program.

use std::time::Duration;

use crate::domain::shares::Bounds;

/// The longest body of `POST /v1/env/write`, in bytes.
pub const WRITE_BODY_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The longest body of `POST /v1/env/evaluate-batch`, in bytes: as many entries as it may have, each with the longest name,
/// seed and key. No longer than that of a write, which is what one body may take of [`BODIES`].
pub const BATCH_BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// The longest body of every other route, in bytes.
pub const BODY_BYTES_MAX: usize = 64 * 1024;
/// Whose bodies may be in memory at once, in bytes, until what they ask is done.
pub const BODIES: Bounds = Bounds {
    all: 32 * 1024 * 1024,
    address: 16 * 1024 * 1024,
    network: 24 * 1024 * 1024,
    kept: 8 * 1024 * 1024,
    little: WRITE_BODY_BYTES_MAX + BODY_BYTES_COUNTED + HEADER_BYTES_MAX,
};
/// What any body counts beside its bytes and those of its request's headers, so that their number is bound too.
pub const BODY_BYTES_COUNTED: usize = 4 * 1024;
/// When to come again after there was no room for a body, in seconds.
pub const BODY_RETRY_SECONDS: u32 = 1;
/// What the values of one stage count while they are read, in bytes: the clear text of as much as a stage may hold sealed.
pub const STAGE_BYTES_COUNTED: usize = 6 * 1024 * 1024;
/// How many bytes of values may be read at once: those of 16 stages. They are in the clear until the record is durable.
pub const VALUES_BYTES_MAX: usize = 16 * STAGE_BYTES_COUNTED;
/// How long a read may wait until others are done.
pub const VALUES_TIME_MAX: Duration = Duration::from_secs(10);
/// Whose answers with values may be in memory at once, in bytes, until they were sent.
pub const ANSWERS: Bounds = Bounds {
    all: 64 * 1024 * 1024,
    address: 32 * 1024 * 1024,
    network: 48 * 1024 * 1024,
    kept: 16 * 1024 * 1024,
    little: ANSWER_BYTES_COUNTED_MAX + ANSWER_BYTES_COUNTED,
};
/// What any answer counts beside its bytes, from when it waits to be made.
pub const ANSWER_BYTES_COUNTED: usize = 16 * 1024;
/// What one answer counts at most beside that: a stage that is escaped all through takes more, and is answered all the same.
pub const ANSWER_BYTES_COUNTED_MAX: usize = 12 * 1024 * 1024;
/// When to come again after there was no room for an answer, in seconds.
pub const ANSWER_RETRY_SECONDS: u32 = 1;
/// How long a body may take to arrive.
pub const BODY_TIME_MAX: Duration = Duration::from_secs(15);
/// How long a TLS handshake may take.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// How long the first byte of a connection, and then each request's headers over HTTP/1, may take to arrive. A connection
/// over HTTP/1 that is kept open without a request ends after it too.
pub const HEADER_TIME_MAX: Duration = Duration::from_secs(30);
/// The longest headers of one request, in bytes.
pub const HEADER_BYTES_MAX: usize = 32 * 1024;
/// How many connections may wait until a listener takes them, such as when all pods of a cluster start anew; the kernel's own
/// limit is `net.core.somaxconn`.
pub const BACKLOG: u32 = 4096;
/// How many connections one listener serves at once; more are closed as they come.
pub const CONNECTIONS_MAX: usize = 4096;
/// Whose connections they may be. One address may be all requests of a node, where its addresses are translated; still it
/// gets half of the places, and the API server finds one that pods cannot take.
pub const CONNECTIONS: Bounds = Bounds {
    all: CONNECTIONS_MAX,
    address: CONNECTIONS_MAX / 2,
    network: CONNECTIONS_MAX / 4 * 3,
    kept: CONNECTIONS_MAX / 8,
    little: 8,
};
/// After one to two such times a connection without a request under way ends, whatever else comes over it. Longer than the
/// 90 seconds after which the clients of Go and of hyper end it, so that no request of the API server or of an agent meets
/// the end.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(100);
/// How long a request may take, from its headers until its answer was sent; its connection ends with it. Longer than any
/// answer takes that still comes, over a slow line too.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(120);
/// How many requests one HTTP/2 connection may have under way.
pub const STREAMS_MAX: u32 = 64;
/// How often an HTTP/2 connection is asked whether it is still there, and how long it may take to answer.
pub const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long open requests may take once the server was told to stop.
pub const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// How many variables one `evaluate-batch` may name.
pub const BATCH_NAMES_MAX: usize = 1000;
/// How many entries and deletes one `write` may hold together.
pub const WRITE_NAMES_MAX: usize = 1000;
/// The longest `seed` or `key`, in bytes.
pub const SEED_BYTES_MAX: usize = 1024;
/// The longest `x-request-id` that is taken over, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;
/// The longest `x-barekey-request-key`, in bytes.
pub const REQUEST_KEY_BYTES_MAX: usize = 256;
/// The longest `user-agent` that the audit trail keeps, in bytes.
pub const USER_AGENT_BYTES_MAX: usize = 256;
/// The longest credential that is looked at, in bytes.
pub const CREDENTIAL_BYTES_MAX: usize = 16 * 1024;

/// How many refused credentials one address may send at once before it is told to wait.
pub const FAILED_TOKENS_BURST: u32 = 100;
/// How many refused credentials a second one address may send in the long run.
pub const FAILED_TOKENS_PER_SECOND: u32 = 5;
/// How many the addresses of one /64 network of IPv6 may send together at once: the pods of a node may share one.
pub const FAILED_TOKENS_NETWORK_BURST: u32 = 1000;
/// How many a second they may send together in the long run.
pub const FAILED_TOKENS_NETWORK_PER_SECOND: u32 = 50;
/// How many credentials that were not recognised before are looked up at once, so that those which are sent together do
/// not all pass before the first is counted.
pub const LOOKUPS: Bounds = Bounds {
    all: usize::MAX,
    address: 128,
    network: 512,
    kept: 0,
    little: 0,
};
/// The same for tokens of pods, recognised or not: each asks the API server, which is asked about 64 at once. One address
/// may be all pods of a node, where its addresses are translated; still it gets half of those.
pub const POD_LOOKUPS: Bounds = Bounds {
    all: 1024,
    address: 32,
    network: 256,
    kept: 128,
    little: 2,
};
/// The same for tokens of pods that were not recognised before, from an address that sent too many refused credentials.
pub const SUSPECT_LOOKUPS: Bounds = Bounds {
    all: 64,
    address: 4,
    network: 16,
    kept: 0,
    little: 0,
};
/// Whose changes of variables may wait to be written, counted by the variables that they name: few enough that those of one
/// address hold nobody up for long: 2000 changes of one variable at once, or two of the largest.
pub const WRITES: Bounds = Bounds {
    all: 8 * WRITE_NAMES_MAX,
    address: 2 * WRITE_NAMES_MAX,
    network: 4 * WRITE_NAMES_MAX,
    kept: 2 * WRITE_NAMES_MAX,
    little: WRITE_NAMES_MAX,
};
/// When to come again after too many waited, in seconds.
pub const WRITES_RETRY_SECONDS: u32 = 1;
/// When to come again after too many were looked up, in seconds.
pub const LOOKUPS_RETRY_SECONDS: u32 = 1;
/// After how many refused credentials the counters of addresses that have been quiet are dropped.
pub const FAILED_ADDRESSES_KEPT: usize = 10_000;
/// How many credentials that were recognised are remembered, so that a neighbour's failures do not hold them up.
pub const RECOGNISED_TOKENS_KEPT: usize = 4096;

/// For how long an answer of the database to the readiness probe is good.
pub const CHECK_KEPT: Duration = Duration::from_secs(1);
/// How long the readiness probe waits for the database.
pub const CHECK_TIME_MAX: Duration = Duration::from_secs(3);
