//! What Cargo.toml lets the agent link.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::files::read;
use super::finding::{Finding, problems, report};
use crate::NOT_IN_PODS;

#[test]
fn the_agent_is_built_without_database_and_cluster() {
    report(&heavy_features(&read("Cargo.toml")));
}

/// Crates that the features for pods bring, and must not.
fn heavy_features(manifest: &str) -> Vec<Finding> {
    let path = Path::new("Cargo.toml");
    let features = features(manifest);
    let mut found = Vec::new();
    for feature in ["cli", "agent"] {
        if !features.contains_key(feature) {
            found.push(Finding::new(
                path,
                &format!("there is no feature {feature}"),
            ));
            continue;
        }
        let brought = brought(&features, feature);
        for heavy in NOT_IN_PODS.iter().filter(|heavy| brought.contains(**heavy)) {
            found.push(Finding::new(
                path,
                &format!("the feature {feature} brings {heavy}"),
            ));
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

/// The features of a manifest, and what each lists.
fn features(manifest: &str) -> BTreeMap<&str, Vec<&str>> {
    let Some((_, table)) = manifest.split_once("[features]\n") else {
        return BTreeMap::new();
    };
    let table = table.split("\n[").next().unwrap_or(table);
    table
        .split(']')
        .filter_map(|entry| entry.split_once(" = ["))
        .map(|(name, list)| {
            let listed = list.split('"').skip(1).step_by(2).collect();
            // What stands above it may be a comment.
            (name.lines().last().unwrap_or_default().trim(), listed)
        })
        .collect()
}

/// The crates that a feature brings, by itself or by way of the features that it lists.
fn brought<'a>(features: &BTreeMap<&'a str, Vec<&'a str>>, feature: &'a str) -> BTreeSet<&'a str> {
    let (mut seen, mut crates) = (BTreeSet::new(), BTreeSet::new());
    let mut next = vec![feature];
    while let Some(feature) = next.pop() {
        if !seen.insert(feature) {
            continue;
        }
        for listed in features.get(feature).into_iter().flatten() {
            match (listed.strip_prefix("dep:"), listed.split_once('/')) {
                (Some(name), _) => drop(crates.insert(name)),
                // `name?/feature` brings only the feature.
                (None, Some((name, _))) if name.ends_with('?') => {}
                (None, Some((name, _))) => drop(crates.insert(name)),
                (None, None) => next.push(listed),
            }
        }
    }
    crates
}

#[test]
fn a_database_in_the_agent_is_found() {
    let good = "[features]\nserver = [\"dep:sqlx\"]\ncli = [\n    \"dep:clap\",\n]\nagent = []\n";
    assert_eq!(heavy_features(good).len(), 0);
    let bad = "[features]\ncli = [\"dep:kube\"]\nagent = []\n[dependencies]\nsqlx = \"0.9\"\n";
    assert_eq!(heavy_features(bad).len(), 2);
    // By way of another feature, of one more, and of a crate's own feature.
    let long_way = concat!(
        "[features]\nserver = [\"dep:sqlx\", \"kube/client\"]\ncli = [\"tokio/signal\", \"axum?/http1\"]\n",
        "all = [\n    \"server\",\n]\nagent = [\"all\"]\n[dependencies]\n",
    );
    assert_eq!(
        problems(&heavy_features(long_way)),
        [
            "0: the feature agent brings sqlx",
            "0: the feature agent brings kube"
        ]
    );
}
