//! An error as people read it: what happened, and why.

use std::error::Error;

/// An error and its causes on one line, each said once. Our own errors never repeat their cause; some libraries' do.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Caused {
        text: &'static str,
        source: Option<Box<Caused>>,
    }

    fn caused(texts: &[&'static str]) -> Option<Box<Caused>> {
        let (text, rest) = texts.split_first()?;
        Some(Box::new(Caused {
            text,
            source: caused(rest),
        }))
    }

    #[test]
    fn every_cause_is_said_once() {
        for (texts, said) in [
            (&["alone"][..], "alone"),
            (&["outer", "inner", "innermost"], "outer: inner: innermost"),
            (
                &["outer: inner (that)", "inner", "why"],
                "outer: inner (that): why",
            ),
        ] {
            assert_eq!(with_causes(&*caused(texts).unwrap()), said);
        }
    }
}
