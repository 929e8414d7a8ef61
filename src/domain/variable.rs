//! What a variable is: its kind, declared type, visibility, and what a type accepts.

mod json;

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
        pub enum $name {
            $($(#[$vdoc])* #[serde(rename = $word)] $variant),+
        }

        impl $name {
            /// Every word.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

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
    #[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
    Kind, "kind", "secret; ab_roll and rollout are not in this version", {
        /// One value.
        Secret = "secret",
    }
);
words!(
    /// The type that a value is declared to have. A value is checked and normalised when it is written.
    #[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
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
    /// How reads of a value are recorded. Every read wants a credential.
    #[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
    Visibility, "visibility", "private or public", {
        /// Each read by itself.
        Private = "private",
        /// Those of API tokens as counts a minute: the value is no secret.
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

/// A value that its declared type does not accept. The value itself is not in the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value is not what the declared type {declared_type} accepts: {expected}")]
pub struct NormaliseError {
    /// The type.
    pub declared_type: DeclaredType,
    /// What would pass.
    pub expected: &'static str,
}

impl DeclaredType {
    /// The text that is stored for `text`, if the type accepts it.
    ///
    /// | type | accepts | stored |
    /// |---|---|---|
    /// | string | anything | unchanged |
    /// | boolean | `true`, `1`, `yes`, `false`, `0`, `no` in any case, with white space around it | `true` or `false` |
    /// | int64 | a decimal number without leading zeros | that number; `-0` becomes `0` |
    /// | float | a finite number, with white space around it | without that space |
    /// | date | RFC 3339 with seconds and a zone, a day of the calendar | UTC with milliseconds |
    /// | json | JSON, at most 127 deep, no key of an object twice | compact, the keys of objects sorted, numbers digit for digit |
    ///
    /// # Errors
    /// [`NormaliseError`] for everything else. It never carries the value.
    pub fn normalise(self, text: &str) -> Result<String, NormaliseError> {
        let (normalised, expected) = match self {
            Self::String => (Some(text.to_owned()), "any text"),
            Self::Boolean => (normalise_boolean(text), "use true, 1, yes, false, 0 or no"),
            Self::Int64 => (
                normalise_int64(text),
                "use a decimal number from -9223372036854775808 to 9223372036854775807, without leading zeros or white space",
            ),
            Self::Float => (normalise_float(text), "use a finite decimal number"),
            Self::Date => (
                normalise_date(text),
                "use RFC 3339 with seconds and a zone, such as 2026-01-31T12:00:00Z",
            ),
            Self::Json => (
                json::normalise(text),
                "use JSON, at most 127 deep, in which no object has one key twice and every number is finite",
            ),
        };
        normalised.ok_or(NormaliseError {
            declared_type: self,
            expected,
        })
    }
}

fn normalise_boolean(text: &str) -> Option<String> {
    let word = text.trim();
    let is = |other: &&str| word.eq_ignore_ascii_case(other);
    if ["true", "1", "yes"].iter().any(is) {
        Some("true".to_owned())
    } else if ["false", "0", "no"].iter().any(is) {
        Some("false".to_owned())
    } else {
        None
    }
}

fn normalise_int64(text: &str) -> Option<String> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits == "0"
        || (digits.bytes().all(|byte| byte.is_ascii_digit())
            && digits.bytes().next().is_some_and(|first| first != b'0'));
    let number: i64 = plain.then(|| text.parse().ok())??;
    Some(number.to_string())
}

fn normalise_float(text: &str) -> Option<String> {
    let trimmed = text.trim();
    let plain = trimmed
        .bytes()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E'));
    let number: f64 = plain.then(|| trimmed.parse().ok())??;
    number.is_finite().then(|| trimmed.to_owned())
}

/// RFC 3339, section 5.6, to UTC with milliseconds (digits behind those are cut). No leap seconds.
fn normalise_date(text: &str) -> Option<String> {
    let number = |digits: &str| -> Option<i64> {
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let part = |from: usize, to: usize| text.get(from..to).and_then(number);
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    let separators = [(4, "-"), (7, "-"), (13, ":"), (16, ":")];
    let separated = separators
        .iter()
        .all(|(at, separator)| text.get(*at..at + 1) == Some(*separator))
        && matches!(text.get(10..11), Some("T" | "t"));
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let days = match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if leap => 29,
        2 => 28,
        _ => return None,
    };
    if !separated || !(1..=days).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut rest = text.get(19..)?;
    let mut milliseconds = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let length = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let digits = fraction.get(..length).filter(|digits| !digits.is_empty())?;
        milliseconds = number(&format!("{digits:0<3}").chars().take(3).collect::<String>())?;
        rest = fraction.get(length..)?;
    }
    let offset_minutes = match rest {
        "Z" | "z" => 0,
        _ => {
            let sign = match rest.get(..1)? {
                "+" => 1,
                "-" => -1,
                _ => return None,
            };
            let (hours, minutes) = (
                rest.get(1..3).and_then(number)?,
                rest.get(4..6).and_then(number)?,
            );
            if rest.len() != 6 || rest.get(3..4) != Some(":") || hours > 23 || minutes > 59 {
                return None;
            }
            sign * (hours * 60 + minutes)
        }
    };
    let minutes = days_from_civil(year, month, day) * 1440 + hour * 60 + minute - offset_minutes;
    let (year, month, day) = civil_from_days(minutes.div_euclid(1440));
    let of_day = minutes.rem_euclid(1440);
    (0..=9999).contains(&year).then(|| {
        format!(
            "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{second:02}.{milliseconds:03}Z",
            of_day / 60,
            of_day % 60
        )
    })
}

/// Days since 1970-01-01 of a day of the Gregorian calendar; years begin in March here, so that a leap day is the last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The other way round.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(declared_type: DeclaredType, text: &str, stored: &str) {
        assert_eq!(
            declared_type.normalise(text).as_deref(),
            Ok(stored),
            "{declared_type} {text:?}"
        );
    }

    fn refuses(declared_type: DeclaredType, text: &str) {
        let error = declared_type.normalise(text).unwrap_err();
        assert_eq!(error.declared_type, declared_type, "{text:?}");
    }

    #[test]
    fn an_error_does_not_carry_the_value() {
        for declared_type in [
            DeclaredType::Boolean,
            DeclaredType::Int64,
            DeclaredType::Float,
            DeclaredType::Date,
            DeclaredType::Json,
        ] {
            let error = declared_type.normalise("hunter2").unwrap_err();
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn a_string_is_stored_as_it_is() {
        accepts(DeclaredType::String, " a\nb ", " a\nb ");
        accepts(DeclaredType::String, "", "");
    }

    #[test]
    fn a_boolean_is_stored_as_true_or_false() {
        for text in ["true", " TRUE\n", "1", "Yes"] {
            accepts(DeclaredType::Boolean, text, "true");
        }
        for text in ["false", "0", "no", "FALSE"] {
            accepts(DeclaredType::Boolean, text, "false");
        }
        for text in ["", "2", "on", "tru", "y"] {
            refuses(DeclaredType::Boolean, text);
        }
    }

    #[test]
    fn an_int64_has_no_leading_zeros_and_fits() {
        accepts(DeclaredType::Int64, "0", "0");
        accepts(DeclaredType::Int64, "-0", "0");
        accepts(
            DeclaredType::Int64,
            "-9223372036854775808",
            "-9223372036854775808",
        );
        accepts(
            DeclaredType::Int64,
            "9223372036854775807",
            "9223372036854775807",
        );
        for text in [
            "",
            "-",
            "+1",
            "01",
            "1.0",
            " 1",
            "1e3",
            "9223372036854775808",
            "٣",
        ] {
            refuses(DeclaredType::Int64, text);
        }
    }

    #[test]
    fn a_float_is_finite_and_kept_as_given() {
        accepts(DeclaredType::Float, " 1.50 ", "1.50");
        accepts(DeclaredType::Float, "-1e-3", "-1e-3");
        for text in ["", "NaN", "inf", "Infinity", "1e999", "0x10", "1,5", "1 2"] {
            refuses(DeclaredType::Float, text);
        }
    }

    #[test]
    fn a_date_is_stored_in_utc_with_milliseconds() {
        accepts(
            DeclaredType::Date,
            "2026-01-31T12:00:00Z",
            "2026-01-31T12:00:00.000Z",
        );
        accepts(
            DeclaredType::Date,
            "2026-01-01t00:30:00.5+01:00",
            "2025-12-31T23:30:00.500Z",
        );
        accepts(
            DeclaredType::Date,
            "2024-02-29T23:59:59.123456-00:30",
            "2024-03-01T00:29:59.123Z",
        );
        accepts(
            DeclaredType::Date,
            "1969-12-31T23:59:59Z",
            "1969-12-31T23:59:59.000Z",
        );
        for text in [
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-00-10T00:00:00Z",
            "2026-01-31",
            "2026-01-31T12:00Z",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00:60Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00+0100",
            "2026-01-31T12:00:00Z ",
            "0000-01-01T00:00:00+00:01",
            "２026-01-31T12:00:00Z",
        ] {
            refuses(DeclaredType::Date, text);
        }
    }

    #[test]
    fn every_day_of_800_years_comes_back() {
        for days in -146_097..146_097 {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }

    #[test]
    fn json_is_stored_compact_with_sorted_keys() {
        accepts(
            DeclaredType::Json,
            " { \"b\" : [1, 2.5], \"a\" : null } ",
            r#"{"a":null,"b":[1,2.5]}"#,
        );
        for text in ["", "{", "{a:1}", "[1,]", "undefined"] {
            refuses(DeclaredType::Json, text);
        }
    }
}
