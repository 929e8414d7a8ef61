//! Tokens: as they are made, and as they are presented. What is stored of them is in [`super::keys::TokenKey`].

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

use crate::crypto::envelope::SealError;
use crate::domain::plaintext::Plaintext;

/// What an API token starts with. SCANNERS FOR LEAKED SECRETS KNOW IT: IT NEVER CHANGES.
pub const API_TOKEN_PREFIX: &str = "bk_api_";

/// A bearer as it was presented.
#[derive(Debug)]
pub struct PresentedToken(Plaintext);

impl PresentedToken {
    /// Takes the text after `Bearer `.
    pub fn new(text: String) -> Self {
        Self(Plaintext::from(text))
    }

    /// Whether it looks like one of our own making; every other is taken for a pod's.
    pub fn is_api_token(&self) -> bool {
        self.reveal().starts_with(API_TOKEN_PREFIX)
    }

    /// The token itself. Every call is a place where a secret leaves.
    pub fn reveal(&self) -> &str {
        self.0.reveal_text().unwrap_or_default()
    }
}

/// A new API token: `bk_api_` and 32 random bytes in base64url without padding.
pub(crate) fn make_api_token() -> Result<Plaintext, SealError> {
    let mut bytes = Zeroizing::new([0; 32]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|_| SealError)?;
    let mut token = String::with_capacity(API_TOKEN_PREFIX.len() + 43);
    token.push_str(API_TOKEN_PREFIX);
    URL_SAFE_NO_PAD.encode_string(bytes.as_slice(), &mut token);
    Ok(Plaintext::from(token))
}

/// A random number below `bound`, for what is no secret (a slug's suffix). `bound` is at least 1.
pub(crate) fn make_number(bound: u32) -> Result<u32, SealError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|_| SealError)?;
    let number = u64::from_be_bytes(bytes) % u64::from(bound.max(1));
    Ok(u32::try_from(number).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_token_has_its_prefix_and_43_characters_and_is_never_the_same() {
        let (one, other) = (make_api_token().unwrap(), make_api_token().unwrap());
        let text = one.reveal_text().unwrap();
        assert!(text.starts_with("bk_api_"));
        assert_eq!(text.len(), 7 + 43);
        assert_ne!(text, other.reveal_text().unwrap());
    }

    #[test]
    fn printing_a_presented_token_says_nothing() {
        let token = PresentedToken::new("bk_api_secret".to_owned());
        assert!(!format!("{token:?}").contains("secret"));
    }
}
