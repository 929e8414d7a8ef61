//! How values reach a process: which name wins, what a `barekey:NAME` entry becomes, and `$(VAR)` by Kubernetes' rules.
//!
//! All of it is a function of the container's environment, its [`Allowance`], the [`AgentSettings`] and the values.
//!
//! # Who wins
//!
//! 1. A name that the pod sets itself, in `env` or by a prefix of `envFrom`, keeps what the pod says.
//! 2. A name that the allowance gives (by itself, by a pattern, or as the new name of a rename) has the stage's value.
//! 3. Everything else, such as the image's own environment, stays.
//!
//! # What `$(VAR)` sees
//!
//! As in the kubelet: entries of `env` that come earlier, what `envFrom` set, and the variables of services; besides
//! these the stage's variables, as if `envFrom` had set them. The image's own environment is not seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::domain::names::VariableName;
use crate::domain::plaintext::Plaintext;
use crate::domain::reference::{AgentSettings, Allowance, REFERENCE_PREFIX, is_reserved_entry};

/// A process's environment: bytes, as the kernel has them, each name once.
pub type Environment = BTreeMap<Vec<u8>, Plaintext>;

/// What a process is started with.
#[derive(Debug)]
pub struct Composed {
    /// Its environment.
    pub environment: Environment,
    /// Its program and arguments; a value may have landed in them by `$(VAR)`.
    pub command: Vec<Plaintext>,
}

/// Why a process is not started: everything that is wrong at once, by name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ComposeError {
    /// Names that something asks for exactly, and that did not come.
    pub missing: BTreeSet<VariableName>,
    /// Entry → the variable that it refers to, which the allowance does not cover.
    pub uncovered: BTreeMap<String, VariableName>,
    /// Names whose value holds a NUL byte, which no environment can carry.
    pub with_nul: BTreeSet<String>,
}

impl fmt::Display for ComposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!(
                "the stage has no {}, or does not grant it to this pod's service account: write it, or add the account to spec.access of the BarekeyStage",
                joined(&self.missing)
            ));
        }
        for (entry, name) in &self.uncovered {
            parts.push(format!(
                "{entry} asks for {REFERENCE_PREFIX}{name}, which is not among this pod's variables: add {name} to the annotation barekey.dev/variables"
            ));
        }
        if !self.with_nul.is_empty() {
            parts.push(format!(
                "the value of {} holds a NUL byte, which an environment cannot carry",
                joined(&self.with_nul)
            ));
        }
        f.write_str(&parts.join("; "))
    }
}

impl std::error::Error for ComposeError {}

fn joined<T: fmt::Display>(names: &BTreeSet<T>) -> String {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// The variable that a value refers to: `NAME` for exactly `barekey:NAME`.
pub fn reference(value: &[u8]) -> Option<VariableName> {
    std::str::from_utf8(value)
        .ok()?
        .strip_prefix(REFERENCE_PREFIX)?
        .parse()
        .ok()
}

/// Expands `$(NAME)` by Kubernetes' rules.
///
/// `$$` is one `$`; `$(NAME)` is what `lookup` says; a name that `lookup` does not know, an opening that is never closed and a
/// `$` before anything else stay as they are. What was put in is not expanded again.
pub fn expand<'a>(text: &[u8], lookup: impl Fn(&[u8]) -> Option<&'a [u8]>) -> Vec<u8> {
    let mut expanded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.iter().position(|byte| *byte == b'$') {
        let (before, from_dollar) = rest.split_at(dollar);
        expanded.extend_from_slice(before);
        let after = from_dollar.get(1..).unwrap_or_default();
        rest = match after.first() {
            Some(b'$') => {
                expanded.push(b'$');
                after.get(1..).unwrap_or_default()
            }
            Some(b'(') => match after.iter().position(|byte| *byte == b')') {
                Some(close) => {
                    let (reference, behind) = after.split_at(close + 1);
                    let name = reference.get(1..close).unwrap_or_default();
                    match lookup(name) {
                        Some(value) => expanded.extend_from_slice(value),
                        None => {
                            expanded.push(b'$');
                            expanded.extend_from_slice(reference);
                        }
                    }
                    behind
                }
                None => {
                    expanded.extend_from_slice(b"$(");
                    after.get(1..).unwrap_or_default()
                }
            },
            _ => {
                expanded.push(b'$');
                after
            }
        };
    }
    expanded.extend_from_slice(rest);
    expanded
}

/// Whether the search path of the environment is the one that the process will have, whatever the values are.
pub fn path_is_settled(
    environment: &Environment,
    allowance: &Allowance,
    settings: &AgentSettings,
) -> bool {
    let name = "PATH";
    let refers = environment
        .get(name.as_bytes())
        .is_some_and(|value| reference(value.reveal()).is_some());
    if refers || settings.expand.contains(name) {
        return false;
    }
    let pod_sets = sets_itself(environment, settings, name.as_bytes());
    let stage_sets = name.parse().is_ok_and(|path: VariableName| {
        allowance.exports(&path) || allowance.rename.contains_key(&path)
    });
    pod_sets || !stage_sets
}

/// Puts the values into the environment and expands the command.
///
/// `values` are those of the allowance's stage, by their name there. Entries that belong to the agent are left out of the
/// answer.
///
/// # Errors
/// [`ComposeError`] with every name that is missing, not covered or unfit.
pub fn compose(
    mut environment: Environment,
    command: &[Vec<u8>],
    allowance: &Allowance,
    settings: &AgentSettings,
    values: &BTreeMap<VariableName, Plaintext>,
) -> Result<Composed, ComposeError> {
    let mut wrong = ComposeError {
        missing: allowance
            .required()
            .into_iter()
            .filter(|name| !values.contains_key(*name))
            .cloned()
            .collect(),
        ..ComposeError::default()
    };
    environment.retain(|name, _| !is_reserved(name));

    let injected = injected(allowance, values);
    let services = service_prefixes(&environment);
    let mut scope = Scope {
        settled: Environment::new(),
        unseen: BTreeSet::new(),
        injected: &injected,
    };

    // What `envFrom` set, the services and the image; the stage's variables in between.
    let mut own = Environment::new();
    let of_env: BTreeSet<&[u8]> = settings.own.iter().map(String::as_bytes).collect();
    for (name, value) in environment {
        let from_env_from = starts_with_any(&name, &settings.prefixes);
        if of_env.contains(name.as_slice()) {
            own.insert(name, value);
            continue;
        }
        if !from_env_from && injected.contains_key(name.as_slice()) {
            continue;
        }
        if !from_env_from && !is_of_service(&name, &services) {
            scope.unseen.insert(name.clone());
        }
        let value = resolve(&name, value, allowance, values, &mut wrong);
        scope.settled.insert(name, value);
    }
    for (name, value) in &injected {
        if !own.contains_key(*name) && !scope.settled.contains_key(*name) {
            if value.reveal().contains(&0) {
                wrong.with_nul.insert(lossy(name));
            }
            scope.settled.insert(name.to_vec(), copy(value));
        }
    }

    // The container's own entries, in their order.
    for name in &settings.own {
        let Some(value) = own.remove(name.as_bytes()) else {
            continue;
        };
        let value = if reference(value.reveal()).is_some() {
            resolve(name.as_bytes(), value, allowance, values, &mut wrong)
        } else if settings.expand.contains(name) {
            Plaintext::new(expand(value.reveal(), |name| scope.lookup(name)))
        } else {
            value
        };
        scope.settled.insert(name.clone().into_bytes(), value);
    }

    let command = command
        .iter()
        .map(|word| Plaintext::new(expand(word, |name| scope.lookup(name))))
        .collect();
    if wrong == ComposeError::default() {
        Ok(Composed {
            environment: scope.settled,
            command,
        })
    } else {
        Err(wrong)
    }
}

/// What is known so far of the process's environment.
struct Scope<'a> {
    settled: Environment,
    /// Names of `settled` that `$(VAR)` does not see: the image's own.
    unseen: BTreeSet<Vec<u8>>,
    injected: &'a BTreeMap<&'a [u8], &'a Plaintext>,
}

impl Scope<'_> {
    /// What `$(NAME)` is. For an entry of `env` that comes later it is the stage's value, which that entry will hide.
    fn lookup(&self, name: &[u8]) -> Option<&[u8]> {
        if self.unseen.contains(name) {
            return None;
        }
        self.settled
            .get(name)
            .or_else(|| self.injected.get(name).copied())
            .map(Plaintext::reveal)
    }
}

/// The variables that the allowance turns into entries of the environment, by the name that they have there.
fn injected<'a>(
    allowance: &'a Allowance,
    values: &'a BTreeMap<VariableName, Plaintext>,
) -> BTreeMap<&'a [u8], &'a Plaintext> {
    let by_own_name = values.iter().filter(|(name, _)| allowance.exports(name));
    let renamed = allowance
        .rename
        .iter()
        .filter_map(|(new, old)| values.get(old).map(|value| (new, value)));
    by_own_name
        .chain(renamed)
        .filter(|(name, _)| !is_reserved_entry(name.as_str()))
        .map(|(name, value)| (name.as_str().as_bytes(), value))
        .collect()
}

/// The value of an entry: the variable's, when the entry is exactly `barekey:NAME`.
fn resolve(
    entry: &[u8],
    value: Plaintext,
    allowance: &Allowance,
    values: &BTreeMap<VariableName, Plaintext>,
    wrong: &mut ComposeError,
) -> Plaintext {
    let Some(name) = reference(value.reveal()) else {
        return value;
    };
    if !allowance.covers(&name) {
        wrong.uncovered.insert(lossy(entry), name);
        return value;
    }
    match values.get(&name) {
        Some(resolved) => {
            if resolved.reveal().contains(&0) {
                wrong.with_nul.insert(lossy(entry));
            }
            copy(resolved)
        }
        None => {
            wrong.missing.insert(name);
            value
        }
    }
}

fn copy(value: &Plaintext) -> Plaintext {
    Plaintext::new(value.reveal().to_vec())
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn is_reserved(name: &[u8]) -> bool {
    std::str::from_utf8(name).is_ok_and(is_reserved_entry)
}

fn starts_with_any(name: &[u8], prefixes: &[String]) -> bool {
    prefixes
        .iter()
        .any(|prefix| name.starts_with(prefix.as_bytes()))
}

/// Whether the pod sets `name` itself.
fn sets_itself(environment: &Environment, settings: &AgentSettings, name: &[u8]) -> bool {
    environment.contains_key(name)
        && (settings.own.iter().any(|own| own.as_bytes() == name)
            || starts_with_any(name, &settings.prefixes))
}

const SERVICE_HOST: &[u8] = b"_SERVICE_HOST";

/// The names of the services that the kubelet tells of, as they begin their variables: `REDIS` for `REDIS_SERVICE_HOST`.
fn service_prefixes(environment: &Environment) -> BTreeSet<Vec<u8>> {
    environment
        .keys()
        .filter_map(|name| name.strip_suffix(SERVICE_HOST))
        .map(<[u8]>::to_vec)
        .collect()
}

/// Whether `name` is a variable that the kubelet sets for a service: `REDIS_SERVICE_HOST`, `REDIS_SERVICE_PORT`, with the
/// port's name behind it, `REDIS_PORT`, `REDIS_PORT_6379_TCP` and what begins so.
fn is_of_service(name: &[u8], services: &BTreeSet<Vec<u8>>) -> bool {
    let tails: [&[u8]; 3] = [SERVICE_HOST, b"_SERVICE_PORT", b"_PORT"];
    tails.iter().any(|tail| {
        name.windows(tail.len())
            .enumerate()
            .filter(|(_, window)| window == tail)
            .any(|(at, _)| {
                let (service, behind) = name.split_at(at);
                let behind = behind.get(tail.len()..).unwrap_or_default();
                (behind.is_empty() || (behind.starts_with(b"_") && *tail != SERVICE_HOST))
                    && services.contains(service)
            })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expanded(text: &str) -> String {
        let known: BTreeMap<&[u8], &[u8]> = BTreeMap::from([
            (b"VAR_A".as_slice(), b"A".as_slice()),
            (b"VAR_B", b"B"),
            (b"VAR_REF", b"$(VAR_A)"),
            (b"EMPTY", b""),
        ]);
        String::from_utf8(expand(text.as_bytes(), |name| known.get(name).copied())).unwrap()
    }

    #[test]
    fn references_expand_as_kubernetes_documents_them() {
        let vectors = [
            ("", ""),
            ("plain", "plain"),
            ("$(VAR_A)", "A"),
            ("___$(VAR_B)___", "___B___"),
            ("$(VAR_A)-$(VAR_A)", "A-A"),
            ("$(VAR_A)$(VAR_B)", "AB"),
            ("$(EMPTY)", ""),
            // What was put in is not expanded again.
            ("$(VAR_REF)", "$(VAR_A)"),
            // Escapes.
            ("$$", "$"),
            ("$$$", "$$"),
            ("$$$$", "$$"),
            ("$$(VAR_A)", "$(VAR_A)"),
            ("$$$(VAR_A)", "$A"),
            ("$$$$(VAR_A)", "$$(VAR_A)"),
            ("$$$$$$$(VAR_A)", "$$$A"),
            ("$$VAR_A", "$VAR_A"),
            // A backslash escapes nothing.
            ("\\$(VAR_A)", "\\A"),
            ("\\\\$(VAR_A)", "\\\\A"),
            // A name that is not defined stays as it is written.
            ("$(NONE)", "$(NONE)"),
            ("$()", "$()"),
            ("$( VAR_A)", "$( VAR_A)"),
            // No nesting: the first `)` closes.
            ("$(VAR_A$(VAR_B))", "$(VAR_A$(VAR_B))"),
            // Not a reference.
            ("$", "$"),
            ("a$", "a$"),
            ("$(", "$("),
            ("$(VAR_A", "$(VAR_A"),
            ("$(VAR_A$$", "$(VAR_A$"),
            ("$)", "$)"),
            ("$VAR_A", "$VAR_A"),
            ("${VAR_A}", "${VAR_A}"),
            ("$(VAR_A}", "$(VAR_A}"),
            ("50$ü", "50$ü"),
        ];
        for (text, expected) in vectors {
            assert_eq!(expanded(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_text_with_every_dollar_doubled_expands_to_itself(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let doubled: Vec<u8> = text
                .iter()
                .flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b'$' { 2 } else { 1 }))
                .collect();
            prop_assert_eq!(expand(&doubled, |_| Some(b"value".as_slice())), text);
        }

        #[test]
        fn a_text_whose_names_are_unknown_loses_only_doubled_dollars(text in "[$()A]{0,24}") {
            let kept = expand(text.as_bytes(), |_| None);
            let without = |text: &[u8]| -> Vec<u8> { text.iter().copied().filter(|byte| *byte != b'$').collect() };
            prop_assert_eq!(without(&kept), without(text.as_bytes()));
            prop_assert!(kept.len() <= text.len());
        }
    }

    fn environment(entries: &[(&str, &str)]) -> Environment {
        entries
            .iter()
            .map(|(name, value)| {
                (
                    name.as_bytes().to_vec(),
                    Plaintext::from((*value).to_owned()),
                )
            })
            .collect()
    }

    fn values(entries: &[(&str, &str)]) -> BTreeMap<VariableName, Plaintext> {
        entries
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), Plaintext::from((*value).to_owned())))
            .collect()
    }

    fn allowance(json: serde_json::Value) -> Allowance {
        let mut form = serde_json::json!({"v": 1, "stage": "stg_1"});
        form.as_object_mut()
            .unwrap()
            .extend(json.as_object().unwrap().clone());
        Allowance::parse(&form.to_string()).unwrap()
    }

    fn settings(json: serde_json::Value) -> AgentSettings {
        let mut form = serde_json::json!({
            "v": 1, "server": "barekey.barekey.svc", "port": 443, "ca": "", "token": "/t", "waitSeconds": 60,
        });
        form.as_object_mut()
            .unwrap()
            .extend(json.as_object().unwrap().clone());
        AgentSettings::parse(&form.to_string()).unwrap()
    }

    fn composed(
        entries: &[(&str, &str)],
        command: &[&str],
        allowed: serde_json::Value,
        told: serde_json::Value,
        stage: &[(&str, &str)],
    ) -> Result<(BTreeMap<String, String>, Vec<String>), ComposeError> {
        let command: Vec<Vec<u8>> = command
            .iter()
            .map(|word| word.as_bytes().to_vec())
            .collect();
        let text = |value: &Plaintext| value.reveal_text().unwrap().to_owned();
        compose(
            environment(entries),
            &command,
            &allowance(allowed),
            &settings(told),
            &values(stage),
        )
        .map(|composed| {
            (
                composed
                    .environment
                    .iter()
                    .map(|(name, value)| (String::from_utf8(name.clone()).unwrap(), text(value)))
                    .collect(),
                composed.command.iter().map(text).collect(),
            )
        })
    }

    fn environment_of(
        entries: &[(&str, &str)],
        allowed: serde_json::Value,
        told: serde_json::Value,
        stage: &[(&str, &str)],
    ) -> BTreeMap<String, String> {
        composed(entries, &[], allowed, told, stage).unwrap().0
    }

    fn entries(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    use serde_json::json;

    #[test]
    fn the_pods_own_names_win_over_the_stages_and_the_stages_over_the_images() {
        assert_eq!(
            environment_of(
                &[
                    ("OWN", "pod"),
                    ("CM_KEY", "configmap"),
                    ("IMAGE", "image"),
                    ("LANG", "C")
                ],
                json!({}),
                json!({"own": ["OWN"], "prefixes": ["CM_"]}),
                &[
                    ("OWN", "s"),
                    ("CM_KEY", "s"),
                    ("CM_NEW", "s"),
                    ("IMAGE", "s"),
                    ("NEW", "s")
                ],
            ),
            entries(&[
                ("OWN", "pod"),
                ("CM_KEY", "configmap"),
                ("CM_NEW", "s"),
                ("IMAGE", "s"),
                ("LANG", "C"),
                ("NEW", "s")
            ]),
        );
    }

    #[test]
    fn an_own_name_that_is_not_there_does_not_hide_the_stages() {
        // Such as an optional key of a ConfigMap that does not exist.
        assert_eq!(
            environment_of(
                &[],
                json!({}),
                json!({"own": ["OPTIONAL"]}),
                &[("OPTIONAL", "s")]
            ),
            entries(&[("OPTIONAL", "s")]),
        );
    }

    #[test]
    fn reserved_names_are_set_only_when_named_exactly() {
        let stage = [
            ("PATH", "/stage"),
            ("LD_PRELOAD", "x.so"),
            ("HOME", "/h"),
            ("KUBERNETES_SERVICE_HOST", "evil"),
        ];
        let image = [("PATH", "/bin"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1")];
        assert_eq!(
            environment_of(&image, json!({}), json!({}), &stage),
            entries(&image)
        );
        assert_eq!(
            environment_of(
                &image,
                json!({"variables": ["KUBERNETES_*", "LD_*", "HOME"]}),
                json!({}),
                &stage
            ),
            entries(&[
                ("PATH", "/bin"),
                ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
                ("HOME", "/h")
            ]),
        );
        assert_eq!(
            environment_of(
                &image,
                json!({"variables": ["PATH", "LD_PRELOAD"]}),
                json!({}),
                &stage
            ),
            entries(&[
                ("PATH", "/stage"),
                ("LD_PRELOAD", "x.so"),
                ("KUBERNETES_SERVICE_HOST", "10.0.0.1")
            ]),
        );
    }

    #[test]
    fn the_agents_entries_are_gone_and_a_stage_cannot_set_them() {
        assert_eq!(
            environment_of(
                &[
                    ("BAREKEY_ALLOWANCE", "{}"),
                    ("BAREKEY_AGENT_SETTINGS", "{}"),
                    ("BAREKEY_AGENT_X", "x"),
                    ("BAREKEY_API_URL", "mine")
                ],
                json!({}),
                json!({"own": ["BAREKEY_API_URL", "BAREKEY_ALLOWANCE", "BAREKEY_AGENT_SETTINGS"]}),
                &[
                    ("BAREKEY_AGENT_SETTINGS", "s"),
                    ("BAREKEY_ALLOWANCE", "s"),
                    ("BAREKEY_TOKEN", "s")
                ],
            ),
            entries(&[("BAREKEY_API_URL", "mine"), ("BAREKEY_TOKEN", "s")]),
        );
    }

    #[test]
    fn a_rename_sets_the_new_name_alone_unless_the_pod_sets_it() {
        let allowed = json!({"variables": [], "rename": {"DATABASE_URL": "DB", "OWN": "DB"}});
        assert_eq!(
            environment_of(
                &[("OWN", "pod"), ("DATABASE_URL", "image")],
                allowed,
                json!({"own": ["OWN"]}),
                &[("DB", "s")]
            ),
            entries(&[("OWN", "pod"), ("DATABASE_URL", "s")]),
        );
    }

    #[test]
    fn only_patterns_of_the_allowance_are_set() {
        assert_eq!(
            environment_of(
                &[],
                json!({"variables": ["DB_*", "KEY"]}),
                json!({}),
                &[("DB_URL", "u"), ("KEY", "k"), ("OTHER", "o")]
            ),
            entries(&[("DB_URL", "u"), ("KEY", "k")]),
        );
    }

    #[test]
    fn an_exact_reference_is_replaced_and_nothing_else_that_looks_like_one() {
        assert_eq!(
            environment_of(
                &[
                    ("A", "barekey:DB"),
                    ("B", "x barekey:DB"),
                    ("C", "barekey:"),
                    ("D", "barekey:a b"),
                    ("CM", "barekey:KEY")
                ],
                json!({"variables": ["KEY"], "references": ["DB"]}),
                json!({"own": ["A", "B", "C", "D"], "prefixes": ["CM"]}),
                &[("DB", "$(KEY)"), ("KEY", "barekey:DB")],
            ),
            entries(&[
                ("A", "$(KEY)"),
                ("B", "x barekey:DB"),
                ("C", "barekey:"),
                ("D", "barekey:a b"),
                ("CM", "barekey:DB"),
                ("KEY", "barekey:DB")
            ]),
        );
    }

    #[test]
    fn everything_that_is_missing_or_not_covered_is_named_at_once() {
        let error = composed(
            &[("CM_A", "barekey:HIDDEN"), ("E", "barekey:GONE")],
            &[],
            json!({"variables": ["A", "B", "P_*"], "rename": {"N": "OLD"}, "references": ["GONE"]}),
            json!({"own": ["E"], "prefixes": ["CM_"]}),
            &[("A", "a"), ("HIDDEN", "h")],
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("no B, GONE, OLD,"), "{text}");
        assert!(text.contains("CM_A asks for barekey:HIDDEN"), "{text}");
        assert!(text.contains("add HIDDEN to"), "{text}");
    }

    #[test]
    fn a_value_with_nul_is_refused_by_its_name() {
        let error = composed(&[], &[], json!({}), json!({}), &[("A", "se\0cret")]).unwrap_err();
        assert_eq!(error.with_nul, BTreeSet::from(["A".to_owned()]));
        assert!(!error.to_string().contains("cret"));
    }

    #[test]
    fn an_own_entry_sees_earlier_entries_env_from_the_stage_and_services_but_not_the_image() {
        let told = json!({
            "own": ["FIRST", "SECOND", "THIRD", "HIDDEN"], "expand": ["SECOND", "THIRD"], "prefixes": ["CM_"],
        });
        let entries_of_container = [
            ("FIRST", "1"),
            (
                "SECOND",
                "$(FIRST) $(CM_A) $(STAGE) $(REDIS_PORT_6379_TCP_ADDR) $(REDIS_SERVICE_HOST) $(LANG) $(THIRD) $(APP_PORT) $$(FIRST)",
            ),
            ("THIRD", "$(SECOND)!"),
            ("HIDDEN", "$(FIRST)"),
            ("CM_A", "cm"),
            ("LANG", "C"),
            ("APP_PORT", "8080"),
            ("REDIS_SERVICE_HOST", "10.1.1.1"),
            ("REDIS_PORT_6379_TCP_ADDR", "10.1.1.1"),
        ];
        let all = environment_of(&entries_of_container, json!({}), told, &[("STAGE", "s")]);
        let second = "1 cm s 10.1.1.1 10.1.1.1 $(LANG) $(THIRD) $(APP_PORT) $(FIRST)";
        assert_eq!(all["SECOND"], second);
        assert_eq!(all["THIRD"], format!("{second}!"));
        // The kubelet settled what is not in `expand`, such as a value from a ConfigMap's key.
        assert_eq!(all["HIDDEN"], "$(FIRST)");
    }

    #[test]
    fn an_own_entry_can_wrap_the_stages_value_of_its_own_name() {
        assert_eq!(
            environment_of(
                &[("DATABASE_URL", "$(DATABASE_URL)?sslmode=verify-full")],
                json!({}),
                json!({"own": ["DATABASE_URL"], "expand": ["DATABASE_URL"]}),
                &[("DATABASE_URL", "postgres://db")],
            ),
            entries(&[("DATABASE_URL", "postgres://db?sslmode=verify-full")]),
        );
    }

    #[test]
    fn the_command_sees_the_pods_and_the_stages_names_and_not_the_images() {
        let (_, command) = composed(
            &[("OWN", "own"), ("LANG", "C"), ("REF", "barekey:KEY")],
            &[
                "/bin/$(OWN)",
                "--key=$(KEY)",
                "$(LANG)",
                "$(REF)",
                "$$(OWN)",
                "$(NONE)",
                "",
            ],
            json!({"variables": ["KEY"]}),
            json!({"own": ["OWN", "REF"]}),
            &[("KEY", "k")],
        )
        .unwrap();
        assert_eq!(
            command,
            [
                "/bin/own", "--key=k", "$(LANG)", "k", "$(OWN)", "$(NONE)", ""
            ]
        );
    }

    #[test]
    fn the_path_is_settled_unless_a_value_can_change_it() {
        let settled = |path: &str, allowed, told| {
            path_is_settled(
                &environment(&[("PATH", path)]),
                &allowance(allowed),
                &settings(told),
            )
        };
        assert!(settled("/bin", json!({}), json!({})));
        assert!(settled(
            "/bin",
            json!({"variables": ["PATH"]}),
            json!({"own": ["PATH"]})
        ));
        assert!(!settled("/bin", json!({"variables": ["PATH"]}), json!({})));
        assert!(!settled(
            "/bin",
            json!({"rename": {"PATH": "P"}}),
            json!({})
        ));
        assert!(!settled(
            "$(A)",
            json!({}),
            json!({"own": ["PATH"], "expand": ["PATH"]})
        ));
        assert!(!settled("barekey:P", json!({}), json!({"own": ["PATH"]})));
    }
}
