//! Projects and stages over HTTP.
use super::{Unavailable, Vault};
use crate::domain::access::{Caller, Refusal};
use crate::domain::audit::Origin;
use crate::domain::names::{
    DisplayName, OrganizationId, OrganizationSlug, ProjectId, ProjectSlug, StageId, StageSlug,
};

/// A project.
#[derive(Debug, Clone)]
pub struct Project {
    /// Its id.
    pub id: ProjectId,
    /// Its organization.
    pub organization: OrganizationId,
    /// That organization's slug.
    pub organization_slug: OrganizationSlug,
    /// Its slug.
    pub slug: ProjectSlug,
    /// What people call it.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// When it was last changed, in milliseconds since 1970.
    pub updated_at_ms: i64,
    /// How many variables its stages hold.
    pub variables: i64,
}

/// A stage.
#[derive(Debug, Clone)]
pub struct Stage {
    /// Its id.
    pub id: StageId,
    /// Its project.
    pub project: ProjectId,
    /// Its organization.
    pub organization: OrganizationId,
    /// Its slug.
    pub slug: StageSlug,
    /// What people call it.
    pub name: String,
    /// Whether it was made with the project.
    pub is_default: bool,
    /// Whether it is protected.
    pub protected: bool,
    /// How many variables it holds.
    pub variables: i64,
    /// When it was made, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// When it was last changed, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// Why projects or stages could not be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Not for this caller.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No such project.
    #[error("there is no project {0}")]
    NoProject(ProjectSlug),
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why a project or stage was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Not for this caller.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No such project.
    #[error("there is no project {0}")]
    NoProject(ProjectSlug),
    /// The slug is taken.
    #[error("the slug {0} is taken; choose another")]
    SlugTaken(String),
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Vault {
    /// The organization's projects that the caller's scope covers, newest first.
    pub async fn list_projects(
        &self,
        _caller: &Caller,
        _organization: Option<&OrganizationSlug>,
    ) -> Result<Vec<Project>, ListError> {
        todo!()
    }
    /// Makes a project with its three stages and its first data key. Without a slug, one is made of the name (`seed-systems.md` 1.1).
    pub async fn create_project(
        &self,
        _caller: &Caller,
        _origin: &Origin,
        _organization: Option<&OrganizationSlug>,
        _name: &DisplayName,
        _slug: Option<&ProjectSlug>,
    ) -> Result<Project, CreateError> {
        todo!()
    }
    /// The project's stages, oldest first.
    pub async fn list_stages(
        &self,
        _caller: &Caller,
        _organization: Option<&OrganizationSlug>,
        _project: &ProjectSlug,
    ) -> Result<Vec<Stage>, ListError> {
        todo!()
    }
    /// Makes a stage. Without a slug, one is made of the name.
    pub async fn create_stage(
        &self,
        _caller: &Caller,
        _origin: &Origin,
        _organization: Option<&OrganizationSlug>,
        _project: &ProjectSlug,
        _name: &DisplayName,
        _slug: Option<&StageSlug>,
    ) -> Result<Stage, CreateError> {
        todo!()
    }
}
