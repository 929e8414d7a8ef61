//! `POST /v1/pod/values`: what the agent in a pod asks. The bearer is the pod's service account token.

use serde::{Deserialize, Serialize};

use crate::protocol::environment::Value;

/// The request: its version, and nothing else, since the pod's spec says what it may ask for.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct PodValuesRequest {
    /// The version of this form: 1.
    pub v: u32,
}

/// One value.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
pub struct PodValue {
    /// The stage's id.
    pub stage: String,
    /// The name in the stage.
    pub name: String,
    /// The value.
    #[cfg_attr(feature = "server", schema(value_type = String))]
    pub value: Value,
}

/// The union of the pod's allowances, cut to the stage's present access. The agent picks its container's.
#[derive(Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "server", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
pub struct PodValuesResponse {
    /// The version of this form: 1.
    pub v: u32,
    /// The values.
    pub values: Vec<PodValue>,
    /// The id of the request.
    pub request_id: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frozen_bodies_read_and_write_as_they_did() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/pod-forms.json")).unwrap();
        let text = |name: &str| vectors["route"][name].as_str().unwrap();
        let request: PodValuesRequest = serde_json::from_str(text("request")).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), text("request"));
        let response: PodValuesResponse = serde_json::from_str(text("response")).unwrap();
        assert_eq!(serde_json::to_string(&response).unwrap(), text("response"));
    }
}
