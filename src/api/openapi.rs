//! The OpenAPI document: bodies from the types of [`crate::protocol`], routes from the handlers, refusals from the table.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::error::Code;
use super::{Api, COMMON_REFUSALS, CREDENTIAL_REFUSALS, Callers, ROUTES, Route};
use crate::domain::audit::Action;
use crate::protocol::error::ErrorBody;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Barekey",
        description = "The vault of Barekey for Kubernetes. Every answer carries the id of its request; every refusal has the body `ErrorBody`.",
    ),
    paths(
        super::environment::evaluate,
        super::environment::evaluate_batch,
        super::environment::list,
        super::environment::pull,
        super::environment::write,
        super::projects::list,
        super::projects::create,
        super::projects::list_stages,
        super::projects::create_stage,
        super::session::session,
        super::pods::values,
        serve,
    ),
    components(schemas(ErrorBody))
)]
struct Handlers;

/// This document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "meta",
    responses((status = 200, description = "This document", content_type = "application/json"))
)]
pub(crate) async fn serve(State(api): State<Api>) -> impl IntoResponse {
    answer(api.document())
}

fn answer(document: Bytes) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document)
}

/// The whole document.
pub fn document() -> Value {
    let mut document = serde_json::to_value(Handlers::openapi()).unwrap_or_else(|_| json!({}));
    for route in ROUTES {
        let method = route.method.as_str().to_ascii_lowercase();
        if let Some(operation) = document
            .pointer_mut(&format!(
                "/paths/{}/{method}",
                route.path.replace('/', "~1")
            ))
            .and_then(Value::as_object_mut)
        {
            describe(route, operation);
        }
    }
    if let Some(components) = document
        .pointer_mut("/components")
        .and_then(Value::as_object_mut)
    {
        components.insert(
            "securitySchemes".to_owned(),
            json!({
                "token": {"type": "http", "scheme": "bearer", "bearerFormat": "bk_api_…",
                    "description": "An API token of an organization, perhaps cut to a project or a stage."},
                "pod": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "The service account token of a living pod, made for this vault's audience."},
            }),
        );
    }
    if let Some(schemas) = document
        .pointer_mut("/components/schemas")
        .and_then(Value::as_object_mut)
    {
        let actions: Vec<_> = Action::ALL.iter().map(|action| action.as_str()).collect();
        schemas.insert(
            "AuditAction".to_owned(),
            json!({"type": "string", "enum": actions, "description": "What the audit trail calls what happened."}),
        );
        let codes: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        if let Some(code) = schemas
            .get_mut("ErrorDetail")
            .and_then(|detail| detail.pointer_mut("/properties/code"))
            .and_then(Value::as_object_mut)
        {
            code.insert("enum".to_owned(), json!(codes));
        }
    }
    document
}

/// Every code that a route may refuse with.
fn refusals(route: &Route) -> impl Iterator<Item = Code> {
    let common: &[Code] = match route.callers {
        Callers::Everyone => &[Code::InternalError],
        Callers::Tokens | Callers::Pods | Callers::Recognised => COMMON_REFUSALS,
    };
    let credential: &[Code] = match route.callers {
        Callers::Everyone => &[],
        Callers::Tokens | Callers::Pods | Callers::Recognised => CREDENTIAL_REFUSALS,
    };
    common
        .iter()
        .chain(credential)
        .chain(route.refusals)
        .copied()
}

fn describe(route: &Route, operation: &mut Map<String, Value>) {
    let security = match route.callers {
        Callers::Everyone => json!([]),
        Callers::Tokens => json!([{"token": []}]),
        Callers::Pods => json!([{"pod": []}]),
        Callers::Recognised => json!([{"token": []}, {"pod": []}]),
    };
    operation.insert("security".to_owned(), security);
    let Some(responses) = operation
        .get_mut("responses")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    for code in refusals(route) {
        let status = code.status().as_u16().to_string();
        let response = responses.entry(status).or_insert_with(|| {
            json!({
                "description": "",
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}},
            })
        });
        if let Some(Value::String(description)) = response.get_mut("description") {
            if !description.is_empty() {
                description.push_str(", ");
            }
            description.push_str(code.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use http_body_util::BodyExt;

    use super::*;

    #[test]
    fn the_document_has_exactly_the_routes_of_the_table() {
        let document = document();
        let mut documented = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                documented.insert((path.clone(), method.to_uppercase()));
            }
        }
        let table: BTreeSet<_> = ROUTES
            .iter()
            .map(|route| (route.path.to_owned(), route.method.to_string()))
            .collect();
        assert_eq!(documented, table);
    }

    #[tokio::test]
    async fn every_answer_with_the_document_shares_one_text() {
        let document = Bytes::from(document().to_string());
        let mut begins = Vec::new();
        for _ in 0..2 {
            let body = answer(document.clone()).into_response().into_body();
            begins.push(body.collect().await.unwrap().to_bytes().as_ptr());
        }
        assert_eq!(begins, [document.as_ptr(); 2]);
    }

    #[test]
    fn every_route_with_a_credential_documents_the_refusals_of_one() {
        let document = document();
        for route in ROUTES {
            let operation =
                &document["paths"][route.path][route.method.as_str().to_ascii_lowercase()];
            let responses = operation["responses"].as_object().unwrap();
            assert!(responses.contains_key("200"), "{}", route.path);
            let wants_credential = route.callers != Callers::Everyone;
            assert_eq!(
                responses.contains_key("401"),
                wants_credential,
                "{}",
                route.path
            );
            for code in route.refusals {
                let described = responses[code.status().as_str()]["description"]
                    .as_str()
                    .unwrap();
                assert!(described.contains(code.as_str()), "{}", route.path);
            }
        }
    }

    #[test]
    fn every_reference_in_the_document_leads_somewhere() {
        fn walk(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(target)) = map.get("$ref") {
                        found.push(target.clone());
                    }
                    map.values().for_each(|inner| walk(inner, found));
                }
                Value::Array(items) => items.iter().for_each(|inner| walk(inner, found)),
                _ => {}
            }
        }
        let document = document();
        let mut found = Vec::new();
        walk(&document, &mut found);
        assert!(found.len() > 20);
        for target in found {
            let pointer = target.strip_prefix('#').unwrap();
            assert!(document.pointer(pointer).is_some(), "{target}");
        }
    }

    #[test]
    fn the_audit_actions_and_the_codes_are_closed_lists_in_the_document() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        assert_eq!(
            schemas["AuditAction"]["enum"].as_array().unwrap().len(),
            Action::ALL.len()
        );
        assert_eq!(
            schemas["ErrorDetail"]["properties"]["code"]["enum"]
                .as_array()
                .unwrap()
                .len(),
            Code::ALL.len()
        );
    }
}
