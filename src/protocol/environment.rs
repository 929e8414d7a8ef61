//! `/v1/env/*`: evaluate, evaluate-batch, pull, list, write.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A value on its way through a body: serialised as a string, wiped on drop, never printed.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Value(pub String);

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Value(..)")
    }
}

/// `POST /v1/env/evaluate`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EvaluateRequest {
    /// The organization; may be left out, and must be the credential's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// The project.
    pub project_slug: String,
    /// The stage.
    pub stage_slug: String,
    /// The variable.
    pub name: String,
    /// The type that the caller expects; another one is 400 `INVALID_REQUEST`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<crate::domain::variable::DeclaredType>))]
    pub declared_type: Option<String>,
    /// For two-armed variables; accepted and unused for `secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// For two-armed variables; accepted and unused for `secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// One variable, opened.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EvaluatedVariable {
    /// Its name.
    pub name: String,
    /// Its kind.
    #[cfg_attr(feature = "server", schema(value_type = crate::domain::variable::Kind))]
    pub kind: String,
    /// Its declared type.
    #[cfg_attr(feature = "server", schema(value_type = crate::domain::variable::DeclaredType))]
    pub declared_type: String,
    /// `private` or `public`.
    #[cfg_attr(feature = "server", schema(value_type = crate::domain::variable::Visibility))]
    pub visibility: String,
    /// The value, always as text.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub value: Value,
}

/// The answer of `POST /v1/env/evaluate`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EvaluateResponse {
    /// The variable.
    #[serde(flatten)]
    pub variable: EvaluatedVariable,
    /// The id of the request.
    pub request_id: String,
}

/// One entry of `POST /v1/env/evaluate-batch`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EvaluateBatchEntry {
    /// The variable.
    pub name: String,
    /// The type that the caller expects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<crate::domain::variable::DeclaredType>))]
    pub declared_type: Option<String>,
    /// For two-armed variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// For two-armed variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// `POST /v1/env/evaluate-batch`: `entries`, or the older form `names` with one `seed` and `key` for all. Exactly one of the two.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EvaluateBatchRequest {
    /// The organization; may be left out, and must be the credential's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// The project.
    pub project_slug: String,
    /// The stage.
    pub stage_slug: String,
    /// The variables, each once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<Vec<EvaluateBatchEntry>>,
    /// The variables by name alone, each once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub names: Option<Vec<String>>,
    /// For `names`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// For `names`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// The answer of `POST /v1/env/evaluate-batch`, in the order of the request.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct EvaluateBatchResponse {
    /// The variables.
    pub results: Vec<EvaluatedVariable>,
    /// The id of the request.
    pub request_id: String,
}

/// `POST /v1/env/pull`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PullRequest {
    /// The organization; may be left out, and must be the credential's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// The project.
    pub project_slug: String,
    /// The stage.
    pub stage_slug: String,
    /// For two-armed variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<String>,
    /// For two-armed variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// The answer of `POST /v1/env/pull`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PullResponse {
    /// Name → value, every variable of the stage.
    #[cfg_attr(feature = "server", schema(value_type = BTreeMap<String, String>))]
    pub variables: BTreeMap<String, Value>,
    /// The id of the request.
    pub request_id: String,
}

/// `POST /v1/env/list`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListRequest {
    /// The organization; may be left out, and must be the credential's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// The project.
    pub project_slug: String,
    /// The stage.
    pub stage_slug: String,
}

/// What is known of a variable apart from its value.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListedVariable {
    /// Its name.
    pub name: String,
    /// Its kind.
    #[cfg_attr(feature = "server", schema(value_type = crate::domain::variable::Kind))]
    pub kind: String,
    /// Its declared type.
    #[cfg_attr(feature = "server", schema(value_type = crate::domain::variable::DeclaredType))]
    pub declared_type: String,
    /// `private` or `public`.
    #[cfg_attr(feature = "server", schema(value_type = crate::domain::variable::Visibility))]
    pub visibility: String,
    /// The newest version.
    pub version: i64,
    /// When it was first written, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// When the newest version was written, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// The answer of `POST /v1/env/list`, sorted by name.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ListResponse {
    /// The variables.
    pub variables: Vec<ListedVariable>,
    /// The id of the request.
    pub request_id: String,
}

/// One value to write.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct WriteEntry {
    /// The variable.
    pub name: String,
    /// `secret`; the other kinds are not in this version.
    #[cfg_attr(feature = "server", schema(value_type = crate::domain::variable::Kind))]
    pub kind: String,
    /// The value, at most 64 KiB of UTF-8 without NUL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = String, required))]
    pub value: Option<Value>,
    /// `string`, `boolean`, `int64`, `float`, `date` or `json`; absent: as it is, or `string` for a new variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<crate::domain::variable::DeclaredType>))]
    pub declared_type: Option<String>,
    /// `private` or `public`; absent: as it is, or `private` for a new variable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "server", schema(value_type = Option<crate::domain::variable::Visibility>))]
    pub visibility: Option<String>,
}

/// `POST /v1/env/write`: one atomic change of a stage.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct WriteRequest {
    /// The organization; may be left out, and must be the credential's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// The project.
    pub project_slug: String,
    /// The stage.
    pub stage_slug: String,
    /// `upsert` or `create_only`.
    pub mode: String,
    /// What to write. A name may appear once across `entries` and `deletes`.
    #[serde(default)]
    pub entries: Vec<WriteEntry>,
    /// What to delete; a missing name is nothing.
    #[serde(default)]
    pub deletes: Vec<String>,
}

/// The answer of `POST /v1/env/write`, each list sorted.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct WriteResponse {
    /// New names.
    pub created: Vec<String>,
    /// Names with a new version.
    pub updated: Vec<String>,
    /// Names that are gone.
    pub deleted: Vec<String>,
    /// The id of the request.
    pub request_id: String,
}
