//! The `barekey` command against a running vault. Values go in by standard input or a file.

use std::fs;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::database::Engine;
use super::server::{Place, STAGING, Server, Shop, make_value};
use crate::harness::Journey;

/// Every journey of the command.
pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::alone(
            "cli::a_value_goes_in_by_stdin_or_a_file_and_comes_out_bare",
            a_value_goes_in_by_stdin_or_a_file_and_comes_out_bare,
        ),
        Journey::alone(
            "cli::a_value_in_an_argument_is_written_with_a_warning",
            a_value_in_an_argument_is_written_with_a_warning,
        ),
        Journey::alone(
            "cli::variables_are_listed_without_their_values",
            variables_are_listed_without_their_values,
        ),
        Journey::alone(
            "cli::projects_and_stages_are_made_and_listed",
            projects_and_stages_are_made_and_listed,
        ),
        Journey::alone(
            "cli::whoami_tells_whose_token_it_is",
            whoami_tells_whose_token_it_is,
        ),
        Journey::alone(
            "cli::a_program_runs_with_the_stages_values",
            a_program_runs_with_the_stages_values,
        ),
        Journey::alone(
            "cli::a_program_that_cannot_run_costs_no_read",
            a_program_that_cannot_run_costs_no_read,
        ),
        Journey::alone(
            "cli::while_it_waits_its_memory_is_not_for_others_of_its_user",
            while_it_waits_its_memory_is_not_for_others_of_its_user,
        ),
        Journey::alone(
            "cli::a_program_gets_its_limit_for_core_dumps_back",
            a_program_gets_its_limit_for_core_dumps_back,
        ),
        Journey::alone(
            "cli::every_command_says_what_it_was_not_told",
            every_command_says_what_it_was_not_told,
        ),
        Journey::alone(
            "cli::every_command_passes_on_the_servers_refusal_and_changes_nothing",
            every_command_passes_on_the_servers_refusal_and_changes_nothing,
        ),
        Journey::alone(
            "cli::a_server_is_trusted_by_its_authority_and_its_name",
            a_server_is_trusted_by_its_authority_and_its_name,
        ),
    ]
}

/// What a command did.
struct Done {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Done {
    /// What it printed; it must have succeeded without a word on standard error.
    #[track_caller]
    fn printed(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (0, ""), "it failed");
        self.stdout
    }

    /// What it printed, as JSON.
    #[track_caller]
    fn json(self) -> Value {
        serde_json::from_str(&self.printed()).expect("JSON")
    }

    /// Why it failed; it must have printed nothing and ended with code 1.
    #[track_caller]
    fn refusal(self) -> String {
        assert_eq!(
            (self.code, self.stdout.as_str()),
            (1, ""),
            "{}",
            self.stderr
        );
        self.stderr
    }
}

/// A person at a terminal: the command's environment.
struct Person {
    environment: Vec<(&'static str, String)>,
}

impl Person {
    /// One with a token, whose target is the staging stage of the shop.
    fn with(server: &Server, token: &str) -> Self {
        Self {
            environment: vec![
                ("PATH", "/usr/bin:/bin".to_owned()),
                ("BAREKEY_API_URL", format!("http://{}", server.api)),
                ("BAREKEY_ACCESS_TOKEN", token.to_owned()),
                ("BAREKEY_PROJECT", STAGING.0.to_owned()),
                ("BAREKEY_STAGE", STAGING.1.to_owned()),
            ],
        }
    }

    /// The same with another variable.
    fn and(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.environment.push((name, value.into()));
        self
    }

    /// The same without a variable.
    fn without(mut self, name: &str) -> Self {
        self.environment.retain(|(kept, _)| *kept != name);
        self
    }

    fn does(&self, arguments: &[&str]) -> Done {
        self.types(arguments, b"")
    }

    /// Runs the command with `input` on its standard input.
    fn types(&self, arguments: &[&str], input: &[u8]) -> Done {
        let mut child = Command::new(env!("CARGO_BIN_EXE_barekey"))
            .args(arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command runs");
        // One that refuses early does not read.
        drop(child.stdin.take().expect("a pipe").write_all(input));
        let output = child.wait_with_output().expect("the command ends");
        Done {
            code: output.status.code().expect("an exit code"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

fn a_value_goes_in_by_stdin_or_a_file_and_comes_out_bare() {
    let shop = Shop::open(Engine::Sqlite);
    let person = Person::with(&shop.server, &shop.owner);
    let value = make_value();
    let set = ["env", "set", "KEY"];
    assert_eq!(
        person
            .types(&set, format!("{value}\n").as_bytes())
            .printed(),
        "created KEY\n"
    );
    assert_eq!(person.does(&["env", "get", "KEY"]).printed(), value);
    assert_eq!(shop.server.value(&shop.owner, STAGING, "KEY"), value);

    for (input, keep, stored) in [
        ("a\n\n", false, "a\n"),
        ("a\n", true, "a\n"),
        ("", false, ""),
        ("Grüße \"\\\t\u{1F511}", false, "Grüße \"\\\t\u{1F511}"),
    ] {
        let set: &[&str] = if keep {
            &["env", "set", "KEY", "--keep-newline"]
        } else {
            &set
        };
        assert_eq!(
            person.types(set, input.as_bytes()).printed(),
            "updated KEY\n"
        );
        assert_eq!(
            person.does(&["env", "get", "KEY"]).printed(),
            stored,
            "{input:?}"
        );
    }

    // A file is taken byte for byte.
    let file = shop.place.directory.join("value");
    fs::write(&file, "line\n").unwrap();
    let set = ["env", "set", "FILE", "--value-file", file.to_str().unwrap()];
    assert_eq!(person.does(&set).printed(), "created FILE\n");
    assert_eq!(person.does(&["env", "get", "FILE"]).printed(), "line\n");

    // As JSON, with what the server made of the type.
    let set = [
        "env",
        "set",
        "PORT",
        "--type",
        "int64",
        "--visibility",
        "public",
        "--json",
    ];
    assert_eq!(
        person.types(&set, b"-0\n").json()["created"],
        json!(["PORT"])
    );
    let port = person.does(&["env", "get", "PORT", "--json"]).json();
    assert_eq!(
        (
            &port["name"],
            &port["value"],
            &port["declaredType"],
            &port["visibility"]
        ),
        (
            &json!("PORT"),
            &json!("0"),
            &json!("int64"),
            &json!("public")
        )
    );
}

fn a_value_in_an_argument_is_written_with_a_warning() {
    let shop = Shop::open(Engine::Sqlite);
    let person = Person::with(&shop.server, &shop.owner);
    let done = person.does(&["env", "set", "COLOUR", "blue"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "created COLOUR\n"));
    assert!(done.stderr.contains("warning"), "{}", done.stderr);
    assert!(!done.stderr.contains("blue"), "{}", done.stderr);
    assert_eq!(person.does(&["env", "get", "COLOUR"]).printed(), "blue");
}

fn variables_are_listed_without_their_values() {
    let shop = Shop::open(Engine::Sqlite);
    let person = Person::with(&shop.server, &shop.owner);
    assert_eq!(
        person.does(&["env", "list"]).printed(),
        "No variables found.\n"
    );
    let (first, second) = (make_value(), make_value());
    shop.server.write(
        &shop.owner,
        STAGING,
        &[("B_KEY", &first), ("A_KEY", &second)],
    );
    let listed = person.does(&["env", "list"]).printed();
    let lines: Vec<Vec<&str>> = listed
        .lines()
        .map(|line| line.split_whitespace().take(5).collect())
        .collect();
    assert_eq!(
        lines,
        [
            ["NAME", "VISIBILITY", "KIND", "TYPE", "VERSION"],
            ["A_KEY", "private", "secret", "string", "1"],
            ["B_KEY", "private", "secret", "string", "1"],
        ]
    );
    let json = person.does(&["--json", "env", "list"]).json();
    assert_eq!(json["variables"][1]["name"], "B_KEY");
    for value in [&first, &second] {
        assert!(!listed.contains(value.as_str()) && !json.to_string().contains(value.as_str()));
    }
}

fn projects_and_stages_are_made_and_listed() {
    let place = Place::new(Engine::Sqlite);
    let server = place.serve();
    let owner = place.bootstrap("acme");
    let person = Person::with(&server, &owner);
    assert_eq!(
        person.does(&["project", "list"]).printed(),
        "No projects found.\n"
    );
    let create = [
        "project", "create", "The Shop", "--slug", "shop", "--org", "acme",
    ];
    assert_eq!(person.does(&create).printed(), "created shop\n");
    let made = person
        .does(&["project", "create", "Back office", "--json"])
        .json();
    let guessed = made["project"]["slug"].as_str().unwrap().to_owned();
    assert!(guessed.starts_with("back"), "{made}");
    let listed = person.does(&["project", "list"]).printed();
    assert!(
        listed.starts_with("SLUG") && listed.contains("The Shop"),
        "{listed}"
    );
    assert_eq!(listed.lines().count(), 3, "{listed}");
    let listed = person.does(&["project", "list", "--json"]).json();
    assert_eq!(listed["projects"][0]["slug"], json!(guessed));

    let create = [
        "stage",
        "create",
        "Preview of new things",
        "--slug",
        "preview",
    ];
    assert_eq!(person.does(&create).printed(), "created preview\n");
    let listed = person
        .does(&["stage", "list", "--project", "shop"])
        .printed();
    let slugs: Vec<_> = listed
        .lines()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(
        slugs,
        ["SLUG", "development", "staging", "production", "preview"]
    );
    let listed = person.does(&["stage", "list", "--json"]).json();
    assert_eq!(listed["stages"][2]["protected"], true);
}

fn whoami_tells_whose_token_it_is() {
    let shop = Shop::open(Engine::Sqlite);
    let told = Person::with(&shop.server, &shop.owner)
        .does(&["whoami"])
        .printed();
    for line in [
        "organization:    acme (",
        "role:            owner",
        "scope:           the whole organization",
    ] {
        assert!(told.contains(line), "{told}");
    }
    assert!(!told.contains(&shop.owner));
    let cut = [
        "--role",
        "viewer",
        "--project",
        "shop",
        "--stage",
        "staging",
        "--name",
        "ci",
        "--expires",
        "1h",
    ];
    let token = shop.place.token("acme", &cut);
    // The alias.
    let person = Person::with(&shop.server, "").and("BAREKEY_TOKEN", token);
    let told = person.does(&["whoami"]).printed();
    assert!(told.contains("name:            ci ("), "{told}");
    assert!(told.contains("scope:           stage "), "{told}");
    assert!(!told.contains("never\nlast"), "it expires: {told}");
    let session = person.does(&["whoami", "--json"]).json();
    assert_eq!(
        (&session["source"], &session["role"]),
        (&json!("token"), &json!("viewer"))
    );
}

fn a_program_runs_with_the_stages_values() {
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

fn a_program_that_cannot_run_costs_no_read() {
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

fn every_command_says_what_it_was_not_told() {
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
    for command in COMMANDS {
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

fn every_command_passes_on_the_servers_refusal_and_changes_nothing() {
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

fn while_it_waits_its_memory_is_not_for_others_of_its_user() {
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

fn a_program_gets_its_limit_for_core_dumps_back() {
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

fn a_server_is_trusted_by_its_authority_and_its_name() {
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
