//! Which containers get values, what each of them asks for, and how one is wrapped.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::domain::names::{StageId, VariableName};
use crate::domain::reference::{
    ALLOWANCE_ENTRY, AgentSettings, Allowance, FORM_VERSION, REFERENCE_PREFIX, SETTINGS_ENTRY,
};

use super::annotations::Wishes;
use super::dollars;
use super::pod::{self, List, Place};
use super::refusal::{Problem, Problems, shown};
use super::{
    AGENT_DIRECTORY, AGENT_VOLUME, DIRECTORY, InjectionSettings, TOKEN_DIRECTORY, TOKEN_FILE,
    TOKEN_VOLUME, WRAPPER,
};

/// Containers that carry a pod's traffic and know nothing of its variables. They get values only when they are named.
const KNOWN_PROXIES: [&str; 14] = [
    "istio-proxy",
    "istio-init",
    "istio-validation",
    "linkerd-proxy",
    "linkerd-init",
    "linkerd-network-validator",
    "consul-dataplane",
    "consul-connect-inject-init",
    "kuma-sidecar",
    "kuma-init",
    "kuma-validation",
    "envoy-sidecar",
    "aws-appmesh-proxyinit",
    "osm-init",
];

/// How long the agent waits for the vault, in seconds.
const WAIT_SECONDS: u32 = 60;
/// The longest entry that is written, in bytes: the kernel takes 128 KiB for one, and other programs take less.
const ENTRY_BYTES_MAX: usize = 64 * 1024;

/// The most containers of a pod that asks for injection.
const CONTAINERS_MAX: usize = 256;
/// The most references in the containers of one pod.
const REFERENCES_MAX: usize = 1024;

/// A container that gets values.
#[derive(Debug)]
pub(super) struct Chosen {
    /// Where it is.
    pub(super) place: Place,
    /// Its name.
    pub(super) name: String,
    /// Entry of its `env` → the variable that the entry refers to.
    pub(super) references: BTreeMap<String, VariableName>,
}

/// The containers that get values, each with the references in its `env`.
///
/// # Errors
/// Every container that cannot get them, or that the annotation names and that is not there.
pub(super) fn choose(pod: &Value, wishes: &Wishes) -> Result<Vec<Chosen>, Problems> {
    let mut problems = missing(pod, wishes);
    let mut chosen = Vec::new();
    for (place, container) in pod::containers(pod) {
        let name = pod::name(container);
        let wanted = match &wishes.containers {
            Some(names) => names.contains(name),
            None => !KNOWN_PROXIES.contains(&name),
        };
        let (references, bad) = references(container);
        if !wanted {
            problems.extend(references.keys().map(|entry| Problem::ReferenceLeftOut {
                container: shown(name),
                entry: shown(entry),
            }));
            continue;
        }
        problems.absorb(bad);
        problems.absorb(obstacles(container));
        chosen.push(Chosen {
            place,
            name: name.to_owned(),
            references,
        });
    }
    let count = chosen.iter().map(|it: &Chosen| it.references.len()).sum();
    if count > REFERENCES_MAX {
        problems.push(Problem::TooMany {
            what: "the pod",
            count,
            items: "references to variables",
            count_max: REFERENCES_MAX,
            instead: "list the names in barekey.dev/variables",
        });
    }
    if chosen.is_empty() && problems.is_empty() {
        problems.push(Problem::NoContainer);
    }
    if problems.is_empty() {
        Ok(chosen)
    } else {
        Err(problems)
    }
}

/// Says that a pod has more containers than any that is meant.
pub(super) fn too_many(pod: &Value) -> Option<Problem> {
    let count = pod::containers(pod).count();
    (count > CONTAINERS_MAX).then_some(Problem::TooMany {
        what: "the pod",
        count,
        items: "containers",
        count_max: CONTAINERS_MAX,
        instead: "spread them over several pods",
    })
}

fn missing(pod: &Value, wishes: &Wishes) -> Problems {
    let names = || pod::containers(pod).map(|(_, container)| pod::name(container));
    let there: BTreeSet<&str> = names().collect();
    let told = shown_list(names());
    wishes
        .containers
        .iter()
        .flatten()
        .filter(|name| !there.contains(&name.as_str()))
        .map(|name| Problem::NoSuchContainer {
            name: shown(name),
            there: told.clone(),
        })
        .collect()
}

fn shown_list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.take(8).map(shown).collect();
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

/// The entries that are `barekey:NAME`, and those that only start so.
fn references(container: &Value) -> (BTreeMap<String, VariableName>, Problems) {
    let mut references = BTreeMap::new();
    let mut problems = Problems::default();
    for entry in pod::items(container, "env") {
        let Some(name) = pod::text(entry, "value").and_then(|it| it.strip_prefix(REFERENCE_PREFIX))
        else {
            continue;
        };
        match name.parse() {
            Ok(name) => {
                references.insert(pod::name(entry).to_owned(), name);
            }
            Err(_) => problems.push(Problem::BadReference {
                container: shown(pod::name(container)),
                entry: shown(pod::name(entry)),
            }),
        }
    }
    (references, problems)
}

/// What keeps a container from being wrapped.
fn obstacles(container: &Value) -> Problems {
    let name = || shown(pod::name(container));
    let mut problems = Problems::default();
    if pod::items(container, "command").is_empty() {
        problems.push(Problem::NoCommand { container: name() });
    }
    let taken = |path: &str| {
        path.strip_prefix(DIRECTORY)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    problems.extend(
        pod::items(container, "volumeMounts")
            .iter()
            .filter_map(|mount| pod::text(mount, "mountPath"))
            .filter(|path| taken(path))
            .map(|path| Problem::PathTaken {
                container: name(),
                path: shown(path),
            }),
    );
    problems
}

/// What a container may ask for.
pub(super) fn allowance(wishes: &Wishes, chosen: &Chosen, stage: &StageId) -> Allowance {
    Allowance {
        v: FORM_VERSION,
        stage: stage.clone(),
        variables: wishes.variables.clone(),
        rename: wishes.rename.clone(),
        references: chosen.references.values().cloned().collect(),
    }
}

/// Wraps one container: its command runs under the agent, which has what it needs in two entries and two mounts.
/// `written` is the container as it is, `left` what [`dollars::left_to_the_agent`] says of it.
///
/// Returns how many bytes were added.
///
/// # Errors
/// An entry that would be too long.
pub(super) fn wrap(
    container: &mut Map<String, Value>,
    written: &Value,
    left: &BTreeSet<&str>,
    allowance: &Allowance,
    settings: &InjectionSettings,
) -> Result<usize, Problems> {
    let agent = agent_settings(written, left, settings);
    hide_dollars(container, left);
    pod::list_mut(container, "command").splice(..0, WRAPPER.map(Value::from));

    let entries = [
        (ALLOWANCE_ENTRY, entry_text(allowance)),
        (SETTINGS_ENTRY, entry_text(&agent)),
    ];
    let bytes = entries.iter().map(|(_, text)| text.len()).sum();
    let problems: Problems = entries
        .iter()
        .filter(|(_, text)| text.len() > ENTRY_BYTES_MAX)
        .map(|(entry, text)| Problem::EntryTooLong {
            container: container
                .get("name")
                .and_then(Value::as_str)
                .map(shown)
                .unwrap_or_default(),
            entry,
            bytes: text.len(),
            bytes_max: ENTRY_BYTES_MAX,
        })
        .collect();
    if !problems.is_empty() {
        return Err(problems);
    }
    pod::list_mut(container, "env")
        .extend(entries.map(|(name, value)| json!({"name": name, "value": value})));
    pod::list_mut(container, "volumeMounts").extend([
        json!({"name": AGENT_VOLUME, "mountPath": AGENT_DIRECTORY, "readOnly": true}),
        json!({"name": TOKEN_VOLUME, "mountPath": TOKEN_DIRECTORY, "readOnly": true}),
    ]);
    Ok(bytes)
}

/// JSON for an entry, without any `$` that the kubelet would take for its own.
fn entry_text(form: &impl serde::Serialize) -> String {
    // Maps with text keys, numbers, texts and lists always have a JSON form.
    serde_json::to_string(form)
        .unwrap_or_default()
        .replace('$', "\\u0024")
}

fn agent_settings(
    container: &Value,
    left: &BTreeSet<&str>,
    settings: &InjectionSettings,
) -> AgentSettings {
    let prefixes: BTreeSet<&str> = pod::items(container, "envFrom")
        .iter()
        .map(|source| pod::text(source, "prefix").unwrap_or(""))
        .collect();
    AgentSettings {
        v: FORM_VERSION,
        server: settings.server.clone(),
        port: settings.port,
        addresses: settings.addresses.clone(),
        ca: settings.authority.certificate.clone(),
        token: TOKEN_FILE.to_owned(),
        wait_seconds: WAIT_SECONDS,
        own: pod::items(container, "env")
            .iter()
            .map(|entry| pod::name(entry).to_owned())
            .collect(),
        expand: left.iter().map(|name| (*name).to_owned()).collect(),
        prefixes: prefixes.into_iter().map(str::to_owned).collect(),
    }
}

/// Hides every `$` of the command and of the entries that are left to the agent.
fn hide_dollars(container: &mut Map<String, Value>, left: &BTreeSet<&str>) {
    let double = |value: &mut Value| {
        if let Value::String(text) = value {
            *text = dollars::double(text).into_owned();
        }
    };
    for field in ["command", "args"] {
        if let Some(Value::Array(texts)) = container.get_mut(field) {
            texts.iter_mut().for_each(double);
        }
    }
    if let Some(Value::Array(env)) = container.get_mut("env") {
        for entry in env {
            if left.contains(pod::name(entry))
                && let Some(value) = entry.get_mut("value")
            {
                double(value);
            }
        }
    }
}

/// A container to edit.
pub(super) fn at(pod: &mut Value, place: Place) -> Option<&mut Map<String, Value>> {
    pod.get_mut("spec")?
        .get_mut(place.list.field())?
        .get_mut(place.index)?
        .as_object_mut()
}

/// The app containers.
pub(super) fn app_containers(pod: &Value) -> &[Value] {
    pod::items(pod::spec(pod), List::App.field())
}
