//! Variables: what is asked, answered and refused. Reading is in `reads`, writing in `writes`.
use super::Unavailable;
use crate::domain::access::Refusal;
use crate::domain::names::{OrganizationSlug, ProjectSlug, StageSlug, VariableName};
use crate::domain::plaintext::Plaintext;
use crate::domain::variable::{DeclaredType, Kind, Visibility};

/// The stage that a request names.
#[derive(Debug, Clone)]
pub struct Target {
    /// May be left out; must be the credential's own.
    pub organization: Option<OrganizationSlug>,
    /// The project.
    pub project: ProjectSlug,
    /// The stage.
    pub stage: StageSlug,
}

/// One variable asked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Its name.
    pub name: VariableName,
    /// The type that the caller expects; another one is refused.
    pub declared_type: Option<DeclaredType>,
}

/// One variable, opened.
#[derive(Debug)]
pub struct Opened {
    /// Its name.
    pub name: VariableName,
    /// Its kind.
    pub kind: Kind,
    /// Its declared type.
    pub declared_type: DeclaredType,
    /// Its visibility.
    pub visibility: Visibility,
    /// The value.
    pub value: Plaintext,
}

/// What is known of a variable apart from its value.
#[derive(Debug, Clone)]
pub struct VariableMetadata {
    /// Its name.
    pub name: VariableName,
    /// Its kind.
    pub kind: Kind,
    /// Its declared type.
    pub declared_type: DeclaredType,
    /// Its visibility.
    pub visibility: Visibility,
    /// The newest version.
    pub version: i64,
    /// When it was first written, in milliseconds since 1970.
    pub created_at_ms: i64,
    /// When the newest version was written, in milliseconds since 1970.
    pub updated_at_ms: i64,
}

/// A value to write.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: VariableName,
    /// Its kind.
    pub kind: Kind,
    /// Its type; `None` keeps what is stored, or `string` for a new variable.
    pub declared_type: Option<DeclaredType>,
    /// Its visibility; `None` keeps what is stored, or `private` for a new variable.
    pub visibility: Option<Visibility>,
    /// The value, not yet normalised.
    pub value: Plaintext,
}

/// What a write does with names that exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteMode {
    /// Replaces them.
    Upsert,
    /// Refuses the whole write.
    CreateOnly,
}

/// One atomic change of a stage.
#[derive(Debug)]
pub struct Write {
    /// What to do with names that exist.
    pub mode: WriteMode,
    /// What to write.
    pub entries: Vec<Entry>,
    /// What to delete; a missing name is nothing.
    pub deletes: Vec<VariableName>,
}

/// What a write did, each list sorted.
#[derive(Debug, Clone, Default)]
pub struct Written {
    /// New names.
    pub created: Vec<VariableName>,
    /// Names with a new version.
    pub updated: Vec<VariableName>,
    /// Names that are gone.
    pub deleted: Vec<VariableName>,
}

/// Why values were not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Not for this caller.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No such project or stage.
    #[error("there is no stage {project}/{stage}")]
    NoEnvironment {
        /// The project.
        project: ProjectSlug,
        /// The stage.
        stage: StageSlug,
    },
    /// No such variable.
    #[error("there is no variable {name} in this stage")]
    NoVariable {
        /// Its name.
        name: VariableName,
    },
    /// Another type than the caller expects.
    #[error("the variable {name} is declared {declared}, not {expected}")]
    WrongType {
        /// Its name.
        name: VariableName,
        /// What it is.
        declared: DeclaredType,
        /// What the caller said.
        expected: DeclaredType,
    },
    /// The envelope, or what stands beside it, was altered in the database.
    #[error("the variable {name} does not open: its row was altered")]
    Altered {
        /// Its name, as stored.
        name: String,
    },
    /// The stage's row was altered in the database, or moved from elsewhere.
    #[error("the stage {project}/{stage} does not open: its row was altered")]
    AlteredStage {
        /// The project.
        project: ProjectSlug,
        /// The stage.
        stage: StageSlug,
    },
    /// The database, or the audit trail in it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Not for this caller.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No such project or stage.
    #[error("there is no stage {project}/{stage}")]
    NoEnvironment {
        /// The project.
        project: ProjectSlug,
        /// The stage.
        stage: StageSlug,
    },
    /// The request itself is wrong: a doubled name, a value that its type does not accept, too long, with NUL, nothing to do,
    /// a name that exists in mode `create_only`, or a stage that would become too large.
    #[error("{problem}")]
    Invalid {
        /// Which name, what is wrong, what would pass. Never a value.
        problem: String,
    },
    /// The stage, or the project's data key, was altered in the database: nothing can be sealed.
    #[error("{what} does not open: its row was altered")]
    Altered {
        /// The stage, or the data key of the project.
        what: String,
    },
    /// The database.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}
