//! What the kubelet and the agent make of a pod's entries, one after the other.

use proptest::prelude::*;

use super::*;
use crate::domain::plaintext::Plaintext;
use crate::domain::reference::expansion::{Environment, compose, expand, reference};

const SECRET: &str = "a $(A) $$ value";

/// One entry of `env`.
#[derive(Debug, Clone)]
enum Entry {
    /// `value`.
    Written(String),
    /// `valueFrom` a ConfigMap, which has this text.
    Configured(&'static str),
    /// `valueFrom` the pod's IP.
    Address,
}

fn entries() -> impl Strategy<Value = Vec<(&'static str, Entry)>> {
    let names = Just(["A", "B", "C", "TOKEN", "D", "E"].to_vec()).prop_shuffle();
    let pieces = prop::sample::select(vec![
        "$(A)",
        "$(B)",
        "$(C)",
        "$(TOKEN)",
        "$(F_X)",
        "$(SVC_SERVICE_HOST)",
        "$(DB_USER)",
        "$$",
        "$",
        "x",
        ")",
    ]);
    let written = prop::collection::vec(pieces, 0..4).prop_map(|pieces| pieces.concat());
    let entry = prop_oneof![
        6 => written.prop_map(Entry::Written),
        1 => Just(Entry::Written("barekey:TOKEN".to_owned())),
        1 => prop::sample::select(vec!["barekey:TOKEN", "plain", "$(B)"]).prop_map(Entry::Configured),
        1 => Just(Entry::Address),
    ];
    (names, prop::collection::vec(entry, 0..6))
        .prop_map(|(names, entries)| names.into_iter().zip(entries).collect())
}

/// Runs `env` through the kubelet; the other names are there already.
fn kubelet(
    mut known: BTreeMap<String, String>,
    env: &[(String, String, bool)],
) -> BTreeMap<String, String> {
    let services = known.clone();
    let mut seen = known.clone();
    for (name, text, expands) in env {
        let value = if *expands {
            let look = |name: &[u8]| {
                let name = std::str::from_utf8(name).unwrap();
                seen.get(name)
                    .or_else(|| services.get(name))
                    .map(String::as_bytes)
            };
            String::from_utf8(expand(text.as_bytes(), look)).unwrap()
        } else {
            text.clone()
        };
        seen.insert(name.clone(), value.clone());
        known.insert(name.clone(), value);
    }
    known
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// As if one program had expanded everything with the stage's values at hand; and what is left to the kubelet is as it
    /// would be without us.
    #[test]
    fn kubelet_and_agent_together_make_what_was_meant(
        entries in entries(),
        from in prop::option::of(prop::sample::select(vec!["barekey:TOKEN", "plain"])),
        listed in prop::option::of(prop::sample::select(vec!["TOKEN", "DB_*,TOKEN", "A=TOKEN"])),
    ) {
        let env: Vec<Value> = entries.iter().map(|(name, entry)| match entry {
            Entry::Written(value) => json!({"name": name, "value": value}),
            Entry::Configured(_) => json!({"name": name, "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}),
            Entry::Address => json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}),
        }).collect();
        let mut pod = with(pod(), "/spec/containers/0/env", json!(env));
        if let Some(listed) = listed {
            pod = with(pod, "/metadata/annotations/barekey.dev~1variables", json!(listed));
        }
        let mut known = BTreeMap::from([("SVC_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned())]);
        if let Some(from) = from {
            pod = with(pod, "/spec/containers/0/envFrom", json!([{"configMapRef": {"name": "c"}, "prefix": "F_"}]));
            known.insert("F_X".to_owned(), from.to_owned());
        }
        let becomes = injected(&pod);
        let container = &becomes["spec"]["containers"][0];
        let (allowance, settings) = (allowance(container), agent_settings(container));
        let values = || BTreeMap::from([
            ("TOKEN".parse().unwrap(), Plaintext::from(SECRET.to_owned())),
            ("DB_USER".parse().unwrap(), Plaintext::from("user".to_owned())),
        ]);

        // What runs: the kubelet on what the webhook wrote, then the agent.
        let text = |name: &str, entry: &Entry, container: &Value| match entry {
            Entry::Written(_) => (name.to_owned(), super::entry(container, name).to_owned(), true),
            Entry::Configured(text) => (name.to_owned(), (*text).to_owned(), false),
            Entry::Address => (name.to_owned(), "10.1.1.1".to_owned(), false),
        };
        let written: Vec<_> = entries.iter().map(|(name, entry)| text(name, entry, container)).collect();
        let at_start = kubelet(known.clone(), &written);
        let environment: Environment = at_start
            .iter()
            .map(|(name, value)| (name.clone().into_bytes(), Plaintext::from(value.clone())))
            .collect();
        let composed = match compose(environment, &[], &allowance, &settings, &values()) {
            Ok(composed) => composed,
            // A reference from elsewhere that the pod does not list: refused by name.
            Err(error) => {
                prop_assert!(!error.uncovered.is_empty() && error.missing.is_empty(), "{}", error);
                return Ok(());
            }
        };

        // What was meant: the stage's variables are there before `env`, and references are what they stand for.
        let original = &pod["spec"]["containers"][0];
        let meant: Vec<_> = entries.iter().map(|(name, entry)| text(name, entry, original)).collect();
        let resolve = |value: &str| reference(value.as_bytes()).map(|_| SECRET.to_owned());
        let mut before = known.clone();
        for value in before.values_mut() {
            if let Some(secret) = resolve(value) {
                *value = secret;
            }
        }
        for (name, value) in values() {
            if allowance.exports(&name) {
                before.entry(name.to_string()).or_insert_with(|| value.reveal_text().unwrap().to_owned());
            }
        }
        for new in allowance.rename.keys() {
            before.entry(new.to_string()).or_insert_with(|| SECRET.to_owned());
        }
        let resolved: Vec<_> = meant
            .iter()
            .map(|(name, value, expands)| match resolve(value) {
                Some(secret) => (name.clone(), secret, false),
                None => (name.clone(), value.clone(), *expands),
            })
            .collect();
        let expected = kubelet(before, &resolved);
        let got: BTreeMap<String, String> = composed
            .environment
            .iter()
            .map(|(name, value)| (String::from_utf8(name.clone()).unwrap(), value.reveal_text().unwrap().to_owned()))
            .collect();
        prop_assert_eq!(&got, &expected);

        // A probe sees what the kubelet made, of entries that the agent does not touch.
        let without_us = kubelet(known, &meant);
        for (name, value) in &at_start {
            if !settings.expand.contains(name) {
                prop_assert_eq!(value, &without_us[name], "{}", name);
            }
        }
    }
}
