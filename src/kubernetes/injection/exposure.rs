//! Where values would be missed or seen: exec probes and hooks, which run beside the program, and arguments.

use std::collections::{BTreeSet, HashSet};

use serde_json::Value;

use crate::domain::access::AccessGrant;
use crate::domain::names::{NamePattern, Namespace, ObjectName, VariableName};
use crate::domain::reference::{Allowance, is_reserved_entry, is_set_only_by_name};

use super::WARNINGS_MAX;
use super::containers::Chosen;
use super::dollars;
use super::pod;
use super::refusal::{Problem, shown};

/// The checks that may run a command in a container, and where in its form.
const CHECKS: [(&str, &str); 5] = [
    ("livenessProbe", "/livenessProbe/exec"),
    ("readinessProbe", "/readinessProbe/exec"),
    ("startupProbe", "/startupProbe/exec"),
    ("postStart hook", "/lifecycle/postStart/exec"),
    ("preStop hook", "/lifecycle/preStop/exec"),
];

/// Whether a name in a container's environment gets its value from the stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Injected {
    /// It does, by what the pod's own spec says.
    BySpec,
    /// It does, since the stage has such a variable. Whoever posts a review may guess names, so it is not told which it was.
    ByStage,
    /// An entry of the pod's own that refers to what may be a value of the stage: the agent expands it.
    ByEntry,
    No,
    /// It does if the stage has such a variable, and nobody could say.
    Perhaps,
}

/// What decides which names of one container's environment come from the stage.
pub(super) struct Environment<'a> {
    /// The container.
    pub(super) container: &'a Value,
    /// The names that its own `env` sets.
    pub(super) own: BTreeSet<&'a str>,
    /// Those of them that the agent expands.
    pub(super) left_to_the_agent: BTreeSet<&'a str>,
    /// Its references.
    pub(super) chosen: &'a Chosen,
    /// What it may ask for.
    pub(super) allowance: &'a Allowance,
    /// What that lists.
    pub(super) listed: &'a Listed<'a>,
    /// What the stage grants to the pod's account.
    pub(super) granted: &'a Listed<'a>,
    /// The names that the stage holds; `None` when the vault did not say.
    pub(super) names: Option<&'a BTreeSet<VariableName>>,
}

impl Environment<'_> {
    fn injected(&self, name: &str) -> Injected {
        if self.left_to_the_agent.contains(name) {
            return Injected::ByEntry;
        }
        let own = self.own.contains(name);
        let certain = self.chosen.references.contains_key(name);
        let Ok(name) = name.parse::<VariableName>() else {
            return if certain {
                Injected::BySpec
            } else {
                Injected::No
            };
        };
        if certain {
            Injected::BySpec
        } else if own {
            Injected::No
        } else if self.allowance.rename.contains_key(&name)
            || self.listed.exact.contains(name.as_str())
        {
            Injected::BySpec
        } else if self.names.is_some_and(|names| !names.contains(&name))
            || is_set_only_by_name(name.as_str())
            || is_reserved_entry(name.as_str())
            || !self.listed.covers(name.as_str())
            || !self.granted.covers(name.as_str())
        {
            Injected::No
        } else if self.names.is_some() {
            Injected::ByStage
        } else {
            Injected::Perhaps
        }
    }
}

/// What patterns cover, at a cost that does not grow with their number: a review may have thousands of them, and each word of
/// its checks is compared with all.
#[derive(Default)]
pub(super) struct Listed<'a> {
    exact: HashSet<&'a str>,
    prefixes: HashSet<&'a str>,
}

impl<'a> Listed<'a> {
    /// What an allowance lists.
    pub(super) fn by(variables: Option<&'a BTreeSet<NamePattern>>) -> Self {
        let mut listed = Self::default();
        listed.add(variables);
        listed
    }

    /// What the grants of a stage list for one account.
    pub(super) fn granted(
        grants: &'a [AccessGrant],
        namespace: &Namespace,
        account: &ObjectName,
    ) -> Self {
        let mut listed = Self::default();
        for grant in grants {
            if grant.namespace == *namespace && grant.service_accounts.contains(account) {
                listed.add(grant.variables.as_ref());
            }
        }
        listed
    }

    /// Adds patterns; without any, every name.
    fn add(&mut self, variables: Option<impl IntoIterator<Item = &'a NamePattern>>) {
        let Some(variables) = variables else {
            self.prefixes.insert("");
            return;
        };
        for pattern in variables {
            match pattern {
                NamePattern::Exact(name) => self.exact.insert(name.as_str()),
                NamePattern::Prefix(prefix) => self.prefixes.insert(prefix.as_str()),
            };
        }
    }

    /// Whether a name becomes an environment variable of its own name, as [`Allowance::exports`] says of one allowance.
    pub(super) fn exports(&self, name: &VariableName) -> bool {
        let name = name.as_str();
        !is_reserved_entry(name)
            && (self.exact.contains(name) || (!is_set_only_by_name(name) && self.covers(name)))
    }

    fn covers(&self, name: &str) -> bool {
        let mut starts = (0..=name.len()).filter_map(|end| name.get(..end));
        self.exact.contains(name) || starts.any(|start| self.prefixes.contains(start))
    }
}

/// The exec probes and hooks that name a variable of the stage: they run without the program's environment.
pub(super) fn blind_checks(environment: &Environment<'_>) -> Vec<Problem> {
    CHECKS
        .into_iter()
        .filter_map(|(check, pointer)| {
            let exec = environment.container.pointer(pointer)?;
            // Each word is looked at once, however often the text has it.
            let mut seen = HashSet::new();
            let injected: Vec<_> = pod::texts(exec, "command")
                .flat_map(words)
                .filter(|word| seen.insert(*word))
                .map(|word| (word, environment.injected(word)))
                .filter(|(_, how)| *how != Injected::No)
                .collect();
            let container = || shown(&environment.chosen.name);
            let any = |wanted: Injected| {
                let found = injected.iter().find(|(_, how)| *how == wanted);
                found.map(|(word, _)| *word)
            };
            if let Some(variable) = any(Injected::BySpec) {
                return Some(Problem::Probe {
                    container: container(),
                    check,
                    variable: shown(variable),
                });
            }
            if let Some(entry) = any(Injected::ByEntry) {
                return Some(Problem::ProbeOfEntry {
                    container: container(),
                    check,
                    entry: shown(entry),
                });
            }
            if any(Injected::ByStage).is_some() {
                return Some(Problem::ProbeOfStage {
                    container: container(),
                    check,
                });
            }
            any(Injected::Perhaps).map(|_| Problem::ProbeUndecided {
                container: container(),
                check,
            })
        })
        .collect()
}

/// Whether any container of these has an exec probe or hook, or refers to a variable in its command or arguments.
pub(super) fn asks_for_names(container: &Value) -> bool {
    CHECKS
        .into_iter()
        .any(|(_, pointer)| container.pointer(pointer).is_some())
        || !arguments_referring(container).is_empty()
}

/// Warnings about values that become arguments, which others on the node can see.
///
/// The first few that the pod's own spec asks for by name, since a person reads them, and one warning for all others.
pub(super) fn values_in_arguments(environment: &Environment<'_>) -> Vec<String> {
    let container = shown(&environment.chosen.name);
    let referring = arguments_referring(environment.container);
    let told = referring
        .iter()
        .filter(|name| environment.injected(name) == Injected::BySpec)
        .take(WARNINGS_MAX)
        .map(|name| {
            format!(
                "container {container}: $({}) puts a value of the vault into the arguments of its process, where others on the node may read it: let the program read its environment",
                shown(name),
            )
        });
    let others = referring.iter().any(|name| {
        matches!(
            environment.injected(name),
            Injected::ByStage | Injected::ByEntry | Injected::Perhaps
        )
    });
    told.chain(others.then(|| {
        format!(
            "container {container}: its command or args refer by $(NAME) to what the stage may hold, and a value in the arguments of a process may be read by others on the node: let the program read its environment",
        )
    }))
    .collect()
}

fn arguments_referring(container: &Value) -> BTreeSet<&str> {
    ["command", "args"]
        .into_iter()
        .flat_map(|field| pod::texts(container, field))
        .flat_map(dollars::referred)
        .collect()
}

/// The words of a command that could name a variable.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'))
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::access::grants_variable;

    #[test]
    fn what_is_listed_is_what_the_patterns_cover_one_by_one() {
        let grants = |text: &[Option<&[&str]>]| -> Vec<AccessGrant> {
            let grant = |patterns: &Option<&[&str]>| AccessGrant {
                namespace: "shop".parse().unwrap(),
                service_accounts: vec!["api".parse().unwrap()],
                variables: patterns
                    .map(|patterns| patterns.iter().map(|it| it.parse().unwrap()).collect()),
            };
            text.iter().map(grant).collect()
        };
        let (shop, api) = ("shop".parse().unwrap(), "api".parse().unwrap());
        for grants in [
            grants(&[]),
            grants(&[None]),
            grants(&[Some(&["A", "DB_*"]), Some(&["B"])]),
            grants(&[Some(&["D*"])]),
        ] {
            let granted = Listed::granted(&grants, &shop, &api);
            for name in ["A", "B", "D", "DB", "DB_", "DB_URL", "OTHER"] {
                let one_by_one = grants_variable(&grants, &shop, &api, &name.parse().unwrap());
                assert_eq!(granted.covers(name), one_by_one, "{name} of {grants:?}");
            }
            let of_another = Listed::granted(&grants, &shop, &"other".parse().unwrap());
            assert!(!of_another.covers("A"));
        }
    }
}
