//! Who asks, and what they may do: one pure function a right, and a proof that only it can make.

use std::fmt;

use crate::domain::names::{
    NamePattern, Namespace, ObjectName, OrganizationId, OrganizationSlug, ProjectId, StageId,
    TokenId, VariableName,
};
use crate::domain::reference::Allowance;
use crate::domain::variable::UnknownWordError;

/// What a caller may do in an organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Everything.
    Owner,
    /// Everything but transferring and deleting the organization.
    Admin,
    /// Writes stages that are not protected, reads the others.
    Developer,
    /// Reads every stage.
    Operator,
    /// Reads stages that are not protected.
    Viewer,
    /// Sees usage alone.
    Billing,
}

impl Role {
    /// The word on the wire and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Operator => "operator",
            Self::Viewer => "viewer",
            Self::Billing => "billing",
        }
    }

    /// Whether the role reads values of a stage.
    pub fn reads(self, protected: bool) -> bool {
        match self {
            Self::Owner | Self::Admin | Self::Developer | Self::Operator => true,
            Self::Viewer => !protected,
            Self::Billing => false,
        }
    }

    /// Whether the role writes values of a stage.
    pub fn writes(self, protected: bool) -> bool {
        match self {
            Self::Owner | Self::Admin => true,
            Self::Developer => !protected,
            Self::Operator | Self::Viewer | Self::Billing => false,
        }
    }

    /// Whether the role makes projects, stages, members and tokens.
    pub fn manages(self) -> bool {
        match self {
            Self::Owner | Self::Admin => true,
            Self::Developer | Self::Operator | Self::Viewer | Self::Billing => false,
        }
    }

    /// Whether the role sees which projects, stages and variables there are.
    pub fn sees_structure(self) -> bool {
        match self {
            Self::Owner | Self::Admin | Self::Developer | Self::Operator | Self::Viewer => true,
            Self::Billing => false,
        }
    }
}

impl std::str::FromStr for Role {
    type Err = UnknownWordError;

    fn from_str(word: &str) -> Result<Self, UnknownWordError> {
        match word {
            "owner" => Ok(Self::Owner),
            "admin" => Ok(Self::Admin),
            "developer" | "member" => Ok(Self::Developer),
            "operator" => Ok(Self::Operator),
            "viewer" => Ok(Self::Viewer),
            "billing" => Ok(Self::Billing),
            other => Err(UnknownWordError {
                what: "role",
                word: other.chars().take(64).collect(),
                expected: "owner, admin, developer, operator, viewer or billing",
            }),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a credential is good: its whole organization, one project, or one stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every project of the organization.
    Organization,
    /// Every stage of one project.
    Project(ProjectId),
    /// One stage.
    Stage(ProjectId, StageId),
}

impl Scope {
    /// Whether the scope covers a stage.
    pub fn covers_stage(&self, project: &ProjectId, stage: &StageId) -> bool {
        match self {
            Self::Organization => true,
            Self::Project(only) => only == project,
            Self::Stage(only_project, only) => only_project == project && only == stage,
        }
    }

    /// Whether the scope covers a project as a whole, so that stages may be made in it.
    pub fn covers_project(&self, project: &ProjectId) -> bool {
        match self {
            Self::Organization => true,
            Self::Project(only) => only == project,
            Self::Stage(..) => false,
        }
    }
}

/// An API token that was recognised.
#[derive(Debug, Clone)]
pub struct TokenCaller {
    /// Its id.
    pub token: TokenId,
    /// What people call it.
    pub name: String,
    /// The organization that it belongs to.
    pub organization: OrganizationId,
    /// That organization's slug.
    pub organization_slug: OrganizationSlug,
    /// What it may do.
    pub role: Role,
    /// Where it may do it.
    pub scope: Scope,
    /// When it ends, in milliseconds since 1970; `None` for never.
    pub expires_at_ms: Option<i64>,
    /// When it was last used before this call.
    pub last_used_at_ms: Option<i64>,
    /// The credential epoch that this was read at (what a later check compares).
    pub epoch: i64,
}

/// A living pod that proved itself with a token bound to it.
#[derive(Debug, Clone)]
pub struct PodCaller {
    /// Its namespace.
    pub namespace: Namespace,
    /// The service account that it runs as.
    pub service_account: ObjectName,
    /// Its name.
    pub pod: ObjectName,
    /// Its UID.
    pub uid: String,
    /// The allowances in its spec, as the API server has it; empty for a pod that was never injected.
    pub allowances: Vec<Allowance>,
}

/// Who asks.
#[derive(Debug, Clone)]
pub enum Caller {
    /// An API token.
    Token(TokenCaller),
    /// A pod; it may use the pod routes alone.
    Pod(PodCaller),
}

/// Who acts, as the audit trail names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `token`, `pod`, `controller`, `administrator` or `nobody`.
    pub kind: &'static str,
    /// The id: of the token; `namespace/serviceaccount` of the pod; namespace of the resource.
    pub id: String,
    /// What people know it by: the token's name; `namespace/pod` of the pod.
    pub name: String,
}

impl Caller {
    /// The actor for the audit trail.
    pub fn actor(&self) -> Actor {
        match self {
            Self::Token(token) => Actor {
                kind: "token",
                id: token.token.to_string(),
                name: token.name.clone(),
            },
            Self::Pod(pod) => Actor {
                kind: "pod",
                id: format!("{}/{}", pod.namespace, pod.service_account),
                name: format!("{}/{}", pod.namespace, pod.pod),
            },
        }
    }
}

/// The stage that something is asked of: what decides.
#[derive(Debug, Clone)]
pub struct StageFacts {
    /// Its organization.
    pub organization: OrganizationId,
    /// Its project.
    pub project: ProjectId,
    /// Itself.
    pub stage: StageId,
    /// Whether it is protected.
    pub protected: bool,
}

/// Why a caller may not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The credential belongs to another organization.
    #[error("this credential belongs to another organization")]
    OtherOrganization,
    /// The credential is cut to another project or stage.
    #[error(
        "the scope of this token does not cover that; use a token of the organization, or of this project and stage"
    )]
    OutOfScope,
    /// The role is too small.
    #[error("the role {role} may not {act}; {needs} may")]
    RoleTooSmall {
        /// The role that the caller has.
        role: Role,
        /// What was tried.
        act: &'static str,
        /// Which roles may.
        needs: &'static str,
    },
    /// A pod asked on a route that is not for pods.
    #[error(
        "a pod's token is good for POST /v1/pod/values and GET /v1/cli/session alone; use an API token"
    )]
    PodElsewhere,
    /// The credential was revoked or came to its end while it was used.
    #[error("the credential was revoked or expired; use another token")]
    CredentialEnded,
}

/// Proof that a caller may read values of one stage. Made by [`may_read`] alone.
#[derive(Debug)]
pub struct StageReader(StageId);

/// Proof that a caller may write values of one stage. Made by [`may_write`] alone.
#[derive(Debug)]
pub struct StageWriter(StageId);

/// Proof that a caller may make projects, stages or tokens. Made by [`may_manage`] alone.
#[derive(Debug)]
pub struct Manager(OrganizationId);

impl StageReader {
    /// The stage that may be read.
    pub fn stage(&self) -> &StageId {
        &self.0
    }
}

impl StageWriter {
    /// The stage that may be written.
    pub fn stage(&self) -> &StageId {
        &self.0
    }
}

impl Manager {
    /// The organization that may be managed.
    pub fn organization(&self) -> &OrganizationId {
        &self.0
    }
}

fn token_of(caller: &Caller) -> Result<&TokenCaller, Refusal> {
    match caller {
        Caller::Token(token) => Ok(token),
        Caller::Pod(_) => Err(Refusal::PodElsewhere),
    }
}

fn within<'a>(caller: &'a Caller, facts: &StageFacts) -> Result<&'a TokenCaller, Refusal> {
    let token = token_of(caller)?;
    if token.organization != facts.organization {
        return Err(Refusal::OtherOrganization);
    }
    if !token.scope.covers_stage(&facts.project, &facts.stage) {
        return Err(Refusal::OutOfScope);
    }
    Ok(token)
}

/// What is tried on a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StageAct {
    /// Reading values.
    Read,
    /// Writing values.
    Write,
    /// Seeing which variables there are.
    List,
}

impl StageAct {
    /// What a role that is too small is refused with. One that does not see which stages there are is told the same of
    /// every stage, protected or not, there or not.
    fn too_small(self, role: Role, protected: bool) -> Refusal {
        let (act, needs) = match (self, protected && role.sees_structure()) {
            (Self::Read, true) => (
                "read values of a protected stage",
                "owner, admin, developer and operator",
            ),
            (Self::Read, false) => (
                "read values",
                "owner, admin, developer, operator and viewer",
            ),
            (Self::Write, true) => ("write values of a protected stage", "owner and admin"),
            (Self::Write, false) => ("write values", "owner, admin and developer"),
            (Self::List, true) => (
                "list variables of this stage",
                "owner, admin, developer and operator",
            ),
            (Self::List, false) => (
                "list variables of this stage",
                "owner, admin, developer, operator and viewer",
            ),
        };
        Refusal::RoleTooSmall { role, act, needs }
    }
}

/// What a token is refused with for a stage that is not there: the same as for one that is. `None` for those who may know
/// that it is not there. `project` is the project that was named, if that one is there.
pub fn refusal_for_absent(
    token: &TokenCaller,
    act: StageAct,
    project: Option<&ProjectId>,
) -> Option<Refusal> {
    let covered = match &token.scope {
        Scope::Organization => true,
        Scope::Project(only) => project == Some(only),
        Scope::Stage(..) => false,
    };
    if !covered {
        return Some(Refusal::OutOfScope);
    }
    (!token.role.sees_structure()).then(|| act.too_small(token.role, false))
}

/// Whether `caller` may read values of the stage.
///
/// # Errors
/// The [`Refusal`] that says what would pass.
pub fn may_read(caller: &Caller, facts: &StageFacts) -> Result<StageReader, Refusal> {
    let token = within(caller, facts)?;
    if token.role.reads(facts.protected) {
        return Ok(StageReader(facts.stage.clone()));
    }
    Err(StageAct::Read.too_small(token.role, facts.protected))
}

/// Whether `caller` may write values of the stage.
///
/// # Errors
/// The [`Refusal`] that says what would pass.
pub fn may_write(caller: &Caller, facts: &StageFacts) -> Result<StageWriter, Refusal> {
    let token = within(caller, facts)?;
    if token.role.writes(facts.protected) {
        return Ok(StageWriter(facts.stage.clone()));
    }
    Err(StageAct::Write.too_small(token.role, facts.protected))
}

/// Whether `caller` may see which variables a stage has (names and metadata, no values).
///
/// # Errors
/// The [`Refusal`] that says what would pass.
pub fn may_list_variables(caller: &Caller, facts: &StageFacts) -> Result<StageReader, Refusal> {
    let token = within(caller, facts)?;
    if token.role.reads(facts.protected) {
        return Ok(StageReader(facts.stage.clone()));
    }
    Err(StageAct::List.too_small(token.role, facts.protected))
}

/// Whether `caller` may make projects (`project` is `None`), or stages in `project`.
///
/// # Errors
/// The [`Refusal`] that says what would pass.
pub fn may_manage(
    caller: &Caller,
    organization: &OrganizationId,
    project: Option<&ProjectId>,
) -> Result<Manager, Refusal> {
    let token = token_of(caller)?;
    if token.organization != *organization {
        return Err(Refusal::OtherOrganization);
    }
    let covered = match project {
        Some(project) => token.scope.covers_project(project),
        None => token.scope == Scope::Organization,
    };
    if !covered {
        return Err(Refusal::OutOfScope);
    }
    if token.role.manages() {
        return Ok(Manager(organization.clone()));
    }
    Err(Refusal::RoleTooSmall {
        role: token.role,
        act: "make projects and stages",
        needs: "owner and admin",
    })
}

/// What a stage grants to service accounts of one namespace. Stored beside the stage; declared by a BarekeyStage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessGrant {
    /// The namespace of the service accounts.
    pub namespace: Namespace,
    /// Exact names.
    pub service_accounts: Vec<ObjectName>,
    /// What they may read; `None` for every variable of the stage.
    pub variables: Option<Vec<NamePattern>>,
}

/// Whether `grants` let a service account read a variable.
pub fn grants_variable(
    grants: &[AccessGrant],
    namespace: &Namespace,
    service_account: &ObjectName,
    name: &VariableName,
) -> bool {
    grants
        .iter()
        .filter(|grant| {
            grant.namespace == *namespace && grant.service_accounts.contains(service_account)
        })
        .any(|grant| {
            grant
                .variables
                .as_ref()
                .is_none_or(|patterns| patterns.iter().any(|pattern| pattern.covers(name)))
        })
}

/// Whether `grants` let a service account read anything at all.
pub fn grants_anything(
    grants: &[AccessGrant],
    namespace: &Namespace,
    service_account: &ObjectName,
) -> bool {
    grants.iter().any(|grant| {
        grant.namespace == *namespace && grant.service_accounts.contains(service_account)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(protected: bool) -> StageFacts {
        StageFacts {
            organization: "org_1".parse().unwrap(),
            project: "prj_1".parse().unwrap(),
            stage: "stg_1".parse().unwrap(),
            protected,
        }
    }

    fn token(role: Role, scope: Scope) -> Caller {
        Caller::Token(TokenCaller {
            token: "tok_1".parse().unwrap(),
            name: "ci".to_owned(),
            organization: "org_1".parse().unwrap(),
            organization_slug: "acme".parse().unwrap(),
            role,
            scope,
            expires_at_ms: None,
            last_used_at_ms: None,
            epoch: 0,
        })
    }

    #[test]
    fn each_role_reads_and_writes_what_the_table_says() {
        // role, reads open, writes open, reads protected, writes protected, manages
        let table = [
            (Role::Owner, true, true, true, true, true),
            (Role::Admin, true, true, true, true, true),
            (Role::Developer, true, true, true, false, false),
            (Role::Operator, true, false, true, false, false),
            (Role::Viewer, true, false, false, false, false),
            (Role::Billing, false, false, false, false, false),
        ];
        for (role, reads, writes, reads_protected, writes_protected, manages) in table {
            let caller = token(role, Scope::Organization);
            assert_eq!(may_read(&caller, &facts(false)).is_ok(), reads, "{role}");
            assert_eq!(may_write(&caller, &facts(false)).is_ok(), writes, "{role}");
            assert_eq!(
                may_read(&caller, &facts(true)).is_ok(),
                reads_protected,
                "{role}"
            );
            assert_eq!(
                may_write(&caller, &facts(true)).is_ok(),
                writes_protected,
                "{role}"
            );
            assert_eq!(
                may_manage(&caller, &"org_1".parse().unwrap(), None).is_ok(),
                manages,
                "{role}"
            );
        }
    }

    #[test]
    fn a_token_of_another_organization_is_refused_whatever_its_role() {
        let mut other = facts(false);
        other.organization = "org_2".parse().unwrap();
        assert_eq!(
            may_read(&token(Role::Owner, Scope::Organization), &other).unwrap_err(),
            Refusal::OtherOrganization
        );
    }

    #[test]
    fn a_token_cut_to_a_stage_reads_no_other_and_makes_nothing() {
        let here = Scope::Stage("prj_1".parse().unwrap(), "stg_1".parse().unwrap());
        let elsewhere = Scope::Stage("prj_1".parse().unwrap(), "stg_2".parse().unwrap());
        assert!(may_read(&token(Role::Owner, here.clone()), &facts(true)).is_ok());
        assert_eq!(
            may_read(&token(Role::Owner, elsewhere), &facts(true)).unwrap_err(),
            Refusal::OutOfScope
        );
        assert_eq!(
            may_manage(
                &token(Role::Owner, here),
                &"org_1".parse().unwrap(),
                Some(&"prj_1".parse().unwrap())
            )
            .unwrap_err(),
            Refusal::OutOfScope
        );
    }

    #[test]
    fn a_grant_counts_for_its_namespace_its_accounts_and_its_variables_alone() {
        let grants = [AccessGrant {
            namespace: "shop".parse().unwrap(),
            service_accounts: vec!["api".parse().unwrap()],
            variables: Some(vec!["DB_*".parse().unwrap()]),
        }];
        let asks = |namespace: &str, account: &str, name: &str| {
            grants_variable(
                &grants,
                &namespace.parse().unwrap(),
                &account.parse().unwrap(),
                &name.parse().unwrap(),
            )
        };
        assert!(asks("shop", "api", "DB_URL"));
        assert!(!asks("shop", "api", "URL"));
        assert!(!asks("shop", "web", "DB_URL"));
        assert!(!asks("other", "api", "DB_URL"));
    }
}
