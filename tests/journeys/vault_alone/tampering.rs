//! Someone with write access to the database changes what stands in it.

use serde_json::json;

use super::database::{BackDoor, Engine};
use super::server::{STAGING, Shop};

pub(crate) fn an_altered_row_is_refused_and_its_neighbours_are_served(engine: Engine) {
    let shop = Shop::open(engine);
    let names = [
        "KEEP", "ONE", "TWO", "CUT", "SHOWN", "TYPED", "GARBAGE", "MOVED", "WORD",
    ];
    let values: Vec<_> = names.iter().map(|name| (*name, "1")).collect();
    shop.server.write(&shop.owner, STAGING, &values);
    shop.server
        .write(&shop.owner, ("shop", "development"), &[("MOVED", "2")]);
    let Shop {
        place,
        server,
        owner,
    } = shop;
    server.stop();

    let back = BackDoor::to(&place.database);
    let stage = back
        .texts("SELECT id FROM stages WHERE slug = 'staging'")
        .remove(0);
    let other = back
        .texts("SELECT id FROM stages WHERE slug = 'development'")
        .remove(0);
    let envelope = |stage: &str, name: &str| {
        back.texts(&format!("SELECT envelope_a FROM variable_versions WHERE stage_id = '{stage}' AND name = '{name}'")).remove(0)
    };
    let alter = |name: &str, change: &str| {
        assert_eq!(back.run(&format!("UPDATE variable_versions SET {change} WHERE stage_id = '{stage}' AND name = '{name}'")), 1);
    };
    let (one, two) = (envelope(&stage, "ONE"), envelope(&stage, "TWO"));
    alter("ONE", &format!("envelope_a = '{two}'"));
    alter("TWO", &format!("envelope_a = '{one}'"));
    let cut = envelope(&stage, "CUT");
    alter("CUT", &format!("envelope_a = '{}'", &cut[..cut.len() - 8]));
    alter("SHOWN", "visibility = 'public'");
    alter("TYPED", "declared_type = 'int64'");
    alter("GARBAGE", "envelope_a = 'not an envelope'");
    alter("WORD", "visibility = 'pubic'");
    let moved = envelope(&other, "MOVED");
    alter("MOVED", &format!("envelope_a = '{moved}'"));

    let server = place.serve();
    for name in [
        "ONE", "TWO", "CUT", "SHOWN", "TYPED", "GARBAGE", "MOVED", "WORD",
    ] {
        let answer = server.evaluate(&owner, STAGING, name);
        assert_eq!(
            answer.refusal(),
            (500, "EVALUATION_FAILED".to_owned()),
            "{name}"
        );
        assert!(
            answer.json()["error"]["message"]
                .as_str()
                .unwrap()
                .contains(name)
        );
    }
    // Others are served, alone and together; together with an altered one, none is.
    assert_eq!(server.value(&owner, STAGING, "KEEP"), "1");
    assert_eq!(server.value(&owner, ("shop", "development"), "MOVED"), "2");
    let target = json!({"projectSlug": "shop", "stageSlug": "staging"});
    let answer = server.post("/v1/env/pull", &owner, &target);
    assert_eq!(answer.refusal(), (500, "EVALUATION_FAILED".to_owned()));
    let batch = json!({"projectSlug": "shop", "stageSlug": "staging", "names": ["KEEP", "ONE"]});
    let answer = server.post("/v1/env/evaluate-batch", &owner, &batch);
    assert_eq!(answer.refusal(), (500, "EVALUATION_FAILED".to_owned()));
    server.post("/v1/env/list", &owner, &target).success();

    let refused = back.texts(
        "SELECT names FROM audit_records WHERE action = 'envelope.refused' ORDER BY sequence",
    );
    assert!(refused.len() >= 8, "{refused:?}");
    for name in ["ONE", "SHOWN", "TYPED", "WORD"] {
        assert!(
            refused.iter().any(|names| names.contains(name)),
            "{name} is not in {refused:?}"
        );
    }
    let verified = place.admin(&["audit", "verify"]);
    let findings = String::from_utf8(verified.stdout).unwrap();
    assert!(
        findings.contains("variable WORD of stage shop/staging: its row was altered"),
        "{findings}"
    );
    // Writing it anew heals it.
    for name in ["ONE", "WORD"] {
        server.write(&owner, STAGING, &[(name, "healed")]);
        assert_eq!(server.value(&owner, STAGING, name), "healed");
    }
}

pub(crate) fn an_altered_token_keeps_no_other_from_being_revoked(engine: Engine) {
    let Shop {
        place,
        server,
        owner,
    } = Shop::open(engine);
    let altered = place.token("acme", &["--role", "viewer", "--name", "altered"]);
    let other = place.token("acme", &["--role", "viewer", "--name", "other"]);
    let back = BackDoor::to(&place.database);
    let id = |name: &str| {
        let query = format!("SELECT id FROM api_tokens WHERE name = '{name}'");
        back.texts(&query).remove(0)
    };
    let whoami = |token: &str| {
        let answer = server.call("GET", "/v1/cli/session", Some(token), &json!({}));
        answer.status
    };
    back.run("UPDATE api_tokens SET role = 'x' WHERE name = 'altered'");
    assert_eq!((whoami(&altered), whoami(&other)), (401, 200));
    for name in ["other", "altered"] {
        place.admin_prints(&["token", "revoke", "--organization", "acme", &id(name)]);
    }
    back.run("UPDATE api_tokens SET role = 'viewer' WHERE name = 'altered'");
    assert_eq!((whoami(&altered), whoami(&other)), (401, 401));
    assert_eq!(whoami(&owner), 200);
}

pub(crate) fn an_altered_data_key_is_told_as_what_it_is(engine: Engine) {
    let shop = Shop::open(engine);
    shop.server.write(&shop.owner, STAGING, &[("KEEP", "1")]);
    let back = BackDoor::to(&shop.place.database);
    back.run("UPDATE data_keys SET wrapped = REPLACE(wrapped, 'xcp1.', 'xcp1.A')");
    let shop = shop.restart();
    let read = shop.server.evaluate(&shop.owner, STAGING, "KEEP");
    let body = json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert",
        "entries": [{"name": "KEEP", "kind": "secret", "value": "2"}]});
    let write = shop.server.post("/v1/env/write", &shop.owner, &body);
    for answer in [read, write] {
        assert_eq!(answer.refusal(), (500, "EVALUATION_FAILED".to_owned()));
    }
    let recorded = back.texts(
        "SELECT names FROM audit_records WHERE action = 'envelope.refused' ORDER BY sequence",
    );
    assert_eq!(recorded, ["KEEP", "KEEP"]);
    // What cannot be, and is no value, is a fault that nobody is asked to try again.
    back.run("UPDATE stages SET resource = 'NONE' WHERE slug = 'staging'");
    let shop = shop.restart();
    let read = shop.server.evaluate(&shop.owner, STAGING, "KEEP");
    assert_eq!(read.header("retry-after"), None);
    assert_eq!(read.refusal(), (500, "INTERNAL_ERROR".to_owned()));
}
