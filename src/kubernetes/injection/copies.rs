//! Copies of injected pods (`kubectl get -o yaml`, `kubectl debug --copy-to`), brought back to what was written.
//!
//! Nothing of a copy is believed: every part of ours is taken out and the pod is injected anew, so a part that somebody
//! altered gains nothing. What was written by hand in a pod that is no copy is refused by name, and so is what does not fit.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::domain::reference::{
    ALLOWANCE_ENTRY, AgentSettings, Allowance, SETTINGS_ENTRY, is_reserved_entry,
};

use super::annotations::{INJECTED, MARKS};
use super::dollars;
use super::pod::{self, List, Place};
use super::refusal::{Problem, Problems, shown};
use super::{
    AGENT_PROGRAM, AGENT_VOLUME, DIRECTORY, INIT_CONTAINER, INSTALL, TOKEN_VOLUME, WRAPPER,
};

/// How many parts of ours one message names.
const PARTS_SHOWN_MAX: usize = 16;

/// Whether anything in the pod is a part that only the webhook writes.
pub(super) fn has_parts(pod: &Value) -> bool {
    pod::annotations(pod).any(|(key, _)| MARKS.contains(&key))
        || pod::containers(pod).any(|(place, container)| {
            is_init_step(place, container)
                || is_wrapped(container)
                || entries(container).next().is_some()
                || pod::items(container, "volumeMounts").iter().any(is_mount)
        })
}

/// The pod as it was written, without any part of ours.
///
/// # Errors
/// Each entry that was written by hand, or what does not fit together.
pub(super) fn restore(pod: &Value) -> Result<Value, Problems> {
    let problems = problems(pod);
    if !problems.is_empty() {
        return Err(problems);
    }
    let mut restored = pod.clone();
    if let Some(Value::Object(metadata)) = restored.get_mut("metadata") {
        remove_keys(metadata, "labels", &[INJECTED]);
        remove_keys(metadata, "annotations", &MARKS);
    }
    if let Some(Value::Object(spec)) = restored.get_mut("spec") {
        pod::remove_items(spec, "volumes", is_volume);
        pod::remove_items(spec, List::Init.field(), |container| {
            is_init_step(INIT_PLACE, container)
        });
        for list in [List::Init, List::App] {
            if let Some(Value::Array(containers)) = spec.get_mut(list.field()) {
                for container in containers.iter_mut().filter_map(Value::as_object_mut) {
                    restore_container(container);
                }
            }
        }
    }
    Ok(restored)
}

/// What a pod without `barekey.dev/stage` is told about the parts of ours that it has.
pub(super) fn refuse_without_stage(pod: &Value) -> Problems {
    let by_hand = problems(pod);
    if by_hand.is_empty() {
        Problems::from(Problem::CopyWithoutStage { parts: parts(pod) })
    } else {
        by_hand
    }
}

/// Any place in the list of init containers: what [`is_init_step`] looks at is the list alone.
const INIT_PLACE: Place = Place {
    list: List::Init,
    index: 0,
};

fn problems(pod: &Value) -> Problems {
    let volumes = pod::items(pod::spec(pod), "volumes");
    let is_copy = [AGENT_VOLUME, TOKEN_VOLUME].into_iter().all(|name| {
        volumes
            .iter()
            .any(|volume| pod::name(volume) == name && is_volume(volume))
    });
    let mut problems = Problems::default();
    let mut told: Option<String> = None;
    for (_, container) in pod::containers(pod) {
        let name = shown(pod::name(container));
        if !is_copy {
            problems.extend(entries(container).map(|entry| Problem::ReservedEntry {
                container: name.clone(),
                entry: shown(entry),
            }));
        }
        let broken = if entries(container).next().is_none() {
            is_wrapped(container).then_some("starts the agent without its entries")
        } else if is_copy {
            misfit(container)
        } else {
            None
        };
        if let Some(what) = broken {
            problems.push(Problem::BrokenCopy {
                what: format!("container {name} {what}"),
                parts: told.get_or_insert_with(|| parts(pod)).clone(),
            });
        }
    }
    problems
}

/// What does not fit in a container that has entries of ours.
fn misfit(container: &Value) -> Option<&'static str> {
    let mut names: Vec<&str> = entries(container).collect();
    names.sort_unstable();
    let mounts = pod::items(container, "volumeMounts");
    let mounted = |volume: &str| {
        mounts
            .iter()
            .any(|mount| is_mount(mount) && pod::name(mount) == volume)
    };
    if names != [SETTINGS_ENTRY, ALLOWANCE_ENTRY] {
        Some("does not have exactly the two entries of the agent")
    } else if entry(container, ALLOWANCE_ENTRY).is_none_or(|text| Allowance::parse(text).is_err()) {
        Some("has a BAREKEY_ALLOWANCE that the webhook did not write")
    } else if settings(container).is_none() {
        Some("has a BAREKEY_AGENT_SETTINGS that the webhook did not write")
    } else if !mounted(AGENT_VOLUME) || !mounted(TOKEN_VOLUME) {
        Some("lacks a mount of the agent")
    } else {
        None
    }
}

/// The names of a container's entries that only the webhook writes.
fn entries(container: &Value) -> impl Iterator<Item = &str> {
    pod::items(container, "env")
        .iter()
        .map(pod::name)
        .filter(|name| is_reserved_entry(name))
}

fn entry<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    pod::items(container, "env")
        .iter()
        .find(|entry| pod::name(entry) == name)
        .and_then(|entry| pod::text(entry, "value"))
}

fn settings(container: &Value) -> Option<AgentSettings> {
    AgentSettings::parse(entry(container, SETTINGS_ENTRY)?).ok()
}

/// Whether a volume has the name and the form of one of ours.
pub(super) fn is_volume(volume: &Value) -> bool {
    let source = |pointer: &str| volume.pointer(pointer);
    match pod::name(volume) {
        AGENT_VOLUME => {
            source("/image").is_some()
                || source("/emptyDir/medium").and_then(Value::as_str) == Some("Memory")
        }
        TOKEN_VOLUME => source("/projected/sources/0/serviceAccountToken/audience").is_some(),
        _ => false,
    }
}

fn is_mount(mount: &Value) -> bool {
    [AGENT_VOLUME, TOKEN_VOLUME].contains(&pod::name(mount))
        && pod::text(mount, "mountPath").is_some_and(|path| path.starts_with(DIRECTORY))
}

fn is_init_step(place: Place, container: &Value) -> bool {
    place.list == List::Init
        && pod::name(container) == INIT_CONTAINER
        && pod::texts(container, "command").eq(INSTALL)
}

fn is_wrapped(container: &Value) -> bool {
    pod::texts(container, "command").next() == Some(AGENT_PROGRAM)
}

fn parts(pod: &Value) -> String {
    let mut parts = BTreeSet::new();
    for (place, container) in pod::containers(pod) {
        let name = shown(pod::name(container));
        if is_init_step(place, container) {
            parts.insert(format!("the init container {INIT_CONTAINER}"));
            continue;
        }
        for entry in entries(container) {
            parts.insert(format!("the entry {} of container {name}", shown(entry)));
        }
        if pod::items(container, "volumeMounts").iter().any(is_mount) {
            parts.insert(format!("the mounts under {DIRECTORY} of container {name}"));
        }
        if is_wrapped(container) {
            parts.insert(format!(
                "{} at the start of the command of container {name}",
                WRAPPER.join(" ")
            ));
        }
    }
    for volume in pod::items(pod::spec(pod), "volumes") {
        if is_volume(volume) {
            parts.insert(format!("the volume {}", pod::name(volume)));
        }
    }
    for (key, _) in pod::annotations(pod).filter(|(key, _)| MARKS.contains(key)) {
        parts.insert(format!("the annotation {key}"));
    }
    let more = parts.len().saturating_sub(PARTS_SHOWN_MAX);
    let mut told: Vec<String> = parts.into_iter().take(PARTS_SHOWN_MAX).collect();
    if more > 0 {
        told.push(format!("and {more} more"));
    }
    told.join(", ")
}

fn remove_keys(object: &mut Map<String, Value>, field: &str, keys: &[&str]) {
    if let Some(Value::Object(map)) = object.get_mut(field) {
        map.retain(|key, _| !keys.contains(&key.as_str()));
        if map.is_empty() {
            object.remove(field);
        }
    }
}

fn restore_container(container: &mut Map<String, Value>) {
    let expanded = settings(&Value::Object(container.clone())).map(|settings| settings.expand);
    pod::remove_items(container, "volumeMounts", is_mount);
    pod::remove_items(container, "env", |entry| {
        is_reserved_entry(pod::name(entry))
    });
    let Some(expanded) = expanded else {
        return;
    };
    if let Some(Value::Array(env)) = container.get_mut("env") {
        for entry in env {
            if expanded.contains(pod::name(entry))
                && let Some(value) = entry.get_mut("value")
            {
                halve(value);
            }
        }
    }
    let Some(Value::Array(command)) = container.get_mut("command") else {
        return;
    };
    // A debugging copy may have a command of its own, which nobody doubled.
    if command
        .iter()
        .filter_map(Value::as_str)
        .take(WRAPPER.len())
        .eq(WRAPPER)
    {
        command.drain(..WRAPPER.len());
        command.iter_mut().for_each(halve);
        if let Some(Value::Array(arguments)) = container.get_mut("args") {
            arguments.iter_mut().for_each(halve);
        }
    }
}

fn halve(value: &mut Value) {
    if let Value::String(text) = value {
        *text = dollars::halve(text).into_owned();
    }
}
