//! The HTTP API. [`ROUTES`] is the table of contents: every route, its method, who may call it, and how it refuses.
//!
//! A request is judged in the documented order: JSON, shape, credential, existence, work. Every answer carries the id of its
//! request and `no-store`; every refusal, of whichever layer, has the same body ([`error`]).

mod answers;
mod bodies;
mod callers;
pub mod certificate_files;
mod environment;
pub mod error;
mod exchange;
pub mod limits;
pub mod listener;
mod lookups;
pub mod metrics;
mod openapi;
mod pods;
pub mod probes;
mod projects;
mod session;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use self::answers::Answers;
use self::error::Code;
use self::lookups::Lookups;
use self::metrics::HttpMetrics;
use crate::domain::shares::Shares;
use crate::vault::Vault;

pub use self::openapi::document;
pub use self::probes::probes;

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Callers {
    /// Everyone, without a credential.
    Everyone,
    /// API tokens whose role and scope cover what they ask.
    Tokens,
    /// Living pods that were injected.
    Pods,
    /// Any credential.
    Recognised,
}

/// One route.
pub struct Route {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: &'static str,
    /// Who may call it.
    pub callers: Callers,
    /// How it refuses, apart from what [`COMMON_REFUSALS`] and the credential bring.
    pub refusals: &'static [Code],
    handler: fn() -> MethodRouter<Api>,
}

/// How every route with a body may refuse.
pub const COMMON_REFUSALS: &[Code] = &[
    Code::InvalidJson,
    Code::InvalidRequest,
    Code::RequestTimeout,
    Code::RequestTooLarge,
    Code::InternalError,
];

/// How every route that wants a credential may refuse.
pub const CREDENTIAL_REFUSALS: &[Code] = &[
    Code::Unauthorized,
    Code::RateLimited,
    Code::StorageUnavailable,
    Code::IdentityUnavailable,
];

/// Every route of the API.
pub const ROUTES: &[Route] = &[
    Route {
        method: Method::POST,
        path: "/v1/env/evaluate",
        callers: Callers::Tokens,
        refusals: &[
            Code::InvalidOrgScope,
            Code::Forbidden,
            Code::VariableNotFound,
            Code::EvaluationFailed,
        ],
        handler: || post(environment::evaluate),
    },
    Route {
        method: Method::POST,
        path: "/v1/env/evaluate-batch",
        callers: Callers::Tokens,
        refusals: &[
            Code::InvalidOrgScope,
            Code::Forbidden,
            Code::VariableNotFound,
            Code::EvaluationFailed,
        ],
        handler: || post(environment::evaluate_batch),
    },
    Route {
        method: Method::POST,
        path: "/v1/env/list",
        callers: Callers::Tokens,
        refusals: &[
            Code::InvalidOrgScope,
            Code::Forbidden,
            Code::EnvironmentNotFound,
            Code::EvaluationFailed,
        ],
        handler: || post(environment::list),
    },
    Route {
        method: Method::POST,
        path: "/v1/env/pull",
        callers: Callers::Tokens,
        refusals: &[
            Code::InvalidOrgScope,
            Code::Forbidden,
            Code::EnvironmentNotFound,
            Code::EvaluationFailed,
        ],
        handler: || post(environment::pull),
    },
    Route {
        method: Method::POST,
        path: "/v1/env/write",
        callers: Callers::Tokens,
        refusals: &[
            Code::InvalidOrgScope,
            Code::Forbidden,
            Code::EnvironmentNotFound,
            Code::EvaluationFailed,
        ],
        handler: || post(environment::write),
    },
    Route {
        method: Method::POST,
        path: "/v1/cli/projects/list",
        callers: Callers::Tokens,
        refusals: &[Code::InvalidOrgScope, Code::Forbidden],
        handler: || post(projects::list),
    },
    Route {
        method: Method::POST,
        path: "/v1/cli/projects/create",
        callers: Callers::Tokens,
        refusals: &[
            Code::InvalidOrgScope,
            Code::Forbidden,
            Code::ProjectCreateFailed,
        ],
        handler: || post(projects::create),
    },
    Route {
        method: Method::POST,
        path: "/v1/cli/stages/list",
        callers: Callers::Tokens,
        refusals: &[
            Code::InvalidOrgScope,
            Code::Forbidden,
            Code::EnvironmentNotFound,
        ],
        handler: || post(projects::list_stages),
    },
    Route {
        method: Method::POST,
        path: "/v1/cli/stages/create",
        callers: Callers::Tokens,
        refusals: &[
            Code::InvalidOrgScope,
            Code::Forbidden,
            Code::EnvironmentNotFound,
            Code::StageCreateFailed,
        ],
        handler: || post(projects::create_stage),
    },
    Route {
        method: Method::GET,
        path: "/v1/cli/session",
        callers: Callers::Recognised,
        refusals: &[],
        handler: || get(session::session),
    },
    Route {
        method: Method::POST,
        path: "/v1/pod/values",
        callers: Callers::Pods,
        refusals: &[Code::Forbidden, Code::EvaluationFailed],
        handler: || post(pods::values),
    },
    Route {
        method: Method::GET,
        path: "/openapi.json",
        callers: Callers::Everyone,
        refusals: &[],
        handler: || get(openapi::serve),
    },
];

/// What the API needs apart from the vault.
pub struct ApiSettings {
    /// Where it counts.
    pub metrics: HttpMetrics,
}

/// What handlers share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api(Arc<Inner>);

struct Inner {
    vault: Vault,
    metrics: HttpMetrics,
    lookups: Lookups,
    bodies: Shares,
    writes: Shares,
    answers: Answers,
    document: Bytes,
}

impl Api {
    fn new(vault: Vault, settings: ApiSettings) -> Self {
        Self(Arc::new(Inner {
            vault,
            metrics: settings.metrics,
            lookups: Lookups::new(),
            bodies: Shares::new(limits::BODIES),
            writes: Shares::new(limits::WRITES),
            answers: Answers::new(),
            document: document().to_string().into(),
        }))
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.0.vault
    }

    pub(crate) fn metrics(&self) -> &HttpMetrics {
        &self.0.metrics
    }

    pub(crate) fn lookups(&self) -> &Lookups {
        &self.0.lookups
    }

    /// Room for the bodies of requests, in bytes.
    pub(crate) fn bodies(&self) -> &Shares {
        &self.0.bodies
    }

    /// Room in the queue of changes, in variables.
    pub(crate) fn writes(&self) -> &Shares {
        &self.0.writes
    }

    /// Room for the values of answers.
    pub(crate) fn answers(&self) -> &Answers {
        &self.0.answers
    }

    /// The OpenAPI document; copies share one text.
    pub(crate) fn document(&self) -> Bytes {
        self.0.document.clone()
    }
}

/// All routes of [`ROUTES`], with the layer that surrounds them. Another router may be merged in if it has no fallback.
pub fn router(vault: Vault, settings: ApiSettings) -> Router {
    let api = Api::new(vault, settings);
    let mut router = Router::new();
    for route in ROUTES {
        router = router.route(route.path, (route.handler)());
    }
    router
        .method_not_allowed_fallback(exchange::no_method)
        .fallback(exchange::no_route)
        .layer(from_fn_with_state(api.clone(), exchange::surround))
        .with_state(api)
}
