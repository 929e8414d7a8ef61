//! The calls: a method a route, each with the words that its errors say after "cannot".

use hyper::Method;
use hyper::body::Bytes;

use crate::client::{Call, Client, ClientError, Effect};
use crate::domain::names::{StageId, VariableName};
use crate::domain::plaintext::Plaintext;
use crate::domain::reference::FORM_VERSION;
use crate::protocol::environment::{
    EvaluateRequest, EvaluateResponse, ListRequest, ListResponse, PullRequest, PullResponse,
    WriteRequest, WriteResponse,
};
use crate::protocol::management::{
    ProjectCreateRequest, ProjectCreateResponse, ProjectListRequest, ProjectListResponse,
    StageCreateRequest, StageCreateResponse, StageListRequest, StageListResponse,
};
use crate::protocol::pod::{PodValuesRequest, PodValuesResponse};
use crate::protocol::session::SessionResponse;

/// One value of a stage.
#[derive(Debug)]
pub struct StageValue {
    /// The stage.
    pub stage: StageId,
    /// The name that it has there.
    pub name: VariableName,
    /// The value.
    pub value: Plaintext,
}

impl Client {
    /// `POST /v1/env/evaluate`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn evaluate(&self, body: &EvaluateRequest) -> Result<EvaluateResponse, ClientError> {
        let what = format!(
            "read {} of {}/{}",
            body.name, body.project_slug, body.stage_slug
        );
        self.post(what, "/v1/env/evaluate", Effect::Reads, body)
            .await
    }

    /// `POST /v1/env/pull`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pull(&self, body: &PullRequest) -> Result<PullResponse, ClientError> {
        let what = format!("read {}/{}", body.project_slug, body.stage_slug);
        self.post(what, "/v1/env/pull", Effect::Reads, body).await
    }

    /// `POST /v1/env/list`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list(&self, body: &ListRequest) -> Result<ListResponse, ClientError> {
        let what = format!(
            "list the variables of {}/{}",
            body.project_slug, body.stage_slug
        );
        self.post(what, "/v1/env/list", Effect::Reads, body).await
    }

    /// `POST /v1/env/write`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn write(&self, body: &WriteRequest) -> Result<WriteResponse, ClientError> {
        let what = format!("write to {}/{}", body.project_slug, body.stage_slug);
        self.post(what, "/v1/env/write", Effect::Changes, body)
            .await
    }

    /// `POST /v1/cli/projects/list`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_projects(
        &self,
        body: &ProjectListRequest,
    ) -> Result<ProjectListResponse, ClientError> {
        let what = "list the projects".to_owned();
        self.post(what, "/v1/cli/projects/list", Effect::Reads, body)
            .await
    }

    /// `POST /v1/cli/projects/create`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_project(
        &self,
        body: &ProjectCreateRequest,
    ) -> Result<ProjectCreateResponse, ClientError> {
        let what = format!("make the project {:?}", body.name);
        self.post(what, "/v1/cli/projects/create", Effect::Changes, body)
            .await
    }

    /// `POST /v1/cli/stages/list`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn list_stages(
        &self,
        body: &StageListRequest,
    ) -> Result<StageListResponse, ClientError> {
        let what = format!("list the stages of {}", body.project_slug);
        self.post(what, "/v1/cli/stages/list", Effect::Reads, body)
            .await
    }

    /// `POST /v1/cli/stages/create`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn create_stage(
        &self,
        body: &StageCreateRequest,
    ) -> Result<StageCreateResponse, ClientError> {
        let what = format!("make the stage {:?} in {}", body.name, body.project_slug);
        self.post(what, "/v1/cli/stages/create", Effect::Changes, body)
            .await
    }

    /// `GET /v1/cli/session`.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn session(&self) -> Result<SessionResponse, ClientError> {
        let call = Call {
            what: "ask who this is".to_owned(),
            method: Method::GET,
            path: "/v1/cli/session",
            effect: Effect::Reads,
            body: Bytes::new(),
        };
        self.call(&call).await
    }

    /// `POST /v1/pod/values`: what the allowances of the calling pod give it, of all its containers.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pod_values(&self) -> Result<Vec<StageValue>, ClientError> {
        let what = "read this pod's variables".to_owned();
        let body = PodValuesRequest { v: FORM_VERSION };
        let answer: PodValuesResponse = self
            .post(what, "/v1/pod/values", Effect::Reads, &body)
            .await?;
        if answer.v != FORM_VERSION {
            return Err(ClientError::UnknownVersion { v: answer.v });
        }
        // A name that is none of ours comes from a newer server; no allowance of this pod can ask for it.
        let known = answer.values.into_iter().filter_map(|mut entry| {
            Some(StageValue {
                stage: entry.stage.parse().ok()?,
                name: entry.name.parse().ok()?,
                value: std::mem::take(&mut entry.value.0).into(),
            })
        });
        Ok(known.collect())
    }
}
