//! What the audit trail holds: a closed list of actions, and records without values.

use crate::domain::access::Actor;

/// The way that a call came in. Stored as its word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The HTTP API.
    Api,
    /// The `barekey` command.
    Cli,
    /// A pod's agent.
    Pod,
    /// The controller, for a resource.
    Controller,
    /// `barekey-operator admin`.
    Admin,
}

impl Source {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Cli => "cli",
            Self::Pod => "pod",
            Self::Controller => "controller",
            Self::Admin => "admin",
        }
    }
}

/// Where a call came from, for the audit trail.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The way in.
    pub source: Source,
    /// The peer's address, without port; empty when there is none.
    pub ip: String,
    /// The `user-agent` header, cut to 256 bytes; empty when there is none.
    pub user_agent: String,
    /// The id of the request, as the answer names it.
    pub request_id: String,
}

/// What happened. Stored as its word; the list is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// An organization was made.
    OrganizationCreated,
    /// A project was made.
    ProjectCreated,
    /// What people call a project was changed.
    ProjectChanged,
    /// A project was deleted.
    ProjectDeleted,
    /// A stage was made.
    StageCreated,
    /// A stage was deleted.
    StageDeleted,
    /// A stage was protected or unprotected, or a resource took it over.
    StageChanged,
    /// A stage's access entries were set or taken away.
    AccessChanged,
    /// Variables were written or deleted.
    VariablesWritten,
    /// Values were read.
    VariablesRead,
    /// Tokens' reads of `public` values, counted for a minute.
    PublicRead,
    /// A read was refused to a known caller.
    ReadRefused,
    /// A change was refused to a known caller.
    WriteRefused,
    /// An API token was made.
    TokenCreated,
    /// An API token was revoked.
    TokenRevoked,
    /// A stored envelope did not open.
    EnvelopeRefused,
    /// Attempts without a known caller, counted for a minute.
    UnknownCallers,
    /// Refusals of one caller beyond those that are recorded one by one, counted for a minute.
    RefusalsCounted,
}

impl Action {
    /// Every action, in the order of the OpenAPI document.
    pub const ALL: [Self; 18] = [
        Self::OrganizationCreated,
        Self::ProjectCreated,
        Self::ProjectChanged,
        Self::ProjectDeleted,
        Self::StageCreated,
        Self::StageDeleted,
        Self::StageChanged,
        Self::AccessChanged,
        Self::VariablesWritten,
        Self::VariablesRead,
        Self::PublicRead,
        Self::ReadRefused,
        Self::WriteRefused,
        Self::TokenCreated,
        Self::TokenRevoked,
        Self::EnvelopeRefused,
        Self::UnknownCallers,
        Self::RefusalsCounted,
    ];

    /// Whether it stands for many that were counted.
    pub fn is_count(self) -> bool {
        matches!(
            self,
            Self::PublicRead | Self::UnknownCallers | Self::RefusalsCounted
        )
    }

    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OrganizationCreated => "organization.created",
            Self::ProjectCreated => "project.created",
            Self::ProjectChanged => "project.changed",
            Self::ProjectDeleted => "project.deleted",
            Self::StageCreated => "stage.created",
            Self::StageDeleted => "stage.deleted",
            Self::StageChanged => "stage.changed",
            Self::AccessChanged => "access.changed",
            Self::VariablesWritten => "variables.written",
            Self::VariablesRead => "variables.read",
            Self::PublicRead => "variables.read_public",
            Self::ReadRefused => "read.refused",
            Self::WriteRefused => "write.refused",
            Self::TokenCreated => "token.created",
            Self::TokenRevoked => "token.revoked",
            Self::EnvelopeRefused => "envelope.refused",
            Self::UnknownCallers => "callers.unknown",
            Self::RefusalsCounted => "refusals.counted",
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Allowed,
    /// Refused.
    Refused,
}

impl Outcome {
    /// The stored word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
        }
    }
}

/// One record, before it is given its place in the chain. Never holds a value.
#[derive(Debug, Clone)]
pub struct AuditEvent {
    /// What happened.
    pub action: Action,
    /// Who did it.
    pub actor: Actor,
    /// Slug of the project, if one was named.
    pub project: Option<String>,
    /// Slug of the stage, if one was named.
    pub stage: Option<String>,
    /// Names of variables, or ids of tokens.
    pub names: Vec<String>,
    /// Where the call came from.
    pub origin: Origin,
    /// How it ended.
    pub outcome: Outcome,
    /// What else to know, without values; for a write `NAME vVERSION sha256(envelope)` lines.
    pub detail: String,
}
