//! Names and ids, parsed once at the door.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The longest name of a variable, in bytes.
pub const VARIABLE_NAME_BYTES_MAX: usize = 160;
/// The longest slug of an organization, project or stage, in bytes.
pub const SLUG_BYTES_MAX: usize = 48;
/// The longest display name of a project, in characters.
pub const PROJECT_NAME_CHARACTERS_MAX: usize = 120;
/// The longest display name of a stage, in characters.
pub const STAGE_NAME_CHARACTERS_MAX: usize = 64;
/// The longest name of a Kubernetes namespace, in bytes (RFC 1123 label).
const LABEL_BYTES_MAX: usize = 63;
/// The longest name of a Kubernetes object, in bytes (RFC 1123 subdomain).
const SUBDOMAIN_BYTES_MAX: usize = 253;

/// Why a text is not the name that it should be. Says what would pass; the text itself may be shown, since names are no secrets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} is not valid: {expected}")]
pub struct NameError {
    /// What the text should have named, such as `variable name`.
    pub what: &'static str,
    /// The text, cut to 64 characters.
    pub text: String,
    /// What would pass.
    pub expected: &'static str,
}

impl NameError {
    fn new(what: &'static str, text: &str, expected: &'static str) -> Self {
        Self {
            what,
            text: text.chars().take(64).collect(),
            expected,
        }
    }
}

/// A text type that is made by parsing alone: `Display`, `AsRef<str>`, serde as a string.
macro_rules! parsed_text {
    ($(#[$doc:meta])* $name:ident, $what:literal, $expected:literal, $valid:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                let valid: fn(&str) -> bool = $valid;
                if valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(NameError::new($what, text, $expected))
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_variable_name(text: &str) -> bool {
    text.len() <= VARIABLE_NAME_BYTES_MAX
        && text
            .bytes()
            .next()
            .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn is_label_of(text: &str, bytes_max: usize) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= bytes_max
        && text.bytes().next().is_some_and(inner)
        && text.bytes().next_back().is_some_and(inner)
        && text.bytes().all(|byte| inner(byte) || byte == b'-')
}

fn is_slug(text: &str) -> bool {
    is_label_of(text, SLUG_BYTES_MAX)
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= SUBDOMAIN_BYTES_MAX
        && text
            .split('.')
            .all(|label| is_label_of(label, SUBDOMAIN_BYTES_MAX))
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

parsed_text!(
    /// The name of a variable: `[A-Za-z_][A-Za-z0-9_]*`, at most [`VARIABLE_NAME_BYTES_MAX`] bytes.
    VariableName,
    "variable name",
    "it must match [A-Za-z_][A-Za-z0-9_]* and have at most 160 bytes",
    is_variable_name
);
parsed_text!(
    /// The slug of an organization.
    OrganizationSlug,
    "organization slug",
    "it must match [a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?",
    is_slug
);
parsed_text!(
    /// The slug of a project, unique in its organization.
    ProjectSlug,
    "project slug",
    "it must match [a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?",
    is_slug
);
parsed_text!(
    /// The slug of a stage, unique in its project.
    StageSlug,
    "stage slug",
    "it must match [a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?",
    is_slug
);
parsed_text!(
    /// The name of a Kubernetes namespace.
    Namespace,
    "namespace",
    "it must be a DNS label: lower-case letters, digits and '-', at most 63 bytes",
    |text| is_label_of(text, LABEL_BYTES_MAX)
);
parsed_text!(
    /// The name of a Kubernetes object, such as a service account, a pod or a resource of ours.
    ObjectName,
    "object name",
    "it must be a DNS subdomain: lower-case letters, digits, '-' and '.', at most 253 bytes",
    is_subdomain
);
parsed_text!(
    /// The id of an organization. Never changes.
    OrganizationId, "organization id", "it is 1 to 64 letters, digits, '_' and '-'", is_id
);
parsed_text!(
    /// The id of a project. Never changes.
    ProjectId, "project id", "it is 1 to 64 letters, digits, '_' and '-'", is_id
);
parsed_text!(
    /// The id of a stage. Never changes.
    StageId, "stage id", "it is 1 to 64 letters, digits, '_' and '-'", is_id
);
parsed_text!(
    /// The id of a lineage of data keys.
    LineageId, "lineage id", "it is 1 to 64 letters, digits, '_' and '-'", is_id
);
parsed_text!(
    /// The id of an API token; public, unlike the token.
    TokenId, "token id", "it is 1 to 64 letters, digits, '_' and '-'", is_id
);
parsed_text!(
    /// The id of an operation: one change of one stage.
    OperationId, "operation id", "it is 1 to 64 letters, digits, '_' and '-'", is_id
);

/// What people call a project or a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DisplayName(String);

impl DisplayName {
    /// A project's name: trimmed, 1 to [`PROJECT_NAME_CHARACTERS_MAX`] characters, none of them [unseen](is_unseen).
    pub fn parse_project(text: &str) -> Result<Self, NameError> {
        Self::parse(
            "project name",
            text,
            PROJECT_NAME_CHARACTERS_MAX,
            "it must have 1 to 120 characters, without control and invisible ones",
        )
    }

    /// A stage's name: trimmed, 1 to [`STAGE_NAME_CHARACTERS_MAX`] characters, none of them [unseen](is_unseen).
    pub fn parse_stage(text: &str) -> Result<Self, NameError> {
        Self::parse(
            "stage name",
            text,
            STAGE_NAME_CHARACTERS_MAX,
            "it must have 1 to 64 characters, without control and invisible ones",
        )
    }

    fn parse(
        what: &'static str,
        text: &str,
        characters_max: usize,
        expected: &'static str,
    ) -> Result<Self, NameError> {
        let trimmed = text.trim();
        let valid = (1..=characters_max).contains(&trimmed.chars().count())
            && !trimmed.chars().any(is_unseen);
        if valid {
            Ok(Self(trimmed.to_owned()))
        } else {
            Err(NameError::new(what, trimmed, expected))
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a character is a control character, or one of the others that show nothing of themselves and may make a name look
/// like another: marks of writing direction, line and paragraph separators, spaces without width, tags. The joiners are none
/// of them: scripts and emoji need them.
pub fn is_unseen(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// One variable name, or every name with a prefix (`PREFIX_*`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum NamePattern {
    /// Exactly this name.
    Exact(VariableName),
    /// Every name that starts so; the prefix is itself a valid name.
    Prefix(VariableName),
}

impl NamePattern {
    /// Whether the pattern covers `name`.
    pub fn covers(&self, name: &VariableName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Prefix(prefix) => name.as_str().starts_with(prefix.as_str()),
        }
    }
}

impl FromStr for NamePattern {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |_| NameError::new("variable", text, "it must be a variable name or PREFIX_*");
        match text.strip_suffix('*') {
            Some(prefix) => prefix.parse().map(Self::Prefix).map_err(bad),
            None => text.parse().map(Self::Exact).map_err(bad),
        }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_display_name_has_nothing_that_is_not_seen() {
        for good in ["Shop", "Läden & Büros", "می\u{200c}خواهم", "👩\u{200d}🚀"] {
            assert!(DisplayName::parse_project(good).is_ok(), "{good:?}");
            assert!(DisplayName::parse_stage(good).is_ok(), "{good:?}");
        }
        for bad in [
            "a\tb",
            "nosj\u{202e}.exe",
            "a\u{2066}b",
            "a\u{200b}b",
            "a\u{feff}b",
            "a\u{2028}b",
            "a\u{e0041}b",
        ] {
            assert!(DisplayName::parse_project(bad).is_err(), "{bad:?}");
            assert!(DisplayName::parse_stage(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_variable_name_of_160_bytes_passes_and_161_does_not() {
        assert!("A".repeat(160).parse::<VariableName>().is_ok());
        assert!("A".repeat(161).parse::<VariableName>().is_err());
    }

    #[test]
    fn a_variable_name_starts_with_a_letter_or_an_underscore() {
        for good in ["A", "_", "a1", "_1", "DATABASE_URL"] {
            assert!(good.parse::<VariableName>().is_ok(), "{good}");
        }
        for bad in ["", "1A", "A-B", "A B", "Ä", "A\0", "A=B", "A/B", "../A"] {
            assert!(bad.parse::<VariableName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_slug_is_a_lower_case_label_of_at_most_48_bytes() {
        for good in ["a", "a-b", "0", &"a".repeat(48)] {
            assert!(good.parse::<StageSlug>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", &"a".repeat(49)] {
            assert!(bad.parse::<StageSlug>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pattern_covers_its_prefix_and_an_exact_name_only_itself() {
        let name: VariableName = "DB_URL".parse().unwrap();
        assert!("DB_*".parse::<NamePattern>().unwrap().covers(&name));
        assert!("DB_URL".parse::<NamePattern>().unwrap().covers(&name));
        assert!(!"DB_UR".parse::<NamePattern>().unwrap().covers(&name));
    }

    #[test]
    fn a_lone_star_and_an_inner_star_are_no_patterns() {
        for bad in ["*", "A*B", "**", ""] {
            assert!(bad.parse::<NamePattern>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_display_name_is_trimmed_counted_in_characters_and_has_no_control_characters() {
        assert_eq!(
            DisplayName::parse_stage("  Bühne ").unwrap().as_str(),
            "Bühne"
        );
        assert!(DisplayName::parse_stage(&"ü".repeat(64)).is_ok());
        assert!(DisplayName::parse_stage(&"ü".repeat(65)).is_err());
        assert!(DisplayName::parse_project("a\nb").is_err());
        assert!(DisplayName::parse_project("  ").is_err());
    }
}
