//! Which module names which, and which crate belongs to whom.

use std::path::Path;

use super::files::{Source, planted, read, sources};
use super::finding::{Finding, problems, report};
use super::rust::{code, is_in, paths, test_files, tokens, without_tests};
use crate::{ABSENT, ARROWS, CRATES, FORBIDDEN_IN};

#[test]
fn no_module_names_what_the_table_does_not_allow() {
    let mut found = Vec::new();
    let all = sources("src");
    let tests = test_files(&all);
    for source in all.iter().filter(|source| !is_in(&source.path, &tests)) {
        found.extend(forbidden_arrows(source));
        found.extend(foreign_crates(source));
        found.extend(misplaced_words(source));
    }
    report(&found);
}

#[test]
fn the_code_map_says_what_the_table_says() {
    report(&stale_map(&read("src/lib.rs")));
}

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
    let mut target = match parts.first()?.as_str() {
        "crate" => Vec::new(),
        "self" | "super" => module.to_vec(),
        _ => return None,
    };
    for part in parts {
        match part.as_str() {
            "crate" | "self" => {}
            "super" => drop(target.pop()),
            name => target.push(name.to_owned()),
        }
    }
    Some(target)
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
    let code = without_tests(&code(&source.text));
    for (words, line) in triples(&code) {
        if words == ["extern", "crate", "self"] {
            let problem = format!("{name} may not give the root another name");
            found.push(Finding::at(&source.path, line, problem));
        }
    }
    for named in paths(&code) {
        let Some(target) = inside(&module, &named.parts) else {
            continue;
        };
        let allowed = within(&target, name)
            || may_name.iter().any(|allowed| within(&target, allowed))
            // Alone the root names nothing; all of it, or under another name, it leads everywhere.
            || target.is_empty() && !named.opens;
        if !allowed && target.is_empty() {
            found.push(Finding::at(
                &source.path,
                named.line,
                format!("{name} may not name all of the root, nor give it another name"),
            ));
        } else if !allowed {
            found.push(Finding::at(
                &source.path,
                named.line,
                format!("{name} may not name {}", target.join("::")),
            ));
        }
    }
    found
}

/// Each three words that follow one another, and the line that they begin on.
fn triples(code: &str) -> Vec<([String; 3], usize)> {
    tokens(code)
        .windows(3)
        .map(|words| {
            let text = |at: usize| words[at].0.clone();
            ([text(0), text(1), text(2)], words[0].1)
        })
        .collect()
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
        if let Some(why) = forbidden(&module, &word) {
            found.push(Finding::at(&source.path, line, format!("{word}: {why}")));
        }
    }
    for named in paths(&code) {
        let ends = 2..=named.parts.len();
        let ways = ends.flat_map(|end| (0..end - 1).map(move |start| (start, end)));
        for (start, end) in ways {
            let way = named.parts[start..end].join("::");
            if let Some(why) = forbidden(&module, &way) {
                found.push(Finding::at(
                    &source.path,
                    named.line,
                    format!("{way}: {why}"),
                ));
            }
        }
    }
    found
}

/// Why `module` may not name `text`, a word or a part of a path.
fn forbidden(module: &[String], text: &str) -> Option<&'static str> {
    FORBIDDEN_IN
        .iter()
        .filter(|(holders, ..)| holders.iter().any(|holder| within(module, holder)))
        .find(|(_, forbidden, _)| forbidden.contains(&text))
        .map(|(.., why)| *why)
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
            "1: api may not name storage",
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
fn an_arrow_by_all_of_the_root_or_by_another_name_of_it_is_found() {
    let all = "2: domain may not name all of the root, nor give it another name";
    for (text, expected) in [
        ("use crate::*;\nfn f() { storage::f() }\n", all),
        ("use super::*;\n", all),
        ("use {std::fmt, crate::*};\n", all),
        ("use crate as c;\nfn f() { c::storage::f() }\n", all),
        ("use super as up;\n", all),
        ("use crate::{self as c};\n", all),
        ("use self::super::*;\n", all),
        (
            "use self::super::storage;\n",
            "2: domain may not name storage",
        ),
        (
            "extern crate self as c;\n",
            "2: domain may not give the root another name",
        ),
    ] {
        let source = planted("src/domain.rs", &format!("//! All.\n{text}"));
        assert_eq!(problems(&forbidden_arrows(&source)), [expected], "{text}");
    }
    // Of a parent that the table allows.
    let source = planted(
        "src/vault/projects.rs",
        "use super::*;\nuse crate::storage as s;\n",
    );
    assert_eq!(problems(&forbidden_arrows(&source)), [""; 0]);
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
    let whole = planted(
        "src/domain/fixture.rs",
        "//! For tests.\n#![cfg(test)]\nuse crate::vault::Vault;\n",
    );
    assert_eq!(problems(&forbidden_arrows(&whole)), [""; 0]);
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
fn a_status_code_where_nothing_answers_over_http_is_found() {
    let text = "fn f() -> http::StatusCode { 1 }\n";
    for path in [
        "src/vault.rs",
        "src/admin.rs",
        "src/client.rs",
        "src/cli.rs",
        "src/bin/barekey-operator.rs",
        "src/kubernetes/controller.rs",
    ] {
        assert_eq!(misplaced_words(&planted(path, text)).len(), 1, "{path}");
    }
    for path in ["src/api/error.rs", "src/kubernetes/webhook/review.rs"] {
        assert_eq!(misplaced_words(&planted(path, text)).len(), 0, "{path}");
    }
}

#[test]
fn what_acts_reads_a_clock_or_guesses_is_found_where_all_is_pure() {
    let text = concat!(
        "use std::{fmt, fs};\nuse std::net::{IpAddr, TcpStream};\nuse kube::{Api, Resource};\n",
        "fn f() -> Option<Instant> { std::env::var(\"A\"); std::process::id(); tokio::spawn(g); None }\n",
        "fn g() { jiff::Zoned::now(); Timestamp::now(); getrandom(&mut a); Uuid::new_v4(); }\n",
        "use kube::runtime::watcher;\nuse kube::client;\n",
    );
    for path in [
        "src/domain/names.rs",
        "src/kubernetes/injection.rs",
        "src/kubernetes/plan/finding.rs",
    ] {
        let mut found = problems(&misplaced_words(&planted(path, text)));
        found.sort();
        assert_eq!(
            found,
            [
                "1: std::fs: what is pure does no I/O",
                "2: TcpStream: what is pure does no I/O",
                "3: kube::Api: what is pure asks no API server",
                "4: Instant: what is pure reads no clock",
                "4: std::env: what is pure does no I/O",
                "4: std::process: what is pure does no I/O",
                "4: tokio: what is pure does no I/O",
                "5: Timestamp::now: what is pure reads no clock",
                "5: Zoned::now: what is pure reads no clock",
                "5: getrandom: what is pure has no randomness",
                "5: new_v4: what is pure has no randomness",
                "6: kube::runtime: what is pure asks no API server",
                "7: kube::client: what is pure asks no API server",
            ],
            "{path}"
        );
    }
    let elsewhere = planted("src/kubernetes/controller.rs", text);
    assert_eq!(problems(&misplaced_words(&elsewhere)), [""; 0]);
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
