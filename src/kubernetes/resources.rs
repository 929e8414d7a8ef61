//! The custom resources: what users write, and what they are told.
//!
//! The doc comments of fields become the descriptions that `kubectl explain` shows. Texts stay texts here, so that one
//! object that an older schema let in cannot stop the watch of all others; `plan` parses them.

#![allow(
    unreachable_pub,
    reason = "the derive of a schema makes copies of these types inside functions"
)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Rule;
use kube::{CustomResource, KubeSchema};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

/// Keeps a resource until what it declared is deleted in the vault.
pub const FINALIZER: &str = "barekey.dev/cleanup";
/// Confirms the deletion of variables; its value is the slug.
pub const CONFIRM_DELETE_ANNOTATION: &str = "barekey.dev/confirm-delete";
/// The most stages that a status names.
pub const STATUS_STAGES_MAX: usize = 100;
/// The most conditions that a status has: our three, and those of others.
const CONDITIONS_MAX: usize = 16;
/// The most names, of service accounts and of variables, that the `access` of one BarekeyStage has; told in texts below.
const ACCESS_NAMES_MAX: usize = 512;

/// What a slug looks like, as the API server checks it.
const SLUG_PATTERN: &str = "^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$";

/// A resource without a slug has its name for one.
fn slug_or_name() -> Rule {
    Rule::new(format!(
        "has(self.spec.slug) || self.metadata.name.matches('{SLUG_PATTERN}')"
    ))
    .message(
        "metadata.name is no slug (at most 48 lower-case letters, digits and '-'): set spec.slug",
    )
    .field_path(".spec.slug")
}

/// The names in `access`, counted: they bound how large a BarekeyStage is.
fn few_names() -> Rule {
    Rule::new(format!(
        "self.map(it, it.serviceAccounts.size() + (has(it.variables) ? it.variables.size() : 0)).sum() <= {ACCESS_NAMES_MAX}"
    ))
    .message(
        "access names more than 512 service accounts and variables in all: write PREFIX_* for many variables, or leave variables out for all of them",
    )
}

/// What can be read; `None` for the rest.
///
/// The API server takes times that are none, such as `2026-01-01T00:00:00+99:99`. Whoever may write a status could stop the
/// watch of all others with one of them.
fn read_if<T: DeserializeOwned>(value: serde_json::Value) -> Option<T> {
    serde_json::from_value(value).ok()
}

fn readable_conditions<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Condition>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(from)?;
    Ok(all.into_iter().filter_map(read_if).collect())
}

fn readable_time<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Time>, D::Error> {
    Option::<serde_json::Value>::deserialize(from).map(|time| time.and_then(read_if))
}

/// What happens to the vault's data when the resource is deleted.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum DeletionPolicy {
    /// The data stays in the vault. A new resource of the same slug in the same namespace finds it again.
    #[default]
    Retain,
    /// The data is deleted. What still holds variables waits for the annotation barekey.dev/confirm-delete.
    Delete,
}

/// A project in the vault: the stages development, staging and production, and one lineage of data keys.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "barekey.dev",
    version = "v1alpha1",
    kind = "BarekeyProject",
    plural = "barekeyprojects",
    singular = "barekeyproject",
    shortname = "bkp",
    category = "barekey",
    namespaced,
    status = "BarekeyProjectStatus",
    derive = "PartialEq",
    doc = "A project in the vault: it owns stages, and its values are sealed under keys of its own.",
    printcolumn(name = "Organization", type_ = "string", json_path = ".spec.organization"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Stages", type_ = "integer", json_path = ".status.stageCount"),
    printcolumn(
        name = "Key",
        type_ = "integer",
        json_path = ".status.keyVersion",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = slug_or_name()
)]
#[x_kube(
    validation = ("has(self.slug) == has(oldSelf.slug) && (!has(self.slug) || self.slug == oldSelf.slug)", "slug is immutable, and so is whether it is set: make another BarekeyProject")
)]
#[serde(rename_all = "camelCase")]
pub struct BarekeyProjectSpec {
    /// The slug of the organization that the project belongs to. Immutable. The chart's value `organizations` says which
    /// namespaces may name which organization; `barekey-operator admin bootstrap` makes one.
    #[schemars(
        length(max = 48),
        regex(pattern = SLUG_PATTERN)
    )]
    #[x_kube(validation = ("self == oldSelf", "organization is immutable: make another BarekeyProject"))]
    pub organization: String,
    /// The project's slug, as the API and the command line name it; unique in the organization. Immutable. Default: the
    /// resource's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 48),
        regex(pattern = SLUG_PATTERN)
    )]
    pub slug: Option<String>,
    /// What people call the project: 1 to 120 characters. Default: the slug. A change renames the project; what is sealed
    /// stays as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 120))]
    pub name: Option<String>,
    /// What happens to the project in the vault when this resource is deleted: `Retain` (default) leaves it, `Delete`
    /// deletes it with its stages, and waits for the annotation `barekey.dev/confirm-delete: <slug>` while variables are left.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// What the operator found and did for a BarekeyProject.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BarekeyProjectStatus {
    /// The project's id in the vault. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub id: Option<String>,
    /// The slugs of the project's stages in the vault, at most 100 of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = STATUS_STAGES_MAX), inner(length(max = 48)))]
    pub stages: Vec<String>,
    /// How many stages the project has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_count: Option<i64>,
    /// The version of the newest data key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_version: Option<i64>,
    /// When the newest data key was made.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "readable_time"
    )]
    pub key_created_at: Option<Time>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling and Stalled, each with a reason and with what to do.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "readable_conditions"
    )]
    #[schemars(length(max = CONDITIONS_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A stage of a project, and who may read it.
#[derive(CustomResource, KubeSchema, Debug, Clone, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "barekey.dev",
    version = "v1alpha1",
    kind = "BarekeyStage",
    plural = "barekeystages",
    singular = "barekeystage",
    shortname = "bks",
    category = "barekey",
    namespaced,
    status = "BarekeyStageStatus",
    derive = "PartialEq",
    doc = "A stage of a project, such as production: it holds variables, and says which service accounts may read them.",
    printcolumn(name = "Project", type_ = "string", json_path = ".spec.project"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Variables", type_ = "integer", json_path = ".status.variables"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".status.revision"),
    printcolumn(
        name = "Protected",
        type_ = "boolean",
        json_path = ".status.protected",
        priority = 1
    ),
    printcolumn(
        name = "Path",
        type_ = "string",
        json_path = ".status.path",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = slug_or_name()
)]
#[x_kube(
    validation = ("has(self.slug) == has(oldSelf.slug) && (!has(self.slug) || self.slug == oldSelf.slug)", "slug is immutable, and so is whether it is set: make another BarekeyStage")
)]
#[serde(rename_all = "camelCase")]
pub struct BarekeyStageSpec {
    /// The name of a BarekeyProject in the same namespace. Immutable.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = ("self == oldSelf", "project is immutable: make another BarekeyStage"))]
    pub project: String,
    /// The stage's slug, as the API and the command line name it; unique in the project. A stage that the project already
    /// has is taken over. Immutable. Default: the resource's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 48),
        regex(pattern = SLUG_PATTERN)
    )]
    pub slug: Option<String>,
    /// Whether only owners and admins write the stage, and viewers read nothing of it. Default: as the vault has it
    /// (production starts protected).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// Which service accounts may read the stage's variables. Default: none. A change holds from the next start of a
    /// container on. All of it names at most 512 service accounts and variables, which make at most 4096 pairs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = few_names())]
    pub access: Vec<StageAccess>,
    /// What happens to the stage in the vault when this resource is deleted: `Retain` (default) leaves it, `Delete` deletes
    /// it, and waits for the annotation `barekey.dev/confirm-delete: <slug>` while variables are left. Either way the
    /// resource's `access` ends.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// What service accounts of one namespace may read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageAccess {
    /// The namespace of the service accounts. Default: the namespace of this resource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 63),
        regex(pattern = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    )]
    pub namespace: Option<String>,
    /// Names of service accounts, exact, at least one.
    #[schemars(
        length(min = 1, max = 64),
        inner(
            length(max = 253),
            regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub service_accounts: Vec<String>,
    /// Names of variables, and `PREFIX_*` for every name that starts so. Default: every variable of the stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 128),
        inner(length(max = 161), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*\*?$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub variables: Option<Vec<String>>,
}

/// What the operator found and did for a BarekeyStage.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BarekeyStageStatus {
    /// The stage's id in the vault. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub id: Option<String>,
    /// Where the stage is in the vault: `organization/project/stage`, the slugs that the API and the command line take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 160))]
    pub path: Option<String>,
    /// Raised by each change of the stage's variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// How many variables the stage holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variables: Option<i64>,
    /// Whether the stage is protected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protected: Option<bool>,
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Reconciling and Stalled, each with a reason and with what to do.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "readable_conditions"
    )]
    #[schemars(length(max = CONDITIONS_MAX))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_time_that_is_none_counts_as_none_and_what_stands_beside_it_is_read() {
        let condition = |kind: &str, since: &str| json!({"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": since});
        // The API server takes it.
        let bad = "2026-01-01T00:00:00+99:99";
        let conditions = json!([
            condition("Ready", bad),
            condition("Stalled", "2026-01-01T00:00:00Z")
        ]);
        let stage: BarekeyStageStatus =
            serde_json::from_value(json!({"id": "stg_1", "conditions": conditions})).unwrap();
        assert_eq!(stage.conditions.len(), 1);
        assert_eq!(stage.conditions[0].type_, "Stalled");
        let project: BarekeyProjectStatus =
            serde_json::from_value(json!({"keyCreatedAt": bad, "conditions": conditions})).unwrap();
        assert_eq!(
            (project.key_created_at, project.conditions.len()),
            (None, 1)
        );
    }
}
