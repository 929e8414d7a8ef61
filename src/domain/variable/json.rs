//! JSON as a declared type keeps it: compact, the keys of objects sorted, and every number digit for digit.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The text that is stored for `text`; none when it is not JSON, more than 127 deep, or an object in it has one key twice.
pub(super) fn normalise(text: &str) -> Option<String> {
    // Reads all of it, and no deeper than the parser goes.
    let _: serde_json::Value = serde_json::from_str(text).ok()?;
    let kept: Kept<'_> = serde_json::from_str(text).ok()?;
    serde_json::to_string(&kept).ok()
}

#[derive(serde::Serialize)]
#[serde(untagged)]
enum Kept<'a> {
    Object(Fields<'a>),
    Array(Vec<Kept<'a>>),
    Text(String),
    /// A number, `true`, `false` or `null`.
    Plain(&'a RawValue),
}

impl<'de> Deserialize<'de> for Kept<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        let text = raw.get();
        match text.as_bytes().first() {
            Some(b'{') => serde_json::from_str(text).map(Self::Object),
            Some(b'[') => serde_json::from_str(text).map(Self::Array),
            Some(b'"') => serde_json::from_str(text).map(Self::Text),
            _ => Ok(Self::Plain(raw)),
        }
        .map_err(D::Error::custom)
    }
}

/// The fields of an object, each key once.
#[derive(serde::Serialize)]
#[serde(transparent)]
struct Fields<'a>(BTreeMap<String, Kept<'a>>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EachKeyOnce;

        impl<'de> Visitor<'de> for EachKeyOnce {
            type Value = BTreeMap<String, Kept<'de>>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((key, value)) = map.next_entry()? {
                    if fields.insert(key, value).is_some() {
                        return Err(A::Error::custom("a key twice"));
                    }
                }
                Ok(fields)
            }
        }

        deserializer.deserialize_map(EachKeyOnce).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_compact_with_sorted_keys_and_every_number_as_it_was_written() {
        for (given, stored) in [
            (
                " { \"b\" : [ 1 , 2 ] , \"a\" : { } } ",
                r#"{"a":{},"b":[1,2]}"#,
            ),
            ("123456789012345678901234", "123456789012345678901234"),
            ("[1.10, 1e2, -0]", "[1.10,1e2,-0]"),
            (r#""\u0041\n""#, r#""A\n""#),
            (" null ", "null"),
            (r#"[{"z":true,"y":[[]]}]"#, r#"[{"y":[[]],"z":true}]"#),
        ] {
            assert_eq!(normalise(given).as_deref(), Some(stored), "{given}");
            assert_eq!(normalise(stored).as_deref(), Some(stored), "{stored}");
        }
    }

    #[test]
    fn what_is_no_json_or_has_a_key_twice_is_refused() {
        for bad in [
            "",
            "{",
            "{}{}",
            "nul",
            "01",
            "'a'",
            "[1,]",
            "1e400",
            r#"{"a":1,"a":1}"#,
            r#"[{"b":{"a":1,"\u0061":2}}]"#,
            r#""\ud800""#,
        ] {
            assert_eq!(normalise(bad), None, "{bad}");
        }
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(normalise(&deep(127)).is_some());
        for depth in [128, 200, 100_000] {
            assert_eq!(normalise(&deep(depth)), None);
        }
    }
}
