//! What an administrator does in the cluster: `kubectl exec` of the operator's own program, over its socket.

use serde_json::{Value, json};

use crate::harness::{Installation, Journey, Namespace, eventually, get, token};

pub(crate) fn journeys() -> Vec<Journey> {
    vec![
        Journey::shared(
            "an_administrator_makes_and_revokes_tokens_in_the_cluster",
            tokens,
        ),
        Journey::shared(
            "the_heads_in_the_lease_are_those_of_the_audit_trail",
            published_heads,
        ),
    ]
}

fn tokens(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    namespace.apply_example("first-value/barekey.yaml");
    namespace.wait_ready("bks/development");
    let chain = installation.audit_chain(&organization);
    let before = installation.newest_record(&chain);

    let slug = organization.slug.as_str();
    let create = ["token", "create", "--organization", slug, "--role"];
    let made = installation
        .admin(&create)
        .args(["viewer", "--project", "shop", "--stage", "development"])
        .args(["--name", "ci", "--expires", "1h"])
        .succeed();
    let made = token(&made);
    let ask = || {
        let api = installation.api();
        let request = api.get("/v1/cli/session");
        request.bearer(&made).send()
    };
    let session = ask().ok();
    for (field, wanted) in [("orgSlug", slug), ("role", "viewer"), ("name", "ci")] {
        assert_eq!(session[field], wanted, "{session}");
    }
    assert!(session["accessTokenExpiresAtMs"].is_number(), "{session}");
    let read = |stage: &str| {
        let target = json!({"projectSlug": "shop", "stageSlug": stage});
        let api = installation.api();
        let request = api.post("/v1/env/pull");
        request.bearer(&made).json(&target).send()
    };
    assert_eq!(read("development").ok()["variables"], json!({}));
    read("production").refused(403, "FORBIDDEN");

    let id = session["tokenId"].as_str().expect("an id");
    let revoke = ["token", "revoke", "--organization", slug, id];
    let told = installation.admin(&revoke).output();
    assert!(told.status.success(), "{told}");
    assert!(told.stderr.contains(id), "it says what is revoked");
    ask().refused(401, "UNAUTHORIZED");
    read("development").refused(401, "UNAUTHORIZED");
    // The owner's is another one.
    assert_eq!(installation.audit_chain(&organization), chain);

    // Made, read, read and refused, revoked.
    let after = installation.newest_record(&chain);
    assert!(after >= before + 3, "{before} records, then {after}");
    // A role that there is not, and a token that there is not.
    installation.admin(&create).args(["king"]).fail();
    installation
        .admin(&["token", "revoke", "--organization", slug, "tok_absent"])
        .fail();
}

fn published_heads(namespace: &Namespace) {
    let installation = Installation::shared();
    let organization = installation.organization(namespace);
    let chain = installation.audit_chain(&organization);
    let published = eventually("the organization's chain in the Lease", || {
        let lease = get(["--namespace", installation.namespace(), "lease/barekey"]);
        let lease = lease.ok_or("there is no Lease")?;
        let heads = lease["metadata"]["annotations"]["barekey.dev/audit-heads"]
            .as_str()
            .ok_or("it has no heads")?;
        let heads: Vec<Value> = serde_json::from_str(heads).map_err(|error| error.to_string())?;
        let mut heads = heads.into_iter();
        let found = heads.find(|head| head["chain"] == chain.as_str());
        found.ok_or_else(|| format!("{chain} is not among them"))
    });
    let sequence = published["sequence"].as_u64().expect("a number");
    let mac = published["mac"].as_str().expect("a text");
    let head =
        |sequence: u64, mac: &str| format!("{chain}:{}:{sequence}:{mac}", published["epoch"]);
    let verify = |head: &str| {
        installation
            .admin(&["audit", "verify", "--head", head])
            .output()
    };

    let whole = verify(&head(sequence, mac));
    assert!(whole.status.success(), "{}", whole.stdout);
    assert!(whole.stderr.contains("The audit trail is whole"));
    let other: String = mac
        .chars()
        .map(|digit| if digit == '0' { '1' } else { '0' })
        .collect();
    for (head, finding) in [
        (
            head(sequence, &other),
            format!("record {sequence} is not the one that was published"),
        ),
        (head(sequence + 1000, mac), "cut off".to_owned()),
    ] {
        let altered = verify(&head);
        assert!(!altered.status.success());
        let named = |line: &str| line.contains(&chain) && line.contains(&finding);
        assert!(altered.stdout.lines().any(named), "{}", altered.stdout);
    }
}
