//! What a reconcile found, in one word and one sentence, and the status that it becomes.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;

use super::StagePath;
use crate::domain::declaration::{DeclarationRefusal, DeclaredProject, DeclaredStage, Deletion};
use crate::domain::names::{NameError, Namespace, OrganizationSlug};
use crate::kubernetes::resources::{
    BarekeyProject, BarekeyProjectStatus, BarekeyStage, BarekeyStageStatus,
    CONFIRM_DELETE_ANNOTATION, STATUS_STAGES_MAX,
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
    /// A name in the spec is none, or its access makes more entries than the vault takes.
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
            Self::OrganizationNotFound
            | Self::OrganizationNotAllowed
            | Self::NotOwned
            | Self::SlugTaken
            | Self::ProjectNotFound
            | Self::ProjectNotReady
            | Self::AwaitingConfirmation
            | Self::InvalidSpec => true,
            Self::Ready | Self::StorageUnavailable => false,
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
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    pub(super) fn invalid(error: &NameError) -> Self {
        Self::new(Reason::InvalidSpec, error.to_string())
    }
}

pub(super) fn slug_taken(kind: &str, older: &ObjectMeta, what: &str) -> Finding {
    let name = older.name.as_deref().unwrap_or_default();
    Finding::new(
        Reason::SlugTaken,
        format!(
            "the older {kind} {name} of this namespace declares the same {what}: delete one of the two, or make this one anew with another slug"
        ),
    )
}

pub(super) fn too_much_access(entries: usize, entries_max: usize) -> Finding {
    Finding::new(
        Reason::InvalidSpec,
        format!(
            "spec.access has {entries} pairs of a service account and a variable, more than {entries_max}: write PREFIX_* for many variables, leave variables out for all of them, or list fewer service accounts"
        ),
    )
}

pub(super) fn organization_not_allowed(
    namespace: &Namespace,
    organization: &OrganizationSlug,
) -> Finding {
    Finding::new(
        Reason::OrganizationNotAllowed,
        format!(
            "the namespace {namespace} does not speak for the organization {organization}: an administrator adds it to the chart's value organizations.{organization}.namespaces"
        ),
    )
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
