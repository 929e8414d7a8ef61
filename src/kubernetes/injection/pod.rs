//! A pod as JSON: the parts that injection looks at and edits.
//!
//! Nothing here knows the whole form of a pod, so fields that are newer than this program pass through untouched. What is
//! absent, `null`, or of another type than it should be reads as empty; the API server has checked the form before.

use std::fmt;

use serde_json::{Map, Value};

/// The lists of containers that are injected into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum List {
    /// `spec.initContainers`, native sidecars among them.
    Init,
    /// `spec.containers`.
    App,
}

impl List {
    /// The field's name.
    pub(super) fn field(self) -> &'static str {
        match self {
            Self::Init => "initContainers",
            Self::App => "containers",
        }
    }
}

/// The longest name that a pod has, in characters.
const NAME_CHARACTERS_MAX: usize = 253;

/// Which container of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The list that it is in.
    pub(super) list: List,
    /// Its place in that list.
    pub(super) index: usize,
}

/// A pod as people know it: `NAMESPACE/NAME`, or `NAMESPACE/PREFIX*` while the API server has not named it yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodName(String);

impl PodName {
    /// Reads the name from a pod of `namespace`.
    pub(super) fn of(pod: &Value, namespace: &str) -> Self {
        let metadata = pod.get("metadata").unwrap_or(&Value::Null);
        let cut = |name: &str| name.chars().take(NAME_CHARACTERS_MAX).collect::<String>();
        let name = match (text(metadata, "name"), text(metadata, "generateName")) {
            (Some(name), _) if !name.is_empty() => cut(name),
            (_, Some(prefix)) => format!("{}*", cut(prefix)),
            _ => "*".to_owned(),
        };
        Self(format!("{namespace}/{name}"))
    }
}

impl fmt::Display for PodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text field.
pub(super) fn text<'a>(object: &'a Value, field: &str) -> Option<&'a str> {
    object.get(field).and_then(Value::as_str)
}

/// The items of a list field.
pub(super) fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object
        .get(field)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The items of a list field that are texts.
pub(super) fn texts<'a>(object: &'a Value, field: &str) -> impl Iterator<Item = &'a str> {
    items(object, field).iter().filter_map(Value::as_str)
}

/// The pod's `spec`.
pub(super) fn spec(pod: &Value) -> &Value {
    pod.get("spec").unwrap_or(&Value::Null)
}

/// The annotations, as key and value.
pub(super) fn annotations(pod: &Value) -> impl Iterator<Item = (&str, &str)> {
    pod.pointer("/metadata/annotations")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
}

/// One annotation.
pub(super) fn annotation<'a>(pod: &'a Value, key: &str) -> Option<&'a str> {
    annotations(pod)
        .find(|(other, _)| *other == key)
        .map(|(_, value)| value)
}

/// Every init container and app container, in the order in which they start.
pub(super) fn containers(pod: &Value) -> impl Iterator<Item = (Place, &Value)> {
    [List::Init, List::App].into_iter().flat_map(move |list| {
        items(spec(pod), list.field())
            .iter()
            .enumerate()
            .map(move |(index, container)| (Place { list, index }, container))
    })
}

/// The name of a container; the API server lets none without a name in.
pub(super) fn name(container: &Value) -> &str {
    text(container, "name").unwrap_or("")
}

/// An object field to edit; made when it is absent.
pub(super) fn object_mut<'a>(
    object: &'a mut Map<String, Value>,
    field: &str,
) -> &'a mut Map<String, Value> {
    let value = object.entry(field).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("it was just made an object"),
    }
}

/// A list field to edit; made when it is absent.
pub(super) fn list_mut<'a>(object: &'a mut Map<String, Value>, field: &str) -> &'a mut Vec<Value> {
    let value = object.entry(field).or_insert(Value::Null);
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    match value {
        Value::Array(list) => list,
        _ => unreachable!("it was just made a list"),
    }
}

/// Takes the items that `ours` picks out of a list field, and the field itself when nothing stays in it.
pub(super) fn remove_items(
    object: &mut Map<String, Value>,
    field: &str,
    ours: impl Fn(&Value) -> bool,
) {
    let Some(Value::Array(list)) = object.get_mut(field) else {
        return;
    };
    list.retain(|item| !ours(item));
    if list.is_empty() {
        object.remove(field);
    }
}
