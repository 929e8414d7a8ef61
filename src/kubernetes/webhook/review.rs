//! The review that the API server posts, and the answer to it, in the JSON of `admission.k8s.io/v1`.

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use json_patch::PatchOperation;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::names::Namespace;
use crate::kubernetes::injection::Refusal;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// One review.
#[derive(Debug)]
pub(super) struct Review(ReviewRequest);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReviewForm {
    api_version: String,
    kind: String,
    request: Option<ReviewRequest>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReviewRequest {
    uid: String,
    resource: Resource,
    #[serde(default)]
    sub_resource: Option<String>,
    operation: String,
    #[serde(default)]
    namespace: Option<String>,
    #[serde(default)]
    user_info: UserInfo,
    #[serde(default)]
    object: Value,
}

#[derive(Debug, Deserialize)]
struct Resource {
    #[serde(default)]
    group: String,
    resource: String,
}

#[derive(Debug, Default, Deserialize)]
struct UserInfo {
    #[serde(default)]
    groups: Option<Vec<String>>,
}

/// Why a body is no review.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReviewError {
    /// Not JSON.
    #[error("this is not JSON, and so no AdmissionReview of admission.k8s.io/v1")]
    NotJson,
    /// Not the JSON of one.
    #[error("this is not the JSON of an AdmissionReview of admission.k8s.io/v1")]
    Malformed,
    /// JSON of something else.
    #[error("this is no AdmissionReview of admission.k8s.io/v1")]
    AnotherKind,
    /// A review without a question.
    #[error("this AdmissionReview has no request with a uid")]
    NoRequest,
}

/// What becomes of the pod.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It is created as it is.
    Unchanged {
        /// What its owner should know.
        warnings: Vec<String>,
    },
    /// It is created with these changes.
    Changed {
        /// The changes.
        patch: Vec<PatchOperation>,
        /// What its owner should know.
        warnings: Vec<String>,
    },
    /// It is not created.
    Refused {
        /// What the caller of the API server sees.
        code: StatusCode,
        /// What is wrong, and what would pass.
        message: String,
    },
}

impl Verdict {
    /// Created as it is, with nothing to say.
    pub(super) fn unchanged() -> Self {
        Self::Unchanged {
            warnings: Vec::new(),
        }
    }

    /// Refused until the pod, or what it names, is changed.
    pub(super) fn forbidden(refusal: &Refusal) -> Self {
        Self::Refused {
            code: StatusCode::FORBIDDEN,
            message: refusal.to_string(),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    warnings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Value>,
}

impl Review {
    /// Reads a review.
    ///
    /// # Errors
    /// [`ReviewError`] for anything else. What the parser says is left out: it may quote the body.
    pub(super) fn parse(body: &[u8]) -> Result<Self, ReviewError> {
        let form: ReviewForm = serde_json::from_slice(body).map_err(|error| {
            if error.is_data() {
                ReviewError::Malformed
            } else {
                ReviewError::NotJson
            }
        })?;
        if form.api_version != API_VERSION || form.kind != KIND {
            return Err(ReviewError::AnotherKind);
        }
        form.request
            .filter(|request| !request.uid.is_empty())
            .map(Self)
            .ok_or(ReviewError::NoRequest)
    }

    /// Whether the review is about a pod that is to be made, and not about a change of one or a part of one.
    pub(super) fn creates_a_pod(&self) -> bool {
        let Self(request) = self;
        request.operation == "CREATE"
            && request.resource.group.is_empty()
            && request.resource.resource == "pods"
            && request.sub_resource.as_deref().unwrap_or("").is_empty()
    }

    /// The namespace of the pod; `None` when what the review names is none.
    pub(super) fn namespace(&self) -> Option<Namespace> {
        self.0.namespace.as_deref()?.parse().ok()
    }

    /// The pod, as JSON.
    pub(super) fn object(&self) -> &Value {
        &self.0.object
    }

    /// Whether whoever makes the pod is in `group`.
    pub(super) fn is_from(&self, group: &str) -> bool {
        self.0
            .user_info
            .groups
            .iter()
            .flatten()
            .any(|other| other == group)
    }

    /// The answer. The patch is a base64 text, as the API's own type has it.
    pub(super) fn answer(&self, verdict: &Verdict) -> String {
        let (warnings, patch, status): (&[String], _, _) = match verdict {
            Verdict::Unchanged { warnings } => (warnings, None, None),
            Verdict::Changed { patch, warnings } => {
                (warnings, Some(json!(patch).to_string()), None)
            }
            Verdict::Refused { code, message } => {
                let status = json!({
                    "status": "Failure",
                    "message": message,
                    "reason": match *code {
                        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
                        _ => "Forbidden",
                    },
                    "code": code.as_u16(),
                });
                (&[], None, Some(status))
            }
        };
        let answer = Answer {
            uid: &self.0.uid,
            allowed: status.is_none(),
            warnings,
            patch_type: patch.as_ref().map(|_| "JSONPatch"),
            patch: patch.map(|patch| STANDARD.encode(patch)),
            status,
        };
        json!({"apiVersion": API_VERSION, "kind": KIND, "response": answer}).to_string()
    }
}
