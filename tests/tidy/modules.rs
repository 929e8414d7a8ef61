//! Files that no module declares, and files whose names say nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::files::{read, sources};
use super::finding::{Finding, report};
use super::rust::{code, is_ident, tokens};
use crate::NAMELESS;

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
            path.parent().unwrap_or(Path::new("")).to_owned()
        } else {
            path.with_extension("")
        };
        for module in declared(text) {
            next.push((folder.join(module).with_extension("rs"), false));
        }
    }
    let lost = files.keys().filter(|path| !reached.contains(*path));
    found.extend(lost.map(|path| Finding::new(path, "no `mod` declares this file")));
    found
}

/// The modules that a file declares as files of their own, by their paths: those inside a module that is written out are in
/// its folder.
fn declared(text: &str) -> Vec<PathBuf> {
    let tokens = tokens(&code(text));
    let word = |at: usize| tokens.get(at).map_or("", |(token, _)| token.as_str());
    let mut found = Vec::new();
    // Of every brace that is open: the module that it belongs to, if it does.
    let mut open: Vec<Option<&str>> = Vec::new();
    for at in 0..tokens.len() {
        match word(at) {
            "{" => open.push((at > 1 && word(at - 2) == "mod").then(|| word(at - 1))),
            "}" => drop(open.pop()),
            "mod" if is_ident(word(at + 1)) && word(at + 2) == ";" => {
                let folders: PathBuf = open.iter().flatten().collect();
                found.push(folders.join(word(at + 1)));
            }
            _ => {}
        }
    }
    found
}

fn nameless(path: &Path) -> Option<Finding> {
    path.with_extension("")
        .iter()
        .filter_map(|part| part.to_str())
        .find(|part| NAMELESS.contains(part))
        .map(|part| Finding::new(path, &format!("`{part}` says nothing: name the noun")))
}

#[test]
fn an_orphan_and_a_missing_file_are_found() {
    let files = BTreeMap::from(
        [
            (
                "src/lib.rs",
                "pub mod a;\nmod gone;\n// mod lost;\nmod inline { fn f() {} mod c; }\nmod d;\n",
            ),
            ("src/inline/c.rs", ""),
            ("src/d.rs", ""),
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
