//! Journeys of `barekey run -- PROGRAM`.

use std::process::Command;

use super::Person;
use crate::vault_alone::database::Engine;
use crate::vault_alone::server::{STAGING, Server, Shop, make_value};

pub(super) fn a_program_runs_with_the_stages_values() {
    let shop = Shop::open(Engine::Sqlite);
    let value = make_value();
    let values = [
        ("KEY", value.as_str()),
        ("INHERITED", "stage"),
        ("PATH", "/stage"),
        ("LD_PRELOAD", "/stage.so"),
        ("KUBERNETES_SERVICE_HOST", "stage"),
    ];
    shop.server.write(&shop.owner, STAGING, &values);
    let person = Person::with(&shop.server, &shop.owner)
        .and("BAREKEY_TOKEN", shop.owner.as_str())
        .and("INHERITED", "shell")
        .and("KEPT", "shell");
    let run = |script: &str, more: &[&str]| {
        let words = ["run", "--", "sh", "-c", script, "zero"];
        person.does(&[&words, more].concat())
    };
    // The arguments are not looked at by a shell of ours, and nothing is expanded in them.
    let done = run(
        "printf '%s|%s|%s|%s|%s' \"$KEY\" \"$INHERITED\" \"$KEPT\" \"$1\" \"$2\"",
        &["$(KEY)", "*"],
    );
    assert_eq!(done.stdout, format!("{value}|stage|shell|$(KEY)|*"));
    assert_eq!(done.code, 0);
    for name in ["KUBERNETES_SERVICE_HOST", "LD_PRELOAD", "PATH"] {
        assert!(done.stderr.contains(name), "{}", done.stderr);
    }
    assert!(!done.stderr.contains("/stage"), "{}", done.stderr);
    let environment = run("env", &[]).stdout;
    for gone in [
        "BAREKEY_ACCESS_TOKEN",
        "BAREKEY_TOKEN",
        "/stage",
        &shop.owner,
    ] {
        assert!(!environment.contains(gone), "{gone}");
    }
    assert!(environment.contains("BAREKEY_PROJECT=shop\n"));
    // Its code is the program's, and so is its end by a signal, since it is the program.
    assert_eq!(run("exit 7", &[]).code, 7);
    let program = run("tr '\\0' ' ' </proc/$$/cmdline", &[]).stdout;
    assert!(program.starts_with("sh -c "), "{program}");
}

pub(super) fn a_program_that_cannot_run_costs_no_read() {
    let shop = Shop::open(Engine::Sqlite);
    let person = Person::with(&shop.server, &shop.owner);
    let reads = |server: &Server| {
        let metrics = String::from_utf8(server.probe("/metrics").body).unwrap();
        metrics
            .lines()
            .find(|line| line.starts_with("barekey_http_requests_total{route=\"/v1/env/pull\""))
            .map(str::to_owned)
    };
    for (program, code) in [
        ("no-such-program", 127),
        ("/none/at/all", 127),
        ("/etc/passwd", 126),
    ] {
        let done = person.does(&["run", "--", program]);
        assert_eq!(
            (done.code, done.stdout.as_str()),
            (code, ""),
            "{}",
            done.stderr
        );
        assert!(done.stderr.contains(program), "{}", done.stderr);
    }
    assert_eq!(reads(&shop.server), None);
    assert_eq!(person.does(&["run", "--", "true"]).code, 0);
    assert!(reads(&shop.server).is_some());
}

pub(super) fn a_program_gets_its_limit_for_core_dumps_back() {
    let shop = Shop::open(Engine::Sqlite);
    let mut command = Command::new("sh");
    let person = Person::with(&shop.server, &shop.owner);
    let script = "ulimit -c 1024; exec \"$0\" run -- sh -c 'ulimit -c'";
    let output = command
        .args(["-c", script, env!("CARGO_BIN_EXE_barekey")])
        .env_clear()
        .envs(person.environment.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "1024\n");
}
