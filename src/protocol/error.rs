//! The body of every refusal.

use serde::{Deserialize, Serialize};

/// `{"error": {"code", "message", "requestId"}}`.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct ErrorDetail {
    /// Stable, in upper case.
    pub code: String,
    /// For people; not stable. Names the object, the check and what would pass; never a value.
    pub message: String,
    /// The id of the request, as in the audit trail.
    pub request_id: String,
}
