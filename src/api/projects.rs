//! `/v1/cli/projects/*` and `/v1/cli/stages/*`.

use axum::Json;
use axum::extract::State;

use super::Api;
use super::callers::{Ask, Call};
use super::environment::organization;
use super::error::{ApiError, Code};
use crate::domain::names::{DisplayName, NameError, OrganizationSlug, ProjectSlug, StageSlug};
use crate::protocol::management::{
    ProjectBody, ProjectCreateRequest, ProjectCreateResponse, ProjectListRequest,
    ProjectListResponse, StageBody, StageCreateRequest, StageCreateResponse, StageListRequest,
    StageListResponse,
};
use crate::vault::projects::{Project, Stage};

fn project_body(project: Project) -> ProjectBody {
    ProjectBody {
        id: project.id.into(),
        org_id: project.organization.into(),
        org_slug: project.organization_slug.into(),
        name: project.name,
        slug: project.slug.into(),
        secret_count: project.variables,
        created_at_ms: project.created_at_ms,
        updated_at_ms: project.updated_at_ms,
    }
}

fn stage_body(stage: Stage) -> StageBody {
    StageBody {
        id: stage.id.into(),
        project_id: stage.project.into(),
        org_id: stage.organization.into(),
        slug: stage.slug.into(),
        name: stage.name,
        is_default: stage.is_default,
        protected: stage.protected,
        variable_count: stage.variables,
        created_at_ms: stage.created_at_ms,
        updated_at_ms: stage.updated_at_ms,
    }
}

pub(crate) struct ListProjects {
    organization: Option<OrganizationSlug>,
}

impl Ask for ListProjects {
    type Body = ProjectListRequest;

    fn shape(body: ProjectListRequest) -> Result<Self, ApiError> {
        Ok(Self {
            organization: organization(body.org_slug.as_deref())?,
        })
    }
}

/// The organization's projects that the credential's scope covers.
#[utoipa::path(
    post, path = "/v1/cli/projects/list", tag = "projects",
    request_body = ProjectListRequest,
    responses((status = 200, description = "The projects, newest first", body = ProjectListResponse))
)]
pub(crate) async fn list(
    State(api): State<Api>,
    call: Call<ListProjects>,
) -> Result<Json<ProjectListResponse>, ApiError> {
    let projects = api
        .vault()
        .list_projects(&call.caller, &call.origin, call.ask.organization.as_ref())
        .await?;
    Ok(Json(ProjectListResponse {
        projects: projects.into_iter().map(project_body).collect(),
        request_id: call.origin.request_id,
    }))
}

pub(crate) struct CreateProject {
    organization: Option<OrganizationSlug>,
    name: DisplayName,
    slug: Option<ProjectSlug>,
}

impl Ask for CreateProject {
    type Body = ProjectCreateRequest;

    fn shape(body: ProjectCreateRequest) -> Result<Self, ApiError> {
        let failed = |error: NameError| ApiError::new(Code::ProjectCreateFailed, error.to_string());
        Ok(Self {
            organization: organization(body.org_slug.as_deref())?,
            name: DisplayName::parse_project(&body.name).map_err(failed)?,
            slug: body
                .slug
                .map(|slug| slug.trim().parse())
                .transpose()
                .map_err(failed)?,
        })
    }
}

/// Makes a project with the stages development, staging and production.
#[utoipa::path(
    post, path = "/v1/cli/projects/create", tag = "projects",
    request_body = ProjectCreateRequest,
    responses((status = 200, description = "The project", body = ProjectCreateResponse))
)]
pub(crate) async fn create(
    State(api): State<Api>,
    call: Call<CreateProject>,
) -> Result<Json<ProjectCreateResponse>, ApiError> {
    let project = api
        .vault()
        .create_project(
            &call.caller,
            &call.origin,
            call.ask.organization.as_ref(),
            &call.ask.name,
            call.ask.slug.as_ref(),
        )
        .await
        .map_err(|error| ApiError::of_create(error, Code::ProjectCreateFailed))?;
    Ok(Json(ProjectCreateResponse {
        project: project_body(project),
        request_id: call.origin.request_id,
    }))
}

pub(crate) struct ListStages {
    organization: Option<OrganizationSlug>,
    project: ProjectSlug,
}

impl Ask for ListStages {
    type Body = StageListRequest;

    fn shape(body: StageListRequest) -> Result<Self, ApiError> {
        Ok(Self {
            organization: organization(body.org_slug.as_deref())?,
            project: body.project_slug.trim().parse()?,
        })
    }
}

/// A project's stages.
#[utoipa::path(
    post, path = "/v1/cli/stages/list", tag = "projects",
    request_body = StageListRequest,
    responses((status = 200, description = "The stages, oldest first", body = StageListResponse))
)]
pub(crate) async fn list_stages(
    State(api): State<Api>,
    call: Call<ListStages>,
) -> Result<Json<StageListResponse>, ApiError> {
    let stages = api
        .vault()
        .list_stages(
            &call.caller,
            &call.origin,
            call.ask.organization.as_ref(),
            &call.ask.project,
        )
        .await?;
    Ok(Json(StageListResponse {
        stages: stages.into_iter().map(stage_body).collect(),
        request_id: call.origin.request_id,
    }))
}

pub(crate) struct CreateStage {
    organization: Option<OrganizationSlug>,
    project: ProjectSlug,
    name: DisplayName,
    slug: Option<StageSlug>,
}

impl Ask for CreateStage {
    type Body = StageCreateRequest;

    fn shape(body: StageCreateRequest) -> Result<Self, ApiError> {
        let failed = |error: NameError| ApiError::new(Code::StageCreateFailed, error.to_string());
        Ok(Self {
            organization: organization(body.org_slug.as_deref())?,
            project: body.project_slug.trim().parse()?,
            name: DisplayName::parse_stage(&body.name).map_err(failed)?,
            slug: body
                .slug
                .map(|slug| slug.trim().parse())
                .transpose()
                .map_err(failed)?,
        })
    }
}

/// Makes a stage.
#[utoipa::path(
    post, path = "/v1/cli/stages/create", tag = "projects",
    request_body = StageCreateRequest,
    responses((status = 200, description = "The stage", body = StageCreateResponse))
)]
pub(crate) async fn create_stage(
    State(api): State<Api>,
    call: Call<CreateStage>,
) -> Result<Json<StageCreateResponse>, ApiError> {
    let stage = api
        .vault()
        .create_stage(
            &call.caller,
            &call.origin,
            call.ask.organization.as_ref(),
            &call.ask.project,
            &call.ask.name,
            call.ask.slug.as_ref(),
        )
        .await
        .map_err(|error| ApiError::of_create(error, Code::StageCreateFailed))?;
    Ok(Json(StageCreateResponse {
        stage: stage_body(stage),
        request_id: call.origin.request_id,
    }))
}
