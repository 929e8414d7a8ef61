//! Tokens.
use crate::domain::plaintext::Plaintext;

/// A bearer as it was presented.
#[derive(Debug)]
pub struct PresentedToken(Plaintext);

impl PresentedToken {
    /// Takes the text after `Bearer `.
    pub fn new(text: String) -> Self {
        Self(Plaintext::from(text))
    }
    /// The token itself. Every call is a place where a secret leaves.
    pub fn reveal(&self) -> &str {
        self.0.reveal_text().unwrap_or_default()
    }
}
