//! What was acknowledged is there, and what is under way is answered.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::database::Engine;
use super::http;
use super::server::{STAGING, Shop, make_value};

pub(crate) fn an_acknowledged_write_survives_a_kill(engine: Engine) {
    let Shop {
        place,
        mut server,
        owner,
    } = Shop::open(engine);
    for round in 0..3 {
        let value = make_value();
        let name = format!("ROUND_{round}");
        server.write(&owner, STAGING, &[(&name, &value)]);
        server.kill();
        server = place.serve();
        assert_eq!(server.value(&owner, STAGING, &name), value);
    }
    // Killed in the middle of many writes: each one that was acknowledged is there, and the trail is whole.
    let count = AtomicUsize::new(0);
    let acknowledged = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (server, owner, count) = (&server, &owner, &count);
                scope.spawn(move || {
                    let mut acknowledged = Vec::new();
                    for number in 0..10_000 {
                        let name = format!("W{writer}_{number}");
                        let body = json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert",
                            "entries": [{"name": name, "kind": "secret", "value": name}]});
                        let bearer = format!("Bearer {owner}");
                        let request = http::request("POST", "/v1/env/write", &[("authorization", &bearer)], body.to_string().as_bytes());
                        match http::try_exchange(server.api, &request) {
                            Some(answer) if answer.status == 200 => {
                                acknowledged.push(name);
                                count.fetch_add(1, Ordering::Relaxed);
                            }
                            _ => break,
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        server.wait_until("some writes", |_| count.load(Ordering::Relaxed) >= 20);
        server.signal("KILL");
        writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect::<Vec<_>>()
    });
    server.ended();
    let server = place.serve();
    let (_, values) = server.snapshot(&owner, STAGING);
    for name in &acknowledged {
        assert_eq!(values[name], json!(name));
    }
    assert_eq!(place.admin(&["audit", "verify"]).status.code(), Some(0));
}

pub(crate) fn a_stop_answers_what_is_under_way(engine: Engine) {
    let Shop {
        place,
        mut server,
        owner,
    } = Shop::open(engine);
    let body = json!({"projectSlug": "shop", "stageSlug": "staging", "mode": "upsert",
        "entries": [{"name": "LATE", "kind": "secret", "value": "but there"}]});
    let request = http::request(
        "POST",
        "/v1/env/write",
        &[
            ("authorization", &format!("Bearer {owner}")),
            ("expect", "100-continue"),
        ],
        body.to_string().as_bytes(),
    );
    let (first, rest) = request.split_at(request.len() - 10);
    let mut stream = http::connect(server.api);
    stream.write_all(first).unwrap();
    // It is under way when the server says that it wants the rest.
    let mut interim = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    server.signal("TERM");
    server.wait_until("the stop", |server| server.logged("stopping").is_some());
    stream.write_all(rest).unwrap();
    http::read(&mut stream).success();
    assert_eq!(server.ended().code(), Some(0), "{}", server.log());
    assert!(server.logged("stopped").is_some());
    assert!(!place.socket.exists(), "the admin socket is left behind");
    let journal = place.directory.join("barekey.db-wal");
    assert!(!journal.exists(), "the database is whole without it");
    drop(server);
    let server = place.serve();
    assert_eq!(server.value(&owner, STAGING, "LATE"), "but there");
    server.signal("INT");
    let mut server = server;
    assert_eq!(server.ended().code(), Some(0));
}
