//! Words that show unfinished work, and switches without a reason.

use std::fs;
use std::path::Path;

use super::files::{files_below, is_foreign, root};
use super::finding::{Finding, problems, report};
use super::rust::{code, tokens};
use crate::UNFINISHED;

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
