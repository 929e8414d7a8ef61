//! What resources declare: projects and stages that a namespace owns, and which namespaces speak for an organization.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

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

/// Why the vault does not take a declaration over. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeclarationRefusal {
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

/// Which namespaces speak for which organization: the chart's `organizations`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Organizations(BTreeMap<OrganizationSlug, OrganizationSpeakers>);

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct OrganizationSpeakers {
    #[serde(default)]
    namespaces: BTreeSet<Namespace>,
}

/// Why a text is not a map of organizations.
#[derive(Debug, thiserror::Error)]
#[error("the organizations are not JSON of the form {{\"acme\":{{\"namespaces\":[\"shop\"]}}}}")]
pub struct OrganizationsError(#[source] serde_json::Error);

impl Organizations {
    /// Whether resources of `namespace` may declare projects of `organization`.
    pub fn may_speak(&self, namespace: &Namespace, organization: &OrganizationSlug) -> bool {
        self.0
            .get(organization)
            .is_some_and(|speakers| speakers.namespaces.contains(namespace))
    }

    /// Whether resources of `namespace` may declare anything.
    pub fn know(&self, namespace: &str) -> bool {
        let mut all = self.0.values().flat_map(|speakers| &speakers.namespaces);
        all.any(|known| known.as_str() == namespace)
    }
}

impl std::str::FromStr for Organizations {
    type Err = OrganizationsError;

    fn from_str(text: &str) -> Result<Self, OrganizationsError> {
        serde_json::from_str(text).map_err(OrganizationsError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_speaks_for_the_organizations_that_list_it_alone() {
        let map: Organizations = r#"{"acme":{"namespaces":["shop"]},"idle":{}}"#.parse().unwrap();
        let speaks = |namespace: &str, organization: &str| {
            map.may_speak(&namespace.parse().unwrap(), &organization.parse().unwrap())
        };
        assert!(speaks("shop", "acme"));
        assert!(!speaks("other", "acme"));
        assert!(!speaks("shop", "idle"));
        assert!(!speaks("shop", "absent"));
    }

    #[test]
    fn a_map_with_a_misspelt_key_or_a_bad_slug_is_refused() {
        for bad in [
            r#"{"acme":{"namespace":["shop"]}}"#,
            r#"{"Acme":{"namespaces":["shop"]}}"#,
            r#"{"acme":{"namespaces":["Shop"]}}"#,
            r#"["acme"]"#,
        ] {
            assert!(bad.parse::<Organizations>().is_err(), "{bad}");
        }
    }
}
