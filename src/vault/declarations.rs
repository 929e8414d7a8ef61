//! What resources declare: projects and stages owned by a namespace, and who may read them.
use std::sync::Arc;

use super::credentials::store_revocation;
use super::projects::{NewProject, access_rows, make_project, make_stage, owner_text, stage_text};
use super::records::Chain;
use super::writer::{Change, Verdict, Work};
use super::{Core, Unavailable, Vault, make_id};
use crate::domain::access::Actor;
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome, Source};
pub use crate::domain::declaration::{
    DeclarationRefusal, DeclaredProject, DeclaredStage, Deletion, ProjectDeclaration,
    StageDeclaration,
};
use crate::domain::names::{
    DisplayName, Namespace, ObjectName, OrganizationId, OrganizationSlug, ProjectId, ProjectSlug,
    StageId, StageSlug,
};
use crate::storage;
use crate::storage::Connection;
use crate::storage::projects::{AccessRow, ProjectRow, StageRow};

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

/// Access entries for the audit trail, where they are held against the rows when the trail is verified.
pub(crate) fn access_text(rows: &[AccessRow]) -> String {
    let lines: Vec<String> = rows
        .iter()
        .map(|row| format!("{}/{} {}", row.namespace, row.service_account, row.pattern))
        .collect();
    lines.join("\n")
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
            let same = access == access_rows(&declaration.access)
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

    /// Ends every access entry that a resource declared (the resource is gone). Repeatable.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is changed then, or only some stages.
    pub async fn withdraw_access(
        &self,
        namespace: &Namespace,
        resource: &ObjectName,
    ) -> Result<(), Unavailable> {
        let mut db = self.reader().await?;
        let stages = storage::projects::stages_of_resource(&mut db, namespace, resource).await?;
        let mut organizations = Vec::new();
        for stage in stages {
            if let Some(stage) = storage::projects::stage_by_id(&mut db, &stage).await? {
                organizations.push((stage.organization, stage.id));
            }
        }
        drop(db);
        for (organization, stage) in organizations {
            let change = WithdrawAccess {
                organization,
                stage,
                namespace: namespace.clone(),
                resource: resource.clone(),
            };
            self.0.queue.change(change).await?;
        }
        Ok(())
    }

    /// Every stage that has access entries, with the resource that declared them.
    ///
    /// # Errors
    /// [`Unavailable`] when the database cannot be read.
    pub async fn stages_with_access(&self) -> Result<Vec<StageOwner>, Unavailable> {
        let mut db = self.reader().await?;
        let stages = storage::projects::stages_with_access(&mut db).await?;
        Ok(stages
            .into_iter()
            .map(|(stage, namespace, resource)| StageOwner {
                stage,
                namespace,
                resource,
            })
            .collect())
    }

    /// Deletes a stage that the namespace owns; one with variables only when `confirmed`.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is deleted then.
    pub async fn delete_declared_stage(
        &self,
        namespace: &Namespace,
        organization: &OrganizationSlug,
        project: &ProjectSlug,
        slug: &StageSlug,
        confirmed: bool,
    ) -> Result<Deletion, Unavailable> {
        self.delete_declared(namespace, organization, project, Some(slug), confirmed)
            .await
    }

    /// Deletes a project that the namespace owns, with its stages; one with variables only when `confirmed`.
    ///
    /// # Errors
    /// [`Unavailable`]; nothing is deleted then.
    pub async fn delete_declared_project(
        &self,
        namespace: &Namespace,
        organization: &OrganizationSlug,
        slug: &ProjectSlug,
        confirmed: bool,
    ) -> Result<Deletion, Unavailable> {
        self.delete_declared(namespace, organization, slug, None, confirmed)
            .await
    }

    async fn delete_declared(
        &self,
        namespace: &Namespace,
        organization: &OrganizationSlug,
        project: &ProjectSlug,
        stage: Option<&StageSlug>,
        confirmed: bool,
    ) -> Result<Deletion, Unavailable> {
        let Some(organization) = self.organization(organization).await? else {
            return Ok(Deletion::Done);
        };
        let change = DeleteDeclared {
            core: Arc::clone(&self.0.core),
            organization: organization.id,
            namespace: namespace.clone(),
            project: project.clone(),
            stage: stage.cloned(),
            confirmed,
        };
        self.0.queue.change(change).await
    }
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
    let stages = storage::projects::stages(db, project).await?;
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
        let stage = StageRow {
            id: make_id("stg")?,
            project: project.id,
            organization: self.organization.clone(),
            slug: declaration.slug.clone(),
            name: declaration.slug.to_string(),
            is_default: false,
            protected: declaration.protected.unwrap_or(false),
            namespace: Some(declaration.namespace.clone()),
            resource: Some(declaration.resource.clone()),
            revision: 0,
            epoch: 1,
            created_at: work.now_ms,
            updated_at: work.now_ms,
            variables: 0,
            project_slug: declaration.project.clone(),
        };
        let actor = controller(&declaration.namespace, &declaration.resource);
        if !make_stage(work, &actor, &controller_origin(), &stage).await? {
            return Err(storage::Error::Unexpected {
                what: "a stage that is there and is not".to_owned(),
            });
        }
        Ok(Ok(stage))
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
            let resource = Some(&declaration.resource);
            storage::projects::update_stage(&mut work.db, &stage.id, protected, resource).await?;
            let detail = stage_text(protected, stage.namespace.as_ref(), resource);
            work.events.push(self.event(Action::StageChanged, detail));
            stage.protected = protected;
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

struct WithdrawAccess {
    organization: OrganizationId,
    stage: StageId,
    namespace: Namespace,
    resource: ObjectName,
}

impl Change for WithdrawAccess {
    type Answer = ();

    fn chain(&self) -> Chain {
        Chain::Organization(self.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<()>, storage::Error> {
        let found = storage::projects::stage_by_id(&mut work.db, &self.stage).await?;
        let Some(stage) = found.filter(|stage| {
            stage.namespace.as_ref() == Some(&self.namespace)
                && stage.resource.as_ref() == Some(&self.resource)
        }) else {
            return Ok(Verdict::Keep(()));
        };
        let entries = storage::projects::access_entries(&mut work.db, &stage.id).await?;
        if entries.is_empty() {
            return Ok(Verdict::Keep(()));
        }
        storage::projects::raise_epoch(&mut work.db, &stage.id, work.now_ms).await?;
        let now = work.now_ms;
        storage::projects::replace_access_entries(&mut work.db, &stage.id, &[], now).await?;
        work.changed_stages.push(stage.id.clone());
        let event = AuditEvent {
            action: Action::AccessChanged,
            actor: controller(&self.namespace, &self.resource),
            project: Some(stage.project_slug.to_string()),
            stage: Some(stage.slug.to_string()),
            names: Vec::new(),
            origin: controller_origin(),
            outcome: Outcome::Allowed,
            detail: String::new(),
        };
        work.events.push((self.chain(), event));
        Ok(Verdict::Keep(()))
    }
}

struct DeleteDeclared {
    core: Arc<Core>,
    organization: OrganizationId,
    namespace: Namespace,
    project: ProjectSlug,
    /// `None` for the whole project.
    stage: Option<StageSlug>,
    confirmed: bool,
}

impl DeleteDeclared {
    fn event(
        &self,
        action: Action,
        stage: Option<&StageSlug>,
        detail: String,
    ) -> (Chain, AuditEvent) {
        (
            self.chain(),
            AuditEvent {
                action,
                actor: Actor {
                    kind: "controller",
                    id: self.namespace.to_string(),
                    name: self.namespace.to_string(),
                },
                project: Some(self.project.to_string()),
                stage: stage.map(ToString::to_string),
                names: Vec::new(),
                origin: controller_origin(),
                outcome: Outcome::Allowed,
                detail,
            },
        )
    }

    async fn delete(&self, work: &mut Work, stage: &StageRow) -> Result<(), storage::Error> {
        // Raised first: this is the lock of the stage.
        storage::projects::raise_epoch(&mut work.db, &stage.id, work.now_ms).await?;
        storage::projects::delete_stage(&mut work.db, &stage.id).await?;
        work.changed_stages.push(stage.id.clone());
        let detail = format!("variables={}", stage.variables);
        let event = self.event(Action::StageDeleted, Some(&stage.slug), detail);
        work.events.push(event);
        Ok(())
    }

    /// A token that is cut to what is gone is no credential any more.
    async fn revoke_tokens(
        &self,
        work: &mut Work,
        project: &ProjectId,
        stage: Option<&StageId>,
    ) -> Result<(), storage::Error> {
        let tokens = storage::credentials::tokens(&mut work.db, &self.organization).await?;
        for token in tokens {
            let cut = match stage {
                Some(stage) => token.stage.as_ref() == Some(stage),
                None => token.project.as_ref() == Some(project),
            };
            if cut && token.revoked_at.is_none() {
                let (chain, mut event) = self.event(
                    Action::TokenRevoked,
                    None,
                    "its scope was deleted".to_owned(),
                );
                event.names = vec![token.id.to_string()];
                work.events.push((chain, event));
                store_revocation(&self.core, work, token).await?;
            }
        }
        Ok(())
    }
}

impl Change for DeleteDeclared {
    type Answer = Deletion;

    fn chain(&self) -> Chain {
        Chain::Organization(self.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Deletion>, storage::Error> {
        let done = Ok(Verdict::Keep(Deletion::Done));
        let found =
            storage::projects::project_by_slug(&mut work.db, &self.organization, &self.project)
                .await?;
        let Some(project) = found else {
            return done;
        };
        let stages = storage::projects::stages(&mut work.db, &project.id).await?;
        let waits = |variables: i64| {
            (variables > 0 && !self.confirmed).then_some(Ok(Verdict::TakeBack(
                Deletion::NeedsConfirmation { variables },
            )))
        };
        let owned = |namespace: Option<&Namespace>| namespace == Some(&self.namespace);
        match &self.stage {
            Some(slug) => {
                let stage = stages
                    .iter()
                    .find(|stage| stage.slug == *slug && owned(stage.namespace.as_ref()));
                let Some(stage) = stage else {
                    return done;
                };
                if let Some(waits) = waits(stage.variables) {
                    return waits;
                }
                self.revoke_tokens(work, &project.id, Some(&stage.id))
                    .await?;
                self.delete(work, stage).await?;
            }
            None => {
                if !owned(project.namespace.as_ref()) {
                    return done;
                }
                if let Some(waits) = waits(project.variables) {
                    return waits;
                }
                self.revoke_tokens(work, &project.id, None).await?;
                for stage in &stages {
                    self.delete(work, stage).await?;
                }
                storage::projects::delete_project(&mut work.db, &project.id).await?;
                let detail = owner_text(project.namespace.as_ref());
                let event = self.event(Action::ProjectDeleted, None, detail);
                work.events.push(event);
            }
        }
        done
    }
}
