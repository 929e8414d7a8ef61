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

/// What must never be found anywhere: every value, token and key of this run. The canary, last of all, looks for each.
pub(crate) mod secrets {
    use std::sync::Mutex;

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    static REMEMBERED: Mutex<Vec<(String, Vec<u8>)>> = Mutex::new(Vec::new());
    static MASTER_KEYS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

    /// Adds a value or a token.
    pub(crate) fn remember(secret: &str) {
        let mut all = REMEMBERED.lock().unwrap();
        let label = format!("value or token {}", all.len());
        all.push((label, secret.into()));
    }

    /// Adds a key of a vault, and what it is.
    pub(crate) fn remember_key(what: String, key: Vec<u8>) {
        let mut all = REMEMBERED.lock().unwrap();
        if all.iter().all(|(_, known)| *known != key) {
            all.push((what, key));
        }
    }

    /// Adds a master key: its text, which is what people and Kubernetes carry, and the bytes that the vault works with.
    #[track_caller]
    pub(crate) fn remember_master_key(text: &str) {
        let key = STANDARD.decode(text).expect("standard base64");
        remember_key("the text of a master key".to_owned(), text.into());
        remember_key("a master key".to_owned(), key.clone());
        MASTER_KEYS.lock().unwrap().push(key);
    }

    /// Every master key of this run.
    pub(crate) fn master_keys() -> Vec<Vec<u8>> {
        MASTER_KEYS.lock().unwrap().clone()
    }

    /// All of them, and what each is.
    pub(crate) fn remembered() -> Vec<(String, Vec<u8>)> {
        REMEMBERED.lock().unwrap().clone()
    }
}

/// A value that nobody may find: [`random_text`], remembered for the canary.
pub(crate) fn secret_text(prefix: &str) -> String {
    let text = random_text(prefix);
    secrets::remember(&text);
    text
}
