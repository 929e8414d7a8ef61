//! From the vault's errors to what a caller is told: one code, one status, one message. No `_` arm, so that a new error is
//! decided here before it compiles.

use std::error::Error;
use std::sync::Arc;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::domain::access::Refusal;
use crate::domain::causes::with_causes;
use crate::domain::names::NameError;
use crate::domain::variable::UnknownWordError;
use crate::vault::Unavailable;
use crate::vault::credentials::AuthenticateError;
use crate::vault::pods::PodReadError;
use crate::vault::projects::{CreateError, ListError};
use crate::vault::variables::{ReadError, WriteError};

/// How long a caller should wait before it asks a database again that was away, in seconds.
const STORAGE_RETRY_SECONDS: u32 = 1;
/// How long a caller should wait before it asks again when the API server could not be asked, in seconds.
const IDENTITY_RETRY_SECONDS: u32 = 2;

/// An enum whose variants are the stable codes of the API, each with its HTTP status.
macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $word:literal, $status:ident;)+) => {
        /// What a refusal is called. Stable: clients match on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Code {
            $($(#[$doc])* $variant),+
        }

        impl Code {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The word on the wire.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),+
                }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status),+
                }
            }
        }
    };
}

codes! {
    /// The body is not JSON.
    InvalidJson = "INVALID_JSON", BAD_REQUEST;
    /// The body is JSON of another shape, or breaks a rule.
    InvalidRequest = "INVALID_REQUEST", BAD_REQUEST;
    /// The project was not made: its slug is taken, or its name is not one.
    ProjectCreateFailed = "PROJECT_CREATE_FAILED", BAD_REQUEST;
    /// The stage was not made: its slug is taken, or its name is not one.
    StageCreateFailed = "STAGE_CREATE_FAILED", BAD_REQUEST;
    /// No credential, or one that is unknown, expired or revoked.
    Unauthorized = "UNAUTHORIZED", UNAUTHORIZED;
    /// `orgSlug` is not the credential's organization.
    InvalidOrgScope = "INVALID_ORG_SCOPE", FORBIDDEN;
    /// The credential's role or scope is too small.
    Forbidden = "FORBIDDEN", FORBIDDEN;
    /// No such variable, or no such project or stage to have it.
    VariableNotFound = "VARIABLE_NOT_FOUND", NOT_FOUND;
    /// No such project or stage.
    EnvironmentNotFound = "ENVIRONMENT_NOT_FOUND", NOT_FOUND;
    /// No such route.
    NotFound = "NOT_FOUND", NOT_FOUND;
    /// The route is there, for another method.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", METHOD_NOT_ALLOWED;
    /// The body did not arrive in time.
    RequestTimeout = "REQUEST_TIMEOUT", REQUEST_TIMEOUT;
    /// The body is too large for the route.
    RequestTooLarge = "REQUEST_TOO_LARGE", PAYLOAD_TOO_LARGE;
    /// Too many refused credentials or bodies, from one address or in all.
    RateLimited = "RATE_LIMITED", TOO_MANY_REQUESTS;
    /// A stored value, or the key that would seal one, does not open.
    EvaluationFailed = "EVALUATION_FAILED", INTERNAL_SERVER_ERROR;
    /// A fault of the server itself.
    InternalError = "INTERNAL_ERROR", INTERNAL_SERVER_ERROR;
    /// The database is away, read-only or full.
    StorageUnavailable = "STORAGE_UNAVAILABLE", SERVICE_UNAVAILABLE;
    /// The Kubernetes API server cannot be asked who a pod is, or too many ask at once.
    IdentityUnavailable = "IDENTITY_UNAVAILABLE", SERVICE_UNAVAILABLE;
}

/// A refusal on its way out: what the caller is told, and apart from it what only our log is told.
#[derive(Debug, Clone)]
pub struct ApiError {
    code: Code,
    message: String,
    retry_after_seconds: Option<u32>,
    internal: Option<Arc<dyn Error + Send + Sync>>,
}

impl ApiError {
    /// A refusal of that code, with a message for the caller: what, which check, what would pass; never a value.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            retry_after_seconds: None,
            internal: None,
        }
    }

    /// The same, and the caller may come again after so many seconds.
    pub(crate) fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The same, with a cause for our log alone.
    fn because(mut self, cause: impl Error + Send + Sync + 'static) -> Self {
        self.internal = Some(Arc::new(cause));
        self
    }

    /// The code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What the caller is told.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What our log is told: the cause and its causes, each once.
    pub(crate) fn causes(&self) -> Option<String> {
        self.internal.as_deref().map(|cause| with_causes(cause))
    }

    /// What stands for an answer that some layer refused without our body.
    pub(crate) fn of_status(status: StatusCode) -> Self {
        let (code, message) = match status {
            StatusCode::NOT_FOUND => (
                Code::NotFound,
                "there is no such route; GET /openapi.json lists them",
            ),
            StatusCode::METHOD_NOT_ALLOWED => (
                Code::MethodNotAllowed,
                "this route answers another method; GET /openapi.json says which",
            ),
            StatusCode::REQUEST_TIMEOUT => {
                (Code::RequestTimeout, "the request did not arrive in time")
            }
            StatusCode::PAYLOAD_TOO_LARGE => (Code::RequestTooLarge, "the body is too large"),
            other if other.is_client_error() => {
                (Code::InvalidRequest, "the request is not a valid one")
            }
            _ => return Self::internal(),
        };
        Self::new(code, message)
    }

    /// A fault of ours.
    pub(crate) fn internal() -> Self {
        Self::new(
            Code::InternalError,
            "the server failed; its log says why under this request id",
        )
    }
}

/// Carries the refusal in the response's extensions: [`super::exchange`] writes the body, since it knows the request's id.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.code == Code::Unauthorized {
            response.headers_mut().insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"barekey\""),
            );
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// What a route calls a project or stage that is not there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Absent {
    /// `VARIABLE_NOT_FOUND`: evaluation says the same for every absent thing.
    Variable,
    /// `ENVIRONMENT_NOT_FOUND`.
    Environment,
}

impl ApiError {
    /// Why values were not read.
    pub(crate) fn of_read(error: ReadError, absent: Absent) -> Self {
        let message = error.to_string();
        match error {
            ReadError::Refused(refusal) => refusal.into(),
            ReadError::NoEnvironment { .. } => match absent {
                Absent::Variable => Self::new(Code::VariableNotFound, message),
                Absent::Environment => Self::new(Code::EnvironmentNotFound, message),
            },
            ReadError::NoVariable { .. } => Self::new(Code::VariableNotFound, message),
            ReadError::WrongType { .. } => Self::new(Code::InvalidRequest, message),
            ReadError::Altered { .. } | ReadError::AlteredStage { .. } => {
                Self::new(Code::EvaluationFailed, message)
            }
            ReadError::Unavailable(cause) => cause.into(),
        }
    }

    /// Why a project or a stage was not made; `failed` is the route's own code.
    pub(crate) fn of_create(error: CreateError, failed: Code) -> Self {
        let message = error.to_string();
        match error {
            CreateError::Refused(refusal) => refusal.into(),
            CreateError::NoProject(_) => Self::new(Code::EnvironmentNotFound, message),
            CreateError::SlugTaken(_) => Self::new(failed, message),
            CreateError::Unavailable(cause) => Self::of_change(cause),
        }
    }

    /// Why a change was not made, or nobody knows whether it was. Only in the first case may the caller simply come again:
    /// clients repeat a change when they are told when to, and not otherwise.
    fn of_change(cause: Unavailable) -> Self {
        if cause.is_lasting() {
            return cause.into();
        }
        let is_uncertain = cause.is_uncertain();
        Self::of_unmade(cause, is_uncertain)
    }

    fn of_unmade(cause: Unavailable, is_uncertain: bool) -> Self {
        if is_uncertain {
            return Self::new(
                Code::StorageUnavailable,
                "the database did not say whether it made the change: it may or may not have been made; look before you try again",
            )
            .because(cause);
        }
        let message = "the database cannot be used right now; nothing was changed, try again";
        Self {
            message: message.to_owned(),
            ..cause.into()
        }
    }
}

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let message = error.to_string();
        match error {
            WriteError::Refused(refusal) => refusal.into(),
            WriteError::NoEnvironment { .. } => Self::new(Code::EnvironmentNotFound, message),
            WriteError::Invalid { .. } => Self::new(Code::InvalidRequest, message),
            WriteError::Altered { .. } => Self::new(Code::EvaluationFailed, message),
            WriteError::Unavailable(cause) => Self::of_change(cause),
        }
    }
}

impl From<ListError> for ApiError {
    fn from(error: ListError) -> Self {
        let message = error.to_string();
        match error {
            ListError::Refused(refusal) => refusal.into(),
            ListError::NoProject(_) => Self::new(Code::EnvironmentNotFound, message),
            ListError::Unavailable(cause) => cause.into(),
        }
    }
}

impl From<PodReadError> for ApiError {
    fn from(error: PodReadError) -> Self {
        let message = error.to_string();
        match error {
            PodReadError::NotInjected | PodReadError::NoAccess { .. } => {
                Self::new(Code::Forbidden, message)
            }
            PodReadError::Altered { .. } => Self::new(Code::EvaluationFailed, message),
            PodReadError::Unavailable(cause) => cause.into(),
        }
    }
}

impl From<AuthenticateError> for ApiError {
    fn from(error: AuthenticateError) -> Self {
        let message = error.to_string();
        match error {
            AuthenticateError::Unknown | AuthenticateError::PodRefused { .. } => {
                Self::new(Code::Unauthorized, message)
            }
            AuthenticateError::Busy {
                retry_after_seconds,
            } => Self::new(Code::IdentityUnavailable, message).retry_after(retry_after_seconds),
            AuthenticateError::IdentityUnavailable(_) => {
                Self::new(Code::IdentityUnavailable, message)
                    .retry_after(IDENTITY_RETRY_SECONDS)
                    .because(error)
            }
            AuthenticateError::Unavailable(cause) => cause.into(),
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        let code = match refusal {
            // Whenever a credential is found to have ended, its caller is told the same.
            Refusal::CredentialEnded => return AuthenticateError::Unknown.into(),
            Refusal::OtherOrganization => Code::InvalidOrgScope,
            Refusal::OutOfScope | Refusal::RoleTooSmall { .. } | Refusal::PodElsewhere => {
                Code::Forbidden
            }
        };
        Self::new(code, refusal.to_string())
    }
}

impl From<Unavailable> for ApiError {
    fn from(cause: Unavailable) -> Self {
        if cause.is_lasting() {
            return Self::internal().because(cause);
        }
        Self::new(
            Code::StorageUnavailable,
            "the database cannot be used right now; try again",
        )
        .retry_after(STORAGE_RETRY_SECONDS)
        .because(cause)
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self::new(Code::InvalidRequest, error.to_string())
    }
}

impl From<UnknownWordError> for ApiError {
    fn from(error: UnknownWordError) -> Self {
        Self::new(Code::InvalidRequest, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_is_away_tells_the_caller_nothing_of_its_cause_and_our_log_all() {
        let error = ApiError::from(Unavailable {
            source: "connection to 10.0.0.7 refused".into(),
        });
        assert_eq!(error.code(), Code::StorageUnavailable);
        assert!(!error.message().contains("10.0.0.7"));
        let causes = error.causes().unwrap();
        assert_eq!(
            causes,
            "the database cannot be used right now: connection to 10.0.0.7 refused"
        );
        assert_eq!(error.into_response().headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn a_change_that_was_not_begun_may_be_sent_again() {
        for cause in [
            ApiError::from(WriteError::Unavailable(Unavailable {
                source: "the vault is closed".into(),
            })),
            ApiError::of_create(
                CreateError::Unavailable(Unavailable {
                    source: "the vault is closed".into(),
                }),
                Code::ProjectCreateFailed,
            ),
        ] {
            assert_eq!(cause.code(), Code::StorageUnavailable);
            assert!(cause.message().contains("nothing was changed"));
            assert_eq!(cause.into_response().headers()[header::RETRY_AFTER], "1");
        }
    }

    #[test]
    fn a_change_that_may_have_been_made_is_not_called_undone_and_not_asked_for_again() {
        let cause = Unavailable {
            source: "the connection broke".into(),
        };
        let error = ApiError::of_unmade(cause, true);
        assert_eq!(error.code(), Code::StorageUnavailable);
        assert!(error.message().contains("may or may not"));
        assert!(error.causes().is_some());
        let response = error.into_response();
        assert!(!response.headers().contains_key(header::RETRY_AFTER));
    }

    #[test]
    fn pods_that_nobody_can_recognise_right_now_are_told_when_to_come_again() {
        for (cause, seconds) in [
            (
                AuthenticateError::Busy {
                    retry_after_seconds: 7,
                },
                "7",
            ),
            (
                AuthenticateError::IdentityUnavailable("connection to 10.0.0.7 refused".into()),
                "2",
            ),
        ] {
            let error = ApiError::from(cause);
            assert_eq!(error.code(), Code::IdentityUnavailable);
            assert_eq!(error.code().as_str(), "IDENTITY_UNAVAILABLE");
            assert!(!error.message().contains("10.0.0.7"));
            let response = error.into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[header::RETRY_AFTER], seconds);
        }
    }

    #[test]
    fn an_absent_stage_is_a_missing_variable_to_evaluation_and_a_missing_environment_to_the_rest() {
        let absent = || ReadError::NoEnvironment {
            project: "shop".parse().unwrap(),
            stage: "staging".parse().unwrap(),
        };
        assert_eq!(
            ApiError::of_read(absent(), Absent::Variable).code(),
            Code::VariableNotFound
        );
        assert_eq!(
            ApiError::of_read(absent(), Absent::Environment).code(),
            Code::EnvironmentNotFound
        );
    }

    #[test]
    fn no_two_codes_have_the_same_word() {
        let mut words: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Code::ALL.len());
    }
}
