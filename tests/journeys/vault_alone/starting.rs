//! What starts, what is refused at the start, and what it says then.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use sha2::Sha256;

use super::database::Engine;
use super::http;
use super::server::{Place, STAGING, Shop, make_key};

/// What a master key is known by.
fn key_id(master_key: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(&STANDARD.decode(master_key).unwrap()).unwrap();
    mac.update(b"barekey kek id");
    hex::encode(&mac.finalize().into_bytes()[..8])
}

pub(crate) fn a_wrong_master_key_is_refused_by_both_ids(engine: Engine) {
    let Shop {
        mut place,
        server,
        owner,
    } = Shop::open(engine);
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    server.stop();
    let right = std::mem::replace(&mut place.master_key, make_key());
    let Err((status, log)) = place.try_serve(&[]) else {
        panic!("it started with a key that is not its own");
    };
    assert_eq!(status.code(), Some(1));
    for key in [&right, &place.master_key] {
        assert!(log.contains(&key_id(key)), "no {} in:\n{log}", key_id(key));
        assert!(!log.contains(key.as_str()));
    }
    assert_eq!(place.admin(&["audit", "verify"]).status.code(), Some(1));
    place.master_key = right;
    let server = place.serve();
    assert_eq!(server.value(&owner, STAGING, "KEEP"), "kept");
}

pub(crate) fn a_second_process_on_the_same_file_is_refused() {
    let Shop {
        mut place,
        server,
        owner,
    } = Shop::open(Engine::Sqlite);
    server.write(&owner, STAGING, &[("KEEP", "kept")]);
    let first_socket = std::mem::replace(&mut place.socket, place.directory.join("second.sock"));
    let Err((status, log)) = place.try_serve(&[]) else {
        panic!("two processes have the same file");
    };
    assert_eq!(status.code(), Some(1));
    assert!(
        log.contains("barekey.db") && log.contains("another process"),
        "{log}"
    );
    // An administrator who asks the wrong socket does not open the file beside the server either.
    let output = place.admin(&["bootstrap", "--organization", "globex"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("another process")
    );
    assert_eq!(server.value(&owner, STAGING, "KEEP"), "kept");

    // By another way to the same file.
    let database = std::mem::take(&mut place.database);
    let elsewhere = place.directory.join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let link = elsewhere.join("link.db");
    std::os::unix::fs::symlink(place.directory.join("barekey.db"), &link).unwrap();
    let other_name = elsewhere.join("other.db");
    std::fs::hard_link(place.directory.join("barekey.db"), &other_name).unwrap();
    for (way, said) in [
        (&link, "another process"),
        (&other_name, "2 names (hard links)"),
    ] {
        place.database = format!("sqlite:{}", way.display());
        let Err((status, log)) = place.try_serve(&[]) else {
            panic!("two processes have the same file, by {}", way.display());
        };
        assert_eq!(status.code(), Some(1));
        assert!(log.contains(said), "{log}");
    }
    std::fs::remove_file(&other_name).unwrap();
    place.database = database;

    // A second server on the same socket.
    let mut other = Place::new(Engine::Sqlite);
    other.socket = first_socket;
    let Err((status, log)) = other.try_serve(&[]) else {
        panic!("two servers have the same socket");
    };
    assert_eq!(status.code(), Some(1));
    assert!(log.contains("another server answers"), "{log}");

    // The lock goes with its process, however that ends.
    server.kill();
    assert_eq!(place.serve().value(&owner, STAGING, "KEEP"), "kept");
}

pub(crate) fn without_a_master_key_nothing_starts() {
    let mut place = Place::new(Engine::Sqlite);
    for (key, said) in [
        ("", "--master-key-file"),
        ("", "BAREKEY_MASTER_KEY_B64"),
        ("!", "base64"),
        ("AAAA", "32"),
    ] {
        place.master_key = key.to_owned();
        let Err((status, log)) = place.try_serve(&[]) else {
            panic!("it started with the key {key:?}");
        };
        assert_eq!(status.code(), Some(1));
        assert!(log.contains(said), "{key:?}: {log}");
        assert!(
            !place.directory.join("barekey.db").exists(),
            "a database was made without a key"
        );
    }
    // From a file: as text, and as bytes; not beside the variable.
    let key = make_key();
    place.master_key = String::new();
    let file = place.directory.join("master.key");
    for content in [
        format!("{key}\n").into_bytes(),
        STANDARD.decode(&key).unwrap(),
    ] {
        std::fs::write(&file, content).unwrap();
        // It is said when others may read it; a group may, as of a volume in Kubernetes.
        for (mode, told) in [(0o644, true), (0o604, true), (0o440, false), (0o600, false)] {
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            let server = place.serve_with(&["--master-key-file", file.to_str().unwrap()]);
            let log = server.stop();
            assert_eq!(
                log.contains("may read the master key"),
                told,
                "{mode:o}: {log}"
            );
        }
    }
    place.master_key = key;
    let Err((_, log)) = place.try_serve(&["--master-key-file", file.to_str().unwrap()]) else {
        panic!("it started with two keys");
    };
    assert!(log.contains("two master keys"), "{log}");
    place.serve().stop();
}

pub(crate) fn plain_http_stays_on_loopback() {
    let place = Place::new(Engine::Sqlite);
    let run = |arguments: &[&str]| {
        let output = place.program(arguments).output().unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let said = run(&["serve", "--listen", "0.0.0.0:0"]);
    assert!(
        said.contains("--tls-certificate-file") && said.contains("--kubernetes"),
        "{said}"
    );
    assert!(run(&["serve", "--database", "mysql://x"]).contains("sqlite:PATH"));
    assert!(run(&["serve", "--value-bytes-max", "2000000"]).contains("1048576"));
    assert!(run(&["serve", "--kubernetes"]).contains("--namespace"));
    assert!(run(&["serve", "--tls-key-file", "x"]).contains("--tls-certificate-file"));
    assert!(!place.directory.join("barekey.db").exists());

    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = occupied.local_addr().unwrap().to_string();
    assert!(run(&["serve", "--listen", &address]).contains(&address));
}

pub(crate) fn a_certificate_from_files_is_served() {
    let place = Place::new(Engine::Sqlite);
    let made = rcgen::generate_simple_self_signed(vec!["vault.example".to_owned()]).unwrap();
    let (certificate, key) = (
        place.directory.join("tls.crt"),
        place.directory.join("tls.key"),
    );
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let flags = [
        "--tls-certificate-file",
        certificate.to_str().unwrap(),
        "--tls-key-file",
        key.to_str().unwrap(),
    ];
    let server = place.serve_with(&flags);
    let owner = place.bootstrap("acme");

    let ask = |trusted: &CertificateDer<'static>| {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("vault.example").unwrap();
        let client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut stream = StreamOwned::new(client, http::connect(server.api));
        let bearer = format!("Bearer {owner}");
        stream.write_all(&http::request(
            "GET",
            "/v1/cli/session",
            &[("authorization", &bearer)],
            b"",
        ))?;
        Ok::<_, std::io::Error>(http::read(&mut stream))
    };
    assert_eq!(ask(made.cert.der()).unwrap().success()["orgSlug"], "acme");
    let other = rcgen::generate_simple_self_signed(vec!["vault.example".to_owned()]).unwrap();
    assert!(
        ask(other.cert.der()).is_err(),
        "a certificate that nobody trusts"
    );
    // Plain HTTP gets no answer there.
    let plain = http::request("GET", "/openapi.json", &[], b"");
    assert!(http::try_exchange(server.api, &plain).is_none());
    server.stop();

    let wrong = other.signing_key.serialize_pem();
    std::fs::write(&key, wrong).unwrap();
    let Err((_, log)) = place.try_serve(&flags) else {
        panic!("a key that does not belong to its certificate");
    };
    assert!(log.contains("does not belong"), "{log}");
}

pub(crate) fn an_administrator_speaks_to_the_server_of_that_database_alone() {
    let place = Place::new(Engine::Sqlite);
    let run = |arguments: &[&str]| {
        let mut program = place.program(arguments);
        program.env_remove("BAREKEY_ADMIN_SOCKET");
        program.env_remove("BAREKEY_DATABASE");
        let output = program.output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code(), said)
    };
    // A database with an organization lies beside the file that is served.
    place.serve().stop();
    place.bootstrap("acme");
    std::fs::rename(
        place.directory.join("barekey.db"),
        place.directory.join("backup.db"),
    )
    .unwrap();
    let mut served = place.program(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--probe-listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]);
    served.env_remove("BAREKEY_ADMIN_SOCKET");
    let server = Place::try_start(served).unwrap_or_else(|(_, log)| panic!("{log}"));

    let (code, said) = run(&[
        "admin",
        "--database",
        "sqlite:backup.db",
        "bootstrap",
        "--organization",
        "acme",
    ]);
    assert_eq!(code, Some(1), "the server beside it answered: {said}");
    assert!(said.contains("exists"), "{said}");
    let bootstrap = ["admin", "bootstrap", "--organization", "globex"];
    let (code, said) = run(&[&bootstrap[..], &["--database", "sqlite:absent.db"]].concat());
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no database at absent.db"), "{said}");
    // Through a symbolic link, and without a word, it is the server of that file.
    std::os::unix::fs::symlink("barekey.db", place.directory.join("link.db")).unwrap();
    let (code, said) = run(&[&bootstrap[..], &["--database", "sqlite:link.db"]].concat());
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&bootstrap);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("exists"), "{said}");
    server.stop();
}

pub(crate) fn administration_works_without_a_server_on_a_file() {
    let place = Place::new(Engine::Sqlite);
    let output = place.admin(&["bootstrap", "--organization", "acme"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("barekey-operator serve"), "{said}");
    assert!(
        !place.directory.join("barekey.db").exists(),
        "a database was made by mistake"
    );

    place.serve().stop();
    let owner = place.bootstrap("acme");
    assert!(owner.starts_with("bk_api_"), "what is printed is the token");
    let server = place.serve();
    server.make_project(&owner, "shop");
    assert_eq!(place.admin(&["audit", "verify"]).status.code(), Some(0));

    // On a database that is not a file a server must run.
    let place = Place::new(Engine::Postgres);
    let output = place.admin(&["bootstrap", "--organization", "acme"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("no server listens") && said.contains("--admin-socket"),
        "{said}"
    );
}
