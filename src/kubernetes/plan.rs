//! Decides what a reconcile does and what its status says. Pure: no client, no clock.
//!
//! A reconcile reads, asks [`plan_project`] or [`plan_stage`] what to do, does it, and lets [`judge_project`],
//! [`judge_stage`] or [`judge_deletion`] make a [`Finding`] of what the vault answered. The finding becomes the conditions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Resource;

use crate::domain::access::AccessGrant;
use crate::domain::declaration::{
    DeclarationRefusal, DeclaredProject, DeclaredStage, Deletion, Organizations,
    ProjectDeclaration, StageDeclaration,
};
use crate::domain::names::{
    DisplayName, NameError, NamePattern, Namespace, ObjectName, OrganizationSlug, ProjectSlug,
    StageSlug,
};
use crate::kubernetes::resources::{
    BarekeyProject, BarekeyProjectStatus, BarekeyStage, BarekeyStageStatus,
    CONFIRM_DELETE_ANNOTATION, DeletionPolicy, FINALIZER, STATUS_STAGES_MAX, StageAccess,
};

/// Why a resource is as it is: the same word in condition, event, log and metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The vault has what the resource declares.
    Ready,
    /// The organization is not there yet.
    OrganizationNotFound,
    /// The namespace does not speak for the organization.
    OrganizationNotAllowed,
    /// It belongs to another namespace, or was made over the API.
    NotOwned,
    /// An older resource of the same namespace declares it.
    SlugTaken,
    /// There is no BarekeyProject of that name.
    ProjectNotFound,
    /// The BarekeyProject is not ready itself.
    ProjectNotReady,
    /// It is being deleted and holds variables.
    AwaitingConfirmation,
    /// A name in the spec is none.
    InvalidSpec,
    /// The vault's database cannot be used.
    StorageUnavailable,
}

impl Reason {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::OrganizationNotFound => "OrganizationNotFound",
            Self::OrganizationNotAllowed => "OrganizationNotAllowed",
            Self::NotOwned => "NotOwned",
            Self::SlugTaken => "SlugTaken",
            Self::ProjectNotFound => "ProjectNotFound",
            Self::ProjectNotReady => "ProjectNotReady",
            Self::AwaitingConfirmation => "AwaitingConfirmation",
            Self::InvalidSpec => "InvalidSpec",
            Self::StorageUnavailable => "StorageUnavailable",
        }
    }

    /// What the reason means for whoever waits.
    pub fn outlook(self) -> Outlook {
        match self {
            Self::Ready => Outlook::Settled,
            Self::OrganizationNotFound
            | Self::ProjectNotFound
            | Self::ProjectNotReady
            | Self::AwaitingConfirmation
            | Self::StorageUnavailable => Outlook::Waiting,
            Self::OrganizationNotAllowed | Self::NotOwned | Self::SlugTaken | Self::InvalidSpec => {
                Outlook::Stuck
            }
        }
    }

    /// Whether access that the resource declared before must end: what it says now counts for nothing.
    pub fn ends_access(self) -> bool {
        match self {
            Self::OrganizationNotAllowed
            | Self::NotOwned
            | Self::SlugTaken
            | Self::ProjectNotFound
            | Self::ProjectNotReady
            | Self::AwaitingConfirmation
            | Self::InvalidSpec => true,
            Self::Ready | Self::OrganizationNotFound | Self::StorageUnavailable => false,
        }
    }

    /// Whether what the status says of the vault belongs to somebody else.
    fn forgets_facts(self) -> bool {
        matches!(self, Self::NotOwned | Self::SlugTaken)
    }
}

/// Whether waiting helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// Nothing is left to do.
    Settled,
    /// It is tried again and will pass by itself once what it waits for is there.
    Waiting,
    /// Somebody must change something first.
    Stuck,
}

/// What a reconcile found, in one word and one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The word.
    pub reason: Reason,
    /// What is the case, and what to do.
    pub message: String,
}

impl Finding {
    fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    fn invalid(error: &NameError) -> Self {
        Self::new(Reason::InvalidSpec, error.to_string())
    }
}

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
    if let Some(reason @ ("SlugTaken" | "NotOwned")) = ready_reason(project) {
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

fn slug_taken(kind: &str, older: &ObjectMeta, what: &str) -> Finding {
    let name = older.name.as_deref().unwrap_or_default();
    Finding::new(
        Reason::SlugTaken,
        format!(
            "the older {kind} {name} of this namespace declares the same {what}: delete one of the two, or make this one anew with another slug"
        ),
    )
}

fn organization_not_allowed(namespace: &Namespace, organization: &OrganizationSlug) -> Finding {
    Finding::new(
        Reason::OrganizationNotAllowed,
        format!(
            "the namespace {namespace} does not speak for the organization {organization}: an administrator adds it to the chart's value organizations.{organization}.namespaces"
        ),
    )
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

/// What to type so that the organization is there: put into messages.
pub fn bootstrap_command(
    operator_namespace: &Namespace,
    exec_target: &str,
    organization: &OrganizationSlug,
) -> String {
    format!(
        "kubectl exec -n {operator_namespace} {exec_target} -- /barekey-operator admin bootstrap --organization {organization}"
    )
}

fn judge_refusal(refusal: &DeclarationRefusal, bootstrap: &str) -> Finding {
    match refusal {
        DeclarationRefusal::NoOrganization(organization) => Finding::new(
            Reason::OrganizationNotFound,
            format!(
                "there is no organization {organization} yet; an administrator makes it with: {bootstrap}"
            ),
        ),
        DeclarationRefusal::NoProject(project) => Finding::new(
            Reason::ProjectNotReady,
            format!(
                "the vault has no project {project} yet: see the conditions of its BarekeyProject"
            ),
        ),
        DeclarationRefusal::NotOwned { what, owner } => Finding::new(
            Reason::NotOwned,
            format!("{what} belongs to {owner}: make this resource anew with another slug"),
        ),
    }
}

/// What the vault answered to a declaration.
#[derive(Debug)]
pub enum Answer<T> {
    /// It has now what was declared.
    Declared(T),
    /// It does not take it over.
    Refused(DeclarationRefusal),
    /// Its database cannot be used.
    Unavailable,
}

impl<T> Answer<T> {
    /// What was declared, if it was.
    pub fn declared(self) -> Option<T> {
        match self {
            Self::Declared(declared) => Some(declared),
            Self::Refused(_) | Self::Unavailable => None,
        }
    }
}

/// What to say while the database cannot be used.
pub fn storage_unavailable() -> Finding {
    Finding::new(
        Reason::StorageUnavailable,
        "the vault's database cannot be used right now: it is tried again; the operator's log says why",
    )
}

/// What the vault's answer to a project means. `bootstrap` is [`bootstrap_command`].
pub fn judge_project(answer: &Answer<DeclaredProject>, bootstrap: &str) -> Finding {
    match answer {
        Answer::Declared(project) => Finding::new(
            Reason::Ready,
            format!(
                "the vault has the project with {} stages",
                project.stages.len()
            ),
        ),
        Answer::Refused(refusal) => judge_refusal(refusal, bootstrap),
        Answer::Unavailable => storage_unavailable(),
    }
}

/// What the vault's answer to a stage means. `bootstrap` is [`bootstrap_command`].
pub fn judge_stage(answer: &Answer<DeclaredStage>, bootstrap: &str) -> Finding {
    match answer {
        Answer::Declared(_) => {
            Finding::new(Reason::Ready, "the vault has the stage and its access")
        }
        Answer::Refused(refusal) => judge_refusal(refusal, bootstrap),
        Answer::Unavailable => storage_unavailable(),
    }
}

/// What the vault's answer to a deletion means; `None` when the resource may go.
pub fn judge_deletion(deletion: &Deletion, slug: &str) -> Option<Finding> {
    match deletion {
        Deletion::Done => None,
        Deletion::NeedsConfirmation { variables } => Some(Finding::new(
            Reason::AwaitingConfirmation,
            format!(
                "{variables} {} would be deleted for ever: confirm with the annotation {CONFIRM_DELETE_ANNOTATION}: {slug}, or keep what is there with spec.deletionPolicy: Retain",
                if *variables == 1 {
                    "variable"
                } else {
                    "variables"
                },
            ),
        )),
    }
}

/// The status of a BarekeyProject after a finding. What the vault said is kept when it could not be asked.
pub fn project_status(
    project: &BarekeyProject,
    finding: &Finding,
    declared: Option<&DeclaredProject>,
    now: Time,
) -> BarekeyProjectStatus {
    let before = project.status.clone().unwrap_or_default();
    let mut status = match declared {
        Some(declared) => BarekeyProjectStatus {
            id: Some(declared.id.to_string()),
            stages: declared
                .stages
                .iter()
                .take(STATUS_STAGES_MAX)
                .map(ToString::to_string)
                .collect(),
            stage_count: Some(i64::try_from(declared.stages.len()).unwrap_or(i64::MAX)),
            key_version: Some(declared.key_version),
            key_created_at: Timestamp::from_millisecond(declared.key_created_at_ms / 1000 * 1000)
                .ok()
                .map(Time),
            ..BarekeyProjectStatus::default()
        },
        None if finding.reason.forgets_facts() => BarekeyProjectStatus::default(),
        None => before.clone(),
    };
    status.observed_generation = project.metadata.generation;
    status.conditions = conditions(
        &before.conditions,
        finding,
        project.metadata.generation,
        now,
    );
    status
}

/// The status of a BarekeyStage after a finding. What the vault said is kept when it could not be asked.
pub fn stage_status(
    stage: &BarekeyStage,
    finding: &Finding,
    declared: Option<(&StagePath, &DeclaredStage)>,
    now: Time,
) -> BarekeyStageStatus {
    let before = stage.status.clone().unwrap_or_default();
    let mut status = match declared {
        Some((path, declared)) => BarekeyStageStatus {
            id: Some(declared.id.to_string()),
            path: Some(path.to_string()),
            revision: Some(declared.revision),
            variables: Some(declared.variables),
            protected: Some(declared.protected),
            ..BarekeyStageStatus::default()
        },
        None if finding.reason.forgets_facts() => BarekeyStageStatus::default(),
        None => before.clone(),
    };
    status.observed_generation = stage.metadata.generation;
    status.conditions = conditions(&before.conditions, finding, stage.metadata.generation, now);
    status
}

/// Ready, Reconciling and Stalled. The time of a condition is kept while its status is the same.
fn conditions(
    before: &[Condition],
    finding: &Finding,
    generation: Option<i64>,
    now: Time,
) -> Vec<Condition> {
    let outlook = finding.reason.outlook();
    [
        ("Ready", outlook == Outlook::Settled),
        ("Reconciling", outlook == Outlook::Waiting),
        ("Stalled", outlook == Outlook::Stuck),
    ]
    .into_iter()
    .map(|(type_, holds)| {
        let status = if holds { "True" } else { "False" };
        let since = before
            .iter()
            .find(|condition| condition.type_ == type_ && condition.status == status)
            .map_or_else(
                || now.clone(),
                |condition| condition.last_transition_time.clone(),
            );
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: finding.reason.as_str().to_owned(),
            // Said once for people, and once for whoever waits on the condition that holds.
            message: if holds || type_ == "Ready" {
                finding.message.clone()
            } else {
                String::new()
            },
            observed_generation: generation,
            last_transition_time: since,
        }
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn organizations() -> Organizations {
        r#"{"acme":{"namespaces":["shop"]}}"#.parse().unwrap()
    }

    fn project_from(change: Value) -> BarekeyProject {
        let mut object = json!({
            "apiVersion": "barekey.dev/v1alpha1",
            "kind": "BarekeyProject",
            "metadata": {
                "name": "backend", "namespace": "shop", "uid": "1", "generation": 3,
                "creationTimestamp": "2026-01-01T00:00:00Z"
            },
            "spec": {"organization": "acme"}
        });
        merge(&mut object, change);
        serde_json::from_value(object).unwrap()
    }

    fn stage_from(change: Value) -> BarekeyStage {
        let mut object = json!({
            "apiVersion": "barekey.dev/v1alpha1",
            "kind": "BarekeyStage",
            "metadata": {
                "name": "production", "namespace": "shop", "uid": "2", "generation": 5,
                "creationTimestamp": "2026-01-01T00:00:00Z"
            },
            "spec": {"project": "backend"}
        });
        merge(&mut object, change);
        serde_json::from_value(object).unwrap()
    }

    fn merge(into: &mut Value, change: Value) {
        match (into, change) {
            (Value::Object(into), Value::Object(change)) => {
                for (key, value) in change {
                    merge(into.entry(key).or_insert(Value::Null), value);
                }
            }
            (into, change) => *into = change,
        }
    }

    fn deleting(finalizer: bool) -> Value {
        json!({"metadata": {
            "deletionTimestamp": "2026-01-02T00:00:00Z",
            "finalizers": if finalizer { vec![FINALIZER] } else { vec![] }
        }})
    }

    fn with(mut first: Value, second: Value) -> Value {
        merge(&mut first, second);
        first
    }

    fn refusal(plan: ProjectPlan) -> Finding {
        match plan {
            ProjectPlan::Refuse { finding, .. } => finding,
            other => panic!("{other:?}"),
        }
    }

    fn stage_refusal(plan: StagePlan) -> Finding {
        match plan {
            StagePlan::Refuse { finding, .. } => finding,
            other => panic!("{other:?}"),
        }
    }

    fn plan_one(project: &BarekeyProject) -> ProjectPlan {
        plan_project(project, [project], &organizations())
    }

    fn plan_one_stage(stage: &BarekeyStage) -> StagePlan {
        let project = project_from(json!({}));
        plan_stage(stage, Some(&project), [stage], &organizations())
    }

    #[test]
    fn a_project_is_declared_under_its_name_unless_it_has_a_slug() {
        let slug_of = |project: &BarekeyProject| match plan_one(project) {
            ProjectPlan::Declare { declaration, .. } => declaration.slug.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(slug_of(&project_from(json!({}))), "backend");
        let slug = json!({"spec": {"slug": "api"}});
        assert_eq!(slug_of(&project_from(slug)), "api");
    }

    #[test]
    fn a_namespace_that_does_not_speak_for_the_organization_is_told_which_value_to_set() {
        let project = project_from(json!({"metadata": {"namespace": "other"}}));
        let finding = refusal(plan_one(&project));
        assert_eq!(finding.reason, Reason::OrganizationNotAllowed);
        assert!(
            finding.message.contains("organizations.acme.namespaces"),
            "{}",
            finding.message
        );
    }

    #[test]
    fn an_unknown_organization_reads_the_same_as_one_that_is_not_allowed() {
        let message = |organization: &str| {
            let project = project_from(json!({"spec": {"organization": organization}}));
            refusal(plan_one(&project))
                .message
                .replace(organization, "X")
        };
        assert_eq!(message("umbrella"), message("nothing-of-that-name"));
    }

    #[test]
    fn of_two_projects_of_one_slug_the_older_wins_and_of_equal_age_the_first_name() {
        let first = project_from(json!({"metadata": {"name": "a"}, "spec": {"slug": "x"}}));
        let second = project_from(json!({"metadata": {"name": "b"}, "spec": {"slug": "x"}}));
        let oldest = project_from(json!({
            "metadata": {"name": "z", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"slug": "x"}
        }));
        let all = [&second, &first, &oldest];
        let plan = |project| plan_project(project, all, &organizations());
        assert!(matches!(plan(&oldest), ProjectPlan::Declare { .. }));
        for loser in [&first, &second] {
            let finding = refusal(plan(loser));
            assert_eq!(finding.reason, Reason::SlugTaken);
            assert!(
                finding.message.contains("BarekeyProject z"),
                "{}",
                finding.message
            );
        }
        let two = [&second, &first];
        assert!(matches!(
            plan_project(&first, two, &organizations()),
            ProjectPlan::Declare { .. }
        ));
        assert_eq!(
            refusal(plan_project(&second, two, &organizations())).reason,
            Reason::SlugTaken
        );
    }

    #[test]
    fn resources_of_another_namespace_or_organization_do_not_take_a_slug() {
        let project = project_from(json!({}));
        let elsewhere = project_from(json!({"metadata": {
            "name": "a", "namespace": "other", "creationTimestamp": "2025-01-01T00:00:00Z"
        }, "spec": {"slug": "backend"}}));
        let foreign = project_from(json!({"metadata": {
            "name": "b", "creationTimestamp": "2025-01-01T00:00:00Z"
        }, "spec": {"slug": "backend", "organization": "umbrella"}}));
        assert!(matches!(
            plan_project(&project, [&elsewhere, &foreign], &organizations()),
            ProjectPlan::Declare { .. }
        ));
    }

    #[test]
    fn the_finalizer_follows_the_policy() {
        let change = |policy: &str, finalizer: bool| {
            let project = project_from(json!({
                "metadata": {"finalizers": if finalizer { vec![FINALIZER, "other"] } else { vec!["other"] }},
                "spec": {"deletionPolicy": policy}
            }));
            match plan_one(&project) {
                ProjectPlan::Declare { finalizer, .. } => finalizer,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(change("Delete", false), FinalizerChange::Add);
        assert_eq!(change("Delete", true), FinalizerChange::Keep);
        assert_eq!(change("Retain", true), FinalizerChange::Remove);
        assert_eq!(change("Retain", false), FinalizerChange::Keep);
    }

    #[test]
    fn a_refused_resource_gets_no_finalizer_and_loses_one_that_it_does_not_want() {
        let change = |policy: &str, finalizer: bool| {
            let project = project_from(json!({
                "metadata": {"namespace": "other", "finalizers": if finalizer { vec![FINALIZER] } else { vec![] }},
                "spec": {"deletionPolicy": policy}
            }));
            match plan_one(&project) {
                ProjectPlan::Refuse { finalizer, .. } => finalizer,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(change("Delete", false), FinalizerChange::Keep);
        assert_eq!(change("Retain", true), FinalizerChange::Remove);
    }

    #[test]
    fn a_deleted_project_deletes_in_the_vault_under_the_policy_delete_alone() {
        let plan = |policy: &str, finalizer: bool| {
            plan_one(&project_from(with(
                deleting(finalizer),
                json!({"spec": {"deletionPolicy": policy}}),
            )))
        };
        assert!(matches!(
            plan("Delete", true),
            ProjectPlan::Delete {
                confirmed: false,
                ..
            }
        ));
        assert!(matches!(plan("Retain", true), ProjectPlan::Release));
        assert!(matches!(plan("Retain", false), ProjectPlan::Nothing));
    }

    #[test]
    fn a_confirmation_counts_when_it_names_the_slug() {
        let confirmed = |annotation: &str| {
            let project = project_from(with(
                deleting(true),
                json!({
                    "metadata": {"annotations": {CONFIRM_DELETE_ANNOTATION: annotation}},
                    "spec": {"deletionPolicy": "Delete", "slug": "api"}
                }),
            ));
            match plan_one(&project) {
                ProjectPlan::Delete { confirmed, .. } => confirmed,
                other => panic!("{other:?}"),
            }
        };
        assert!(confirmed("api"));
        assert!(!confirmed("backend"));
        assert!(!confirmed("true"));
    }

    #[test]
    fn deleting_what_an_older_resource_declares_or_what_is_not_allowed_leaves_the_vault_alone() {
        let younger = project_from(with(
            deleting(true),
            json!({"spec": {"deletionPolicy": "Delete", "slug": "x"}}),
        ));
        let older = project_from(json!({
            "metadata": {"name": "a", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"slug": "x"}
        }));
        assert!(matches!(
            plan_project(&younger, [&younger, &older], &organizations()),
            ProjectPlan::Release
        ));
        let foreign = project_from(with(
            deleting(true),
            json!({"metadata": {"namespace": "other"}, "spec": {"deletionPolicy": "Delete"}}),
        ));
        assert!(matches!(plan_one(&foreign), ProjectPlan::Release));
    }

    #[test]
    fn a_stage_is_declared_with_its_access_and_the_default_namespace_is_its_own() {
        let stage = stage_from(json!({"spec": {
            "protected": true,
            "access": [
                {"serviceAccounts": ["api", "worker"]},
                {"namespace": "ops", "serviceAccounts": ["cron"], "variables": ["DB_*", "URL"]}
            ]
        }}));
        let StagePlan::Declare { declaration, .. } = plan_one_stage(&stage) else {
            panic!("not declared");
        };
        assert_eq!(declaration.protected, Some(true));
        assert_eq!(declaration.project.as_str(), "backend");
        assert_eq!(declaration.slug.as_str(), "production");
        let [own, foreign] = declaration.access.as_slice() else {
            panic!("{:?}", declaration.access);
        };
        assert_eq!(own.namespace.as_str(), "shop");
        assert_eq!(own.service_accounts.len(), 2);
        assert_eq!(own.variables, None);
        assert_eq!(foreign.namespace.as_str(), "ops");
        assert_eq!(foreign.variables.as_ref().unwrap().len(), 2);
    }

    #[test]
    fn a_stage_without_its_project_says_which_one_is_missing() {
        let stage = stage_from(json!({}));
        let finding = stage_refusal(plan_stage(&stage, None, [&stage], &organizations()));
        assert_eq!(finding.reason, Reason::ProjectNotFound);
        assert!(finding.message.contains("BarekeyProject backend"));
    }

    #[test]
    fn a_stage_of_a_project_that_lost_its_slug_is_not_declared() {
        let stage = stage_from(json!({}));
        for reason in ["SlugTaken", "NotOwned"] {
            let project = project_from(json!({"status": {"conditions": [{
                "type": "Ready", "status": "False", "reason": reason, "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z"
            }]}}));
            let plan = plan_stage(&stage, Some(&project), [&stage], &organizations());
            assert_eq!(
                stage_refusal(plan).reason,
                Reason::ProjectNotReady,
                "{reason}"
            );
        }
    }

    #[test]
    fn of_two_stages_of_one_slug_the_older_wins() {
        let older = stage_from(json!({
            "metadata": {"name": "a", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"slug": "production"}
        }));
        let younger = stage_from(json!({}));
        let project = project_from(json!({}));
        let plan = |stage| plan_stage(stage, Some(&project), [&younger, &older], &organizations());
        assert!(matches!(plan(&older), StagePlan::Declare { .. }));
        assert_eq!(stage_refusal(plan(&younger)).reason, Reason::SlugTaken);
    }

    #[test]
    fn a_stage_of_another_project_does_not_take_the_slug() {
        let stage = stage_from(json!({}));
        let other = stage_from(json!({
            "metadata": {"name": "a", "creationTimestamp": "2025-01-01T00:00:00Z"},
            "spec": {"slug": "production", "project": "frontend"}
        }));
        let project = project_from(json!({}));
        assert!(matches!(
            plan_stage(&stage, Some(&project), [&stage, &other], &organizations()),
            StagePlan::Declare { .. }
        ));
    }

    #[test]
    fn a_deleted_stage_is_found_by_its_path_when_its_project_went_first() {
        let stage = stage_from(with(
            deleting(true),
            json!({
                "spec": {"deletionPolicy": "Delete"},
                "status": {"path": "acme/backend/production"}
            }),
        ));
        let StagePlan::Delete { path, confirmed } =
            plan_stage(&stage, None, [&stage], &organizations())
        else {
            panic!("not deleted");
        };
        assert_eq!(path.to_string(), "acme/backend/production");
        assert!(!confirmed);
    }

    #[test]
    fn a_deleted_stage_that_never_was_in_the_vault_goes() {
        let stage = stage_from(with(
            deleting(true),
            json!({"spec": {"deletionPolicy": "Delete"}}),
        ));
        assert!(matches!(
            plan_stage(&stage, None, [&stage], &organizations()),
            StagePlan::Release
        ));
    }

    #[test]
    fn a_deleted_stage_whose_path_is_of_an_organization_that_is_not_allowed_goes_alone() {
        let stage = stage_from(with(
            deleting(true),
            json!({
                "spec": {"deletionPolicy": "Delete"},
                "status": {"path": "umbrella/backend/production"}
            }),
        ));
        assert!(matches!(plan_one_stage(&stage), StagePlan::Release));
    }

    #[test]
    fn a_path_has_three_slugs() {
        assert!(StagePath::parse("a/b/c").is_some());
        for bad in ["", "a/b", "a/b/c/d", "a//c", "A/b/c"] {
            assert!(StagePath::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_missing_organization_comes_with_the_command_that_makes_it() {
        let command = bootstrap_command(
            &"barekey".parse().unwrap(),
            "service/barekey",
            &"acme".parse().unwrap(),
        );
        let answer = Answer::Refused(DeclarationRefusal::NoOrganization("acme".parse().unwrap()));
        let finding = judge_project(&answer, &command);
        assert_eq!(finding.reason, Reason::OrganizationNotFound);
        assert!(finding.message.contains(
            "kubectl exec -n barekey service/barekey -- /barekey-operator admin bootstrap --organization acme"
        ));
    }

    #[test]
    fn a_foreign_slug_does_not_say_whose_it_is() {
        let answer = Answer::Refused(DeclarationRefusal::NotOwned {
            what: "the project shop".to_owned(),
            owner: "another namespace",
        });
        let finding = judge_project(&answer, "");
        assert_eq!(finding.reason, Reason::NotOwned);
        assert_eq!(
            finding.message,
            "the project shop belongs to another namespace: make this resource anew with another slug"
        );
    }

    #[test]
    fn variables_that_would_be_lost_wait_for_the_annotation() {
        assert_eq!(judge_deletion(&Deletion::Done, "production"), None);
        let finding =
            judge_deletion(&Deletion::NeedsConfirmation { variables: 2 }, "production").unwrap();
        assert_eq!(finding.reason, Reason::AwaitingConfirmation);
        assert!(
            finding
                .message
                .contains("barekey.dev/confirm-delete: production")
        );
        assert!(finding.message.starts_with("2 variables would"));
        let one = Deletion::NeedsConfirmation { variables: 1 };
        let finding = judge_deletion(&one, "production").unwrap();
        assert!(finding.message.starts_with("1 variable would"));
    }

    fn time(text: &str) -> Time {
        Time(text.parse().unwrap())
    }

    fn summary(conditions: &[Condition]) -> Vec<(&str, &str, &str)> {
        conditions
            .iter()
            .map(|condition| {
                (
                    condition.type_.as_str(),
                    condition.status.as_str(),
                    condition.reason.as_str(),
                )
            })
            .collect()
    }

    #[test]
    fn ready_waiting_and_stuck_read_as_kstatus_expects() {
        let conditions_of = |reason| {
            let status = project_status(
                &project_from(json!({})),
                &Finding::new(reason, "m"),
                None,
                time("2026-01-01T00:00:00Z"),
            );
            assert_eq!(status.observed_generation, Some(3));
            status.conditions
        };
        assert_eq!(
            summary(&conditions_of(Reason::Ready)),
            [
                ("Ready", "True", "Ready"),
                ("Reconciling", "False", "Ready"),
                ("Stalled", "False", "Ready")
            ]
        );
        assert_eq!(
            summary(&conditions_of(Reason::OrganizationNotFound)),
            [
                ("Ready", "False", "OrganizationNotFound"),
                ("Reconciling", "True", "OrganizationNotFound"),
                ("Stalled", "False", "OrganizationNotFound")
            ]
        );
        assert_eq!(
            summary(&conditions_of(Reason::NotOwned)),
            [
                ("Ready", "False", "NotOwned"),
                ("Reconciling", "False", "NotOwned"),
                ("Stalled", "True", "NotOwned")
            ]
        );
    }

    #[test]
    fn the_time_of_a_condition_changes_with_its_status_alone() {
        let project = project_from(json!({}));
        let first = time("2026-01-01T00:00:00Z");
        let later = time("2026-01-01T01:00:00Z");
        let waiting = Finding::new(Reason::OrganizationNotFound, "m");
        let status = project_status(&project, &waiting, None, first.clone());
        let mut again = project.clone();
        again.status = Some(status.clone());
        let unavailable = Finding::new(Reason::StorageUnavailable, "n");
        let next = project_status(&again, &unavailable, None, later.clone());
        assert!(
            next.conditions
                .iter()
                .all(|one| one.last_transition_time == first)
        );
        again.status = Some(next);
        let ready = project_status(
            &again,
            &Finding::new(Reason::Ready, "m"),
            None,
            later.clone(),
        );
        let times: Vec<_> = ready
            .conditions
            .iter()
            .map(|one| one.last_transition_time.clone())
            .collect();
        assert_eq!(times, [later.clone(), later, first]);
    }

    #[test]
    fn the_same_finding_makes_the_same_status_so_that_nothing_is_written() {
        let declared = DeclaredStage {
            id: "stg_1".parse().unwrap(),
            revision: 4,
            variables: 2,
            protected: true,
        };
        let path = StagePath::parse("acme/backend/production").unwrap();
        let finding = Finding::new(Reason::Ready, "m");
        let mut stage = stage_from(json!({}));
        let first = stage_status(
            &stage,
            &finding,
            Some((&path, &declared)),
            time("2026-01-01T00:00:00Z"),
        );
        stage.status = Some(first.clone());
        let second = stage_status(
            &stage,
            &finding,
            Some((&path, &declared)),
            time("2026-01-01T05:00:00Z"),
        );
        assert_eq!(first, second);
    }

    #[test]
    fn what_the_vault_said_is_kept_while_it_cannot_be_asked_and_dropped_when_it_is_not_ours() {
        let stage = stage_from(json!({"status": {"id": "stg_1", "path": "a/b/c", "revision": 7}}));
        let after = |reason| {
            stage_status(
                &stage,
                &Finding::new(reason, "m"),
                None,
                time("2026-01-01T00:00:00Z"),
            )
        };
        assert_eq!(after(Reason::StorageUnavailable).revision, Some(7));
        assert_eq!(
            after(Reason::AwaitingConfirmation).id.as_deref(),
            Some("stg_1")
        );
        assert_eq!(after(Reason::SlugTaken).id, None);
        assert_eq!(after(Reason::NotOwned).path, None);
    }

    #[test]
    fn a_status_names_at_most_a_hundred_stages_and_counts_all() {
        let declared = DeclaredProject {
            id: "prj_1".parse().unwrap(),
            stages: (0..150).map(|n| format!("s{n}").parse().unwrap()).collect(),
            key_version: 1,
            key_created_at_ms: 1_767_225_600_123,
        };
        let status = project_status(
            &project_from(json!({})),
            &Finding::new(Reason::Ready, "m"),
            Some(&declared),
            time("2026-01-01T00:00:00Z"),
        );
        assert_eq!(status.stages.len(), 100);
        assert_eq!(status.stage_count, Some(150));
        assert_eq!(status.key_created_at, Some(time("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn access_ends_unless_the_resource_counts_or_nothing_can_be_said_of_it() {
        for reason in [
            Reason::OrganizationNotAllowed,
            Reason::NotOwned,
            Reason::SlugTaken,
            Reason::ProjectNotFound,
            Reason::ProjectNotReady,
            Reason::AwaitingConfirmation,
            Reason::InvalidSpec,
        ] {
            assert!(reason.ends_access(), "{reason:?}");
        }
        for reason in [
            Reason::Ready,
            Reason::StorageUnavailable,
            Reason::OrganizationNotFound,
        ] {
            assert!(!reason.ends_access(), "{reason:?}");
        }
    }
}
