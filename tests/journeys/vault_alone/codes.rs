//! Refusals of the layers around the routes.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use serde_json::json;

use super::database::Engine;
use super::http;
use super::server::{Place, STAGING, Shop};

pub(crate) fn each_code_has_its_status(engine: Engine) {
    // The place with its directory lives as long as the server.
    let Shop {
        place: _place,
        server,
        owner,
    } = Shop::open(engine);
    let nothing = json!({});
    for path in [
        "/",
        "/v1",
        "/v1/env",
        "/v1/env/evaluate/",
        "/v2/env/evaluate",
        "/v1/env/%2e%2e/evaluate",
        "/healthz",
        "/metrics",
    ] {
        let answer = server.call("POST", path, Some(&owner), &nothing);
        assert_eq!(answer.refusal(), (404, "NOT_FOUND".to_owned()), "{path}");
    }
    for (method, path) in [
        ("GET", "/v1/env/evaluate"),
        ("PUT", "/v1/env/write"),
        ("DELETE", "/v1/cli/projects/list"),
        ("POST", "/v1/cli/session"),
    ] {
        let answer = server.call(method, path, Some(&owner), &nothing);
        assert_eq!(
            answer.refusal(),
            (405, "METHOD_NOT_ALLOWED".to_owned()),
            "{method} {path}"
        );
        assert!(answer.header("allow").is_some(), "{method} {path}");
    }
    // 64 KiB is enough for every body but a write's.
    let large = json!({"projectSlug": "shop", "stageSlug": "staging", "name": "KEEP", "padding": "x".repeat(64 * 1024)});
    let answer = server.post("/v1/env/evaluate", &owner, &large);
    assert_eq!(answer.refusal(), (413, "REQUEST_TOO_LARGE".to_owned()));
    // A body without a declared length is counted as it comes.
    let mut chunked = format!(
        "POST /v1/env/evaluate HTTP/1.1\r\nhost: b\r\nconnection: close\r\nauthorization: Bearer {owner}\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for _ in 0..5 {
        chunked.extend_from_slice(b"4000\r\n");
        chunked.extend_from_slice(&[b' '; 0x4000]);
        chunked.extend_from_slice(b"\r\n");
    }
    chunked.extend_from_slice(b"0\r\n\r\n");
    assert_eq!(
        http::exchange(server.api, &chunked).refusal(),
        (413, "REQUEST_TOO_LARGE".to_owned())
    );

    let body = json!({"projectSlug": "shop", "stageSlug": "staging", "name": "KEEP"}).to_string();
    let bearer = format!("Bearer {owner}");
    let with_key = |key: &str| {
        let headers = [
            ("authorization", bearer.as_str()),
            ("x-barekey-request-key", key),
        ];
        http::exchange(
            server.api,
            &http::request("POST", "/v1/env/evaluate", &headers, body.as_bytes()),
        )
    };
    assert_eq!(
        with_key(&"k".repeat(257)).refusal(),
        (400, "INVALID_REQUEST".to_owned())
    );
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    for _ in 0..2 {
        with_key(&"k".repeat(256)).success();
    }
    // Fields that nobody knows are no fault of a client of a later version.
    let later = json!({"projectSlug": "shop", "stageSlug": "staging", "name": "KEEP", "later": {"field": [1, 2]}});
    server.post("/v1/env/evaluate", &owner, &later).success();
    server.stop();
}

pub(crate) fn too_many_refused_tokens_wait_and_good_ones_do_not() {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(Engine::Sqlite);
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    let mut limited = None;
    for attempt in 0..400 {
        let answer = server.evaluate(&format!("bk_api_{attempt:043}"), STAGING, "KEEP");
        match answer.refusal() {
            (401, code) => assert_eq!(code, "UNAUTHORIZED"),
            (429, code) => {
                assert_eq!(code, "RATE_LIMITED");
                let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
                assert!((1..=60).contains(&seconds), "{seconds}");
                limited = Some(attempt);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(limited.is_some_and(|attempt| attempt >= 50), "{limited:?}");
    // The same address, with a token that is known: not held up.
    assert_eq!(server.value(&owner, STAGING, "KEEP"), "kept");
    // A token that is new here waits a little and is served.
    let fresh = place.token("acme", &["--role", "viewer"]);
    server.wait_until("a turn for a new token", |server| {
        server.evaluate(&fresh, STAGING, "KEEP").status == 200
    });
    // A forwarded address is not believed: it would be a way around the limit.
    let mut waits = 0;
    for attempt in 0..200 {
        let token = format!("Bearer bk_api_{:043}", 1000 + attempt);
        let from = format!("203.0.113.{attempt}");
        let headers = [
            ("authorization", token.as_str()),
            ("x-forwarded-for", from.as_str()),
            ("forwarded", "for=203.0.113.9"),
        ];
        let body =
            json!({"projectSlug": "shop", "stageSlug": "staging", "name": "KEEP"}).to_string();
        let answer = http::exchange(
            server.api,
            &http::request("POST", "/v1/env/evaluate", &headers, body.as_bytes()),
        );
        waits += u32::from(answer.status == 429);
    }
    assert!(waits > 100, "{waits}");
}

pub(crate) fn a_connection_that_never_asks_is_closed() {
    let place = Place::new(Engine::Sqlite);
    let server = place.serve();
    std::thread::scope(|scope| {
        for sent in [
            "",
            "GET /openapi.json HTTP/1.1\r\nhost:",
            "GET /openapi.json HTTP/1.1\r\nhost: b\r\n\r\n",
        ] {
            let server = &server;
            scope.spawn(move || {
                let mut stream = http::connect(server.api);
                let started = Instant::now();
                stream.write_all(sent.as_bytes()).unwrap();
                let mut all = Vec::new();
                // It ends: with an answer, with a refusal, or with nothing.
                drop(stream.read_to_end(&mut all));
                let waited = started.elapsed();
                assert!(
                    waited > Duration::from_secs(20) && waited < Duration::from_secs(50),
                    "{sent:?}: {waited:?}"
                );
            });
        }
    });
    assert_eq!(server.probe("/readyz").status, 200);
}

pub(crate) fn a_body_that_never_ends_is_cut_off() {
    // The place with its directory lives as long as the server.
    let Shop {
        place: _place,
        server,
        owner,
    } = Shop::open(Engine::Sqlite);
    let mut stream = http::connect(server.api);
    let head = format!(
        "POST /v1/env/list HTTP/1.1\r\nhost: b\r\nauthorization: Bearer {owner}\r\ncontent-length: 100\r\n\r\n{{"
    );
    let started = Instant::now();
    stream.write_all(head.as_bytes()).unwrap();
    let answer = http::read(&mut stream);
    assert_eq!(answer.refusal(), (408, "REQUEST_TIMEOUT".to_owned()));
    assert!(started.elapsed() < Duration::from_secs(40));
}
