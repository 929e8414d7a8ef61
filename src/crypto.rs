//! Which algorithms, and why: XChaCha20-Poly1305 for envelopes, HMAC-SHA-256 for credentials and the audit trail.

pub mod keys;
pub mod tokens;
