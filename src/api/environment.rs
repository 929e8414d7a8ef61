//! `/v1/env/*`: evaluate, evaluate-batch, pull, list, write.

use std::collections::{BTreeMap, HashSet};

use axum::Json;
use axum::extract::State;
use axum::response::Response;

use super::Api;
use super::callers::{Ask, Call};
use super::error::{Absent, ApiError, Code};
use super::limits;
use crate::domain::names::{OrganizationSlug, VariableName};
use crate::domain::plaintext::Plaintext;
use crate::protocol::environment::{
    EvaluateBatchEntry, EvaluateBatchRequest, EvaluateBatchResponse, EvaluateRequest,
    EvaluateResponse, EvaluatedVariable, ListRequest, ListResponse, ListedVariable, PullRequest,
    PullResponse, Value, WriteEntry, WriteRequest, WriteResponse,
};
use crate::vault::variables::{self, Entry, Opened, Target, Write, WriteMode};

/// Slugs and names are trimmed at the door.
pub(super) fn target(
    organization: Option<&str>,
    project: &str,
    stage: &str,
) -> Result<Target, ApiError> {
    Ok(Target {
        organization: self::organization(organization)?,
        project: project.trim().parse()?,
        stage: stage.trim().parse()?,
    })
}

/// The organization, if one was named.
pub(super) fn organization(slug: Option<&str>) -> Result<Option<OrganizationSlug>, ApiError> {
    Ok(slug.map(|slug| slug.trim().parse()).transpose()?)
}

fn invalid(problem: impl Into<String>) -> ApiError {
    ApiError::new(Code::InvalidRequest, problem)
}

/// `seed` and `key` are for two-armed variables: of those of one value only their length counts.
fn check_seeds(seed: Option<&str>, key: Option<&str>) -> Result<(), ApiError> {
    for (field, text) in [("seed", seed), ("key", key)] {
        if text.is_some_and(|text| text.len() > limits::SEED_BYTES_MAX) {
            return Err(invalid(format!(
                "{field} is longer than {} bytes",
                limits::SEED_BYTES_MAX
            )));
        }
    }
    Ok(())
}

fn asked(name: &str, declared_type: Option<&str>) -> Result<variables::Ask, ApiError> {
    Ok(variables::Ask {
        name: name.trim().parse()?,
        declared_type: declared_type.map(|word| word.trim().parse()).transpose()?,
    })
}

fn each_once<'a>(names: impl IntoIterator<Item = &'a VariableName>) -> Result<(), ApiError> {
    let mut seen = HashSet::new();
    match names.into_iter().find(|name| !seen.insert(*name)) {
        Some(name) => Err(invalid(format!(
            "the name {name} is there twice; each may be there once"
        ))),
        None => Ok(()),
    }
}

/// How many bytes so many values take at most.
fn values_max(api: &Api, count: usize) -> usize {
    count
        .saturating_mul(api.vault().value_bytes_max())
        .min(limits::STAGE_BYTES_COUNTED)
}

/// The text of a value on its way into an answer.
fn revealed(value: &Plaintext) -> Result<Value, ApiError> {
    value
        .reveal_text()
        .map(|text| Value(text.to_owned()))
        .ok_or_else(|| {
            ApiError::new(
                Code::EvaluationFailed,
                "the stored value is not UTF-8; write it again",
            )
        })
}

fn evaluated(opened: Opened) -> Result<EvaluatedVariable, ApiError> {
    Ok(EvaluatedVariable {
        name: opened.name.into(),
        kind: opened.kind.to_string(),
        declared_type: opened.declared_type.to_string(),
        visibility: opened.visibility.to_string(),
        value: revealed(&opened.value)?,
    })
}

pub(crate) struct Evaluate {
    target: Target,
    ask: variables::Ask,
}

impl Ask for Evaluate {
    type Body = EvaluateRequest;

    fn shape(body: EvaluateRequest) -> Result<Self, ApiError> {
        check_seeds(body.seed.as_deref(), body.key.as_deref())?;
        Ok(Self {
            target: target(
                body.org_slug.as_deref(),
                &body.project_slug,
                &body.stage_slug,
            )?,
            ask: asked(&body.name, body.declared_type.as_deref())?,
        })
    }
}

/// One variable, in the clear. A project, stage or variable that is not there is `VARIABLE_NOT_FOUND`.
#[utoipa::path(
    post, path = "/v1/env/evaluate", tag = "variables",
    request_body = EvaluateRequest,
    responses((status = 200, description = "The variable", body = EvaluateResponse))
)]
pub(crate) async fn evaluate(
    State(api): State<Api>,
    call: Call<Evaluate>,
) -> Result<Response, ApiError> {
    let room = api
        .answers()
        .room(call.address, values_max(&api, 1))
        .await?;
    let opened = api
        .vault()
        .evaluate(
            &call.caller,
            &call.origin,
            &call.ask.target,
            std::slice::from_ref(&call.ask.ask),
            call.request_key.as_deref(),
        )
        .await
        .map_err(|error| ApiError::of_read(error, Absent::Variable))?;
    let opened = opened.into_iter().next().ok_or_else(ApiError::internal)?;
    room.fill(EvaluateResponse {
        variable: evaluated(opened)?,
        request_id: call.origin.request_id,
    })
}

pub(crate) struct EvaluateBatch {
    target: Target,
    asks: Vec<variables::Ask>,
}

impl Ask for EvaluateBatch {
    type Body = EvaluateBatchRequest;

    const BODY_BYTES_MAX: usize = limits::BATCH_BODY_BYTES_MAX;

    fn shape(body: EvaluateBatchRequest) -> Result<Self, ApiError> {
        check_seeds(body.seed.as_deref(), body.key.as_deref())?;
        let asks = match (body.entries, body.names) {
            (Some(entries), None) => entries
                .iter()
                .map(entry_asked)
                .collect::<Result<Vec<_>, _>>()?,
            (None, Some(names)) => names
                .iter()
                .map(|name| asked(name, None))
                .collect::<Result<Vec<_>, _>>()?,
            (Some(_), Some(_)) | (None, None) => {
                return Err(invalid("send either `entries` or `names`"));
            }
        };
        if !(1..=limits::BATCH_NAMES_MAX).contains(&asks.len()) {
            return Err(invalid(format!(
                "a batch has 1 to {} variables",
                limits::BATCH_NAMES_MAX
            )));
        }
        each_once(asks.iter().map(|ask| &ask.name))?;
        Ok(Self {
            target: target(
                body.org_slug.as_deref(),
                &body.project_slug,
                &body.stage_slug,
            )?,
            asks,
        })
    }
}

fn entry_asked(entry: &EvaluateBatchEntry) -> Result<variables::Ask, ApiError> {
    check_seeds(entry.seed.as_deref(), entry.key.as_deref())?;
    asked(&entry.name, entry.declared_type.as_deref())
}

/// Several variables, in the order asked. One that is missing refuses all.
#[utoipa::path(
    post, path = "/v1/env/evaluate-batch", tag = "variables",
    request_body = EvaluateBatchRequest,
    responses((status = 200, description = "The variables, in the order asked", body = EvaluateBatchResponse))
)]
pub(crate) async fn evaluate_batch(
    State(api): State<Api>,
    call: Call<EvaluateBatch>,
) -> Result<Response, ApiError> {
    let room = api
        .answers()
        .room(call.address, values_max(&api, call.ask.asks.len()))
        .await?;
    let opened = api
        .vault()
        .evaluate(
            &call.caller,
            &call.origin,
            &call.ask.target,
            &call.ask.asks,
            call.request_key.as_deref(),
        )
        .await
        .map_err(|error| ApiError::of_read(error, Absent::Variable))?;
    room.fill(EvaluateBatchResponse {
        results: opened
            .into_iter()
            .map(evaluated)
            .collect::<Result<_, _>>()?,
        request_id: call.origin.request_id,
    })
}

pub(crate) struct Pull {
    target: Target,
}

impl Ask for Pull {
    type Body = PullRequest;

    fn shape(body: PullRequest) -> Result<Self, ApiError> {
        check_seeds(body.seed.as_deref(), body.key.as_deref())?;
        Ok(Self {
            target: target(
                body.org_slug.as_deref(),
                &body.project_slug,
                &body.stage_slug,
            )?,
        })
    }
}

/// Every variable of a stage, in the clear.
#[utoipa::path(
    post, path = "/v1/env/pull", tag = "variables",
    request_body = PullRequest,
    responses((status = 200, description = "Every variable of the stage", body = PullResponse))
)]
pub(crate) async fn pull(State(api): State<Api>, call: Call<Pull>) -> Result<Response, ApiError> {
    let room = api
        .answers()
        .room(call.address, limits::STAGE_BYTES_COUNTED)
        .await?;
    let opened = api
        .vault()
        .pull(
            &call.caller,
            &call.origin,
            &call.ask.target,
            call.request_key.as_deref(),
        )
        .await
        .map_err(|error| ApiError::of_read(error, Absent::Environment))?;
    let variables = opened
        .into_iter()
        .map(|variable| Ok((variable.name.into(), revealed(&variable.value)?)))
        .collect::<Result<BTreeMap<_, _>, ApiError>>()?;
    room.fill(PullResponse {
        variables,
        request_id: call.origin.request_id,
    })
}

pub(crate) struct List {
    target: Target,
}

impl Ask for List {
    type Body = ListRequest;

    fn shape(body: ListRequest) -> Result<Self, ApiError> {
        Ok(Self {
            target: target(
                body.org_slug.as_deref(),
                &body.project_slug,
                &body.stage_slug,
            )?,
        })
    }
}

/// What a stage holds, without values.
#[utoipa::path(
    post, path = "/v1/env/list", tag = "variables",
    request_body = ListRequest,
    responses((status = 200, description = "What the stage holds, sorted by name", body = ListResponse))
)]
pub(crate) async fn list(State(api): State<Api>, call: Call<List>) -> Result<Response, ApiError> {
    // Names beside values of no length take as much.
    let room = api
        .answers()
        .room(call.address, limits::STAGE_BYTES_COUNTED)
        .await?;
    let listed = api
        .vault()
        .list(&call.caller, &call.origin, &call.ask.target)
        .await
        .map_err(|error| ApiError::of_read(error, Absent::Environment))?;
    let variables = listed
        .into_iter()
        .map(|variable| ListedVariable {
            name: variable.name.into(),
            kind: variable.kind.to_string(),
            declared_type: variable.declared_type.to_string(),
            visibility: variable.visibility.to_string(),
            version: variable.version,
            created_at_ms: variable.created_at_ms,
            updated_at_ms: variable.updated_at_ms,
        })
        .collect();
    room.fill(ListResponse {
        variables,
        request_id: call.origin.request_id,
    })
}

pub(crate) struct Change {
    target: Target,
    write: Write,
}

impl Ask for Change {
    type Body = WriteRequest;

    const BODY_BYTES_MAX: usize = limits::WRITE_BODY_BYTES_MAX;

    fn shape(body: WriteRequest) -> Result<Self, ApiError> {
        let mode = match body.mode.trim() {
            "upsert" => WriteMode::Upsert,
            "create_only" => WriteMode::CreateOnly,
            _ => return Err(invalid("mode must be upsert or create_only")),
        };
        let target = target(
            body.org_slug.as_deref(),
            &body.project_slug,
            &body.stage_slug,
        )?;
        if !(1..=limits::WRITE_NAMES_MAX).contains(&(body.entries.len() + body.deletes.len())) {
            return Err(invalid(format!(
                "a write has 1 to {} entries and deletes together",
                limits::WRITE_NAMES_MAX
            )));
        }
        let entries = body
            .entries
            .into_iter()
            .map(entry)
            .collect::<Result<Vec<_>, _>>()?;
        let deletes = body
            .deletes
            .iter()
            .map(|name| Ok(name.trim().parse()?))
            .collect::<Result<Vec<VariableName>, ApiError>>()?;
        each_once(entries.iter().map(|entry| &entry.name).chain(&deletes))?;
        Ok(Self {
            target,
            write: Write {
                mode,
                entries,
                deletes,
            },
        })
    }
}

fn entry(mut entry: WriteEntry) -> Result<Entry, ApiError> {
    let name: VariableName = entry.name.trim().parse()?;
    // Before the value: other kinds have none, or two.
    let kind = entry.kind.trim().parse()?;
    let Some(value) = &mut entry.value else {
        return Err(invalid(format!("the entry of {name} has no value")));
    };
    Ok(Entry {
        name,
        kind,
        declared_type: entry
            .declared_type
            .map(|word| word.trim().parse())
            .transpose()?,
        visibility: entry
            .visibility
            .map(|word| word.trim().parse())
            .transpose()?,
        value: Plaintext::from(std::mem::take(&mut value.0)),
    })
}

/// Creates, updates and deletes variables of one stage, all or nothing.
#[utoipa::path(
    post, path = "/v1/env/write", tag = "variables",
    request_body = WriteRequest,
    responses((status = 200, description = "What was created, updated and deleted", body = WriteResponse))
)]
pub(crate) async fn write(
    State(api): State<Api>,
    call: Call<Change>,
) -> Result<Json<WriteResponse>, ApiError> {
    let Call {
        caller,
        origin,
        ask,
        address,
        room,
        ..
    } = call;
    let request_id = origin.request_id.clone();
    let names = ask.write.entries.len() + ask.write.deletes.len();
    let turn = api.writes().take(address, names).ok_or_else(|| {
        ApiError::new(
            Code::RateLimited,
            "too many changes wait to be written, from this address or in all; try again",
        )
        .retry_after(limits::WRITES_RETRY_SECONDS)
    })?;
    // A task of its own, since a write that is queued stays in memory when its caller hangs up, and so does its room.
    let writing = tokio::spawn(async move {
        let written = api
            .vault()
            .write(&caller, &origin, &ask.target, ask.write)
            .await;
        drop((room, turn));
        written
    });
    let written = writing.await.map_err(|_| ApiError::internal())??;
    let texts = |names: Vec<VariableName>| names.into_iter().map(String::from).collect();
    Ok(Json(WriteResponse {
        created: texts(written.created),
        updated: texts(written.updated),
        deleted: texts(written.deleted),
        request_id,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(json: serde_json::Value) -> Result<EvaluateBatch, ApiError> {
        EvaluateBatch::shape(serde_json::from_value(json).unwrap())
    }

    fn change(json: serde_json::Value) -> Result<Change, ApiError> {
        Change::shape(serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_batch_takes_entries_or_names_and_not_both() {
        let stage = |more: serde_json::Value| {
            let mut body = serde_json::json!({"projectSlug": "shop", "stageSlug": "staging"});
            body.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            body
        };
        let entries = batch(stage(
            serde_json::json!({"entries": [{"name": "A"}, {"name": "B"}]}),
        ));
        assert_eq!(entries.unwrap().asks.len(), 2);
        let names = batch(stage(serde_json::json!({"names": ["A"]})));
        assert_eq!(names.unwrap().asks.len(), 1);
        for bad in [
            serde_json::json!({}),
            serde_json::json!({"names": []}),
            serde_json::json!({"entries": []}),
            serde_json::json!({"names": ["A"], "entries": [{"name": "A"}]}),
            serde_json::json!({"names": ["A", "A"]}),
            serde_json::json!({"names": ["A", " A "]}),
            serde_json::json!({"names": ["1A"]}),
            serde_json::json!({"names": (0..=limits::BATCH_NAMES_MAX).map(|n| format!("A{n}")).collect::<Vec<_>>()}),
        ] {
            let error = batch(stage(bad.clone())).err().unwrap();
            assert_eq!(error.code(), Code::InvalidRequest, "{bad}");
        }
    }

    #[test]
    fn the_longest_batch_that_is_allowed_fits_into_its_body() {
        let long = "k".repeat(limits::SEED_BYTES_MAX);
        let entries: Vec<_> = (0..limits::BATCH_NAMES_MAX)
            .map(|index| {
                let name = format!("N{index:0>159}");
                serde_json::json!({"name": name, "declaredType": "boolean", "seed": long, "key": long})
            })
            .collect();
        let body =
            serde_json::json!({"projectSlug": "shop", "stageSlug": "staging", "entries": entries});
        assert!(body.to_string().len() < EvaluateBatch::BODY_BYTES_MAX);
        assert!(batch(body).is_ok());
        const { assert!(limits::BATCH_BODY_BYTES_MAX <= limits::WRITE_BODY_BYTES_MAX) };
    }

    #[test]
    fn a_name_may_be_once_across_entries_and_deletes() {
        let entry = serde_json::json!({"name": "A", "kind": "secret", "value": "1"});
        let body = |entries: serde_json::Value, deletes: serde_json::Value| {
            serde_json::json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert",
                "entries": entries, "deletes": deletes})
        };
        assert!(change(body(serde_json::json!([entry]), serde_json::json!(["B"]))).is_ok());
        for (entries, deletes) in [
            (serde_json::json!([entry, entry]), serde_json::json!([])),
            (serde_json::json!([entry]), serde_json::json!(["A"])),
            (serde_json::json!([]), serde_json::json!(["A", "A"])),
            (serde_json::json!([]), serde_json::json!([])),
        ] {
            assert!(
                change(body(entries.clone(), deletes.clone())).is_err(),
                "{entries} {deletes}"
            );
        }
    }

    #[test]
    fn a_mode_that_is_not_known_and_a_kind_of_a_later_version_are_refused() {
        let body = |mode: &str, kind: &str| {
            serde_json::json!({"projectSlug": "shop", "stageSlug": "staging", "mode": mode,
                "entries": [{"name": "A", "kind": kind, "value": "1"}]})
        };
        assert!(change(body("upsert", "secret")).is_ok());
        assert!(change(body("create_only", "secret")).is_ok());
        assert!(change(body("replace", "secret")).is_err());
        // Whatever else its form has, it is the kind that is told.
        let mut later = body("upsert", "ab_roll");
        let form = &mut later["entries"][0];
        *form = serde_json::json!({"name": "A", "kind": "ab_roll", "valueA": "1", "valueB": "2", "chance": 0.5});
        for later in [body("upsert", "ab_roll"), later] {
            let refused = change(later).err().unwrap();
            assert_eq!(refused.code(), Code::InvalidRequest);
            assert!(
                refused.message().contains("not in this version"),
                "{}",
                refused.message()
            );
        }
        let mut none = body("upsert", "secret");
        none["entries"][0] = serde_json::json!({"name": "A", "kind": "secret"});
        assert_eq!(
            change(none).err().unwrap().message(),
            "the entry of A has no value"
        );
    }

    #[test]
    fn slugs_are_trimmed_and_must_not_be_empty() {
        assert!(target(Some(" acme "), " shop ", " staging ").is_ok());
        assert!(target(None, "shop", "  ").is_err());
        assert!(target(Some(""), "shop", "staging").is_err());
    }
}
