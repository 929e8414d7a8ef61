//! What a pod may ask for and how its values reach a process: allowances, agent settings, `barekey:NAME` references,
//! precedence, reserved names, `$(VAR)`.
//!
//! The webhook writes an [`Allowance`] and [`AgentSettings`] into immutable fields of a pod's spec; the server reads the
//! allowance back from the API server; the agent reads both from its environment. Old pods restart old agents, so both
//! carry their version `v` and have frozen vectors.

pub mod expansion;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::domain::names::{NameError, NamePattern, Namespace, ObjectName, StageId, VariableName};

/// The environment entry that holds a container's [`Allowance`].
pub const ALLOWANCE_ENTRY: &str = "BAREKEY_ALLOWANCE";
/// The environment entry that holds the agent's [`AgentSettings`].
pub const SETTINGS_ENTRY: &str = "BAREKEY_AGENT_SETTINGS";
/// Every entry that starts so belongs to the agent.
pub const AGENT_ENTRY_PREFIX: &str = "BAREKEY_AGENT_";
/// A value that is exactly this and a variable's name is replaced by the variable's value.
pub const REFERENCE_PREFIX: &str = "barekey:";
/// The version of the forms that this program writes.
pub const FORM_VERSION: u32 = 1;

/// Whether an environment entry is written by the webhook alone.
pub fn is_reserved_entry(name: &str) -> bool {
    name == ALLOWANCE_ENTRY || name.starts_with(AGENT_ENTRY_PREFIX)
}

/// Whether a variable of this name is set only when `barekey.dev/variables` names it exactly.
pub fn is_set_only_by_name(name: &str) -> bool {
    name.starts_with("LD_")
        || name.starts_with("KUBERNETES_")
        || matches!(name, "PATH" | "GLIBC_TUNABLES" | "HOME" | "HOSTNAME")
}

/// What one container may ask for. Written by the webhook into `BAREKEY_ALLOWANCE`, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Allowance {
    /// The version of this form: 1.
    pub v: u32,
    /// The stage, by its id.
    pub stage: StageId,
    /// Names and patterns that become environment variables; absent for every variable that the account may read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variables: Option<BTreeSet<NamePattern>>,
    /// New name → name in the stage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rename: BTreeMap<VariableName, VariableName>,
    /// Names that `barekey:NAME` entries of the container's `env` refer to.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub references: BTreeSet<VariableName>,
}

/// Why a text is not an allowance or settings of a version that this program knows.
#[derive(Debug, thiserror::Error)]
pub enum FormError {
    /// Not the JSON of the form.
    #[error("{entry} is not the JSON that the webhook writes")]
    Malformed {
        /// The environment entry.
        entry: &'static str,
        /// What the parser says.
        source: serde_json::Error,
    },
    /// A version from another release.
    #[error("{entry} has version {v}, and this program knows version {FORM_VERSION}")]
    UnknownVersion {
        /// The environment entry.
        entry: &'static str,
        /// The version.
        v: u32,
    },
}

/// Reads the version first, since another version may have other fields.
fn parse_form<T: DeserializeOwned>(entry: &'static str, text: &str) -> Result<T, FormError> {
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }

    let malformed = |source| FormError::Malformed { entry, source };
    let Version { v } = serde_json::from_str(text).map_err(malformed)?;
    if v == FORM_VERSION {
        serde_json::from_str(text).map_err(malformed)
    } else {
        Err(FormError::UnknownVersion { entry, v })
    }
}

impl Allowance {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// [`FormError`] for anything but a version 1 allowance.
    pub fn parse(text: &str) -> Result<Self, FormError> {
        parse_form(ALLOWANCE_ENTRY, text)
    }

    /// Whether the container may ask for the value of `name` (the name in the stage).
    pub fn covers(&self, name: &VariableName) -> bool {
        self.exports(name)
            || self.references.contains(name)
            || self.rename.values().any(|old| old == name)
    }

    /// Whether `name` becomes an environment variable of its own name. One of the agent's own entries never does.
    pub fn exports(&self, name: &VariableName) -> bool {
        if is_reserved_entry(name.as_str()) {
            return false;
        }
        match &self.variables {
            None => !is_set_only_by_name(name.as_str()),
            Some(patterns) => patterns.iter().any(|pattern| match pattern {
                NamePattern::Exact(exact) => exact == name,
                NamePattern::Prefix(_) => {
                    pattern.covers(name) && !is_set_only_by_name(name.as_str())
                }
            }),
        }
    }

    /// The names that must be there, since something names them exactly.
    pub fn required(&self) -> BTreeSet<&VariableName> {
        let listed = self
            .variables
            .iter()
            .flatten()
            .filter_map(|pattern| match pattern {
                NamePattern::Exact(name) => Some(name),
                NamePattern::Prefix(_) => None,
            });
        listed
            .chain(self.rename.values())
            .chain(&self.references)
            .collect()
    }
}

/// What the in-pod agent is told. Written by the webhook into `BAREKEY_AGENT_SETTINGS`, as JSON. Holds nothing secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentSettings {
    /// The version of this form: 1.
    pub v: u32,
    /// The name that the server's certificate must have, such as `barekey.barekey.svc`; also what is looked up when no address answers.
    pub server: String,
    /// The port of the Service.
    pub port: u16,
    /// Addresses to try first: the Service's ClusterIP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<String>,
    /// The certificate authority that signs the server's certificate: DER in standard base64.
    pub ca: String,
    /// The file with the token that proves which pod this is.
    pub token: String,
    /// How long the agent waits for the server before it gives up, in seconds.
    pub wait_seconds: u32,
    /// The names of the container's `env`, in order; they win over the stage's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own: Vec<String>,
    /// Those of `own` whose value the agent expands (`$(VAR)`), since the webhook hid it from the kubelet. The kubelet expanded
    /// the others.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub expand: BTreeSet<String>,
    /// The prefixes of the container's `envFrom`: a name that starts so and is in the environment was set by the pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub prefixes: Vec<String>,
}

impl AgentSettings {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// [`FormError`] for anything but version 1 settings.
    pub fn parse(text: &str) -> Result<Self, FormError> {
        parse_form(SETTINGS_ENTRY, text)
    }
}

/// The `[namespace/]name` of a BarekeyStage, as `barekey.dev/stage` has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageReference {
    /// The namespace; `None` for the pod's own.
    pub namespace: Option<Namespace>,
    /// The resource's name.
    pub name: ObjectName,
}

impl FromStr for StageReference {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((namespace, name)) => Ok(Self {
                namespace: Some(namespace.parse()?),
                name: name.parse()?,
            }),
            None => Ok(Self {
                namespace: None,
                name: text.parse()?,
            }),
        }
    }
}

impl fmt::Display for StageReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => write!(f, "{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The forms of every version ever written; they must read the same for ever.
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Vectors {
        allowances: Vec<AllowanceVector>,
        settings: Vec<SettingsVector>,
        other_versions: Vec<String>,
        malformed: Vec<String>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct AllowanceVector {
        what: String,
        text: String,
        exports: Vec<VariableName>,
        exports_not: Vec<VariableName>,
        covers_not: Vec<VariableName>,
        required: Vec<VariableName>,
    }

    #[derive(Deserialize)]
    struct SettingsVector {
        what: String,
        text: String,
    }

    fn vectors() -> Vectors {
        serde_json::from_str(include_str!("../../tests/vectors/pod-forms.json")).unwrap()
    }

    #[test]
    fn frozen_allowances_read_and_write_as_they_did() {
        for vector in vectors().allowances {
            let what = vector.what;
            let allowance = Allowance::parse(&vector.text).unwrap();
            assert_eq!(
                serde_json::to_string(&allowance).unwrap(),
                vector.text,
                "{what}"
            );
            for name in &vector.exports {
                assert!(
                    allowance.exports(name) && allowance.covers(name),
                    "{what}: {name}"
                );
            }
            for name in &vector.exports_not {
                assert!(!allowance.exports(name), "{what}: {name}");
            }
            for name in &vector.covers_not {
                assert!(!allowance.covers(name), "{what}: {name}");
            }
            for name in &vector.required {
                assert!(allowance.covers(name), "{what}: {name}");
            }
            assert_eq!(
                allowance.required(),
                vector.required.iter().collect(),
                "{what}"
            );
        }
    }

    #[test]
    fn frozen_settings_read_and_write_as_they_did() {
        for vector in vectors().settings {
            let settings = AgentSettings::parse(&vector.text).unwrap();
            assert_eq!(
                serde_json::to_string(&settings).unwrap(),
                vector.text,
                "{}",
                vector.what
            );
        }
    }

    #[test]
    fn another_version_is_named_and_anything_else_is_malformed() {
        for text in vectors().other_versions {
            assert!(
                matches!(
                    Allowance::parse(&text),
                    Err(FormError::UnknownVersion { .. })
                ),
                "{text}"
            );
        }
        for text in vectors().malformed {
            assert!(
                matches!(Allowance::parse(&text), Err(FormError::Malformed { .. })),
                "{text}"
            );
        }
    }

    #[test]
    fn reserved_entries_are_the_agents_alone() {
        for reserved in [
            "BAREKEY_ALLOWANCE",
            "BAREKEY_AGENT_SETTINGS",
            "BAREKEY_AGENT_",
        ] {
            assert!(is_reserved_entry(reserved), "{reserved}");
        }
        for free in [
            "BAREKEY_ORG",
            "BAREKEY_AGENT",
            "BAREKEY_ALLOWANCES",
            "BAREKEY_TOKEN",
        ] {
            assert!(!is_reserved_entry(free), "{free}");
        }
    }

    #[test]
    fn a_stage_reference_is_a_name_with_or_without_a_namespace() {
        let reference: StageReference = "vaults/backend.production".parse().unwrap();
        assert_eq!(reference.to_string(), "vaults/backend.production");
        assert_eq!(
            "production".parse::<StageReference>().unwrap().namespace,
            None
        );
        for bad in ["", "/", "a/", "/a", "a/b/c", "A", "a b"] {
            assert!(bad.parse::<StageReference>().is_err(), "{bad:?}");
        }
    }
}
