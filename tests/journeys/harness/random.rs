//! Values that nobody has seen before. They go into programs by stdin or environment, never by arguments or files.

use sha2::{Digest, Sha256};

/// Random bytes.
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes
}

/// Random text that is the same in hex, URLs, JSON and YAML: 32 digits after `prefix`.
pub(crate) fn random_text(prefix: &str) -> String {
    format!("{prefix}{}", hex::encode(random_bytes::<16>()))
}

/// The SHA-256 of a value, as `sha256sum` prints it.
pub(crate) fn sha256_hex(value: impl AsRef<[u8]>) -> String {
    hex::encode(Sha256::digest(value))
}

/// What must never be found anywhere: every value and token of this run. The canary, last of all, looks for each.
pub(crate) mod secrets {
    use std::sync::Mutex;

    static REMEMBERED: Mutex<Vec<String>> = Mutex::new(Vec::new());

    /// Adds one.
    pub(crate) fn remember(secret: &str) {
        REMEMBERED.lock().unwrap().push(secret.to_owned());
    }

    /// All of them.
    pub(crate) fn remembered() -> Vec<String> {
        REMEMBERED.lock().unwrap().clone()
    }
}

/// A value that nobody may find: [`random_text`], remembered for the canary.
pub(crate) fn secret_text(prefix: &str) -> String {
    let text = random_text(prefix);
    secrets::remember(&text);
    text
}
