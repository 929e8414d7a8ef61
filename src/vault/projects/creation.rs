//! How a project or a stage is made: what is written with it, and the changes that make one over the API.

use std::sync::Arc;

use super::slugs::{project_slugs, stage_slugs};
use super::{CreateError, Project, Stage, project_of, stage_of};
use crate::crypto::keys::DataKey;
use crate::domain::access::{Actor, Caller, Refusal, Scope, TokenCaller, may_manage};
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{
    DisplayName, LineageId, Namespace, ObjectName, OrganizationId, ProjectSlug, StageSlug,
};
use crate::storage;
use crate::storage::projects::{DataKeyRow, ProjectRow, StageRow};
use crate::vault::environments::derive_stage_seal;
use crate::vault::records::Chain;
use crate::vault::writer::{Change, Verdict, Work};
use crate::vault::{Core, make_id, no_random};

/// The stages that every project is made with: slug, name, whether protected.
const DEFAULT_STAGES: [(&str, &str, bool); 3] = [
    ("development", "Development", false),
    ("staging", "Staging", false),
    ("production", "Production", true),
];

/// A project to be made.
pub(crate) struct NewProject<'a> {
    /// Its organization.
    pub(crate) organization: &'a OrganizationId,
    /// Its slug.
    pub(crate) slug: ProjectSlug,
    /// What people call it.
    pub(crate) name: &'a str,
    /// The namespace and the resource that own it; `None` when it is made over the API.
    pub(crate) owner: Option<(&'a Namespace, &'a ObjectName)>,
}

/// Makes a project with its stages and its first data key; `None` when the slug is taken. Audited.
pub(crate) async fn make_project(
    core: &Core,
    work: &mut Work,
    actor: &Actor,
    origin: &Origin,
    new: &NewProject<'_>,
) -> Result<Option<ProjectRow>, storage::Error> {
    let now = work.now_ms;
    let namespace = new.owner.map(|(namespace, _)| namespace.clone());
    let project = ProjectRow {
        id: make_id("prj")?,
        organization: new.organization.clone(),
        slug: new.slug.clone(),
        name: new.name.to_owned(),
        namespace: namespace.clone(),
        created_at: now,
        updated_at: now,
        variables: 0,
    };
    let resource = new.owner.map(|(_, resource)| resource);
    if !storage::projects::insert_project(&mut work.db, &project, resource).await? {
        return Ok(None);
    }
    let lineage: LineageId = make_id("lin")?;
    storage::projects::insert_lineage(&mut work.db, &project.id, &lineage, now).await?;
    let key = DataKey::make().map_err(no_random)?;
    let wrapped = core
        .master_key
        .wrap_data_key(&lineage, 1, &key)
        .map_err(no_random)?;
    let key = DataKeyRow {
        lineage,
        version: 1,
        kek_id: core.master_key.derive_id(),
        wrapped,
        created_at: now,
    };
    storage::projects::insert_data_key(&mut work.db, &key).await?;
    let chain = Chain::Organization(new.organization.clone());
    work.events.push((
        chain,
        AuditEvent {
            action: Action::ProjectCreated,
            actor: actor.clone(),
            project: Some(project.slug.to_string()),
            stage: None,
            names: Vec::new(),
            origin: origin.clone(),
            outcome: Outcome::Allowed,
            detail: owner_text(namespace.as_ref()),
        },
    ));
    for (slug, name, protected) in DEFAULT_STAGES {
        let slug = slug.parse().map_err(|_| storage::Error::Unexpected {
            what: "a default stage's slug".to_owned(),
        })?;
        let stage = StageRow {
            is_default: true,
            protected,
            namespace: namespace.clone(),
            ..new_stage(&project, slug, name, now)?
        };
        make_stage(core, work, actor, origin, stage).await?;
    }
    Ok(Some(project))
}

/// A stage of `project` as it begins: empty, not protected, owned by nobody.
pub(crate) fn new_stage(
    project: &ProjectRow,
    slug: StageSlug,
    name: &str,
    now_ms: i64,
) -> Result<StageRow, storage::Error> {
    Ok(StageRow {
        id: make_id("stg")?,
        project: project.id.clone(),
        organization: project.organization.clone(),
        slug,
        name: name.to_owned(),
        is_default: false,
        protected: false,
        namespace: None,
        resource: None,
        revision: 0,
        epoch: 1,
        created_at: now_ms,
        updated_at: now_ms,
        variables: 0,
        project_slug: project.slug.clone(),
        seal: Vec::new(),
    })
}

/// Makes a stage and seals its row; `None` when the slug is taken. Audited.
pub(crate) async fn make_stage(
    core: &Core,
    work: &mut Work,
    actor: &Actor,
    origin: &Origin,
    mut stage: StageRow,
) -> Result<Option<StageRow>, storage::Error> {
    stage.seal = derive_stage_seal(&core.token_key, &stage);
    if !storage::projects::insert_stage(&mut work.db, &stage).await? {
        return Ok(None);
    }
    let event = AuditEvent {
        action: Action::StageCreated,
        actor: actor.clone(),
        project: Some(stage.project_slug.to_string()),
        stage: Some(stage.slug.to_string()),
        names: Vec::new(),
        origin: origin.clone(),
        outcome: Outcome::Allowed,
        detail: stage_text(
            stage.protected,
            stage.namespace.as_ref(),
            stage.resource.as_ref(),
        ),
    };
    work.events
        .push((Chain::Organization(stage.organization.clone()), event));
    Ok(Some(stage))
}

/// Who owns something, for the audit trail, which is held against the row when the trail is verified.
pub(crate) fn owner_text(namespace: Option<&Namespace>) -> String {
    format!("owner={}", namespace.map_or("", Namespace::as_str))
}

/// What a stage is set to, for the audit trail, which is held against the row when the trail is verified.
pub(crate) fn stage_text(
    protected: bool,
    namespace: Option<&Namespace>,
    resource: Option<&ObjectName>,
) -> String {
    let owner = owner_text(namespace);
    let resource = resource.map_or("", ObjectName::as_str);
    format!("protected={protected} {owner} resource={resource}")
}

/// The event of a project or stage that was not made.
pub(super) fn refused_creation(
    actor: Actor,
    origin: &Origin,
    (project, stage): (Option<&str>, Option<&str>),
    refusal: &Refusal,
) -> AuditEvent {
    AuditEvent {
        action: Action::WriteRefused,
        actor,
        project: project.map(str::to_owned),
        stage: stage.map(str::to_owned),
        names: Vec::new(),
        origin: origin.clone(),
        outcome: Outcome::Refused,
        detail: refusal.to_string(),
    }
}

pub(super) struct CreateProject {
    pub(super) core: Arc<Core>,
    pub(super) token: TokenCaller,
    pub(super) actor: Actor,
    pub(super) origin: Origin,
    pub(super) name: DisplayName,
    pub(super) slug: Option<ProjectSlug>,
}

impl Change for CreateProject {
    type Answer = Result<Project, CreateError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.token.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        if credential_ended(work, &self.token).await? {
            // Recorded here, since whoever asked may have hung up.
            let refusal = Refusal::CredentialEnded;
            let target = (self.slug.as_ref().map(ProjectSlug::as_str), None);
            let event = refused_creation(self.actor.clone(), &self.origin, target, &refusal);
            work.events.push((self.chain(), event));
            return Ok(Verdict::TakeBack(Err(refusal.into())));
        }
        let candidates = match &self.slug {
            Some(slug) => vec![slug.clone()],
            None => project_slugs(self.name.as_str())?,
        };
        let mut last = String::new();
        for slug in candidates {
            last = slug.to_string();
            let new = NewProject {
                organization: &self.token.organization,
                slug,
                name: self.name.as_str(),
                owner: None,
            };
            let made = make_project(&self.core, work, &self.actor, &self.origin, &new).await?;
            if let Some(project) = made {
                let project = project_of(project, &self.token.organization_slug);
                return Ok(Verdict::Keep(Ok(project)));
            }
        }
        Ok(Verdict::TakeBack(Err(CreateError::SlugTaken(last))))
    }
}

pub(super) struct CreateStage {
    pub(super) core: Arc<Core>,
    pub(super) caller: Caller,
    pub(super) token: TokenCaller,
    pub(super) origin: Origin,
    pub(super) project: ProjectSlug,
    pub(super) name: DisplayName,
    pub(super) slug: Option<StageSlug>,
}

impl CreateStage {
    /// Recorded here, since whoever asked may have hung up.
    fn refused(&self, work: &mut Work, refusal: Refusal) -> Verdict<Result<Stage, CreateError>> {
        let target = (
            Some(self.project.as_str()),
            self.slug.as_ref().map(StageSlug::as_str),
        );
        let event = refused_creation(self.caller.actor(), &self.origin, target, &refusal);
        work.events.push((self.chain(), event));
        Verdict::TakeBack(Err(refusal.into()))
    }
}

impl Change for CreateStage {
    type Answer = Result<Stage, CreateError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.token.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        if credential_ended(work, &self.token).await? {
            return Ok(self.refused(work, Refusal::CredentialEnded));
        }
        let organization = &self.token.organization;
        let found =
            storage::projects::project_by_slug(&mut work.db, organization, &self.project).await?;
        let Some(project) = found else {
            // A scoped token, and one that may make nothing, are told the same as of a project that is there.
            return match (
                &self.token.scope,
                may_manage(&self.caller, organization, None),
            ) {
                (Scope::Organization, Ok(_)) => Ok(Verdict::TakeBack(Err(CreateError::NoProject(
                    self.project.clone(),
                )))),
                (Scope::Organization, Err(refusal)) => Ok(self.refused(work, refusal)),
                (Scope::Project(_) | Scope::Stage(..), _) => {
                    Ok(self.refused(work, Refusal::OutOfScope))
                }
            };
        };
        if let Err(refusal) = may_manage(&self.caller, organization, Some(&project.id)) {
            return Ok(self.refused(work, refusal));
        }
        let candidates = match &self.slug {
            Some(slug) => vec![slug.clone()],
            None => stage_slugs(self.name.as_str())?,
        };
        let mut last = String::new();
        for slug in candidates {
            last = slug.to_string();
            let stage = new_stage(&project, slug, self.name.as_str(), work.now_ms)?;
            let (core, actor) = (&self.core, self.caller.actor());
            if let Some(stage) = make_stage(core, work, &actor, &self.origin, stage).await? {
                return Ok(Verdict::Keep(Ok(stage_of(stage))));
            }
        }
        Ok(Verdict::TakeBack(Err(CreateError::SlugTaken(last))))
    }
}

/// Whether a credential was revoked since it was recognised.
async fn credential_ended(work: &mut Work, token: &TokenCaller) -> Result<bool, storage::Error> {
    let epochs = storage::credentials::token_epochs(&mut work.db, &[&token.token]).await?;
    Ok(epochs
        .first()
        .is_none_or(|(_, epoch)| *epoch != token.epoch))
}
