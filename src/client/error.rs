//! Why a call gave no answer, and whether the next try may.

use std::path::PathBuf;

use crate::client::ConnectError;
use crate::domain::reference::FORM_VERSION;

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The file of the credential cannot be read, or is empty.
    #[error("cannot read the token in {}", path.display())]
    Credential {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The credential holds a character that no header can carry.
    #[error("the token is not one: it holds a line break or another character that no token has")]
    MalformedCredential,
    /// No connection came about; the server has not seen the call.
    #[error("cannot {what}: no connection to {authority}")]
    Unreachable {
        /// What was asked.
        what: String,
        /// The server.
        authority: String,
        /// Why.
        source: Box<ConnectError>,
    },
    /// The connection broke, or time ran out, after the call was sent.
    #[error("cannot {what}: {authority} did not answer{}", if *changes { ", and may or may not have done it" } else { "" })]
    Unanswered {
        /// What was asked.
        what: String,
        /// The server.
        authority: String,
        /// Whether the call changes something.
        changes: bool,
        /// Why.
        source: Box<ConnectError>,
    },
    /// The server refused.
    #[error("cannot {what}: {message} ({code}, request {request_id})")]
    Refused {
        /// What was asked.
        what: String,
        /// The status.
        status: u16,
        /// The API's code.
        code: String,
        /// The server's words.
        message: String,
        /// The id of the request.
        request_id: String,
    },
    /// The answer is in a form of another release.
    #[error("the server answers in version {v}, and this program knows version {FORM_VERSION}")]
    UnknownVersion {
        /// The version.
        v: u32,
    },
    /// The answer is not one of this API.
    #[error(
        "cannot {what}: {authority} answered {status} with something that is not of the Barekey API; is this its address?"
    )]
    Foreign {
        /// What was asked.
        what: String,
        /// The server.
        authority: String,
        /// The status.
        status: u16,
    },
}

impl ClientError {
    /// Whether the same call may pass a little later.
    pub(super) fn is_passing(&self, changes: bool) -> bool {
        match self {
            Self::Unreachable { source, .. } => source.is_passing(),
            Self::Unanswered { source, .. } => !changes && source.is_passing(),
            Self::Refused { status, .. } | Self::Foreign { status, .. } => {
                matches!(status, 429 | 503)
            }
            Self::Credential { .. } | Self::MalformedCredential | Self::UnknownVersion { .. } => {
                false
            }
        }
    }

    /// Whether the server's certificate does not pass.
    pub fn is_distrust(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.is_distrust())
    }

    /// Whether a call that only reads may pass a little later.
    pub fn is_passing_for_reads(&self) -> bool {
        self.is_passing(false)
    }

    /// Whether the server has not seen the call.
    pub(super) fn is_unsent(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// Whether the server itself said no.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether the server did not take the credential.
    pub(super) fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }
}
