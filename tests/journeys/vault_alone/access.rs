//! Who may do what. The walk goes over the OpenAPI document, so that a new route cannot dodge it.

use serde_json::{Value, json};

use super::database::Engine;
use super::http::{self, Answer};
use super::server::{PRODUCTION, STAGING, Server, Shop};

/// A body that passes the shape check of a route. A route that is not known here fails the walk.
fn body_of(path: &str) -> Value {
    let stage = |more: Value| {
        let mut body = json!({"projectSlug": "shop", "stageSlug": "staging"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    match path {
        "/v1/env/evaluate" => stage(json!({"name": "KEEP"})),
        "/v1/env/evaluate-batch" => stage(json!({"names": ["KEEP"]})),
        "/v1/env/list" | "/v1/env/pull" => stage(json!({})),
        "/v1/env/write" => stage(
            json!({"mode": "upsert", "entries": [{"name": "NEW", "kind": "secret", "value": "1"}]}),
        ),
        "/v1/cli/projects/list" => json!({}),
        "/v1/cli/projects/create" => json!({"name": "Walked"}),
        "/v1/cli/stages/list" => json!({"projectSlug": "shop"}),
        "/v1/cli/stages/create" => json!({"projectSlug": "shop", "name": "Walked"}),
        "/v1/cli/session" => json!({}),
        "/v1/pod/values" => json!({"v": 1}),
        other => {
            panic!("the route {other} is new: teach this walk a body that passes its shape check")
        }
    }
}

/// Every route of the document that wants a credential: method, path, whether API tokens may use it.
fn routes(server: &Server) -> Vec<(String, String, bool)> {
    let document = server.call("GET", "/openapi.json", None, &json!({})).json();
    let mut routes = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let security = operation["security"].as_array().unwrap();
            if security.is_empty() {
                assert_eq!(path, "/openapi.json", "a route without a credential");
                continue;
            }
            let tokens = security.iter().any(|scheme| scheme.get("token").is_some());
            routes.push((method.to_uppercase(), path.clone(), tokens));
        }
    }
    assert!(routes.len() >= 11, "{routes:?}");
    routes
}

#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str, case: &str) {
    assert_eq!(answer.refusal(), (status, code.to_owned()), "{case}");
}

pub(crate) fn every_route_refuses_no_malformed_foreign_and_small_credentials(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    let before = server.snapshot(&owner, STAGING);
    let foreign = place.bootstrap("globex");
    let small = place.token("acme", &["--role", "billing"]);
    let almost = format!("{}x", &owner[..owner.len() - 1]);

    for (method, path, tokens) in routes(&server) {
        let body = body_of(&path);
        let raw = |authorization: &[(&str, &str)], body: &Value| {
            let body = body.to_string();
            http::exchange(
                server.api,
                &http::request(&method, &path, authorization, body.as_bytes()),
            )
        };
        refused(
            &raw(&[], &body),
            401,
            "UNAUTHORIZED",
            &format!("{path} without a credential"),
        );
        for malformed in [
            "",
            "Bearer",
            "Bearer ",
            "Basic YWRtaW46YWRtaW4=",
            &owner,
            "Bearer garbage",
            "Bearer bk_api_short",
            "Bearer eyJhbGciOiJub25lIn0.e30.",
            &format!("Bearer {almost}"),
        ] {
            let answer = raw(&[("authorization", malformed)], &body);
            refused(
                &answer,
                401,
                "UNAUTHORIZED",
                &format!("{path} with a malformed credential"),
            );
        }
        let good = format!("Bearer {owner}");
        let doubled = [
            ("authorization", good.as_str()),
            ("authorization", good.as_str()),
        ];
        refused(
            &raw(&doubled, &body),
            401,
            "UNAUTHORIZED",
            &format!("{path} with two credentials"),
        );

        if method == "POST" {
            // Before the credential is looked at, the body is: JSON, then shape.
            let not_json = http::exchange(server.api, &http::request(&method, &path, &[], b"{"));
            refused(&not_json, 400, "INVALID_JSON", &path);
            refused(&raw(&[], &json!([])), 400, "INVALID_REQUEST", &path);
        }
        if path == "/v1/cli/session" {
            continue;
        }
        if !tokens {
            let answer = server.call(&method, &path, Some(&owner), &body);
            refused(
                &answer,
                403,
                "FORBIDDEN",
                &format!("{path} with an API token"),
            );
            continue;
        }
        let mut named = body.clone();
        named["orgSlug"] = json!("acme");
        let answer = server.call(&method, &path, Some(&foreign), &named);
        refused(
            &answer,
            403,
            "INVALID_ORG_SCOPE",
            &format!("{path} with a foreign token"),
        );
        named["orgSlug"] = json!("no-such-organization");
        let answer = server.call(&method, &path, Some(&foreign), &named);
        refused(
            &answer,
            403,
            "INVALID_ORG_SCOPE",
            &format!("{path} for an absent organization"),
        );
        let answer = server.call(&method, &path, Some(&small), &body);
        refused(
            &answer,
            403,
            "FORBIDDEN",
            &format!("{path} with a token of a small role"),
        );
    }

    // A foreign token that names no organization is in its own, where there is nothing of this.
    let answer = server.evaluate(&foreign, STAGING, "KEEP");
    refused(&answer, 404, "VARIABLE_NOT_FOUND", "a foreign token");
    assert_eq!(server.snapshot(&owner, STAGING), before);
    let projects = server
        .post("/v1/cli/projects/list", &owner, &json!({}))
        .success();
    assert_eq!(projects["projects"].as_array().unwrap().len(), 1);
    let stages = server
        .post(
            "/v1/cli/stages/list",
            &owner,
            &json!({"projectSlug": "shop"}),
        )
        .success();
    assert_eq!(stages["stages"].as_array().unwrap().len(), 3);
}

pub(crate) fn each_role_reads_and_writes_what_the_table_says(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    for stage in [STAGING, PRODUCTION] {
        server.write(&owner, stage, &[("KEEP", "kept")]);
    }
    // role, reads staging, writes staging, reads production, writes production, makes stages
    let table = [
        ("owner", true, true, true, true, true),
        ("admin", true, true, true, true, true),
        ("developer", true, true, true, false, false),
        ("operator", true, false, true, false, false),
        ("viewer", true, false, false, false, false),
        ("billing", false, false, false, false, false),
    ];
    for (role, reads, writes, reads_protected, writes_protected, manages) in table {
        let token = place.token("acme", &["--role", role]);
        let check = |allowed: bool, answer: Answer, act: &str| {
            if allowed {
                answer.success();
            } else {
                refused(&answer, 403, "FORBIDDEN", &format!("{role} may not {act}"));
            }
        };
        for (stage, may_read, may_write) in [
            (STAGING, reads, writes),
            (PRODUCTION, reads_protected, writes_protected),
        ] {
            check(may_read, server.evaluate(&token, stage, "KEEP"), "evaluate");
            let target = json!({"projectSlug": stage.0, "stageSlug": stage.1});
            check(
                may_read,
                server.post("/v1/env/pull", &token, &target),
                "pull",
            );
            check(
                may_read,
                server.post("/v1/env/list", &token, &target),
                "list",
            );
            let body = json!({"projectSlug": stage.0, "stageSlug": stage.1, "mode": "upsert",
                "entries": [{"name": "BY", "kind": "secret", "value": role}]});
            check(
                may_write,
                server.post("/v1/env/write", &token, &body),
                "write",
            );
        }
        let body = json!({"projectSlug": "shop", "name": "Of", "slug": format!("of-{role}")});
        check(
            manages,
            server.post("/v1/cli/stages/create", &token, &body),
            "make stages",
        );
    }
    assert_eq!(server.value(&owner, STAGING, "BY"), "developer");
    assert_eq!(server.value(&owner, PRODUCTION, "BY"), "admin");
}

pub(crate) fn outside_its_scope_a_token_learns_nothing(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    server.make_project(&owner, "other");
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    server.write(&owner, ("other", "staging"), &[("KEEP", "kept")]);
    let stage_token = place.token(
        "acme",
        &["--role", "admin", "--project", "shop", "--stage", "staging"],
    );
    let project_token = place.token("acme", &["--role", "admin", "--project", "shop"]);

    assert_eq!(server.value(&stage_token, STAGING, "KEEP"), "kept");
    assert_eq!(server.value(&project_token, STAGING, "KEEP"), "kept");
    let listed = server
        .post("/v1/cli/projects/list", &project_token, &json!({}))
        .success();
    assert_eq!(listed["projects"].as_array().unwrap().len(), 1);

    let ask = |token: &str, path: &str, body: &Value| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str()), ("x-request-id", "same")];
        http::exchange(
            server.api,
            &http::request("POST", path, &headers, body.to_string().as_bytes()),
        )
    };
    // What is there and what is not read the same, to the byte.
    let outside = [
        ("other", "staging"),
        ("other", "absent"),
        ("absent", "staging"),
    ];
    for path in [
        "/v1/env/evaluate",
        "/v1/env/pull",
        "/v1/env/list",
        "/v1/env/write",
    ] {
        let bodies = outside.map(|(project, stage)| {
            let answer = ask(
                &project_token,
                path,
                &json!({"projectSlug": project, "stageSlug": stage, "name": "KEEP",
                "mode": "upsert", "entries": [{"name": "NEW", "kind": "secret", "value": "1"}]}),
            );
            refused(
                &answer,
                403,
                "FORBIDDEN",
                &format!("{path} {project}/{stage}"),
            );
            String::from_utf8(answer.body).unwrap()
        });
        assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
        let bodies = ["production", "absent"].map(|stage| {
            let answer = ask(
                &stage_token,
                path,
                &json!({"projectSlug": "shop", "stageSlug": stage, "name": "KEEP",
                "mode": "upsert", "entries": [{"name": "NEW", "kind": "secret", "value": "1"}]}),
            );
            refused(&answer, 403, "FORBIDDEN", &format!("{path} shop/{stage}"));
            String::from_utf8(answer.body).unwrap()
        });
        assert_eq!(bodies[0], bodies[1]);
    }
    for path in ["/v1/cli/stages/list", "/v1/cli/stages/create"] {
        let bodies = ["other", "absent"].map(|project| {
            let answer = ask(
                &project_token,
                path,
                &json!({"projectSlug": project, "name": "New"}),
            );
            refused(&answer, 403, "FORBIDDEN", &format!("{path} {project}"));
            String::from_utf8(answer.body).unwrap()
        });
        assert_eq!(bodies[0], bodies[1]);
    }
    let answer = server.post(
        "/v1/cli/projects/create",
        &project_token,
        &json!({"name": "New"}),
    );
    refused(&answer, 403, "FORBIDDEN", "a project by a token of another");
    let answer = server.post(
        "/v1/cli/stages/create",
        &stage_token,
        &json!({"projectSlug": "shop", "name": "New"}),
    );
    refused(&answer, 403, "FORBIDDEN", "a stage by a token of another");
}
