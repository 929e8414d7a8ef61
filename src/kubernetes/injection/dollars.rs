//! `$`, hidden from the kubelet and given back.
//!
//! The kubelet expands `$(NAME)` in `command`, `args` and `env` values before any program of a pod runs, and turns `$$` into
//! `$`. The webhook doubles every `$`, so that the agent gets the text as it was written and expands it once it knows the values.

use std::borrow::Cow;

/// The text that the kubelet turns into `text`.
pub(super) fn double(text: &str) -> Cow<'_, str> {
    if text.contains('$') {
        Cow::Owned(text.replace('$', "$$"))
    } else {
        Cow::Borrowed(text)
    }
}

/// What [`double`] made `text` from; `text` itself when it made it from nothing.
pub(super) fn halve(text: &str) -> Cow<'_, str> {
    let pairs_alone = text
        .split(|character| character != '$')
        .all(|run| run.len() % 2 == 0);
    if text.contains('$') && pairs_alone {
        Cow::Owned(text.replace("$$", "$"))
    } else {
        Cow::Borrowed(text)
    }
}

/// The names that `$(NAME)` in a text refers to, by Kubernetes' rules: `$$` is a plain `$`.
pub(super) fn referred(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('$') {
        rest = if let Some(escaped) = after.strip_prefix('$') {
            escaped
        } else if let Some((name, behind)) =
            after.strip_prefix('(').and_then(|it| it.split_once(')'))
        {
            names.push(name);
            behind
        } else {
            after
        };
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the kubelet makes of a text when it knows no variable.
    fn kubelet(text: &str) -> String {
        let mut out = String::new();
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            if character == '$' && characters.peek() == Some(&'$') {
                characters.next();
            }
            out.push(character);
        }
        out
    }

    #[test]
    fn a_text_that_was_never_doubled_stays() {
        for text in ["$A", "a$(B)", "$$$", "plain", ""] {
            assert_eq!(halve(text), text);
        }
    }

    #[test]
    fn references_are_found_and_escaped_ones_are_not() {
        assert_eq!(referred("$(A)-$$(B)-$(C"), ["A"]);
        assert_eq!(referred("$$$(A)$B$(C)"), ["A", "C"]);
        assert_eq!(referred("$"), Vec::<&str>::new());
    }

    proptest! {
        #[test]
        fn the_kubelet_hands_the_original_through(text in "[a$()]{0,12}") {
            prop_assert_eq!(kubelet(&double(&text)), text);
        }

        #[test]
        fn doubling_is_undone(text in "[a$()]{0,12}") {
            let doubled = double(&text);
            prop_assert_eq!(halve(&doubled).into_owned(), text);
        }
    }
}
