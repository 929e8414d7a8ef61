//! `/v1/cli/projects/*` and `/v1/cli/stages/*`.

use serde::{Deserialize, Serialize};

/// `POST /v1/cli/projects/list`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ProjectListRequest {
    /// The organization; may be left out, and must be the credential's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
}

/// A project.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ProjectBody {
    /// Its id.
    pub id: String,
    /// Its organization's id.
    pub org_id: String,
    /// Its organization's slug.
    pub org_slug: String,
    /// What people call it.
    pub name: String,
    /// Its slug.
    pub slug: String,
    /// How many variables its stages hold, of those whose variables the caller may list.
    pub secret_count: i64,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// When it was last changed, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// The answer of `POST /v1/cli/projects/list`, newest first.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ProjectListResponse {
    /// The projects.
    pub projects: Vec<ProjectBody>,
    /// The id of the request.
    pub request_id: String,
}

/// `POST /v1/cli/projects/create`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ProjectCreateRequest {
    /// The organization; may be left out, and must be the credential's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// What people will call it: 1 to 120 characters.
    pub name: String,
    /// The slug; absent: made of the name with a random number behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
}

/// The answer of `POST /v1/cli/projects/create`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ProjectCreateResponse {
    /// The project.
    pub project: ProjectBody,
    /// The id of the request.
    pub request_id: String,
}

/// `POST /v1/cli/stages/list`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StageListRequest {
    /// The organization; may be left out, and must be the credential's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// The project.
    pub project_slug: String,
}

/// A stage.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StageBody {
    /// Its id.
    pub id: String,
    /// Its project's id.
    pub project_id: String,
    /// Its organization's id.
    pub org_id: String,
    /// Its slug.
    pub slug: String,
    /// What people call it.
    pub name: String,
    /// Whether it was made with the project.
    pub is_default: bool,
    /// Whether it is protected.
    pub protected: bool,
    /// How many variables it holds; 0 when the caller may not list them.
    pub variable_count: i64,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// When it was last changed, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// The answer of `POST /v1/cli/stages/list`, oldest first.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StageListResponse {
    /// The stages.
    pub stages: Vec<StageBody>,
    /// The id of the request.
    pub request_id: String,
}

/// `POST /v1/cli/stages/create`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StageCreateRequest {
    /// The organization; may be left out, and must be the credential's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub org_slug: Option<String>,
    /// The project.
    pub project_slug: String,
    /// What people will call it: 1 to 64 characters.
    pub name: String,
    /// The slug; absent: made of the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
}

/// The answer of `POST /v1/cli/stages/create`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct StageCreateResponse {
    /// The stage.
    pub stage: StageBody,
    /// The id of the request.
    pub request_id: String,
}
