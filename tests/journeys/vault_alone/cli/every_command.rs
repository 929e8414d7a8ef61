//! Journeys of what all commands have in common: their target, their server, their refusals.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::Value;

use super::Person;
use crate::vault_alone::database::Engine;
use crate::vault_alone::server::{Place, STAGING, Shop, make_value};

/// Every command, with what it needs.
const COMMANDS: &[&[&str]] = &[
    &["env", "set", "KEY"],
    &["env", "get", "KEY"],
    &["env", "list"],
    &["project", "list"],
    &["project", "create", "Other", "--slug", "other"],
    &["stage", "list"],
    &["stage", "create", "Other", "--slug", "other"],
    &["run", "--", "true"],
    &["whoami"],
];

pub(super) fn every_command_says_what_it_was_not_told() {
    let shop = Shop::open(Engine::Sqlite);
    let person = || Person::with(&shop.server, &shop.owner);
    let (no_server, empty_server) = (
        person().without("BAREKEY_API_URL"),
        person()
            .without("BAREKEY_API_URL")
            .and("BAREKEY_API_URL", ""),
    );
    let no_token = person().without("BAREKEY_ACCESS_TOKEN");
    let (no_project, no_stage) = (
        person().without("BAREKEY_PROJECT"),
        person().without("BAREKEY_STAGE"),
    );
    let foreign_url = person()
        .without("BAREKEY_API_URL")
        .and("BAREKEY_API_URL", "localhost:8200");
    let in_the_clear = person()
        .without("BAREKEY_API_URL")
        .and("BAREKEY_API_URL", "http://192.0.2.1:8200");
    for command in COMMANDS {
        let refusal = in_the_clear.does(command).refusal();
        assert!(
            refusal.contains("192.0.2.1:8200 is not on this machine"),
            "{command:?}: {refusal}"
        );
        for person in [&no_server, &empty_server] {
            let refusal = person.does(command).refusal();
            assert!(
                refusal.contains("--api-url") && refusal.contains("BAREKEY_API_URL"),
                "{refusal}"
            );
        }
        let refusal = no_token.does(command).refusal();
        assert!(
            refusal.contains("BAREKEY_ACCESS_TOKEN"),
            "{command:?}: {refusal}"
        );
        let refusal = foreign_url.does(command).refusal();
        assert!(refusal.contains("https://HOST"), "{command:?}: {refusal}");
        if matches!(command[0], "env" | "stage" | "run") {
            let refusal = no_project.does(command).refusal();
            assert!(
                refusal.contains("--project") && refusal.contains("BAREKEY_PROJECT"),
                "{refusal}"
            );
        }
        if matches!(command[0], "env" | "run") {
            let refusal = no_stage.does(command).refusal();
            assert!(
                refusal.contains("--stage") && refusal.contains("BAREKEY_STAGE"),
                "{refusal}"
            );
        }
    }
    // A flag stands in for a variable, and comes before it.
    let listed = no_stage
        .does(&["env", "list", "--stage", "staging"])
        .printed();
    assert_eq!(listed, "No variables found.\n");
    let refusal = person()
        .does(&["env", "list", "--stage", "absent"])
        .refusal();
    assert!(refusal.contains("ENVIRONMENT_NOT_FOUND"), "{refusal}");
    // Not a command.
    for usage in [
        &["env", "set", "KEY", "--type", "text"][..],
        &["enw"],
        &["run", "true"],
    ] {
        assert!(!person().does(usage).refusal().is_empty());
    }
    // A file that is not there, and input that is not text.
    let absent = ["env", "set", "KEY", "--value-file", "/none/at/all"];
    assert!(person().does(&absent).refusal().contains("/none/at/all"));
    let refusal = person()
        .types(&["env", "set", "KEY"], b"bytes\xff")
        .refusal();
    assert!(
        refusal.contains("UTF-8") && !refusal.contains("bytes"),
        "{refusal}"
    );
}

pub(super) fn every_command_passes_on_the_servers_refusal_and_changes_nothing() {
    let shop = Shop::open(Engine::Sqlite);
    let value = make_value();
    shop.server.write(&shop.owner, STAGING, &[("KEY", &value)]);
    let before = shop.server.snapshot(&shop.owner, STAGING);
    let refused = |person: &Person, command: &[&str], code: &str| {
        let text = person.types(command, b"typed-value").refusal();
        assert!(
            text.contains(code) && text.contains("req_"),
            "{command:?}: {text}"
        );
        let body = person
            .types(&[command, &["--json"]].concat(), b"typed-value")
            .refusal();
        let body: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(body["error"]["code"], code, "{command:?}");
        for secret in ["typed-value", &value] {
            assert!(
                !text.contains(secret) && !body.to_string().contains(secret),
                "{command:?}"
            );
        }
        text
    };

    // A token of nobody. (`run` takes flags before its program alone.)
    let nobody = Person::with(&shop.server, "bk_api_nobody");
    for command in COMMANDS {
        if command[0] != "run" {
            let text = refused(&nobody, command, "UNAUTHORIZED");
            assert!(text.contains("set BAREKEY_ACCESS_TOKEN"), "{text}");
            assert!(!text.contains("nobody"), "{text}");
        }
    }
    assert!(
        nobody
            .does(&["run", "--", "true"])
            .refusal()
            .contains("UNAUTHORIZED")
    );
    // A role that is too small.
    let viewer = Person::with(
        &shop.server,
        &shop.place.token("acme", &["--role", "viewer"]),
    );
    for command in [
        &["env", "set", "KEY"][..],
        &["project", "create", "Other", "--slug", "other"],
        &["stage", "create", "Other", "--slug", "other"],
    ] {
        refused(&viewer, command, "FORBIDDEN");
    }
    refused(
        &viewer,
        &["env", "get", "KEY", "--stage", "production"],
        "FORBIDDEN",
    );
    // Things that are not there, or not right.
    let owner = Person::with(&shop.server, &shop.owner);
    refused(&owner, &["env", "get", "ABSENT"], "VARIABLE_NOT_FOUND");
    for command in [&["env", "list"][..], &["env", "set", "KEY"]] {
        refused(
            &owner,
            &[command, &["--stage", "absent"]].concat(),
            "ENVIRONMENT_NOT_FOUND",
        );
        refused(
            &owner,
            &[command, &["--project", "absent"]].concat(),
            "ENVIRONMENT_NOT_FOUND",
        );
    }
    refused(
        &owner,
        &["stage", "list", "--project", "absent"],
        "ENVIRONMENT_NOT_FOUND",
    );
    refused(
        &owner,
        &["env", "list", "--org", "globex"],
        "INVALID_ORG_SCOPE",
    );
    refused(&owner, &["env", "set", "1KEY"], "INVALID_REQUEST");
    refused(
        &owner,
        &["env", "set", "KEY", "--type", "int64"],
        "INVALID_REQUEST",
    );
    refused(
        &owner,
        &["project", "create", "Shop", "--slug", "shop"],
        "PROJECT_CREATE_FAILED",
    );
    refused(
        &owner,
        &["stage", "create", "Staging", "--slug", "staging"],
        "STAGE_CREATE_FAILED",
    );
    let nul = owner.types(&["env", "set", "KEY"], b"a\0b").refusal();
    assert!(nul.contains("INVALID_REQUEST"), "{nul}");

    assert_eq!(shop.server.snapshot(&shop.owner, STAGING), before);
    let listed = owner.does(&["project", "list"]).printed();
    assert_eq!(listed.lines().count(), 2, "{listed}");
    let listed = owner.does(&["stage", "list"]).printed();
    assert_eq!(listed.lines().count(), 4, "{listed}");
}

pub(super) fn while_it_waits_its_memory_is_not_for_others_of_its_user() {
    // The kernel gives what it tells of a process that is not dumpable to root: told from a user of no rights alone.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("barekey");
    fs::copy(env!("CARGO_BIN_EXE_barekey"), &program).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = "ulimit -c 1024; exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                  --pdeathsig KILL \"$0\" whoami";
    let mut child = Command::new("sh")
        .args(["-c", script, program.to_str().unwrap()])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("BAREKEY_API_URL", format!("http://127.0.0.1:{port}"))
        .env("BAREKEY_ACCESS_TOKEN", "bk_api_waiting")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It has connected and waits for an answer that does not come.
    let connection = listener.accept().unwrap();
    let process = Path::new("/proc").join(child.id().to_string());
    let owner = |file: &str| fs::metadata(process.join(file)).unwrap().uid();
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let command = fs::read_to_string(process.join("comm")).unwrap();
    assert_eq!(
        (command.as_str(), owner("environ"), owner("mem")),
        ("barekey\n", 0, 0)
    );
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    child.kill().unwrap();
    child.wait().unwrap();
    drop(connection);
}

/// A certificate authority and a certificate for `name`, as PEM files in `directory`.
fn make_certificate(directory: &Path, name: &str) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .signed_by(&leaf_key, &issuer)
        .unwrap();
    fs::write(directory.join("ca.crt"), authority.pem()).unwrap();
    fs::write(directory.join("tls.crt"), leaf.pem()).unwrap();
    fs::write(directory.join("tls.key"), leaf_key.serialize_pem()).unwrap();
}

pub(super) fn a_server_is_trusted_by_its_authority_and_its_name() {
    let place = Place::new(Engine::Sqlite);
    make_certificate(&place.directory, "localhost");
    let file = |name: &str| place.directory.join(name).display().to_string();
    let server = place.serve_with(&[
        "--tls-certificate-file",
        &file("tls.crt"),
        "--tls-key-file",
        &file("tls.key"),
    ]);
    let owner = place.bootstrap("acme");
    let port = server.api.port();
    let person = |host: &str, scheme: &str| {
        Person::with(&server, &owner)
            .without("BAREKEY_API_URL")
            .and("BAREKEY_API_URL", format!("{scheme}://{host}:{port}"))
    };
    let ca = file("ca.crt");
    let told = person("localhost", "https")
        .does(&["whoami", "--ca-file", &ca])
        .printed();
    assert!(told.contains("acme"), "{told}");
    let told = person("localhost", "https")
        .and("BAREKEY_CA_FILE", ca.as_str())
        .does(&["whoami"])
        .printed();
    assert!(told.contains("acme"), "{told}");

    // Not by the machine's list, not by another authority, not by another name, not without TLS.
    let machine =
        person("localhost", "https").and("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt");
    assert!(machine.does(&["whoami"]).refusal().contains("--ca-file"));
    let other = place.directory.join("other");
    fs::create_dir(&other).unwrap();
    make_certificate(&other, "localhost");
    let other = other.join("ca.crt").display().to_string();
    let refusal = person("localhost", "https")
        .does(&["whoami", "--ca-file", &other])
        .refusal();
    assert!(refusal.contains("does not pass"), "{refusal}");
    let refusal = person("127.0.0.1", "https")
        .does(&["whoami", "--ca-file", &ca])
        .refusal();
    assert!(refusal.contains("does not pass"), "{refusal}");
    assert_ne!(person("127.0.0.1", "http").does(&["whoami"]).code, 0);
    // Nothing listens there any more.
    let person = person("localhost", "https");
    server.stop();
    let refusal = person.does(&["whoami", "--ca-file", &ca]).refusal();
    assert!(refusal.contains("no connection to localhost"), "{refusal}");
    assert!(refusal.contains("--api-url"), "{refusal}");
}
