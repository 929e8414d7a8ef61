//! Documents and examples.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{Source, files_below, is_foreign, read, root, sources};
use super::finding::{Finding, problems, report};

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

#[test]
fn every_file_of_the_examples_is_loaded_by_a_journey() {
    let journeys: Vec<Source> = sources("tests/journeys");
    let texts: Vec<&str> = journeys.iter().map(|source| source.text.as_str()).collect();
    let examples: Vec<_> = files_below(Path::new("examples"), &|_| true)
        .into_iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    assert!(examples.len() > 5, "only {examples:?}");
    report(&unused_examples(&examples, &texts));
}

/// Examples that no text of a journey names, by their path below `examples`.
fn unused_examples(examples: &[PathBuf], journeys: &[&str]) -> Vec<Finding> {
    let is_named = |path: &Path| {
        let name = path.strip_prefix("examples").unwrap().to_str().unwrap();
        let quoted = format!("\"{name}\"");
        journeys.iter().any(|text| text.contains(&quoted))
    };
    examples
        .iter()
        .filter(|path| !is_named(path))
        .map(|path| Finding::new(path, "an example that no journey loads"))
        .collect()
}

#[test]
fn an_example_that_no_journey_loads_is_found() {
    let examples = ["examples/a/b.yaml", "examples/a/c.yaml"].map(PathBuf::from);
    let found = unused_examples(&examples, &["f(\"a/b.yaml\"); // a/c.yaml"]);
    assert_eq!(problems(&found), ["0: an example that no journey loads"]);
    assert_eq!(found[0].path, examples[1]);
}

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

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let text = "[a](b.md) and [c](https://example.com/x)\n[d](e.md#f) [g](#h)\n";
    let found = broken_links(Path::new("docs/README.md"), text, &|file| {
        file == Path::new("docs/b.md")
    });
    assert_eq!(problems(&found), ["2: links to e.md, which is not there"]);
}
