//! JSON as a declared type keeps it: compact, the keys of objects sorted, and every number digit for digit.

use std::collections::BTreeMap;

/// The text that is stored for `text`; none when it is not JSON, more than 127 deep, or an object in it has one key twice.
pub(super) fn normalise(text: &str) -> Option<String> {
    // Reads all of it, and no deeper than the parser goes. What it makes of numbers and doubled keys is not what was written.
    let _: serde_json::Value = serde_json::from_str(text).ok()?;
    let mut rest = text;
    let mut compact = String::with_capacity(text.len());
    read(&mut rest)?.write(&mut compact)?;
    Some(compact)
}

enum Kept<'a> {
    Object(BTreeMap<String, Kept<'a>>),
    Array(Vec<Kept<'a>>),
    Text(String),
    /// A number, `true`, `false` or `null`, as it was written.
    Plain(&'a str),
}

impl Kept<'_> {
    fn write(&self, to: &mut String) -> Option<()> {
        match self {
            Self::Object(fields) => {
                to.push('{');
                for (at, (key, value)) in fields.iter().enumerate() {
                    if at > 0 {
                        to.push(',');
                    }
                    to.push_str(&serde_json::to_string(key).ok()?);
                    to.push(':');
                    value.write(to)?;
                }
                to.push('}');
            }
            Self::Array(values) => {
                to.push('[');
                for (at, value) in values.iter().enumerate() {
                    if at > 0 {
                        to.push(',');
                    }
                    value.write(to)?;
                }
                to.push(']');
            }
            Self::Text(text) => to.push_str(&serde_json::to_string(text).ok()?),
            Self::Plain(text) => to.push_str(text),
        }
        Some(())
    }
}

/// Takes one value from the front of what is JSON.
fn read<'a>(rest: &mut &'a str) -> Option<Kept<'a>> {
    if take(rest, '{') {
        let mut fields = BTreeMap::new();
        while !take(rest, '}') {
            let key = text(rest)?;
            take(rest, ':');
            if fields.insert(key, read(rest)?).is_some() {
                return None;
            }
            take(rest, ',');
        }
        Some(Kept::Object(fields))
    } else if take(rest, '[') {
        let mut values = Vec::new();
        while !take(rest, ']') {
            values.push(read(rest)?);
            take(rest, ',');
        }
        Some(Kept::Array(values))
    } else if rest.starts_with('"') {
        text(rest).map(Kept::Text)
    } else {
        let is_behind = |it: char| matches!(it, ',' | ']' | '}') || it.is_ascii_whitespace();
        let length = rest.find(is_behind).unwrap_or(rest.len());
        let (plain, behind) = rest.split_at_checked(length)?;
        *rest = behind;
        (length > 0).then_some(Kept::Plain(plain))
    }
}

/// Takes a string from the front.
fn text(rest: &mut &str) -> Option<String> {
    *rest = rest.trim_ascii_start();
    let mut is_escaped = false;
    let end = rest.bytes().enumerate().skip(1).find_map(|(at, byte)| {
        let ends = byte == b'"' && !is_escaped;
        is_escaped = byte == b'\\' && !is_escaped;
        ends.then_some(at + 1)
    })?;
    let (text, behind) = rest.split_at_checked(end)?;
    *rest = behind;
    serde_json::from_str(text).ok()
}

/// Whether `sign` is next; then it is taken, and the white space before it in any case.
fn take(rest: &mut &str, sign: char) -> bool {
    *rest = rest.trim_ascii_start();
    match rest.strip_prefix(sign) {
        Some(behind) => {
            *rest = behind;
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

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
            (
                r#"{"a\\\"b" : "\\\\" , "c" : " , ] } " }"#,
                r#"{"a\\\"b":"\\\\","c":" , ] } "}"#,
            ),
            (r#"[{"z":true,"y":[[]]}]"#, r#"[{"y":[[]],"z":true}]"#),
        ] {
            assert_eq!(normalise(given).as_deref(), Some(stored), "{given}");
            assert_eq!(normalise(stored).as_deref(), Some(stored), "{stored}");
        }
    }

    /// Any JSON whose numbers are whole.
    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(Value::from_iter),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_the_parser_reads(value in json()) {
            let given = serde_json::to_string_pretty(&value).unwrap();
            prop_assert_eq!(normalise(&given), Some(value.to_string()));
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
