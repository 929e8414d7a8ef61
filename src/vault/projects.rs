//! Projects and stages over HTTP.
use std::sync::Arc;

use super::reads::ConfirmError;
use super::records::Chain;
use super::writer::{Change, Verdict, Work};
use super::{Core, Unavailable, Vault, make_id, no_random};
use crate::crypto::keys::DataKey;
use crate::crypto::tokens::make_number;
use crate::domain::access::{AccessGrant, Actor, Caller, Refusal, Scope, TokenCaller, may_manage};
use crate::domain::audit::{Action, AuditEvent, Origin, Outcome};
use crate::domain::names::{
    DisplayName, LineageId, Namespace, ObjectName, OrganizationId, OrganizationSlug, ProjectId,
    ProjectSlug, SLUG_BYTES_MAX, StageId, StageSlug,
};
use crate::storage;
use crate::storage::projects::{AccessRow, DataKeyRow, ProjectRow, StageRow};

/// The stages that every project is made with: slug, name, whether protected.
const DEFAULT_STAGES: [(&str, &str, bool); 3] = [
    ("development", "Development", false),
    ("staging", "Staging", false),
    ("production", "Production", true),
];
/// The access pattern for every variable.
const EVERY_VARIABLE: &str = "*";

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

/// Access entries as the domain knows them: each stored one is a grant of its own.
pub(crate) fn access_grants(rows: Vec<AccessRow>) -> Result<Vec<AccessGrant>, storage::Error> {
    rows.into_iter()
        .map(|row| {
            let unexpected = || storage::Error::Unexpected {
                what: "an access entry that does not parse".to_owned(),
            };
            let variables = if row.pattern == EVERY_VARIABLE {
                None
            } else {
                Some(vec![row.pattern.parse().map_err(|_| unexpected())?])
            };
            Ok(AccessGrant {
                namespace: row.namespace.parse().map_err(|_| unexpected())?,
                service_accounts: vec![row.service_account.parse().map_err(|_| unexpected())?],
                variables,
            })
        })
        .collect()
}

/// Grants as access entries, sorted, each once.
pub(crate) fn access_rows(grants: &[AccessGrant]) -> Vec<AccessRow> {
    let mut rows: Vec<AccessRow> = grants
        .iter()
        .flat_map(|grant| {
            let patterns: Vec<String> = match &grant.variables {
                None => vec![EVERY_VARIABLE.to_owned()],
                Some(patterns) => patterns.iter().map(ToString::to_string).collect(),
            };
            grant.service_accounts.iter().flat_map(move |account| {
                patterns.clone().into_iter().map(move |pattern| AccessRow {
                    namespace: grant.namespace.to_string(),
                    service_account: account.to_string(),
                    pattern,
                })
            })
        })
        .collect();
    rows.sort();
    rows.dedup();
    rows
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

impl Vault {
    /// The organization's projects that the caller's scope covers, newest first.
    ///
    /// # Errors
    /// [`ListError`].
    pub async fn list_projects(
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
        Ok(rows
            .into_iter()
            .filter(|row| match &token.scope {
                Scope::Organization => true,
                Scope::Project(only) | Scope::Stage(only, _) => *only == row.id,
            })
            .map(|row| project_of(row, &token.organization_slug))
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
        let named = slug.map(ToString::to_string);
        let token = match organization_of(caller, organization)
            .and_then(|token| may_manage(caller, &token.organization, None).map(|_| token))
        {
            Ok(token) => token,
            Err(refusal) => {
                return Err(self
                    .refuse_creation(caller, origin, (named.as_deref(), None), refusal)
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
        let answer = self.0.queue.change(change).await?;
        if let Err(CreateError::Refused(refusal)) = answer {
            return Err(self
                .refuse_creation(caller, origin, (named.as_deref(), None), refusal)
                .await?);
        }
        answer
    }

    /// The project's stages, oldest first.
    ///
    /// # Errors
    /// [`ListError`].
    pub async fn list_stages(
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
            .into_iter()
            .filter(|row| token.scope.covers_stage(&row.project, &row.id))
            .map(stage_of)
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
        let named = slug.map(ToString::to_string);
        let target = (Some(project.as_str()), named.as_deref());
        let token = match organization_of(caller, organization) {
            Ok(token) => token,
            Err(refusal) => {
                return Err(self
                    .refuse_creation(caller, origin, target, refusal)
                    .await?);
            }
        };
        let change = CreateStage {
            caller: caller.clone(),
            token: token.clone(),
            origin: origin.clone(),
            project: project.clone(),
            name: name.clone(),
            slug: slug.cloned(),
        };
        let answer = self.0.queue.change(change).await?;
        if let Err(CreateError::Refused(refusal)) = answer {
            return Err(self
                .refuse_creation(caller, origin, target, refusal)
                .await?);
        }
        answer
    }

    async fn refuse_creation(
        &self,
        caller: &Caller,
        origin: &Origin,
        (project, stage): (Option<&str>, Option<&str>),
        refusal: Refusal,
    ) -> Result<CreateError, Unavailable> {
        let chain = match caller {
            Caller::Token(token) => Chain::Organization(token.organization.clone()),
            Caller::Pod(_) => Chain::Installation,
        };
        let event = AuditEvent {
            action: Action::WriteRefused,
            actor: caller.actor(),
            project: project.map(str::to_owned),
            stage: stage.map(str::to_owned),
            names: Vec::new(),
            origin: origin.clone(),
            outcome: Outcome::Refused,
            detail: refusal.to_string(),
        };
        self.record_event(chain, event).await?;
        Ok(CreateError::Refused(refusal))
    }
}

/// A project to be made.
pub(crate) struct NewProject<'a> {
    /// Its organization.
    pub(crate) organization: &'a OrganizationId,
    /// Its slug.
    pub(crate) slug: ProjectSlug,
    /// What people call it.
    pub(crate) name: &'a str,
    /// The namespace and the resource that own it; `None` over HTTP.
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
        let stage = StageRow {
            id: make_id("stg")?,
            project: project.id.clone(),
            organization: project.organization.clone(),
            slug: slug.parse().map_err(|_| storage::Error::Unexpected {
                what: "a default stage's slug".to_owned(),
            })?,
            name: name.to_owned(),
            is_default: true,
            protected,
            namespace: namespace.clone(),
            resource: None,
            revision: 0,
            epoch: 1,
            created_at: now,
            updated_at: now,
            variables: 0,
            project_slug: project.slug.clone(),
        };
        make_stage(work, actor, origin, &stage).await?;
    }
    Ok(Some(project))
}

/// Makes a stage; `false` when the slug is taken. Audited.
pub(crate) async fn make_stage(
    work: &mut Work,
    actor: &Actor,
    origin: &Origin,
    stage: &StageRow,
) -> Result<bool, storage::Error> {
    if !storage::projects::insert_stage(&mut work.db, stage).await? {
        return Ok(false);
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
    Ok(true)
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

struct CreateProject {
    core: Arc<Core>,
    token: TokenCaller,
    actor: Actor,
    origin: Origin,
    name: DisplayName,
    slug: Option<ProjectSlug>,
}

impl Change for CreateProject {
    type Answer = Result<Project, CreateError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.token.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        if credential_ended(work, &self.token).await? {
            return Ok(Verdict::TakeBack(Err(Refusal::CredentialEnded.into())));
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

struct CreateStage {
    caller: Caller,
    token: TokenCaller,
    origin: Origin,
    project: ProjectSlug,
    name: DisplayName,
    slug: Option<StageSlug>,
}

impl Change for CreateStage {
    type Answer = Result<Stage, CreateError>;

    fn chain(&self) -> Chain {
        Chain::Organization(self.token.organization.clone())
    }

    async fn run(&self, work: &mut Work) -> Result<Verdict<Self::Answer>, storage::Error> {
        let refused = |refusal: Refusal| Ok(Verdict::TakeBack(Err(refusal.into())));
        if credential_ended(work, &self.token).await? {
            return refused(Refusal::CredentialEnded);
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
                (Scope::Organization, Err(refusal)) => refused(refusal),
                (Scope::Project(_) | Scope::Stage(..), _) => refused(Refusal::OutOfScope),
            };
        };
        if let Err(refusal) = may_manage(&self.caller, organization, Some(&project.id)) {
            return refused(refusal);
        }
        let candidates = match &self.slug {
            Some(slug) => vec![slug.clone()],
            None => stage_slugs(self.name.as_str())?,
        };
        let mut last = String::new();
        for slug in candidates {
            last = slug.to_string();
            let stage = StageRow {
                id: make_id("stg")?,
                project: project.id.clone(),
                organization: organization.clone(),
                slug,
                name: self.name.as_str().to_owned(),
                is_default: false,
                protected: false,
                namespace: None,
                resource: None,
                revision: 0,
                epoch: 1,
                created_at: work.now_ms,
                updated_at: work.now_ms,
                variables: 0,
                project_slug: project.slug.clone(),
            };
            if make_stage(work, &self.caller.actor(), &self.origin, &stage).await? {
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

/// The slugs to try for a project's name: its letters and digits, then 4 random digits (16 tries), then 6 (16 tries).
fn project_slugs(name: &str) -> Result<Vec<ProjectSlug>, storage::Error> {
    let mut base: String = name
        .to_lowercase()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    if base.is_empty() {
        base.push_str("project");
    }
    let mut slugs = Vec::new();
    for digits in [4, 6] {
        for _ in 0..16 {
            slugs.push(suffixed(&base, digits)?);
        }
    }
    Ok(slugs)
}

/// The slugs to try for a stage's name: its words with `-` between them, then with 2 random digits, then with 4.
fn stage_slugs(name: &str) -> Result<Vec<StageSlug>, storage::Error> {
    let lower = name.to_lowercase();
    let words: Vec<&str> = lower
        .split(|character: char| !character.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .collect();
    let mut base = words.join("-");
    base.truncate(SLUG_BYTES_MAX);
    let base = match base.trim_end_matches('-') {
        "" => "stage",
        trimmed => trimmed,
    };
    let mut slugs = vec![parse_slug(base)?];
    for digits in [2, 4] {
        for _ in 0..16 {
            slugs.push(suffixed(base, digits)?);
        }
    }
    Ok(slugs)
}

/// A slug with that many random digits behind it, cut so that it fits.
fn suffixed<T: std::str::FromStr>(base: &str, digits: u32) -> Result<T, storage::Error> {
    let width = digits as usize;
    let number = make_number(10_u32.pow(digits)).map_err(no_random)?;
    let room = SLUG_BYTES_MAX - 1 - width;
    let base = base.get(..room).unwrap_or(base).trim_end_matches('-');
    parse_slug(&format!("{base}-{number:0width$}"))
}

fn parse_slug<T: std::str::FromStr>(text: &str) -> Result<T, storage::Error> {
    text.parse().map_err(|_| storage::Error::Unexpected {
        what: format!("no slug can be made of {text:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_slug_is_the_letters_and_digits_of_its_name_and_a_number() {
        let slugs = project_slugs("My Shop: 2nd edition!").unwrap();
        assert_eq!(slugs.len(), 32);
        assert!(slugs[0].as_str().starts_with("myshop2ndedition-"));
        assert_eq!(slugs[0].as_str().len(), "myshop2ndedition-".len() + 4);
        assert_eq!(slugs[31].as_str().len(), "myshop2ndedition-".len() + 6);
        assert!(
            project_slugs("§§").unwrap()[0]
                .as_str()
                .starts_with("project-")
        );
        for slug in project_slugs(&"a".repeat(120)).unwrap() {
            assert!(slug.as_str().len() <= SLUG_BYTES_MAX);
        }
    }

    #[test]
    fn a_stage_slug_has_its_words_with_dashes_between_and_a_number_only_on_a_clash() {
        let slugs = stage_slugs("  QA / Europe ").unwrap();
        assert_eq!(slugs[0].as_str(), "qa-europe");
        assert_eq!(slugs[1].as_str().len(), "qa-europe-00".len());
        assert_eq!(stage_slugs("ü").unwrap()[0].as_str(), "stage");
        let long = format!("{} b", "a".repeat(47));
        assert_eq!(stage_slugs(&long).unwrap()[0].as_str(), "a".repeat(47));
    }

    #[test]
    fn access_entries_and_grants_say_the_same() {
        let grants = [AccessGrant {
            namespace: "shop".parse().unwrap(),
            service_accounts: vec!["api".parse().unwrap(), "web".parse().unwrap()],
            variables: Some(vec!["DB_*".parse().unwrap(), "URL".parse().unwrap()]),
        }];
        let rows = access_rows(&grants);
        assert_eq!(rows.len(), 4);
        let again = access_grants(rows.clone()).unwrap();
        assert_eq!(access_rows(&again), rows);
    }
}
