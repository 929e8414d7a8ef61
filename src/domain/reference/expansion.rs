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

#[cfg(test)]
mod tests;

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
