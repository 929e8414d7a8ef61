//! Organizations and tokens, as an administrator makes and ends them.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::database::{BackDoor, Engine};
use super::server::{STAGING, Server, Shop};

fn session(server: &Server, token: &str) -> (u16, Value) {
    let answer = server.call("GET", "/v1/cli/session", Some(token), &json!({}));
    (answer.status, answer.json())
}

pub(crate) fn a_bootstrap_is_done_once(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    let again = place.admin(&["bootstrap", "--organization", "acme"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(again.stdout.is_empty());
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(
        said.contains("acme") && said.contains("admin token create"),
        "{said}"
    );

    // What replaces a lost token.
    let another = place.token("acme", &["--role", "owner"]);
    assert_ne!(another, owner);
    assert_eq!(session(&server, &another).0, 200);
    assert_eq!(session(&server, &owner).0, 200);

    for (arguments, expected) in [
        (
            &[
                "token",
                "create",
                "--organization",
                "absent",
                "--role",
                "owner",
            ][..],
            "there is no organization absent",
        ),
        (
            &[
                "token",
                "create",
                "--organization",
                "acme",
                "--role",
                "viewer",
                "--project",
                "absent",
            ],
            "no project absent",
        ),
        (
            &[
                "token",
                "create",
                "--organization",
                "acme",
                "--role",
                "viewer",
                "--project",
                "shop",
                "--stage",
                "absent",
            ],
            "no stage absent",
        ),
        (
            &[
                "token",
                "create",
                "--organization",
                "acme",
                "--role",
                "viewer",
                "--expires",
                "2001-01-01T00:00:00Z",
            ],
            "expired",
        ),
        (
            &["token", "revoke", "--organization", "acme", "tok_absent"],
            "no token tok_absent; these are not revoked:",
        ),
    ] {
        let output = place.admin(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    for wrong in [
        &["token", "create", "--organization", "acme", "--role", "god"][..],
        &[
            "token",
            "create",
            "--organization",
            "acme",
            "--role",
            "viewer",
            "--stage",
            "staging",
        ],
        &[
            "token",
            "create",
            "--organization",
            "Acme",
            "--role",
            "viewer",
        ],
        &["bootstrap"],
    ] {
        assert_eq!(place.admin(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let log = server.log();
    assert!(
        !log.contains(&owner) && !log.contains(&another) && !log.contains("bk_api_"),
        "a token is in the log"
    );
}

pub(crate) fn a_token_ends_when_it_expires_and_when_it_is_revoked(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    let brief = place.token("acme", &["--role", "viewer", "--expires", "2s"]);
    assert_eq!(server.value(&brief, STAGING, "KEEP"), "kept");
    let ends = session(&server, &brief).1["accessTokenExpiresAtMs"]
        .as_u64()
        .expect("a time");

    let revoked = place.token("acme", &["--role", "viewer"]);
    assert_eq!(server.value(&revoked, STAGING, "KEEP"), "kept");
    let id = session(&server, &revoked).1["tokenId"]
        .as_str()
        .unwrap()
        .to_owned();
    place.admin_prints(&["token", "revoke", "--organization", "acme", &id]);
    // At once: the very next request.
    let answer = server.evaluate(&revoked, STAGING, "KEEP");
    assert_eq!(answer.refusal(), (401, "UNAUTHORIZED".to_owned()));

    // Whoever knows no id is shown those that there are, and no token.
    let lasting = place.token("acme", &["--role", "viewer", "--expires", "1h"]);
    let listing = place.admin(&["token", "revoke", "--organization", "acme", "list"]);
    assert_eq!(listing.status.code(), Some(1));
    let said = String::from_utf8(listing.stderr).unwrap();
    let lasting_id = session(&server, &lasting).1["tokenId"]
        .as_str()
        .unwrap()
        .to_owned();
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.contains(&lasting_id))
        .collect();
    let [line] = lines[..] else {
        panic!("{said}");
    };
    assert!(
        line.contains("role=viewer") && line.contains("expires_at_ms="),
        "{line}"
    );
    assert!(said.contains("role=owner"), "{said}");
    assert!(!said.contains(&id), "a revoked one is listed: {said}");
    assert!(!said.contains("bk_api_"), "a token is shown");

    server.wait_until("the end of the token", |server| {
        server.evaluate(&brief, STAGING, "KEEP").status != 200
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    assert!(now.as_millis() >= u128::from(ends), "it ended too early");
    let expired = server.evaluate(&brief, STAGING, "KEEP");
    assert_eq!(expired.refusal(), (401, "UNAUTHORIZED".to_owned()));
    let unknown = server.evaluate("bk_api_unknown", STAGING, "KEEP");
    let message = |answer: &super::http::Answer| answer.json()["error"]["message"].clone();
    assert_eq!(
        message(&answer),
        message(&expired),
        "why it is refused is nobody's business"
    );
    assert_eq!(message(&unknown), message(&expired));

    // Neither comes back with a restart.
    server.stop();
    let server = place.serve();
    for token in [&revoked, &brief] {
        assert_eq!(session(&server, token).0, 401);
    }
    assert_eq!(server.value(&owner, STAGING, "KEEP"), "kept");
    assert_eq!(place.admin(&["audit", "verify"]).status.code(), Some(0));
}

pub(crate) fn a_planted_token_row_is_no_credential(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    let viewer = place.token(
        "acme",
        &[
            "--role",
            "viewer",
            "--project",
            "shop",
            "--stage",
            "staging",
        ],
    );
    let brief = place.token("acme", &["--role", "viewer", "--expires", "1h"]);
    for token in [&viewer, &brief] {
        assert_eq!(session(&server, token).0, 200);
    }
    server.stop();
    let back = BackDoor::to(&place.database);
    // Someone who may write the database raises a role, widens a scope, puts an end off, and copies a row.
    assert_eq!(back.run("UPDATE api_tokens SET role = 'owner', project_id = NULL, stage_id = NULL WHERE stage_id IS NOT NULL"), 1);
    assert_eq!(
        back.run("UPDATE api_tokens SET expires_at = NULL WHERE expires_at IS NOT NULL"),
        1
    );
    // At once, and not only when what the row said before would refuse them too.
    let server = place.serve();
    for token in [&viewer, &brief] {
        assert_eq!(session(&server, token).0, 401);
    }
    assert_eq!(session(&server, &owner).0, 200);
}
