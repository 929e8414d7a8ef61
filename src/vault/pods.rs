//! What a pod reads: its allowances, cut to the stage's present access.
use futures::future::BoxFuture;

use super::{Unavailable, Vault};
use crate::crypto::tokens::PresentedToken;
use crate::domain::access::PodCaller;
use crate::domain::audit::Origin;
use crate::domain::names::{StageId, VariableName};
use crate::domain::plaintext::Plaintext;
use crate::vault::credentials::AuthenticateError;

/// Proves which living pod a token is bound to. Implemented by `kubernetes::identity`.
pub trait PodIdentity: Send + Sync {
    /// The pod, as the API server has it now.
    fn identify<'a>(
        &'a self,
        token: &'a PresentedToken,
    ) -> BoxFuture<'a, Result<PodCaller, AuthenticateError>>;

    /// Tells the pod's owner why its start was refused, as an event on the pod. Never fails and never waits for long.
    fn tell_refused<'a>(&'a self, pod: &'a PodCaller, message: &'a str) -> BoxFuture<'a, ()>;
}

/// One value for a pod.
#[derive(Debug)]
pub struct PodValue {
    /// The stage.
    pub stage: StageId,
    /// The name in the stage.
    pub name: VariableName,
    /// The value.
    pub value: Plaintext,
}

/// Why a pod reads nothing.
#[derive(Debug, thiserror::Error)]
pub enum PodReadError {
    /// The pod's spec has no allowance: it was never injected.
    #[error(
        "this pod was not injected: its spec has no BAREKEY_ALLOWANCE; annotate it with barekey.dev/stage and create it anew"
    )]
    NotInjected,
    /// The stage grants this service account nothing (or is not there any more: the pod is told the same).
    #[error(
        "the stage grants the service account {account} of namespace {namespace} nothing; add it to spec.access of the BarekeyStage"
    )]
    NoAccess {
        /// The service account.
        account: String,
        /// Its namespace.
        namespace: String,
    },
    /// The envelope, or what stands beside it, was altered in the database.
    #[error("the variable {name} does not open: its row was altered")]
    Altered {
        /// Its name.
        name: VariableName,
    },
    /// The database, or the audit trail in it.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

impl Vault {
    /// The union of the pod's allowances, cut to what each stage grants its service account now. Names that are absent or
    /// not granted are left out; the agent names them. Audited before it returns; a refusal is audited and told as an event.
    pub async fn read_for_pod(
        &self,
        _pod: &PodCaller,
        _origin: &Origin,
    ) -> Result<Vec<PodValue>, PodReadError> {
        todo!()
    }

    /// The names that a stage holds, sorted; `None` when there is no such stage. For the webhook, which sees no value.
    pub async fn variable_names(
        &self,
        _stage: &StageId,
    ) -> Result<Option<Vec<VariableName>>, Unavailable> {
        todo!()
    }
}
