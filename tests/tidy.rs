//! Style as a test: which module may name which, which crate belongs to whom, and what no file may be or hold.
//!
//! The checks read the sources as text, so that they need no compiler and see every feature set at once. Unit tests at
//! the foot of a file (`#[cfg(test)]`) may name what they need; everything else holds to the tables below. Each check has
//! a test of its own that plants what it must find.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that meets what it does not understand has to fail"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

// ---- the tables --------------------------------------------------------------------------------------------------

/// Which module may name which other one. The row with the longest name that fits a file counts. A module may always name
/// its own parts; `lib.rs` declares everything and the programs may name everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("domain", &[]),
    ("protocol", &["domain"]),
    ("crypto", &["domain"]),
    ("storage", &["domain"]),
    ("vault", &["domain", "crypto", "storage"]),
    ("api", &["domain", "protocol", "vault"]),
    ("kubernetes", &["domain", "vault"]),
    // The deciding parts are pure: they see the custom resources and nothing that acts.
    (
        "kubernetes::injection",
        &["domain", "kubernetes::resources"],
    ),
    ("kubernetes::plan", &["domain", "kubernetes::resources"]),
    ("kubernetes::resources", &["domain"]),
    ("admin", &["domain", "protocol", "vault"]),
    ("client", &["domain", "protocol", "crypto"]),
    ("cli", &["domain", "protocol", "client", "crypto", "agent"]),
    ("agent", &["domain", "client", "crypto"]),
    ("settings", &["domain"]),
    ("telemetry", &[]),
];

/// Which module a crate belongs to. The programs (`bin`) join the parts and may name these too.
const CRATES: &[(&str, &[&str])] = &[
    ("sqlx", &["storage"]),
    ("chacha20poly1305", &["crypto"]),
    ("sha2", &["crypto"]),
    ("hmac", &["crypto"]),
    ("axum", &["api", "admin", "kubernetes::webhook"]),
    ("axum_server", &["api"]),
    ("utoipa", &["api", "protocol", "domain"]),
    ("utoipa_axum", &["api"]),
    ("kube", &["kubernetes"]),
    ("k8s_openapi", &["kubernetes"]),
    ("schemars", &["kubernetes"]),
    ("json_patch", &["kubernetes"]),
    ("rcgen", &["kubernetes"]),
    ("hyper", &["client", "api::listener"]),
    ("hyper_util", &["client", "api::listener"]),
    ("clap", &["cli", "settings"]),
    ("rustls_native_certs", &["cli", "client"]),
    ("anyhow", &[]),
];

/// Words that say what only one part may know: the word, who may hold it, and the invariant.
const ABSENT: &[(&str, &[&str], &str)] = &[(
    "StatusCode",
    &["api", "admin", "client", "kubernetes::webhook", "bin"],
    "only what speaks HTTP knows its statuses",
)];

/// Words that a module may not hold, though its arrows would let it.
const FORBIDDEN_IN: &[(&str, &str, &str)] = &[
    (
        "storage",
        "Plaintext",
        "storage never sees a value in the clear",
    ),
    ("domain", "SystemTime", "domain reads no clock"),
    ("domain", "Instant", "domain reads no clock"),
    ("domain", "getrandom", "domain has no randomness"),
    ("domain", "tokio", "domain does no I/O"),
    ("kubernetes::injection", "tokio", "injection is pure"),
    ("kubernetes::plan", "tokio", "plan is pure"),
];

/// Names that say nothing: what would go there belongs to its one caller, or shows a missing noun.
const NAMELESS: &[&str] = &[
    "util", "utils", "helper", "helpers", "common", "types", "manager", "service", "misc", "mod",
];

/// Marks of unfinished work. Spelt in halves, so that this file may name them.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("todo", "!("),
    concat!("unimplemented", "!("),
    concat!("dbg", "!("),
    concat!("#[ig", "nore"),
];

/// What the agent must not link, by the features that build it.
const NOT_IN_PODS: &[&str] = &["sqlx", "kube", "k8s-openapi", "axum", "chacha20poly1305"];

// ---- the checks on this repository ---------------------------------------------------------------------------------

#[test]
fn no_module_names_what_the_table_does_not_allow() {
    let mut found = Vec::new();
    for source in sources("src") {
        found.extend(forbidden_arrows(&source));
        found.extend(foreign_crates(&source));
        found.extend(misplaced_words(&source));
    }
    report(&found);
}

#[test]
fn every_source_file_is_declared_by_a_module() {
    let manifest = read("Cargo.toml");
    let files: BTreeMap<PathBuf, String> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|folder| sources(folder))
        .map(|source| (source.path, source.text))
        .collect();
    report(&orphans(&roots(&manifest), &files));
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    let found: Vec<_> = ["src", "tests", "benches"]
        .iter()
        .flat_map(|folder| sources(folder))
        .filter_map(|source| nameless(&source.path))
        .collect();
    report(&found);
}

#[test]
fn nothing_is_left_unfinished_and_no_lint_is_switched_off_without_a_reason() {
    let mut found = Vec::new();
    for path in files_below(Path::new("."), &|path| !is_foreign(path)) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else {
            continue; // Not text.
        };
        found.extend(unfinished(&path, &text));
        if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(unreasoned(&path, &text));
        }
    }
    report(&found);
}

#[test]
fn the_code_map_says_what_the_table_says() {
    report(&stale_map(&read("src/lib.rs")));
}

#[test]
fn the_agent_is_built_without_database_and_cluster() {
    report(&heavy_features(&read("Cargo.toml")));
}

#[test]
fn every_link_in_a_document_leads_somewhere() {
    let mut found = Vec::new();
    for path in files_below(Path::new("."), &|path| !is_foreign(path)) {
        if path.extension().is_some_and(|extension| extension == "md") {
            let text = read(path.to_str().unwrap());
            found.extend(broken_links(&path, &text, &|target| {
                root().join(target).exists()
            }));
        }
    }
    report(&found);
}

#[test]
fn every_example_says_what_it_shows() {
    let folder = root().join("examples");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.join("README.md").is_file() {
            found.push(Finding::new(&path, "an example without README.md"));
        }
    }
    report(&found);
}

/// What the library can say about files beside it.
#[cfg(feature = "server")]
mod beside_the_library {
    use super::*;

    #[test]
    fn the_chart_documents_every_value() {
        let values: serde_json::Value =
            serde_yaml::from_str(&read("charts/barekey/values.yaml")).unwrap();
        let readme = read("charts/barekey/README.md");
        let mut found = Vec::new();
        for name in leaves("", &values) {
            if !readme.contains(&format!("| `{name}` |")) {
                found.push(Finding::new(
                    Path::new("charts/barekey/README.md"),
                    &format!("does not list the value `{name}`"),
                ));
            }
        }
        report(&found);
    }

    /// The dotted names of everything that can be set: what is a map without keys, a list, or no map at all.
    fn leaves(prefix: &str, value: &serde_json::Value) -> Vec<String> {
        match value {
            serde_json::Value::Object(map) if !map.is_empty() => map
                .iter()
                .flat_map(|(name, value)| {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    leaves(&format!("{prefix}{dot}{name}"), value)
                })
                .collect(),
            _ => vec![prefix.to_owned()],
        }
    }

    #[test]
    fn every_value_of_a_map_in_a_map_is_a_leaf() {
        let values = serde_json::json!({"a": {"b": 1, "c": {}}, "d": [1], "e": null});
        assert_eq!(leaves("", &values), ["a.b", "a.c", "d", "e"]);
    }
}

// ---- what is found -------------------------------------------------------------------------------------------------

/// One thing that is not as it should be.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: PathBuf,
    line: usize,
    problem: String,
}

impl Finding {
    fn new(path: &Path, problem: &str) -> Self {
        Self::at(path, 0, problem.to_owned())
    }

    fn at(path: &Path, line: usize, problem: String) -> Self {
        Self {
            path: path.to_owned(),
            line,
            problem,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.line {
            0 => write!(formatter, "{path}: {}", self.problem),
            line => write!(formatter, "{path}:{line}: {}", self.problem),
        }
    }
}

fn report(found: &[Finding]) {
    let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}\n", lines.join("\n"));
}

// ---- files ---------------------------------------------------------------------------------------------------------

/// A source file, with its path from the repository's root.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// Its place among the modules: `["kubernetes", "plan"]`, or `["bin", …]`; empty for `lib.rs`.
    fn module(&self) -> Vec<String> {
        let inner = self.path.strip_prefix("src").unwrap().with_extension("");
        let parts: Vec<String> = inner
            .iter()
            .map(|part| part.to_str().unwrap().to_owned())
            .collect();
        if parts == ["lib"] { Vec::new() } else { parts }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn sources(folder: &str) -> Vec<Source> {
    files_below(Path::new(folder), &|_| true)
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .map(|path| Source {
            text: read(path.to_str().unwrap()),
            path,
        })
        .collect()
}

/// Every file below `folder` that `wanted` lets through, folders included, sorted.
fn files_below(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(root().join(folder)) else {
        return found;
    };
    for entry in entries {
        let entry = entry.unwrap();
        let path = match folder.to_str() {
            Some(".") => PathBuf::from(entry.file_name()),
            _ => folder.join(entry.file_name()),
        };
        if !wanted(&path) {
            continue;
        }
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(files_below(&path, wanted));
        } else if kind.is_file() {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What nobody here wrote: build output, version control, lock files.
fn is_foreign(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    matches!(
        name,
        "target" | ".git" | "Cargo.lock" | "go.sum" | "go.mod" | "LICENSE"
    )
}

// ---- Rust as text --------------------------------------------------------------------------------------------------

/// `text` with comments and the insides of literals blanked; lines stay where they are.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    let blank = |out: &mut String, from: usize, to: usize| {
        for character in &chars[from..to.min(chars.len())] {
            out.push(if *character == '\n' { '\n' } else { ' ' });
        }
    };
    while at < chars.len() {
        let rest = &chars[at..];
        let end = if rest.starts_with(&['/', '/']) {
            at + rest.iter().position(|c| *c == '\n').unwrap_or(rest.len())
        } else if rest.starts_with(&['/', '*']) {
            at + block_comment(rest)
        } else if let Some(length) = raw_string(rest).filter(|_| !ends_in_word(&out)) {
            at + length
        } else if rest[0] == '"' {
            at + quoted(rest, '"')
        } else if let Some(length) = character_literal(rest) {
            at + length
        } else {
            out.push(rest[0]);
            at += 1;
            continue;
        };
        blank(&mut out, at, end);
        at = end;
    }
    out
}

fn ends_in_word(text: &str) -> bool {
    text.chars().next_back().is_some_and(is_word)
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// How long the block comment is that `text` starts with; they nest.
fn block_comment(text: &[char]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < text.len() {
        if text[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if text[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

/// How long the raw string is that `text` starts with.
fn raw_string(text: &[char]) -> Option<usize> {
    let start = usize::from(matches!(text.first(), Some('b' | 'c')));
    if text.get(start) != Some(&'r') {
        return None;
    }
    let hashes = text[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if text.get(open) != Some(&'"') {
        return None;
    }
    let mut close = vec!['"'];
    close.extend(std::iter::repeat_n('#', hashes));
    let inner = text[open + 1..]
        .windows(close.len())
        .position(|window| window == close)?;
    Some(open + 1 + inner + close.len())
}

/// How long the literal is that `text` starts with, up to the next `quote` without a backslash.
fn quoted(text: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != quote {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// How long the character is that `text` starts with; a lifetime is none.
fn character_literal(text: &[char]) -> Option<usize> {
    match text {
        ['\'', '\\', ..] => Some(quoted(text, '\'')),
        ['\'', _, '\'', ..] => Some(3),
        _ => None,
    }
}

/// `code` without its unit tests: from `#[cfg(test)]` on to the end of what follows.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = String::new();
    let mut rest = code;
    while let Some(at) = rest.find(MARK) {
        out.push_str(&rest[..at]);
        let tail = &rest[at + MARK.len()..];
        let end = item_end(tail);
        out.extend(tail[..end].chars().filter(|character| *character == '\n'));
        rest = &tail[end..];
    }
    out.push_str(rest);
    out
}

/// Where the item that `code` starts with ends: at its closing brace, or at a semicolon before any.
fn item_end(code: &str) -> usize {
    let mut depth = 0_usize;
    for (at, character) in code.char_indices() {
        match character {
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            ';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

/// A path somewhere in code: its parts, and the line it starts on.
#[derive(Debug, PartialEq, Eq)]
struct Named {
    parts: Vec<String>,
    line: usize,
}

/// Every path of at least two parts in `code`, and every `use`; groups are taken apart.
fn paths(code: &str) -> Vec<Named> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let starts = is_ident(&tokens[at].0)
            && (at == 0 || !matches!(tokens[at - 1].0.as_str(), "::" | "."))
            && (tokens.get(at + 1).is_some_and(|(next, _)| next == "::")
                || at > 0 && tokens[at - 1].0 == "use");
        if starts {
            let line = tokens[at].1;
            let mut all = Vec::new();
            at = tree(&tokens, at, &[], &mut all);
            found.extend(all.into_iter().map(|parts| Named { parts, line }));
        } else {
            at += 1;
        }
    }
    found
}

/// Words, `::`, and single characters, each with its line.
fn tokens(code: &str) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut line = 1;
    let mut word = String::new();
    for character in code.chars().chain(['\n']) {
        if is_word(character) {
            word.push(character);
            continue;
        }
        if !word.is_empty() {
            found.push((std::mem::take(&mut word), line));
        }
        match character {
            '\n' => line += 1,
            ':' if found.last().is_some_and(|(last, _)| last == ":") => {
                found.pop();
                found.push(("::".to_owned(), line));
            }
            other if other.is_whitespace() => {}
            other => found.push((other.to_string(), line)),
        }
    }
    found
}

fn is_ident(token: &str) -> bool {
    token
        .chars()
        .next()
        .is_some_and(|first| first.is_alphabetic() || first == '_')
}

/// Reads a path or a `use` tree at `at`; returns where it ends.
fn tree(
    tokens: &[(String, usize)],
    mut at: usize,
    before: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let mut parts = before.to_vec();
    let text = |at: usize| tokens.get(at).map_or("", |(token, _)| token.as_str());
    loop {
        if text(at) == "{" {
            at += 1;
            while !matches!(text(at), "}" | "") {
                at = if text(at) == "," {
                    at + 1
                } else {
                    tree(tokens, at, &parts, found)
                };
            }
            return at + 1;
        }
        if !is_ident(text(at)) {
            // `*`, or the `<` of `name::<…>`.
            found.push(parts);
            return at + 1;
        }
        parts.push(text(at).to_owned());
        at += 1;
        if text(at) != "::" {
            // `as name`.
            if text(at) == "as" {
                at += 2;
            }
            found.push(parts);
            return at;
        }
        at += 1;
    }
}

// ---- arrows --------------------------------------------------------------------------------------------------------

/// Whether `module` is `prefix` or inside it.
fn within(module: &[String], prefix: &str) -> bool {
    let prefix: Vec<&str> = prefix.split("::").collect();
    module.len() >= prefix.len()
        && module
            .iter()
            .zip(&prefix)
            .all(|(part, wanted)| part == wanted)
}

/// The row of the table that counts for a module.
fn row(module: &[String]) -> Option<&'static (&'static str, &'static [&'static str])> {
    ARROWS
        .iter()
        .filter(|(name, _)| within(module, name))
        .max_by_key(|(name, _)| name.len())
}

/// Where `parts`, named in `module`, leads inside this crate; `None` when it leads out of it.
fn inside(module: &[String], parts: &[String]) -> Option<Vec<String>> {
    match parts.first()?.as_str() {
        "crate" => Some(parts[1..].to_vec()),
        "self" => Some([module, &parts[1..]].concat()),
        "super" => {
            let ups = parts.iter().take_while(|part| *part == "super").count();
            let base = &module[..module.len().saturating_sub(ups)];
            Some([base, &parts[ups..]].concat())
        }
        _ => None,
    }
}

fn forbidden_arrows(source: &Source) -> Vec<Finding> {
    let module = source.module();
    if module.is_empty() || within(&module, "bin") {
        return Vec::new();
    }
    let Some((name, may_name)) = row(&module) else {
        return vec![Finding::new(
            &source.path,
            "a module that has no row in the table of arrows",
        )];
    };
    let mut found = Vec::new();
    for named in paths(&without_tests(&code(&source.text))) {
        let Some(target) = inside(&module, &named.parts) else {
            continue;
        };
        let allowed = within(&target, name)
            || may_name.iter().any(|allowed| within(&target, allowed))
            // The parent's own items, for a module whose row is that of its parent.
            || target.is_empty();
        if !allowed {
            found.push(Finding::at(
                &source.path,
                named.line,
                format!("{name} may not name {}", target.join("::")),
            ));
        }
    }
    found
}

fn foreign_crates(source: &Source) -> Vec<Finding> {
    let module = source.module();
    let mut found = Vec::new();
    for named in paths(&without_tests(&code(&source.text))) {
        let Some((name, owners)) = CRATES.iter().find(|(name, _)| named.parts[0] == *name) else {
            continue;
        };
        if !within(&module, "bin") && !owners.iter().any(|owner| within(&module, owner)) {
            found.push(Finding::at(
                &source.path,
                named.line,
                format!(
                    "the crate {name} belongs to {} and the programs",
                    owners.join(", ")
                ),
            ));
        }
    }
    found
}

fn misplaced_words(source: &Source) -> Vec<Finding> {
    let module = source.module();
    let code = without_tests(&code(&source.text));
    let mut found = Vec::new();
    for (word, line) in tokens(&code) {
        for (absent, holders, why) in ABSENT {
            if word == *absent && !holders.iter().any(|holder| within(&module, holder)) {
                found.push(Finding::at(&source.path, line, format!("{word}: {why}")));
            }
        }
        for (holder, forbidden, why) in FORBIDDEN_IN {
            if word == *forbidden && within(&module, holder) {
                found.push(Finding::at(&source.path, line, format!("{word}: {why}")));
            }
        }
    }
    found
}

/// Rows of the map in `lib.rs` that say something else than [`ARROWS`].
fn stale_map(lib: &str) -> Vec<Finding> {
    let path = Path::new("src/lib.rs");
    let rows: Vec<Vec<&str>> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("//! |"))
        .map(|line| {
            line.trim_end_matches('|')
                .split('|')
                .map(str::trim)
                .collect()
        })
        .collect();
    let mut found = Vec::new();
    for (name, may_name) in ARROWS.iter().filter(|(name, _)| !name.contains("::")) {
        let stated = rows.iter().find_map(|cells| {
            let position = cells
                .first()?
                .split(", ")
                .position(|cell| cell.trim_matches(['[', ']', '`']) == *name)?;
            // Modules that share a line share its last cell, part by part.
            let last = cells.last()?;
            Some(last.split("; ").nth(position).unwrap_or(last).to_owned())
        });
        let expected = if may_name.is_empty() {
            "–".to_owned()
        } else {
            may_name.join(", ")
        };
        match stated {
            None => found.push(Finding::new(
                path,
                &format!("the code map does not list {name}"),
            )),
            Some(stated) if stated != expected => found.push(Finding::new(
                path,
                &format!("the code map lets {name} name {stated}, the table {expected}"),
            )),
            Some(_) => {}
        }
    }
    found
}

// ---- orphans, names, words -----------------------------------------------------------------------------------------

/// The files that Cargo.toml names as roots of a crate.
fn roots(manifest: &str) -> Vec<PathBuf> {
    manifest
        .lines()
        .filter_map(|line| line.strip_prefix("path = \"")?.strip_suffix('"'))
        .map(PathBuf::from)
        .collect()
}

/// Files that no root reaches by `mod`.
fn orphans(roots: &[PathBuf], files: &BTreeMap<PathBuf, String>) -> Vec<Finding> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<(PathBuf, bool)> = roots.iter().map(|root| (root.clone(), true)).collect();
    let mut found = Vec::new();
    while let Some((path, is_root)) = next.pop() {
        let Some(text) = files.get(&path) else {
            found.push(Finding::new(&path, "a declared file that is not there"));
            continue;
        };
        if !reached.insert(path.clone()) {
            continue;
        }
        let folder = if is_root {
            path.parent().unwrap().to_owned()
        } else {
            path.with_extension("")
        };
        for name in declared(text) {
            next.push((folder.join(format!("{name}.rs")), false));
        }
    }
    let lost = files.keys().filter(|path| !reached.contains(*path));
    found.extend(lost.map(|path| Finding::new(path, "no `mod` declares this file")));
    found
}

/// The modules that a file declares as files of their own.
fn declared(text: &str) -> Vec<String> {
    let tokens = tokens(&code(text));
    tokens
        .windows(3)
        .filter(|window| window[0].0 == "mod" && is_ident(&window[1].0) && window[2].0 == ";")
        .map(|window| window[1].0.clone())
        .collect()
}

fn nameless(path: &Path) -> Option<Finding> {
    path.with_extension("")
        .iter()
        .filter_map(|part| part.to_str())
        .find(|part| NAMELESS.contains(part))
        .map(|part| Finding::new(path, &format!("`{part}` says nothing: name the noun")))
}

fn unfinished(path: &Path, text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
            found.push(Finding::at(
                path,
                number + 1,
                format!("`{word}`: finish it, or say what is not built"),
            ));
        }
    }
    found
}

/// `allow` and `expect` attributes that do not say why.
fn unreasoned(path: &Path, text: &str) -> Vec<Finding> {
    let tokens = tokens(&code(text));
    let mut found = Vec::new();
    for (at, (word, line)) in tokens.iter().enumerate() {
        let opens = tokens.get(at + 1).is_some_and(|(next, _)| next == "(");
        let in_attribute = at > 0 && matches!(tokens[at - 1].0.as_str(), "[" | ",");
        if !matches!(word.as_str(), "allow" | "expect") || !opens || !in_attribute {
            continue;
        }
        let inner = tokens[at..].iter().take_while(|(token, _)| token != "]");
        if !inner.into_iter().any(|(token, _)| token == "reason") {
            found.push(Finding::at(
                path,
                *line,
                format!("`{word}(…)` without `reason = \"…\"`"),
            ));
        }
    }
    found
}

/// Crates that the features for pods bring, and must not.
fn heavy_features(manifest: &str) -> Vec<Finding> {
    let path = Path::new("Cargo.toml");
    let mut found = Vec::new();
    for feature in ["cli", "agent"] {
        let start = format!("\n{feature} = [");
        let Some(list) = manifest
            .split_once(&start)
            .and_then(|(_, rest)| rest.split_once(']'))
        else {
            found.push(Finding::new(
                path,
                &format!("there is no feature {feature}"),
            ));
            continue;
        };
        for heavy in NOT_IN_PODS {
            if list.0.contains(&format!("\"dep:{heavy}\"")) {
                found.push(Finding::new(
                    path,
                    &format!("the feature {feature} brings {heavy}"),
                ));
            }
        }
    }
    for heavy in NOT_IN_PODS {
        let optional = manifest
            .lines()
            .filter(|line| line.starts_with(&format!("{heavy} = ")))
            .all(|line| line.contains("optional = true"));
        if !optional {
            found.push(Finding::new(
                path,
                &format!("{heavy} is in every build: make it optional"),
            ));
        }
    }
    found
}

// ---- documents -----------------------------------------------------------------------------------------------------

/// Links of a Markdown file to files that are not there.
fn broken_links(path: &Path, text: &str, exists: &dyn Fn(&Path) -> bool) -> Vec<Finding> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let file = path.parent().unwrap_or(Path::new("")).join(target);
            if !exists(&file) {
                found.push(Finding::at(
                    path,
                    number + 1,
                    format!("links to {target}, which is not there"),
                ));
            }
        }
    }
    found
}

// ---- each check finds what is planted --------------------------------------------------------------------------------

fn planted(path: &str, text: &str) -> Source {
    Source {
        path: PathBuf::from(path),
        text: text.to_owned(),
    }
}

fn problems(found: &[Finding]) -> Vec<String> {
    found
        .iter()
        .map(|finding| format!("{}: {}", finding.line, finding.problem))
        .collect()
}

#[test]
fn an_arrow_from_the_domain_to_the_vault_is_found() {
    let source = planted(
        "src/domain/names.rs",
        "//! Names.\n\nuse crate::vault::Vault;\n",
    );
    assert_eq!(
        problems(&forbidden_arrows(&source)),
        ["3: domain may not name vault::Vault"]
    );
}

#[test]
fn an_arrow_in_a_group_or_in_the_middle_of_code_is_found() {
    let grouped = planted(
        "src/api/write.rs",
        "use crate::{\n    domain::names::{StageId, VariableName},\n    storage::{self, projects},\n};\n",
    );
    assert_eq!(
        problems(&forbidden_arrows(&grouped)),
        [
            "1: api may not name storage::self",
            "1: api may not name storage::projects"
        ]
    );
    let inline = planted(
        "src/client.rs",
        "fn f() -> u8 {\n    crate::vault::one::<u8>()\n}\n",
    );
    assert_eq!(
        problems(&forbidden_arrows(&inline)),
        ["2: client may not name vault::one"]
    );
}

#[test]
fn an_arrow_by_way_of_super_is_found() {
    let source = planted(
        "src/kubernetes/plan.rs",
        "use super::super::storage::projects;\n",
    );
    assert_eq!(
        problems(&forbidden_arrows(&source)),
        ["1: kubernetes::plan may not name storage::projects"]
    );
}

#[test]
fn the_deciding_parts_of_kubernetes_may_not_name_what_acts() {
    for path in ["src/kubernetes/injection/wrap.rs", "src/kubernetes/plan.rs"] {
        let source = planted(
            path,
            "use crate::kubernetes::resources::BarekeyStage;\nuse crate::kubernetes::controller::run;\nuse crate::vault::Vault;\n",
        );
        assert_eq!(forbidden_arrows(&source).len(), 2, "{path}");
    }
}

#[test]
fn a_module_without_a_row_is_found() {
    let source = planted("src/dashboard.rs", "fn nothing() {}\n");
    assert_eq!(forbidden_arrows(&source).len(), 1);
}

#[test]
fn what_the_table_allows_is_not_found() {
    let source = planted(
        "src/vault/projects.rs",
        "use std::fmt;\nuse crate::domain::names::ProjectId;\nuse crate::storage as rows;\nuse super::Vault;\nfn f() { self::g(); Self::h(); vault::i(); }\n",
    );
    assert_eq!(problems(&forbidden_arrows(&source)), [""; 0]);
}

#[test]
fn arrows_in_comments_texts_and_unit_tests_are_not_arrows() {
    let source = planted(
        "src/domain.rs",
        concat!(
            "//! See [`crate::vault::Vault`].\n/* crate::vault /* crate::api */ crate::vault */\n",
            "const A: &str = \"crate::vault::\\\"crate::api\";\nconst B: &str = r#\"crate::api::x \" crate::api\"#;\n",
            "const C: char = '\"';\nfn f<'a>(a: &'a str) {}\n",
            "#[cfg(test)]\nmod tests {\n    use crate::vault::Vault;\n    fn g() { { } }\n}\n",
        ),
    );
    assert_eq!(problems(&forbidden_arrows(&source)), [""; 0]);
    let after = planted(
        "src/domain.rs",
        "#[cfg(test)]\nmod tests {\n    use crate::vault::Vault;\n}\nuse crate::api::router;\n",
    );
    assert_eq!(
        problems(&forbidden_arrows(&after)),
        ["5: domain may not name api::router"]
    );
}

#[test]
fn a_crate_outside_its_module_is_found() {
    let source = planted(
        "src/vault/variables.rs",
        "use sqlx::Row;\nfn f(r: sqlx::any::AnyRow) {}\n",
    );
    assert_eq!(foreign_crates(&source).len(), 2);
    let home = planted("src/storage/variables.rs", "use sqlx::Row;\n");
    assert_eq!(foreign_crates(&home).len(), 0);
    let derive = planted(
        "src/domain.rs",
        "#[derive(schemars::JsonSchema)]\nstruct A;\n",
    );
    assert_eq!(foreign_crates(&derive).len(), 1);
    let webhook = planted("src/kubernetes/webhook.rs", "use axum::Router;\n");
    assert_eq!(foreign_crates(&webhook).len(), 0);
    let controller = planted("src/kubernetes/controller.rs", "use axum::Router;\n");
    assert_eq!(foreign_crates(&controller).len(), 1);
}

#[test]
fn a_plaintext_in_storage_is_found() {
    let source = planted(
        "src/storage/variables.rs",
        "use crate::domain::plaintext::Plaintext;\n",
    );
    assert_eq!(
        problems(&misplaced_words(&source)),
        ["1: Plaintext: storage never sees a value in the clear"]
    );
}

#[test]
fn a_status_code_in_the_vault_is_found() {
    let source = planted("src/vault.rs", "fn f() -> http::StatusCode { 1 }\n");
    assert_eq!(misplaced_words(&source).len(), 1);
}

#[test]
fn an_orphan_and_a_missing_file_are_found() {
    let files = BTreeMap::from(
        [
            (
                "src/lib.rs",
                "pub mod a;\nmod gone;\n// mod lost;\nmod inline { fn f() {} }\n",
            ),
            ("src/a.rs", "#[cfg(feature = \"x\")]\npub(crate) mod b;\n"),
            ("src/a/b.rs", ""),
            ("src/a/lost.rs", ""),
            ("tests/journeys/main.rs", "mod one;"),
            ("tests/journeys/one.rs", ""),
        ]
        .map(|(path, text)| (PathBuf::from(path), text.to_owned())),
    );
    let roots =
        roots("[lib]\npath = \"src/lib.rs\"\n[[test]]\npath = \"tests/journeys/main.rs\"\n");
    let found: Vec<_> = orphans(&roots, &files)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        found,
        [
            "src/gone.rs: a declared file that is not there",
            "src/a/lost.rs: no `mod` declares this file"
        ]
    );
}

#[test]
fn a_name_that_says_nothing_is_found() {
    assert!(nameless(Path::new("src/api/utils.rs")).is_some());
    assert!(nameless(Path::new("src/common/names.rs")).is_some());
    assert!(nameless(Path::new("src/api/mod.rs")).is_some());
    assert!(nameless(Path::new("src/domain/names.rs")).is_none());
}

#[test]
fn unfinished_work_and_reasonless_switches_are_found() {
    let path = Path::new("src/a.rs");
    let marks = format!(
        "// {}: later\nfn f() {{ {}) }}\n",
        UNFINISHED[0], UNFINISHED[3]
    );
    assert_eq!(unfinished(path, &marks).len(), 2);
    let switches = "#[allow(dead_code)]\nfn f() {}\n#[expect(clippy::panic, reason = \"the end\")]\nfn g() { x.expect(1); }\n#[cfg_attr(test, allow(unused))]\nfn h() {}\n";
    assert_eq!(
        problems(&unreasoned(path, switches)),
        [
            "1: `allow(…)` without `reason = \"…\"`",
            "5: `allow(…)` without `reason = \"…\"`"
        ]
    );
}

#[test]
fn a_code_map_that_says_something_else_is_found() {
    let map: String = ARROWS
        .iter()
        .filter(|(name, _)| !name.contains("::"))
        .map(|(name, may_name)| match *name {
            "domain" => "//! | [`domain`] | – | vault |\n".to_owned(),
            "agent" => String::new(),
            _ if may_name.is_empty() => format!("//! | `{name}` | – | – |\n"),
            _ => format!("//! | `{name}` | – | {} |\n", may_name.join(", ")),
        })
        .collect();
    assert_eq!(
        problems(&stale_map(&map)),
        [
            "0: the code map lets domain name vault, the table –",
            "0: the code map does not list agent"
        ]
    );
}

#[test]
fn a_database_in_the_agent_is_found() {
    let good = "[features]\nserver = [\"dep:sqlx\"]\ncli = [\n    \"dep:clap\",\n]\nagent = []\n";
    assert_eq!(heavy_features(good).len(), 0);
    let bad = "[features]\ncli = [\"dep:kube\"]\nagent = []\n[dependencies]\nsqlx = \"0.9\"\n";
    assert_eq!(heavy_features(bad).len(), 2);
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let text = "[a](b.md) and [c](https://example.com/x)\n[d](e.md#f) [g](#h)\n";
    let found = broken_links(Path::new("docs/README.md"), text, &|file| {
        file == Path::new("docs/b.md")
    });
    assert_eq!(problems(&found), ["2: links to e.md, which is not there"]);
}
