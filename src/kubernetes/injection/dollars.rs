//! `$`, hidden from the kubelet and given back.
//!
//! The kubelet expands `$(NAME)` in `command`, `args` and `env` values before any program of a pod runs, and turns `$$` into
//! `$`. Where a value of the stage may come in, the webhook doubles every `$`, so that the agent gets the text as it was
//! written and expands it once it knows the values. All other entries of `env` are left to the kubelet: probes and hooks run
//! beside the agent, and see what the kubelet made.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::domain::names::VariableName;
use crate::domain::reference::{Allowance, REFERENCE_PREFIX};

use super::exposure::Listed;
use super::pod;

/// How many prefixes of `envFrom` every name is held against; with more of them any name may be set by one.
const PREFIXES_MAX: usize = 64;

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

/// The entries of a container's `env` whose `$` is doubled: each refers by `$(NAME)` to what is, or may become, a value of
/// the stage, be it by way of other entries.
pub(super) fn left_to_the_agent<'a>(
    container: &'a Value,
    allowance: &Allowance,
    listed: &Listed<'_>,
) -> BTreeSet<&'a str> {
    let env = pod::items(container, "env");
    let prefixes: BTreeSet<&str> = pod::items(container, "envFrom")
        .iter()
        .map(|source| pod::text(source, "prefix").unwrap_or(""))
        .collect();
    // What `envFrom` sets may be a reference, and is not known here.
    let may_come = |name: &str| {
        prefixes.len() > PREFIXES_MAX
            || prefixes.iter().any(|prefix| name.starts_with(prefix))
            || name.parse().is_ok_and(|name: VariableName| {
                allowance.rename.contains_key(&name) || listed.exports(&name)
            })
    };
    let has_dollar = |entry: &Value| pod::text(entry, "value").is_some_and(|it| it.contains('$'));

    // A name that is there twice is one name to the agent.
    let mut names = BTreeSet::new();
    let twice: BTreeSet<&str> = env
        .iter()
        .map(pod::name)
        .filter(|name| !names.insert(*name))
        .collect();
    let mut left: BTreeSet<&str> = env
        .iter()
        .filter(|entry| has_dollar(entry))
        .map(pod::name)
        .filter(|name| twice.contains(name))
        .collect();

    let mut earlier: BTreeMap<&str, bool> = BTreeMap::new();
    for entry in env {
        let name = pod::name(entry);
        let of_stage = left.contains(name)
            || match pod::text(entry, "value") {
                Some(value) => {
                    value.starts_with(REFERENCE_PREFIX)
                        || referred(value).into_iter().any(|name| {
                            earlier.get(name).copied().unwrap_or_else(|| may_come(name))
                        })
                }
                None => may_be_reference(entry),
            };
        if of_stage && has_dollar(entry) {
            left.insert(name);
        }
        *earlier.entry(name).or_default() |= of_stage;
    }
    left
}

/// Whether what an entry takes from elsewhere may be `barekey:NAME`. What the pod is and has never is.
fn may_be_reference(entry: &Value) -> bool {
    let source = entry.get("valueFrom").unwrap_or(&Value::Null);
    let field = source
        .pointer("/fieldRef/fieldPath")
        .and_then(Value::as_str);
    match field {
        Some(path) => path.starts_with("metadata.annotations"),
        None => !source.is_null() && source.get("resourceFieldRef").is_none(),
    }
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
