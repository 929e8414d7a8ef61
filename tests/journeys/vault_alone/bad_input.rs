//! Bad input: each with its documented code, and nothing changed afterwards.

use serde_json::{Value, json};

use super::database::{BackDoor, Engine};
use super::http;
use super::server::{STAGING, Shop};

pub(crate) fn bad_input_is_refused_by_its_code_and_changes_nothing(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    let body = json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert", "entries": [
        {"name": "KEEP", "kind": "secret", "value": "kept"},
        {"name": "COUNT", "kind": "secret", "value": "7", "declaredType": "int64"},
    ]});
    server.post("/v1/env/write", &owner, &body).success();
    let back = BackDoor::to(&place.database);
    let rows = || {
        [
            "projects",
            "stages",
            "variables",
            "variable_versions",
            "operations",
            "lineages",
            "data_keys",
            "api_tokens",
        ]
        .map(|table| {
            (
                table,
                back.texts(&format!("SELECT CAST(COUNT(*) AS TEXT) FROM {table}")),
            )
        })
    };
    let revisions = || back.texts("SELECT CAST(revision AS TEXT) FROM stages ORDER BY id");
    let before = (server.snapshot(&owner, STAGING), rows(), revisions());

    let write = |entries: Value, deletes: Value| json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert", "entries": entries, "deletes": deletes});
    let entry = |name: &str, value: &str| json!({"name": name, "kind": "secret", "value": value});
    let typed = |name: &str, value: &str, declared: &str| json!({"name": name, "kind": "secret", "value": value, "declaredType": declared});
    let with = |field: &str, value: Value| {
        let mut body = write(json!([entry("NEW", "1")]), json!([]));
        body[field] = value;
        body
    };
    let without = |field: &str| {
        let mut body = write(json!([entry("NEW", "1")]), json!([]));
        body.as_object_mut().unwrap().remove(field);
        body
    };
    let long_name = "A".repeat(161);
    let long_value = "x".repeat(64 * 1024 + 1);
    let good = entry("GOOD", "1");

    let invalid = (400, "INVALID_REQUEST");
    let no_environment = (404, "ENVIRONMENT_NOT_FOUND");
    let cases: Vec<(&str, Value, (u16, &str))> = vec![
        (
            "unknown project",
            with("projectSlug", json!("absent")),
            no_environment,
        ),
        (
            "unknown stage",
            with("stageSlug", json!("absent")),
            no_environment,
        ),
        (
            "project that is no slug",
            with("projectSlug", json!("../shop")),
            invalid,
        ),
        ("empty stage", with("stageSlug", json!(" ")), invalid),
        ("no project", without("projectSlug"), invalid),
        ("no mode", without("mode"), invalid),
        ("unknown mode", with("mode", json!("replace")), invalid),
        ("mode of another type", with("mode", json!(1)), invalid),
        ("nothing to do", write(json!([]), json!([])), invalid),
        ("null entries", with("entries", json!(null)), invalid),
        (
            "no int64",
            write(json!([good, typed("NEW", "twelve", "int64")]), json!([])),
            invalid,
        ),
        (
            "int64 too large",
            write(
                json!([good, typed("NEW", "9223372036854775808", "int64")]),
                json!([]),
            ),
            invalid,
        ),
        (
            "no boolean",
            write(json!([good, typed("NEW", "perhaps", "boolean")]), json!([])),
            invalid,
        ),
        (
            "no float",
            write(json!([good, typed("NEW", "NaN", "float")]), json!([])),
            invalid,
        ),
        (
            "no date",
            write(json!([good, typed("NEW", "tomorrow", "date")]), json!([])),
            invalid,
        ),
        (
            "no JSON",
            write(json!([good, typed("NEW", "{", "json")]), json!([])),
            invalid,
        ),
        (
            "unknown type",
            write(json!([good, typed("NEW", "1", "int32")]), json!([])),
            invalid,
        ),
        (
            "a value that its stored type refuses",
            write(json!([good, entry("COUNT", "many")]), json!([])),
            invalid,
        ),
        (
            "unknown kind",
            write(
                json!([good, {"name": "NEW", "kind": "file", "value": "1"}]),
                json!([]),
            ),
            invalid,
        ),
        (
            "kind of a later version",
            write(
                json!([good, {"name": "NEW", "kind": "ab_roll", "valueA": "1", "valueB": "2", "chance": 0.5}]),
                json!([]),
            ),
            invalid,
        ),
        (
            "unknown visibility",
            write(
                json!([good, {"name": "NEW", "kind": "secret", "value": "1", "visibility": "secret"}]),
                json!([]),
            ),
            invalid,
        ),
        (
            "no value",
            write(json!([good, {"name": "NEW", "kind": "secret"}]), json!([])),
            invalid,
        ),
        (
            "value of another type",
            write(
                json!([good, {"name": "NEW", "kind": "secret", "value": 1}]),
                json!([]),
            ),
            invalid,
        ),
        (
            "name too long",
            write(json!([good, entry(&long_name, "1")]), json!([])),
            invalid,
        ),
        (
            "name with a hyphen",
            write(json!([good, entry("A-B", "1")]), json!([])),
            invalid,
        ),
        (
            "empty name",
            write(json!([good, entry("", "1")]), json!([])),
            invalid,
        ),
        (
            "name with NUL",
            write(json!([good, entry("A\0B", "1")]), json!([])),
            invalid,
        ),
        (
            "value too long",
            write(json!([good, entry("NEW", &long_value)]), json!([])),
            invalid,
        ),
        (
            "NUL in a value",
            write(json!([good, entry("NEW", "a\0b")]), json!([])),
            invalid,
        ),
        (
            "a name twice",
            write(
                json!([good, entry("NEW", "1"), entry("NEW", "2")]),
                json!([]),
            ),
            invalid,
        ),
        (
            "a name written and deleted",
            write(json!([good, entry("KEEP", "1")]), json!(["KEEP"])),
            invalid,
        ),
        (
            "a name deleted twice",
            write(json!([good]), json!(["KEEP", "KEEP"])),
            invalid,
        ),
        (
            "deleting what is no name",
            write(json!([good]), json!(["K*"])),
            invalid,
        ),
        (
            "create_only on a name that exists",
            json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "create_only",
            "entries": [good, entry("KEEP", "replaced")]}),
            invalid,
        ),
        (
            "too many entries",
            write(
                (0..1001).map(|n| entry(&format!("N{n}"), "1")).collect(),
                json!([]),
            ),
            invalid,
        ),
    ];
    for (case, body, (status, code)) in &cases {
        let answer = server.post("/v1/env/write", &owner, body);
        assert_eq!(
            answer.refusal(),
            (*status, (*code).to_owned()),
            "{case}: {}",
            answer.json()
        );
        // What was sent as a value is not sent back.
        assert!(!answer.json().to_string().contains("twelve"), "{case}");
    }
    assert_eq!(
        (server.snapshot(&owner, STAGING), rows(), revisions()),
        before
    );

    let bearer = format!("Bearer {owner}");
    let raw = |body: &[u8]| {
        let headers = [("authorization", bearer.as_str())];
        http::exchange(
            server.api,
            &http::request("POST", "/v1/env/write", &headers, body),
        )
        .refusal()
    };
    let invalid_json = (400, "INVALID_JSON".to_owned());
    assert_eq!(raw(b""), invalid_json);
    assert_eq!(raw(b"{\"mode\":\"upsert\""), invalid_json);
    assert_eq!(raw(b"{\"mode\":\"upsert\"} {}"), invalid_json);
    assert_eq!(raw(b"{\"mode\":\"\xff\"}"), invalid_json);
    assert_eq!(
        raw(b"{\"mode\":\"upsert\",\"mode\":\"upsert\"}"),
        (400, "INVALID_REQUEST".to_owned())
    );
    let mut large = b"{\"padding\":\"".to_vec();
    large.resize(4 * 1024 * 1024 + 1, b'x');
    assert_eq!(raw(&large), (413, "REQUEST_TOO_LARGE".to_owned()));

    for (case, body, expected) in [
        (
            "unknown project",
            json!({"projectSlug": "absent", "stageSlug": "staging", "name": "KEEP"}),
            (404, "VARIABLE_NOT_FOUND"),
        ),
        (
            "unknown stage",
            json!({"projectSlug": "shop", "stageSlug": "absent", "name": "KEEP"}),
            (404, "VARIABLE_NOT_FOUND"),
        ),
        (
            "unknown variable",
            json!({"projectSlug": "shop", "stageSlug": "staging", "name": "ABSENT"}),
            (404, "VARIABLE_NOT_FOUND"),
        ),
        (
            "wrong type",
            json!({"projectSlug": "shop", "stageSlug": "staging", "name": "KEEP", "declaredType": "int64"}),
            invalid,
        ),
        (
            "pattern",
            json!({"projectSlug": "shop", "stageSlug": "staging", "name": "K*"}),
            invalid,
        ),
    ] {
        let answer = server.post("/v1/env/evaluate", &owner, &body);
        assert_eq!(
            answer.refusal(),
            (expected.0, expected.1.to_owned()),
            "evaluate: {case}"
        );
    }
    for (case, more, expected) in [
        (
            "one of two is missing",
            json!({"names": ["KEEP", "ABSENT"]}),
            (404, "VARIABLE_NOT_FOUND"),
        ),
        (
            "one of two has another type",
            json!({"entries": [{"name": "KEEP"}, {"name": "COUNT", "declaredType": "json"}]}),
            invalid,
        ),
        ("twice", json!({"names": ["KEEP", "KEEP"]}), invalid),
        ("none", json!({"names": []}), invalid),
        (
            "both forms",
            json!({"names": ["KEEP"], "entries": [{"name": "KEEP"}]}),
            invalid,
        ),
    ] {
        let mut body = json!({"projectSlug": "shop", "stageSlug": "staging"});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let answer = server.post("/v1/env/evaluate-batch", &owner, &body);
        assert_eq!(
            answer.refusal(),
            (expected.0, expected.1.to_owned()),
            "batch: {case}"
        );
        assert!(!answer.json().to_string().contains("kept"), "{case}");
    }
    for path in ["/v1/env/list", "/v1/env/pull"] {
        for (project, stage) in [("absent", "staging"), ("shop", "absent")] {
            let answer = server.post(
                path,
                &owner,
                &json!({"projectSlug": project, "stageSlug": stage}),
            );
            assert_eq!(
                answer.refusal(),
                (404, "ENVIRONMENT_NOT_FOUND".to_owned()),
                "{path}"
            );
        }
    }

    for (path, case, body, expected) in [
        (
            "/v1/cli/projects/create",
            "taken",
            json!({"name": "Shop", "slug": "shop"}),
            "PROJECT_CREATE_FAILED",
        ),
        (
            "/v1/cli/projects/create",
            "no slug",
            json!({"name": "Shop", "slug": "Shop!"}),
            "PROJECT_CREATE_FAILED",
        ),
        (
            "/v1/cli/projects/create",
            "no name",
            json!({"name": " "}),
            "PROJECT_CREATE_FAILED",
        ),
        (
            "/v1/cli/projects/create",
            "name too long",
            json!({"name": "x".repeat(121)}),
            "PROJECT_CREATE_FAILED",
        ),
        (
            "/v1/cli/stages/create",
            "taken",
            json!({"projectSlug": "shop", "name": "Staging", "slug": "staging"}),
            "STAGE_CREATE_FAILED",
        ),
        (
            "/v1/cli/stages/create",
            "no slug",
            json!({"projectSlug": "shop", "name": "x", "slug": "-"}),
            "STAGE_CREATE_FAILED",
        ),
        (
            "/v1/cli/stages/create",
            "name too long",
            json!({"projectSlug": "shop", "name": "x".repeat(65)}),
            "STAGE_CREATE_FAILED",
        ),
    ] {
        let answer = server.post(path, &owner, &body);
        assert_eq!(
            answer.refusal(),
            (400, expected.to_owned()),
            "{path}: {case}"
        );
    }
    for path in ["/v1/cli/stages/list", "/v1/cli/stages/create"] {
        let answer = server.post(
            path,
            &owner,
            &json!({"projectSlug": "absent", "name": "New"}),
        );
        assert_eq!(
            answer.refusal(),
            (404, "ENVIRONMENT_NOT_FOUND".to_owned()),
            "{path}"
        );
    }
    assert_eq!(
        (server.snapshot(&owner, STAGING), rows(), revisions()),
        before
    );
    server.stop();
}
