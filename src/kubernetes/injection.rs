//! Pod in, JSON patch out; pure. What a pod asks for, whether it may have it, and what it becomes.
//!
//! [`read`] says what a pod asks for, from its spec alone. The webhook then finds the stage that it names, and [`inject`]
//! decides with what is known of it. Pods are JSON here, so that what is newer than this program passes through untouched.
//! Nothing secret is in a patch: a pod gets the agent, a token that is good for this pod and this vault alone, and the list
//! of what it may ask for.

mod annotations;
mod containers;
mod copies;
mod delivery;
mod dollars;
mod exposure;
mod patch;
mod pod;
mod refusal;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use json_patch::PatchOperation;
use serde_json::{Value, json};

use crate::domain::access::{AccessGrant, grants_anything, grants_variable};
use crate::domain::names::{NameError, NamePattern, Namespace, ObjectName, StageId, VariableName};

use self::annotations::{INJECTED, INJECTED_CA, INJECTED_REVISION, INJECTED_STAGE, Wishes};
use self::containers::Chosen;
use self::exposure::{Environment, Listed};
use self::pod::PodName;
pub(crate) use self::refusal::{Problem, Problems, Refusal};

/// Everything of ours in a container is under this directory.
const DIRECTORY: &str = "/run/barekey.dev";
/// Where the agent's program is mounted.
const AGENT_DIRECTORY: &str = "/run/barekey.dev/agent";
/// The agent's program.
const AGENT_PROGRAM: &str = "/run/barekey.dev/agent/barekey";
/// Where the pod's token is mounted.
const TOKEN_DIRECTORY: &str = "/run/barekey.dev/token";
/// The pod's token.
const TOKEN_FILE: &str = "/run/barekey.dev/token/token";
/// The volume that holds the agent's program.
const AGENT_VOLUME: &str = "barekey-agent";
/// The volume that holds the pod's token.
const TOKEN_VOLUME: &str = "barekey-token";
/// The init container that copies the agent's program.
const INIT_CONTAINER: &str = "barekey-agent";
/// What stands before a wrapped container's own command.
const WRAPPER: [&str; 3] = [AGENT_PROGRAM, "run", "--"];
/// The command of the init container.
const INSTALL: [&str; 3] = ["/barekey", "install", AGENT_PROGRAM];

/// How many warnings of one kind a pod's owner is told.
const WARNINGS_MAX: usize = 16;
/// The most that is written into the containers of one pod, in bytes: the API server stores objects of 1.5 MiB at most.
const WRITTEN_BYTES_MAX: usize = 1024 * 1024;

/// How the in-pod agent is delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentDeliverySettings {
    /// The agent's image.
    pub image: String,
    /// `Always`, `IfNotPresent` or `Never`; absent for the cluster's default.
    pub image_pull_policy: Option<String>,
    /// Names of pull secrets that are added to injected pods.
    pub image_pull_secrets: Vec<String>,
    /// By which way the program arrives.
    pub delivery: AgentDelivery,
}

/// By which way the agent arrives in a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentDelivery {
    /// An init container copies it into a memory volume.
    Init,
    /// An image volume.
    Image,
}

impl std::str::FromStr for AgentDelivery {
    type Err = AgentDeliveryError;

    fn from_str(word: &str) -> Result<Self, AgentDeliveryError> {
        match word {
            "init" => Ok(Self::Init),
            "image" => Ok(Self::Image),
            other => Err(AgentDeliveryError(other.chars().take(64).collect())),
        }
    }
}

/// Why a word is no way of delivery.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no way to deliver the agent: it is init or image")]
pub struct AgentDeliveryError(String);

/// The certificate authority that signs the vault's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The first 16 hex digits of the SHA-256 of its certificate.
    pub id: String,
    /// Its certificate: DER in standard base64.
    pub certificate: String,
}

/// What every injected pod is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InjectionSettings {
    /// The name in the vault's certificate, which is also the audience of the pods' tokens.
    pub server: String,
    /// The port of the vault's Service.
    pub port: u16,
    /// Its addresses, as far as they are known.
    pub addresses: Vec<String>,
    /// Who signs its certificate.
    pub authority: Authority,
    /// How the agent's program gets into a pod.
    pub agent: AgentDeliverySettings,
}

/// What is known of the stage that a pod names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredStage {
    /// Its id in the vault; `None` while the controller has not made it.
    pub id: Option<StageId>,
    /// Its revision, as far as it is known.
    pub revision: i64,
    /// What it grants.
    pub access: Vec<AccessGrant>,
    /// Whether its condition says that it is.
    pub ready: bool,
}

/// What a pod asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// Nothing: it is created as it is.
    Nothing {
        /// What its owner should know.
        warnings: Vec<String>,
    },
    /// Injection.
    Injection(Box<Request>),
}

/// A pod that asks for injection, and could have it as far as its own spec goes.
#[derive(Debug)]
pub(crate) struct Request {
    /// The pod's name.
    name: PodName,
    /// Its namespace.
    namespace: Namespace,
    /// The service account that it runs as.
    account: ObjectName,
    /// The namespace of the stage.
    stage_namespace: Namespace,
    /// What its annotations say.
    wishes: Wishes,
    /// The pod as it was written.
    original: Value,
    /// The containers that get values.
    chosen: Vec<Chosen>,
}

/// Proof that a pod may have what it asks for. Made by [`check_access`] alone.
#[derive(Debug)]
pub(crate) struct Granted<'a> {
    id: &'a StageId,
    stage: &'a DeclaredStage,
}

impl Granted<'_> {
    /// The stage's id in the vault.
    pub(crate) fn id(&self) -> &StageId {
        self.id
    }
}

/// What a pod becomes.
#[derive(Debug)]
pub(crate) struct Injection {
    /// What changes.
    pub(crate) patch: Vec<PatchOperation>,
    /// What its owner should know.
    pub(crate) warnings: Vec<String>,
}

/// Reads what a pod of `namespace` asks for. `audience` is that of the vault's tokens.
///
/// # Errors
/// [`Refusal`] with everything in the pod's own spec that must change.
pub(crate) fn read(pod: &Value, namespace: &Namespace, audience: &str) -> Result<Asked, Refusal> {
    let name = PodName::of(pod, namespace.as_str());
    let refuse = |problems| Refusal {
        pod: name.clone(),
        problems,
    };
    let Some(wishes) = annotations::read(pod).map_err(refuse)? else {
        if copies::has_parts(pod) {
            return Err(refuse(copies::refuse_without_stage(pod)));
        }
        return Ok(Asked::Nothing {
            warnings: token_without_stage(pod, audience),
        });
    };
    if is_windows(pod) {
        return Err(refuse(Problems::from(Problem::Windows)));
    }
    if let Some(problem) = containers::too_many(pod) {
        return Err(refuse(Problems::from(problem)));
    }
    let original = copies::restore(pod).map_err(refuse)?;
    let mut problems = delivery::taken_names(&original);
    let chosen = containers::choose(&original, &wishes)
        .map_err(|more| problems.absorb(more))
        .ok();
    let account = account(&original)
        .map_err(|source| problems.push(Problem::AccountName(source)))
        .ok();
    match (chosen, account) {
        (Some(chosen), Some(account)) if problems.is_empty() => {
            Ok(Asked::Injection(Box::new(Request {
                stage_namespace: wishes
                    .stage
                    .namespace
                    .clone()
                    .unwrap_or_else(|| namespace.clone()),
                name,
                namespace: namespace.clone(),
                account,
                wishes,
                original,
                chosen,
            })))
        }
        _ => Err(refuse(problems)),
    }
}

impl Request {
    /// Which BarekeyStage the pod names: its namespace and its name.
    pub(crate) fn stage(&self) -> (&Namespace, &ObjectName) {
        (&self.stage_namespace, &self.wishes.stage.name)
    }

    /// Whether the names that the stage holds make a difference.
    pub(crate) fn needs_names(&self) -> bool {
        let listed = self.wishes.variables.iter().flatten().next().is_some()
            || !self.wishes.rename.is_empty();
        listed
            || self.chosen.iter().any(|chosen| {
                !chosen.references.is_empty() || exposure::asks_for_names(self.container(chosen))
            })
    }

    fn container(&self, chosen: &Chosen) -> &Value {
        pod::items(pod::spec(&self.original), chosen.place.list.field())
            .get(chosen.place.index)
            .unwrap_or(&Value::Null)
    }

    fn stage_name(&self) -> String {
        format!("{}/{}", self.stage_namespace, self.wishes.stage.name)
    }

    fn refuse(&self, problems: Problems) -> Refusal {
        Refusal {
            pod: self.name.clone(),
            problems,
        }
    }
}

/// Whether the pod may have what it asks for of this stage. `None` is a stage that is not there.
///
/// An account that the stage grants nothing is told the same, whether the stage is there or not.
///
/// # Errors
/// [`Refusal`] with what must change.
pub(crate) fn check_access<'a>(
    request: &Request,
    stage: Option<&'a DeclaredStage>,
) -> Result<Granted<'a>, Refusal> {
    let (account, namespace) = (&request.account, &request.namespace);
    let Some(stage) = stage.filter(|it| grants_anything(&it.access, namespace, account)) else {
        return Err(request.refuse(Problems::from(Problem::NoAccess {
            stage: request.stage_name(),
            account: account.clone(),
            namespace: namespace.clone(),
        })));
    };
    let Some(id) = stage.id.as_ref().filter(|_| stage.ready) else {
        let (namespace, name) = request.stage();
        return Err(request.refuse(Problems::from(Problem::StageNotReady {
            namespace: namespace.clone(),
            name: name.clone(),
        })));
    };
    let mut problems = Problems::default();
    for variable in required(request) {
        if !grants_variable(&stage.access, namespace, account, variable) {
            problems.push(Problem::VariableNotGranted {
                stage: request.stage_name(),
                account: account.clone(),
                namespace: namespace.clone(),
                variable: variable.clone(),
            });
        }
    }
    if problems.is_empty() {
        Ok(Granted { id, stage })
    } else {
        Err(request.refuse(problems))
    }
}

/// What the pod becomes. `names` are those that the stage holds; `None` when the vault did not say.
///
/// # Errors
/// [`Refusal`] when a probe or hook would miss a value, or what would be written is too long.
pub(crate) fn inject(
    incoming: &Value,
    request: &Request,
    granted: &Granted<'_>,
    names: Option<&BTreeSet<VariableName>>,
    settings: &InjectionSettings,
) -> Result<Injection, Refusal> {
    let Granted { id, stage } = granted;
    let mut wanted = request.original.clone();
    let mut problems = Problems::default();
    let mut written = 0;
    let mut warnings = missing_names(request, names);
    let listed = Listed::by(request.wishes.variables.as_ref());
    let granted_names = Listed::granted(&stage.access, &request.namespace, &request.account);
    for chosen in &request.chosen {
        let allowance = containers::allowance(&request.wishes, chosen, id);
        let container = request.container(chosen);
        let environment = Environment {
            container,
            own: pod::items(container, "env").iter().map(pod::name).collect(),
            left_to_the_agent: dollars::left_to_the_agent(container, &allowance, &listed),
            chosen,
            allowance: &allowance,
            listed: &listed,
            granted: &granted_names,
            names,
        };
        problems.extend(exposure::blind_checks(&environment));
        if warnings.len() < WARNINGS_MAX {
            warnings.extend(exposure::values_in_arguments(&environment));
        }
        let Some(wrapped) = containers::at(&mut wanted, chosen.place) else {
            continue;
        };
        let left = &environment.left_to_the_agent;
        match containers::wrap(wrapped, container, left, &allowance, settings) {
            Ok(bytes) => written += bytes,
            Err(more) => problems.absorb(more),
        }
        if written > WRITTEN_BYTES_MAX {
            problems.push(Problem::PodTooLong {
                bytes_max: WRITTEN_BYTES_MAX,
            });
            break;
        }
    }
    if !problems.is_empty() {
        return Err(request.refuse(problems));
    }
    delivery::deliver(&mut wanted, settings);
    mark(&mut wanted, id, stage.revision, settings);
    Ok(Injection {
        patch: patch::between(incoming, &wanted),
        warnings,
    })
}

/// The variables that something in the pod names exactly.
fn required(request: &Request) -> BTreeSet<&VariableName> {
    let listed = request.wishes.variables.iter().flatten();
    let exactly = listed.filter_map(|pattern| match pattern {
        NamePattern::Exact(name) => Some(name),
        NamePattern::Prefix(_) => None,
    });
    let referred = request
        .chosen
        .iter()
        .flat_map(|chosen| chosen.references.values());
    exactly
        .chain(request.wishes.rename.values())
        .chain(referred)
        .collect()
}

/// What is not there yet of what the pod asks for by name. Of many names it is not told which: whoever posts a review may
/// have guessed them.
fn missing_names(request: &Request, names: Option<&BTreeSet<VariableName>>) -> Vec<String> {
    let Some(names) = names else {
        return Vec::new();
    };
    let required = required(request);
    let mut missing = required.iter().filter(|name| !names.contains(**name));
    let stage = request.stage_name();
    if required.len() > WARNINGS_MAX {
        let some = missing.next().map(|_| {
            format!(
                "BarekeyStage {stage} does not have all {} variables that the pod names: the containers that ask for one it has not do not start until it is written; `barekey env list` shows which are there",
                required.len()
            )
        });
        return Vec::from_iter(some);
    }
    missing
        .map(|name| {
            format!(
                "BarekeyStage {stage} has no variable {name}: the containers that ask for it do not start until it is written"
            )
        })
        .collect()
}

fn mark(pod: &mut Value, id: &StageId, revision: i64, settings: &InjectionSettings) {
    let Value::Object(pod) = pod else {
        return;
    };
    let metadata = pod::object_mut(pod, "metadata");
    pod::object_mut(metadata, "labels").insert(INJECTED.to_owned(), Value::from("true"));
    pod::object_mut(metadata, "annotations").extend([
        (INJECTED_STAGE.to_owned(), Value::from(id.as_str())),
        (
            INJECTED_REVISION.to_owned(),
            Value::from(revision.to_string()),
        ),
        (
            INJECTED_CA.to_owned(),
            Value::from(settings.authority.id.as_str()),
        ),
    ]);
}

fn account(pod: &Value) -> Result<ObjectName, NameError> {
    let spec = pod::spec(pod);
    ["serviceAccountName", "serviceAccount"]
        .into_iter()
        .filter_map(|field| pod::text(spec, field))
        .find(|name| !name.is_empty())
        .unwrap_or("default")
        .parse()
}

fn is_windows(pod: &Value) -> bool {
    let spec = pod::spec(pod);
    let says = |value: Option<&Value>| value.and_then(Value::as_str) == Some("windows");
    says(spec.pointer("/os/name")) || says(spec.pointer("/nodeSelector/kubernetes.io~1os"))
}

/// A token for the vault in a pod that asks for nothing reads nothing, and its owner should know.
fn token_without_stage(pod: &Value, audience: &str) -> Vec<String> {
    let asks = |volume: &Value| {
        pod::items(volume.get("projected").unwrap_or(&Value::Null), "sources")
            .iter()
            .any(|source| source.pointer("/serviceAccountToken/audience") == Some(&json!(audience)))
    };
    pod::items(pod::spec(pod), "volumes")
        .iter()
        .filter(|volume| asks(volume))
        .take(WARNINGS_MAX)
        .map(|volume| {
            format!(
                "volume {} has a token for barekey, and without the annotation barekey.dev/stage it reads nothing",
                refusal::shown(pod::name(volume))
            )
        })
        .collect()
}
