//! Which algorithms, and why.
//!
//! - Envelopes: XChaCha20-Poly1305, whose 24-byte nonce may be drawn at random for every value that a key ever seals.
//!   What it does not give is key commitment; the version of the data key stands beside every envelope, so that none is
//!   ever opened by trying keys.
//! - Credentials and the audit trail: HMAC-SHA-256, each under a key of its own that the master key seals.
//!
//! Functions named `make_…` are random, functions named `derive_…` are not.

pub(crate) mod envelope;
pub mod keys;
pub mod tokens;
