//! What resources declare: projects and stages owned by a namespace, and who may read them.
use super::{Unavailable, Vault};
use crate::domain::access::AccessGrant;
use crate::domain::names::{
    DisplayName, Namespace, ObjectName, OrganizationSlug, ProjectId, ProjectSlug, StageId,
    StageSlug,
};

/// What a BarekeyProject says.
#[derive(Debug, Clone)]
pub struct ProjectDeclaration {
    /// The namespace of the resource.
    pub namespace: Namespace,
    /// The resource's name.
    pub resource: ObjectName,
    /// The organization.
    pub organization: OrganizationSlug,
    /// The project's slug.
    pub slug: ProjectSlug,
    /// What people call it; `None` keeps the name, or takes the slug for a new one.
    pub name: Option<DisplayName>,
}

/// The project as the vault has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredProject {
    /// Its id.
    pub id: ProjectId,
    /// Its stages.
    pub stages: Vec<StageSlug>,
    /// The version of its newest data key.
    pub key_version: i64,
    /// When that key was made, in milliseconds since 1970.
    pub key_created_at_ms: i64,
}

/// What a BarekeyStage says.
#[derive(Debug, Clone)]
pub struct StageDeclaration {
    /// The namespace of the resource.
    pub namespace: Namespace,
    /// The resource's name.
    pub resource: ObjectName,
    /// The organization of its project.
    pub organization: OrganizationSlug,
    /// The project's slug.
    pub project: ProjectSlug,
    /// The stage's slug.
    pub slug: StageSlug,
    /// Whether it is protected; `None` keeps what the vault has.
    pub protected: Option<bool>,
    /// Who may read it.
    pub access: Vec<AccessGrant>,
}

/// The stage as the vault has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredStage {
    /// Its id.
    pub id: StageId,
    /// Raised by each change of its variables.
    pub revision: i64,
    /// How many variables it holds.
    pub variables: i64,
    /// Whether it is protected.
    pub protected: bool,
}

/// Why a declaration was not taken over. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// No such organization.
    #[error("there is no organization {0}")]
    NoOrganization(OrganizationSlug),
    /// No such project (for a stage).
    #[error("there is no project {0}")]
    NoProject(ProjectSlug),
    /// It belongs to another namespace, or was made over HTTP.
    #[error("{what} belongs to {owner}")]
    NotOwned {
        /// Such as `the project shop`.
        what: String,
        /// `another namespace` or `nobody in Kubernetes: it was made over the API`. The namespace itself is not named.
        owner: &'static str,
    },
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// What happened to something that a resource asked to delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// It is gone, or was gone already, or belongs to someone else and was left alone.
    Done,
    /// It still holds variables and waits for a confirmation.
    NeedsConfirmation {
        /// How many.
        variables: i64,
    },
}

/// A stage that a resource declared, for the sweep after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageOwner {
    /// The stage.
    pub stage: StageId,
    /// The resource's namespace.
    pub namespace: Namespace,
    /// The resource's name.
    pub resource: ObjectName,
}

impl Vault {
    /// Makes, adopts or confirms a project. The first namespace that makes one owns it.
    pub async fn declare_project(
        &self,
        _declaration: &ProjectDeclaration,
    ) -> Result<DeclaredProject, DeclareError> {
        todo!()
    }
    /// Makes, adopts or confirms a stage, and sets its protection and access to what is declared (only if they differ).
    pub async fn declare_stage(
        &self,
        _declaration: &StageDeclaration,
    ) -> Result<DeclaredStage, DeclareError> {
        todo!()
    }
    /// Ends every access entry that a resource declared (the resource is gone). Repeatable.
    pub async fn withdraw_access(
        &self,
        _namespace: &Namespace,
        _resource: &ObjectName,
    ) -> Result<(), Unavailable> {
        todo!()
    }
    /// Every stage that has access entries, with the resource that declared them.
    pub async fn stages_with_access(&self) -> Result<Vec<StageOwner>, Unavailable> {
        todo!()
    }
    /// Deletes a stage that the namespace owns; one with variables only when `confirmed`.
    pub async fn delete_declared_stage(
        &self,
        _namespace: &Namespace,
        _organization: &OrganizationSlug,
        _project: &ProjectSlug,
        _slug: &StageSlug,
        _confirmed: bool,
    ) -> Result<Deletion, Unavailable> {
        todo!()
    }
    /// Deletes a project that the namespace owns, with its stages; one with variables only when `confirmed`.
    pub async fn delete_declared_project(
        &self,
        _namespace: &Namespace,
        _organization: &OrganizationSlug,
        _slug: &ProjectSlug,
        _confirmed: bool,
    ) -> Result<Deletion, Unavailable> {
        todo!()
    }
}
