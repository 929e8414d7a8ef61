//! What a variable is: its kind, declared type, visibility, and what a type accepts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest value that is accepted by default, in bytes.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// The highest limit for values that an administrator may set, in bytes.
pub const VALUE_BYTES_MAX_CEILING: usize = 1024 * 1024;

/// A word that is none of those that a field accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {word:?} is not known: use {expected}")]
pub struct UnknownWordError {
    /// The field.
    pub what: &'static str,
    /// The word, cut to 64 characters.
    pub word: String,
    /// The words that pass.
    pub expected: &'static str,
}

/// An enum that is a word on the wire and in the database.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, { $($(#[$vdoc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// The word on the wire and in the database.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }
        }

        impl FromStr for $name {
            type Err = UnknownWordError;

            fn from_str(word: &str) -> Result<Self, UnknownWordError> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    other => Err(UnknownWordError {
                        what: $what,
                        word: other.chars().take(64).collect(),
                        expected: $expected,
                    }),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words!(
    /// What kind of variable it is.
    Kind, "kind", "secret", {
        /// One value.
        Secret = "secret",
    }
);
words!(
    /// The type that a value is declared to have. A value is checked and normalised when it is written.
    DeclaredType, "declared type", "string, boolean, int64, float, date or json", {
        /// Any text.
        String = "string",
        /// `true` or `false`.
        Boolean = "boolean",
        /// A signed 64-bit number in decimal.
        Int64 = "int64",
        /// A finite number.
        Float = "float",
        /// An instant, RFC 3339.
        Date = "date",
        /// Any JSON.
        Json = "json",
    }
);
words!(
    /// Whether a value may be read without a credential.
    Visibility, "visibility", "private or public", {
        /// Readable with access only.
        Private = "private",
        /// Meant for browsers.
        Public = "public",
    }
);
words!(
    /// Which of a variable's values an envelope holds.
    Arm, "arm", "a or b", {
        /// The only value of a `secret`, or value A.
        A = "a",
        /// Value B.
        B = "b",
    }
);
