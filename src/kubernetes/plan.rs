//! Decides what a reconcile does and what its status says. Pure: no client, no clock.
//!
//! A reconcile reads, asks [`plan_project`] or [`plan_stage`] what to do, does it, and lets [`judge_project`],
//! [`judge_stage`] or [`judge_deletion`] make a [`Finding`] of what the vault answered. The finding becomes the conditions.

mod finding;
#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

pub use self::finding::{
    Answer, Finding, Outlook, Reason, bootstrap_command, judge_deletion, judge_project,
    judge_stage, project_status, stage_status, storage_unavailable,
};
use self::finding::{organization_not_allowed, slug_taken, too_much_access};
use crate::domain::access::AccessGrant;
use crate::domain::declaration::{Organizations, ProjectDeclaration, StageDeclaration};
use crate::domain::names::{
    DisplayName, NameError, NamePattern, Namespace, ObjectName, OrganizationSlug, ProjectSlug,
    StageSlug,
};
use crate::kubernetes::resources::{
    BarekeyProject, BarekeyStage, CONFIRM_DELETE_ANNOTATION, DeletionPolicy, FINALIZER, StageAccess,
};

/// The most entries that the access of one BarekeyStage makes in the vault: one for each account and variable.
pub const ACCESS_ENTRIES_MAX: usize = 4096;

/// What to do with the finalizer before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinalizerChange {
    /// Leave it.
    Keep,
    /// Set it: the policy is `Delete`.
    Add,
    /// Take it away: the policy is `Retain`.
    Remove,
}

/// What a reconcile of a BarekeyProject does.
#[derive(Debug)]
pub enum ProjectPlan {
    /// Declare the project to the vault.
    Declare {
        /// What to do first.
        finalizer: FinalizerChange,
        /// What to declare.
        declaration: ProjectDeclaration,
    },
    /// Change nothing in the vault.
    Refuse {
        /// What to do first.
        finalizer: FinalizerChange,
        /// Why.
        finding: Finding,
    },
    /// Delete the project in the vault, then let the resource go.
    Delete {
        /// The organization.
        organization: OrganizationSlug,
        /// The project.
        slug: ProjectSlug,
        /// Whether variables may go with it.
        confirmed: bool,
    },
    /// Let the resource go and leave the vault as it is.
    Release,
    /// It goes by itself.
    Nothing,
}

/// What a reconcile of a BarekeyStage does.
#[derive(Debug)]
pub enum StagePlan {
    /// Declare the stage to the vault.
    Declare {
        /// What to do first.
        finalizer: FinalizerChange,
        /// What to declare.
        declaration: StageDeclaration,
    },
    /// Change nothing in the vault, but for access that ends.
    Refuse {
        /// What to do first.
        finalizer: FinalizerChange,
        /// Why.
        finding: Finding,
    },
    /// End the access, delete the stage in the vault, then let the resource go.
    Delete {
        /// Where it is.
        path: StagePath,
        /// Whether variables may go with it.
        confirmed: bool,
    },
    /// End the access, let the resource go and leave the vault's values as they are.
    Release,
    /// End the access; the resource goes by itself.
    Nothing,
}

/// Where a stage is in the vault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagePath {
    /// The organization.
    pub organization: OrganizationSlug,
    /// The project.
    pub project: ProjectSlug,
    /// The stage.
    pub slug: StageSlug,
}

impl StagePath {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let path = Self {
            organization: parts.next()?.parse().ok()?,
            project: parts.next()?.parse().ok()?,
            slug: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(path)
    }
}

impl std::fmt::Display for StagePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.organization, self.project, self.slug)
    }
}

/// The slug that the resource stands for: as written, or its name.
pub fn project_slug(project: &BarekeyProject) -> &str {
    let name = project.metadata.name.as_deref().unwrap_or_default();
    project.spec.slug.as_deref().unwrap_or(name)
}

/// The slug that the resource stands for: as written, or its name.
pub fn stage_slug(stage: &BarekeyStage) -> &str {
    let name = stage.metadata.name.as_deref().unwrap_or_default();
    stage.spec.slug.as_deref().unwrap_or(name)
}

/// What to do with a BarekeyProject. `siblings` are all BarekeyProjects of its namespace; itself among them does not matter.
pub fn plan_project<'a>(
    project: &BarekeyProject,
    siblings: impl IntoIterator<Item = &'a BarekeyProject>,
    organizations: &Organizations,
) -> ProjectPlan {
    let older = older_project(project, siblings);
    let parsed = parse_project(project);
    if project.metadata.deletion_timestamp.is_some() {
        return match parsed {
            _ if !has_finalizer(&project.metadata) => ProjectPlan::Nothing,
            Ok(declaration)
                if project.spec.deletion_policy == DeletionPolicy::Delete
                    && older.is_none()
                    && organizations
                        .may_speak(&declaration.namespace, &declaration.organization) =>
            {
                ProjectPlan::Delete {
                    confirmed: is_confirmed(&project.metadata, declaration.slug.as_str()),
                    organization: declaration.organization,
                    slug: declaration.slug,
                }
            }
            _ => ProjectPlan::Release,
        };
    }
    let refuse = |finding| ProjectPlan::Refuse {
        finalizer: on_refusal(&project.metadata, project.spec.deletion_policy),
        finding,
    };
    let declaration = match parsed {
        Ok(declaration) => declaration,
        Err(error) => return refuse(Finding::invalid(&error)),
    };
    if let Some(older) = older {
        return refuse(slug_taken("BarekeyProject", older, "project"));
    }
    if !organizations.may_speak(&declaration.namespace, &declaration.organization) {
        return refuse(organization_not_allowed(
            &declaration.namespace,
            &declaration.organization,
        ));
    }
    ProjectPlan::Declare {
        finalizer: on_declaration(&project.metadata, project.spec.deletion_policy),
        declaration,
    }
}

/// What to do with a BarekeyStage. `project` is the BarekeyProject that it names; `siblings` are all BarekeyStages of its
/// namespace; itself among them does not matter.
pub fn plan_stage<'a>(
    stage: &BarekeyStage,
    project: Option<&BarekeyProject>,
    siblings: impl IntoIterator<Item = &'a BarekeyStage>,
    organizations: &Organizations,
) -> StagePlan {
    let older = older_stage(stage, siblings);
    if stage.metadata.deletion_timestamp.is_some() {
        return plan_deletion(stage, project, older.is_some(), organizations);
    }
    let refuse = |finding| StagePlan::Refuse {
        finalizer: on_refusal(&stage.metadata, stage.spec.deletion_policy),
        finding,
    };
    if let Some(older) = older {
        return refuse(slug_taken("BarekeyStage", older, "stage"));
    }
    let Some(project) = project else {
        return refuse(Finding::new(
            Reason::ProjectNotFound,
            format!(
                "there is no BarekeyProject {} in this namespace: apply it, or name another one in a new BarekeyStage",
                stage.spec.project
            ),
        ));
    };
    let entries = access_entries(&stage.spec.access);
    if entries > ACCESS_ENTRIES_MAX {
        return refuse(too_much_access(entries, ACCESS_ENTRIES_MAX));
    }
    let declaration = match parse_stage(stage, project) {
        Ok(declaration) => declaration,
        Err(error) => return refuse(Finding::invalid(&error)),
    };
    if !organizations.may_speak(&declaration.namespace, &declaration.organization) {
        return refuse(organization_not_allowed(
            &declaration.namespace,
            &declaration.organization,
        ));
    }
    let taken = ready_reason(project).filter(|reason| {
        [Reason::SlugTaken, Reason::NotOwned]
            .iter()
            .any(|taken| taken.as_str() == *reason)
    });
    if let Some(reason) = taken {
        return refuse(Finding::new(
            Reason::ProjectNotReady,
            format!(
                "the BarekeyProject {} is not ready itself ({reason}): see its conditions",
                stage.spec.project
            ),
        ));
    }
    StagePlan::Declare {
        finalizer: on_declaration(&stage.metadata, stage.spec.deletion_policy),
        declaration,
    }
}

fn plan_deletion(
    stage: &BarekeyStage,
    project: Option<&BarekeyProject>,
    taken: bool,
    organizations: &Organizations,
) -> StagePlan {
    if !has_finalizer(&stage.metadata) {
        return StagePlan::Nothing;
    }
    let told = stage
        .status
        .as_ref()
        .and_then(|status| status.path.as_deref())
        .and_then(StagePath::parse);
    let path = told.or_else(|| {
        let declaration = parse_stage(stage, project?).ok()?;
        Some(StagePath {
            organization: declaration.organization,
            project: declaration.project,
            slug: declaration.slug,
        })
    });
    let namespace = namespace_of(&stage.metadata);
    match (path, namespace) {
        (Some(path), Ok(namespace))
            if stage.spec.deletion_policy == DeletionPolicy::Delete
                && !taken
                && organizations.may_speak(&namespace, &path.organization) =>
        {
            StagePlan::Delete {
                confirmed: is_confirmed(&stage.metadata, path.slug.as_str()),
                path,
            }
        }
        _ => StagePlan::Release,
    }
}

fn parse_project(project: &BarekeyProject) -> Result<ProjectDeclaration, NameError> {
    Ok(ProjectDeclaration {
        namespace: namespace_of(&project.metadata)?,
        resource: resource_of(&project.metadata)?,
        organization: project.spec.organization.parse()?,
        slug: project_slug(project).parse()?,
        name: project
            .spec
            .name
            .as_deref()
            .map(DisplayName::parse_project)
            .transpose()?,
    })
}

fn parse_stage(
    stage: &BarekeyStage,
    project: &BarekeyProject,
) -> Result<StageDeclaration, NameError> {
    let namespace = namespace_of(&stage.metadata)?;
    let access = stage
        .spec
        .access
        .iter()
        .map(|access| parse_access(access, &namespace))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(StageDeclaration {
        resource: resource_of(&stage.metadata)?,
        organization: project.spec.organization.parse()?,
        project: project_slug(project).parse()?,
        slug: stage_slug(stage).parse()?,
        protected: stage.spec.protected,
        access,
        namespace,
    })
}

/// How many entries `access` makes in the vault.
fn access_entries(access: &[StageAccess]) -> usize {
    access
        .iter()
        .map(|access| {
            let variables = access
                .variables
                .as_ref()
                .map_or(1, |names| names.len().max(1));
            access.service_accounts.len().saturating_mul(variables)
        })
        .fold(0, usize::saturating_add)
}

/// One entry of `access`, with its default.
fn parse_access(access: &StageAccess, own: &Namespace) -> Result<AccessGrant, NameError> {
    Ok(AccessGrant {
        namespace: match &access.namespace {
            Some(namespace) => namespace.parse()?,
            None => own.clone(),
        },
        service_accounts: access
            .service_accounts
            .iter()
            .map(|name| name.parse())
            .collect::<Result<_, NameError>>()?,
        variables: access
            .variables
            .as_ref()
            .map(|variables| {
                variables
                    .iter()
                    .map(|pattern| pattern.parse::<NamePattern>())
                    .collect()
            })
            .transpose()?,
    })
}

/// The grants that a BarekeyStage's `access` makes, each with its default namespace.
///
/// # Errors
/// [`NameError`] for a name that the schema would not have let in.
pub fn access_grants(stage: &BarekeyStage) -> Result<Vec<AccessGrant>, NameError> {
    let own = namespace_of(&stage.metadata)?;
    stage
        .spec
        .access
        .iter()
        .map(|access| parse_access(access, &own))
        .collect()
}

fn namespace_of(metadata: &ObjectMeta) -> Result<Namespace, NameError> {
    metadata.namespace.as_deref().unwrap_or_default().parse()
}

fn resource_of(metadata: &ObjectMeta) -> Result<ObjectName, NameError> {
    metadata.name.as_deref().unwrap_or_default().parse()
}

fn has_finalizer(metadata: &ObjectMeta) -> bool {
    metadata
        .finalizers
        .iter()
        .flatten()
        .any(|finalizer| finalizer == FINALIZER)
}

fn is_confirmed(metadata: &ObjectMeta, slug: &str) -> bool {
    metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(CONFIRM_DELETE_ANNOTATION))
        .is_some_and(|confirmed| confirmed == slug)
}

fn on_declaration(metadata: &ObjectMeta, policy: DeletionPolicy) -> FinalizerChange {
    match (policy, has_finalizer(metadata)) {
        (DeletionPolicy::Delete, false) => FinalizerChange::Add,
        (DeletionPolicy::Retain, true) => FinalizerChange::Remove,
        (DeletionPolicy::Delete, true) | (DeletionPolicy::Retain, false) => FinalizerChange::Keep,
    }
}

/// A resource that declares nothing gets no finalizer, but loses one that its policy no longer wants.
fn on_refusal(metadata: &ObjectMeta, policy: DeletionPolicy) -> FinalizerChange {
    match on_declaration(metadata, policy) {
        FinalizerChange::Add => FinalizerChange::Keep,
        change @ (FinalizerChange::Keep | FinalizerChange::Remove) => change,
    }
}

/// The oldest sibling that declares the same project, if it is older than this one.
fn older_project<'a>(
    project: &BarekeyProject,
    siblings: impl IntoIterator<Item = &'a BarekeyProject>,
) -> Option<&'a ObjectMeta> {
    let same = siblings
        .into_iter()
        .filter(|sibling| {
            sibling.metadata.namespace == project.metadata.namespace
                && sibling.spec.organization == project.spec.organization
                && project_slug(sibling) == project_slug(project)
        })
        .map(|sibling| sibling.meta());
    older(&project.metadata, same)
}

/// The oldest sibling that declares the same stage, if it is older than this one.
fn older_stage<'a>(
    stage: &BarekeyStage,
    siblings: impl IntoIterator<Item = &'a BarekeyStage>,
) -> Option<&'a ObjectMeta> {
    let same = siblings
        .into_iter()
        .filter(|sibling| {
            sibling.metadata.namespace == stage.metadata.namespace
                && sibling.spec.project == stage.spec.project
                && stage_slug(sibling) == stage_slug(stage)
        })
        .map(|sibling| sibling.meta());
    older(&stage.metadata, same)
}

fn older<'a>(
    own: &ObjectMeta,
    same: impl Iterator<Item = &'a ObjectMeta>,
) -> Option<&'a ObjectMeta> {
    let age = |metadata: &ObjectMeta| {
        (
            metadata.creation_timestamp.as_ref().map(|time| time.0),
            metadata.name.clone(),
        )
    };
    let own_age = age(own);
    same.filter(|metadata| metadata.name != own.name && age(metadata) < own_age)
        .min_by_key(|metadata| age(metadata))
}

fn ready_reason(project: &BarekeyProject) -> Option<&str> {
    project
        .status
        .as_ref()?
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready" && condition.status == "False")
        .map(|condition| condition.reason.as_str())
}
