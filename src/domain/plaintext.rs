//! A value in the clear, as a type with one named way out.

use std::fmt;

use zeroize::Zeroizing;

/// A secret's bytes, in the clear. Wiped on drop; printing it says nothing.
///
/// It has no `Display`, `Clone`, `PartialEq` or `Serialize`, so that it cannot slip into a log, a copy or a body.
pub struct Plaintext(Zeroizing<Vec<u8>>);

impl Plaintext {
    /// Takes the bytes over; they are wiped when this value is dropped.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The bytes themselves. Every call is a place where a secret leaves; keep them few.
    pub fn reveal(&self) -> &[u8] {
        &self.0
    }

    /// The bytes as text. Every call is a place where a secret leaves; `None` when they are not UTF-8.
    pub fn reveal_text(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the value is the empty text.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<String> for Plaintext {
    fn from(text: String) -> Self {
        Self::new(text.into_bytes())
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Plaintext(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printing_a_plaintext_says_nothing() {
        assert_eq!(
            format!("{:?}", Plaintext::from("hunter2".to_owned())),
            "Plaintext(..)"
        );
    }
}
