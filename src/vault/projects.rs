//! Projects and stages: listed and made over the API.

mod creation;
mod slugs;

use std::collections::HashMap;
use std::sync::Arc;

use super::environments::{facts_of, is_sealed};
use super::reads::{ConfirmError, chain_of};
use super::{Core, Unavailable, Vault};
use crate::domain::access::{Caller, Refusal, Scope, TokenCaller, may_list_variables, may_manage};
use crate::domain::audit::Origin;
use crate::domain::names::{
    DisplayName, OrganizationId, OrganizationSlug, ProjectId, ProjectSlug, StageId, StageSlug,
};
use crate::storage;
use crate::storage::projects::{ProjectRow, StageRow};
use creation::refused_creation;
use creation::{CreateProject, CreateStage};
pub(crate) use creation::{
    NewProject, make_project, make_stage, new_stage, owner_text, stage_text,
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

/// The token behind a caller, if it may ask for something of the named organization.
pub(crate) fn organization_of<'a>(
    caller: &'a Caller,
    organization: Option<&OrganizationSlug>,
) -> Result<&'a TokenCaller, Refusal> {
    let token = match caller {
        Caller::Token(token) => token,
        Caller::Pod(_) => return Err(Refusal::PodElsewhere),
    };
    if organization.is_some_and(|named| *named != token.organization_slug) {
        return Err(Refusal::OtherOrganization);
    }
    Ok(token)
}

impl Vault {
    /// The organization's projects that the caller's scope covers, newest first.
    ///
    /// # Errors
    /// [`ListError`]. Refusals are audited.
    pub async fn list_projects(
        &self,
        caller: &Caller,
        origin: &Origin,
        organization: Option<&OrganizationSlug>,
    ) -> Result<Vec<Project>, ListError> {
        let listed = self.list_projects_once(caller, organization).await;
        if let Err(ListError::Refused(refusal)) = &listed {
            self.record_refused_listing(caller, origin, (None, None), refusal)
                .await?;
        }
        listed
    }

    async fn list_projects_once(
        &self,
        caller: &Caller,
        organization: Option<&OrganizationSlug>,
    ) -> Result<Vec<Project>, ListError> {
        let token = organization_of(caller, organization)?;
        sees_structure(token)?;
        self.confirm_token(token).await?;
        let mut db = self.reader().await?;
        let rows = storage::projects::projects(&mut db, &token.organization)
            .await
            .map_err(Unavailable::from)?;
        let stages = storage::projects::stages_of_organization(&mut db, &token.organization)
            .await
            .map_err(Unavailable::from)?;
        let mut counts: HashMap<ProjectId, i64> = HashMap::new();
        for stage in stages.whole_or_told("stage") {
            *counts.entry(stage.project.clone()).or_default() +=
                counted(self.core(), caller, &stage);
        }
        Ok(rows
            .whole_or_told("project")
            .into_iter()
            .filter(|row| match &token.scope {
                Scope::Organization => true,
                Scope::Project(only) | Scope::Stage(only, _) => *only == row.id,
            })
            .map(|row| Project {
                variables: counts.get(&row.id).copied().unwrap_or(0),
                ..project_of(row, &token.organization_slug)
            })
            .collect())
    }

    /// Makes a project with its three stages and its first data key. Without a slug, one is made of the name: its letters
    /// and digits in lower case, and a random number behind them.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is made then. Refusals are audited.
    pub async fn create_project(
        &self,
        caller: &Caller,
        origin: &Origin,
        organization: Option<&OrganizationSlug>,
        name: &DisplayName,
        slug: Option<&ProjectSlug>,
    ) -> Result<Project, CreateError> {
        let target = (slug.map(ProjectSlug::as_str), None);
        let token = match organization_of(caller, organization)
            .and_then(|token| may_manage(caller, &token.organization, None).map(|_| token))
        {
            Ok(token) => token,
            Err(refusal) => {
                return Err(self
                    .refuse_creation(caller, origin, target, refusal)
                    .await?);
            }
        };
        let change = CreateProject {
            core: Arc::clone(&self.0.core),
            token: token.clone(),
            actor: caller.actor(),
            origin: origin.clone(),
            name: name.clone(),
            slug: slug.cloned(),
        };
        self.0.queue.change(change).await?
    }

    /// The project's stages, oldest first.
    ///
    /// # Errors
    /// [`ListError`]. Refusals are audited.
    pub async fn list_stages(
        &self,
        caller: &Caller,
        origin: &Origin,
        organization: Option<&OrganizationSlug>,
        project: &ProjectSlug,
    ) -> Result<Vec<Stage>, ListError> {
        let listed = self.list_stages_once(caller, organization, project).await;
        if let Err(ListError::Refused(refusal)) = &listed {
            self.record_refused_listing(caller, origin, (Some(project), None), refusal)
                .await?;
        }
        listed
    }

    async fn list_stages_once(
        &self,
        caller: &Caller,
        organization: Option<&OrganizationSlug>,
        project: &ProjectSlug,
    ) -> Result<Vec<Stage>, ListError> {
        let token = organization_of(caller, organization)?;
        sees_structure(token)?;
        self.confirm_token(token).await?;
        let mut db = self.reader().await?;
        let found = storage::projects::project_by_slug(&mut db, &token.organization, project)
            .await
            .map_err(Unavailable::from)?;
        let found = match (&token.scope, found) {
            (Scope::Organization, None) => return Err(ListError::NoProject(project.clone())),
            (Scope::Organization, Some(found)) => found,
            (Scope::Project(only) | Scope::Stage(only, _), Some(found)) if *only == found.id => {
                found
            }
            // There or not: the same.
            (Scope::Project(_) | Scope::Stage(..), _) => return Err(Refusal::OutOfScope.into()),
        };
        let rows = storage::projects::stages(&mut db, &found.id)
            .await
            .map_err(Unavailable::from)?;
        Ok(rows
            .whole_or_told("stage")
            .into_iter()
            .filter(|row| token.scope.covers_stage(&row.project, &row.id))
            .map(|row| Stage {
                variables: counted(self.core(), caller, &row),
                ..stage_of(row)
            })
            .collect())
    }

    /// Makes a stage. Without a slug, one is made of the name.
    ///
    /// # Errors
    /// [`CreateError`]; nothing is made then. Refusals are audited.
    pub async fn create_stage(
        &self,
        caller: &Caller,
        origin: &Origin,
        organization: Option<&OrganizationSlug>,
        project: &ProjectSlug,
        name: &DisplayName,
        slug: Option<&StageSlug>,
    ) -> Result<Stage, CreateError> {
        let target = (Some(project.as_str()), slug.map(StageSlug::as_str));
        let token = match organization_of(caller, organization) {
            Ok(token) => token,
            Err(refusal) => {
                return Err(self
                    .refuse_creation(caller, origin, target, refusal)
                    .await?);
            }
        };
        let change = CreateStage {
            core: Arc::clone(&self.0.core),
            caller: caller.clone(),
            token: token.clone(),
            origin: origin.clone(),
            project: project.clone(),
            name: name.clone(),
            slug: slug.cloned(),
        };
        self.0.queue.change(change).await?
    }

    async fn refuse_creation(
        &self,
        caller: &Caller,
        origin: &Origin,
        (project, stage): (Option<&str>, Option<&str>),
        refusal: Refusal,
    ) -> Result<CreateError, Unavailable> {
        let event = refused_creation(caller.actor(), origin, (project, stage), &refusal);
        self.record_event(chain_of(caller), event).await?;
        Ok(CreateError::Refused(refusal))
    }
}

/// What a token of a role that sees nothing is refused with, there or not.
fn sees_structure(token: &TokenCaller) -> Result<(), Refusal> {
    if token.role.sees_structure() {
        return Ok(());
    }
    Err(Refusal::RoleTooSmall {
        role: token.role,
        act: "list projects and stages",
        needs: "owner, admin, developer, operator and viewer",
    })
}

/// How many variables of a stage the caller is told of: none where it may not list them.
fn counted(core: &Core, caller: &Caller, stage: &StageRow) -> i64 {
    match may_list_variables(caller, &facts_of(stage)) {
        Ok(_) if is_sealed(core, stage) => stage.variables,
        Ok(_) | Err(_) => 0,
    }
}

fn project_of(row: ProjectRow, organization_slug: &OrganizationSlug) -> Project {
    Project {
        id: row.id,
        organization: row.organization,
        organization_slug: organization_slug.clone(),
        slug: row.slug,
        name: row.name,
        created_at_ms: row.created_at,
        updated_at_ms: row.updated_at,
        variables: row.variables,
    }
}

fn stage_of(row: StageRow) -> Stage {
    Stage {
        id: row.id,
        project: row.project,
        organization: row.organization,
        slug: row.slug,
        name: row.name,
        is_default: row.is_default,
        protected: row.protected,
        variables: row.variables,
        created_at_ms: row.created_at,
        updated_at_ms: row.updated_at,
    }
}

impl From<ConfirmError> for ListError {
    fn from(error: ConfirmError) -> Self {
        match error {
            ConfirmError::Refused(refusal) => Self::Refused(refusal),
            ConfirmError::Unavailable(error) => Self::Unavailable(error),
        }
    }
}
