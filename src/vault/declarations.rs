//! What resources declare: projects and stages owned by a namespace, and who may read them.

mod deletion;

use std::sync::Arc;

use super::access_entries::{access_rows, access_text};
use super::environments::{derive_stage_seal, is_sealed};
use super::projects::{NewProject, make_project, make_stage, new_stage, stage_text};
use super::records::Chain;
use super::writer::{Change, Verdict, Work};
use super::{Core, Unavailable, Vault};
use crate::domain::access::Actor;
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome, Source};
pub use crate::domain::declaration::{
    DeclarationRefusal, DeclaredProject, DeclaredStage, Deletion, ProjectDeclaration,
    StageDeclaration,
};
use crate::domain::names::{
    DisplayName, Namespace, ObjectName, OrganizationId, OrganizationSlug, ProjectId, StageId,
};
use crate::storage;
use crate::storage::Connection;
use crate::storage::projects::{ProjectRow, StageRow};

/// Why a declaration was not taken over. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum DeclareError {
    /// What it says cannot be had.
    #[error(transparent)]
    Refused(#[from] DeclarationRefusal),
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
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
    ///
    /// # Errors
    /// [`DeclareError`]; nothing is changed then.
    pub async fn declare_project(
        &self,
        declaration: &ProjectDeclaration,
    ) -> Result<DeclaredProject, DeclareError> {
        let organization = self
            .declared_organization(&declaration.organization)
            .await?;
        let mut db = self.reader().await?;
        let found = storage::projects::project_by_slug(&mut db, &organization, &declaration.slug)
            .await
            .map_err(Unavailable::from)?;
        if let Some(project) = found {
            check_project(declaration, &project)?;
            if wanted_name(declaration, &project).is_none() {
                return Ok(declared_project(&mut db, &project.id)
                    .await
                    .map_err(Unavailable::from)?);
            }
        }
        drop(db);
        let change = DeclareProject {
            core: Arc::clone(&self.0.core),
            organization,
            declaration: declaration.clone(),
        };
        self.0.queue.change(change).await?
    }

    /// Makes, adopts or confirms a stage, and sets its protection and access to what is declared (only if they differ).
    ///
    /// # Errors
    /// [`DeclareError`]; nothing is changed then.
    pub async fn declare_stage(
        &self,
        declaration: &StageDeclaration,
    ) -> Result<DeclaredStage, DeclareError> {
        let organization = self
            .declared_organization(&declaration.organization)
            .await?;
        let mut db = self.reader().await?;
        let found = storage::projects::stage_by_slugs(
            &mut db,
            &organization,
            &declaration.project,
            &declaration.slug,
        )
        .await
        .map_err(Unavailable::from)?;
        if let Some(stage) = found {
            check_stage(declaration, &stage)?;
            let access = storage::projects::access_entries(&mut db, &stage.id)
                .await
                .map_err(Unavailable::from)?;
            let same = is_sealed(self.core(), &stage)
                && access == access_rows(&declaration.access)
                && declaration
                    .protected
                    .is_none_or(|protected| protected == stage.protected)
                && stage.resource.as_ref() == Some(&declaration.resource);
            if same {
                return Ok(declared_stage(&stage));
            }
        }
        drop(db);
        let change = DeclareStage {
            core: Arc::clone(&self.0.core),
            organization,
            declaration: declaration.clone(),
        };
        self.0.queue.change(change).await?
    }

    async fn declared_organization(
        &self,
        slug: &OrganizationSlug,
    ) -> Result<OrganizationId, DeclareError> {
        match self.organization(slug).await? {
            Some(organization) => Ok(organization.id),
            None => Err(DeclarationRefusal::NoOrganization(slug.clone()).into()),
        }
    }

    /// Every stage that has access entries, with the resource that declared them.
    ///
    /// # Errors
    /// [`Unavailable`] when the database cannot be read.
    pub async fn stages_with_access(&self) -> Result<Vec<StageOwner>, Unavailable> {
        let mut db = self.reader().await?;
        let stages = storage::projects::stages_with_access(&mut db).await?;
        Ok(stages
            .whole_or_told("stage")
            .into_iter()
            .map(|(stage, namespace, resource)| StageOwner {
                stage,
                namespace,
                resource,
            })
            .collect())
    }
}

/// Who acts when a resource does.
fn controller(namespace: &Namespace, resource: &ObjectName) -> Actor {
    Actor {
        kind: "controller",
        id: namespace.to_string(),
        name: format!("{namespace}/{resource}"),
    }
}

fn controller_origin() -> Origin {
    Origin {
        source: Source::Controller,
        ip: String::new(),
        user_agent: String::new(),
        request_id: String::new(),
    }
}

fn not_owned(what: String, owner: Option<&Namespace>) -> DeclareError {
    DeclareError::Refused(DeclarationRefusal::NotOwned {
        what,
        owner: match owner {
            Some(_) => "another namespace",
            None => "nobody in Kubernetes: it was made over the API",
        },
    })
}

/// Whether a declaration may speak for a project that is there.
fn check_project(
    declaration: &ProjectDeclaration,
    project: &ProjectRow,
) -> Result<(), DeclareError> {
    if project.namespace.as_ref() == Some(&declaration.namespace) {
        return Ok(());
    }
    Err(not_owned(
        format!("the project {}", declaration.slug),
        project.namespace.as_ref(),
    ))
}

/// Whether a declaration may speak for a stage that is there.
fn check_stage(declaration: &StageDeclaration, stage: &StageRow) -> Result<(), DeclareError> {
    if stage.namespace.as_ref() == Some(&declaration.namespace) {
        return Ok(());
    }
    Err(not_owned(
        format!("the stage {}/{}", declaration.project, declaration.slug),
        stage.namespace.as_ref(),
    ))
}

/// The name that a project should have and has not.
fn wanted_name<'a>(declaration: &'a ProjectDeclaration, project: &ProjectRow) -> Option<&'a str> {
    declaration
        .name
        .as_ref()
        .map(DisplayName::as_str)
        .filter(|name| *name != project.name)
}

async fn declared_project(
    db: &mut Connection,
    project: &ProjectId,
) -> Result<DeclaredProject, storage::Error> {
    let stages = storage::projects::stages(db, project)
        .await?
        .whole_or_told("stage");
    let key = storage::projects::active_data_key(db, project)
        .await?
        .ok_or_else(|| storage::Error::Unexpected {
            what: "the project has no data key".to_owned(),
        })?;
    Ok(DeclaredProject {
        id: project.clone(),
        stages: stages.into_iter().map(|stage| stage.slug).collect(),
        key_version: key.version,
        key_created_at_ms: key.created_at,
    })
}

fn declared_stage(stage: &StageRow) -> DeclaredStage {
    DeclaredStage {
        id: stage.id.clone(),
        revision: stage.revision,
        variables: stage.variables,
        protected: stage.protected,
    }
}

struct DeclareProject {
    core: Arc<Core>,
    organization: OrganizationId,
    declaration: ProjectDeclaration,
}

impl Change for DeclareProject {
    type Answer = Result<DeclaredProject, DeclareError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let declaration = &self.declaration;
        let found =
            storage::projects::project_by_slug(&mut work.db, &self.organization, &declaration.slug)
                .await?;
        let id = match found {
            Some(project) => {
                if let Err(error) = check_project(declaration, &project) {
                    return Ok(Verdict::TakeBack(Err(error)));
                }
                if let Some(name) = wanted_name(declaration, &project) {
                    storage::projects::rename_project(&mut work.db, &project.id, name, work.now_ms)
                        .await?;
                    let event = AuditEvent {
                        action: Action::ProjectChanged,
                        actor: controller(&declaration.namespace, &declaration.resource),
                        project: Some(project.slug.to_string()),
                        stage: None,
                        names: Vec::new(),
                        origin: controller_origin(),
                        outcome: Outcome::Allowed,
                        detail: format!("name={name:?}"),
                    };
                    work.events.push((self.chain(), event));
                }
                project.id
            }
            None => {
                let new = NewProject {
                    organization: &self.organization,
                    slug: declaration.slug.clone(),
                    name: declaration
                        .name
                        .as_ref()
                        .map_or(declaration.slug.as_str(), DisplayName::as_str),
                    owner: Some((&declaration.namespace, &declaration.resource)),
                };
                let actor = controller(&declaration.namespace, &declaration.resource);
                let origin = controller_origin();
                match make_project(&self.core, work, &actor, &origin, &new).await? {
                    Some(project) => project.id,
                    // The chain's head is locked, so nobody else can have made it since.
                    None => {
                        return Err(storage::Error::Unexpected {
                            what: "a project that is there and is not".to_owned(),
                        });
                    }
                }
            }
        };
        let declared = declared_project(&mut work.db, &id).await?;
        Ok(Verdict::Keep(Ok(declared)))
    }
}

struct DeclareStage {
    core: Arc<Core>,
    organization: OrganizationId,
    declaration: StageDeclaration,
}

impl DeclareStage {
    fn event(&self, action: Action, detail: String) -> (Chain, AuditEvent) {
        let declaration = &self.declaration;
        (
            self.chain(),
            AuditEvent {
                action,
                actor: controller(&declaration.namespace, &declaration.resource),
                project: Some(declaration.project.to_string()),
                stage: Some(declaration.slug.to_string()),
                names: Vec::new(),
                origin: controller_origin(),
                outcome: Outcome::Allowed,
                detail,
            },
        )
    }

    /// The stage as it is now, or as it was just made.
    async fn found_or_made(
        &self,
        work: &mut Work,
    ) -> Result<Result<StageRow, DeclareError>, storage::Error> {
        let declaration = &self.declaration;
        let found = storage::projects::stage_by_slugs(
            &mut work.db,
            &self.organization,
            &declaration.project,
            &declaration.slug,
        )
        .await?;
        if let Some(stage) = found {
            // It is sealed anew below: what was altered must not become what was meant.
            if !is_sealed(&self.core, &stage) {
                return Err(storage::Error::Unexpected {
                    what: format!("the row of stage {} was altered", stage.id),
                });
            }
            return Ok(check_stage(declaration, &stage).map(|()| stage));
        }
        let project = storage::projects::project_by_slug(
            &mut work.db,
            &self.organization,
            &declaration.project,
        )
        .await?;
        let Some(project) = project else {
            return Ok(Err(DeclarationRefusal::NoProject(
                declaration.project.clone(),
            )
            .into()));
        };
        if project.namespace.as_ref() != Some(&declaration.namespace) {
            return Ok(Err(not_owned(
                format!("the project {}", declaration.project),
                project.namespace.as_ref(),
            )));
        }
        let slug = declaration.slug.clone();
        let stage = StageRow {
            protected: declaration.protected.unwrap_or(false),
            namespace: Some(declaration.namespace.clone()),
            resource: Some(declaration.resource.clone()),
            ..new_stage(&project, slug, declaration.slug.as_str(), work.now_ms)?
        };
        let actor = controller(&declaration.namespace, &declaration.resource);
        make_stage(&self.core, work, &actor, &controller_origin(), stage)
            .await?
            .map(Ok)
            .ok_or_else(|| storage::Error::Unexpected {
                what: "a stage that is there and is not".to_owned(),
            })
    }
}

impl Change for DeclareStage {
    type Answer = Result<DeclaredStage, DeclareError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let declaration = &self.declaration;
        let mut stage = match self.found_or_made(work).await? {
            Ok(stage) => stage,
            Err(error) => return Ok(Verdict::TakeBack(Err(error))),
        };
        storage::projects::raise_epoch(&mut work.db, &stage.id, work.now_ms).await?;
        work.changed_stages.push(stage.id.clone());
        let protected = declaration.protected.unwrap_or(stage.protected);
        let adopted = stage.resource.as_ref() != Some(&declaration.resource);
        if protected != stage.protected || adopted {
            stage.protected = protected;
            stage.resource = Some(declaration.resource.clone());
            stage.seal = derive_stage_seal(&self.core.token_key, &stage);
            storage::projects::update_stage(&mut work.db, &stage).await?;
            let resource = stage.resource.as_ref();
            let detail = stage_text(protected, stage.namespace.as_ref(), resource);
            work.events.push(self.event(Action::StageChanged, detail));
        }
        let wanted = access_rows(&declaration.access);
        if storage::projects::access_entries(&mut work.db, &stage.id).await? != wanted {
            let now = work.now_ms;
            storage::projects::replace_access_entries(&mut work.db, &stage.id, &wanted, now)
                .await?;
            let event = self.event(Action::AccessChanged, access_text(&wanted));
            work.events.push(event);
        }
        Ok(Verdict::Keep(Ok(declared_stage(&stage))))
    }
}
