//! The OpenAPI document: bodies from the types of [`crate::protocol`], routes from the handlers, refusals from the table.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, header};
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};
use utoipa::OpenApi;

use super::error::Code;
use super::{Api, COMMON_REFUSALS, CREDENTIAL_REFUSALS, Callers, ROUTES, Route, limits};
use crate::domain::audit::Action;
use crate::domain::variable::{DeclaredType, Kind, Visibility};
use crate::protocol::error::ErrorBody;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Barekey",
        description = "The vault of Barekey for Kubernetes. Every answer carries the id of its request; every refusal has the body `ErrorBody`. What is no HTTP request is refused before the API sees it, with 400, or 431 for headers that are too long, and with an empty body.",
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

/// Properties that are one of a few words and no type of their own: schema, property, words.
const WORDS: &[(&str, &str, &[&str])] = &[
    ("WriteRequest", "mode", &["upsert", "create_only"]),
    ("SessionResponse", "source", &["token", "pod"]),
];

/// Types that are one of a few words: schema, words.
const WORD_TYPES: &[(&str, &[&str])] = &[
    ("Kind", Kind::WORDS),
    ("DeclaredType", DeclaredType::WORDS),
    ("Visibility", Visibility::WORDS),
];

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
        for (schema, words) in WORD_TYPES {
            if let Some(schema) = schemas.get_mut(*schema).and_then(Value::as_object_mut) {
                schema.insert("enum".to_owned(), json!(words));
            }
        }
        for (schema, property, words) in WORDS {
            if let Some(property) = schemas
                .get_mut(*schema)
                .and_then(|schema| schema.pointer_mut(&format!("/properties/{property}")))
                .and_then(Value::as_object_mut)
            {
                property.insert("enum".to_owned(), json!(words));
            }
        }
    }
    document
}

/// Whether what a route answers is counted as used.
fn counts_reads(route: &Route) -> bool {
    matches!(
        route.path,
        "/v1/env/evaluate" | "/v1/env/evaluate-batch" | "/v1/env/pull"
    )
}

fn takes_body(route: &Route) -> bool {
    route.method == Method::POST
}

/// Every code that a route may refuse with.
fn refusals(route: &Route) -> impl Iterator<Item = Code> {
    let common: &[Code] = if takes_body(route) {
        COMMON_REFUSALS
    } else {
        &[Code::InternalError]
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
    operation.insert("parameters".to_owned(), headers(route));
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
    for response in responses.values_mut().filter_map(Value::as_object_mut) {
        response.insert(
            "headers".to_owned(),
            json!({"x-request-id": {"description": "The id of the request.", "schema": {"type": "string"}}}),
        );
    }
}

/// The headers that a request may have beside its credential.
fn headers(route: &Route) -> Value {
    let header = |name: &str, length_max: usize, description: &str| {
        json!({
            "name": name, "in": "header", "required": false, "description": description,
            "schema": {"type": "string", "minLength": 1, "maxLength": length_max},
        })
    };
    let mut headers = vec![header(
        "x-request-id",
        limits::REQUEST_ID_BYTES_MAX,
        "The id of the request, if the caller has one: visible ASCII characters. Any other is replaced.",
    )];
    if counts_reads(route) {
        headers.push(header(
            "x-barekey-request-key",
            limits::REQUEST_KEY_BYTES_MAX,
            "Names the request for the counting of usage, in visible ASCII characters: a repeat within 24 hours is not counted again.",
        ));
    }
    Value::Array(headers)
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
    fn every_property_of_the_document_has_a_type() {
        const SAYS: [&str; 5] = ["type", "$ref", "oneOf", "allOf", "anyOf"];
        fn walk(at: &str, schema: &Value, seen: &mut usize) {
            *seen += 1;
            assert!(
                SAYS.iter().any(|word| schema.get(*word).is_some()),
                "{at}: {schema}"
            );
            let properties = schema.get("properties").and_then(Value::as_object);
            for (name, inner) in properties.into_iter().flatten() {
                walk(&format!("{at}.{name}"), inner, seen);
            }
            for word in ["items", "additionalProperties"] {
                if let Some(inner) = schema.get(word).filter(|inner| !inner.is_boolean()) {
                    walk(&format!("{at}.{word}"), inner, seen);
                }
            }
            for word in ["oneOf", "allOf", "anyOf"] {
                for inner in schema
                    .get(word)
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    walk(&format!("{at}.{word}"), inner, seen);
                }
            }
        }
        let document = document();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut seen = 0;
        for (name, schema) in schemas {
            walk(name, schema, &mut seen);
        }
        assert!(seen > 100, "{seen}");
        assert_eq!(
            schemas["PullResponse"]["properties"]["variables"]["additionalProperties"]["type"],
            "string"
        );
        for schema in ["WriteEntry", "EvaluatedVariable", "PodValue"] {
            assert_eq!(
                schemas[schema]["properties"]["value"]["type"], "string",
                "{schema}"
            );
            let required = schemas[schema]["required"].as_array().unwrap();
            assert!(required.contains(&json!("value")), "{schema}");
        }
    }

    #[test]
    fn words_and_headers_are_closed_lists_in_the_document() {
        let document = document();
        let schemas = &document["components"]["schemas"];
        for (schema, property, words) in WORDS {
            assert_eq!(
                schemas[schema]["properties"][property]["enum"],
                json!(words)
            );
        }
        assert_eq!(schemas["Kind"]["enum"], json!(["secret"]));
        assert_eq!(schemas["Visibility"]["enum"], json!(["private", "public"]));
        assert_eq!(schemas["DeclaredType"]["enum"].as_array().unwrap().len(), 6);
        for (schema, property, of) in [
            ("WriteEntry", "kind", "Kind"),
            ("EvaluatedVariable", "declaredType", "DeclaredType"),
            ("WriteEntry", "visibility", "Visibility"),
            ("EvaluateRequest", "declaredType", "DeclaredType"),
        ] {
            let text = schemas[schema]["properties"][property].to_string();
            assert!(
                text.contains(&format!("#/components/schemas/{of}")),
                "{schema}.{property}: {text}"
            );
        }
        let session = &document["paths"]["/v1/cli/session"]["get"];
        for status in ["400", "408", "413"] {
            assert!(session["responses"].get(status).is_none(), "{status}");
        }
        let names = |operation: &Value| -> Vec<String> {
            let parameters = operation["parameters"].as_array().unwrap();
            parameters
                .iter()
                .map(|it| it["name"].as_str().unwrap().to_owned())
                .collect()
        };
        assert_eq!(names(session), ["x-request-id"]);
        let evaluate = &document["paths"]["/v1/env/evaluate"]["post"];
        assert_eq!(names(evaluate), ["x-request-id", "x-barekey-request-key"]);
        assert!(evaluate["responses"]["401"]["headers"]["x-request-id"].is_object());
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
