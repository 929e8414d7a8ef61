//! The audit trail: whole when nobody touched it, and every way of touching it found and named.

use std::process::Output;

use serde_json::json;

use super::database::{BackDoor, Engine};
use super::server::{Place, STAGING, Shop};

/// A shop with a trail of some length; returns the organization's chain too.
fn shop_with_a_trail(engine: Engine) -> (Shop, BackDoor, String) {
    let shop = Shop::open(engine);
    for round in 0..5 {
        shop.server
            .write(&shop.owner, STAGING, &[("KEEP", &format!("round {round}"))]);
        shop.server.value(&shop.owner, STAGING, "KEEP");
    }
    let back = BackDoor::to(&shop.place.database);
    let chain = back
        .texts("SELECT id FROM organizations WHERE slug = 'acme'")
        .remove(0);
    (shop, back, chain)
}

fn verify(place: &Place, more: &[&str]) -> Output {
    let mut arguments = vec!["audit", "verify"];
    arguments.extend(more);
    place.admin(&arguments)
}

#[track_caller]
fn assert_found(place: &Place, more: &[&str], chain: &str, sequence: i64, case: &str) {
    let output = verify(place, more);
    let findings = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{case}: {findings}");
    let named = findings
        .lines()
        .any(|line| line.starts_with(&format!("chain {chain}: ")) && names(line, sequence));
    assert!(
        named,
        "{case} at {chain} {sequence} is not among:\n{findings}"
    );
}

/// Whether a finding names a record: the chain's own id has digits too.
fn names(finding: &str, sequence: i64) -> bool {
    let mut words = finding.split(|letter: char| !letter.is_alphanumeric() && letter != '_');
    let sequence = sequence.to_string();
    words.any(|word| word == sequence)
}

fn newest(back: &BackDoor, chain: &str) -> i64 {
    back.texts(&format!(
        "SELECT CAST(MAX(sequence) AS TEXT) FROM audit_records WHERE chain = '{chain}'"
    ))
    .remove(0)
    .parse()
    .unwrap()
}

pub(crate) fn an_audit_trail_that_nobody_touched_is_whole(engine: Engine) {
    let (shop, back, chain) = shop_with_a_trail(engine);
    shop.server
        .evaluate(&shop.owner, STAGING, "ABSENT")
        .refusal();
    let viewer = shop.place.token("acme", &["--role", "viewer"]);
    let body = json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert",
        "entries": [{"name": "KEEP", "kind": "secret", "value": "denied"}]});
    shop.server.post("/v1/env/write", &viewer, &body).refusal();
    let output = verify(&shop.place, &[]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );

    let actions = back.texts(&format!(
        "SELECT action FROM audit_records WHERE chain = '{chain}' ORDER BY sequence"
    ));
    for action in [
        "organization.created",
        "project.created",
        "variables.written",
        "variables.read",
        "write.refused",
        "token.created",
    ] {
        assert!(
            actions.iter().any(|found| found == action),
            "{action} is not in {actions:?}"
        );
    }
    let reads = actions
        .iter()
        .filter(|action| *action == "variables.read")
        .count();
    assert_eq!(reads, 5, "one record for each read");
    let sources = back.texts("SELECT DISTINCT source FROM audit_records ORDER BY source");
    assert_eq!(sources, ["admin", "api"]);
    let ips = back.texts("SELECT DISTINCT ip FROM audit_records WHERE source = 'api'");
    assert_eq!(ips, ["127.0.0.1"]);

    // The heads are in the log, and the trail is whole against them.
    let shop = shop.restart();
    shop.server.wait_until("a published head", |server| {
        server.logged("audit head").is_some()
    });
    let head = shop.server.logged("audit head").unwrap()["head"]
        .as_str()
        .unwrap()
        .to_owned();
    let output = verify(&shop.place, &["--head", &head]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_eq!(
        verify(&shop.place, &["--head", "nonsense"]).status.code(),
        Some(2)
    );
}

pub(crate) fn an_altered_cut_or_reordered_audit_trail_is_found_and_named(engine: Engine) {
    let (shop, back, chain) = shop_with_a_trail(engine);
    let place = &shop.place;
    let last = newest(&back, &chain);
    assert!(last >= 10, "{last}");
    let middle = last - 4;
    let at = |sequence: i64| format!("chain = '{chain}' AND sequence = {sequence}");
    let backup = || {
        back.run("DROP TABLE IF EXISTS kept_records");
        back.run("CREATE TABLE kept_records AS SELECT * FROM audit_records");
        back.run("DROP TABLE IF EXISTS kept_heads");
        back.run("CREATE TABLE kept_heads AS SELECT * FROM audit_heads");
    };
    let restore = || {
        back.run("DELETE FROM audit_records");
        back.run("INSERT INTO audit_records SELECT * FROM kept_records");
        back.run("DELETE FROM audit_heads");
        back.run("INSERT INTO audit_heads SELECT * FROM kept_heads");
    };
    backup();

    for (column, value) in [
        ("actor_name", "'somebody else'"),
        ("names", "'OTHER'"),
        ("outcome", "'refused'"),
        ("at", "1"),
        ("ip", "'203.0.113.7'"),
        ("action", "'variables.read'"),
        ("detail", "'nothing'"),
        ("stage", "NULL"),
        ("request_id", "'x'"),
        ("user_agent", "'x'"),
        ("source", "'cli'"),
        ("epoch", "7"),
    ] {
        // A write's record, found by what it did.
        let written = back.texts(&format!(
            "SELECT CAST(MAX(sequence) AS TEXT) FROM audit_records WHERE chain = '{chain}' AND action = 'variables.written'"
        )).remove(0).parse().unwrap();
        assert_eq!(
            back.run(&format!(
                "UPDATE audit_records SET {column} = {value} WHERE {}",
                at(written)
            )),
            1
        );
        assert_found(place, &[], &chain, written, &format!("{column} altered"));
        restore();
    }

    back.run(&format!("DELETE FROM audit_records WHERE {}", at(middle)));
    assert_found(place, &[], &chain, middle, "a record taken out");
    restore();

    // Two change places.
    back.run(&format!(
        "UPDATE audit_records SET sequence = -1 WHERE {}",
        at(middle)
    ));
    back.run(&format!(
        "UPDATE audit_records SET sequence = {middle} WHERE {}",
        at(middle + 1)
    ));
    back.run(&format!(
        "UPDATE audit_records SET sequence = {} WHERE {}",
        middle + 1,
        at(-1)
    ));
    assert_found(
        place,
        &[],
        &chain,
        middle,
        "two records in each other's place",
    );
    restore();

    back.run(&format!("DELETE FROM audit_records WHERE {}", at(1)));
    assert_found(place, &[], &chain, 1, "the first record taken out");
    restore();

    back.run(&format!(
        "DELETE FROM audit_records WHERE chain = '{chain}' AND sequence > {}",
        last - 2
    ));
    assert_found(place, &[], &chain, last - 2, "the newest records taken out");
    restore();

    // A cut that hides itself: the stored head is put back too. What was published outside tells.
    let hex = match engine {
        Engine::Sqlite => "lower(hex(mac))",
        Engine::Postgres => "encode(mac, 'hex')",
    };
    let mac = back
        .texts(&format!(
            "SELECT {hex} FROM audit_records WHERE {}",
            at(last)
        ))
        .remove(0);
    let epoch = back
        .texts(&format!(
            "SELECT CAST(epoch AS TEXT) FROM audit_records WHERE {}",
            at(last)
        ))
        .remove(0);
    let head = format!("{chain}:{epoch}:{last}:{mac}");
    assert_eq!(verify(place, &["--head", &head]).status.code(), Some(0));
    back.run(&format!(
        "DELETE FROM audit_records WHERE chain = '{chain}' AND sequence > {}",
        last - 2
    ));
    back.run(&format!(
        "UPDATE audit_heads SET sequence = {0}, mac = (SELECT mac FROM audit_records WHERE chain = '{chain}' AND sequence = {0}) WHERE chain = '{chain}'",
        last - 2
    ));
    assert_found(
        place,
        &["--head", &head],
        &chain,
        last,
        "a cut that hides itself",
    );
    restore();

    // A whole chain taken away.
    back.run(&format!(
        "DELETE FROM audit_records WHERE chain = '{chain}'"
    ));
    back.run(&format!("DELETE FROM audit_heads WHERE chain = '{chain}'"));
    assert_found(
        place,
        &["--head", &head],
        &chain,
        last,
        "a chain taken away",
    );
    restore();

    // A record that was planted behind the last.
    back.run(&format!(
        "INSERT INTO audit_records SELECT chain, sequence + 1, epoch, at, action, actor_kind, actor_id, actor_name, project, stage, names, source, ip, user_agent, request_id, outcome, detail, mac FROM audit_records WHERE {}",
        at(last)
    ));
    assert_found(place, &[], &chain, last + 1, "a planted record");
    restore();
    assert_eq!(
        verify(place, &[]).status.code(),
        Some(0),
        "it is whole again once everything is as it was"
    );
}

pub(crate) fn an_envelope_that_was_put_back_is_found(engine: Engine) {
    let (shop, back, _chain) = shop_with_a_trail(engine);
    let Shop {
        place,
        server,
        owner,
    } = shop;
    let body = json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert", "deletes": ["KEEP"]});
    server.write(&owner, STAGING, &[("OTHER", "first")]);
    server.write(&owner, STAGING, &[("OTHER", "second")]);
    server.post("/v1/env/write", &owner, &body).success();
    assert_eq!(verify(&place, &[]).status.code(), Some(0));
    server.stop();

    // The old value comes back as the newest: the row of version 1 takes the place of version 2.
    back.run("DELETE FROM variable_versions WHERE name = 'OTHER' AND version = 2");
    back.run("UPDATE variables SET version = 1 WHERE name = 'OTHER'");
    let _server = place.serve();
    let output = verify(&place, &[]);
    let findings = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{findings}");
    assert!(findings.contains("OTHER"), "{findings}");
}

pub(crate) fn the_heads_of_the_last_records_are_published_on_a_stop(engine: Engine) {
    let (shop, back, chain) = shop_with_a_trail(engine);
    // The count of these is recorded when the server stops.
    for _ in 0..3 {
        let refused = shop.server.evaluate("bk_api_nobody", STAGING, "KEEP");
        assert_eq!(refused.status, 401);
    }
    let viewer = shop.place.token("acme", &["--role", "viewer"]);
    for _ in 0..61 {
        let refused = shop
            .server
            .evaluate(&viewer, super::server::PRODUCTION, "KEEP");
        assert_eq!(refused.status, 403);
    }
    let log = shop.server.stop();
    let published = |chain: &str| -> String {
        let heads = log
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|line| line["message"] == "audit head");
        let mut texts = heads.map(|line| line["head"].as_str().unwrap().to_owned());
        let mine = texts
            .by_ref()
            .filter(|text| text.starts_with(&format!("{chain}:")));
        mine.last().unwrap()
    };
    for chain in ["installation", &chain] {
        let last = newest(&back, chain).to_string();
        let head = published(chain);
        assert_eq!(head.split(':').nth(2), Some(last.as_str()), "{head}");
    }
    let counted = back.texts(
        "SELECT action || ' ' || detail FROM audit_records WHERE detail LIKE 'count=%' ORDER BY action",
    );
    assert_eq!(
        counted,
        ["callers.unknown count=3", "refusals.counted count=1"]
    );
}
