//! The commands of the README and of the examples, run as they are written: what one reads is what works.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    Installation, Journey, Namespace, OURS, Program, checkout, example, get, secrets, sha256_hex,
    token,
};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::changing(
            "the_readme_brings_a_first_value_into_a_pod",
            first_value_in_a_pod,
        ),
        Journey::alone("the_readme_serves_the_vault_alone", the_vault_alone).by_root(),
        Journey::alone(
            "every_command_of_ours_in_a_document_is_one",
            every_command_is_one,
        ),
    ]
}

/// A document of the checkout.
#[track_caller]
fn document(path: &str) -> String {
    std::fs::read_to_string(checkout().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The shell commands in a Markdown text, block by block.
fn blocks(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open: Option<String> = None;
    for line in text.lines().map(str::trim_start) {
        match &mut open {
            None if line == "```sh" => open = Some(String::new()),
            Some(_) if line == "```" => found.extend(open.take()),
            Some(block) => *block += &format!("{line}\n"),
            None => {}
        }
    }
    found
}

/// The text of the section `## name`.
#[track_caller]
fn section<'a>(text: &'a str, name: &str) -> &'a str {
    let rest = text.split_once(&format!("\n## {name}\n"));
    let (_, rest) = rest.unwrap_or_else(|| panic!("there is no section {name}"));
    rest.split("\n## ").next().expect("a text")
}

/// The text with another one in the place of `from`, which must be there.
#[track_caller]
fn replaced(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "there is no {from:?} in:\n{text}");
    text.replace(from, to)
}

/// A folder in which the checkout seems to be, and in which the commands leave their files.
fn desk() -> TempDir {
    let desk = TempDir::new().expect("a folder can be made");
    for folder in ["charts", "crds", "examples"] {
        let there = checkout().join(folder);
        std::os::unix::fs::symlink(there, desk.path().join(folder)).expect("a link can be made");
    }
    desk
}

/// Runs shell commands at a desk, with our programs on the path; they must all succeed. What they start ends with them.
#[track_caller]
fn typed(desk: &Path, shell: &[&str], commands: &str) -> String {
    let script = desk.join("typed.sh");
    let begin = "set -euo pipefail\ntrap 'kill $(jobs -p) 2>/dev/null' EXIT\n";
    std::fs::write(&script, format!("{begin}{commands}")).expect("a file can be written");
    let programs = Path::new(env!("CARGO_BIN_EXE_barekey")).parent();
    let programs = programs.expect("a folder").display();
    let path = std::env::var("PATH").expect("a PATH");
    Program::new("env")
        .args(["-C"])
        .args([desk])
        .args(shell)
        .args(["setpriv", "--pdeathsig", "KILL", "bash"])
        .args([script])
        .env("PATH", format!("{programs}:{path}"))
        .succeed()
}

/// Until somebody listens at a port of this machine: a person types more slowly than a program starts.
fn until_open(port: u16) -> String {
    format!("until (: </dev/tcp/localhost/{port}) 2>/dev/null; do sleep 0.1; done\n")
}

fn first_value_in_a_pod(_: &Namespace) {
    let installation = Installation::shared();
    let readme = document("README.md");
    let blocks = blocks(section(&readme, "A first value in a pod"));
    // The images are where the node finds them, under the names that `make images` gives without REGISTRY.
    assert!(blocks[0].starts_with("make images REGISTRY="));
    let commands = blocks[1..].concat();
    let commands = replaced(&commands, "registry.example.com", "docker.io");
    // Cargo has built it for this test, in another folder.
    let build =
        "cargo build --release --locked --no-default-features --features cli --bin barekey && ";
    let commands = replaced(&commands, build, "");
    let forward = "port-forward service/barekey 8443:443 &\n";
    let commands = replaced(
        &commands,
        forward,
        &format!("{forward}{}", until_open(8443)),
    );

    let desk = desk();
    let _restored = Restored::from_nothing(installation);
    let commands = commands + "printf %s \"$BAREKEY_ACCESS_TOKEN\" > token\n";
    let printed = typed(desk.path(), &[], &commands);
    let owner = std::fs::read_to_string(desk.path().join("token")).expect("a token");
    assert_eq!(token(&owner), owner, "it is remembered");
    let key = std::fs::read_to_string(desk.path().join("master.key")).expect("a master key");
    secrets::remember_master_key(key.trim());
    // Once by the process in the pod, and once by the person.
    let hash = sha256_hex("postgres://shop:secret@db/shop");
    assert_eq!(printed.matches(&hash).count(), 2, "{printed}");
    let declared: Value = serde_yaml::from_str(&example("first-value/namespace.yaml")).unwrap();
    let level = "pod-security.kubernetes.io/enforce";
    assert_eq!(declared["metadata"]["labels"][level], "restricted");
    let found = get(["namespace/shop"]).expect("it is made");
    assert_eq!(found["metadata"]["labels"][level], "restricted");
}

/// A cluster without Barekey and its namespaces, until this guard goes; then the installation is there again.
struct Restored<'a>(&'a Installation);

impl<'a> Restored<'a> {
    #[track_caller]
    fn from_nothing(installation: &'a Installation) -> Self {
        for name in ["shop", "barekey"] {
            let found = get(["namespace", name]);
            let ours = |found: &Value| found["metadata"]["labels"].get(OURS).is_some();
            assert!(
                found.as_ref().is_none_or(ours),
                "the namespace {name} is somebody else's, and the README's commands need its name: remove it, or give \
                 another cluster"
            );
        }
        let restored = Self(installation);
        installation.uninstall();
        Self::remove_namespaces();
        restored
    }

    #[track_caller]
    fn remove_namespaces() {
        crate::harness::kubectl(["delete", "namespace", "--ignore-not-found", "--wait"])
            .args(["shop", "barekey"])
            .succeed();
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        // A second panic would end the run.
        let restored = catch_unwind(AssertUnwindSafe(|| {
            let output = self.0.helm_uninstall().output();
            if !output.status.success() {
                eprintln!("{output}");
            }
            Self::remove_namespaces();
            self.0.make_anew();
        }));
        if let Err(panic) = restored
            && !std::thread::panicking()
        {
            resume_unwind(panic);
        }
    }
}

fn the_vault_alone() {
    let readme = document("README.md");
    let guide = document("examples/vault-alone/README.md");
    let [begin] = &blocks(section(&readme, "The vault alone"))[..] else {
        panic!("the section has another number of blocks");
    };
    let [build, serve, rest @ ..] = &blocks(&guide)[..] else {
        panic!("the example has no blocks");
    };
    // Both say the same.
    let path = "export PATH=$PWD/target/release:$PATH\n";
    let cargo = "cargo build --release --locked --bin barekey-operator --bin barekey";
    assert_eq!(*build, format!("{cargo}\n{path}"));
    assert_eq!(*begin, format!("{cargo} && {path}{serve}"));

    // Cargo has built both for this test, in another folder; and the rest is typed in another terminal.
    let begin = replaced(begin, &format!("{cargo} && "), "");
    let begin = replaced(
        &begin,
        "--master-key-file master.key\n",
        "--master-key-file master.key &\n",
    );
    let rest = rest.concat();
    let commands = format!("ip link set lo up\n{begin}{}{rest}", until_open(8200));
    let desk = desk();
    // In a network of its own, where nobody else has these ports.
    let printed = typed(desk.path(), &["unshare", "--net"], &commands);
    let hash = sha256_hex("postgres://…");
    assert_eq!(printed.matches(&hash).count(), 1, "{printed}");
    assert!(
        printed.contains("\"value\":\"postgres://…\""),
        "evaluate answers it: {printed}"
    );
}

/// Documents with commands of ours that no journey types.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "SECURITY.md",
    "charts/barekey/README.md",
    "examples/README.md",
    "examples/another-namespace/README.md",
    "examples/continuous-integration/README.md",
    "examples/first-value/README.md",
    "examples/postgres/README.md",
    "examples/rename-and-reference/README.md",
    "examples/vault-alone/README.md",
];

fn every_command_is_one() {
    let mut seen = 0;
    for path in DOCUMENTS {
        for block in blocks(&document(path)) {
            for line in block.replace("\\\n", " ").lines() {
                for (program, arguments) in commands_of_ours(line) {
                    seen += 1;
                    if let Err(said) = understood(program, &arguments) {
                        panic!("{path}: {line}\n{said}");
                    }
                }
            }
        }
    }
    assert!(seen >= 20, "only {seen} commands are seen");
    // It would find one that is none.
    for wrong in [
        "barekey env put NAME",
        "x | barekey env set --typo NAME",
        "barekey-operator admin token make",
        "barekey-operator admin token create --organization acme",
        "barekey env get",
        "barekey run",
    ] {
        let [(program, arguments)] = &commands_of_ours(wrong)[..] else {
            panic!("{wrong} is not seen");
        };
        assert!(understood(program, arguments).is_err(), "{wrong}");
    }
}

/// Whether a program takes these arguments. It is run with them where it can do nothing: in an empty folder, with no key, and
/// with a server that does not answer. What it then complains about is another thing than its usage.
fn understood(program: &str, arguments: &[&str]) -> Result<(), String> {
    let found = match program {
        "barekey" => env!("CARGO_BIN_EXE_barekey"),
        _ => env!("CARGO_BIN_EXE_barekey-operator"),
    };
    let desk = TempDir::new().expect("a folder can be made");
    let output = Program::new("env")
        .args(["--ignore-environment", "-C"])
        .args([desk.path()])
        .args([
            "BAREKEY_API_URL=http://127.0.0.1:9",
            "BAREKEY_ACCESS_TOKEN=token",
        ])
        .args([found])
        .args(arguments)
        .output();
    if output.stderr.contains("Usage:") || output.stderr.starts_with("error:") {
        Err(output.to_string())
    } else {
        Ok(())
    }
}

/// The commands of our two programs in a line of a shell: which one, and its arguments up to what is the shell's own, or
/// another program's.
fn commands_of_ours(line: &str) -> Vec<(&'static str, Vec<&str>)> {
    let mut found = Vec::new();
    let mut before = "";
    let mut words = line.split_whitespace().peekable();
    while let Some(word) = words.next() {
        let begins = matches!(before, "" | "|" | "&&" | ";" | "--") || word.contains("$(");
        before = word;
        let program = match word.rsplit(['(', '/']).next() {
            Some("barekey") if begins => "barekey",
            Some("barekey-operator") if begins => "barekey-operator",
            _ => continue,
        };
        let mut arguments = Vec::new();
        while let Some(next) = words.peek() {
            if next.starts_with(['|', '&', ';', '>', '<', '#']) {
                break;
            }
            arguments.push(next.trim_end_matches([')', ';']).trim_matches(['\'', '"']));
            words.next();
        }
        found.push((program, arguments));
    }
    found
}
