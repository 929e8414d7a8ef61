//! `GET /v1/cli/session`: who am I.

use axum::Json;

use super::callers::Visit;
use super::error::ApiError;
use crate::domain::access::{Caller, Scope};
use crate::protocol::session::SessionResponse;

/// The caller, whatever its credential.
#[utoipa::path(
    get, path = "/v1/cli/session", tag = "session",
    responses((status = 200, description = "The caller", body = SessionResponse))
)]
pub(crate) async fn session(visit: Visit) -> Result<Json<SessionResponse>, ApiError> {
    let request_id = visit.origin.request_id;
    Ok(Json(match visit.caller {
        Caller::Token(token) => {
            let (project_id, stage_id) = match token.scope {
                Scope::Organization => (None, None),
                Scope::Project(project) => (Some(project.into()), None),
                Scope::Stage(project, stage) => (Some(project.into()), Some(stage.into())),
            };
            SessionResponse {
                source: "token".to_owned(),
                org_id: Some(token.organization.into()),
                org_slug: Some(token.organization_slug.into()),
                token_id: Some(token.token.into()),
                name: Some(token.name),
                role: Some(token.role.to_string()),
                project_id,
                stage_id,
                access_token_expires_at_ms: token.expires_at_ms,
                last_used_at_ms: token.last_used_at_ms,
                request_id,
                ..SessionResponse::default()
            }
        }
        Caller::Pod(pod) => SessionResponse {
            source: "pod".to_owned(),
            namespace: Some(pod.namespace.into()),
            service_account: Some(pod.service_account.into()),
            pod: Some(pod.pod.into()),
            request_id,
            ..SessionResponse::default()
        },
    }))
}
