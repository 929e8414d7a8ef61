//! `POST /v1/pod/values`: what the agent in a pod asks.

use std::collections::BTreeSet;

use axum::extract::State;
use axum::response::Response;

use super::Api;
use super::callers::{Ask, Call};
use super::error::{ApiError, Code};
use super::limits;
use crate::domain::access::Caller;
use crate::protocol::environment::Value;
use crate::protocol::pod::{PodValue, PodValuesRequest, PodValuesResponse};

/// The version of the form that this route answers.
const FORM_VERSION: u32 = 1;

pub(crate) struct PodValues;

impl Ask for PodValues {
    type Body = PodValuesRequest;

    const FOR_PODS: bool = true;

    fn shape(body: PodValuesRequest) -> Result<Self, ApiError> {
        if body.v == FORM_VERSION {
            return Ok(Self);
        }
        Err(ApiError::new(
            Code::InvalidRequest,
            format!(
                "the form has version {}, and this server answers version {FORM_VERSION}",
                body.v
            ),
        ))
    }
}

/// The values that the pod's spec allows it to ask for, cut to what each stage grants its service account now.
#[utoipa::path(
    post, path = "/v1/pod/values", tag = "pods",
    request_body = PodValuesRequest,
    responses((status = 200, description = "The values", body = PodValuesResponse))
)]
pub(crate) async fn values(
    State(api): State<Api>,
    call: Call<PodValues>,
) -> Result<Response, ApiError> {
    let pod = match &call.caller {
        Caller::Pod(pod) => pod,
        Caller::Token(_) => {
            return Err(ApiError::new(
                Code::Forbidden,
                "this route is for pods: send the pod's service account token; an API token reads with POST /v1/env/pull",
            ));
        }
    };
    let stages: BTreeSet<_> = pod.allowances.iter().map(|it| &it.stage).collect();
    let bytes_max = stages.len().saturating_mul(limits::STAGE_BYTES_COUNTED);
    let room = api.answers().room(call.address, bytes_max).await?;
    let read = api.vault().read_for_pod(pod, &call.origin).await?;
    let values = read
        .into_iter()
        .map(|value| {
            let text = value.value.reveal_text().ok_or_else(|| {
                ApiError::new(
                    Code::EvaluationFailed,
                    format!(
                        "the stored value of {} is not UTF-8; write it again",
                        value.name
                    ),
                )
            })?;
            Ok(PodValue {
                stage: value.stage.to_string(),
                name: value.name.to_string(),
                value: Value(text.to_owned()),
            })
        })
        .collect::<Result<Vec<_>, ApiError>>()?;
    room.fill(PodValuesResponse {
        v: FORM_VERSION,
        values,
        request_id: call.origin.request_id,
    })
}
