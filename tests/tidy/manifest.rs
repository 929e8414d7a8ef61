//! What Cargo.toml lets the agent link.

use std::path::Path;

use super::files::read;
use super::finding::{Finding, report};
use crate::NOT_IN_PODS;

#[test]
fn the_agent_is_built_without_database_and_cluster() {
    report(&heavy_features(&read("Cargo.toml")));
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

#[test]
fn a_database_in_the_agent_is_found() {
    let good = "[features]\nserver = [\"dep:sqlx\"]\ncli = [\n    \"dep:clap\",\n]\nagent = []\n";
    assert_eq!(heavy_features(good).len(), 0);
    let bad = "[features]\ncli = [\"dep:kube\"]\nagent = []\n[dependencies]\nsqlx = \"0.9\"\n";
    assert_eq!(heavy_features(bad).len(), 2);
}
