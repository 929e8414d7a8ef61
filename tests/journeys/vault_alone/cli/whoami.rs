//! Journeys of `barekey whoami`.

use serde_json::json;

use super::Person;
use crate::vault_alone::database::Engine;
use crate::vault_alone::server::Shop;

pub(super) fn whoami_tells_whose_token_it_is() {
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
