//! Journeys of `barekey project` and `barekey stage`.

use serde_json::json;

use super::Person;
use crate::vault_alone::database::Engine;
use crate::vault_alone::server::Place;

pub(super) fn projects_and_stages_are_made_and_listed() {
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
