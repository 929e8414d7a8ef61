//! From nothing to a value that is read, and what every route answers on the way.

use serde_json::json;

use super::database::Engine;
use super::http;
use super::server::{PRODUCTION, STAGING, Shop, make_value};

pub(crate) fn a_value_that_was_written_is_read_and_is_in_no_log(engine: Engine) {
    let shop = Shop::open(engine);
    let value = make_value();
    let written = shop
        .server
        .write(&shop.owner, STAGING, &[("DATABASE_URL", &value)]);
    assert_eq!(written["created"], json!(["DATABASE_URL"]));
    assert_eq!(
        shop.server.value(&shop.owner, STAGING, "DATABASE_URL"),
        value
    );

    // Refusals that carry the value and the token where they do not belong.
    let misplaced = json!({"projectSlug": value, "stageSlug": "staging", "mode": value, "entries": [{"value": value}]});
    shop.server
        .post("/v1/env/write", &shop.owner, &misplaced)
        .refusal();
    shop.server
        .evaluate(&value, STAGING, "DATABASE_URL")
        .refusal();

    let first_log = shop.server.stop();
    for expected in ["INVALID_REQUEST", "UNAUTHORIZED"] {
        assert!(
            first_log.contains(expected),
            "no {expected}, so that the refusals are not in the log"
        );
    }
    let shop = Shop {
        server: shop.place.serve(),
        ..shop
    };
    assert_eq!(
        shop.server.value(&shop.owner, STAGING, "DATABASE_URL"),
        value
    );
    shop.server
        .evaluate(&shop.owner, STAGING, "ABSENT")
        .refusal();
    // The log is at debug level and has refusals; it arrives by a pipe, after the answers.
    shop.server.wait_until("the refusal in the log", |server| {
        server.log().contains("VARIABLE_NOT_FOUND")
    });
    let second_log = shop.server.log();
    for secret in [value.as_str(), &shop.owner, &shop.place.master_key] {
        for log in [&first_log, &second_log] {
            assert!(!log.contains(secret), "the log has a secret");
        }
    }
    let metrics = String::from_utf8(shop.server.probe("/metrics").body).unwrap();
    assert!(
        metrics.contains("barekey_http_requests_total{route=\"/v1/env/evaluate\",class=\"2xx\"} 1"),
        "{metrics}"
    );
    for word in ["acme", "shop", "staging", "DATABASE_URL"] {
        assert!(
            !metrics.contains(word),
            "{word} is in the metrics:\n{metrics}"
        );
    }
    assert_eq!(shop.server.probe("/healthz").status, 200);
    assert_eq!(shop.server.probe("/readyz").status, 200);
}

pub(crate) fn every_route_answers_as_documented(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    let projects = server
        .post("/v1/cli/projects/list", &owner, &json!({"orgSlug": "acme"}))
        .success();
    assert_eq!(projects["projects"][0]["slug"], "shop");
    assert_eq!(projects["projects"][0]["orgSlug"], "acme");
    assert_eq!(projects["projects"][0]["secretCount"], 0);

    let stages = server
        .post(
            "/v1/cli/stages/list",
            &owner,
            &json!({"projectSlug": "shop"}),
        )
        .success();
    let names: Vec<_> = stages["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|stage| (&stage["slug"], &stage["protected"]))
        .collect();
    assert_eq!(
        names,
        [
            (&json!("development"), &json!(false)),
            (&json!("staging"), &json!(false)),
            (&json!("production"), &json!(true)),
        ]
    );

    let made = server
        .post(
            "/v1/cli/stages/create",
            &owner,
            &json!({"projectSlug": "shop", "name": "Preview", "slug": "preview"}),
        )
        .success();
    assert_eq!(made["stage"]["slug"], "preview");
    assert_eq!(made["stage"]["isDefault"], false);
    let guessed = server
        .post(
            "/v1/cli/projects/create",
            &owner,
            &json!({"name": "Back office!"}),
        )
        .success();
    assert!(
        guessed["project"]["slug"]
            .as_str()
            .unwrap()
            .starts_with("backoffice-"),
        "{guessed}"
    );

    let body = json!({"projectSlug": "shop", "stageSlug": "production", "mode": "upsert", "entries": [
        {"name": "PORT", "kind": "secret", "value": "80", "declaredType": "int64", "visibility": "public"},
        {"name": "FEATURE", "kind": "secret", "value": " YES ", "declaredType": "boolean"},
        {"name": "TEXT", "kind": "secret", "value": "Grüße\n\"quoted\"\\ and \u{1F511}"},
    ]});
    let written = server.post("/v1/env/write", &owner, &body).success();
    assert_eq!(written["created"], json!(["FEATURE", "PORT", "TEXT"]));

    let port = server.evaluate(&owner, PRODUCTION, "PORT").success();
    assert_eq!(
        (
            &port["name"],
            &port["kind"],
            &port["declaredType"],
            &port["visibility"]
        ),
        (
            &json!("PORT"),
            &json!("secret"),
            &json!("int64"),
            &json!("public")
        )
    );
    assert_eq!(port["value"], "80");

    let target = |more: serde_json::Value| {
        let mut body = json!({"orgSlug": "acme", "projectSlug": "shop", "stageSlug": "production"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        body
    };
    for body in [
        target(json!({"names": ["TEXT", "PORT"], "seed": "s", "key": "k"})),
        target(
            json!({"entries": [{"name": "TEXT", "seed": "s"}, {"name": "PORT", "declaredType": "int64"}]}),
        ),
    ] {
        let batch = server
            .post("/v1/env/evaluate-batch", &owner, &body)
            .success();
        let names: Vec<_> = batch["results"]
            .as_array()
            .unwrap()
            .iter()
            .map(|result| &result["name"])
            .collect();
        assert_eq!(names, [&json!("TEXT"), &json!("PORT")]);
        assert_eq!(
            batch["results"][0]["value"],
            "Grüße\n\"quoted\"\\ and \u{1F511}"
        );
    }

    let (list, pull) = server.snapshot(&owner, PRODUCTION);
    assert_eq!(list.as_array().unwrap().len(), 3);
    assert_eq!(list[1]["name"], "PORT");
    assert_eq!(list[1]["version"], 1);
    assert!(list[1].get("value").is_none());
    assert_eq!(pull["FEATURE"], "true");

    let body = json!({"projectSlug": "shop", "stageSlug": "production", "mode": "upsert",
        "entries": [{"name": "PORT", "kind": "secret", "value": "81"}, {"name": "NEW", "kind": "secret", "value": ""}],
        "deletes": ["TEXT", "ABSENT"]});
    let changed = server.post("/v1/env/write", &owner, &body).success();
    assert_eq!(changed["created"], json!(["NEW"]));
    assert_eq!(changed["updated"], json!(["PORT"]));
    assert_eq!(changed["deleted"], json!(["TEXT"]));
    let (list, pull) = server.snapshot(&owner, PRODUCTION);
    assert_eq!(pull, json!({"FEATURE": "true", "NEW": "", "PORT": "81"}));
    let port = list
        .as_array()
        .unwrap()
        .iter()
        .find(|variable| variable["name"] == "PORT")
        .unwrap();
    assert_eq!(
        (&port["version"], &port["declaredType"], &port["visibility"]),
        (&json!(2), &json!("int64"), &json!("public"))
    );

    let session = server
        .call("GET", "/v1/cli/session", Some(&owner), &json!({}))
        .success();
    assert_eq!(
        (&session["source"], &session["orgSlug"], &session["role"]),
        (&json!("token"), &json!("acme"), &json!("owner"))
    );
    let cut = place.token(
        "acme",
        &[
            "--role",
            "viewer",
            "--project",
            "shop",
            "--stage",
            "staging",
            "--name",
            "ci",
            "--expires",
            "1h",
        ],
    );
    let session = server
        .call("GET", "/v1/cli/session", Some(&cut), &json!({}))
        .success();
    assert_eq!(
        (&session["role"], &session["name"]),
        (&json!("viewer"), &json!("ci"))
    );
    assert!(
        session["stageId"].is_string()
            && session["projectId"].is_string()
            && session["accessTokenExpiresAtMs"].is_number()
    );
    server.stop();
}

pub(crate) fn every_answer_has_its_headers(engine: Engine) {
    let shop = Shop::open(engine);
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| {
        http::exchange(
            shop.server.api,
            &http::request(method, path, headers, b"{}"),
        )
    };
    let mine = ask("POST", "/v1/env/list", &[("x-request-id", "mine-1")]);
    assert_eq!(mine.json()["error"]["requestId"], "mine-1");
    assert_eq!(mine.header("x-request-id"), Some("mine-1"));
    let made = ask("POST", "/v1/env/list", &[("x-request-id", "not mine")]);
    assert!(made.header("x-request-id").unwrap().starts_with("req_"));

    let options = ask(
        "OPTIONS",
        "/v1/env/write",
        &[
            ("origin", "https://example.com"),
            ("access-control-request-method", "POST"),
        ],
    );
    assert_eq!(options.status, 204);
    assert!(options.body.is_empty());
    for answer in [
        options,
        mine,
        ask("GET", "/absent", &[]),
        ask("GET", "/openapi.json", &[]),
    ] {
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
        assert_eq!(
            answer.header("access-control-allow-methods"),
            Some("GET,POST,OPTIONS")
        );
        assert_eq!(
            answer.header("access-control-allow-headers"),
            Some("authorization,content-type,x-request-id,x-barekey-request-key")
        );
        assert_eq!(answer.header("access-control-max-age"), Some("86400"));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    // A cookie is no credential.
    let cookie = format!("token={}", shop.owner);
    let answer = ask("GET", "/v1/cli/session", &[("cookie", &cookie)]);
    assert_eq!(answer.refusal(), (401, "UNAUTHORIZED".to_owned()));
    assert!(
        answer
            .header("www-authenticate")
            .unwrap()
            .starts_with("Bearer")
    );
}
