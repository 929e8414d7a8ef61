//! Evaluate on SQLite, with a durable audit record for each read, beside a bare route of the same framework that answers
//! the same bytes, and beside one synced write of 4 KiB on the same disk.

use std::io::{Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;

use crate::load::{
    Load, Running, call, free_address, load, median, post, start_constant, wait_for,
};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);
const OPERATOR: &str = env!("CARGO_BIN_EXE_barekey-operator");

pub(crate) fn run() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let address = free_address();
    let probes = free_address();
    let socket = folder.path().join("admin.sock");
    let mut key = [0_u8; 32];
    getrandom::fill(&mut key).unwrap();
    let server = Command::new(OPERATOR)
        .arg("serve")
        .args([
            "--database",
            &format!("sqlite:{}", folder.path().join("vault.db").display()),
        ])
        .args([
            "--listen",
            &address.to_string(),
            "--probe-listen",
            &probes.to_string(),
        ])
        .arg("--admin-socket")
        .arg(&socket)
        .env(
            "BAREKEY_MASTER_KEY_B64",
            base64::engine::general_purpose::STANDARD.encode(key),
        )
        .env("BAREKEY_LOG", "warn")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let server = Running(server);
    wait_for(address);
    let bootstrap = Command::new(OPERATOR)
        .args(["admin", "--admin-socket"])
        .arg(&socket)
        .args(["bootstrap", "--organization", "bench"])
        .output()
        .unwrap();
    assert!(
        bootstrap.status.success(),
        "{}",
        String::from_utf8_lossy(&bootstrap.stderr)
    );
    let token = String::from_utf8(bootstrap.stdout)
        .unwrap()
        .trim()
        .to_owned();

    let ask = |path: &str, body: &str| {
        let (status, answer) = call(address, &post(path, Some(&token), body));
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    };
    ask(
        "/v1/cli/projects/create",
        r#"{"name":"Bench","slug":"bench"}"#,
    );
    ask(
        "/v1/env/write",
        r#"{"projectSlug":"bench","stageSlug":"development","mode":"upsert","entries":[{"name":"DATABASE_URL","kind":"secret","value":"postgres://shop:0123456789abcdef@db.example:5432/shop"}]}"#,
    );
    let question = r#"{"projectSlug":"bench","stageSlug":"development","name":"DATABASE_URL"}"#;
    let answer = ask("/v1/env/evaluate", question);
    let request = post("/v1/env/evaluate", Some(&token), question);
    let (bare_address, bare_server) = start_constant(&answer);

    println!("evaluate on SQLite with a durable audit record for each read");
    for connections in [1, 32, 256] {
        let mut bare = Vec::new();
        let mut barekey = Vec::new();
        for _ in 0..ROUNDS {
            bare.push(round(&bare_server, bare_address, &request, connections));
            barekey.push(round(&server, address, &request, connections));
        }
        let (bare, bare_micros) = middle(bare);
        let (barekey, barekey_micros) = middle(barekey);
        let synced = synced_writes_per_second(folder.path());
        println!(
            "  {connections:>3} connections: {:>5.1} % of a bare route ({:.0} of {:.0} answers/s; p50 {:.2} ms, p99 {:.2} ms; \
             {:.0} µs of CPU an answer, the bare route {:.0}); {:.0} % of the rate of one 4 KiB write-and-fdatasync \
             after another ({synced:.0} writes/s)",
            100.0 * barekey.per_second / bare.per_second,
            barekey.per_second,
            bare.per_second,
            barekey.p50.as_secs_f64() * 1e3,
            barekey.p99.as_secs_f64() * 1e3,
            barekey_micros,
            bare_micros,
            100.0 * barekey.per_second / synced,
        );
    }
}

/// One round of load, and what an answer cost the server's process, in microseconds of CPU time.
fn round(server: &Running, address: SocketAddr, request: &[u8], connections: usize) -> (Load, f64) {
    let before = server.cpu_time();
    let load = load(address, request, connections, ROUND);
    let spent = server.cpu_time() - before;
    let micros = spent.as_secs_f64() * 1e6 / load.answers as f64;
    (load, micros)
}

/// The round of the middle rate.
fn middle(mut rounds: Vec<(Load, f64)>) -> (Load, f64) {
    rounds.sort_by(|(one, _), (other, _)| one.per_second.total_cmp(&other.per_second));
    rounds.swap_remove(rounds.len() / 2)
}

/// How often 4 KiB can be written and synced in a second, one after the other, on the disk of `folder`.
fn synced_writes_per_second(folder: &std::path::Path) -> f64 {
    let mut file = std::fs::File::create(folder.join("synced")).unwrap();
    let page = [7_u8; 4096];
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let mut writes = 0_u32;
        while start.elapsed() < Duration::from_millis(500) {
            file.seek(SeekFrom::Start(u64::from(writes % 64) * 4096))
                .unwrap();
            file.write_all(&page).unwrap();
            file.sync_data().unwrap();
            writes += 1;
        }
        rounds.push(f64::from(writes) / start.elapsed().as_secs_f64());
    }
    median(rounds)
}
