//! Someone with write access to the database changes what stands in it.

use serde_json::json;

use super::database::{BackDoor, Engine};
use super::server::{STAGING, Shop};

pub(crate) fn an_altered_row_is_refused_and_its_neighbours_are_served(engine: Engine) {
    let shop = Shop::open(engine);
    let names = [
        "KEEP", "ONE", "TWO", "CUT", "SHOWN", "TYPED", "GARBAGE", "MOVED",
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
    let moved = envelope(&other, "MOVED");
    alter("MOVED", &format!("envelope_a = '{moved}'"));

    let server = place.serve();
    for name in ["ONE", "TWO", "CUT", "SHOWN", "TYPED", "GARBAGE", "MOVED"] {
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
    assert!(refused.len() >= 7, "{refused:?}");
    for name in ["ONE", "SHOWN", "TYPED"] {
        assert!(
            refused.iter().any(|names| names.contains(name)),
            "{name} is not in {refused:?}"
        );
    }
    // Writing it anew heals it.
    server.write(&owner, STAGING, &[("ONE", "healed")]);
    assert_eq!(server.value(&owner, STAGING, "ONE"), "healed");
}
