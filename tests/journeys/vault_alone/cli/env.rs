//! Journeys of `barekey env`: values go in, come out, and are listed without themselves.

use std::fs;

use serde_json::{Value, json};

use super::Person;
use crate::vault_alone::database::Engine;
use crate::vault_alone::server::{STAGING, Shop, make_value};

pub(super) fn a_value_goes_in_by_stdin_or_a_file_and_comes_out_bare() {
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

    // Nothing at all is taken for a value that got lost, and is written when it is asked for.
    let before = person.does(&["env", "get", "KEY"]).printed();
    let empty = shop.place.directory.join("empty");
    fs::write(&empty, "").unwrap();
    let empty_file = ["env", "set", "KEY", "--value-file", empty.to_str().unwrap()];
    for (command, input) in [(&set[..], ""), (&set[..], "\n"), (&empty_file[..], "")] {
        let refusal = person.types(command, input.as_bytes()).refusal();
        assert!(refusal.contains("--allow-empty"), "{input:?}: {refusal}");
    }
    assert_eq!(person.does(&["env", "get", "KEY"]).printed(), before);
    let emptied = person.types(&[&set[..], &["--allow-empty"]].concat(), b"");
    assert_eq!(emptied.printed(), "updated KEY\n");
    assert_eq!(person.does(&["env", "get", "KEY"]).printed(), "");

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

pub(super) fn a_value_in_an_argument_is_written_with_a_warning() {
    let shop = Shop::open(Engine::Sqlite);
    let person = Person::with(&shop.server, &shop.owner);
    let done = person.does(&["env", "set", "COLOUR", "blue"]);
    assert_eq!((done.code, done.stdout.as_str()), (0, "created COLOUR\n"));
    assert!(done.stderr.contains("warning"), "{}", done.stderr);
    assert!(!done.stderr.contains("blue"), "{}", done.stderr);
    assert_eq!(person.does(&["env", "get", "COLOUR"]).printed(), "blue");

    // As JSON, each thing that is said is one object on its line.
    let done = person.does(&["--json", "env", "set", "COLOUR", "blue", "--type", "int64"]);
    let said: Vec<Value> = done
        .refusal()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let [warning, error] = &said[..] else {
        panic!("{said:?}");
    };
    assert!(warning["warning"]["message"].is_string(), "{warning}");
    assert!(error["error"]["requestId"].is_string(), "{error}");
    let usage = person.does(&["env", "set", "--json", "--type", "text", "KEY"]);
    let usage: Value = serde_json::from_str(&usage.refusal()).expect("JSON");
    assert_eq!(usage["error"]["code"], "USAGE");
    let usage = person.does(&["run", "true", "--", "--json"]).refusal();
    assert!(usage.starts_with("error: "), "{usage}");
}

pub(super) fn variables_are_listed_without_their_values() {
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
